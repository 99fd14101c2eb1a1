"""Locks: from a waiter to the lock to whoever holds it.

A buffer's or vnode's lock is named by what it protects; a lockmgr lock handed
to the I/O (LK_KERNPROC) leads on to the buffer and its bio.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge.locks import Contended, Holder, LockWait, contended
from plugin.kernel import locks
from plugin.kernel.buf import is_cached
from plugin.kernel.lock_object import quoted
from plugin.kernel.proc import Thread
from plugin.kernel.vnode import Vnode, vnode_at, vnode_of_lock
from plugin.kernel.zfs.zvol import zvol_around
from plugin.session import Kernel
from plugin.waits.builder import Builder
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind
from plugin.waits.resolvers.io import buf_node
from plugin.words import verb


def wait_for_lock(builder: Builder, thread: Thread, node: Node, wait: LockWait) -> Node:
    """Join a thread to the lock it waits for, and the lock to its holders."""
    target = lock_node(builder, wait.lock)
    mode = f", {wait.mode}" if wait.mode else ""
    certainty = Certainty.PROVEN
    if thread.blocked:
        evidence = f"td_blocked {thread.blocked:#x}, its ts_lockobj {wait.lock.address:#x}{mode}"
    elif thread.state == "running":
        recorded = builder.kernel.layouts.has("thread", "td_wantedlock")
        certainty = Certainty.PROVEN if recorded else Certainty.GUESSED
        how = "td_wantedlock" if recorded else "its frame in a spinning function points at"
        evidence = f"{how} {wait.lock.address:#x}: it spins"
    else:
        evidence = f'td_wchan {thread.wchan or 0:#x}, td_wmesg "{thread.wmesg}"{mode}'
    builder.join(node, target, EdgeKind.WAITS_FOR, certainty, evidence)
    return target


def lock_node(builder: Builder, lock: locks.Lock) -> Node:
    """The node of a lock somebody waits for, joined to its holders when it is made."""
    id = f"lock:{lock.address:#x}"
    known = builder.graph.nodes.get(id)
    if known is not None:
        return known
    entry = _entry(builder.kernel, lock)
    word = locks.word_for(lock.lc_name)
    label, protected = lock_label(builder.kernel, lock)
    node = builder.object(NodeKind.LOCK, lock.address, label)
    node.facts = [word, locks.describe(entry.lock)]
    _contained(builder, node, protected)
    for holder in entry.holders:
        builder.join(
            node,
            builder.thread(holder.thread),
            EdgeKind.OWNED_BY,
            Certainty(holder.certainty),
            holder.evidence,
        )
    if entry.lock.state == "disowned":
        _handed_to_io(builder, node, lock)
    if not builder.graph.successors(node.id):
        node.end = _ownerless(entry, label)
    return node


def holders_of(kernel: Kernel, lock: locks.Lock) -> List[Holder]:
    """Who holds a lock that somebody waits for, as far as memory or stacks tell."""
    return _entry(kernel, lock).holders


def _entry(kernel: Kernel, lock: locks.Lock) -> Contended:
    return _by_address(kernel).get(lock.address) or Contended(lock, [], [])


@cached(MEMORY)
def _by_address(kernel: Kernel) -> Dict[int, Contended]:
    return {entry.lock.address: entry for entry in contended(kernel)}


def _ownerless(entry: Contended, label: str) -> End:
    lock = entry.lock
    name = f"{locks.word_for(lock.lc_name)} {label}"
    age = max((thread.age for thread, _ in entry.waiters if thread.age is not None), default=None)
    word = "" if lock.word is None else f"lock word {lock.word:#x}"
    if lock.state == "unlocked":
        return End(
            CauseKind.LOST_WAKEUP,
            f"{name} is free, yet {len(entry.waiters)} {verb(len(entry.waiters), 'sleep')} on it",
            word,
            age,
        )
    if lock.state == "destroyed":
        return End(CauseKind.LOST_WAKEUP, f"{name} was destroyed under its waiters", word, age)
    if lock.state == "shared":
        return End(
            CauseKind.UNKNOWN,
            f"{name} is {locks.describe(lock)}; the kernel does not record which threads",
            word,
            age,
        )
    if lock.state == "exclusive":
        return End(CauseKind.UNKNOWN, f"{name} is owned by what is no thread", word, age)
    return End(CauseKind.UNKNOWN, f"{name}: {locks.describe(lock)}", word, age)


class Protected:
    """What a lock protects: a vnode or a buffer, with the words for it."""

    def __init__(
        self, kind: NodeKind, address: int, label: str, vnode: Optional[Vnode] = None
    ) -> None:
        self.kind = kind
        self.address = address
        self.label = label
        self.vnode = vnode


def lock_label(kernel: Kernel, lock: locks.Lock) -> Tuple[str, Optional[Protected]]:
    """How people call a lock, and the vnode or buffer it lies in."""
    if lock.lc_name == locks.LOCKMGR:
        at = vnode_of_lock(kernel, lock.address)
        vnode = vnode_at(kernel, at) if at is not None else None
        if vnode is not None:
            return f"vnode lock {vnode.label}", Protected(
                NodeKind.VNODE, vnode.address, vnode.label, vnode
            )
        buf = buf_of_lock(kernel, lock)
        if buf is not None:
            return f"buffer lock {quoted(lock.name)} of {buf:#x}", Protected(
                NodeKind.BUF, buf, f"buf {buf:#x}"
            )
    volume = zvol_around(kernel, lock.address) if "zv_" in (lock.name or "") else None
    of = f" of zvol {volume.name}" if volume is not None else ""
    name = f"{lock.address:#x}" if lock.name == "" else quoted(lock.name)
    return name + (f" at {lock.address:#x}" if lock.name is None else "") + of, None


def buf_of_lock(kernel: Kernel, lock: locks.Lock) -> Optional[int]:
    """The buf whose b_lock this is: a header of the buffer cache, or a pbuf by its name."""
    try:
        address = lock.address - kernel.layouts.offsetof("buf", "b_lock")
        if is_cached(kernel, address):
            return address
        if lock.name in ("bufwait", "pbufwait"):
            kernel.read(address, kernel.layouts.sizeof("buf"))
            return address
    except (MemoryFault, LayoutError):
        pass
    return None


def _contained(builder: Builder, node: Node, protected: Optional[Protected]) -> None:
    if protected is None:
        return
    target = builder.object(protected.kind, protected.address, protected.label)
    builder.join(
        node,
        target,
        EdgeKind.CONTAINED_IN,
        Certainty.PROVEN,
        f"b_lock or v_lock of {protected.address:#x}",
        False,
    )


def _handed_to_io(builder: Builder, node: Node, lock: locks.Lock) -> None:
    """LK_KERNPROC: nobody but the I/O will unlock it."""
    address = buf_of_lock(builder.kernel, lock)
    if address is not None:
        target = buf_node(builder, address)
        builder.join(
            node,
            target,
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"owner LK_KERNPROC: the I/O of {address:#x}",
        )
