"""Every page of the machine: counted by state, queue and object, and picked by predicates.

Walks vm_page_array (sys/vm/vm_page.c) and the fictitious pages beside it, 6.x to
15.x, a piece at a time in bounded memory; ``vm_page_columns`` takes a piece apart.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

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
    SHARED,
    Page,
    decoder,
    page_at,
    try_page_at,
)
from plugin.kernel.vm_page_columns import (
    STATES,
    ZERO_STATE,
    Members,
    Numpy,
    Plain,
    have_numpy,
)
from plugin.kernel.vm_phys import (
    Segment,
    fictitious,
    is_vm_page,
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
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


class _Totals:
    """What one domain's pieces add up to."""

    def __init__(self, domain: Optional[int]) -> None:
        self.domain = domain
        self.pages = self.free = self.cached = self.wired = self.dirty = 0
        self.states = [0] * len(STATES)
        self.queues: Counter[str] = Counter()


class _Scanner:
    def __init__(
        self, kernel: Kernel, wanted: Predicates, keep: int, counts: bool, use_numpy: bool
    ) -> None:
        self.kernel = kernel
        self.wanted = wanted
        self.keep = keep
        self.full = counts
        self.members = Members(kernel)
        self.backend: Any = Numpy if use_numpy else Plain
        self.reader = decoder(kernel)
        self.totals: Dict[Optional[int], _Totals] = {}
        self.objects: Counter[int] = Counter()
        self.busy: Counter[Tuple[int, str, int]] = Counter()
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
            empty = part.state(ZERO_STATE)
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
                    for name, count in zip(STATES, totals.states)
                    if count or name in STATES[:3]
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
    counted: Counter[str] = Counter()
    for each in known.values():
        counted[each.type] += each.resident_page_count
    scanned: Counter[str] = Counter()
    for address, number in found.objects.items():
        if not address:
            scanned[""] += number
            continue
        of = known.get(address)
        scanned[of.type if of is not None else "unknown"] += number
    # In an order of their own: numpy counts the pages in another one than Python does.
    return dict(sorted(scanned.items(), key=lambda each: (-each[1], each[0]))), dict(counted)


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
