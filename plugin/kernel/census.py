"""The second ways to processes and threads, for when their lists or counts disagree.

A LIST that one zero word cuts looks like a shorter list.  The kernel counts what is on its
lists (nprocs, p_numthreads) and keeps other ways to it: pidhashtbl and the process tree
(sys/kern/kern_proc.c, kern_fork.c), tidhashtbl from 9.0 on (sys/kern/kern_thread.c).  They
are walked only where a list does not add up, since a count that agrees proves as much.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, Set

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel.queue import list_foreach
from plugin.session import Kernel

#: slots of a hash table beyond which its mask is garbage
_MAX_SLOTS = 1 << 22
_MAX_PROCS = 1_000_000


def _chains(kernel: Kernel, table: str, mask: str) -> Iterator[int]:
    """Addresses of the chain heads in use of a hashinit(9) table; findings where unreadable."""
    try:
        base, last = kernel.global_value(table), kernel.global_value(mask)
        if not base or last & (last + 1) or last >= _MAX_SLOTS:
            kernel.warnings.add(table, base or None, f"{mask} is {last:#x}: no hash table")
            return
        heads = kernel.read(base, (last + 1) * kernel.pointer_size)
    except MemoryFault as fault:
        kernel.warnings.add(table, fault.address, fault.reason)
        return
    view = memoryview(heads)
    for slot, first in enumerate(view.cast("Q") if kernel.pointer_size == 8 else view.cast("I")):
        if first:
            yield base + slot * kernel.pointer_size


def _has(kernel: Kernel, table: str, mask: str, struct: str, link: str) -> bool:
    return (
        kernel.has_symbol(table)
        and kernel.has_symbol(mask)
        and kernel.layouts.has(struct, f"{link}.le_next")
    )


def pid_hash(kernel: Kernel) -> List[int]:
    """struct proc * of every process in pidhashtbl; [] where this kernel has none."""
    if not _has(kernel, "pidhashtbl", "pidhash", "proc", "p_hash"):
        return []
    return [
        address
        for head in _chains(kernel, "pidhashtbl", "pidhash")
        for address, _ in list_foreach(
            kernel, head, "proc", "p_hash", what="pid hash chain", bound=_MAX_PROCS
        )
    ]


def tree(kernel: Kernel, known: Iterable[int]) -> List[int]:
    """struct proc * of every process below proc0, initproc and ``known`` by p_children."""
    if not kernel.layouts.has("proc", "p_sibling.le_next"):
        return []
    children = kernel.layouts.offsetof("proc", "p_children")
    pending = list(known)
    proc0 = kernel.symbol("proc0")
    if proc0 is not None:
        pending.append(proc0.address)
    init = kernel.global_value("initproc", 0)
    if init:
        pending.append(init)
    seen: Set[int] = set()
    while pending and len(seen) < _MAX_PROCS and not kernel.interrupted():
        address = pending.pop()
        if address in seen:
            continue
        seen.add(address)
        walk = list_foreach(
            kernel,
            address + children,
            "proc",
            "p_sibling",
            what=f"children of proc {address:#x}",
            bound=_MAX_PROCS,
        )
        pending.extend(child for child, _ in walk)
    return sorted(seen)


@cached(MEMORY)
def tid_hash(kernel: Kernel) -> Dict[int, List[int]]:
    """{struct proc *: its struct thread *} by tidhashtbl; {} before 9.0, which has none."""
    if not _has(kernel, "tidhashtbl", "tidhash", "thread", "td_hash"):
        return {}
    found: Dict[int, List[int]] = {}
    for head in _chains(kernel, "tidhashtbl", "tidhash"):
        for address, (proc,) in list_foreach(
            kernel, head, "thread", "td_hash", ["td_proc"], what="tid hash chain", bound=1 << 24
        ):
            found.setdefault(proc, []).append(address)
    return found
