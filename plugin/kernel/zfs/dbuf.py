"""Buffers, and the names of what they belong to.

Mirrors dbuf.c, dmu_objset.c, dsl_dataset.c, dsl_dir.c and their headers, 9.3 to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.list import list_t_foreach
from plugin.kernel.zfs.common import enum_name, peek, text_of, try_peek
from plugin.kernel.zfs.zio import Bookmark
from plugin.session import Kernel

#: a dataset lies no deeper than the longest name has slashes
_DEEPEST = 128
#: one dirty record for each open txg, and one more
_MOST_RECORDS = 16


class Dbuf(NamedTuple):
    """One dmu_buf_impl_t.

    ``state``: "READ", "FILL", "CACHED", ...  ``bookmark`` as the zio that reads or writes
    it has it.  ``syncing``: the txg of a dirty record that dmu_sync() is writing
    (DR_IN_DMU_SYNC), else None.  ``dva``: the first words of its block pointer, None for a
    hole or where it has none.
    """

    address: int
    state: str
    bookmark: Bookmark
    dataset: str
    syncing: Optional[int]
    dva: Optional[Tuple[int, int]]

    @property
    def label(self) -> str:
        where = f" of {self.dataset}" if self.dataset else ""
        level = f" level {self.bookmark.level}" if self.bookmark.level else ""
        return f"object {self.bookmark.object} block {self.bookmark.blkid}{level}{where}"


def dbuf_at(kernel: Kernel, address: int) -> Dbuf:
    """The dmu_buf_impl at ``address``; MemoryFault, LayoutError."""

    def member(path: str) -> int:
        found: int = peek(kernel, "dmu_buf_impl", address, path)
        return found

    objset = member("db_objset")
    dataset = try_peek(kernel, "objset", objset, "os_dsl_dataset", 0)
    number = try_peek(kernel, "dsl_dataset", dataset, "ds_object", 0) if dataset else 0
    return Dbuf(
        address,
        enum_name(kernel, "db_state", "DB_", member("db_state")),
        Bookmark(number, member("db.db_object"), member("db_level"), member("db_blkid")),
        dataset_name(kernel, dataset) if dataset else "the pool's own objects",
        _syncing(kernel, address),
        dva_of(kernel, member("db_blkptr")),
    )


def dva_of(kernel: Kernel, blkptr: int) -> Optional[Tuple[int, int]]:
    """The first DVA of a ``blkptr_t *``: vdev and offset, packed as on disk; None for a hole."""
    if not blkptr:
        return None
    try:
        first = kernel.unsigned(blkptr, 8), kernel.unsigned(blkptr + 8, 8)
    except MemoryFault:
        return None
    return first if any(first) else None


def _syncing(kernel: Kernel, dbuf: int) -> Optional[int]:
    layouts = kernel.layouts
    # enum override_states: DR_NOT_OVERRIDDEN, DR_IN_DMU_SYNC, DR_OVERRIDDEN (sys/dbuf.h)
    in_dmu_sync = layouts.constant("DR_IN_DMU_SYNC", 1)
    for record in _dirty_records(kernel, dbuf):
        state = try_peek(kernel, "dbuf_dirty_record", record, "dt.dl.dr_override_state")
        if state == in_dmu_sync:
            txg: int = try_peek(kernel, "dbuf_dirty_record", record, "dr_txg", 0)
            return txg
    return None


def _dirty_records(kernel: Kernel, dbuf: int) -> List[int]:
    """A list_t from 13.0 on, a chain by dr_next from db_last_dirty before."""
    layouts = kernel.layouts
    if layouts.has("dmu_buf_impl", "db_dirty_records"):
        head = dbuf + layouts.offsetof("dmu_buf_impl", "db_dirty_records")
        return list(list_t_foreach(kernel, head, what=f"dbuf {dbuf:#x}", bound=_MOST_RECORDS))
    found: List[int] = []
    at = try_peek(kernel, "dmu_buf_impl", dbuf, "db_last_dirty", 0)
    while at and at not in found and len(found) < _MOST_RECORDS:
        found.append(at)
        at = try_peek(kernel, "dbuf_dirty_record", at, "dr_next", 0)
    return found


def dataset_name(kernel: Kernel, dataset: int) -> str:
    """ "tank/home@monday" of a ``struct dsl_dataset *``, "" where it cannot be read."""
    try:
        at = peek(kernel, "dsl_dataset", dataset, "ds_dir")
        snapshot = text_of(peek(kernel, "dsl_dataset", dataset, "ds_snapname"))
        parts: List[str] = []
        while at and len(parts) < _DEEPEST:
            parts.append(text_of(peek(kernel, "dsl_dir", at, "dd_myname")))
            at = peek(kernel, "dsl_dir", at, "dd_parent")
    except (MemoryFault, LayoutError):
        return ""
    return "/".join(reversed(parts)) + (f"@{snapshot}" if snapshot else "")


def objset_name(kernel: Kernel, objset: int) -> str:
    """The name of the dataset of a ``struct objset *``, "" where it cannot be read."""
    dataset = try_peek(kernel, "objset", objset, "os_dsl_dataset", 0)
    return dataset_name(kernel, dataset) if dataset else ""
