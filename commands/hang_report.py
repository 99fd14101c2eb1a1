"""hang-report: the sections that FreeBSD developers ask for, of one stuck or panicked kernel.

The sections bear the names of DDB's commands in the Developers' Handbook's chapter on
deadlocks.  Each is another command with its arguments: what it needs is asked of that
command, its failure and its findings stand in its own place, its time beside it.
"""

from __future__ import annotations

import argparse
import time
from contextlib import suppress
from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

import commands
from commands import Needs
from plugin.captures.explain import answer
from plugin.catalogue import shipped
from plugin.errors import WchanError
from plugin.render import hangreport
from plugin.render.hangreport import Section
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.waits.verdict import matter

HELP = (
    "all of it, in the sections FreeBSD developers ask for: ps, allpcpu, alllocks, lockedvnods, "
    "lockedbufs, allchains, alltrace, mount, files, geom, pageq, "
    "uma; one that fails costs itself alone"
)
EXAMPLE = "hang-report -o report.txt\nhang-report --profile io --html hang.html"
FORMS = ("",)
NEEDS = Needs(symbols=("allproc",), structs=("proc", "thread"), text=True)


class Asked(NamedTuple):
    """A section: its title and the command line that answers it."""

    title: str
    line: Tuple[str, ...]


#: In the order in which they are printed.  A command that is not there is no section.
SECTIONS: Tuple[Asked, ...] = (
    Asked("panic", ("vmpage",)),
    Asked("why-stuck", ("why-stuck",)),
    Asked("msgbuf", ("kmsgbuf", "--limit", "40")),
    Asked("ps", ("kthreads",)),
    Asked("allpcpu", ("kthreads", "--cpus")),
    Asked("alllocks", ("klocks", "--all")),
    Asked("lockedvnods", ("klocks", "--vnodes")),
    Asked("lockedbufs", ("klocks", "--bufs")),
    Asked("allchains", ("why-stuck", "--all")),
    Asked("alltrace", ("kthreads", "--stacks")),
    Asked("mount", ("mounts",)),
    Asked("files", ("files",)),
    Asked("taskqueue", ("tasks",)),
    Asked("geom", ("provider",)),
    Asked("bioq", ("bioq",)),
    Asked("pbuf", ("pbuf",)),
    Asked("pageq", ("vmpage", "--scan")),
    Asked("uma", ("vmstate", "--zones")),
    Asked("zfs", ("zfs",)),
    Asked("kldstat", ("modules",)),
)
#: what FreeBSD's developers ask for of whatever hangs
HANDBOOK = (
    *("why-stuck", "msgbuf", "ps", "allpcpu", "alllocks", "lockedvnods", "lockedbufs"),
    *("allchains", "alltrace", "geom", "pageq", "uma"),
)
_ALWAYS = ("panic", "why-stuck", "msgbuf", "ps", "allpcpu", "alllocks", "lockedvnods", "alltrace")
PROFILES: Dict[str, Tuple[str, ...]] = {
    "hang": tuple(asked.title for asked in SECTIONS),
    "panic": (*_ALWAYS, "pageq"),
    "io": (*_ALWAYS, "lockedbufs", "allchains", "mount", "geom", "bioq", "pbuf", "zfs"),
    "memory": (*_ALWAYS, "lockedbufs", "pbuf", "pageq", "uma"),
    "zfs": (*_ALWAYS, "allchains", "mount", "taskqueue", "zfs", "geom", "bioq", "uma"),
    "nfs": (*_ALWAYS, "lockedbufs", "allchains", "mount", "files"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        choices=sorted(PROFILES),
        help="its sections alone; without it those of the state too",
    )
    parser.add_argument("--html", metavar="FILE", help="as one page that a bug report can carry")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    analysis = None
    with suppress(WchanError, KeyboardInterrupt):  # which its own section says
        analysis = answer(kernel, shipped())
    profile = args.profile or ("panic" if kernel.panicstr else matter(analysis))
    # Who asks for one gets no more; who does not gets what nobody has to ask back for.
    wanted = {*PROFILES[profile], *(() if args.profile else HANDBOOK)}
    sections = list(_sections(kernel, wanted, args.width))
    if args.html:
        return hangreport.page(kernel, profile, sections, args.html, analysis)
    return hangreport.report(kernel, profile, sections)


def _sections(kernel: Kernel, wanted: Set[str], width: int) -> Iterator[Section]:
    stopped = False
    for asked in SECTIONS:
        about_panic = asked.title == "panic" and not kernel.panicstr
        if asked.title not in wanted or asked.line[0] not in commands.NAMES or about_panic:
            continue
        if stopped:
            yield Section(asked.title, asked.line, 0.0, None, "interrupted", [], True)
            continue
        kernel.progress(asked.title, 0, 0)
        section = _section(kernel, asked, width)
        stopped = section.error == "interrupted"
        yield section


def _section(kernel: Kernel, asked: Asked, width: int) -> Section:
    """One section, whatever becomes of it: only its own place shows what went wrong."""
    started = time.perf_counter()
    given, error = None, ""
    with kernel.noting() as found:
        try:
            command = commands.load(asked.line[0])
            missing = command.NEEDS.missing(kernel)
            if missing:
                error = f"this kernel lacks {', '.join(missing)}"
            else:
                given = command.run(kernel, _arguments(command, asked.line[1:], width))
        except KeyboardInterrupt:
            error = "interrupted"
        except WchanError as failure:
            error = str(failure)
        except Exception as failure:  # one section's defect must not cost the others
            error = f"internal error ({type(failure).__name__}: {failure})"
    spent = time.perf_counter() - started
    partial = found.partial or given is None
    return Section(asked.title, asked.line, spent, given, error, list(found), partial)


def _arguments(command: commands.Command, words: Tuple[str, ...], width: int) -> argparse.Namespace:
    """A command's arguments, those that every command shares among them."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    parser.add_argument("--limit", type=int)
    shared: List[Tuple[str, object]] = [("json", False), ("verbose", False), ("output", None)]
    parser.set_defaults(width=width, **dict(shared))
    return parser.parse_args(list(words))
