"""What a scan of all pages costs beside merely reading them, with numpy and without.

Run by name: ``python tests/benchmarks/bench_vmpage.py [--gigabytes N] [--in DIR]``.
It forges a machine of that much memory (64 GB: 16 million pages, a dump of 1.7 GB;
numpy writes it), reads its page array, and scans it.  The budget: finding the busy
pages takes at most twice the time of the reads.  Exit status 1 where it does not hold.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BUDGET = 2.0


def timed(work: Callable[[], Any]) -> Tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def measure(vmcore: Path, kernel_file: Path, rounds: int) -> bool:
    """Prints the figures of the best of several rounds; True where the budget holds."""
    from plugin.kernel.vm_page_columns import have_numpy
    from plugin.kernel.vm_page_scan import CHUNK, Predicates, scan
    from plugin.kernel.vm_phys import page_array
    from plugin.opening import open_core

    kernel = open_core(str(vmcore), str(kernel_file))
    array = page_array(kernel)
    step = CHUNK // array.size * array.size
    end = array.address + array.npages * array.size

    def read() -> None:
        for at in range(array.address, end, step):
            kernel.read(at, min(step, end - at))

    ways = [False] + ([True] if have_numpy() else [])
    reads: List[float] = []
    # The work of a round follows its read at once: the machine's moods even out.
    busy: Dict[bool, List[float]] = {way: [] for way in ways}
    full: Dict[bool, List[float]] = {way: [] for way in ways}
    found = set()
    for _ in range(rounds):
        for way in ways:
            reads.append(timed(read)[0])
            pick = partial(scan, kernel, Predicates(busy="any"), counts=False, numpy=way)
            seconds, result = timed(pick)
            busy[way].append(seconds)
            found.add((result.matched, tuple(result.states.items())))
            full[way].append(timed(partial(scan, kernel, numpy=way))[0])
    print(f"{array.npages} pages, {array.npages * array.size >> 20} MB")
    print(f"read                    {min(reads):7.2f} s")
    held = len(found) == 1
    if not held:
        print("with and without numpy the results differ")
    for way in ways:
        name = "numpy" if way else "plain"
        ratio = min(busy[way]) / min(reads)
        held = held and ratio <= BUDGET
        print(f"busy pages, {name:5}       {min(busy[way]):7.2f} s   {ratio:4.2f} of the read")
        ratio = min(full[way]) / min(reads)
        print(f"all counts, {name:5}       {min(full[way]):7.2f} s   {ratio:4.2f} of the read")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"most memory in use      {peak / 1024:7.0f} MB")
    print(f"budget ({BUDGET} for busy pages): {'held' if held else 'MISSED'}")
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in", dest="folder", metavar="DIR", help="keep the dump there")
    args = parser.parse_args()
    from tests.forge.scenarios.scale import page_array

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        vmcore, kernel = folder / "vmcore", folder / "kernel"
        if not (vmcore.exists() and kernel.exists()):
            vmcore, kernel = page_array(args.gigabytes).write(folder)
        return 0 if measure(vmcore, kernel, args.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
