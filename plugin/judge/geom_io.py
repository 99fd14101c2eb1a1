"""Where every outstanding I/O is: queued, at the device, or back and not delivered.

Mirrors sys/geom/geom_io.c, 6.x to 15.x.  Bios are found on GEOM's own queues, as
the items in use of the g_bio zone, through the threads that wait for one, through
the bufs of the swap pager, and as parents of those found.  Of each is said where
it is and how that is known; what GEOM's and the disks' own counters say is then
held against it.
"""

from __future__ import annotations

from collections import Counter
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge import cam, controllers
from plugin.judge.cam import DONE_QUEUE
from plugin.judge.controllers import DRIVER_QUEUE
from plugin.kernel import geom_class
from plugin.kernel.bio import (
    Bio,
    Origin,
    bio_chain,
    bio_origin,
    bio_waiters,
    done_name,
    g_bioqs,
    is_queue_head,
    try_bio_at,
)
from plugin.kernel.buf import Buf, is_cached, locked_bufs, try_buf_at
from plugin.kernel.controller import KEPT
from plugin.kernel.disk import Disk, disk_of, disks, is_driver_clone, provider_of_disk
from plugin.kernel.driver import references, search
from plugin.kernel.geom import (
    ZVOL_CLASS,
    InFlight,
    Provider,
    consumer_active,
    in_flight,
    mesh,
    provider_at,
)
from plugin.kernel.proc import Thread, kernel_thread_flag, threads
from plugin.kernel.sleepqueue import sleepers
from plugin.kernel.stack import backtrace, registers
from plugin.kernel.taskqueue import TaskQueue
from plugin.kernel.tc import uptime
from plugin.kernel.uma import Zone, items, zone_at, zone_named
from plugin.kernel.vnode import vnode_at
from plugin.kernel.zfs import zvol
from plugin.session import Kernel

QUEUED = "queued"
AT_DEVICE = "at the device"
COMPLETED = "completed, not delivered"
LOST = "lost"
STATES = (LOST, AT_DEVICE, QUEUED, COMPLETED)

#: what a device's queue in CAM is called, before the device's name
CAM_QUEUE = "CAM's queue of"

PROVEN = "proven"
INFERRED = "inferred"

#: More clones than any class makes of one bio.
_MAX_CLONES = 1 << 16
#: A softc is not larger than this, nor is it further from a queue head in it.
_SOFTC = 16384
#: A thread's stack between its stack pointer and its end, at most.
_MAX_STACK = 64 * 1024


#: Classes that clone a request or answer it in the very call that brings it, and keep none
#: (g_slice_start, g_part_start, g_disk_start, ...): who lacks it cannot be about to send it.
_PASSES_ON = frozenset(
    ("LABEL", "PART", "DISK", "MBR", "MBREXT", "BSD", "GPT", "PC98", "APPLE", "SUN", "VOL_FFS")
)


class Place(NamedTuple):
    """Where a bio is: one of STATES, told by what, at which provider, on which queue.

    ``certainty``: "proven" by a list or a flag, or "inferred" by exclusion.
    """

    state: str
    why: str
    certainty: str
    provider: Optional[Provider]
    #: name of the queue it is on, and its place there from 0
    queue: Optional[str] = None
    position: Optional[int] = None


class OutstandingBio(NamedTuple):
    """A bio that has been asked for and not yet been answered, and where it is.

    The place of a bio with clones is that of its clones; its provider is the one that
    has it now: the device for a bio at the device.
    """

    bio: Bio
    place: Place
    #: its clones that are outstanding too
    clones: Tuple[int, ...]
    #: seconds since g_io_request, None where the bio has no bio_t0
    age: Optional[float]

    @property
    def state(self) -> str:
        return self.place.state

    @property
    def why(self) -> str:
        return self.place.why

    @property
    def certainty(self) -> str:
        return self.place.certainty

    @property
    def provider(self) -> Optional[Provider]:
        return self.place.provider

    @property
    def queue(self) -> Optional[str]:
        return self.place.queue

    @property
    def position(self) -> Optional[int]:
        return self.place.position


class FoundBios:
    """Every bio found, and what is known of each."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        #: True where the g_bio zone was read whole, so that what is not in it is not in use
        self.whole = False
        #: bios found by address, in the order in which they were found
        self.bios: Dict[int, Bio] = {}
        self.sources: Dict[int, str] = {}
        self.clones: Dict[int, List[int]] = {}
        self._on: Dict[int, Tuple[str, int]] = {}
        #: those of GEOM's own queues that could not be walked whole
        self._cut_short: List[str] = []
        self._in_use: Optional[Set[int]] = None
        self._places: Dict[int, Optional[Place]] = {}
        self._providers: Dict[int, Optional[Provider]] = {}
        self._heads: Dict[int, str] = {}
        self._linked: Dict[int, Optional[int]] = {}
        self._find()

    # Finding them

    def _find(self) -> None:
        kernel = self.kernel
        for queue in g_bioqs(kernel):
            for position, bio in enumerate(queue.bios):
                self._on[bio.address] = (queue.name, position)
                self._add(bio, f"queue {queue.name}")
            if queue.length is not None and queue.length != len(queue.bios):
                self._cut_short.append(queue.name)
        zone = self._zone()
        if zone is not None:
            with kernel.noting() as trouble:
                found = list(items(kernel, zone))
            self.whole = not trouble.partial
            self._in_use = set(found)
            for address in found:
                if address not in self.bios:
                    used = try_bio_at(kernel, address, "g_bio zone")
                    if used is not None:
                        self._add(used, "g_bio zone")
        for thread in threads(kernel):
            if thread.wchan and thread.wmesg in _BIO_WMESGS:
                self._reach(thread.wchan, f"thread {thread.tid} waits for it")
        if not self.whole:
            for disk in disks(kernel).values():
                if disk.owes != 0:
                    for address in search(kernel, disk):
                        self._reach(address, f"the driver of {disk.name} refers to it")
        for bio in [b for b in self.bios.values() if b.parent and b.parent not in self.bios]:
            for parent in bio_chain(kernel, bio, self.bios)[1:]:
                self._add(parent, "bio_parent")
        for bio in self.bios.values():
            if bio.parent:
                self.clones.setdefault(bio.parent, []).append(bio.address)

    def _zone(self) -> Optional[Zone]:
        kernel = self.kernel
        try:
            address = kernel.global_value("biozone", 0)
            found = (zone_at(kernel, address) if address else None) or zone_named(kernel, "g_bio")
            why = "there is no such zone"
        except (MemoryFault, LayoutError) as error:
            found, why = None, str(error)
        if found is None:
            kernel.warnings.add(
                "g_bio zone", None, f"{why}: bios that are on no queue of GEOM may be missing"
            )
        return found

    def _add(self, bio: Bio, source: str) -> None:
        if bio.address not in self.bios:
            self.bios[bio.address] = bio
            self.sources[bio.address] = source

    def _reach(self, address: int, source: str) -> None:
        """A bio something points to: taken if the zone does not say that it is free."""
        if address in self.bios or (self.whole and address not in (self._in_use or ())):
            return
        bio = try_bio_at(self.kernel, address, source)
        # To 10.1 "physrd" is a wait for a pbuf, which must not be taken for a bio.
        if (
            bio is not None
            and bio.cmd in self.kernel.layouts.table("bio_cmd").values()
            and bio.inbed <= bio.children < _MAX_CLONES
        ):
            self._add(bio, source)

    def origin(self, bio: Bio) -> Origin:
        """bio_origin(), without reading again what was found."""
        return bio_origin(self.kernel, bio, self.bios)

    # Where each one is

    def queue_of(self, address: int) -> Optional[str]:
        """The name of GEOM's own queue that this very bio is on."""
        on = self._on.get(address)
        return on[0] if on else None

    def place(self, address: int) -> Optional[Place]:
        """Where a bio is; None for one that has not been asked for (being made, or kept)."""
        try:
            return self._places[address]
        except KeyError:
            self._places[address] = None
            found = self._places[address] = self._place(self.bios[address])
            return found

    def _place(self, bio: Bio) -> Optional[Place]:
        kernel = self.kernel
        if bio.address in self._on:
            return self._on_queue(bio, *self._on[bio.address])
        clones = self.clones.get(bio.address)
        below = [p for p in map(self.place, clones) if p is not None] if clones else ()
        if below:
            return min(below, key=lambda place: STATES.index(place.state))
        to = self._to(bio)
        if bio.on_queue:
            if self._cut_short:
                cut = self._cut_short[0] if len(self._cut_short) == 1 else None
                where = cut or "a queue"
                why = f"BIO_ONQUEUE, on {where}, which could not be walked whole"
                state = QUEUED if cut in (None, "g_bio_run_down") else COMPLETED
                return Place(state, why, INFERRED, to, cut)
            return Place(LOST, "BIO_ONQUEUE is set, yet it is on none of the queues", PROVEN, to)
        if self._may_be_free(bio):
            return None
        if bio.is_done:
            return Place(COMPLETED, "BIO_DONE is set, its waiter has not run", PROVEN, to)
        if is_driver_clone(kernel, bio):
            return self._with_driver(bio)
        head = self._linked_to(bio)
        if head is not None:
            holder = self._owner_of(head, to)
            kept = geom_class.queues(kernel).get(head)
            why = f"on {holder}: {kept.queue.why}" if kept else f"on the queue {holder}"
            return Place(QUEUED, why, PROVEN, to, holder)
        if bio.children:
            return self._childless(bio, to)
        if to is not None:
            return self._given_to(bio, to)
        if bio.parent in self.bios:
            return self._unsent(bio)
        if bio.dev and bio.address in zvol.requests(kernel):
            return self._with_zvol(bio, to)
        if bio.disk or bio.dev:
            return Place(AT_DEVICE, "given to a driver outside GEOM", INFERRED, None)
        return None

    def _may_be_free(self, bio: Bio) -> bool:
        """True for a bio that looks answered and that only a zone not read whole has as in use.

        The items that a bucket which cannot be read has free keep what was last in them.
        """
        if self.whole or self.sources[bio.address] != "g_bio zone":
            return False
        if bio.is_done or (bio.children and bio.inbed >= bio.children):
            return True
        provider = self._provider_of(bio) if bio.disk else None
        disk = disk_of(self.kernel, provider) if provider is not None else None
        return disk is not None and disk.owes == 0

    def _provider_of(self, bio: Bio) -> Optional[Provider]:
        """Of a clone given to a driver the disk's provider: its request was made to that."""
        found = provider_of_disk(self.kernel, bio.disk)
        asked = self.bios.get(bio.parent)
        if found is None and asked is not None:
            found = provider_at(self.kernel, asked.to)
        return found

    def _to(self, bio: Bio) -> Optional[Provider]:
        """The provider that the bio is for: a few, asked for each bio."""
        if bio.to not in self._providers:
            self._providers[bio.to] = provider_at(self.kernel, bio.to)
        return self._providers[bio.to]

    def _on_queue(self, bio: Bio, queue: str, position: int) -> Place:
        to = self._to(bio)
        if queue == "g_bio_run_down":
            return Place(QUEUED, f"on {queue}, {position} before it", PROVEN, to, queue, position)
        return Place(COMPLETED, f"on {queue}, {position} before it", PROVEN, to, queue, position)

    def _with_driver(self, bio: Bio) -> Place:
        kernel = self.kernel
        provider = self._provider_of(bio)
        name = provider.name if provider else f"disk {bio.disk:#x}"
        disk = disk_of(kernel, provider) if provider else None
        head = self._linked_to(bio)
        if head is not None and disk is not None and head == controllers.dump_queue(kernel, disk):
            return Place(
                COMPLETED,
                f"{name} returned it while the dump was begun, to be delivered after the dump",
                PROVEN,
                provider,
                f"vtblk_dump_queue of {name}",
            )
        if head is not None:
            holder = self._owner_of(head, provider)
            # da and ada keep the parts of a TRIM under way on a queue as well.
            sure = INFERRED if bio.cmd == "BIO_DELETE" else PROVEN
            return Place(QUEUED, f"on the driver's queue {holder}", sure, provider, holder)
        held = cam.held_back(kernel, disk, bio.address) if disk else None
        if held is not None:
            return Place(QUEUED, held, PROVEN, provider, f"{CAM_QUEUE} {name}")
        found = controllers.of_disk(kernel, disk) if disk is not None else None
        if isinstance(found, controllers.OfDisk) and bio.address in found.by_bio:
            command = found.by_bio[bio.address]
            where = controllers.place(found.controller, command)
            if command.place == KEPT:
                queue = f"{DRIVER_QUEUE} {found.controller.name}"
                return Place(QUEUED, where, PROVEN, provider, queue)
            return Place(
                AT_DEVICE, f"{where}: {command.struct} {command.address:#x}", PROVEN, provider
            )
        if disk is not None and cam.is_done(kernel, disk, bio.address):
            return Place(
                COMPLETED, "its CCB is done, in CAM's done queue", PROVEN, provider, DONE_QUEUE
            )
        if disk is not None and controllers.lacks(kernel, disk, bio.address):
            assert isinstance(found, controllers.OfDisk)
            return Place(
                AT_DEVICE,
                f"clone given to the driver of {name}, yet no command of {found.controller.name} "
                "is for it",
                INFERRED,
                provider,
            )
        if disk is not None and cam.unmatched(kernel, disk, bio.address):
            return Place(
                AT_DEVICE,
                f"clone given to the driver of {name}, yet none of its CCBs is for it",
                INFERRED,
                provider,
            )
        return Place(
            AT_DEVICE,
            f"clone given to the driver of {name}, on none of its queues",
            PROVEN if self.whole else INFERRED,
            provider,
        )

    def _childless(self, bio: Bio, to: Optional[Provider]) -> Place:
        """It has been cloned, and no clone of it was found."""
        if bio.inbed >= bio.children:
            return Place(
                COMPLETED,
                f"all its clones ({bio.inbed}) are back, it was not delivered",
                PROVEN,
                to,
            )
        left = bio.children - bio.inbed
        if self.whole:
            return Place(
                LOST, f"{left} of its clones are in use nowhere in the g_bio zone", INFERRED, to
            )
        return Place(AT_DEVICE, f"{left} of its clones are out, not found", INFERRED, to)

    def _unsent(self, bio: Bio) -> Place:
        """A clone that g_io_request() has not been called for: its class works on it."""
        by = provider_at(self.kernel, self.bios[bio.parent].to)
        where = f" by {by.class_name} {by.name}" if by else ""
        return Place(QUEUED, f"cloned{where}, not passed on yet", INFERRED, by)

    def _given_to(self, bio: Bio, to: Provider) -> Place:
        """g_io_request() has been called for it, it has no clones and is on no list."""
        holder = self.held_by(bio.address)
        if holder is not None and holder.name == "g_down":
            return Place(
                QUEUED,
                f"taken off g_bio_run_down by g_down (thread {holder.tid}, {doing(holder)}), "
                "not started",
                INFERRED,
                to,
                "g_down",
            )
        if holder is not None and holder.name == "g_up":
            return Place(
                COMPLETED, f"in the hands of g_up (thread {holder.tid})", INFERRED, to, "g_up"
            )
        if to.class_name == ZVOL_CLASS:
            return self._with_zvol(bio, to)
        by = f"; thread {holder.tid} {holder.label} has it on its stack" if holder else ""
        if to.is_device and to.class_name != "DISK":
            return Place(
                AT_DEVICE,
                f"given to class {to.class_name}, which has no device below{by}",
                INFERRED,
                to,
            )
        if holder is None and to.class_name in _PASSES_ON and self.whole:
            holder = self.held_by(bio.address, everyone=True)
            if holder is None:
                return Place(
                    LOST,
                    f"class {to.class_name} passes every request on at once, yet it has no clone, "
                    "is on no queue and on no thread's stack",
                    INFERRED,
                    to,
                )
            by = f"; thread {holder.tid} {holder.label} has it on its stack"
        if to.is_device:
            return Place(
                QUEUED, f"requested of {to.name}, not cloned for its driver yet{by}", INFERRED, to
            )
        where = f"{to.class_name} {to.geom.name}" if to.geom else to.name
        return Place(QUEUED, f"held by {where}, not passed on{by}", INFERRED, to)

    def _with_zvol(self, bio: Bio, to: Optional[Provider]) -> Place:
        """A volume of ZFS has it, off its queue: a task queue, or a thread that does it."""
        request = zvol.requests(self.kernel).get(bio.address)
        if request is not None:
            who = request.worker
            does = f"runs it on thread {who.tid} {who.label}" if who else "has it queued"
            return Place(QUEUED, f"task queue {request.queue.name} {does}", PROVEN, to)
        who = self.carrier(bio)
        does = f"; thread {who.tid} {who.label} has it on its stack" if who else ""
        name = to.name if to else "a volume of ZFS"
        return Place(QUEUED, f"given to {name}, on none of its queues{does}", INFERRED, to)

    # What a bio that is linked is linked to

    def _linked_to(self, bio: Bio) -> Optional[int]:
        """Address of the head of the tail queue a bio is on, told by the links back to it.

        A removed element keeps its old links, so a link counts only if what it
        points to points back.
        """
        kernel = self.kernel
        offset_next = kernel.layouts.offsetof("bio", "bio_queue.tqe_next")
        offset_prev = kernel.layouts.offsetof("bio", "bio_queue.tqe_prev")
        address, passed = bio.address, set()
        head: Optional[int] = None
        while address not in self._linked and address not in passed:
            passed.add(address)
            try:
                link = kernel.pointer(address + offset_prev)
                if not link or kernel.pointer(link) != address:
                    break
            except MemoryFault:
                break
            address = link - offset_next
            if address not in self.bios:
                head = link if is_queue_head(kernel, link) else None
                break
        else:
            head = self._linked.get(address)
        for each in passed:
            self._linked[each] = head
        return head

    def _owner_of(self, head: int, provider: Optional[Provider]) -> str:
        """A name for a queue by its head: symbol, or the softc that it lies in."""
        if head not in self._heads:
            self._heads[head] = self._name_head(head, provider)
        return self._heads[head]

    def _name_head(self, head: int, provider: Optional[Provider]) -> str:
        name = self.kernel.symbolize(head)
        if name:
            return name
        kept = geom_class.queues(self.kernel).get(head)
        if kept is not None:
            return kept.name
        volume = zvol.zvol_of_provider(self.kernel, provider) if provider else None
        if volume is not None and volume.queue == head:
            return f"queue of zvol {volume.name}"
        best: Optional[Tuple[int, str]] = None
        for softc, owner in self._softcs():
            distance = head - softc
            if softc and 0 <= distance < _SOFTC and (best is None or distance < best[0]):
                best = (distance, owner)
        if best is not None:
            return f"at {head:#x} ({best[1]} softc+{best[0]:#x})"
        return f"at {head:#x}" + (f" ({provider.name})" if provider else "")

    def _softcs(self) -> Iterator[Tuple[int, str]]:
        for geom in mesh(self.kernel).geoms.values():
            yield geom.softc, geom.name
        for disk in disks(self.kernel).values():
            yield disk.drv1, disk.name

    # Who has a bio that is on no list

    def held_by(self, address: int, everyone: bool = False) -> Optional[Thread]:
        """A thread with the bio's address on its stack: GEOM's first, then other kernel threads'.

        ``everyone``: those of user processes as well, one of which has it while
        GEOM is called directly (direct dispatch).
        """
        pattern = address.to_bytes(self.kernel.pointer_size, "little")
        stacks = _stacks(self.kernel, everyone)
        return next((thread for thread, stack in stacks if pattern in stack), None)

    def carrier(self, bio: Bio) -> Optional[Thread]:
        """The thread that has a bio in hand; of a volume of ZFS the one that does its I/O.

        That may be any process, while the one that asked has the bio's address as well.
        """
        to = provider_at(self.kernel, bio.to)
        if to is not None and to.class_name != ZVOL_CLASS:
            return self.held_by(bio.address)
        request = zvol.requests(self.kernel).get(bio.address)
        if request is not None or to is None:
            return request.worker if request is not None else self.held_by(bio.address)
        pattern = bio.address.to_bytes(self.kernel.pointer_size, "little")
        for thread, stack in _stacks(self.kernel, True):
            if pattern in stack and any(
                frame.startswith("zvol_") for frame in backtrace(self.kernel, thread)
            ):
                return thread
        return None


@cached(MEMORY)
def _stacks(kernel: Kernel, everyone: bool) -> List[Tuple[Thread, bytes]]:
    """The live part of kernel threads' stacks, GEOM's first; of ``everyone``'s if asked."""
    kproc = kernel_thread_flag(kernel)
    found: List[Tuple[Thread, bytes]] = []
    for thread in sorted(threads(kernel), key=lambda t: t.name not in _GEOM_THREADS):
        if thread.state in ("running", "iwait") or not (everyone or thread.p_flag & kproc):
            continue
        if thread.name in _GEOM_THREADS and thread.wmesg == "-":
            # It has nothing in hand: what lies on its stack is left from before.
            continue
        sp = registers(kernel, thread).get("sp", 0)
        top = thread.kstack + thread.kstack_size
        if not thread.kstack <= sp < top or top - sp > _MAX_STACK:
            continue
        try:
            # GEOM's own are few, and most often it is one of them.
            geom = thread.name in _GEOM_THREADS
            if geom or kernel.affords("stacks of threads that may have a bio", top - sp):
                found.append((thread, kernel.read(sp, top - sp)))
        except MemoryFault as fault:
            what = f"stack of thread {thread.tid}"
            kernel.warnings.add(what, fault.address, f"its words: {fault.reason}")
    return found


_GEOM_THREADS = ("g_down", "g_up", "g_event")
#: wait messages whose channel is a bio (biowait in geom_io.c, physio from 10.x on)
_BIO_WMESGS = frozenset(
    ("gread", "gwrite", "gdelete", "ggetattr", "gflush", "gzone", "physrd", "physwr")
)


#: file systems with a buffer cache and no device (f_fstypename)
_WITHOUT_BIOS = frozenset(("nfs", "oldnfs", "smbfs", "nwfs", "fusefs", "fuse", "p9fs"))


def doing(thread: Thread) -> str:
    """What a thread does, in a few words: "running", "asleep in g_down"."""
    if thread.state == "sleeping" and thread.wmesg:
        return f'asleep in "{thread.wmesg}"'
    return thread.state


@cached(MEMORY)
def found_bios(kernel: Kernel) -> FoundBios:
    """Every bio found, once per session."""
    return FoundBios(kernel)


@cached(MEMORY)
def outstanding(kernel: Kernel) -> List[OutstandingBio]:
    """Every bio that has been asked for and not been answered, with where it is.

    Clones and the requests they serve are listed alike: ``top_requests`` has
    only the latter.
    """
    return list(_outstanding(kernel))


def _outstanding(kernel: Kernel) -> Iterator[OutstandingBio]:
    everything = found_bios(kernel)
    now = uptime(kernel)
    for address, bio in everything.bios.items():
        place = everything.place(address)
        if place is None:
            continue
        below = everything.clones.get(address)
        clones = tuple(c for c in below if everything.place(c) is not None) if below else ()
        yield OutstandingBio(bio, place, clones, _since(now, bio))


@cached(MEMORY)
def outstanding_by_address(kernel: Kernel) -> Dict[int, OutstandingBio]:
    return {o.bio.address: o for o in outstanding(kernel)}


def top_requests(kernel: Kernel) -> List[OutstandingBio]:
    """The outstanding bios that nobody has cloned from another: one for each request."""
    return [o for o in outstanding(kernel) if not o.bio.parent]


def age(kernel: Kernel, bio: Bio) -> Optional[float]:
    """Seconds since the bio was requested, None where it was not or the clock is unknown."""
    return _since(uptime(kernel), bio)


def _since(now: Optional[float], bio: Bio) -> Optional[float]:
    asked = bio.t0 if now is not None else None
    return None if now is None or asked is None else max(0.0, now - asked)


def is_delivered(kernel: Kernel, each: OutstandingBio) -> bool:
    """True once g_io_deliver() has been called for this very bio.

    From then on the counters have it as ended, though g_up may still have to
    call its bio_done, or its waiter to run.
    """
    queue = found_bios(kernel).queue_of(each.bio.address)
    if queue is not None:
        return queue != "g_bio_run_down"
    return each.bio.is_done or (each.queue == "g_up" and not each.clones)


# From a buf to its bios and back


def buf_of(kernel: Kernel, bio: Bio) -> Optional[Buf]:
    """The buf that a bio, or the request it is a clone of, is the I/O of."""
    origin = found_bios(kernel).origin(bio)
    if origin.kind not in ("buf", "swap") or not origin.address:
        return None
    return try_buf_at(kernel, origin.address)


@cached(MEMORY)
def _bios_by_buf(kernel: Kernel) -> Dict[int, List[OutstandingBio]]:
    found: Dict[int, List[OutstandingBio]] = {}
    for request in top_requests(kernel):
        origin = found_bios(kernel).origin(request.bio)
        if origin.kind in ("buf", "swap") and origin.address:
            found.setdefault(origin.address, []).append(request)
    return found


def buf_io(kernel: Kernel, address: int) -> List[OutstandingBio]:
    """The outstanding requests made for the buf (or pbuf) at ``address``."""
    return _bios_by_buf(kernel).get(address, [])


@cached(MEMORY)
def bufs_at_work(kernel: Kernel) -> List[Buf]:
    """The locked buffers of the cache; over a wire those that a bio or a sleeper leads to."""
    if not kernel.chosen:
        return [buf for buf, _ in locked_bufs(kernel)]
    led_to = {*_bios_by_buf(kernel), *sleepers(kernel)}
    read = (try_buf_at(kernel, at) for at in sorted(led_to) if is_cached(kernel, at))
    return [buf for buf in read if buf is not None]


def bufs_without_bio(kernel: Kernel) -> List[Buf]:
    """Bufs some thread waits for in bwait() whose bio was not found.

    Those of file systems that are on no device are left out: they send no bios.
    """
    missing = []
    for buf in bufs_at_work(kernel):
        if bio_waiters(kernel, buf.address) and not buf_io(kernel, buf.address):
            vnode = vnode_at(kernel, buf.vp) if buf.vp else None
            if vnode is None or vnode.fstype not in _WITHOUT_BIOS:
                missing.append(buf)
    return missing


# Counters against what was found


class ProviderIO(NamedTuple):
    """One provider's I/O: what is counted and what was found.

    ``in_flight`` is what the kernel counts (``source`` says how) or, where it
    counts nothing, what was found; ``queued`` of them have not reached the
    device, ``at_device`` have (below the provider, for one that is no device).
    ``found`` is how many bios to this provider were found in flight.
    ``driver`` is what the disk's devstat says the driver owes, and
    ``driver_found`` the clones found with it.
    """

    provider: Provider
    in_flight: int
    source: str
    queued: int
    at_device: int
    found: int
    completed: int
    lost: int
    driver: Optional[int]
    driver_found: Optional[int]
    #: age of the oldest bio at the device, or of the oldest bio in flight
    oldest: Optional[float]
    #: "clear" (nothing is with the device), "owes", "unclear", or, for a
    #: provider that is no device, "waits"
    verdict: str
    reason: str


@cached(MEMORY)
def provider_io(kernel: Kernel) -> Dict[int, ProviderIO]:
    """The I/O of every provider, counted and found, by its address."""
    by_provider: Dict[int, List[OutstandingBio]] = {}
    by_disk: Dict[int, List[OutstandingBio]] = {}
    for each in outstanding(kernel):
        if each.bio.to:
            by_provider.setdefault(each.bio.to, []).append(each)
        if is_driver_clone(kernel, each.bio):
            by_disk.setdefault(each.bio.disk, []).append(each)
    whole = found_bios(kernel).whole
    found: Dict[int, ProviderIO] = {}
    for address, provider in mesh(kernel).providers.items():
        disk = disk_of(kernel, provider)
        clones = by_disk.get(disk.address, []) if disk else []
        found[address] = _io_of(
            kernel,
            provider,
            by_provider.get(address, []),
            clones,
            disk.owes if disk else None,
            whole,
            disk,
        )
    return found


def _io_of(
    kernel: Kernel,
    provider: Provider,
    bios: List[OutstandingBio],
    clones: List[OutstandingBio],
    driver: Optional[int],
    whole: bool,
    disk: Optional[Disk],
) -> ProviderIO:
    flying = [b for b in bios if not is_delivered(kernel, b)]
    completed = len([b for b in bios if b.state == COMPLETED])
    queued = len([b for b in flying if b.state == QUEUED])
    lost = len([b for b in flying if b.state == LOST])
    counted = in_flight(kernel, provider)
    if counted is None and driver is not None:
        # Nothing counts the requests themselves: those found, and what the driver
        # has beyond the clones found with it.
        unfound = max(0, driver - len(clones))
        counted = InFlight(len(flying) + unfound, "devstat of the disk")
    number, source = counted if counted else (len(flying), "bios found")
    at_device = max(0, number - queued - lost)
    ages = [b.age for b in (flying or clones) if b.age is not None]
    old = [b.age for b in flying + clones if b.state == AT_DEVICE and b.age is not None] or ages
    io = ProviderIO(
        provider,
        number,
        source,
        queued,
        at_device,
        len(flying),
        completed,
        lost,
        driver,
        len(clones) if disk is not None else None,
        max(old) if old else None,
        "",
        "",
    )
    verdict, reason = _verdict(io, whole, counted is not None)
    stopped = cam.stopped(kernel, disk) if disk is not None and io.in_flight else ""
    if verdict == "clear" and stopped:
        # The device owes nothing, yet nothing will come to it.
        verdict, reason = "waits", f"{_bios(io.queued)} queued for it, {stopped}"
    return io._replace(verdict=verdict, reason=reason)


def _verdict(io: ProviderIO, whole: bool, counted: bool) -> Tuple[str, str]:
    provider = io.provider
    found = f"{io.found} found"
    if io.source == "devstat of the disk":
        agree = io.driver == io.driver_found
        found = f"{io.driver_found} found with the driver"
        what = f"its devstat counts {io.driver} with the driver"
    else:
        agree = io.found == io.in_flight
        what = f"{io.source} is {io.in_flight}"
    if not counted:
        what = "nothing counts its bios"
    if not io.in_flight and not io.found:
        if counted:
            return "clear", f"{what}" + ("" if not whole else ", and none is found")
        if whole:
            return "clear", "no bio for it is in use"
        return "unclear", "nothing counts its bios and the g_bio zone could not be read"
    if whole and counted and not agree:
        what = f"{what}, {found}"
    if io.lost:
        return "unclear", f"{_bios(io.lost)} lost; {what}"
    if counted and whole and not io.found and not io.driver_found:
        return "unclear", f"{what}, none found"
    if not provider.is_device:
        return "waits", f"{_bios(io.queued)} queued, {io.at_device} below it"
    if not io.at_device:
        return "clear", f"{_bios(io.queued)} queued for it, none is with the device"
    return "owes", what


def _bios(number: int) -> str:
    return "1 bio is" if number == 1 else f"{number} bios are"


def check_provider_io(kernel: Kernel) -> None:
    """A finding wherever what the kernel counts and the bios found disagree."""
    if not found_bios(kernel).whole:
        return
    for io in provider_io(kernel).values():
        by_disk = io.source == "devstat of the disk"
        counted = io.driver if by_disk else io.in_flight
        found = io.driver_found if by_disk else io.found
        if io.source != "bios found" and counted != found:
            kernel.warnings.add(
                f"provider {io.provider.name}",
                io.provider.address,
                f"{io.source} says {counted} in flight, {found} found",
                partial=False,
            )
    asked = Counter((each.bio.from_, done_name(kernel, each.bio)) for each in outstanding(kernel))
    for at, consumer in mesh(kernel).consumers.items():
        active = consumer_active(kernel, consumer)
        if active is not None and active.bios != asked[at, active.done]:
            kernel.warnings.add(
                f"{consumer.geom.g_class.name} {consumer.geom.name}",
                at,
                f"{active.source} says {active.bios} in flight, {asked[at, active.done]} found",
                partial=False,
            )


@cached(MEMORY)
def held_by_driver(kernel: Kernel, provider: Provider) -> Dict[int, int]:
    """The clones at this disk that its driver's memory still refers to: {bio: where}.

    Those on the driver's own queue are left out: the queue says that it has them.
    """
    disk = disk_of(kernel, provider)
    if disk is None:
        return {}
    bios = {
        each.bio.address
        for each in outstanding(kernel)
        if each.state == AT_DEVICE
        and each.bio.disk == disk.address
        and is_driver_clone(kernel, each.bio)
    }
    return references(kernel, disk, bios)


def task_queue_of(kernel: Kernel, each: OutstandingBio) -> Optional[TaskQueue]:
    """The task queue of ZFS that has a volume's request (15.0 on), None for any other bio."""
    if each.provider is not None and each.provider.class_name != ZVOL_CLASS:
        return None
    request = zvol.requests(kernel).get(each.bio.address)
    return request.queue if request is not None else None


def describe(kernel: Kernel, bio: Bio) -> str:
    """ "READ vtbd1 off 10059776 len 4096", as g_print_bio prints it in spirit."""
    to = provider_at(kernel, bio.to) or provider_of_disk(kernel, bio.disk)
    name = to.name if to else done_name(kernel, bio) or "[unknown]"
    cmd = bio.cmd[4:] if bio.cmd.startswith("BIO_") else bio.cmd
    return f"{cmd} {name} off {bio.offset} len {bio.length}"
