"""Locks of ZFS's own: ranges of files, and the reader-writer locks that record who writes.

Mirrors zfs_rlock.c and rrwlock.c.  struct zfs_locked_range from 13.0 on, struct rl before.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.avl import avl_foreach
from plugin.kernel.zfs.common import peek, try_peek
from plugin.session import Kernel

#: enum zfs_rangelock_type, rl_type_t
_TYPES = {0: "reader", 1: "writer", 2: "append"}
_MOST_RANGES = 1_000_000


class LockedRange(NamedTuple):
    """A range that is locked: ``type`` "reader", "writer" or "append", in bytes.

    ``tree``: the struct zfs_rangelock *, or the znode before 13.0; ``owner`` what it is the
    lock of (a znode or a zvol_state), 0 where that cannot be read.
    """

    address: int
    tree: int
    owner: int
    offset: int
    length: int
    type: str

    @property
    def label(self) -> str:
        end = "to the end" if self.length >= 1 << 62 else f"+{self.length}"
        return f"{self.type} of range {self.offset} {end}"


def range_of_cv(kernel: Kernel, cv: int) -> Optional[LockedRange]:
    """The locked range one of whose condition variables is at ``cv``, None where none is.

    What tells which of the two it is: the lock is in the tree it names.
    """
    layouts = kernel.layouts
    struct = "zfs_locked_range" if "zfs_locked_range" in layouts else "rl"
    members = ("lr_write_cv", "lr_read_cv") if struct != "rl" else ("r_wr_cv", "r_rd_cv")
    if struct not in layouts:
        return None
    for member in members:
        address = cv - layouts.offsetof(struct, member)
        try:
            found = _range_at(kernel, struct, address)
            if address in _ranges(kernel, struct, found.tree):
                return found
        except (MemoryFault, LayoutError):
            continue
    return None


def _range_at(kernel: Kernel, struct: str, address: int) -> LockedRange:
    if struct == "rl":
        names: Tuple[str, ...] = ("r_zp", "r_off", "r_len", "r_type")
    else:
        names = ("lr_rangelock", "lr_offset", "lr_length", "lr_type")
    tree, offset, length, kind = (peek(kernel, struct, address, name) for name in names)
    owner = tree if struct == "rl" else try_peek(kernel, "zfs_rangelock", tree, "rl_arg", 0)
    return LockedRange(address, tree, owner or 0, offset, length, _TYPES.get(kind, str(kind)))


def _ranges(kernel: Kernel, struct: str, tree: int) -> List[int]:
    if not kernel.is_kernel_address(tree):
        return []
    owner, member = ("znode", "z_range_avl") if struct == "rl" else ("zfs_rangelock", "rl_tree")
    at = tree + kernel.layouts.offsetof(owner, member)
    with kernel.noting():
        return list(avl_foreach(kernel, at, what="ranges of a file", bound=_MOST_RANGES))


def znode_id(kernel: Kernel, znode: int) -> Optional[int]:
    """z_id, the object's number, None where it cannot be read."""
    found: Optional[int] = try_peek(kernel, "znode", znode, "z_id")
    return found


class Rrwlock(NamedTuple):
    """One rrwlock_t: ``writer`` a struct thread * or 0, readers by their two counts."""

    address: int
    writer: int
    anonymous: int
    linked: int
    writer_wanted: bool


def rrwlock_at(kernel: Kernel, address: int) -> Rrwlock:
    """The rrwlock at ``address``; MemoryFault, LayoutError."""

    def counted(path: str) -> int:
        return kernel.unsigned(address + kernel.layouts.offsetof("rrwlock", path), 8)

    return Rrwlock(
        address,
        peek(kernel, "rrwlock", address, "rr_writer"),
        counted("rr_anon_rcount"),
        counted("rr_linked_rcount"),
        bool(peek(kernel, "rrwlock", address, "rr_writer_wanted")),
    )
