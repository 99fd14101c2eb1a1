"""``python -m tests.damage VMCORE KERNEL [SEEDS]``: damage a dump, tell what was not noticed.

Each case is one zero pointer of allproc, one zero page of threads, or 1 % of the pages
removed; a case fails where the report's causes or its threads differ from those of the
undamaged dump and the report does not call itself partial.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any, Callable, Dict, List, Tuple

from plugin.catalogue import shipped
from plugin.kernel.proc import processes, threads
from plugin.opening import open_core
from plugin.session import Kernel
from plugin.waits.analysis import analyse
from tests.damage import PAGE, damaged


def _report(kernel: Kernel) -> Tuple[List[Any], List[Any]]:
    found = analyse(kernel, shipped())
    causes = sorted((str(cause.kind), cause.summary) for cause in found.causes)
    return causes, [(thread.tid, thread.state, thread.wmesg) for thread in threads(kernel)]


def _zero_pointer(kernel: Kernel, seed: int) -> Kernel:
    link = kernel.layouts.offsetof("proc", "p_list.le_next")
    places = [kernel.address_of("allproc"), *(proc.address + link for proc in processes(kernel))]
    return damaged(kernel, words={random.Random(seed).choice(places): bytes(kernel.pointer_size)})


def _zero_page(kernel: Kernel, seed: int) -> Kernel:
    pages = sorted({thread.address // PAGE * PAGE for thread in threads(kernel)})
    return damaged(kernel, zeroed=[random.Random(seed).choice(pages)])


def _lost_pages(kernel: Kernel, seed: int) -> Kernel:
    return damaged(kernel, lost=0.01, seed=seed)


CASES: Dict[str, Callable[[Kernel, int], Kernel]] = {
    "one pointer of allproc zeroed": _zero_pointer,
    "one page of threads zeroed": _zero_page,
    "1 % of the pages removed": _lost_pages,
}


def main(vmcore: str, file: str, seeds: int) -> int:
    """Prints a line for each kind of damage; the number of cases that went unnoticed."""
    kernel = open_core(vmcore, file)
    kernel.start_command()
    before = _report(kernel)
    if kernel.warnings.partial:
        print("The dump is damaged already:", *kernel.warnings, sep="\n  ")
    unnoticed = 0
    for name, damage in CASES.items():
        started, changed, silent = time.process_time(), 0, []
        for seed in range(seeds):
            broken = damage(kernel, seed)
            differs = _report(broken) != before
            changed += differs
            if differs and not broken.warnings.partial:
                silent.append(seed)
        spent = time.process_time() - started
        print(f"{name}: {seeds} cases in {spent:.1f} s, {changed} changed the report, ", end="")
        print(f"unnoticed: {', '.join(map(str, silent)) or 'none'}")
        unnoticed += len(silent)
    return unnoticed


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 20) > 0)
