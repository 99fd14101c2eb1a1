"""FreeBSD/amd64 dumps.

Minidumps (sys/amd64/include/minidump.h, minidump_machdep.c): version 1
(7.0 to 9.0) holds a PTE for each page of kernel memory; from version 2 (9.1)
a PDE for each 2 MB, whose page-table pages lie among the dump's own pages
(a 1 GB page is written as 512 PDEs); version 3 (13.0) adds dump_avail.

Full dumps are walked from KPML4phys, or from KPML5phys where ``la57`` is set
(13.0 on).  Both are variables of the kernel, so their physical address must be
known first: the kernel lies at KERNLOAD, or from 14.0 on wherever the loader
put it, which the variable ``kernphys`` tells that itself is to be found.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Iterator, Optional

from plugin.arch.common import MinidumpHeader, ReadPhysical
from plugin.errors import DumpError, KernelMismatch
from plugin.vmcore.elf import ElfFile
from plugin.vmcore.physical import Physical
from plugin.vmcore.space import (
    NOTHING,
    DirectMap,
    Leaf,
    LinearSpace,
    Space,
    TableSpace,
    WalkedSpace,
    Words,
)

NAME = "amd64"
MAGIC = b"minidump FreeBSD/amd64"
VERSIONS = (1, 2, 3)

KERNBASE = 0xFFFFFFFF80000000
_PG_V = 0x001
_PG_FRAME = 0x000FFFFFFFFFF000
_PDRSHIFT = 21
_LA48 = (39, 30, 21)
_LA57 = (48, 39, 30, 21)
#: KERNLOAD of the kernels that have no symbol of it and whose kernphys may vary
_KERNLOAD = 0x200000
_SUPERPAGE = 1 << _PDRSHIFT
#: places tried for the kernel: 2 TB of memory
_MOST_PLACES = 1 << 20

_HEADER = struct.Struct("<24x4I3QI")


def minidump_header(head: bytes) -> MinidumpHeader:
    version, msgbuf, bitmap, pmap, kernbase, dmapbase, dmapend, avail = _HEADER.unpack_from(head)
    return MinidumpHeader(
        version,
        msgbuf,
        bitmap,
        pmap,
        kernbase,
        dmapbase=dmapbase,
        dmapend=dmapend,
        dumpavailsize=avail if version >= 3 else 0,
    )


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> Space:
    dmap = DirectMap(header.dmapbase, header.dmapend)
    if header.version == 1:
        return LinearSpace(entries, header.kernbase, 12, _page_of, dmap)
    return _PdeSpace(header.kernbase, entries, read, dmap)


def _page_of(entry: int) -> int:
    return entry & _PG_FRAME if entry & _PG_V else -1


class _PdeSpace(TableSpace):
    """The space of a minidump that holds page-directory entries from kernbase on."""

    def __init__(self, kernbase: int, entries: Words, read: ReadPhysical, dmap: DirectMap) -> None:
        super().__init__(lambda pa: read(pa, 4096), 8, _PDRSHIFT, dmap)
        self._kernbase = kernbase
        self._entries = entries
        self._end = kernbase + (entries.count << _PDRSHIFT)

    def _find_leaf(self, va: int) -> Leaf:
        if not self._kernbase <= va < self._end:
            return NOTHING
        return self._leaf_of(self._entries[(va - self._kernbase) >> _PDRSHIFT])


def full_space(kernel: ElfFile, physical: Physical, read: ReadPhysical) -> Space:
    """The kernel's address space; each guess of where the kernel lies must prove itself.

    KernelMismatch where none does.
    """
    root = kernel.symbol("KPML4phys")
    if root is None:
        raise DumpError(
            f"{kernel.path} has no symbol KPML4phys: a full dump can be read only with the "
            "kernel that made it, symbols and all"
        )
    kernbase = kernel.symbol("kernbase")
    base = kernbase.address if kernbase is not None else KERNBASE
    for shift in _shifts(kernel, base, physical, read):
        space = _walked(kernel, shift, read)
        if space is not None and space.translate(root.address) == root.address - shift:
            return space
    raise KernelMismatch(
        f"no page tables found through KPML4phys of {kernel.path}: "
        "it is not the kernel that made this dump"
    )


def _shifts(
    kernel: ElfFile, kernbase: int, physical: Physical, read: ReadPhysical
) -> Iterator[int]:
    """What the kernel's virtual addresses may be above its physical ones, likeliest first."""
    yield kernbase
    variable = kernel.symbol("kernphys")
    if variable is None or variable.kind == "absolute":
        return
    kernload = kernel.symbol("kernload")
    load = kernload.address if kernload is not None else _KERNLOAD
    places = (
        kernphys
        for start, end in physical.ranges()
        for kernphys in range(start // _SUPERPAGE * _SUPERPAGE, end, _SUPERPAGE)
    )
    for kernphys in islice(places, _MOST_PLACES):
        shift = kernbase + load - kernphys
        if _value(read, variable.address - shift, 8) == kernphys:
            yield shift


def _walked(kernel: ElfFile, shift: int, read: ReadPhysical) -> Optional[WalkedSpace]:
    la57 = kernel.symbol("la57")
    five = la57 is not None and _value(read, la57.address - shift, 4)
    symbol = kernel.symbol("KPML5phys" if five else "KPML4phys")
    root = _value(read, symbol.address - shift, 8) if symbol is not None else None
    if not root or root & ~_PG_FRAME:
        return None
    return WalkedSpace(
        lambda pa: read(pa, 4096), root, _LA57 if five else _LA48, bits=57 if five else 48
    )


def _value(read: ReadPhysical, pa: int, size: int) -> Optional[int]:
    data = read(pa, size) if pa >= 0 else None
    return int.from_bytes(data, "little") if data is not None else None
