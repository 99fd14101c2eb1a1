"""struct vm_page: one page of memory decoded, busy word and all.

Mirrors sys/vm/vm_page.h and vm_page.c, 6.x to 15.x.  A page is busied exclusively
or shared in three encodings, told apart by the members there are:

* ``flags`` with PG_BUSY, and the count ``busy`` (6.x, 7.0-CURRENT of 2006);
* ``oflags`` with VPO_BUSY, and the count ``busy`` (8.x, 9.x);
* the word ``busy_lock`` (from 10.0).  From 13.0 a free page has VPB_FREED in it, and
  with INVARIANTS an exclusive holder leaves the low half of its struct thread.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel.proc import Thread, threads
from plugin.kernel.sleepqueue import sleepers
from plugin.kernel.vm_phys import is_vm_page, nfreeorder, segments
from plugin.session import Kernel

UNBUSIED = "unbusied"
EXCLUSIVE = "exclusive"
SHARED = "shared"
FREED = "freed"

#: bytes that one bit of valid and dirty stands for
DEV_BSIZE = 512
_THREAD_MASK = 0xFFFFFFF8


class Busy(NamedTuple):
    """The busy state.  ``raw`` is the word that holds it (busy_lock, oflags or flags).

    ``state``: "unbusied", "exclusive", "shared" or "freed"; ``owner`` a tid where
    the kernel records one that is still a thread, ``owner_bits`` what it recorded.
    """

    raw: int
    state: str
    sharers: int
    waiters: bool
    owner: Optional[int] = None
    owner_bits: Optional[int] = None


class Page(NamedTuple):
    """One page.  ``valid`` and ``dirty`` have a bit per DEV_BSIZE bytes of it.

    ``queue``: "inactive", "active", "laundry", "unswappable", "none", ..., the
    value of the member; ``enqueued`` says whether the page is on it already (it
    follows later from 12.0 on).  ``slab`` is the UMA slab that a page of a zone
    points to in place of an object (to 9.x).
    """

    address: int
    object: int
    pindex: int
    phys_addr: int
    busy: Busy
    valid: int
    dirty: int
    queue: str
    enqueued: bool
    flags: Tuple[str, ...]
    wire_count: int
    hold_count: int
    #: ref_count as it stands, None before 13.0
    ref_count: Optional[int]
    act_count: int
    #: order of the free block that the page heads, None if it heads none
    order: Optional[int]
    is_bogus: bool
    fictitious: bool
    slab: int

    @property
    def wired(self) -> bool:
        return self.wire_count > 0


class _Decoder:
    """Everything about this kernel's vm_page that does not change from page to page."""

    def __init__(self, kernel: Kernel) -> None:
        layouts = kernel.layouts
        self.kernel = kernel
        self.size = layouts.sizeof("vm_page")
        self.encoding = encoding(kernel)
        astate = layouts.has("vm_page", "a.queue")
        self.refs = layouts.has("vm_page", "ref_count")
        self.queue_path = "a.queue" if astate else "queue"
        self.aflags_path = (
            "a.flags" if astate else "aflags" if layouts.has("vm_page", "aflags") else None
        )
        paths = ["object", "pindex", "phys_addr", "flags", "valid", "dirty", self.queue_path]
        paths.append("a.act_count" if astate else "act_count")
        paths.append("ref_count" if self.refs else "wire_count")
        self.nfree = nfreeorder(kernel)
        more: Dict[str, Optional[int]] = {
            "oflags": 0,
            self.aflags_path or "aflags": 0,
            "hold_count": 0,
            "order": self.nfree,
            "pc": 0,
            "busy_lock": None,
            "busy": 0,
        }
        there = [path for path in more if layouts.has("vm_page", path)]
        self.fields = layouts.fields("vm_page", *paths, *there)
        #: for each of them its place behind the others, or None and what stands in for it
        self.places: List[Tuple[Optional[int], Any]] = [
            (there.index(path) if path in there else None, default)
            for path, default in more.items()
        ]
        self.queues = Queues(kernel)
        self.slab_flag = layouts.constant("PG_SLAB", 0)
        self.fictitious_flag = layouts.constant("PG_FICTITIOUS", 0)
        self.enqueued_flag = enqueued_flag(kernel)
        self.bogus = bogus_page(kernel) or None
        self._known: Dict[Any, Tuple[Busy, str, bool, Tuple[str, ...], bool]] = {}

    def decode(self, address: int, data: bytes, base: int = 0) -> Page:
        owner, pindex, phys_addr, flags, valid, dirty, queue, act_count, refs, *more = (
            self.fields.unpack_from(data, base)
        )
        oflags, aflags, hold_count, order, color, word, count = (
            default if place is None else more[place] for place, default in self.places
        )
        key = (flags, oflags, aflags, queue, color, word, count)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._describe(*key)
        busy, name, enqueued, names, slab = known
        return Page(
            address,
            0 if slab else owner,
            pindex,
            phys_addr,
            busy,
            valid,
            dirty,
            name,
            enqueued,
            names,
            refs & 0x3FFFFFFF if self.refs else refs,
            hold_count,
            refs if self.refs else None,
            act_count,
            order if order < self.nfree and (phys_addr or word) else None,
            address == self.bogus,
            bool(flags & self.fictitious_flag),
            owner if slab else 0,
        )

    def _describe(
        self,
        flags: int,
        oflags: int,
        aflags: int,
        queue: int,
        color: int,
        word: Optional[int],
        count: int,
    ) -> Tuple[Busy, str, bool, Tuple[str, ...], bool]:
        """What the members say that few pages differ in."""
        name = self.queues.name(queue, color)
        enqueued = name not in ("none", "free")
        if self.enqueued_flag:
            enqueued = bool(aflags & self.enqueued_flag)
        layouts = self.kernel.layouts
        names = (
            layouts.flags("vm_page_flags", flags)
            + layouts.flags("oflags", oflags)
            + layouts.flags("aflags", aflags)
        )
        # To 9.x a page of a zone points to its slab where others point to their object.
        slab = bool(self.slab_flag and flags & self.slab_flag)
        return self.encoding.decode(word, flags, oflags, count), name, enqueued, tuple(names), slab


class Encoding:
    """How this kernel writes down that a page is busy."""

    def __init__(self, kernel: Kernel) -> None:
        layouts = kernel.layouts
        self.kernel = kernel
        if layouts.has("vm_page", "busy_lock"):
            #: the member that says it: "busy_lock", "oflags" or "flags"
            self.member = "busy_lock"
            self.exclusive = layouts.constant("VPB_BIT_EXCLUSIVE", 2)
            self.shared = layouts.constant("VPB_BIT_SHARED", 1)
            self.wanted = layouts.constant("VPB_BIT_WAITERS", 4)
            self.shift = layouts.constant("VPB_SHARERS_SHIFT", 3)
            #: what a free page has in it, None before 13.0
            self.freed: Optional[int] = (
                layouts.constant("VPB_FREED", 0xFFFFFFFE)
                if layouts.has("vm_page", "ref_count")
                else None
            )
        else:
            self.member = "oflags" if layouts.has("vm_page", "oflags") else "flags"
            prefix = "VPO_" if self.member == "oflags" else "PG_"
            self.exclusive = layouts.constant(prefix + "BUSY", 1)
            self.wanted = layouts.constant(prefix + "WANTED", 2)
            self.shared = self.shift = 0
            self.freed = None

    def decode(self, word: Optional[int], flags: int = 0, oflags: int = 0, count: int = 0) -> Busy:
        """Out of the members: ``word`` is busy_lock, ``count`` is busy."""
        if word is None:
            raw = oflags if self.member == "oflags" else flags
            held = bool(raw & self.exclusive)
            state = EXCLUSIVE if held else SHARED if count else UNBUSIED
            return Busy(raw, state, count, bool(raw & self.wanted))
        if word == self.freed or not word:
            # All zero is a page that has not been initialised yet (15.0 does it late).
            return Busy(word, FREED, 0, False)
        waiters = bool(word & self.wanted)
        if word & self.exclusive:
            bits = word & _THREAD_MASK
            if not bits or self.freed is None:
                return Busy(word, EXCLUSIVE, 0, waiters)
            return Busy(word, EXCLUSIVE, 0, waiters, self._owner(bits), bits)
        sharers = word >> self.shift
        state = SHARED if word & self.shared and sharers else UNBUSIED
        return Busy(word, state, sharers, waiters)

    def _owner(self, bits: int) -> Optional[int]:
        found = owners_by_bits(self.kernel).get(bits, ())
        return found[0] if len(found) == 1 else None


@cached(MEMORY)
def owners_by_bits(kernel: Kernel) -> Dict[int, Tuple[int, ...]]:
    """Threads by the low bits that busy_lock records of them, {bits: tids}."""
    found: Dict[int, Tuple[int, ...]] = {}
    for thread in threads(kernel):
        bits = thread.address & _THREAD_MASK
        found[bits] = (*found.get(bits, ()), thread.tid)
    return found


@cached(MEMORY)
def encoding(kernel: Kernel) -> Encoding:
    return Encoding(kernel)


def enqueued_flag(kernel: Kernel) -> int:
    """PGA_ENQUEUED, 0 before 12.0 where a page with a queue is on it."""
    if not kernel.layouts.has("vm_page", "busy_lock"):
        return 0
    return kernel.layouts.constant("PGA_ENQUEUED", 0)


class Queues:
    """Names of the page queues, by the number a page carries.

    7.0-CURRENT has a free and a cache queue per page colour, numbered at boot
    (struct pq_coloring page_queue_coloring, vm_pageq.c).
    """

    def __init__(self, kernel: Kernel) -> None:
        table = kernel.layouts.table("queue")
        self.names = {
            number: name[len("PQ_") :].lower() if name.startswith("PQ_") else name
            for number, name in table.items()
        }
        self.bases: List[Tuple[int, str]] = []
        symbol = kernel.symbol("page_queue_coloring")
        if symbol is None:
            return
        try:
            # numcolors, colormask, prime1, prime2, inactive, active, cache, hold, count
            value = memoryview(kernel.read(symbol.address, 36)).cast("i")
        except MemoryFault as fault:
            kernel.warnings.add("page_queue_coloring", fault.address, fault.reason)
            return
        colors, inactive, active, cache, hold = (value[i] for i in (0, 4, 5, 6, 7))
        self.names = {0: "none", inactive: "inactive", active: "active", hold: "hold"}
        self.bases = [(1, "free"), (cache, "cache")] if 0 < colors <= 1024 else []
        self.colors = colors

    def name(self, number: int, color: int = 0) -> str:
        """The queue's name; its number where it has none."""
        found = self.names.get(number)
        if found is not None:
            return found
        for base, name in self.bases:
            if base <= number < base + self.colors:
                return name
        return str(number)


@cached(MEMORY)
def bogus_page(kernel: Kernel) -> int:
    """Address of bogus_page, the stand-in for valid pages in an I/O; 0 if there is none."""
    return kernel.global_value("bogus_page", 0)


@cached(MEMORY)
def decoder(kernel: Kernel) -> _Decoder:
    return _Decoder(kernel)


def page_at(kernel: Kernel, address: int) -> Page:
    """The page whose struct vm_page is at ``address``; MemoryFault if unreadable."""
    reader = decoder(kernel)
    return reader.decode(address, kernel.reader(reader.fields)(address, reader.fields.span))


def try_page_at(kernel: Kernel, address: int) -> Optional[Page]:
    """As page_at; None with a finding for what cannot be read."""
    try:
        return page_at(kernel, address)
    except MemoryFault as fault:
        kernel.warnings.add(f"vm_page {address:#x}", fault.address, fault.reason)
        return None


@cached(MEMORY)
def page_sleepers(kernel: Kernel) -> Dict[int, List[Thread]]:
    """Threads that sleep on a page, by its address."""
    return {at: who for at, who in sleepers(kernel).items() if is_vm_page(kernel, at)}


def domain_of(kernel: Kernel, page: Page) -> Optional[int]:
    """The memory domain of a page, None for one outside of all segments."""
    for segment in segments(kernel):
        if segment.start <= page.phys_addr < segment.end:
            return segment.domain
    return None


def valid_all(kernel: Kernel) -> int:
    """VM_PAGE_BITS_ALL: a bit for each DEV_BSIZE bytes of a page."""
    return (1 << (kernel.page_size // DEV_BSIZE)) - 1


def verdict(kernel: Kernel, page: Page, waiting: Sequence[Thread] = ()) -> str:
    """One sentence: who has the page, who waits, and what is odd about it."""
    busy = page.busy
    if page.is_bogus:
        what = "bogus_page, the stand-in for valid pages in an I/O"
        if busy.state == UNBUSIED:
            what += ", never busied"
    elif busy.state == FREED:
        what = "free" if busy.raw else "not initialised"
    elif busy.state == EXCLUSIVE:
        what = "exclusively busied"
        if busy.owner is not None:
            what += f" by thread {busy.owner}"
        elif busy.owner_bits is not None:
            what += f" by a thread at ...{busy.owner_bits:08x} that is none of the threads now"
        else:
            what += ", owner not recorded"
    elif busy.state == SHARED:
        what = f"busied shared by {busy.sharers}"
    else:
        what = "not busied"
        if page.order is not None:
            what = f"heads a free block of {1 << page.order} pages"
    if waiting:
        tids = ", ".join(str(thread.tid) for thread in waiting[:4])
        more = f" and {len(waiting) - 4} more" if len(waiting) > 4 else ""
        what += f"; {tids}{more} sleep{'s' if len(waiting) == 1 else ''} for it"
        if busy.state in (UNBUSIED, FREED):
            what += ", yet nothing holds it: a wakeup was lost"
    elif busy.waiters:
        what += "; its waiters bit is set, no thread sleeps on it"
    return what
