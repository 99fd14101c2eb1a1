"""Every lock that is held, as far as anything tells: what `show alllocks` needs WITNESS for.

With WITNESS the kernel lists each thread's locks itself (td_sleeplocks, pc_spinlocks; see
plugin.kernel.witness).  Without, a held lock is known where somebody waits for it, and where
its kind can be enumerated: the locks of vnodes (sys/kern/vfs_subr.c, `show lockedvnods`) and
of bufs (sys/kern/vfs_bio.c, `show lockedbufs`).
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge.locks import Contended, contended, contended_at
from plugin.kernel import witness
from plugin.kernel.buf import Buf, locked_bufs
from plugin.kernel.locks import Lock, has_old_lockmgr, lock_at, old_lockmgr
from plugin.kernel.uma import items, zone_named
from plugin.kernel.vnode import Vnode, vnode_at
from plugin.session import Kernel

#: lk_lock of a lock that nobody holds: LK_SHARE without sharers (sys/lockmgr.h, since 8.0)
_LK_UNLOCKED = 1


@cached(MEMORY)
def locked_vnodes(kernel: Kernel) -> List[Tuple[Vnode, Lock]]:
    """The vnodes whose own lock is held, by the items in use of the zone VNODE."""
    return list(_locked_vnodes(kernel))


def _locked_vnodes(kernel: Kernel) -> Iterator[Tuple[Vnode, Lock]]:
    zone = zone_named(kernel, "VNODE")
    if zone is None:
        kernel.warnings.add("zone VNODE", None, "not found: locked vnodes are not listed")
        return
    old = has_old_lockmgr(kernel)
    try:
        inside = kernel.layouts.offsetof("vnode", "v_lock")
        word = None if old else kernel.layouts.resolve("vnode", "v_lock.lk_lock")
    except LayoutError as error:
        kernel.warnings.add("locked vnodes", None, str(error))
        return
    for at in items(kernel, zone):
        if kernel.interrupted():
            raise KeyboardInterrupt
        try:
            if word is not None and kernel.unsigned(at + word.offset, word.size) == _LK_UNLOCKED:
                continue
            lock = old_lockmgr(kernel, at + inside) if old else lock_at(kernel, at + inside)
        except MemoryFault as fault:
            kernel.warnings.add("locked vnodes", fault.address, fault.reason)
            continue
        found = vnode_at(kernel, at) if lock is not None and lock.held else None
        if lock is not None and found is not None:
            yield found, lock


def has_witness(kernel: Kernel) -> bool:
    """True where WITNESS lists the locks of each thread."""
    return bool(witness.holders(kernel))


@cached(MEMORY)
def held_locks(kernel: Kernel) -> List[Contended]:
    """Every held lock that WITNESS, a waiter, a vnode or a buf tells of, each once."""
    found: Dict[int, Contended] = {
        each.lock.address: each for each in contended(kernel) if each.lock.held
    }
    others = [*witness.holders(kernel)]
    others += [lock.address for _, lock in locked_vnodes(kernel)]
    others += [lock.address for _, lock in locked_bufs(kernel)]
    for at in others:
        entry = contended_at(kernel, at) if at not in found else None
        if entry is not None and entry.lock.held:
            found[at] = entry
    return list(found.values())


def bufs_with_locks(kernel: Kernel) -> List[Tuple[Buf, Contended]]:
    """The locked bufs of the cache, each with the holders and waiters of its lock."""
    known = {each.lock.address: each for each in held_locks(kernel)}
    return [
        (buf, known.get(lock.address) or Contended(lock, [], []))
        for buf, lock in locked_bufs(kernel)
    ]


def vnodes_with_locks(kernel: Kernel) -> List[Tuple[Vnode, Contended]]:
    """The locked vnodes, each with the holders and waiters of its lock."""
    known = {each.lock.address: each for each in held_locks(kernel)}
    return [
        (vnode, known.get(lock.address) or Contended(lock, [], []))
        for vnode, lock in locked_vnodes(kernel)
    ]
