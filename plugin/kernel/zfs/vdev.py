"""struct vdev: the tree of devices below a pool, and the queue of I/O each leaf has.

Mirrors vdev.c, vdev_queue.c, vdev_geom.c and sys/vdev_impl.h, 9.3 to 15.x.  What is queued
and what is with the device: AVL trees to 14.0, from 14.2 (OpenZFS 2.2) a list of the active
ones, and of the waiting ones a list or a tree for each priority.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.avl import avl_foreach
from plugin.kernel.geom import Provider, mesh
from plugin.kernel.list import list_t_foreach, ring_of
from plugin.kernel.vnode import Vnode, vnode_at
from plugin.kernel.zfs.common import enum_name, peek, text_of, try_peek
from plugin.session import Kernel

_MOST_CHILDREN = 4096
_MOST_VDEVS = 100_000
_MOST_ZIOS = 1_000_000


class Vdev(NamedTuple):
    """One vdev.

    ``type`` is vdev_op_type ("disk", "file", "mirror", "raidz", "root"), "" where it cannot
    be read.  ``state`` and ``aux`` as ZFS names them ("HEALTHY", "CANT_OPEN"; "NONE",
    "IO_FAILURE").  ``errors``: reads, writes and checksums that failed (vdev_stat), None
    where this kernel's layout does not tell.  ``children`` are struct vdev *.
    """

    address: int
    id: int
    type: str
    leaf: bool
    path: str
    state: str
    aux: str
    cant_read: bool
    cant_write: bool
    tsd: int
    parent: int
    children: List[int]

    @property
    def name(self) -> str:
        """The device's name as zpool status prints it, or the type and number of a group."""
        if self.path:
            return self.path[5:] if self.path.startswith("/dev/") else self.path
        return f"{self.type or 'vdev'}-{self.id}" if self.parent else "root"


@cached(MEMORY)
def vdev_at(kernel: Kernel, address: int) -> Optional[Vdev]:
    """The vdev at ``address``; None, with a finding, where it cannot be read."""
    try:
        return _vdev(kernel, address)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("vdev", address, str(error))
        return None


def _vdev(kernel: Kernel, address: int) -> Vdev:
    def member(path: str) -> int:
        found: int = peek(kernel, "vdev", address, path)
        return found

    ops = member("vdev_ops")
    kind = text_of(try_peek(kernel, "vdev_ops", ops, "vdev_op_type", b"")) if ops else ""
    number = member("vdev_children")
    if number > _MOST_CHILDREN:
        raise MemoryFault(address, f"vdev_children is {number}")
    array = member("vdev_child")
    size = kernel.pointer_size
    children = [kernel.pointer(array + i * size) for i in range(number)] if array else []
    leaf = try_peek(kernel, "vdev_ops", ops, "vdev_op_leaf") if kind else None
    return Vdev(
        address,
        member("vdev_id"),
        kind if kind.isprintable() else "",
        bool(leaf) if leaf is not None else not children,
        kernel.name_at("a vdev", member("vdev_path")),
        enum_name(kernel, "vdev_state", "VDEV_STATE_", member("vdev_state")),
        _aux(kernel, address),
        bool(try_peek(kernel, "vdev", address, "vdev_cant_read", 0)),
        bool(try_peek(kernel, "vdev", address, "vdev_cant_write", 0)),
        member("vdev_tsd"),
        member("vdev_parent"),
        [child for child in children if child],
    )


def _aux(kernel: Kernel, address: int) -> str:
    value = try_peek(kernel, "vdev", address, "vdev_stat.vs_aux")
    return "" if value is None else enum_name(kernel, "vdev_aux", "VDEV_AUX_", value)


def vdev_tree(kernel: Kernel, root: int) -> Iterator[Vdev]:
    """A vdev and all below it, parents first."""
    pending, seen = [root], {0}
    while pending:
        at = pending.pop(0)
        if at in seen:
            continue
        seen.add(at)
        if len(seen) > _MOST_VDEVS:
            kernel.warnings.add("vdev tree", root, f"given up after {_MOST_VDEVS} vdevs")
            return
        found = vdev_at(kernel, at)
        if found is not None:
            yield found
            pending.extend(found.children)


def provider_of(kernel: Kernel, vdev: Vdev) -> Optional[Provider]:
    """The GEOM provider that a vdev on a device uses (vdev_tsd is its consumer), else None."""
    consumer = mesh(kernel).consumers.get(vdev.tsd)
    return consumer.provider if consumer is not None else None


def file_of(kernel: Kernel, vdev: Vdev) -> Optional[Vnode]:
    """The vnode of a vdev on a file, None for any other and where it cannot be read.

    vdev_tsd is a vdev_file_t, which has an open file from 13.0 on, a vnode before.
    """
    if vdev.type != "file" or not vdev.tsd:
        return None
    if kernel.layouts.has("vdev_file", "vf_vnode"):
        at = try_peek(kernel, "vdev_file", vdev.tsd, "vf_vnode", 0)
    else:
        opened = try_peek(kernel, "vdev_file", vdev.tsd, "vf_file", 0)
        at = try_peek(kernel, "file", opened, "f_vnode", 0) if opened else 0
    return vnode_at(kernel, at) if at else None


class VdevQueue(NamedTuple):
    """What a leaf's struct vdev_queue holds.

    ``active``: zios given to the device; ``queued``: those waiting, by priority; ``counted``:
    vq_active (14.2 on) or avl_numnodes, what the queue itself says are active.
    """

    vdev: int
    active: List[int]
    queued: Dict[str, List[int]]
    counted: Optional[int]

    @property
    def waiting(self) -> List[int]:
        return [zio for each in self.queued.values() for zio in each]


@cached(MEMORY)
def vdev_queue(kernel: Kernel, vdev: int) -> Optional[VdevQueue]:
    """The queue of the ``struct vdev *``; None, with a finding, where it cannot be read."""
    try:
        return _queue(kernel, vdev)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("vdev_queue", vdev, str(error))
        return None


def _queue(kernel: Kernel, vdev: int) -> VdevQueue:
    layouts = kernel.layouts
    base = vdev + layouts.offsetof("vdev", "vdev_queue")
    what = f"queue of vdev {vdev:#x}"
    if layouts.has("vdev_queue", "vq_active_list"):
        head = base + layouts.offsetof("vdev_queue", "vq_active_list")
        active = list(list_t_foreach(kernel, head, what=what, bound=_MOST_ZIOS))
        counted: Optional[int] = peek(kernel, "vdev_queue", base, "vq_active")
    else:
        tree = base + layouts.offsetof("vdev_queue", "vq_active_tree")
        active = list(avl_foreach(kernel, tree, what=what, bound=_MOST_ZIOS))
        counted = peek(kernel, "avl_tree", tree, "avl_numnodes")
    if counted is not None and counted != len(active):
        kernel.warnings.add(
            what, base, f"it counts {counted} active zios, {len(active)} are on its list"
        )
    queued: Dict[str, List[int]] = {}
    element = layouts.resolve("vdev_queue", "vq_class").element
    number = element[1] if element else 0
    size = layouts.sizeof("vdev_queue_class")
    start = base + layouts.offsetof("vdev_queue", "vq_class")
    for index in range(number):
        waiting = list(_class(kernel, start + index * size, what))
        if waiting:
            queued[enum_name(kernel, "zio_priority", "ZIO_PRIORITY_", index)] = waiting
    return VdevQueue(vdev, active, queued, counted)


def _class(kernel: Kernel, at: int, what: str) -> Iterator[int]:
    """One vdev_queue_class_t: a tree, or (14.2 on, for some priorities) a list with a count."""
    layouts = kernel.layouts
    if layouts.has("vdev_queue_class", "vqc_queued_tree"):
        tree = at + layouts.offsetof("vdev_queue_class", "vqc_queued_tree")
        return avl_foreach(kernel, tree, what=what, bound=_MOST_ZIOS)
    # A union that nothing tells apart but what is in it: the tree has a function to compare
    # where the list keeps a size or an offset.
    compar = at + layouts.offsetof("avl_tree", "avl_compar")
    if kernel.is_kernel_address(kernel.pointer(compar)):
        return avl_foreach(kernel, at, what=what, bound=_MOST_ZIOS)
    head = at + layouts.offsetof("vdev_queue_class", "vqc_list")
    if not kernel.pointer(ring_of(kernel, head)):
        return iter(())
    return list_t_foreach(kernel, head, what=what, bound=_MOST_ZIOS)
