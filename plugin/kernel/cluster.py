"""Clusters: several buffers of the cache read or written by one I/O.

Mirrors sys/kern/vfs_cluster.c, 6.x to 15.x: cluster_rbuild() and cluster_wbuild() hang the
buffers on a pbuf of their own (b_cluster.cluster_head, linked through each buffer's
b_cluster.cluster_entry) and start that one; cluster_callback() finishes them all.
"""

from __future__ import annotations

from typing import Iterator, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.buf import is_cached
from plugin.session import Kernel

#: more buffers than one cluster holds: MAXPHYS of the smallest blocks
_MAX_CHILDREN = 1 << 12
_CALLBACK = "cluster_callback"


def cluster_of(kernel: Kernel, address: int) -> Optional[int]:
    """The struct buf * of the cluster that the struct buf at ``address`` is part of.

    None where it is in none: its b_cluster then holds what an earlier cluster left there,
    so each link back is checked against the link forth, and the head by its b_iodone.
    """
    try:
        link = kernel.layouts.offsetof("buf", "b_cluster")
        size = kernel.pointer_size
        here = address
        for _ in range(_MAX_CHILDREN):
            previous = kernel.pointer(here + link + size)
            if not kernel.is_kernel_address(previous) or kernel.pointer(previous) != here:
                return None
            here = previous - link
            if not is_cached(kernel, here):
                return here if is_cluster(kernel, here) else None
    except (MemoryFault, LayoutError):
        return None
    return None


def is_cluster(kernel: Kernel, address: int) -> bool:
    """True where b_iodone of the struct buf at ``address`` is cluster_callback()."""
    done = kernel.pointer(address + kernel.layouts.offsetof("buf", "b_iodone"))
    return bool(done) and kernel.symbolize(done).startswith(_CALLBACK)


def children(kernel: Kernel, address: int) -> Iterator[int]:
    """The struct bufs of the cluster at ``address``, in the order of the file.

    Ends early where a link cannot be read or does not lead back.
    """
    link = kernel.layouts.offsetof("buf", "b_cluster")
    size = kernel.pointer_size
    at = address + link
    try:
        for _ in range(_MAX_CHILDREN):
            child = kernel.pointer(at)
            if not child or kernel.pointer(child + link + size) != at:
                return
            yield child
            at = child + link
    except MemoryFault as fault:
        kernel.warnings.add(f"cluster {address:#x}", fault.address, fault.reason)
