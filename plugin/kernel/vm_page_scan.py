"""Every page of the machine: counted by state, queue and object, and picked by predicates.

Walks vm_page_array (sys/vm/vm_page.c) and the fictitious pages beside it, 6.x to
15.x, a piece at a time in bounded memory.  A member is taken out of all structs of
a piece at once: with numpy where it is there, else as slices of bytes that are
compared and counted without a loop in Python.  Both give the same result.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from itertools import compress
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from plugin.errors import MemoryFault, UsageError
from plugin.kernel.vm_domain import domains
from plugin.kernel.vm_object import (
    Object,
    label,
    named_objects,
    object_at,
    objects,
    page_addresses,
    try_object_at,
)
from plugin.kernel.vm_page import (
    EXCLUSIVE,
    FREED,
    SHARED,
    UNBUSIED,
    Page,
    decoder,
    encoding,
    page_at,
    try_page_at,
)
from plugin.kernel.vm_phys import (
    Segment,
    fictitious,
    is_vm_page,
    nfreeorder,
    page_array,
    phys_to_vm_page,
    reserved_unused,
    segments,
)
from plugin.session import Kernel

#: bytes read at a time: few calls, and yet what a CPU's cache holds while it is taken apart
CHUNK = 512 << 10
#: pages of memory that are missing before a walk through them is given up
_MAX_HOLES = 1 << 20
#: in the counts by state only: structs that nothing has filled in yet, all zero
UNINITIALISED = "uninitialised"
#: states by the byte that stands for them in a piece
_STATES = (UNBUSIED, EXCLUSIVE, SHARED, FREED, UNINITIALISED)
_FREE_STATE, _ZERO_STATE = 3, 4


class Predicates(NamedTuple):
    """What to pick: every field that is given must hold.

    ``busy``: "exclusive", "shared" or "any"; ``owner``: the low half of a struct
    thread as busy_lock records it; ``queue`` a queue's name (pages on it);
    ``object`` a vm_object's address; ``domain`` a memory domain's number.
    """

    busy: Optional[str] = None
    object: Optional[int] = None
    queue: Optional[str] = None
    owner: Optional[int] = None
    dirty: bool = False
    wired: bool = False
    domain: Optional[int] = None

    @property
    def any(self) -> bool:
        return self != Predicates()


class DomainCounts(NamedTuple):
    """Pages of one memory domain, None for those that belong to no segment."""

    domain: Optional[int]
    pages: int
    states: Dict[str, int]
    queues: Dict[str, int]
    #: in the free lists, cached pages (PG_CACHED, to 11.x) not counted; None before 8.0
    free: Optional[int]
    wired: int
    dirty: int


class Scan(NamedTuple):
    """The result.  ``scanned`` pages were read, ``missing`` could not be.

    ``objects``: pages by vm_object; ``busy``: pages by (object, state, recorded
    owner or 0); ``pages``: those that match, at most as many as were asked for,
    ``matched`` how many there are.
    """

    scanned: int
    missing: int
    fictitious: int
    domains: Tuple[DomainCounts, ...]
    objects: Dict[int, int]
    busy: Dict[Tuple[int, str, int], int]
    pages: List[Page]
    matched: int

    @property
    def states(self) -> Dict[str, int]:
        """Pages by state, all domains together."""
        return _sum(domain.states for domain in self.domains)

    @property
    def queues(self) -> Dict[str, int]:
        """Pages by the queue they are on, all domains together."""
        return _sum(domain.queues for domain in self.domains)


def _sum(counts: Any) -> Dict[str, int]:
    total: Counter = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


class _Members:
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
        return _FREE_STATE
    if value & 2:
        return 1
    if value == 0:
        return _ZERO_STATE
    return 2 if value & 1 and value >> 3 else 0


_LOW = _table(_low_byte_state)
_NONZERO = _some(0xFF)
_ALL_ONES = _same(0xFF, 0xFF)


class _Piece:
    """A piece of the page array: planes of single bytes, and out of them each page's state."""

    def __init__(self, data: bytes, members: _Members) -> None:
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
        """A byte for each page, an index into _STATES."""
        m = self.m
        if m.busy_lock is None:
            held = self._mask(m.held[0], _some(m.exclusive))
            shared = self._mask(m.count[0], _NONZERO) if m.count else 0
            return self._bytes(held | (shared & ~held) * 2)
        offset = m.busy_lock[0]
        states = self._plane(offset).translate(_LOW)
        upper = tuple(self._plane(offset + byte) for byte in (1, 2, 3))
        freed = states.count(_FREE_STATE)
        if upper[0] == upper[1] == upper[2] and upper[0].count(0) == self.n - freed:
            if not freed:
                return states
            alike = upper[0].translate(_ALL_ONES) == states.translate(_same(_FREE_STATE, 0xFF))
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
            for number in (_FREE_STATE, _ZERO_STATE, 0)
        )
        odd = self._mask(self.m.held[0], _some(1))
        # Not free but exclusive; not zero; and shared by 32 or more.
        value -= (is_free & ~(all_set if self.m.has_freed else 0)) * (_FREE_STATE - 1)
        value -= (is_zero & any_set) * _ZERO_STATE
        value += (is_none & any_set & odd) * 2
        return self._bytes(value)

    def state_counts(self) -> List[int]:
        found = [0] * len(_STATES)
        left = self.n
        for number in (0, _FREE_STATE, 1, 2, _ZERO_STATE):
            if not left:
                break
            found[number] = self._state_bytes.count(number)
            left -= found[number]
        return found


class _Plain(_Piece):
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
        return view.cast({1: "B", 2: "H", 4: "I", 8: "Q"}[size])[
            offset // size :: step // size
        ].tolist()


class _Numpy(_Piece):
    """The same with numpy; masks are arrays of bool."""

    def __init__(self, data: bytes, members: _Members) -> None:
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
        return self.np.flatnonzero(mask).tolist()

    def values(self, member: Tuple[int, int], mask: Any) -> List[int]:
        return self._column(member)[mask].tolist()

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


class _Totals:
    """What one domain's pieces add up to."""

    def __init__(self, domain: Optional[int]) -> None:
        self.domain = domain
        self.pages = self.free = self.cached = self.wired = self.dirty = 0
        self.states = [0] * len(_STATES)
        self.queues: Counter = Counter()


class _Scanner:
    def __init__(
        self, kernel: Kernel, wanted: Predicates, keep: int, counts: bool, use_numpy: bool
    ) -> None:
        self.kernel = kernel
        self.wanted = wanted
        self.keep = keep
        self.full = counts
        self.members = _Members(kernel)
        self.backend: Any = _Numpy if use_numpy else _Plain
        self.reader = decoder(kernel)
        self.totals: Dict[Optional[int], _Totals] = {}
        self.objects: Counter = Counter()
        self.busy: Counter = Counter()
        self.pages: List[Page] = []
        self.scanned = self.missing = self.matched = 0
        self.picks = wanted.any
        self.picks_busy = wanted.busy is not None or wanted.owner is not None
        self.queue_numbers = self._queue_numbers()

    def _queue_numbers(self) -> Optional[List[int]]:
        """Numbers that a page of the queue asked for carries, colours aside."""
        name = self.wanted.queue
        if name is None:
            return None
        queues = self.members.queues
        numbers = [number for number, known in queues.names.items() if known == name]
        for base, known in queues.bases:
            if known == name:
                numbers += range(base, base + queues.colors)
        if not numbers:
            known_names = sorted({*queues.names.values(), *(name for _, name in queues.bases)})
            raise UsageError(f"no page queue {name!r} in this kernel: {', '.join(known_names)}")
        return numbers

    # Pieces

    def pieces(self) -> Iterator[Tuple[Optional[int], int, int]]:
        """(domain, first page, count) of all of vm_page_array and of segments beside it."""
        array = page_array(self.kernel)
        size = self.members.size
        inside: List[Segment] = []
        outside: List[Segment] = []
        for segment in segments(self.kernel):
            (inside if array.holds(segment.first_page) else outside).append(segment)
        at = array.address
        end = array.address + array.npages * size
        for segment in sorted(inside, key=lambda segment: segment.first_page):
            first = max(segment.first_page, at)
            last = min(segment.first_page + segment.npages * size, end)
            if first > at:
                yield None, at, (first - at) // size
            if last > first:
                yield segment.domain, first, (last - first) // size
            at = max(at, last)
        if at < end:
            yield None, at, (end - at) // size
        for segment in outside:
            yield segment.domain, segment.first_page, segment.npages

    def run(self) -> None:
        for domain, first, count in self.pieces():
            if self.wanted.domain is not None and domain != self.wanted.domain:
                continue
            totals = self.totals.setdefault(domain, _Totals(domain))
            for address, data in self._read(domain, first, count):
                self._take(totals, address, data)
                if self.kernel.interrupted():
                    self.kernel.warnings.add("vm_page_array", address, "interrupted")
                    return

    def _read(self, domain: Optional[int], first: int, count: int) -> Iterator[Tuple[int, bytes]]:
        """Whole structs, as many as a chunk holds; what cannot be read is skipped and counted."""
        size = self.members.size
        step = max(1, CHUNK // size)
        at, end = first, first + count * size
        holes: List[Tuple[int, int]] = []
        span = step
        while at < end:
            some = min(span, (end - at) // size)
            try:
                data = self.kernel.read(at, some * size)
            except MemoryFault as fault:
                whole = max(0, min(fault.address - at, some * size)) // size
                if whole:
                    span = whole
                    continue
                # On to the first struct that begins on the next page of memory.
                page = self.kernel.page_size
                bad = max(fault.address, at)
                skip = max(1, -(-(bad // page * page + page - at) // size))
                skip = min(skip, (end - at) // size)
                holes.append((at, skip))
                at += skip * size
                span = max(1, page // size)
                if len(holes) > _MAX_HOLES:
                    # Nobody's page array; what a corrupt length says of it is no matter.
                    self.kernel.warnings.add("vm_page_array", at, "given up: nothing can be read")
                    break
                continue
            yield at, data
            at += some * size
            span = min(step, span * 4)
        lost = sum(skipped for _, skipped in holes)
        # Holes between the segments have no pages; where they do, nothing is missing.
        if lost and domain is not None:
            self.missing += lost
            self.kernel.warnings.add(
                "vm_page_array",
                holes[0][0],
                f"{lost} of {count} pages of domain {domain} are not in the dump",
            )

    # One piece

    def _take(self, totals: _Totals, address: int, data: bytes) -> None:
        members = self.members
        part = self.backend(data, members)
        self.scanned += part.n
        totals.pages += part.n
        states = part.state_counts()
        for number, count in enumerate(states):
            totals.states[number] += count
        if self.full:
            self._count(totals, part)
            if states[1] or states[2]:
                self._busy(part)
        if self.picks and (not self.picks_busy or states[1] or states[2]):
            self._pick(part, address)

    def _count(self, totals: _Totals, part: Any) -> None:
        m = self.members
        owned = part.everything
        if m.slab or m.cached:
            # A page of a zone points to its slab; a cached one is resident no more.
            owned = part.without(owned, part.any_bits(m.flags, m.slab | m.cached))
        for address, count in part.counts(m.object, owned).items():
            self.objects[address] += count
        queued = part.everything
        if m.enqueued and m.aflags:
            queued = part.any_bits(m.aflags, m.enqueued)
        for number, count in part.counts(m.queue, queued).items():
            totals.queues[m.queues.name(number)] += count
        totals.wired += part.count(part.any_bits(m.wires, m.wire_mask))
        totals.dirty += part.count(part.any_bits(m.dirty, -1))
        if m.order is not None and totals.domain is not None:
            # What nothing has filled in yet has an order of 0, and heads no block.
            empty = part.state(_ZERO_STATE)
            if m.busy_lock is None:
                empty = part.without(part.everything, part.any_bits(m.phys_addr, -1))
            filled = part.without(part.everything, empty)
            for order, count in part.counts(m.order, filled).items():
                if order < m.nfree:
                    totals.free += count << order
            if m.cached:
                totals.cached += part.count(part.any_bits(m.flags, m.cached))

    def _busy(self, part: Any) -> None:
        m = self.members
        for number, name in ((1, EXCLUSIVE), (2, SHARED)):
            mask = part.state(number)
            owners = part.values(m.object, mask)
            if not owners:
                continue
            if m.busy_lock and m.has_freed and name == EXCLUSIVE:
                words = part.values(m.busy_lock, mask)
                keys = Counter(zip(owners, words))
                for (owner, word), count in keys.items():
                    self.busy[owner, name, word & 0xFFFFFFF8] += count
            else:
                for owner, count in Counter(owners).items():
                    self.busy[owner, name, 0] += count

    def _pick(self, part: Any, address: int) -> None:
        wanted, m = self.wanted, self.members
        mask = part.everything
        if self.picks_busy:
            if wanted.busy == SHARED:
                mask = mask & part.state(2)
            elif wanted.busy == "any":
                mask = mask & (part.state(1) | part.state(2))
            else:
                mask = mask & part.state(1)
        if wanted.owner is not None:
            if not m.busy_lock or not m.has_freed:
                mask = part.nothing
            else:
                mask = mask & part.equal(m.busy_lock, wanted.owner, 0xFFFFFFF8)
        if wanted.object is not None:
            mask = mask & part.equal(m.object, wanted.object)
            if m.slab:
                mask = part.without(mask, part.any_bits(m.flags, m.slab))
        if self.queue_numbers is not None:
            on = part.nothing
            for number in self.queue_numbers:
                on = on | part.equal(m.queue, number)
            mask = mask & on
            if m.enqueued and m.aflags and wanted.queue != "none":
                mask = mask & part.any_bits(m.aflags, m.enqueued)
        if wanted.dirty:
            mask = mask & part.any_bits(m.dirty, -1)
        if wanted.wired:
            mask = mask & part.any_bits(m.wires, m.wire_mask)
        found = part.indexes(mask)
        self.matched += len(found)
        for index in found[: max(0, self.keep - len(self.pages))]:
            base = index * m.size
            self.pages.append(self.reader.decode(address + base, part.data, base))

    def result(self) -> Scan:
        domains = tuple(
            DomainCounts(
                totals.domain,
                totals.pages,
                {
                    name: count
                    for name, count in zip(_STATES, totals.states)
                    if count or name in _STATES[:3]
                },
                dict(totals.queues),
                totals.free - totals.cached if self.full and self.members.order else None,
                totals.wired,
                totals.dirty,
            )
            for totals in self.totals.values()
        )
        return Scan(
            self.scanned,
            self.missing,
            len(fictitious(self.kernel)),
            domains,
            dict(self.objects),
            dict(self.busy),
            self.pages,
            self.matched,
        )


def scan(
    kernel: Kernel,
    wanted: Optional[Predicates] = None,
    *,
    keep: int = 10_000,
    counts: bool = True,
    numpy: Optional[bool] = None,
) -> Scan:
    """Every page once.  ``counts`` False leaves out all but the counts by state.

    At most ``keep`` matching pages are kept.  Fictitious pages that match come
    last.  A page array that is not all in the dump gives partial counts and a
    finding; KeyboardInterrupt is the user's to handle.
    """
    chosen = wanted or Predicates()
    use = have_numpy() if numpy is None else numpy
    scanner = _Scanner(kernel, chosen, keep, counts, use)
    scanner.run()
    _fictitious(kernel, scanner)
    return scanner.result()


def _fictitious(kernel: Kernel, scanner: _Scanner) -> None:
    """The pages outside of the array, one by one: they are few."""
    if scanner.wanted.domain is not None:
        return
    for address in fictitious(kernel):
        page = try_page_at(kernel, address)
        if page is not None and scanner.wanted.any and matches(page, scanner.wanted):
            scanner.matched += 1
            if len(scanner.pages) < scanner.keep:
                scanner.pages.append(page)


def matches(page: Page, wanted: Predicates) -> bool:
    """True where one decoded page is what the predicates ask for, domains aside."""
    busy = page.busy
    if wanted.busy is not None and wanted.busy != "any" and busy.state != wanted.busy:
        return False
    if wanted.busy == "any" and busy.state not in (EXCLUSIVE, SHARED):
        return False
    if wanted.owner is not None and busy.owner_bits != wanted.owner & 0xFFFFFFF8:
        return False
    if wanted.object is not None and page.object != wanted.object:
        return False
    if wanted.queue is not None and (
        page.queue != wanted.queue or not (page.enqueued or wanted.queue == "none")
    ):
        return False
    return (not wanted.dirty or page.dirty != 0) and (not wanted.wired or page.wired)


def busy_pages(kernel: Kernel, state: str = "any", keep: int = 1 << 20) -> List[Page]:
    """The pages that are busied ("exclusive", "shared" or "any"), without counting others."""
    return scan(kernel, Predicates(busy=state), keep=keep, counts=False).pages


def pages_of_object(kernel: Kernel, owner: int) -> List[int]:
    """Addresses of the pages whose object is ``owner``, found by a scan."""
    found = scan(kernel, Predicates(object=owner), keep=1 << 24, counts=False)
    return [page.address for page in found.pages]


# Held against the kernel's own counters


class Check(NamedTuple):
    """A count of the scan beside the kernel's own."""

    what: str
    scanned: int
    counted: int

    @property
    def agrees(self) -> bool:
        return self.scanned == self.counted


def checks(kernel: Kernel, found: Scan) -> List[Check]:
    """Free pages and queues of each domain, pages of each type of object.

    Nothing where pages are missing, or the scan was interrupted.
    """
    if found.missing or found.scanned < page_array(kernel).npages:
        return []
    return [*_domain_checks(kernel, found), *_object_checks(kernel, found)]


def _domain_checks(kernel: Kernel, found: Scan) -> Iterator[Check]:
    scanned = {each.domain: each for each in found.domains if each.domain is not None}
    kept = domains(kernel)
    held = reserved_unused(kernel) or 0
    several = len(kept) > 1
    free = 0
    for domain in kept:
        mine = scanned.get(domain.domain)
        if mine is None:
            return
        where = f"domain {domain.domain} " if several else ""
        for name in ("active", "inactive", "laundry", "unswappable"):
            counted = getattr(domain, name)
            if counted is not None and domain.cache is None:
                yield Check(f"{where}{name}", mine.queues.get(name, 0), counted)
        if mine.free is None:
            # Before 8.0 free and cached pages are on queues of their own.
            yield Check("free", mine.queues.get("free", 0), domain.free)
            yield Check("cache", mine.queues.get("cache", 0), domain.cache or 0)
        free += mine.free or 0
    if kept and kept[0].cache is not None:
        # To 11.x the lengths of the queues are counted for all domains together.
        queues = found.queues
        for name in ("active", "inactive"):
            number = queues.get(name, 0)
            if name == "active":
                number += queues.get("hold", 0)
            yield Check(name, number, sum(getattr(domain, name) for domain in kept))
    if all(each.free is not None for each in scanned.values()):
        yield Check("free", free + held, sum(domain.free for domain in kept))


#: pages of these are not in vm_page_array, or not all
_ELSEWHERE = ("device", "mgtdevice", "sg", "dead")


def _object_checks(kernel: Kernel, found: Scan) -> Iterator[Check]:
    scanned, counted = objects_by_type(kernel, found)
    for kind in sorted({*scanned, *counted}):
        if kind and kind not in _ELSEWHERE:
            yield Check(f"{kind} objects", scanned.get(kind, 0), counted.get(kind, 0))


def objects_by_type(kernel: Kernel, found: Scan) -> Tuple[Dict[str, int], Dict[str, int]]:
    """({type: pages scanned}, {type: resident_page_count}); "" for pages of no object."""
    known: Dict[int, Object] = {each.address: each for each in objects(kernel)}
    for address in named_objects(kernel):
        each = try_object_at(kernel, address)
        if each is not None:
            known[address] = each
    counted: Counter = Counter()
    for each in known.values():
        counted[each.type] += each.resident_page_count
    scanned: Counter = Counter()
    for address, number in found.objects.items():
        if not address:
            scanned[""] += number
            continue
        of = known.get(address)
        scanned[of.type if of is not None else "unknown"] += number
    return dict(scanned), dict(counted)


# Pages by name


_OBJECT_INDEX = re.compile(r"^(0[xX][0-9a-fA-F]+|\d+):(0[xX][0-9a-fA-F]+|\d+)$")


def resolve(kernel: Kernel, text: str) -> int:
    """The vm_page that ``text`` names: its own address, OBJECT:INDEX, or a physical address.

    UsageError with what is wrong where it names none.
    """
    pair = _OBJECT_INDEX.match(text)
    if pair:
        owner, index = int(pair.group(1), 0), int(pair.group(2), 0)
        return lookup(kernel, owner, index)
    try:
        number = int(text, 0)
    except ValueError:
        raise UsageError(
            f"{text!r} is neither an address (0x...) nor OBJECT:INDEX, index in pages"
        ) from None
    if is_vm_page(kernel, number):
        return number
    if not kernel.is_kernel_address(number) or kernel.pointer_size == 4:
        found = phys_to_vm_page(kernel, number)
        if found is not None:
            return found
    array = page_array(kernel)
    last = array.address + (array.npages - 1) * array.size
    raise UsageError(
        f"{number:#x} is no vm_page (they lie at {array.address:#x} to {last:#x}, "
        f"{array.size} bytes each) and no physical address that has one"
    )


def lookup(kernel: Kernel, owner: int, index: int) -> int:
    """vm_page_lookup(): the page of an object at an index; UsageError if not resident."""
    try:
        found = object_at(kernel, owner)
    except MemoryFault as fault:
        raise UsageError(f"no vm_object at {owner:#x}: {fault}") from None
    for address in _resident(kernel, owner):
        if page_at(kernel, address).pindex == index:
            return address
    raise UsageError(
        f"object {owner:#x} ({label(kernel, found)}) has no resident page {index:#x}; "
        f"it has {found.resident_page_count}"
    )


def _resident(kernel: Kernel, owner: int) -> Sequence[int]:
    found = try_object_at(kernel, owner)
    if found is None:
        return []
    known = page_addresses(kernel, found)
    return known if known is not None else pages_of_object(kernel, owner)


def resident(kernel: Kernel, owner: int) -> List[Page]:
    """The pages resident in the object at ``owner``, by index."""
    found = [try_page_at(kernel, address) for address in _resident(kernel, owner)]
    return sorted((page for page in found if page is not None), key=lambda page: page.pindex)
