"""System V semaphores and message queues: who has taken from a set, who used it last.

Mirrors sys/kern/sysv_sem.c and sysv_msg.c, 7.x to 15.x.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel

_MAX_UNDOS = 1 << 12
_MAX_SEMAPHORES = 1 << 12


class Semaphores(NamedTuple):
    """One struct semid_kernel *: ``id`` as ipcs(1) shows it, ``values`` of its semaphores.

    ``last`` are the pids that operated on one last (sempid); ``undo`` (struct proc *, by how
    much its exit changes a semaphore): who has taken something and promised to give it back.
    """

    address: int
    id: int
    key: int
    values: List[int]
    last: List[int]
    undo: List[Tuple[int, int]]


def semaphores_at(kernel: Kernel, address: int) -> Optional[Semaphores]:
    """The struct semid_kernel at ``address``, an element of sema[]; None where none is there."""
    layouts = kernel.layouts
    try:
        base = kernel.global_value("sema", 0)
        index, rest = divmod(address - base, layouts.sizeof("semid_kernel"))
        if not base or rest or not 0 <= index < 1 << 16:
            return None
        view = kernel.view("semid_kernel", address)
        prefix = "u." if view.has("u.sem_nsems") else ""
        member = next(m for m in ("__sem_base", "sem_base") if view.has(prefix + m))
        first, number = view[prefix + member], view[prefix + "sem_nsems"]
        id_ = (view[prefix + "sem_perm.seq"] & 0x7FFF) << 16 | index
        key = view[prefix + "sem_perm.key"]
        size = layouts.sizeof("sem")
        each = [kernel.view("sem", first + i * size) for i in range(min(number, _MAX_SEMAPHORES))]
        values = [sem.semval for sem in each]
        last = list(dict.fromkeys(sem.sempid for sem in each if sem.sempid))
        return Semaphores(address, id_, key, values, last, list(_undo(kernel, index)))
    except (MemoryFault, LayoutError, StopIteration):
        return None


def _undo(kernel: Kernel, index: int) -> Iterator[Tuple[int, int]]:
    """semu_list: an SLIST to 7.x, a LIST since; both begin with the first and its link."""
    symbol = kernel.symbol("semu_list")
    layouts = kernel.layouts
    if symbol is None or "sem_undo" not in layouts or "undo" not in layouts:
        return
    size = layouts.sizeof("undo")
    entries = layouts.offsetof("sem_undo", "un_ent")
    at = kernel.pointer(symbol.address)
    seen: Set[int] = set()
    while at and at not in seen and len(seen) < _MAX_UNDOS:
        seen.add(at)
        view = kernel.view("sem_undo", at)
        for place in range(max(0, min(view.un_cnt, _MAX_SEMAPHORES))):
            entry = kernel.view("undo", at + entries + place * size)
            value = entry.un_adjval
            value -= (value & 0x8000) << 1
            if entry.un_id == index and value:
                yield view.un_proc, value
        at = kernel.pointer(at + layouts.offsetof("sem_undo", "un_next"))


class Messages(NamedTuple):
    """One struct msqid_kernel *: ``sender`` and ``receiver`` the pids that used it last, or 0.

    ``number`` messages of ``bytes`` bytes together, ``most`` the bytes there is room for.
    """

    address: int
    key: int
    sender: int
    receiver: int
    number: int
    bytes: int
    most: int


def messages_at(kernel: Kernel, address: int) -> Optional[Messages]:
    """The struct msqid_kernel at ``address``, an element of msqids[]; None where none is there."""
    try:
        base = kernel.global_value("msqids", 0)
        index, rest = divmod(address - base, kernel.layouts.sizeof("msqid_kernel"))
        if not base or rest or not 0 <= index < 1 << 16:
            return None
        view = kernel.view("msqid_kernel", address)
        names = ("perm.key", "lspid", "lrpid", "qnum", "cbytes", "qbytes")
        key, sender, receiver, number, held, most = (view[f"u.msg_{name}"] for name in names)
        return Messages(address, key, sender, receiver, number, held, most)
    except (MemoryFault, LayoutError):
        return None
