"""The allocation throttle: writes that may not allocate yet, in the order they will.

Mirrors zio_dva_throttle() of zio.c and metaslab.c: a write without a slot waits in a tree of
its allocator, one to 11.x, ``spa_alloc_count`` of them from 12.0 on; from 15.0 on (OpenZFS
2.4) each allocation class has its own.
"""

from __future__ import annotations

from typing import Dict, Iterator

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.avl import avl_foreach
from plugin.kernel.zfs.common import peek, try_peek
from plugin.session import Kernel

_MOST_ALLOCATORS = 256
_MOST_ZIOS = 1_000_000
#: what a spa calls its classes (sys/spa_impl.h)
_CLASSES = (
    *("spa_normal_class", "spa_log_class", "spa_embedded_log_class", "spa_special_class"),
    *("spa_special_embedded_log_class", "spa_dedup_class"),
)


@cached(MEMORY)
def throttled(kernel: Kernel, spa: int) -> Dict[int, int]:
    """{struct zio *: how many are before it} of the pool's writes that wait for a slot."""
    found: Dict[int, int] = {}
    try:
        for tree in _trees(kernel, spa):
            what = f"allocation throttle of spa {spa:#x}"
            walk = avl_foreach(kernel, tree, what=what, bound=_MOST_ZIOS)
            for place, zio in enumerate(walk):
                found.setdefault(zio, place)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("allocation throttle", spa, str(error))
    return found


def _trees(kernel: Kernel, spa: int) -> Iterator[int]:
    layouts = kernel.layouts
    if layouts.has("spa", "spa_alloc_tree"):
        yield spa + layouts.offsetof("spa", "spa_alloc_tree")
        return
    count = min(try_peek(kernel, "spa", spa, "spa_alloc_count", 0), _MOST_ALLOCATORS)
    if layouts.has("spa", "spa_alloc_trees"):
        base = peek(kernel, "spa", spa, "spa_alloc_trees")
        size = layouts.sizeof("avl_tree")
        yield from (base + at * size for at in range(count) if base)
    elif layouts.has("spa", "spa_allocs"):
        base = peek(kernel, "spa", spa, "spa_allocs")
        size, offset = layouts.sizeof("spa_alloc"), layouts.offsetof("spa_alloc", "spaa_tree")
        yield from (base + at * size + offset for at in range(count) if base)
    elif layouts.has("metaslab_class_allocator", "mca_tree"):
        size = layouts.sizeof("metaslab_class_allocator")
        offset = layouts.offsetof("metaslab_class_allocator", "mca_tree")
        inside = layouts.offsetof("metaslab_class", "mc_allocator")
        for name in _CLASSES:
            base = try_peek(kernel, "spa", spa, name, 0)
            yield from (base + inside + at * size + offset for at in range(count) if base)
