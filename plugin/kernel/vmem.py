"""Kernel address space: the arenas of vmem(9), and the kernel's maps before them.

Mirrors sys/kern/subr_vmem.c (10.0 to 15.x) and sys/vm/vm_kern.c (kernel_map and
its submaps, to 9.x).
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.sleepqueue import sleepers
from plugin.session import Kernel

_MAX_ARENAS = 4096
_MAPS = ("kernel_map", "kmem_map", "exec_map", "pipe_map", "pager_map", "buffer_map", "clean_map")


_NEEDED = (
    "vm_cv",
    "vm_name",
    "vm_alllist",
    "vm_quantum_mask",
    "vm_quantum_shift",
    "vm_inuse",
    "vm_size",
)


class Arena(NamedTuple):
    """An arena or map; ``size`` and ``inuse`` in bytes.

    An arena imports as it needs, so that a full one may still grow; ``waiters``
    sleep for address space in it.
    """

    address: int
    name: str
    size: int
    inuse: int
    waiters: Tuple[int, ...]


@cached(MEMORY)
def arenas(kernel: Kernel) -> List[Arena]:
    """Every arena, in the order of vmem_list; the kernel's maps where there is none."""
    return list(_arenas(kernel))


def _arenas(kernel: Kernel) -> Iterator[Arena]:
    if kernel.has_symbol("vmem_list"):
        yield from _vmem_list(kernel)
    else:
        yield from _maps(kernel)


def _offsets(kernel: Kernel) -> Dict[str, int]:
    """Offsets in struct vmem, which is private to subr_vmem.c.

    By its layout where one is known; else as the members of the kernels from
    10.0 to 15.x, which are the same up to vm_size, are laid out.
    """
    layouts = kernel.layouts
    if "vmem" in layouts:
        return {name: layouts.offsetof("vmem", name) for name in _NEEDED}
    word = kernel.pointer_size
    orders = 32 - 1 + 8 * word - 5
    at = layouts.sizeof("mtx_padalign")
    found = {}
    members = (
        ("vm_cv", layouts.sizeof("cv"), word),
        ("vm_name", 17, 1),
        ("vm_alllist", 2 * word, word),
        ("vm_hash0", 16 * word, word),
        ("vm_freelist", orders * word, word),
        ("vm_seglist", 2 * word, word),
        ("vm_hashlist", word, word),
        ("vm_hashsize", word, word),
        ("vm_qcache_max", word, word),
        ("vm_quantum_mask", word, word),
        ("vm_import_quantum", word, word),
        ("vm_quantum_shift", 4, 4),
        ("vm_freetags", word, word),
        ("vm_nfreetags", 4, 4),
        ("vm_nbusytag", 4, 4),
        ("vm_inuse", word, word),
        ("vm_size", word, word),
    )
    for name, size, align in members:
        at = -(-at // align) * align
        found[name] = at
        at += size
    return found


def _vmem_list(kernel: Kernel) -> Iterator[Arena]:
    try:
        offsets = _offsets(kernel)
        address = kernel.global_value("vmem_list")
    except (LayoutError, MemoryFault) as error:
        kernel.warnings.add("vmem_list", getattr(error, "address", None), str(error))
        return
    word = kernel.pointer_size
    span = offsets["vm_size"] + word
    seen: Set[int] = set()
    while address and address not in seen and len(seen) < _MAX_ARENAS:
        seen.add(address)
        try:
            data = kernel.read(address, span)
        except MemoryFault as fault:
            kernel.warnings.add("vmem_list", fault.address, fault.reason)
            return

        def field(name: str, size: int = word, data: bytes = data) -> int:
            return int.from_bytes(data[offsets[name] :][:size], "little")

        name = data[offsets["vm_name"] :][:17].split(b"\0", 1)[0].decode("utf-8", "replace")
        shift = field("vm_quantum_shift", 4)
        if shift >= 8 * word or field("vm_quantum_mask") != (1 << shift) - 1:
            kernel.warnings.add("vmem_list", address, "no struct vmem of the known form")
            return
        waiting = sleepers(kernel).get(address + offsets["vm_cv"], ())
        tids = tuple(thread.tid for thread in waiting)
        yield Arena(address, name, field("vm_size"), field("vm_inuse"), tids)
        address = field("vm_alllist")
    if address in seen:
        kernel.warnings.add("vmem_list", address, f"loops after {len(seen)} arenas")


def _maps(kernel: Kernel) -> Iterator[Arena]:
    for name in _MAPS:
        found = _map(kernel, name)
        if found is not None:
            yield found


def _map(kernel: Kernel, name: str) -> Optional[Arena]:
    try:
        address = kernel.global_value(name, 0)
        if not address:
            return None
        view = kernel.view("vm_map", address)
        start = kernel.layouts.first_of("vm_map", "min_offset", "header.start")
        end = kernel.layouts.first_of("vm_map", "max_offset", "header.end")
        if start is None or end is None:
            return None
        size = view[end] - view[start]
        return Arena(address, name, abs(size), view.size, ())
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(name, getattr(error, "address", None), str(error), partial=False)
        return None
