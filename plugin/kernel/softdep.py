"""Soft updates: what each file system has still to work off, and the thread that does it.

Mirrors sys/ufs/ffs/ffs_softdep.c and softdep.h, 9.3 to 15.x: from 10.0 on (r256808 and kin) each
mount has a struct mount_softdeps of its own, on softdepmounts, and a thread; before, the counts
are members of struct ufsmount and one thread, softdepflush, serves every mount.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.geom import Provider, consumer_at
from plugin.kernel.mount import Mount, mounts
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel, View

_MAX_MOUNTS = 1 << 16


class Softdep(NamedTuple):
    """Soft updates of one mount.

    ``address``: its struct mount_softdeps *, the struct ufsmount * up to 9.x.  ``worklist`` and
    ``journal``: items on sd_on_worklist and sd_on_journal; ``deps``: dependencies in all.
    ``flusher``: the struct thread * that works for it, 0 where one thread serves all.
    ``provider``: the device that the file system lies on.
    """

    address: int
    ump: int
    mount: Optional[Mount]
    worklist: int
    journal: int
    deps: int
    flusher: int
    provider: Optional[Provider]


@cached(MEMORY)
def softdeps(kernel: Kernel) -> List[Softdep]:
    """Of every mount with soft updates."""
    symbol = kernel.symbol("softdepmounts")
    if symbol is not None and "mount_softdeps" in kernel.layouts:
        return list(_listed(kernel, symbol.address))
    return list(_of_mounts(kernel))


def _listed(kernel: Kernel, head: int) -> Iterator[Softdep]:
    by_data: Dict[int, Mount] = {mount.data: mount for mount in mounts(kernel) if mount.data}
    for address, _ in tailq_foreach(
        kernel, head, "mount_softdeps", "sd_next", what="softdepmounts", bound=_MAX_MOUNTS
    ):
        view = kernel.view("mount_softdeps", address)
        yield Softdep(
            address,
            view.sd_ump,
            by_data.get(view.sd_ump),
            view.sd_on_worklist,
            view.sd_on_journal,
            view.sd_deps,
            view.sd_flushtd,
            _provider(kernel, view.sd_ump),
        )


def _of_mounts(kernel: Kernel) -> Iterator[Softdep]:
    if not kernel.layouts.has("ufsmount", "softdep_on_worklist"):
        return
    soft = kernel.layouts.constant("MNT_SOFTDEP", 0x200000)
    for mount in mounts(kernel):
        if mount.fstype != "ufs" or not mount.flag & soft or not mount.data:
            continue
        try:
            view: View = kernel.view("ufsmount", mount.data)
        except MemoryFault as fault:
            kernel.warnings.add(f"ufsmount of {mount.on}", fault.address, fault.reason)
            continue
        yield Softdep(
            mount.data,
            mount.data,
            mount,
            view.softdep_on_worklist,
            view.get("softdep_on_journal", 0),
            view.get("softdep_deps", 0),
            0,
            _provider(kernel, mount.data),
        )


def _provider(kernel: Kernel, ump: int) -> Optional[Provider]:
    try:
        consumer = consumer_at(kernel, kernel.view("ufsmount", ump).um_cp)
    except (MemoryFault, LayoutError):
        return None
    return consumer.provider if consumer is not None else None


#: the members that a wait for soft updates sleeps on: (struct, member)
_CHANNELS = (
    ("mount_softdeps", "sd_flags"),
    ("mount_softdeps", "sd_flushtd"),
    ("mount_softdeps", "sd_deps"),
    ("mount_softdeps", "sd_req"),
    ("ufsmount", "softdep_deps"),
    ("ufsmount", "softdep_req"),
)


def waited_for(kernel: Kernel, channel: int) -> Optional[Softdep]:
    """The mount whose soft updates a sleep on ``channel`` waits for; None where it tells none.

    The channel is a member of the mount's struct, its journal's struct jblocks *, or a struct
    worklist * of one of its dependencies, which names its mount (wk_mp).
    """
    layouts = kernel.layouts
    for each in softdeps(kernel):
        struct = "mount_softdeps" if each.address != each.ump else "ufsmount"
        members = [member for of, member in _CHANNELS if of == struct and layouts.has(of, member)]
        if any(each.address + layouts.offsetof(struct, m) == channel for m in members):
            return each
        if channel and channel == _jblocks(kernel, struct, each.address):
            return each
    if "worklist" not in layouts:
        return None
    try:
        mount = kernel.pointer(channel + layouts.offsetof("worklist", "wk_mp"))
    except MemoryFault:
        return None
    return next(
        (e for e in softdeps(kernel) if e.mount is not None and e.mount.address == mount), None
    )


def _jblocks(kernel: Kernel, struct: str, address: int) -> int:
    """The struct jblocks * of a mount's journal, 0 for none."""
    member = "sd_jblocks" if struct == "mount_softdeps" else "softdep_jblocks"
    if not kernel.layouts.has(struct, member):
        return 0
    try:
        return kernel.pointer(address + kernel.layouts.offsetof(struct, member))
    except MemoryFault:
        return 0
