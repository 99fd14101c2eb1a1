"""Page tables, as the processor would walk them, over a forged address space.

Every table is a page of the machine's own memory, so that a full dump holds
its tables and a minidump's page directory points at page-table pages that are
in the dump.  The first superpage of the kernel's image is mapped by one large
entry, everything else by small ones, so both kinds are met.

Mirrors sys/i386/i386/pmap.c, sys/amd64/amd64/pmap.c, sys/arm64/arm64/pmap.c.
"""

from __future__ import annotations

import struct
from typing import Dict, NamedTuple, Optional, Tuple

from tests.forge.memory import PAGE_SIZE, Space

# sys/{i386,amd64}/include/pmap.h: valid, writable, accessed, modified, superpage, global.
PG_V, PG_RW, PG_A, PG_M, PG_PS, PG_G = 0x1, 0x2, 0x20, 0x40, 0x80, 0x100
_LEAF = PG_V | PG_RW | PG_A | PG_M
_TABLE = PG_V | PG_RW | PG_A | PG_M
# sys/arm64/include/pte.h: access flag, inner shareable, page / table descriptor.
ATTR_AF, ATTR_SH, DESCR_PAGE = 1 << 10, 3 << 8, 3


class Tables(NamedTuple):
    """``root`` is the physical address of the top-level table."""

    root: int
    #: entry width in bytes: 4, or 8 for PAE and the 64-bit architectures
    width: int
    #: levels from the root to the page
    levels: int
    #: physical address of the first page directory (i386: what IdlePTD holds)
    directory: int


class _Walk(NamedTuple):
    """How one kind of table splits an address."""

    width: int
    #: (shift, bits) of every level, top first
    levels: Tuple[Tuple[int, int], ...]
    table: int
    leaf: int
    #: added to a leaf one level up (a superpage), 0 where none are made
    large: int


_I386 = _Walk(4, ((22, 10), (12, 10)), _TABLE, _LEAF | PG_G, PG_PS)
# The four PDPT entries of PAE allow neither PG_RW nor PG_A.
_PAE = _Walk(8, ((30, 2), (21, 9), (12, 9)), _TABLE, _LEAF | PG_G, PG_PS)
_AMD64 = _Walk(8, ((39, 9), (30, 9), (21, 9), (12, 9)), _TABLE, _LEAF | PG_G, PG_PS)
_LA57 = _AMD64._replace(levels=((48, 9), *_AMD64.levels))
_ARM64 = _Walk(
    8, ((39, 9), (30, 9), (21, 9), (12, 9)), DESCR_PAGE, ATTR_AF | ATTR_SH | DESCR_PAGE, 0
)


def build(space: Space, *, pae: bool = False, la57: bool = False, dmap: bool = False) -> Tables:
    """Page tables for all that ``space`` maps, written into its own pages.

    ``dmap`` maps the direct map too (full dumps; minidumps give its bounds in
    their header).
    """
    arch = space.map.arch
    if arch == "i386":
        walk = _PAE if pae else _I386
    elif arch == "amd64":
        walk = _LA57 if la57 else _AMD64
    else:
        walk = _ARM64
    builder = _Builder(space, walk)
    image_large = 1 << walk.levels[-2][0]
    image_shift = walk.levels[-2][0] - walk.levels[-1][0]
    low = space.map.image & -image_large
    for vpn, pfn in space.mapped():
        address = vpn * PAGE_SIZE
        if walk.large and low <= address < low + image_large and not space.map.image % image_large:
            base = pfn - (vpn & ((1 << image_shift) - 1))
            builder.enter(address & -image_large, base * PAGE_SIZE, len(walk.levels) - 1)
        else:
            builder.enter(address, pfn * PAGE_SIZE, len(walk.levels))
    if dmap and space.map.dmap[1]:
        # 1 GB pages, as pmap_bootstrap() uses where the processor has them.
        step = 1 << 30
        depth = len(walk.levels) - 2
        for pa in range(0, space.map.ram[1], step):
            builder.enter(space.map.dmap[0] + pa, pa, depth)
    if arch == "i386" and not pae and space.map.kernbase == 0xC0000000:
        # PTDPTDI: the directory maps itself, which is how the kernel sees its tables.
        builder.put(builder.root, 0x2FF, builder.root * PAGE_SIZE | _TABLE)
    if arch == "amd64":
        # PML4PML4I, likewise.
        builder.put(builder.root, 0x100, builder.root * PAGE_SIZE | _TABLE)
    return Tables(
        builder.root * PAGE_SIZE, walk.width, len(walk.levels), builder.directory * PAGE_SIZE
    )


class _Builder:
    def __init__(self, space: Space, walk: _Walk) -> None:
        self.space = space
        self.walk = walk
        self.pack = struct.Struct("<I" if walk.width == 4 else "<Q")
        self._tables: Dict[Tuple[int, int], int] = {}
        self.root = self._new()
        self.directory = self.root
        if walk is _PAE:
            # NPGPTD: the four page directories lie in a row, each has its pointer.
            self.directory = space.claim(4)
            for index in range(4):
                space.page(self.directory + index)
                self._tables[0, index] = self.directory + index
                self.put(self.root, index, (self.directory + index) * PAGE_SIZE | PG_V)

    def _new(self) -> int:
        pfn = self.space.claim()
        self.space.page(pfn)
        return pfn

    def put(self, table: int, index: int, entry: int) -> None:
        self.pack.pack_into(self.space.page(table), index * self.walk.width, entry)

    def enter(self, address: int, pa: int, depth: int) -> None:
        """Map ``address`` by an entry at the ``depth``-th level from the root."""
        walk = self.walk
        table: int = self.root
        for level in range(depth - 1):
            shift = walk.levels[level][0]
            key = (level, address >> shift)
            found: Optional[int] = self._tables.get(key)
            if found is None:
                found = self._tables[key] = self._new()
                self.put(table, self._index(address, level), found * PAGE_SIZE | walk.table)
            table = found
        flags = walk.leaf | (walk.large if depth < len(walk.levels) else 0)
        self.put(table, self._index(address, depth - 1), pa | flags)

    def _index(self, address: int, level: int) -> int:
        shift, bits = self.walk.levels[level]
        return address >> shift & (1 << bits) - 1


def entry(space: Space, tables: Tables, address: int, level: int) -> int:
    """The entry for ``address`` at ``level`` (0 is the root's), 0 where there is none."""
    arch = space.map.arch
    if arch == "i386":
        walk = _PAE if tables.width == 8 else _I386
    else:
        walk = (_LA57 if tables.levels == 5 else _AMD64) if arch == "amd64" else _ARM64
    pack = struct.Struct("<I" if walk.width == 4 else "<Q")
    table = tables.root // PAGE_SIZE
    value: int = 0
    for at in range(level + 1):
        shift, bits = walk.levels[at]
        index = address >> shift & (1 << bits) - 1
        value = pack.unpack_from(space.page(table), index * walk.width)[0]
        if not value & PG_V:
            return 0
        if at < level:
            if value & PG_PS and arch != "arm64":
                return value
            table = (
                value & 0x000FFFFFFFFFF000 if walk.width == 8 else value & 0xFFFFF000
            ) // PAGE_SIZE
    return value
