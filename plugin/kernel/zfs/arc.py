"""The ARC: reads that several wait for, and its eviction.

Mirrors arc.c, zthr.c and sys/arc_impl.h.  Who asks for a block that is being read already
hangs an arc_callback on the header (b_l1hdr.b_acb); acb_zio_head, from 12.0 on, is the read.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Set, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.zfs.common import peek, try_peek
from plugin.session import Kernel

_MOST_CALLBACKS = 100_000


def joined_reads(kernel: Kernel, hdr: int, read: int) -> Iterator[Tuple[int, int]]:
    """(acb_zio_dummy, arc_callback *) of those who wait for the zio ``read`` of ``hdr``.

    Nothing unless ``hdr`` is an arc_buf_hdr whose first callback knows that zio.
    """
    layouts = kernel.layouts
    if "arc_callback" not in layouts or not kernel.is_kernel_address(hdr):
        return
    has_head = layouts.has("arc_callback", "acb_zio_head")
    at = try_peek(kernel, "arc_buf_hdr", hdr, "b_l1hdr.b_acb", 0)
    seen: Set[int] = set()
    while at and at not in seen and len(seen) < _MOST_CALLBACKS:
        seen.add(at)
        try:
            if has_head and peek(kernel, "arc_callback", at, "acb_zio_head") != read:
                return
            dummy = peek(kernel, "arc_callback", at, "acb_zio_dummy")
            following = peek(kernel, "arc_callback", at, "acb_next")
        except (MemoryFault, LayoutError):
            return
        if dummy:
            yield dummy, at
        at = following


class EvictThread(NamedTuple):
    """The zthr that evicts: its struct thread * (0 for none), name, and what it was told by."""

    thread: int
    name: str


def evict_thread(kernel: Kernel) -> EvictThread:
    """arc_evict_zthr (13.0 on, arc_adjust_zthr in 12.1) and its thread."""
    for symbol in ("arc_evict_zthr", "arc_adjust_zthr"):
        at = kernel.global_value(symbol, 0) if kernel.symbol(symbol) is not None else 0
        thread = try_peek(kernel, "zthr", at, "zthr_thread", 0) if at else 0
        if thread:
            name = kernel.try_cstring(try_peek(kernel, "zthr", at, "zthr_name", 0))
            return EvictThread(thread, name or symbol)
    return EvictThread(0, "")
