"""Mounted file systems: struct mount (sys/sys/mount.h, sys/kern/vfs_mount.c), 6.x to 15.x."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.counter import zpcpu_offsets
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel, View

_SUSPEND = ("MNTK_SUSPEND", "MNTK_SUSPENDED", "MNTK_SUSPEND2", "MNTK_SUSPEND_ALL")
#: struct mount's counts that 13.0 and later keep per CPU too (r351471), and the parts' names
_COUNTS = {
    "mnt_ref": "mntp_ref",
    "mnt_lockref": "mntp_lockref",
    "mnt_writeopcount": "mntp_writeopcount",
}


class Mount(NamedTuple):
    """One mount: what is mounted (``source``) where (``on``), and its counters.

    ``flag`` and ``kern_flag`` are mnt_flag and mnt_kern_flag; ``susp_owner`` is the struct
    thread that suspended it (8.0 on), else 0.  ``ref``, ``lockref`` and ``writeopcount`` count
    references, vfs_busy(9) and writes under way, the parts that 13.0 and later count per CPU
    (struct mount_pcpu) included; None where those cannot be told, ``lockref`` also where the
    kernel keeps none (before 8.0).  ``data`` is mnt_data, the file system's own struct.
    """

    address: int
    fstype: str
    source: str
    on: str
    flag: int
    kern_flag: int
    susp_owner: int
    ref: Optional[int]
    lockref: Optional[int]
    writeopcount: Optional[int]
    secondary_writes: int
    vnodes: int
    data: int


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
    counts = _counts(kernel, view, listed)
    return Mount(
        address,
        _text(view, "mnt_stat.f_fstypename"),
        _text(view, "mnt_stat.f_mntfromname"),
        _text(view, "mnt_stat.f_mntonname"),
        view.mnt_flag,
        view.mnt_kern_flag,
        view.get("mnt_susp_owner", 0),
        counts["mnt_ref"],
        counts["mnt_lockref"],
        counts["mnt_writeopcount"],
        view.get("mnt_secondary_writes", 0),
        view.get("mnt_nvnodelistsize", 0),
        view.mnt_data,
    )


def _counts(kernel: Kernel, view: View, listed: bool) -> Dict[str, Optional[int]]:
    """vfs_mount_fetch_counter(): what struct mount counts and each CPU's part of it.

    While somebody is in vfs_op_enter() (mnt_vfs_ops) the CPUs' parts have been moved
    into the mount's own counts and stay zero.
    """
    totals: Dict[str, Optional[int]] = {name: view.get(name) for name in _COUNTS}
    parts = view.get("mnt_pcpu", 0)
    if not parts or view.get("mnt_vfs_ops", 0):
        return totals
    unknown: Dict[str, Optional[int]] = dict.fromkeys(_COUNTS)
    if not all(kernel.layouts.has("mount_pcpu", part) for part in _COUNTS.values()):
        return unknown
    fields = kernel.layouts.fields("mount_pcpu", *_COUNTS.values())
    mask = (1 << 8 * kernel.pointer_size) - 1
    try:
        for offset in zpcpu_offsets(kernel):
            own = fields.unpack(kernel.read(parts + offset & mask, fields.span))
            for name, part in zip(_COUNTS, own):
                totals[name] = (totals[name] or 0) + part
    except MemoryFault as fault:
        # What is on no list of mounts may be none at all.
        if listed:
            kernel.warnings.add("mnt_pcpu", fault.address, fault.reason)
        return unknown
    return totals


def _text(view, path: str) -> str:  # type: ignore[no-untyped-def]
    return view.text(path) if view.has(path) else ""


def suspension(kernel: Kernel, mount: Mount) -> List[str]:
    """The names of the MNTK_SUSPEND* flags that are set."""
    return [name for name in _SUSPEND if mount.kern_flag & kernel.layouts.constant(name, 0)]


def unmounting(kernel: Kernel, mount: Mount) -> List[str]:
    """The names of the flags by which dounmount() marks a mount that it ends."""
    names = ("MNTK_UNMOUNT", "MNTK_UNMOUNTF", "MNTK_DRAINING", "MNTK_MWAIT", "MNTK_REFEXPIRE")
    return [name for name in names if mount.kern_flag & kernel.layouts.constant(name, 0)]
