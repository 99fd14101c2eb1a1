"""Address spaces against a plain list of what is mapped: every address, every stretch."""

from __future__ import annotations

import random
import struct
from typing import Any, Dict, List, Optional, Tuple

import pytest

from plugin.arch import space
from plugin.arch.space import DirectMap, LinearSpace, RadixSpace, WalkedSpace, Words

PAGE = 4096
#: {page's virtual address: physical address}
Mapping = Dict[int, int]


def truth(mapping: Mapping, va: int, limit: int) -> Tuple[int, int]:
    """What extent() has to give, page by page."""
    first = mapping.get(va & ~0xFFF, -1)
    end = va + limit
    at = (va | 0xFFF) + 1
    while at < end:
        wanted = first + at - (va & ~0xFFF) if first >= 0 else -1
        if mapping.get(at, -1) != wanted:
            break
        at += PAGE
    return (first + (va & 0xFFF) if first >= 0 else -1), min(at, end) - va


def check(
    found: space.AddressSpace, mapping: Mapping, low: int, high: int, whole: bool = False
) -> None:
    """Every border there is, and stretches by chance, between two addresses.

    ``whole``: each stretch is given in one, as long as it is.
    """
    asked = (lambda va, limit: found.extent(va, limit)) if whole else None
    chance = random.Random(low)
    borders = sorted({low, *mapping, *(page + PAGE for page in mapping)})
    places = [at + near for at in borders for near in (-1, 0, 1, 4095)]
    places += [chance.randrange(low, high) for _ in range(100)]
    for va in places:
        if not low <= va < high:
            continue
        page = mapping.get(va & ~0xFFF, -1)
        assert found.translate(va) == (page + (va & 0xFFF) if page >= 0 else -1), hex(va)
        for limit in (1, 100, PAGE, 3 * PAGE, 40 * PAGE, 1 << 23):
            limit = min(limit, high - va)
            got = asked(va, limit) if asked else stretched(found, va, limit)
            assert got == truth(mapping, va, limit), (hex(va), limit)


def stretched(found: space.AddressSpace, va: int, limit: int) -> Tuple[int, int]:
    """extent(), which may stop early, asked until what it gives is another stretch."""
    pa, length = found.extent(va, limit)
    assert 1 <= length <= limit
    while length < limit:
        following, more = found.extent(va + length, limit - length)
        if following != (pa + length if pa >= 0 else -1):
            break
        length += more
    return pa, length


# Arrays of entries


def test_an_entry_is_read_once_and_past_the_end_nothing_is_mapped() -> None:
    data = struct.pack("<1030Q", *range(1, 1031))
    asked: List[Tuple[int, int]] = []

    def read(at: int, size: int) -> bytes:
        asked.append((at, size))
        return data[at : at + size]

    words = Words(read, len(data), 8)
    assert words.count == 1030
    assert [words[n] for n in (0, 511, 512, 1029)] == [1, 512, 513, 1030]
    assert words[1030] == words[1535] == 0
    assert asked == [(0, 4096), (4096, 4096), (8192, 48)]


def test_entries_of_four_bytes_are_four_bytes() -> None:
    data = struct.pack("<2000I", *range(2000))
    words = Words(lambda at, size: data[at : at + size], len(data), 4)
    assert words.count == 2000
    assert [words[n] for n in (0, 1023, 1024, 1999)] == [0, 1023, 1024, 1999]


def test_no_more_tables_are_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "_MOST_TABLES", 2)
    data = struct.pack("<2048Q", *range(2048))
    words = Words(lambda at, size: data[at : at + size], len(data), 8)
    assert [words[n] for n in (0, 600, 1200, 1800, 0)] == [0, 600, 1200, 1800, 0]
    assert len(words._pieces) <= 2


# A linear space


KERNBASE = 0xFFFFFFFF80000000


def linear(pages: List[int], dmap: Optional[DirectMap] = None) -> Tuple[LinearSpace, Mapping]:
    """A space of those physical pages, -1 for none, from KERNBASE on."""
    data = b"".join(struct.pack("<Q", page | 1 if page >= 0 else 0) for page in pages)
    words = Words(lambda at, size: data[at : at + size], len(data), 8)

    def decode(entry: int) -> int:
        return entry & ~0xFFF if entry & 1 else -1

    found = LinearSpace(words, KERNBASE, 12, decode, dmap or DirectMap())
    return found, {KERNBASE + n * PAGE: page for n, page in enumerate(pages) if page >= 0}


def test_a_linear_space_maps_what_its_entries_say() -> None:
    pages = [0x5000, 0x6000, -1, -1, 0x7000, 0x8000, 0x9000, 0x2000, -1, 0]
    found, mapping = linear(pages)
    check(found, mapping, KERNBASE - 5 * PAGE, KERNBASE + 20 * PAGE)
    check(found, mapping, KERNBASE, KERNBASE + 10 * PAGE, whole=True)
    assert found.translate(KERNBASE + 10 * PAGE) == -1
    assert found.extent(KERNBASE + 10 * PAGE, 5) == (-1, 5)
    assert found.extent(KERNBASE - PAGE, 5 * PAGE) == (-1, PAGE)


@pytest.mark.parametrize("base", [KERNBASE - 64 * PAGE, KERNBASE + 64 * PAGE])
def test_the_direct_map_is_one_stretch_wherever_it_lies(base: int) -> None:
    dmap = DirectMap(base, base + 5 * PAGE, 0x40000)
    found, mapping = linear([0x5000, -1, 0x6000], dmap)
    mapping.update({base + n * PAGE: 0x40000 + n * PAGE for n in range(5)})
    check(found, mapping, base - 5 * PAGE, base + 10 * PAGE)
    check(found, mapping, KERNBASE - 5 * PAGE, KERNBASE + 10 * PAGE)
    assert found.extent(base, 1 << 30) == (0x40000, 5 * PAGE)
    assert found.extent(base + 1, 2) == (0x40001, 2)
    assert found.translate(base + 5 * PAGE) == found.translate(base - 1) == -1


def test_a_direct_map_that_ends_before_it_begins_is_empty() -> None:
    dmap = DirectMap(0x9000, 0x5000, 1)
    assert (dmap.base, dmap.end) == (0x9000, 0x9000)
    found, _ = linear([0x5000], dmap)
    assert found.translate(0x9000) == found.translate(0x6000) == -1


# Walked spaces


def radix_entry(entry: int, level: int) -> Tuple[str, int]:
    """x86's entries, as a RadixSpace asks for them."""
    if not entry & 1:
        return "", 0
    leaf = level == 3 or entry & 0x80
    return ("page" if leaf else "table"), entry & ~0xFFF


class Tables:
    """Page tables written entry by entry, as the kernel would."""

    def __init__(
        self, shifts: Tuple[int, ...], width: int, bits: int, extended: bool, radix: bool = False
    ) -> None:
        self.shifts = shifts
        self.width = width
        self.pages: Dict[int, bytearray] = {0x100000: bytearray(PAGE)}
        self.next = 0x101000
        self.index = PAGE // width - 1
        self.mapping: Mapping = {}
        self.space: Any = WalkedSpace(
            self.read, 0x100000, shifts, width=width, bits=bits, sign_extended=extended
        )
        if radix:
            low = (1 << 64) - (1 << 47)
            self.space = RadixSpace(self.read, 0x100000, (*shifts, 12), low, radix_entry)

    def read(self, pa: int) -> Optional[bytes]:
        page = self.pages.get(pa)
        return bytes(page) if page is not None else None

    def _place(self, va: int, level: int) -> Tuple[bytearray, int]:
        """The table of that level for an address, and where in it its entry lies."""
        table = self.pages[0x100000]
        for shift in self.shifts[:level]:
            at = (va >> shift & self.index) * self.width
            entry = int.from_bytes(table[at : at + self.width], "little")
            if not entry & 1:
                entry = self.next | 1
                self.pages[self.next] = bytearray(PAGE)
                self.next += PAGE
                table[at : at + self.width] = entry.to_bytes(self.width, "little")
            table = self.pages[entry & ~0xFFF]
        shift = (*self.shifts, 12)[level]
        return table, (va >> shift & self.index) * self.width

    def set(self, va: int, level: int, entry: int) -> None:
        table, at = self._place(va, level)
        table[at : at + self.width] = entry.to_bytes(self.width, "little")

    def map(self, va: int, pa: int) -> None:
        self.set(va, len(self.shifts), pa | 1 | 0x60)
        self.mapping[va] = pa

    def large(self, va: int, pa: int, level: int) -> None:
        """A page as large as what an entry of that level spans."""
        shift = self.shifts[level]
        self.set(va, level, pa | 1 | 0x80)
        self.mapping.update({va + at: pa + at for at in range(0, min(1 << shift, 1 << 23), PAGE)})


def amd64() -> Tables:
    return Tables((39, 30, 21), 8, 48, True)


def radix() -> Tables:
    return Tables((39, 30, 21), 8, 48, True, True)


def i386() -> Tables:
    return Tables((22,), 4, 32, False)


@pytest.mark.parametrize(
    "make, base",
    [(amd64, 0xFFFFFE0000000000), (radix, 0xFFFFFE0000000000), (i386, 0xC0000000)],
)
def test_a_walk_finds_pages_and_holes_and_goes_on_from_one_table_to_the_next(
    make: Any, base: int
) -> None:
    tables: Tables = make()
    span = 1 << tables.shifts[-1]
    for number, pa in enumerate([0x5000, 0x6000, -1, -1, 0x7000, 0x8000, 0x3000]):
        if pa >= 0:
            tables.map(base + number * PAGE, pa)
    # the last pages of one table and the first of the next are one stretch
    for number in range(-3, 3):
        tables.map(base + span + number * PAGE, 0x800000 + number * PAGE)
    check(tables.space, tables.mapping, base - 3 * PAGE, base + span + 6 * PAGE, whole=True)


@pytest.mark.parametrize(
    "make, base, level",
    [(amd64, 0xFFFFFE0000000000, 2), (radix, 0xFFFFFE0000000000, 2), (i386, 0xC0000000, 0)],
)
def test_a_large_page_is_one_stretch_with_what_follows_it(make: Any, base: int, level: int) -> None:
    tables: Tables = make()
    span = 1 << tables.shifts[-1]
    tables.large(base + span, 4 * span, level)
    tables.map(base + 2 * span, 5 * span)
    tables.map(base + span - PAGE, 4 * span - PAGE)
    for border in (base + span, base + 2 * span):
        low, high = border - 3 * PAGE, border + 3 * PAGE
        check(tables.space, tables.mapping, low, high, whole=True)
    assert tables.space.extent(base + span - PAGE, 3 * span) == (4 * span - PAGE, span + 2 * PAGE)


@pytest.mark.parametrize("make", [amd64, radix])
def test_a_page_of_a_gigabyte_is_one_stretch(make: Any) -> None:
    tables: Tables = make()
    base, pa = 0xFFFFF80040000000, 0x80000000
    tables.large(base, pa, 1)
    space_ = tables.space
    for at in (0, 1, 0x1FFFFF, 0x200000, 0x3FFFFFFF):
        assert space_.translate(base + at) == pa + at
    assert space_.extent(base + 5, 0x3FFFFFFA) == (pa + 5, 0x3FFFFFFA)
    assert space_.translate(base - 1) == space_.translate(base + 0x40000000) == -1


def test_a_flag_in_an_upper_entry_of_the_root_is_no_large_page() -> None:
    tables = amd64()
    base = 0xFFFFFE0000000000
    tables.map(base, 0x5000)
    root = tables.pages[0x100000]
    root[(base >> 39 & 511) * 8] |= 0x80
    assert tables.space.translate(base) == 0x5000


@pytest.mark.parametrize("make", [amd64, radix])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_the_dump_lacks_of_the_tables_maps_nothing(level: int, make: Any) -> None:
    tables: Tables = make()
    base = 0xFFFFFE0000000000
    tables.map(base, 0x5000)
    del tables.pages[(0x101000, 0x102000, 0x103000)[level]]
    assert tables.space.translate(base) == -1
    assert tables.space.extent(base, PAGE) == (-1, PAGE)
    tables = make()
    tables.pages.clear()
    assert tables.space.translate(base) == -1


@pytest.mark.parametrize(
    "va, mapped",
    [
        (0x0000000000000000, True),
        (0x00007FFFFFFFF000, True),
        (0x0000800000000000, False),
        (0xFFFF7FFFFFFFF000, False),
        (0xFFFF800000000000, True),
        (0xFFFFFFFFFFFFF000, True),
        (0x1FFFF800000000000, False),
    ],
)
def test_an_address_that_is_not_canonical_is_nowhere(va: int, mapped: bool) -> None:
    tables = amd64()
    tables.map(va & 0xFFFFFFFFFFFF, 0x5000)
    assert (tables.space.translate(va) == 0x5000) == mapped


def test_an_address_past_the_32_bits_of_an_i386_is_nowhere() -> None:
    tables = i386()
    tables.map(0, 0x5000)
    tables.map(0xFFFFF000, 0x6000)
    assert [tables.space.translate(va) for va in (0, 0xFFFFF000)] == [0x5000, 0x6000]
    assert tables.space.translate(1 << 32) == -1


def test_bits_above_the_frame_are_no_address() -> None:
    tables = amd64()
    base = 0xFFFFFE0000000000
    tables.map(base, 0x5000)
    tables.set(base, 3, 1 << 63 | 0xFFF << 52 | 0x5000 | 1)
    assert tables.space.translate(base) == 0x5000


def test_a_space_forgets_tables_when_it_has_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "_MOST_TABLES", 2)
    tables = amd64()
    base = 0xFFFFFE0000000000
    places = [base + n * (1 << 21) for n in range(6)]
    for number, va in enumerate(places):
        tables.map(va, 0x5000 + number * PAGE)
    for number, va in [*enumerate(places), *enumerate(places)]:
        assert tables.space.translate(va) == 0x5000 + number * PAGE
        assert len(tables.space._leaves) <= 2 and len(tables.space._tables) <= 2


def test_a_radix_space_is_the_kernel_s_half_alone_and_forgets_tables_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(space, "_MOST_TABLES", 2)
    tables = radix()
    low = (1 << 64) - (1 << 47)
    tables.map(low, 0x5000)
    tables.map((1 << 64) - PAGE, 0x6000)
    for _ in range(2):
        assert tables.space.translate(low + 7) == 0x5007
        assert tables.space.translate((1 << 64) - 1) == 0x6FFF
        assert len(tables.space._tables) <= 2
    assert tables.space.translate(low - PAGE) == tables.space.translate(1 << 64) == -1
    assert tables.space.extent(low - PAGE, 2 * PAGE) == (-1, PAGE)


@pytest.mark.parametrize("make", [amd64, radix])
def test_a_table_is_read_once(make: Any) -> None:
    tables: Tables = make()
    base = 0xFFFFFE0000000000
    tables.map(base, 0x5000)
    asked: List[int] = []
    tables.space._read_page = lambda pa: (asked.append(pa), tables.read(pa))[1]  # type: ignore[func-returns-value]
    for _ in range(3):
        assert tables.space.translate(base) == 0x5000
    assert sorted(asked) == [0x100000, 0x101000, 0x102000, 0x103000]
