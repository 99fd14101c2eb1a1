"""why-stuck: who waits for whom, to the end of each chain, and the ranked root causes."""

from __future__ import annotations

import argparse
from typing import List, Optional, Sequence, Tuple

from commands import Needs, number
from plugin.captures import explain
from plugin.captures.machine import TextKernel
from plugin.catalogue import with_file
from plugin.errors import UsageError
from plugin.kernel.proc import Thread, threads
from plugin.render import progress, why
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.waits.analysis import Analysis
from plugin.waits.known import Match, matches, seen_in, warnings
from plugin.waits.known import shipped as entries
from plugin.waits.moments import Moment, moment, to_json
from plugin.waits.moments import progress as progress_since
from plugin.waits.registry import RESOLVERS

HELP = "who waits for whom, to the end of each chain; the ranked root causes with evidence"
EXAMPLE = (
    "why-stuck\nwhy-stuck 100104\nwhy-stuck --html hang.html\nwhy-stuck --since vmcore.0 --json"
)
FORMS = ("", "--all")
COMPLETES = ("threads",)
NEEDS = Needs(symbols=("allproc",), structs=("proc", "thread"), text=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "who", nargs="*", metavar="TID|PID|NAME", help="only these threads, their chains in full"
    )
    parser.add_argument(
        "--tid", type=number, action="append", default=[], help="a thread, its chain in full"
    )
    parser.add_argument(
        "--all", action="store_true", help="every chain, those of idle and benign sleepers too"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--dot", action="store_true", help="the graph, for graphviz")
    shape.add_argument("--svg", action="store_true", help="the graph drawn by graphviz")
    shape.add_argument(
        "--html", metavar="FILE", help="everything as one page that a bug report can carry"
    )
    moments = parser.add_argument_group("who has moved").add_mutually_exclusive_group()
    moments.add_argument(
        "--since",
        metavar="FILE",
        help="an earlier core, capsule, report (--json) or text of the same boot: who moved since",
    )
    moments.add_argument(
        "--sample",
        type=_period,
        metavar="SECONDS",
        help="of a live kernel or remote: let it run so long, and say who moved",
    )
    own = parser.add_argument_group("what you know better")
    own.add_argument(
        "--catalogue", metavar="FILE", help="wait messages of your own, over the shipped ones"
    )
    own.add_argument("--known", metavar="FILE", help="known bugs of your own, before the shipped")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    text = kernel if isinstance(kernel, TextKernel) else None
    then = _earlier(kernel, args)
    chosen = _chosen(text.threads if text is not None else threads(kernel), args)
    catalogue = with_file(args.catalogue, RESOLVERS)
    everything = args.all or bool(chosen)
    analysis = explain.answer(kernel, catalogue, everything)
    if args.dot or args.svg:
        return why.drawn(analysis, as_svg=args.svg)
    if args.html:
        return why.page(analysis, args.html, kernel.target.files, *_bugs(analysis, args))
    if chosen:
        report = why.in_full(analysis, chosen, args.width)
    else:
        report = why.first_screen(analysis, args.width, everything=args.all, limit=args.limit)
    # Over a wire each word has its price.
    told = args.json and (kernel.target.wire is None or args.deep)
    now = moment(kernel) if then is not None or told else None
    if now is not None and told:
        report.data["moment"] = to_json(now)
    if now is not None and then is not None:
        progress.add(report, progress_since(analysis, then, now))
    # A drawing does not name them: their stacks are read for those who are told, and last.
    why.add_known(report, *_bugs(analysis, args))
    return report


def _bugs(analysis: Analysis, args: argparse.Namespace) -> Tuple[List[Match], List[Match]]:
    """The known bugs that look like it, and those its version warns of."""
    kernel = analysis.kernel
    frames = kernel.capture.panic_frames if isinstance(kernel, TextKernel) else ()
    seen, bugs = seen_in(analysis, frames), entries(args.known)
    return matches(seen, bugs), warnings(seen, bugs)


def _earlier(kernel: Kernel, args: argparse.Namespace) -> Optional[Moment]:
    """The moment to compare with, None where none was asked for; a sample lets the kernel run."""
    if args.since:
        found: Moment = args.earlier(args.since)
        return found
    if not args.sample:
        return None
    found = moment(kernel)._replace(source="the sample began")
    args.let_run(args.sample)
    return found


def _period(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("more than 0 and at most 3600 seconds")
    return value


def _chosen(every: Sequence[Thread], args: argparse.Namespace) -> List[Thread]:
    """The threads the arguments name: a tid, a pid, or a name of a process or thread."""
    found: List[Thread] = []
    for word in [*map(str, args.tid), *args.who]:
        some = [t for t in every if str(t.tid) == word]
        some = some or [t for t in every if str(t.pid) == word]
        some = some or [t for t in every if word in (t.name, t.comm, t.label)]
        if not some:
            raise UsageError(f"why-stuck: no thread, process or name {word!r}")
        found.extend(t for t in some if t not in found)
    return found
