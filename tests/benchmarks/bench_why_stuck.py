"""What why-stuck costs as a machine grows: CPU seconds, and how they grow with the threads.

Run by name: ``python tests/benchmarks/bench_why_stuck.py [--threads N] [--bios N]``.
Each size is forged, then analysed in a process of its own, as in the shell.
The ratio is the cost of one thread (or bio) at that size to that at the smallest.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def measure(folder: str) -> float:
    """CPU seconds of opening the dump and analysing it, imports included."""
    from plugin import catalogue
    from plugin.opening import open_core
    from plugin.waits.analysis import analyse

    # As while any command runs (plugin.hosts.runner.run_command).
    gc.disable()
    kernel = open_core(f"{folder}/vmcore", f"{folder}/kernel")
    analyse(kernel, catalogue.shipped())
    return time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of why-stuck as a machine grows")
    parser.add_argument("--threads", type=int, default=10_000)
    parser.add_argument("--bios", type=int, default=100_000)
    parser.add_argument("--measure", metavar="DIR", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(measure(args.measure))
        return
    from tests.forge.scenarios.scale import crowd

    print("threads     bios  CPU s  cost of one, against the smallest")
    smallest = 0.0
    for bios in (0, args.bios):
        for part in (8, 4, 2, 1):
            threads, some = args.threads // part, bios // part
            with tempfile.TemporaryDirectory() as folder:
                crowd(threads, some).write(folder)
                runs = [
                    float(
                        subprocess.run(
                            [sys.executable, __file__, "--measure", folder],
                            check=True,
                            capture_output=True,
                            text=True,
                        ).stdout
                    )
                    for _ in range(3)
                ]
            each = min(runs) / (threads + some)
            smallest = each if part == 8 else smallest
            print(f"{threads:7}  {some:7}  {min(runs):5.2f}  {each / smallest:.2f}", flush=True)


if __name__ == "__main__":
    main()
