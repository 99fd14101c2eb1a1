"""Sleepable read-mostly locks of the second kind: struct rmslock, from 13.0 on.

Mirrors sys/sys/_rmlock.h and sys/kern/kern_rmlock.c (rms_rlock(), rms_wlock()).  The lock
has no lock class: its sleepers sleep in msleep() under the name of the mutex inside, readers
on ``&readers`` while a writer wants or has it, the first writer on ``&writers`` until the
readers are gone, further writers on ``&owner``.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel

#: RMS_NOOWNER, RMS_TRANSIENT: owner is a thread only above RMS_FLAGMASK
_FLAGMASK = 0xF
#: what the sleepers of each member want
MODES = {"readers": "shared", "writers": "exclusive", "owner": "exclusive"}


class Rmslock(NamedTuple):
    """struct rmslock *; ``owner`` the writer's struct thread *, 0 where none has it.

    ``writers`` want or have it; ``readers`` is their number once a writer has counted them
    (before, each CPU counts its own, and this is 0).
    """

    address: int
    name: str
    owner: int
    writers: int
    readers: int


class RmsWait(NamedTuple):
    """A lock and the member of it whose address a thread sleeps on."""

    lock: Rmslock
    member: str


@cached(MEMORY)
def wait_at(kernel: Kernel, channel: int, wmesg: int) -> Optional[RmsWait]:
    """The lock that a sleeper on ``channel`` with the message at ``wmesg`` waits for.

    ``wmesg`` (char *) has to be the very name of the mutex inside: nothing else would
    tell the lock from any other memory.  None where it is not, or to 12.x.
    """
    layouts = kernel.layouts
    if not channel or not wmesg or "rmslock" not in layouts:
        return None
    try:
        name = layouts.offsetof("rmslock", "mtx") + layouts.offsetof("mtx", "lock_object.lo_name")
        begins = {member: channel - layouts.offsetof("rmslock", member) for member in MODES}
    except LayoutError:
        return None
    for member, at in begins.items():
        try:
            if kernel.pointer(at + name) == wmesg:
                return RmsWait(_rmslock(kernel, at, wmesg), member)
        except MemoryFault:
            continue
    return None


def _rmslock(kernel: Kernel, address: int, name: int) -> Rmslock:
    view = kernel.view("rmslock", address)
    owner = view.owner
    return Rmslock(
        address,
        kernel.cstring(name),
        owner if owner > _FLAGMASK else 0,
        view.writers,
        view.readers,
    )
