"""The list_t of illumos, which ZFS keeps its lists in: a ring of nodes through its own head.

Mirrors sys/contrib/openzfs/include/os/freebsd/spl/sys/list_impl.h (13.0 on) and
sys/cddl/contrib/opensolaris/uts/common/sys/list_impl.h (to 12.x).  15.0 dropped ``list_size``.
An element is a node's address less ``list_offset``; an empty list's head points to itself.
"""

from __future__ import annotations

import struct
from typing import Iterator

from plugin.caching import LAYOUT, cached
from plugin.errors import MemoryFault
from plugin.kernel.queue import LIMIT
from plugin.session import Kernel

_POLL = 1024


@cached(LAYOUT)
def _head(kernel: Kernel) -> int:
    """Bytes of a list_t before its node.

    By the size of a member that is one: the kernel's own types have another ``struct list``,
    which hides this one where they are read from the kernel file.
    """
    layouts = kernel.layouts
    for member in ("io_child_list", "io_parent_list"):
        if layouts.has("zio", member):
            return layouts.resolve("zio", member).size - 2 * kernel.pointer_size
    return layouts.offsetof("list", "list_head")


def ring_of(kernel: Kernel, head: int) -> int:
    """The address of the node in the ``list_t`` at ``head`` that the ring goes through."""
    return head + _head(kernel)


def list_offset(kernel: Kernel, head: int) -> int:
    """Where in its elements the node lies; MemoryFault where the head cannot be read."""
    size = kernel.pointer_size
    # The two links behind it are what is asked for next.
    raw = kernel.exactly(ring_of(kernel, head) - size, 3 * size)
    return int.from_bytes(raw[:size], "little")


def list_t_foreach(
    kernel: Kernel, head: int, *, what: str = "", bound: int = LIMIT
) -> Iterator[int]:
    """Addresses of the elements of the ``list_t`` at ``head``, in its order.

    The ring has to close: a node that cannot be read, one met twice and a NULL link each
    end the walk with a finding.  A wrong ``list_prev`` alone does not.
    """
    what = what or f"list_t at {head:#x}"
    word = kernel.pointer_size
    ring = ring_of(kernel, head)
    links = struct.Struct("<QQ" if word == 8 else "<II")
    try:
        offset = list_offset(kernel, head)
        at, last = links.unpack(kernel.read(ring, links.size))
    except MemoryFault as fault:
        kernel.warnings.add(what, fault.address, f"list head: {fault.reason}")
        return
    came_from = ring
    seen = {ring}
    while at != ring:
        if not at or at in seen:
            why = f"loops back to {at:#x}" if at else "list_next is NULL"
            kernel.warnings.add(what, came_from, f"{why} after {len(seen) - 1} elements")
            return
        seen.add(at)
        try:
            following, previous = links.unpack(kernel.read(at, links.size))
        except MemoryFault as fault:
            kernel.warnings.add(
                what,
                came_from,
                f"element {len(seen) - 2} at {at - offset:#x} cannot be read ({fault.reason})",
            )
            return
        if previous != came_from:
            kernel.warnings.add(
                what,
                at,
                f"list_prev is {previous:#x}, should be {came_from:#x}",
                partial=False,
            )
        yield at - offset
        came_from, at = at, following
        if len(seen) % _POLL == 0 and (len(seen) > bound or kernel.interrupted()):
            kernel.warnings.add(what, at, f"given up after {len(seen) - 1} elements")
            return
    if last != came_from:
        kernel.warnings.add(
            what,
            ring,
            f"list_prev of the head is {last:#x}, the last node is {came_from:#x}",
            partial=False,
        )
