"""The budgets as one table of ratios: ``python tests/benchmarks [--quick] [--write]``.

Seconds differ from machine to machine and from hour to hour, ratios within one run do
not: each figure is CPU time of the best of three, beside that of the same Python doing a
fixed loop of plain work at the same time (one *unit*, about a tenth of a second).
``--write`` records the table, with a description of the machine, in docs/benchmarks.md.
The three bench_*.py have more: growth, the debuggers against their own value objects,
page scans of large machines.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

import tabulate

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import bench_walks  # noqa: E402
import bench_why_stuck  # noqa: E402

TIMES = 3
#: where the runs keep their bytecode
BYTECODE = tempfile.TemporaryDirectory(prefix="wchan-bench-bytecode-")


class Figure(NamedTuple):
    """One measurement: CPU seconds of the best run, and what there is to compare it with."""

    what: str
    seconds: float
    per: str
    budget: str


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of this process and of what it waited for, the best of some runs."""
    found = []
    for _ in range(TIMES):
        gc.collect()
        begun = _used()
        work()
        found.append(_used() - begun)
    return min(found)


def _used() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def unit() -> float:
    """What this Python does with two million additions and a dictionary."""

    def loop() -> None:
        seen: Dict[int, int] = {}
        total = 0
        for number in range(1_000_000):
            total += number
            seen[number & 0xFFF] = total

    return cpu(loop)


def python(*words: str) -> Callable[[], Any]:
    """A run of this interpreter in the repository, its output dropped.

    With its bytecode kept, as install.sh installs it, whatever the environment says: the
    best of several runs does not compile.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return lambda: subprocess.run(
        [sys.executable, "-X", f"pycache_prefix={BYTECODE.name}", *words],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=environment,
    )


def figures(threads: int, bios: int, gigabytes: int) -> Iterator[Figure]:
    from plugin.kernel.vm_page_scan import CHUNK, Predicates, scan
    from plugin.kernel.vm_phys import page_array
    from plugin.opening import open_core
    from tests.forge.demo import make
    from tests.forge.scenarios.scale import crowd
    from tests.forge.scenarios.scale import page_array as many_pages

    with tempfile.TemporaryDirectory(prefix="wchan-bench-") as name:
        folder = Path(name)
        vmcore, kernel = map(str, make(folder / "demo"))
        plain = cpu(python("-c", "import tabulate"))
        first = ("-m", "plugin", "-k", kernel, vmcore)
        yield Figure("Python itself, with tabulate", plain, "", "")
        seconds = cpu(python(*first, "kthreads"))
        yield Figure("first command: kthreads of a small dump", seconds, "", "0.12 s")
        yield Figure("why-stuck of a small dump", cpu(python(*first, "why-stuck")), "", "")
        for some in (0, bios):
            place = folder / f"crowd{some}"
            crowd(threads, some).write(place)
            seconds = cpu(python(str(Path(bench_why_stuck.__file__)), "--measure", str(place)))
            what = f"why-stuck, {threads} threads" + (f" and {some} bios" if some else "")
            each = f"{seconds / (threads + some) * 1e6:.0f} us a thread or bio"
            budget = "1 s for 10,000 and 100,000" if some else "0.5 s for 10,000"
            yield Figure(what, seconds, each, budget)
        dump = bench_walks.forge(folder / "bios", bios)
        opened = open_core(str(dump[0]), str(dump[1]))
        each_bio = bench_walks.of_kernel(opened)
        yield Figure(
            f"a queue of {bios} bios", each_bio * bios / 1e6, f"{each_bio:.2f} us a bio", "1 us"
        )
        if importlib.util.find_spec("numpy") is None:
            return  # which writes the large array
        big = open_core(*map(str, many_pages(gigabytes).write(folder / "pages")))
        array = page_array(big)
        step = CHUNK // array.size * array.size
        end = array.address + array.npages * array.size

        def plainly() -> None:
            for at in range(array.address, end, step):
                big.read(at, min(step, end - at))

        read = cpu(plainly)
        yield Figure(f"{array.npages} vm_pages merely read", read, "", "")
        for counts, budget in ((False, "1.05"), (True, "1.5")):
            pages = cpu(lambda: scan(big, Predicates(busy="any"), counts=counts))  # noqa: B023
            what = "scanned, every count" if counts else "scanned for busy ones"
            yield Figure(f"the same {what}", pages, f"{pages / read:.2f} of the read", budget)


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(": ")[2] if names else model
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} CPUs (load {load:.1f}), {platform.system()} "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--write", action="store_true", help="record it in docs/benchmarks.md")
    args = parser.parse_args()
    sizes = (1_000, 10_000, 1) if args.quick else (10_000, 100_000, 8)
    described = machine()
    one = unit()
    rows: List[List[str]] = []
    for each in figures(*sizes):
        ratio = each.seconds / one
        rows.append([each.what, f"{each.seconds:.3f}", f"{ratio:.2f}", each.per, each.budget])
        print(f"{each.what}: {each.seconds:.3f} s", file=sys.stderr, flush=True)
    table = tabulate.tabulate(
        rows, ["what", "CPU s", "units", "", "budget"], tablefmt="github", disable_numparse=True
    )
    text = f"Measured on {described}. One unit: {one:.3f} s of CPU.\n\n{table}\n"
    print(text)
    if args.write:
        head = "# Benchmarks\n\n`python tests/benchmarks --write` makes this page.\n\n"
        note = (
            "\nUnits make runs comparable: CPU time over that of a fixed loop in the same run. "
            "Budgets are for two quiet CPUs.\n"
        )
        (ROOT / "docs" / "benchmarks.md").write_text(head + text + note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
