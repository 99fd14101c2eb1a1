"""What holds a mount up: who suspended it, who unmounts it, who waits for it, what its server owes.

Mirrors sys/kern/vfs_mount.c (dounmount), vfs_vnops.c (vfs_write_suspend) and sys/fs/nfsclient,
7.x to 15.x.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Dict, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.mount import Mount, mounts, suspension, unmounting
from plugin.kernel.proc import Thread, thread_at, threads
from plugin.kernel.rpc import Request, Server, requests, servers
from plugin.kernel.stack import backtrace
from plugin.session import Kernel

#: the functions by which a thread on whose stack the mount is found ends it
_ENDS = ("dounmount", "sys_unmount", "kern_unmount")


class Waiter(NamedTuple):
    """A thread that waits for a mount; ``on`` says for what of it."""

    thread: Thread
    on: str


class State(NamedTuple):
    """A mount and all that keeps it from being used.

    ``suspension`` and ``unmounting`` are the names of flags; ``suspender`` the thread that
    mnt_susp_owner names, None where it names none; ``unmounters`` the threads with the mount
    on their stacks in dounmount().  ``server`` and ``pending``: of a mount of NFS.
    """

    mount: Mount
    suspension: List[str]
    suspender: Optional[Thread]
    unmounting: List[str]
    unmounters: List[Thread]
    waiters: List[Waiter]
    server: Optional[Server]
    pending: List[Tuple[Request, Optional[Thread]]]

    @property
    def trouble(self) -> bool:
        """Whether somebody waits, or somebody keeps others from using it."""
        return bool(self.suspension or self.unmounting or self.waiters or self.pending)


@cached(MEMORY)
def states(kernel: Kernel) -> List[State]:
    """Every mount on mountlist with its state, in the list's order."""
    found = mounts(kernel)
    waiting = _waiters(kernel, found)
    of_nfs = {server.mount.address: server for server in servers(kernel)}
    by_channel: Dict[int, Thread] = {}
    for thread in threads(kernel):
        if thread.wchan and thread.waits:
            by_channel.setdefault(thread.wchan, thread)
    pending: Dict[int, List[Tuple[Request, Optional[Thread]]]] = {}
    for request in requests(kernel).values():
        asker = by_channel.get(request.address)
        pending.setdefault(request.server.mount.address, []).append((request, asker))
    return [
        State(
            mount,
            suspension(kernel, mount),
            thread_at(kernel, mount.susp_owner) if mount.susp_owner else None,
            unmounting(kernel, mount),
            _unmounters(kernel, mount),
            waiting.get(mount.address, []),
            of_nfs.get(mount.address),
            pending.get(mount.address, []),
        )
        for mount in found
    ]


def _waiters(kernel: Kernel, found: List[Mount]) -> Dict[int, List[Waiter]]:
    """Who sleeps on something inside a struct mount, its file system's struct nfsmount included."""
    size = kernel.layouts.sizeof("mount")
    nfs_size = kernel.layouts.sizeof("nfsmount") if "nfsmount" in kernel.layouts else 0
    spans = [(mount.address, mount.address + size, mount.address) for mount in found]
    spans += [
        (server.nfsmount, server.nfsmount + nfs_size, server.mount.address)
        for server in servers(kernel)
    ]
    spans.sort()
    starts = [first for first, _, _ in spans]
    waiting: Dict[int, List[Waiter]] = {}
    for thread in threads(kernel):
        at = thread.lock.address if thread.lock is not None else thread.wchan or 0
        place = bisect_right(starts, at) - 1
        if not at or not thread.waits or place < 0:
            continue
        _, end, mount = spans[place]
        if at < end:
            waiting.setdefault(mount, []).append(Waiter(thread, thread.wmesg or "?"))
    return waiting


def _unmounters(kernel: Kernel, mount: Mount) -> List[Thread]:
    if not unmounting(kernel, mount):
        return []
    return [
        thread
        for thread in threads(kernel)
        if thread.kstack
        and thread.state != "zombie"
        and kernel_stack_holds(kernel, thread, mount.address)
        and any(frame.startswith(_ENDS) for frame in backtrace(kernel, thread))
    ]
