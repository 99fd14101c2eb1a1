"""Kernel virtual addresses to physical ones: the walks that several architectures share."""

from __future__ import annotations

from itertools import islice
from typing import Callable, Dict, Iterable, Literal, Optional, Protocol, Tuple

from plugin.errors import DumpError, KernelMismatch
from plugin.symbol import Symbol

#: PTEs or page-table pages kept: 4 KB each, 16 MB at the most
_MOST_TABLES = 4096
#: kernels are loaded at multiples of this; places tried: 2 TB of memory
_LOADED, _MOST_PLACES = 1 << 21, 1 << 20

_Code = Literal["Q", "I"]

#: reads an aligned page of physical memory, None where the dump has it not
ReadPage = Callable[[int], Optional[bytes]]


class AddressSpace(Protocol):
    """A kernel's address space."""

    def translate(self, va: int) -> int:
        """The physical address, -1 where nothing is mapped."""
        ...

    def extent(self, va: int, limit: int) -> Tuple[int, int]:
        """(physical address, length) mapped contiguously from ``va`` on, at most ``limit``.

        (-1, length) for a stretch where nothing is mapped.
        """
        ...


class Words:
    """An array of page-table entries in the file, read in pieces when first used."""

    _PIECE = 4096

    def __init__(self, read: Callable[[int, int], bytes], size: int, width: int) -> None:
        self._read = read
        self._size = size
        self._code: _Code = "Q" if width == 8 else "I"
        self._shift = 9 if width == 8 else 10
        self._low = (1 << self._shift) - 1
        self.count = size // width
        self._pieces: Dict[int, memoryview] = {}

    def __getitem__(self, index: int) -> int:
        piece = self._pieces.get(index >> self._shift)
        if piece is None:
            piece = self._load(index >> self._shift)
        return piece[index & self._low]

    def _load(self, number: int) -> memoryview:
        if len(self._pieces) >= _MOST_TABLES:
            self._pieces.clear()
        at = number * self._PIECE
        data = self._read(at, min(self._PIECE, self._size - at))
        # Past the end of a truncated dump nothing is mapped.
        piece = memoryview(data.ljust(self._PIECE, b"\0")).cast(self._code)
        self._pieces[number] = piece
        return piece


class DirectMap:
    """The range of addresses that map physical memory one to one; empty where there is none."""

    __slots__ = ("base", "end", "physical")

    def __init__(self, base: int = 0, end: int = 0, physical: int = 0) -> None:
        self.base = base
        self.end = max(base, end)
        self.physical = physical


class LinearSpace:
    """A space whose dump holds one entry for each page from ``kernbase`` on.

    ``decode`` gives the physical address of the page in an entry, -1 of an
    invalid one.  The direct map is looked at first: on arm64 and riscv64 it
    may lie above kernbase.
    """

    def __init__(
        self,
        entries: Words,
        kernbase: int,
        page_shift: int,
        decode: Callable[[int], int],
        dmap: DirectMap,
    ) -> None:
        self._entries = entries
        self._kernbase = kernbase
        self._shift = page_shift
        self._mask = (1 << page_shift) - 1
        self._decode = decode
        self._end = kernbase + (entries.count << page_shift)
        self._dmap = dmap

    def translate(self, va: int) -> int:
        dmap = self._dmap
        if dmap.base <= va < dmap.end:
            return va - dmap.base + dmap.physical
        if not self._kernbase <= va < self._end:
            return -1
        page = self._decode(self._entries[(va - self._kernbase) >> self._shift])
        return page + (va & self._mask) if page >= 0 else -1

    def extent(self, va: int, limit: int) -> Tuple[int, int]:
        dmap = self._dmap
        if dmap.base <= va < dmap.end:
            return va - dmap.base + dmap.physical, min(limit, dmap.end - va)
        end = va + limit
        for border in (dmap.base, self._kernbase, self._end):
            if va < border:
                end = min(end, border)
        if not self._kernbase <= va < self._end:
            return -1, end - va
        index = (va - self._kernbase) >> self._shift
        first = self._decode(self._entries[index])
        size = self._mask + 1
        at = (va | self._mask) + 1
        expected = first
        while at < end:
            index += 1
            if first >= 0:
                expected += size
            if self._decode(self._entries[index]) != expected:
                break
            at += size
        return (first + (va & self._mask) if first >= 0 else -1), min(at, end) - va


#: what a leaf table's stretch of addresses holds: a table of entries, or else one
#: large page from the physical address given, or -1 for nothing
Leaf = Tuple[Optional[memoryview], int]

NOTHING: Leaf = (None, -1)


class TableSpace:
    """A space walked through x86 page tables; subclasses find the leaf tables.

    ``leaf_shift`` is the number of address bits that one leaf table spans:
    21 with 8-byte entries, 22 with 4-byte ones (sys/amd64/include/pmap.h,
    sys/i386/include/pmap_pae.h, pmap_nopae.h).
    """

    PG_V = 0x001
    PG_PS = 0x080
    PAGE_SHIFT = 12

    def __init__(self, read_page: ReadPage, width: int, leaf_shift: int, dmap: DirectMap) -> None:
        self._read_page = read_page
        self._code: _Code = "Q" if width == 8 else "I"
        self._leaf_shift = leaf_shift
        self._leaf_mask = (1 << leaf_shift) - 1
        self._index_mask = (1 << (leaf_shift - self.PAGE_SHIFT)) - 1
        #: bits 51:12 of an entry; of a 4-byte one all that it has
        self._frame = 0x000FFFFFFFFFF000 if width == 8 else 0xFFFFF000
        self._dmap = dmap
        self._leaves: Dict[int, Leaf] = {}
        self._tables: Dict[int, Optional[memoryview]] = {}

    def _find_leaf(self, va: int) -> Leaf:
        raise NotImplementedError

    def _leaf(self, va: int) -> Leaf:
        if len(self._leaves) >= _MOST_TABLES:
            self._leaves.clear()
        leaf = self._leaves[va >> self._leaf_shift] = self._find_leaf(va)
        return leaf

    def _table(self, entry: int) -> Optional[memoryview]:
        """The page-table page that an entry points to, None where the dump lacks it."""
        pa = entry & self._frame
        try:
            return self._tables[pa]
        except KeyError:
            pass
        if len(self._tables) >= _MOST_TABLES:
            self._tables.clear()
        data = self._read_page(pa)
        table = memoryview(data).cast(self._code) if data is not None else None
        self._tables[pa] = table
        return table

    def _leaf_of(self, entry: int) -> Leaf:
        """The leaf for the entry of a page directory."""
        if not entry & self.PG_V:
            return NOTHING
        if entry & self.PG_PS:
            return None, entry & self._frame & ~self._leaf_mask
        return self._table(entry), -1

    def translate(self, va: int) -> int:
        dmap = self._dmap
        if dmap.base <= va < dmap.end:
            return va - dmap.base + dmap.physical
        leaf = self._leaves.get(va >> self._leaf_shift)
        if leaf is None:
            leaf = self._leaf(va)
        table, large = leaf
        if table is not None:
            entry = table[va >> 12 & self._index_mask]
            return (entry & self._frame) + (va & 0xFFF) if entry & 1 else -1
        return large + (va & self._leaf_mask) if large >= 0 else -1

    def extent(self, va: int, limit: int) -> Tuple[int, int]:
        dmap = self._dmap
        if dmap.base <= va < dmap.end:
            return va - dmap.base + dmap.physical, min(limit, dmap.end - va)
        end = va + limit
        if va < dmap.base:
            end = min(end, dmap.base)
        pa, at = self._stretch(va, end)
        # Neighbouring leaves often go on where one ends.
        while at < end:
            following, stop = self._stretch(at, end)
            if following != (pa + (at - va) if pa >= 0 else -1):
                break
            at = stop
        return pa, at - va

    def _stretch(self, va: int, end: int) -> Tuple[int, int]:
        """(physical address or -1, end) of what is alike from ``va`` on within one leaf."""
        end = min(end, (va | self._leaf_mask) + 1)
        leaf = self._leaves.get(va >> self._leaf_shift)
        if leaf is None:
            leaf = self._leaf(va)
        table, large = leaf
        if table is None:
            return (large + (va & self._leaf_mask) if large >= 0 else -1), end
        index = va >> 12 & self._index_mask
        frame = self._frame
        entry = table[index]
        valid = entry & 1
        expected = entry & frame
        pa = expected + (va & 0xFFF) if valid else -1
        at = (va | 0xFFF) + 1
        while at < end:
            index += 1
            entry = table[index]
            if valid:
                expected += 0x1000
                if not entry & 1 or entry & frame != expected:
                    break
            elif entry & 1:
                break
            at += 0x1000
        return pa, min(at, end)


class WalkedSpace(TableSpace):
    """A space walked from its root, as for a full dump.

    ``shifts`` are the address bits below each upper level's index, the root's
    first; ``bits`` the width of a virtual address.
    """

    def __init__(
        self,
        read_page: ReadPage,
        root: int,
        shifts: Tuple[int, ...],
        *,
        width: int = 8,
        bits: int = 48,
        sign_extended: bool = True,
    ) -> None:
        super().__init__(read_page, width, shifts[-1], DirectMap())
        self._root = root
        self._shifts = shifts
        self._bits = bits
        self._sign_extended = sign_extended
        self._entries = 4096 // width - 1

    def _find_leaf(self, va: int) -> Leaf:
        high = va >> (self._bits - 1)
        if self._sign_extended:
            if high not in (0, (1 << (65 - self._bits)) - 1):
                return NOTHING
        elif va >> self._bits:
            return NOTHING
        table = self._table(self._root)
        for shift in self._shifts[:-1]:
            if table is None:
                return NOTHING
            entry = table[va >> shift & self._entries]
            if not entry & self.PG_V:
                return NOTHING
            if entry & self.PG_PS and shift == 30:
                page = entry & self._frame & ~((1 << shift) - 1)
                return None, page + (va & ((1 << shift) - 1) & ~self._leaf_mask)
            table = self._table(entry)
        if table is None:
            return NOTHING
        return self._leaf_of(table[va >> self._leaf_shift & self._entries])


#: of an entry at a level (0 the root's): "table", "page" or "" for an invalid one, and its
#: physical address
Decode = Callable[[int, int], Tuple[str, int]]


class RadixSpace:
    """A space of 4 KB tables of 512 entries each, whose entries ``decode`` explains.

    ``shifts`` are the address bits below each level's index, the root's first; ``base`` is
    the lowest address that the root is asked for.
    """

    def __init__(
        self, read_page: ReadPage, root: int, shifts: Tuple[int, ...], base: int, decode: Decode
    ) -> None:
        self._read_page = read_page
        self._root = root
        self._shifts = shifts
        self._base = base
        self._decode = decode
        self._tables: Dict[int, Optional[memoryview]] = {}

    def _table(self, pa: int) -> Optional[memoryview]:
        if pa not in self._tables:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            data = self._read_page(pa)
            self._tables[pa] = memoryview(data).cast("Q") if data is not None else None
        return self._tables[pa]

    def _entry(self, va: int) -> Tuple[int, int]:
        """(physical address of the page or -1, bytes that are mapped or not alike)."""
        if not self._base <= va < 1 << 64:
            return -1, 1 << self._shifts[-1]
        pa = self._root
        for level, shift in enumerate(self._shifts):
            table = self._table(pa)
            if table is None:
                return -1, 1 << shift
            kind, pa = self._decode(table[va >> shift & 511], level)
            if kind != "table":
                return (pa & -(1 << shift) if kind else -1), 1 << shift
        return -1, 1 << self._shifts[-1]

    def translate(self, va: int) -> int:
        page, size = self._entry(va)
        return page + (va & (size - 1)) if page >= 0 else -1

    def extent(self, va: int, limit: int) -> Tuple[int, int]:
        page, size = self._entry(va)
        first = page + (va & (size - 1)) if page >= 0 else -1
        at, end = (va & -size) + size, va + limit
        while at < end:
            page, size = self._entry(at)
            following = page + (at & (size - 1)) if page >= 0 else -1
            if following != (first + (at - va) if first >= 0 else -1):
                break
            at = (at & -size) + size
        return first, min(at, end) - va


def _upper(shifts: Tuple[int, ...]) -> int:
    """The lowest of the addresses whose upper bits are all set: the kernel's.

    With two roots (arm64) all that one maps, with one (riscv64) the upper half of it.
    """
    bits = shifts[0] + 9 - (len(shifts) == 3)
    return (1 << 64) - (1 << bits)


class Named(Protocol):
    """A kernel file, as far as its symbols."""

    path: str

    def symbol(self, name: str) -> Optional[Symbol]: ...


def named_space(
    kernel: Named,
    ranges: Iterable[Tuple[int, int]],
    read: Callable[[int, int], Optional[bytes]],
    name: str,
    kernbase: int,
    shifts: Tuple[int, ...],
    decode: Decode,
) -> RadixSpace:
    """The space whose root table is the kernel's variable ``name``, wherever it was loaded.

    A kernel lies in one piece from ``kernbase`` on, at a multiple of 2 MB; the tables that its
    root leads to have to map the root where it was taken to be.  KernelMismatch where no place
    proves itself, DumpError without the symbol.
    """
    root = kernel.symbol(name)
    if root is None:
        raise DumpError(f"{kernel.path} has no symbol {name}, by which page tables are found")
    own = kernel.symbol("kernbase")
    base = own.address if own is not None else kernbase
    places = (
        place for start, end in ranges for place in range(start // _LOADED * _LOADED, end, _LOADED)
    )
    for place in islice(places, _MOST_PLACES):
        pa = root.address - base + place
        space = RadixSpace(lambda pa: read(pa, 4096), pa, shifts, _upper(shifts), decode)
        if space.translate(root.address) == pa:
            return space
    raise KernelMismatch(
        f"no page tables found through {name} of {kernel.path}: it is not the kernel that ran "
        "there, or its pages or tables are of another kind"
    )
