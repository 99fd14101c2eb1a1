"""Damage a kernel's memory and look whether a report of it lies: ``python tests/damage``.

Each case damages the memory under one command (cases.py), which is then run as a user runs it.
A case fails where there is a traceback, a status that none of ours is, JSON that breaks its
schema, more than ``--slow`` seconds of CPU time or ``--memory`` MB; where data that is lost
(not changed) leaves a report another that does not call itself partial; or where why-stuck
names a deadlock or a proven edge that the undamaged kernel has not, with nothing of it marked.

Without a dump small forged ones are damaged; ``VMCORE KERNEL`` damages that one.  A case is
made again by ``--again CASE``, which is how failures are named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import commands  # noqa: E402
from plugin.hosts.runner import run_command  # noqa: E402
from plugin.opening import open_core  # noqa: E402
from plugin.session import Kernel  # noqa: E402
from tests.contract import load, problems  # noqa: E402
from tests.damage.cases import KINDS, Kind, Places, broken  # noqa: E402
from tests.forge.machine import Machine  # noqa: E402
from tests.forge.scenarios import deadlocks, pbufs  # noqa: E402
from tests.forge.scenarios.geom_tour import geom_tour  # noqa: E402
from tests.forge.scenarios.storage_deadlock import storage_deadlock  # noqa: E402

FORGED: Dict[str, Callable[[], Machine]] = {
    "deadlock-14.2": lambda: deadlocks.abba("sx", "sx"),
    "every-lock-15.0-arm64": lambda: deadlocks.every_lock(osreldate=1500068, arch="arm64"),
    "geom-14.2": geom_tour,
    "geom-9.3": lambda: geom_tour(osreldate=903000),
    "pbufs-12.1": lambda: pbufs.exhaustion(osreldate=1201000),
    "storage-7.0-i386": storage_deadlock,
}
#: every form of every command but those that read no memory
FORMS = tuple(
    (name, *form.split())
    for name in commands.NAMES
    for form in commands.load(name).FORMS
    if name != "structs"
)


class Outcome(NamedTuple):
    #: "", or what is wrong
    fault: str
    changed: bool
    marked: bool
    failed: bool


class Slow(BaseException):
    """The CPU time of one case is used up."""


def _out_of_time(number: int, frame: Optional[FrameType]) -> None:
    raise Slow


class Subject(NamedTuple):
    """One dump, opened once, and what each command says of it undamaged."""

    name: str
    kernel: Kernel
    places: Dict[Tuple[str, ...], Places]
    before: Dict[Tuple[str, ...], Any]


def subject(name: str, vmcore: str, file: str) -> Subject:
    kernel = open_core(vmcore, file)
    places: Dict[Tuple[str, ...], Places] = {}
    before: Dict[Tuple[str, ...], Any] = {}
    for form in FORMS:
        reads: List[Tuple[int, int]] = []
        fresh = open_core(vmcore, file)
        read = fresh.read

        def noted(address: int, size: int, read: Any = read, reads: Any = reads) -> bytes:
            data: bytes = read(address, size)
            # of a large read, its beginning: arrays of pages would be nearly all there is
            reads.append((address, min(size, 512)))
            return data

        fresh.read = noted
        status, text, _ = _run(fresh, form, True)
        reads = [read for read in reads if read[1]]
        if status != 1 and reads:
            places[form] = Places(kernel, reads)
            before[form] = json.loads(text)
    return Subject(name, kernel, places, before)


def _run(kernel: Kernel, form: Tuple[str, ...], as_json: bool) -> Tuple[int, str, str]:
    out: List[str] = []
    err: List[str] = []
    command, *words = form
    asked = [*words, "--json"] if as_json else words
    status = run_command(command, asked, lambda: kernel, out.append, err.append, width=100)
    return status, "".join(out), " ".join(err)


def tried(on: Subject, kind: Kind, form: Tuple[str, ...], number: int, slow: float) -> Outcome:
    """One case, judged."""
    seed = f"{on.name}:{kind.name}:{' '.join(form)}:{number}"
    kernel = broken(on.places[form], kind, seed)
    # The text of every fourth case: what it must keep to is that it is there.
    as_json = number // len(KINDS) % 4 != 3
    signal.signal(signal.SIGVTALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_VIRTUAL, slow)
    try:
        status, text, said = _run(kernel, form, as_json)
    except Slow:
        return Outcome(f"more than {slow:.0f} s", False, False, False)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if "internal error" in said or "gave up" in said:
        return Outcome(said, False, False, True)
    if status not in (0, 1, 3):
        return Outcome(f"status {status}", False, False, False)
    if status == 1:
        return Outcome("" if said else "failed without a word", True, True, True)
    if not as_json:
        return Outcome("" if text.strip() else "no text", False, status == 3, False)
    report = load(text)
    for breach in problems(report, form[0]):
        return Outcome(breach, True, status == 3, False)
    if (status == 3) != report["partial"]:
        return Outcome("status and partial do not agree", True, status == 3, False)
    before = on.before[form]
    changed = _told(report) != _told(before)
    marked = bool(report["partial"] or report["warnings"])
    if changed and not report["partial"] and kind.lossy:
        return Outcome(
            "data was lost, and the report is another and calls itself whole", True, marked, False
        )
    if form[0] == "why-stuck" and kind.lossy:
        invented = _claims(report) - _claims(before)
        if invented:
            return Outcome(f"invented: {sorted(invented)[0]}", True, marked, False)
    return Outcome("", changed, marked, False)


def _told(report: Any) -> Any:
    """What a report says of the kernel: a hang-report's, without the time it took."""
    if report["command"] != "hang-report":
        return report["data"]
    sections = [
        {key: value for key, value in section.items() if key != "seconds"}
        for section in report["data"]["sections"]
    ]
    return {**report["data"], "sections": sections}


def _claims(report: Any) -> set[Tuple[str, ...]]:
    """What why-stuck says is certain: deadlocks, and who holds what."""
    data = report["data"]
    proven = ("owned-by", "contained-in")
    return {
        ("deadlock", cause["node"]) for cause in data["causes"] if cause["kind"] == "deadlock"
    } | {
        (edge["kind"], edge["from"], edge["to"])
        for edge in data["edges"]
        if edge["certainty"] == "proven" and edge["kind"] in proven
    }


def cases(on: Subject, first: int, last: int) -> Iterator[Tuple[Kind, Tuple[str, ...], int]]:
    """Case ``first`` to ``last`` of a dump: kinds and commands in turn."""
    forms = sorted(on.places)
    for number in range(first, last):
        yield KINDS[number % len(KINDS)], forms[number // len(KINDS) % len(forms)], number


def _subjects(args: argparse.Namespace, folder: Path) -> Iterator[Tuple[str, str, str]]:
    if args.dump:
        yield Path(args.dump[0]).parent.name, *args.dump
        return
    for name, make in FORGED.items():
        (folder / name).mkdir()
        vmcore, kernel = make().write(folder / name)
        yield name, str(vmcore), str(kernel)


def _child(on: Subject, first: int, last: int, args: argparse.Namespace, told: int) -> None:
    """Run cases in this fork, a line of JSON for each."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + args.memory
    with os.fdopen(told, "w") as out:
        for kind, form, number in cases(on, first, last):
            begun = time.process_time()
            try:
                outcome = tried(on, kind, form, number, args.slow)
            except Exception as error:
                outcome = Outcome(f"{type(error).__name__}: {error}", False, False, False)
            if (
                not outcome.fault
                and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 > most
            ):
                outcome = outcome._replace(fault=f"more than {args.memory} MB")
            spent = time.process_time() - begun
            out.write(json.dumps((kind.name, form, number, outcome, spent)) + "\n")


def main() -> int:
    """Runs the cases; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dump", nargs="*", metavar="VMCORE KERNEL")
    parser.add_argument("--cases", type=int, default=1200, metavar="N", help="on each dump")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="case to begin with")
    parser.add_argument("--slow", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--memory", type=int, default=1024, metavar="MB")
    parser.add_argument("--again", metavar="CASE", help="DUMP:NUMBER, and what becomes of it")
    parser.add_argument("--record", metavar="FILE", help="add the counts to those in FILE (JSON)")
    parser.add_argument("--silent", action="store_true", help="list what changed without a mark")
    args = parser.parse_args()
    total: Dict[str, Counter[str]] = {kind.name: Counter() for kind in KINDS}
    failures: Dict[str, List[str]] = {}
    silent: Dict[str, List[str]] = {}
    with tempfile.TemporaryDirectory(prefix="wchan-damage-") as folder:
        for name, vmcore, kernel in _subjects(args, Path(folder)):
            if args.again and not args.again.startswith(name + ":"):
                continue
            on = subject(name, vmcore, kernel)
            if args.again:
                _again(on, int(args.again.rpartition(":")[2]), args.slow)
                continue
            # a fork for some hundred cases: what one leaves behind ends with it
            for first in range(args.first, args.first + args.cases, _A_FORK):
                last = min(first + _A_FORK, args.first + args.cases)
                _collect(on, first, last, args, total, failures, silent)
            if args.record:
                _record(Path(args.record), total, failures)
                total = {kind.name: Counter() for kind in KINDS}
    if args.again:
        return 0
    counts = json.loads(Path(args.record).read_text())["kinds"] if args.record else total
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    print(table(counts))
    for fault, where in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(where):6} {fault}: {', '.join(where[:4])}")
    if args.silent:
        for what, where in sorted(silent.items(), key=lambda item: -len(item[1])):
            print(f"{len(where):6} {what}: {', '.join(where[:4])}")
    return int(bool(failures))


#: cases of one process
_A_FORK = 240


def _collect(
    on: Subject,
    first: int,
    last: int,
    args: argparse.Namespace,
    total: Dict[str, Counter[str]],
    failures: Dict[str, List[str]],
    silent: Dict[str, List[str]],
) -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(ours)
            _child(on, first, last, args, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    done = 0
    with os.fdopen(ours) as told:
        for line in told:
            kind, form, number, (fault, changed, marked, failed), spent = json.loads(line)
            done += 1
            found = total[kind]
            found["cases"] += 1
            found["changed"] += changed
            found["marked"] += changed and marked
            found["failed"] += failed
            found["faults"] += bool(fault)
            if changed and not marked:
                silent.setdefault(f"{kind}: {' '.join(form)}", []).append(f"{on.name}:{number}")
            found["milliseconds"] += round(1000 * spent)
            if fault:
                failures.setdefault(f"{form[0]}: {fault[:160]}", []).append(f"{on.name}:{number}")
    os.waitpid(child, 0)
    if done < last - first:
        failures.setdefault("the process ended", []).append(f"{on.name}:{first + done}")


def _again(on: Subject, number: int, slow: float) -> None:
    os.environ["WCHAN_DEBUG"] = "1"
    ((kind, form, _),) = cases(on, number, number + 1)
    seed = f"{on.name}:{kind.name}:{' '.join(form)}:{number}"
    kernel = broken(on.places[form], kind, seed)
    print(kind.name, form, vars(kernel.target))
    status, text, said = _run(kernel, form, True)
    print(status, said)
    print(json.dumps(json.loads(text), indent=1)[:20000])
    print(tried(on, kind, form, number, slow))


def _record(path: Path, total: Dict[str, Counter[str]], failures: Dict[str, List[str]]) -> None:
    known = json.loads(path.read_text()) if path.exists() else {"kinds": {}, "failures": {}}
    for kind, counts in total.items():
        known["kinds"][kind] = dict(Counter(known["kinds"].get(kind, {})) + counts)
    known["failures"].update({fault: where[:4] for fault, where in failures.items()})
    path.write_text(json.dumps(known, indent=1))


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The counts by kind of damage."""
    names = ("cases", "changed", "marked", "failed", "faults")
    rows = [(kind, *(found.get(name, 0) for name in names)) for kind, found in counts.items()]
    sums = [sum(found.get(name, 0) for found in counts.values()) for name in names]
    rows.append(("all", *sums))
    head = ("damage", "cases", "report another", "said so", "refused", "faults")
    return tabulate.tabulate(rows, head, tablefmt="github")


if __name__ == "__main__":
    sys.exit(main())
