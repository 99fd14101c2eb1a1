"""Members of many struct vm_page at once: a piece of the page array, column by column.

For ``vm_page_scan``.  A member is taken out of all structs of a piece together: with
numpy where it is there (``Numpy``), else as slices of bytes that are compared and
counted without a loop in Python (``Plain``).  Both give the same result.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from itertools import compress
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from plugin.kernel.vm_page import EXCLUSIVE, FREED, SHARED, UNBUSIED, decoder, encoding
from plugin.kernel.vm_phys import nfreeorder
from plugin.session import Kernel

#: in the counts by state only: structs that nothing has filled in yet, all zero
UNINITIALISED = "uninitialised"
#: states by the byte that stands for them in a piece
STATES = (UNBUSIED, EXCLUSIVE, SHARED, FREED, UNINITIALISED)
FREE_STATE, ZERO_STATE = 3, 4


class Members:
    """Offsets and sizes of the members that the scan looks at."""

    def __init__(self, kernel: Kernel) -> None:
        layouts = kernel.layouts
        reader = decoder(kernel)

        def member(path: str) -> Tuple[int, int]:
            found = layouts.resolve("vm_page", path)
            return found.offset, found.size

        def optional(path: str) -> Optional[Tuple[int, int]]:
            return member(path) if layouts.has("vm_page", path) else None

        self.size = layouts.sizeof("vm_page")
        self.pointer_size = kernel.pointer_size
        self.object = member("object")
        self.phys_addr = member("phys_addr")
        self.dirty = member("dirty")
        self.queue = member(reader.queue_path)
        self.color = optional("pc")
        self.queues = reader.queues
        self.aflags = optional(reader.aflags_path) if reader.aflags_path else None
        self.enqueued = reader.enqueued_flag
        self.busy_lock = optional("busy_lock")
        self.flags = member("flags")
        way = encoding(kernel)
        self.held = member(way.member)
        self.count = optional("busy")
        self.exclusive = way.exclusive
        self.has_freed = way.freed is not None
        self.order = optional("order")
        self.nfree = nfreeorder(kernel)
        self.cached = layouts.constant("PG_CACHED", 0)
        self.slab = layouts.constant("PG_SLAB", 0)
        if layouts.has("vm_page", "ref_count"):
            self.wires, self.wire_mask = member("ref_count"), 0x3FFFFFFF
        else:
            self.wires, self.wire_mask = member("wire_count"), 0xFFFFFFFF


def _table(give: Callable[[int], int]) -> bytes:
    """A translation of every byte value."""
    return bytes(give(value) for value in range(256))


@lru_cache(maxsize=1024)
def _same(value: int, care: int) -> bytes:
    """1 for the byte values that agree with ``value`` in the bits of ``care``."""
    return _table(lambda byte: int(byte & care == value & care))


@lru_cache(maxsize=256)
def _some(care: int) -> bytes:
    """1 for the byte values with any bit of ``care``."""
    return _table(lambda byte: int(bool(byte & care)))


def _low_byte_state(value: int) -> int:
    """State by the lowest byte of busy_lock, as if the others said nothing else."""
    if value == 0xFE:
        return FREE_STATE
    if value & 2:
        return 1
    if value == 0:
        return ZERO_STATE
    return 2 if value & 1 and value >> 3 else 0


_LOW = _table(_low_byte_state)
_NONZERO = _some(0xFF)
_ALL_ONES = _same(0xFF, 0xFF)


class Piece:
    """A piece of the page array: planes of single bytes, and out of them each page's state."""

    def __init__(self, data: bytes, members: Members) -> None:
        self.data = data
        self.m = members
        self.n = len(data) // members.size
        self._columns: Dict[Tuple[int, int], Any] = {}
        self._ones: Optional[int] = None
        self._state_bytes = self._states()

    def _everything(self) -> int:
        if self._ones is None:
            self._ones = int.from_bytes(b"\x01" * self.n, "little")
        return self._ones

    def _plane(self, offset: int) -> bytes:
        """One byte of every struct."""
        found = self._columns.get((offset, 1))
        if found is None:
            found = self._columns[offset, 1] = self.data[offset :: self.m.size]
        return found

    def _mask(self, offset: int, table: bytes) -> int:
        return int.from_bytes(self._plane(offset).translate(table), "little")

    def _bytes(self, mask: int) -> bytes:
        return mask.to_bytes(self.n, "little")

    def _states(self) -> bytes:
        """A byte for each page, an index into STATES."""
        m = self.m
        if m.busy_lock is None:
            held = self._mask(m.held[0], _some(m.exclusive))
            shared = self._mask(m.count[0], _NONZERO) if m.count else 0
            return self._bytes(held | (shared & ~held) * 2)
        offset = m.busy_lock[0]
        states = self._plane(offset).translate(_LOW)
        upper = tuple(self._plane(offset + byte) for byte in (1, 2, 3))
        freed = states.count(FREE_STATE)
        if upper[0] == upper[1] == upper[2] and upper[0].count(0) == self.n - freed:
            if not freed:
                return states
            alike = upper[0].translate(_ALL_ONES) == states.translate(_same(FREE_STATE, 0xFF))
            if alike and m.has_freed:
                return states
        return self._exact_states(states, upper)

    def _exact_states(self, states: bytes, upper: Tuple[bytes, ...]) -> bytes:
        """Where the upper bytes matter: many sharers, or an owner recorded in them."""
        any_set, all_set = 0, self._everything()
        for plane in upper:
            any_set |= int.from_bytes(plane.translate(_NONZERO), "little")
            all_set &= int.from_bytes(plane.translate(_ALL_ONES), "little")
        value = int.from_bytes(states, "little")
        is_free, is_zero, is_none = (
            int.from_bytes(states.translate(_same(number, 0xFF)), "little")
            for number in (FREE_STATE, ZERO_STATE, 0)
        )
        odd = self._mask(self.m.held[0], _some(1))
        # Not free but exclusive; not zero; and shared by 32 or more.
        value -= (is_free & ~(all_set if self.m.has_freed else 0)) * (FREE_STATE - 1)
        value -= (is_zero & any_set) * ZERO_STATE
        value += (is_none & any_set & odd) * 2
        return self._bytes(value)

    def state_counts(self) -> List[int]:
        found = [0] * len(STATES)
        left = self.n
        for number in (0, FREE_STATE, 1, 2, ZERO_STATE):
            if not left:
                break
            found[number] = self._state_bytes.count(number)
            left -= found[number]
        return found


class Plain(Piece):
    """Masks are ints, a byte of 0 or 1 a page."""

    nothing = 0

    @property
    def everything(self) -> int:
        return self._everything()

    # What the scan asks

    def state(self, number: int) -> int:
        return int.from_bytes(self._state_bytes.translate(_same(number, 0xFF)), "little")

    def equal(self, member: Tuple[int, int], value: int, bits: int = -1) -> int:
        """Pages whose member, as far as ``bits`` go, is ``value``."""
        mask = self.everything
        for byte in range(member[1]):
            care = bits >> 8 * byte & 0xFF
            if care:
                mask &= self._mask(member[0] + byte, _same(value >> 8 * byte & 0xFF, care))
        return mask

    def any_bits(self, member: Tuple[int, int], bits: int) -> int:
        mask = 0
        for byte in range(member[1]):
            care = bits >> 8 * byte & 0xFF
            if care:
                mask |= self._mask(member[0] + byte, _some(care))
        return mask

    def without(self, mask: int, other: int) -> int:
        return mask & ~other

    def count(self, mask: int) -> int:
        return self._bytes(mask).count(1)

    def indexes(self, mask: int) -> List[int]:
        flags = self._bytes(mask)
        if flags.count(1) * 8 > self.n:
            return list(compress(range(self.n), flags))
        found, at = [], flags.find(1)
        while at >= 0:
            found.append(at)
            at = flags.find(1, at + 1)
        return found

    def values(self, member: Tuple[int, int], mask: int) -> Sequence[int]:
        if not mask:
            return ()
        column = self._column(member)
        return column if mask == self.everything else list(compress(column, self._bytes(mask)))

    def counts(self, member: Tuple[int, int], mask: int) -> Dict[int, int]:
        """{value: pages} of a member, among the pages in ``mask``."""
        if member[1] > 1:
            return Counter(self.values(member, mask))
        rest = self._plane(member[0])
        found = {}
        if mask != self.everything:
            # What is not in the mask becomes 0xff; how many of those were is known.
            others = (self.everything & ~mask) * 0xFF
            rest = self._bytes(int.from_bytes(rest, "little") | others)
            left = rest.translate(None, b"\xff")
            if self.count(mask) > len(left):
                found[0xFF] = self.count(mask) - len(left)
            rest = left
        while rest:
            value = rest[0]
            found[value] = rest.count(value)
            rest = rest.translate(None, bytes((value,)))
        return found

    def _column(self, member: Tuple[int, int]) -> Sequence[int]:
        """The member of every struct."""
        offset, size = member
        if size == 1:
            return self._plane(offset)
        found = self._columns.get(member)
        if found is None:
            found = self._columns[member] = self._unpacked(offset, size)
        return found

    def _unpacked(self, offset: int, size: int) -> List[int]:
        step = self.m.size
        if offset % size or step % size:
            # i386 aligns members of eight bytes to four.
            low, high = (self._unpacked(offset + half, size // 2) for half in (0, size // 2))
            return [a | b << 4 * size for a, b in zip(low, high)]
        view: Any = memoryview(self.data)
        value: List[int] = view.cast({1: "B", 2: "H", 4: "I", 8: "Q"}[size])[
            offset // size :: step // size
        ].tolist()
        return value


class Numpy(Piece):
    """The same with numpy; masks are arrays of bool."""

    def __init__(self, data: bytes, members: Members) -> None:
        import numpy

        super().__init__(data, members)
        self.np = numpy
        self._codes = numpy.frombuffer(self._state_bytes, numpy.uint8)

    @property
    def everything(self) -> Any:
        return self.np.ones(self.n, bool)

    @property
    def nothing(self) -> Any:
        return self.np.zeros(self.n, bool)

    def _column(self, member: Tuple[int, int]) -> Any:
        found = self._columns.get((-1, member[0]))
        if found is None:
            offset, size = member
            view = self.np.ndarray((self.n,), f"<u{size}", self.data, offset, (self.m.size,))
            found = self._columns[-1, offset] = view.copy()
        return found

    def state(self, number: int) -> Any:
        return self._codes == number

    def equal(self, member: Tuple[int, int], value: int, bits: int = -1) -> Any:
        column = self._column(member)
        care = bits & ((1 << 8 * member[1]) - 1)
        return column & column.dtype.type(care) == column.dtype.type(value & care)

    def any_bits(self, member: Tuple[int, int], bits: int) -> Any:
        column = self._column(member)
        return column & column.dtype.type(bits & ((1 << 8 * member[1]) - 1)) != 0

    def without(self, mask: Any, other: Any) -> Any:
        return mask & ~other

    def count(self, mask: Any) -> int:
        return int(self.np.count_nonzero(mask))

    def indexes(self, mask: Any) -> List[int]:
        value: List[int] = self.np.flatnonzero(mask).tolist()
        return value

    def values(self, member: Tuple[int, int], mask: Any) -> List[int]:
        value: List[int] = self._column(member)[mask].tolist()
        return value

    def counts(self, member: Tuple[int, int], mask: Any) -> Dict[int, int]:
        chosen = self._column(member)[mask]
        if member[1] == 1:
            found = self.np.bincount(chosen, minlength=1)
            return {int(value): int(found[value]) for value in self.np.flatnonzero(found)}
        values, counts = self.np.unique(chosen, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist()))


def have_numpy() -> bool:
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True
