"""``python -m tests.damage VMCORE KERNEL [SEEDS]``: damage a dump, tell what was not noticed.

Each case is one zero pointer of allproc, one zero page of threads, or 1 % of the pages
removed; a case fails where the report's causes or its threads differ from those of the
undamaged dump and the report does not call itself partial.  Of the undamaged report's root
causes, each a kind and a thing, it is counted how many are still there, and what was made up.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple, Set, Tuple

from plugin.catalogue import shipped
from plugin.kernel.proc import processes, threads
from plugin.opening import open_core
from plugin.session import Kernel
from plugin.waits.analysis import Analysis, Cause, analyse
from plugin.waits.kinds import CauseKind
from tests.damage import PAGE, damaged

Root = Tuple[str, str]


class Report(NamedTuple):
    """What two reports are compared by; ``roots`` {(kind, thing)} of causes that claim one."""

    causes: List[Any]
    threads: List[Any]
    roots: Set[Root]


def _root(found: Analysis, cause: Cause) -> Root:
    """A cause's kind and the thing it is: of a deadlock those who are in it."""
    if cause.cycle is not None and not cause.cycle.paced:
        members = (found.graph.nodes[id] for id in cause.cycle.nodes)
        return str(cause.kind), " ".join(sorted(str(node.tid) for node in members if node.tid))
    node = cause.node
    return str(cause.kind), str(node.tid or node.id)


def _report(kernel: Kernel) -> Report:
    found = analyse(kernel, shipped())
    claimed = [cause for cause in found.causes if cause.kind is not CauseKind.UNKNOWN]
    return Report(
        sorted((str(cause.kind), cause.summary) for cause in found.causes),
        sorted((thread.tid, thread.state, str(thread.wmesg)) for thread in threads(kernel)),
        {_root(found, cause) for cause in claimed},
    )


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
        started, changed, silent, kept = time.process_time(), 0, [], 0
        lost: Counter[Root] = Counter()
        made_up: Counter[Root] = Counter()
        for seed in range(seeds):
            broken = damage(kernel, seed)
            after = _report(broken)
            differs = after != before
            changed += differs
            kept += len(before.roots & after.roots)
            lost.update(before.roots - after.roots)
            made_up.update(after.roots - before.roots)
            if differs and not broken.warnings.partial:
                silent.append(seed)
        spent = time.process_time() - started
        print(f"{name}: {seeds} cases in {spent:.1f} s, {changed} changed the report, ", end="")
        print(f"unnoticed: {', '.join(map(str, silent)) or 'none'}")
        wanted = seeds * len(before.roots)
        print(
            f"  root causes still found: {kept} of {wanted} ({100 * kept / max(wanted, 1):.1f} %)"
        )
        for what, roots in ("lost", lost), ("made up", made_up):
            for (kind, thing), times in roots.most_common():
                print(f"  {what} in {times}: {kind} {thing}")
        unnoticed += len(silent)
    return unnoticed


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 20) > 0)
