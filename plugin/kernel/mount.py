"""Mounted file systems: struct mount (sys/sys/mount.h, sys/kern/vfs_mount.c), 6.x to 15.x."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.counter import zpcpu_offsets
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel, View

_SUSPEND = ("MNTK_SUSPEND", "MNTK_SUSPENDED", "MNTK_SUSPEND2", "MNTK_SUSPENDALL")


class Mount(NamedTuple):
    """One mount: what is mounted (``source``) where (``on``), and its counters.

    ``susp_owner`` is the struct thread that suspended it (8.0 on), else 0;
    ``writeopcount`` the writes under way, those that 13.0 and later count per CPU
    (struct mount_pcpu) included, None where those cannot be told; ``kern_flag`` is
    mnt_kern_flag.
    """

    address: int
    fstype: str
    source: str
    on: str
    kern_flag: int
    susp_owner: int
    writeopcount: Optional[int]
    ref: int
    lockref: int


@cached(MEMORY)
def mounts(kernel: Kernel) -> List[Mount]:
    """Every mount on mountlist, in its order; [] where the list cannot be read."""
    symbol = kernel.symbol("mountlist")
    if symbol is None:
        return []
    try:
        found = [
            _mount(kernel, address)
            for address, _ in tailq_foreach(
                kernel, symbol.address, "mount", "mnt_list", what="mountlist", bound=1_000_000
            )
        ]
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("mountlist", symbol.address, str(error))
        return []
    return found


@cached(MEMORY)
def by_address(kernel: Kernel) -> Dict[int, Mount]:
    """``mounts`` by the address of their struct mount."""
    return {mount.address: mount for mount in mounts(kernel)}


def mount_at(kernel: Kernel, address: int) -> Optional[Mount]:
    """The mount at ``address``, None if nothing there can be read as one."""
    found = by_address(kernel).get(address)
    if found is not None:
        return found
    try:
        return _mount(kernel, address, listed=False)
    except (MemoryFault, LayoutError):
        return None


def _mount(kernel: Kernel, address: int, *, listed: bool = True) -> Mount:
    view = kernel.view("mount", address)
    return Mount(
        address,
        _text(view, "mnt_stat.f_fstypename"),
        _text(view, "mnt_stat.f_mntfromname"),
        _text(view, "mnt_stat.f_mntonname"),
        view.mnt_kern_flag,
        view.get("mnt_susp_owner", 0),
        _writeopcount(kernel, view, listed),
        view.get("mnt_ref", 0),
        view.get("mnt_lockref", 0),
    )


def _writeopcount(kernel: Kernel, view: View, listed: bool) -> Optional[int]:
    """vfs_mount_fetch_counter(): mnt_writeopcount and each CPU's part of it.

    While somebody is in vfs_op_enter() (mnt_vfs_ops) the CPUs' parts have been moved
    into mnt_writeopcount and stay zero.
    """
    total: int = view.get("mnt_writeopcount", 0)
    parts = view.get("mnt_pcpu", 0)
    if not parts or view.get("mnt_vfs_ops", 0):
        return total
    if not kernel.layouts.has("mount_pcpu", "mntp_writeopcount"):
        return None
    member = kernel.layouts.resolve("mount_pcpu", "mntp_writeopcount")
    mask = (1 << 8 * kernel.pointer_size) - 1
    try:
        for offset in zpcpu_offsets(kernel):
            total += kernel.signed(parts + offset + member.offset & mask, member.size)
    except MemoryFault as fault:
        # What is on no list of mounts may be none at all.
        if listed:
            kernel.warnings.add("mnt_pcpu", fault.address, fault.reason)
        return None
    return total


def _text(view, path: str) -> str:  # type: ignore[no-untyped-def]
    return view.text(path) if view.has(path) else ""


def suspension(kernel: Kernel, mount: Mount) -> List[str]:
    """The names of the MNTK_SUSPEND* flags that are set."""
    return [name for name in _SUSPEND if mount.kern_flag & kernel.layouts.constant(name, 0)]
