"""Physical memory in a dump: which pages there are, and where in the file.

A minidump has a bitmap of its pages and then the pages, in the bitmap's order:
the n-th bit set is the n-th page.  Finding a page is counting the bits before
it, which an index of partial sums makes short.  A full dump lists its segments.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Iterable, Iterator, List, Optional, Protocol, Sequence, Tuple

_HAS_BIT_COUNT = hasattr(int, "bit_count")
#: bytes of bitmap between two entries of the rank index: few where counting is cheap
_BLOCK = 512 if _HAS_BIT_COUNT else 2048
_BLOCK_SHIFT = _BLOCK.bit_length() + 2
#: pages looked at together when a run is measured
_WINDOW = 4096

#: the number of bits set in each byte
_BITS = bytes(bin(byte).count("1") for byte in range(256))
_EVEN_BYTES = int.from_bytes(b"\xff\0" * (_BLOCK // 2), "little")


def _count(data: bytes) -> int:
    """The number of bits set in at most one block."""
    return int.from_bytes(data, "little").bit_count()


def _count_by_lanes(data: bytes) -> int:
    """The same where int.bit_count is missing (Python 3.9).

    The bits of each byte are looked up and neighbouring bytes added to numbers
    of 16 bits; the remainder modulo 2**16 - 1 is their sum, at most 8 * _BLOCK.
    """
    counts = int.from_bytes(data.translate(_BITS), "little")
    return ((counts & _EVEN_BYTES) + (counts >> 8 & _EVEN_BYTES)) % 0xFFFF


if not _HAS_BIT_COUNT:
    _count = _count_by_lanes


class Physical(Protocol):
    """Where the bytes of physical memory lie in the file."""

    #: bytes of memory that the file holds
    present: int

    def offset(self, pa: int) -> int:
        """File offset of the byte at ``pa``, -1 where it is not in the file."""
        ...

    def extent(self, pa: int, limit: int) -> Tuple[int, int]:
        """(file offset, length) of what lies contiguously in the file from ``pa`` on.

        (-1, length) for a stretch that is not in the file.  ``length`` is at
        least 1 and at most ``limit``.
        """
        ...

    def ranges(self) -> Iterator[Tuple[int, int]]:
        """(start, end) of the physical memory described, present or not."""
        ...


class BitmapMemory:
    """The pages of a minidump.

    ``dump_avail`` gives the physical ranges that the bitmap's bits run over,
    one after the other; where a dump has none, bit n is physical page n.
    ``base`` is the file offset of the first page, ``end`` that of the file's end.
    """

    def __init__(
        self,
        bitmap: bytes,
        page_size: int,
        base: int,
        end: int,
        dump_avail: Optional[Sequence[Tuple[int, int]]] = None,
    ) -> None:
        self._bitmap = bitmap
        self._base = base
        self._page_size = page_size
        self._shift = page_size.bit_length() - 1
        self._mask = page_size - 1
        counts = (_count(bitmap[at : at + _BLOCK]) for at in range(0, len(bitmap), _BLOCK))
        self._ranks: List[int] = list(accumulate(counts, initial=0))
        #: pages that the bitmap announces
        self.pages = self._ranks[-1]
        #: bytes of pages in the file; the last page may have been cut
        self.present = max(0, min(self.pages << self._shift, end - base))
        self._starts: List[int] = []
        self._ends: List[int] = []
        #: added to a page's number for the number of its bit
        self._shifts: List[int] = []
        if dump_avail is None:
            dump_avail = [(0, len(bitmap) * 8 << self._shift)]
        self._set_ranges(dump_avail)

    def _set_ranges(self, ranges: Iterable[Tuple[int, int]]) -> None:
        bit = 0
        for start, end in ranges:
            first, last = start >> self._shift, (end + self._mask) >> self._shift
            if self._ends and start < self._ends[-1]:
                # Out of order: no kernel writes that, and bisecting needs order.
                break
            self._starts.append(first << self._shift)
            self._ends.append(last << self._shift)
            self._shifts.append(bit - first)
            bit += last - first

    def offset(self, pa: int) -> int:
        place = bisect_right(self._starts, pa) - 1
        if place < 0 or pa >= self._ends[place]:
            return -1
        bit = (pa >> self._shift) + self._shifts[place]
        byte = bit >> 3
        bitmap = self._bitmap
        if byte >= len(bitmap):
            return -1
        here = bitmap[byte]
        if not here >> (bit & 7) & 1:
            return -1
        place = (self._rank(bit) << self._shift) + (pa & self._mask)
        return self._base + place if place < self.present else -1

    def _rank(self, bit: int) -> int:
        """Pages in the file before the one of ``bit``."""
        block = bit >> _BLOCK_SHIFT
        byte = bit >> 3
        before = _count(self._bitmap[block * _BLOCK : byte])
        last = self._bitmap[byte] & ((1 << (bit & 7)) - 1)
        return self._ranks[block] + before + _BITS[last]

    def extent(self, pa: int, limit: int) -> Tuple[int, int]:
        place = bisect_right(self._starts, pa) - 1
        if place < 0 or pa >= self._ends[place]:
            following = place + 1
            gap = self._starts[following] - pa if following < len(self._starts) else limit
            return -1, max(1, min(limit, gap))
        limit = min(limit, self._ends[place] - pa)
        inside = pa & self._mask
        bit = (pa >> self._shift) + self._shifts[place]
        wanted = (inside + limit + self._mask) >> self._shift
        found, same = self._same(bit, wanted)
        length = min(limit, (same << self._shift) - inside)
        if not found:
            return -1, length
        offset = (self._rank(bit) << self._shift) + inside
        if offset >= self.present:
            return -1, length
        return self._base + offset, min(length, self.present - offset)

    def _same(self, bit: int, wanted: int) -> Tuple[bool, int]:
        """(is ``bit`` set, how many bits from it on are like it), at most ``wanted``."""
        value = -1
        count = 0
        while count < wanted:
            at = bit + count
            width = min(wanted - count, _WINDOW)
            window = self._bitmap[at >> 3 : (at + width + 7) >> 3]
            bits = int.from_bytes(window, "little") >> (at & 7) & ((1 << width) - 1)
            if value < 0:
                value = bits & 1
            other = bits ^ ((1 << width) - 1) if value else bits
            if other:
                return bool(value), count + (other & -other).bit_length() - 1
            count += width
        return bool(value), max(count, 1)

    def ranges(self) -> Iterator[Tuple[int, int]]:
        return iter(zip(self._starts, self._ends))


class SegmentMemory:
    """The memory of a full dump: (physical address, size, file offset) of each segment.

    Kernels write whole pages; what a segment holds of others is left out.
    """

    def __init__(
        self, segments: Iterable[Tuple[int, int, int]], end: int, page_size: int = 4096
    ) -> None:
        mask = page_size - 1
        self._starts: List[int] = []
        self._ends: List[int] = []
        self._offsets: List[int] = []
        self.present = 0
        #: bytes that the headers announce
        self.announced = 0
        for pa, size, offset in sorted(segments):
            skip = -pa & mask
            pa, offset = pa + skip, offset + skip
            size = (size - skip) & ~mask
            if size <= 0 or (self._ends and pa < self._ends[-1]):
                continue
            self.announced += size
            size = min(size, end - offset)
            if size > 0:
                self._starts.append(pa)
                self._ends.append(pa + size)
                self._offsets.append(offset)
                self.present += size

    def offset(self, pa: int) -> int:
        place = bisect_right(self._starts, pa) - 1
        if place < 0 or pa >= self._ends[place]:
            return -1
        return pa - self._starts[place] + self._offsets[place]

    def extent(self, pa: int, limit: int) -> Tuple[int, int]:
        place = bisect_right(self._starts, pa) - 1
        if place >= 0 and pa < self._ends[place]:
            return self.offset(pa), min(limit, self._ends[place] - pa)
        following = place + 1
        gap = self._starts[following] - pa if following < len(self._starts) else limit
        return -1, max(1, min(limit, gap))

    def ranges(self) -> Iterator[Tuple[int, int]]:
        return iter(zip(self._starts, self._ends))
