"""Does a test notice when the code is broken?  ``python tests/mutation [MODULE ...]``

Small faults are put into the modules below one at a time (mutants.py), and the tests
that enter the line run against each in a process of its own: tests are collected once, coverage
tells which of them enter what, then each fault is a fork in which the code of one function
is replaced.  The table says how many were noticed; ``--survivors`` lists the others.  Not
part of CI: the whole takes an hour; ``--sample N`` takes N of each module, the same ones
every time.

tests/mutation/survivors.md keeps the faults that no test needs to notice, with a reason:
they count as noticed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Set, Tuple

import coverage
import pytest
import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from tests.mutation.mutants import Mutant, code_of, mutants  # noqa: E402

REASONS = Path(__file__).with_name("survivors.md")
_IO = ("geom", "provider", "forge_scenarios")
_GRAPH = ("waits_graph", "verdicts", "waits_resolvers", "waits_registry", "why_stuck", "render")
#: module -> the test files that enter it in this process: tests/test_NAME.py
MODULES: Dict[str, Tuple[str, ...]] = {
    "plugin/kernel/queue.py": ("queue",),
    "plugin/kernel/locks.py": ("locks", "lock_words", "why_stuck", "waits_resolvers"),
    "plugin/kernel/bio.py": ("bio", *_IO, "bioq", "geom_report", "zfs", "waits_resolvers"),
    "plugin/kernel/pbuf.py": ("pbuf_pools", "pbuf", "waits_resolvers"),
    "plugin/kernel/vm_page.py": ("vm_page", "vmpage", "panics"),
    "plugin/judge/locks.py": ("locks", "lock_words", "waits_resolvers", "why_stuck"),
    "plugin/judge/geom_io.py": (*_IO, "bioq", "geom_report", "cam", "waits_resolvers"),
    "plugin/waits/graph.py": _GRAPH,
    "plugin/waits/analysis.py": _GRAPH,
    "plugin/waits/verdict.py": _GRAPH,
    "plugin/arch/space.py": ("space", "vmcore_full", "vmcore_minidump"),
}
#: seconds of CPU time that the tests of one fault may cost
ENOUGH = 6.0
#: a fault that makes its tests take this many times as long, and so many seconds, is noticed
FACTOR, MARGIN = 3.0, 3.0
#: and so is one that makes them take more memory than this, in bytes
MEMORY = 4 << 30


class Result(NamedTuple):
    mutant: Mutant
    #: "noticed", "survived", "not entered", "excused"
    outcome: str


class Runner:
    """A pytest plugin: collects once, then runs mutants instead of the tests."""

    def __init__(self, module: str, sample: int, seed: int, jobs: int) -> None:
        self.path = str(ROOT / module)
        self.module = module
        self.sample = sample
        self.seed = seed
        self.jobs = jobs
        self.results: List[Result] = []
        self._items: Dict[str, pytest.Item] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._items = {item.nodeid: item for item in session.items}
        entered, spent = self._entered()
        excused = reasons(self.module)
        chosen = list(mutants(Path(self.path).read_text()))
        if self.sample and len(chosen) > self.sample:
            chosen = random.Random(self.seed).sample(chosen, self.sample)
        running: Dict[int, Mutant] = {}
        functions = made_from(self.path)
        for mutant in sorted(chosen, key=lambda mutant: mutant.line):
            code = code_of(mutant, self.path)
            if code is None:
                continue
            names = sorted(entered.get(mutant.line, ()), key=lambda name: spent[name])
            if (mutant.function[0], mutant.what) in excused:
                self.results.append(Result(mutant, "excused"))
            elif not names:
                self.results.append(Result(mutant, "not entered"))
            else:
                if len(running) == self.jobs:
                    self._reap(running)
                replaced = functions.get(mutant.function, ())
                running[self._forked(names, spent, code, replaced)] = mutant
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{self.module}: {len(self.results)}/{len(chosen)} ")
        while running:
            self._reap(running)
        self.results.sort(key=lambda result: result.mutant.line)
        return True

    def _reap(self, running: Dict[int, Mutant]) -> None:
        child, status = os.wait()
        outcome = "noticed" if status else "survived"
        self.results.append(Result(running.pop(child), outcome))

    def _forked(
        self,
        names: Sequence[str],
        spent: Dict[str, float],
        code: types.CodeType,
        functions: Sequence[types.FunctionType],
    ) -> int:
        """A process whose status is 0 where every one of the tests passes with that code."""
        child = os.fork()
        if not child:
            status = 2
            try:
                _silence()
                chosen = _affordable(names, spent)
                _bound(MARGIN + FACTOR * sum(spent[name] for name in chosen))
                for function in functions:
                    function.__code__ = code
                status = 1 if self._fails([self._items[name] for name in chosen]) else 0
            finally:
                os._exit(status)
        return child

    def _fails(self, items: Sequence[pytest.Item]) -> bool:
        from _pytest.runner import runtestprotocol

        for item, following in zip(items, [*items[1:], None]):
            for report in runtestprotocol(item, log=False, nextitem=following):
                if report.failed:
                    return True
        return False

    def _entered(self) -> Tuple[Dict[int, Set[str]], Dict[str, float]]:
        """{line: tests that enter it}, {test: seconds}; learnt in a process of its own."""
        with tempfile.NamedTemporaryFile("r", suffix=".json") as told:
            child = os.fork()
            if not child:
                try:
                    _silence()
                    Path(told.name).write_text(json.dumps(self._traced()))
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
            lines, spent = json.loads(Path(told.name).read_text())
        return {int(line): set(names) for line, names in lines.items()}, spent

    def _traced(self) -> Tuple[Dict[int, List[str]], Dict[str, float]]:
        from _pytest.runner import runtestprotocol

        seen = coverage.Coverage(include=[self.path], data_file=None, config_file=False)
        broken: Set[str] = set()
        spent: Dict[str, float] = {}
        seen.start()
        for name, item in self._items.items():
            seen.switch_context(name)
            begun = time.process_time()
            # each test with fixtures of its own: what a shared one enters counts for all
            reports = runtestprotocol(item, log=False, nextitem=None)
            spent[name] = time.process_time() - begun
            if any(report.failed for report in reports):
                # What fails as it is would notice every fault.
                broken.add(name)
        seen.stop()
        lines = seen.get_data().contexts_by_lineno(self.path)
        return {
            line: sorted(spent.keys() & {*names} - broken) for line, names in lines.items()
        }, spent


def made_from(path: str) -> Dict[Tuple[str, int], List[types.FunctionType]]:
    """{(name, first line): the functions of that place of that file}."""
    found: Dict[Tuple[str, int], List[types.FunctionType]] = {}
    for each in gc.get_objects():
        if isinstance(each, types.FunctionType) and each.__code__.co_filename == path:
            place = (each.__code__.co_name, each.__code__.co_firstlineno)
            found.setdefault(place, []).append(each)
    return found


def _silence() -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    for handle in (1, 2):
        os.dup2(sink, handle)


def _affordable(names: Sequence[str], spent: Dict[str, float]) -> List[str]:
    """The quickest tests, one at least, which together take no longer than ENOUGH."""
    total = 0.0
    chosen: List[str] = []
    for name in names:
        total += spent[name]
        if chosen and total > ENOUGH:
            break
        chosen.append(name)
    return chosen


def _bound(seconds: float) -> None:
    """This process ends after so many seconds of CPU time, or where it takes too much memory."""
    for what, most in ((resource.RLIMIT_CPU, int(seconds)), (resource.RLIMIT_AS, MEMORY)):
        resource.setrlimit(what, (most, most))


def reasons(module: str) -> Set[Tuple[str, str]]:
    """(function, fault) of the survivors that need no test."""
    found: Set[Tuple[str, str]] = set()
    here = ""
    for line in REASONS.read_text().splitlines() if REASONS.exists() else ():
        if line.startswith("## "):
            here = line[3:].strip()
        elif here == module and line.startswith("| `"):
            cells = [cell.strip().strip("`") for cell in line.replace("\\|", "\0").split("|")[1:4]]
            found.add((cells[0], cells[1].replace("\0", "|")))
    return found


def run(module: str, sample: int, seed: int, jobs: int) -> List[Result]:
    """Every result of one module, measured in a process of its own."""
    runner = Runner(module, sample, seed, jobs)
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in MODULES[module]]
    there = [name for name in files if os.path.exists(name)]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:warnings"]
    pytest.main([*options, "-o", "addopts=", *there], plugins=[runner])
    return runner.results


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("module", nargs="*", help="of the modules known; default: all of them")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="N faults of each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--survivors", action="store_true", help="list what no test noticed")
    args = parser.parse_args()
    os.chdir(ROOT)
    # The figures are those of any clone: without dumps that lie elsewhere.
    os.environ["WCHAN_SHARED"] = os.devnull
    chosen = [m for m in MODULES if not args.module or any(word in m for word in args.module)]
    rows: List[Tuple[str, int, int, int, int, str]] = []
    for module in chosen:
        results = run(module, args.sample, args.seed, args.jobs)
        count = {o: sum(r.outcome == o for r in results) for o in _OUTCOMES}
        tried = sum(count.values())
        good = count["noticed"] + count["excused"]
        share = f"{100 * good / tried:.0f} %" if tried else "-"
        rows.append((module, tried, count["noticed"], count["excused"], tried - good, share))
        if args.survivors:
            for result in results:
                if result.outcome in ("survived", "not entered"):
                    mutant = result.mutant
                    where = f"{module}:{mutant.line} {mutant.function[0]}"
                    print(f"{result.outcome:<11} {where}: {mutant.what}", flush=True)
    head = ("module", "faults", "noticed", "excused", "not noticed", "share")
    print(tabulate.tabulate(rows, head))
    total, good = sum(r[1] for r in rows), sum(r[2] + r[3] for r in rows)
    print(f"{good} of {total} noticed" + (f", {100 * good / total:.0f} %" if total else ""))
    return 0


_OUTCOMES = ("noticed", "survived", "not entered", "excused")

if __name__ == "__main__":
    sys.exit(main())
