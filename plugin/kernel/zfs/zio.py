"""struct zio: one I/O of ZFS, the tree it is part of, and what carries it.

Mirrors zio.c and sys/zio.h, 9.3 to 15.x.  The thread in zio_wait() waits for the root of a
tree; io_child_list holds zio_link_t by zl_child_node, io_parent_list by zl_parent_node.
"""

from __future__ import annotations

import struct
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import LAYOUT, MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.list import list_offset, list_t_foreach
from plugin.kernel.zfs.common import age_of, enum_name
from plugin.session import Kernel
from plugin.structs import Fields

#: a zio has no more children or parents than this in any pool
MOST_LINKS = 100_000
#: enum zio_qstate (14.2 on)
QS_NONE, QS_QUEUED, QS_ACTIVE = range(3)
_BOOKMARK = struct.Struct("<QQqQ")


class Bookmark(NamedTuple):
    """zbookmark_phys: which block of which object of which objset (dataset) it is about."""

    objset: int
    object: int
    level: int
    blkid: int

    def __str__(self) -> str:
        return f"{self.objset:#x}/{self.object:#x}/{self.level}/{self.blkid:#x}"


class Zio(NamedTuple):
    """One struct zio; members carry ZFS's names without their prefix.

    ``type``, ``priority``: "READ", "SYNC_READ".  ``stage`` and ``pipeline`` are the bits of
    enum zio_stage, ``stage_name`` the one it is in ("VDEV_IO_START").  ``bio`` is 0 where
    it has none, and before 12.0, where the zio did not record it.  ``queue_state`` is None
    before 14.2.  Times are hrtime_t.
    """

    address: int
    bookmark: Bookmark
    type: str
    priority: str
    spa: int
    bp: int
    vd: int
    offset: int
    size: int
    flags: int
    stage: int
    pipeline: int
    error: int
    executor: int
    waiter: int
    done: int
    private: int
    bio: int
    queue_state: Optional[int]
    timestamp: int
    queued_timestamp: int
    stage_name: str

    @property
    def started(self) -> bool:
        """The pipeline has begun: io_stage is past ZIO_STAGE_OPEN."""
        return self.stage > 1


_PATHS = (
    "io_bookmark",
    "io_type",
    "io_priority",
    "io_spa",
    "io_bp",
    "io_vd",
    "io_offset",
    "io_size",
    "io_flags",
    "io_stage",
    "io_pipeline",
    "io_error",
    "io_executor",
    "io_waiter",
    "io_done",
    "io_private",
)


class _Reader(NamedTuple):
    fields: Fields
    #: which of the members that not every version has are read, in this order
    optional: Tuple[str, ...]


@cached(LAYOUT)
def _reader(kernel: Kernel) -> _Reader:
    layouts = kernel.layouts
    optional = tuple(
        path
        for path in ("io_bio", "io_queue_state", "io_timestamp", "io_queued_timestamp")
        if layouts.has("zio", path)
    )
    return _Reader(layouts.fields("zio", *_PATHS, *optional), optional)


def zio_at(kernel: Kernel, address: int) -> Zio:
    """The zio at ``address``; MemoryFault where it cannot be read, LayoutError where unknown."""
    reader = _reader(kernel)
    values: Tuple[Any, ...] = kernel.values(reader.fields, address)
    more = dict(zip(reader.optional, values[len(_PATHS) :]))
    return Zio._make(
        (
            address,
            Bookmark(*_BOOKMARK.unpack(values[0])),
            enum_name(kernel, "zio_type", "ZIO_TYPE_", values[1]),
            enum_name(kernel, "zio_priority", "ZIO_PRIORITY_", values[2]),
            *values[3 : len(_PATHS)],
            more.get("io_bio", 0),
            more.get("io_queue_state"),
            more.get("io_timestamp", 0),
            more.get("io_queued_timestamp", 0),
            enum_name(kernel, "zio_stage", "ZIO_STAGE_", values[9]),
        )
    )


@cached(MEMORY)
def try_zio(kernel: Kernel, address: int) -> Optional[Zio]:
    """The zio at ``address``, None where there is none that could be one."""
    try:
        found = zio_at(kernel, address)
    except (MemoryFault, LayoutError):
        return None
    return found if is_zio(kernel, found) else None


def is_zio(kernel: Kernel, zio: Zio) -> bool:
    """True where a zio is what it seems: one stage, a pool, lists that close."""
    if zio.stage & (zio.stage - 1) or not kernel.is_kernel_address(zio.spa):
        return False
    try:
        for member, link in (
            ("io_child_list", "zl_child_node"),
            ("io_parent_list", "zl_parent_node"),
        ):
            if kernel.chosen and member == "io_parent_list":
                # One list of two is proof enough where each costs a packet.
                continue
            head = zio.address + kernel.layouts.offsetof("zio", member)
            if list_offset(kernel, head) != kernel.layouts.offsetof("zio_link", link):
                return False
    except (MemoryFault, LayoutError):
        return False
    return True


def children(kernel: Kernel, zio: int) -> List[int]:
    """The zios that have to end before this one does (struct zio *)."""
    return list(_linked(kernel, zio, "io_child_list", "zl_child"))


def parents(kernel: Kernel, zio: int) -> List[int]:
    """The zios that wait for this one (struct zio *)."""
    return list(_linked(kernel, zio, "io_parent_list", "zl_parent"))


def _linked(kernel: Kernel, zio: int, member: str, end: str) -> Iterator[int]:
    head = zio + kernel.layouts.offsetof("zio", member)
    offset = kernel.layouts.offsetof("zio_link", end)
    for link in list_t_foreach(kernel, head, what=f"{member} of zio {zio:#x}", bound=MOST_LINKS):
        try:
            yield kernel.pointer(link + offset)
        except MemoryFault as fault:
            kernel.warnings.add(f"{member} of zio {zio:#x}", fault.address, fault.reason)


#: enum zio_child and enum zio_wait_type: io_children[type][ready or done] (sys/zio.h)
CHILD_TYPES = ("vdev", "gang", "ddt", "logical")


def age(kernel: Kernel, zio: Zio) -> Optional[float]:
    """Seconds since it was queued, or given to the device; None where it was not yet."""
    found = age_of(kernel, zio.queued_timestamp)
    return found if found is not None else age_of(kernel, zio.timestamp)


def describe(zio: Zio) -> str:
    """ "WRITE 4096 bytes at 1052672": offset and length where it has them."""
    if zio.type in ("NULL", "0") or not zio.size:
        return zio.type.lower()
    return f"{zio.type.lower()} of {zio.size} bytes at {zio.offset}"
