"""Advisory locks on files, fcntl(2) and flock(2): who waits for whom.

Mirrors sys/kern/kern_lockf.c, 8.0 to 15.x.  A waiting struct lockf_entry has an edge to each
entry in its way.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Set, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.queue import list_foreach
from plugin.session import Kernel

_MAX_EDGES = 1 << 12
_TYPES = {1: "read", 2: "unlock", 3: "write"}


class Entry(NamedTuple):
    """One struct lockf_entry *.

    ``type`` "read" or "write"; ``start`` and ``end`` in bytes.  ``pid`` is the owner's for
    fcntl(2), -1 for flock(2), whose ``id`` is the struct file *; with ``sysid`` other than 0
    the owner is a client of NFS.
    """

    address: int
    vnode: int
    type: str
    start: int
    end: int
    pid: int
    sysid: int
    id: int

    @property
    def is_flock(self) -> bool:
        return self.pid == -1 and not self.sysid


def entry_at(kernel: Kernel, address: int) -> Entry:
    """The struct lockf_entry at ``address``; MemoryFault where it cannot be read."""
    view = kernel.view("lockf_entry", address)
    owner = kernel.view("lock_owner", view.lf_owner)
    pid = owner.lo_pid
    if pid >= 1 << 31:
        pid -= 1 << 32
    kind = _TYPES.get(view.lf_type, str(view.lf_type))
    return Entry(
        address,
        view.lf_vnode,
        kind,
        view.lf_start,
        view.lf_end,
        pid,
        owner.lo_sysid,
        owner.lo_id,
    )


def locks_of(kernel: Kernel, vnode: int) -> Tuple[List[Entry], List[Entry]]:
    """(held, waited for): the advisory locks of the struct vnode at ``vnode``, 8.0 on.

    [] and [] where it has none; a finding where they cannot be read.
    """
    layouts = kernel.layouts
    if not layouts.has("vnode", "v_lockf") or not layouts.has("lockf", "ls_active"):
        return [], []
    try:
        state = kernel.pointer(vnode + layouts.offsetof("vnode", "v_lockf"))
        if not state:
            return [], []
        held, waiting = (
            [
                entry_at(kernel, address)
                for address, _ in list_foreach(
                    kernel,
                    state + layouts.offsetof("lockf", head),
                    "lockf_entry",
                    "lf_link",
                    what=f"locks of vnode {vnode:#x}",
                    bound=_MAX_EDGES,
                )
            ]
            for head in ("ls_active", "ls_pending")
        )
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"locks of vnode {vnode:#x}", vnode, str(error), partial=False)
        return [], []
    return held, waiting


def blockers(kernel: Kernel, address: int) -> List[Entry]:
    """The entries that a waiting struct lockf_entry waits for; [] where none can be read."""
    try:
        return list(_blockers(kernel, address))
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"file lock {address:#x}", address, str(error), partial=False)
        return []


def _blockers(kernel: Kernel, address: int) -> Iterator[Entry]:
    layouts = kernel.layouts
    at = kernel.pointer(address + layouts.offsetof("lockf_entry", "lf_outedges"))
    link = layouts.offsetof("lockf_edge", "le_outlink")
    source = layouts.offsetof("lockf_edge", "le_from")
    target = layouts.offsetof("lockf_edge", "le_to")
    seen: Set[int] = set()
    while at and at not in seen and len(seen) < _MAX_EDGES:
        seen.add(at)
        if kernel.pointer(at + source) != address:
            return
        yield entry_at(kernel, kernel.pointer(at + target))
        at = kernel.pointer(at + link)
