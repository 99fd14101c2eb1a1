"""struct bio: one I/O request on its way through GEOM.

Mirrors sys/sys/bio.h and sys/geom/geom_io.c, 6.x to 15.x: the queues between
the GEOM threads, the chain from a clone up to the request it serves, and what
stands behind that request (a buf, a page of swap, a read of a raw device).
"""

from __future__ import annotations

from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from plugin.caching import LAYOUT, MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel.linker import name_of
from plugin.kernel.lock_object import lock_object
from plugin.kernel.proc import Thread
from plugin.kernel.queue import LIMIT, Raw, tailq_made
from plugin.kernel.sleepqueue import sleepers
from plugin.kernel.tc import bintime
from plugin.session import Kernel
from plugin.structs.layout import Fields

#: bio_flags that have one value in every version (sys/bio.h)
BIO_DONE = 0x02
BIO_ONQUEUE = 0x04

#: A chain of clones longer than this is a loop or garbage: it is as deep as the
#: stack of GEOM classes, and the kernel's own stack would not bear more.
MAX_CHAIN = 64


class Bio(NamedTuple):
    """One struct bio; members carry the kernel's names without their prefix.

    ``cmd`` is the command's name in this version ("BIO_READ").  ``offset`` and
    ``length`` in bytes.  Pointers are addresses, 0 for NULL.
    """

    address: int
    cmd: str
    flags: int
    offset: int
    length: int
    completed: int
    error: int
    done: int
    caller1: int
    caller2: int
    disk: int
    #: bio_from, a struct g_consumer, and bio_to, a struct g_provider
    from_: int
    to: int
    parent: int
    #: clones made, and clones that have come back
    children: int
    inbed: int
    dev: int
    #: bio_t0 as it lies in memory; decoded when asked for, since most walks do not
    raw_t0: bytes

    @property
    def t0(self) -> Optional[float]:
        """Seconds since boot at which it was requested, None before g_io_request."""
        return bintime(self.raw_t0) or None

    @property
    def on_queue(self) -> bool:
        """BIO_ONQUEUE: on one of g_bio_run_down, g_bio_run_up, g_bio_run_task."""
        return bool(self.flags & BIO_ONQUEUE)

    @property
    def is_done(self) -> bool:
        """BIO_DONE: biodone() has run and there was no bio_done to call."""
        return bool(self.flags & BIO_DONE)


_PATHS = (
    "bio_cmd",
    "bio_flags",
    "bio_offset",
    "bio_length",
    "bio_completed",
    "bio_error",
    "bio_done",
    "bio_caller1",
    "bio_caller2",
    "bio_disk",
    "bio_from",
    "bio_to",
    "bio_parent",
    "bio_children",
    "bio_inbed",
    "bio_dev",
    "bio_t0",
)


class _Reader:
    """Turns the bytes of a bio into a Bio, for one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.fields = kernel.layouts.fields("bio", *_PATHS)
        self.commands = kernel.layouts.table("bio_cmd")

    def make(self, address: int, values: Sequence[Any]) -> Bio:
        return Bio(address, self.commands.get(values[0]) or str(values[0]), *values[1:])


@cached(LAYOUT)
def _reader(kernel: Kernel) -> _Reader:
    return _Reader(kernel)


def bio_at(kernel: Kernel, address: int) -> Bio:
    """The bio at ``address``; MemoryFault where it cannot be read."""
    reader = _reader(kernel)
    return reader.make(address, kernel.values(reader.fields, address))


def try_bio_at(kernel: Kernel, address: int, what: str = "bio") -> Optional[Bio]:
    """As bio_at; what cannot be read becomes a warning and None."""
    try:
        return bio_at(kernel, address)
    except MemoryFault as fault:
        kernel.warnings.add(what, fault.address, f"bio {address:#x}: {fault.reason}")
        return None


def flag_names(kernel: Kernel, bio: Bio) -> List[str]:
    return kernel.layouts.flags("bio_flags", bio.flags)


def bios_of_tailq(kernel: Kernel, head: int, what: str = "", bound: int = LIMIT) -> Iterator[Bio]:
    """The bios on a tail queue linked by bio_queue, in the queue's order."""
    commands = _reader(kernel).commands

    def maker(fields: Fields) -> Callable[[int, Raw], Bio]:
        # What reader.make() does, at half its cost: queues of 100,000 bios are walked.
        new, name_of = tuple.__new__, commands.get
        at, pick = fields.places[2], fields.picker(3)
        return lambda address, raw: new(
            Bio, (address, name_of(raw[at]) or str(raw[at]), *pick(raw))
        )

    return tailq_made(kernel, head, "bio", "bio_queue", _PATHS, maker, what=what, bound=bound)


# The queues


class BioQueue(NamedTuple):
    """A queue of bios.

    ``length`` is what the kernel counts (bio_queue_length, or total of a
    bio_queue_head), None where the head keeps no count.  ``kind``: "g_bioq",
    "bio_queue_head" or "tailq".  ``address`` is the head's.
    """

    name: str
    address: int
    length: Optional[int]
    kind: str
    bios: List[Bio]


#: The queues of geom_io.c; g_bio_run_task went with bio_taskqueue() in 12.0.
GEOM_QUEUES = ("g_bio_run_down", "g_bio_run_up", "g_bio_run_task")


@cached(MEMORY)
def g_bioqs(kernel: Kernel) -> List[BioQueue]:
    """The queues between the GEOM threads that this kernel has, walked."""
    return list(_g_bioqs(kernel))


def _g_bioqs(kernel: Kernel) -> Iterator[BioQueue]:
    for name in GEOM_QUEUES:
        symbol = kernel.symbol(name)
        if symbol is not None:
            yield _g_bioq(kernel, symbol.address, name)


def _g_bioq(kernel: Kernel, address: int, name: str) -> BioQueue:
    length: Optional[int] = None
    try:
        length = kernel.view("g_bioq", address).bio_queue_length
    except MemoryFault as fault:
        kernel.warnings.add(name, fault.address, fault.reason)
    bios = _counted(kernel, address + _head_of(kernel, "g_bioq"), name, length)
    return BioQueue(name, address, length, "g_bioq", bios)


def _head_of(kernel: Kernel, struct: str) -> int:
    """Offset of the TAILQ head in a queue struct."""
    path = "bio_queue" if struct == "g_bioq" else "queue"
    return kernel.layouts.offsetof(struct, path)


def _counted(kernel: Kernel, head: int, name: str, length: Optional[int]) -> List[Bio]:
    """The bios of a queue, with a finding where the queue's own count differs."""
    with kernel.noting() as trouble:
        bios = list(bios_of_tailq(kernel, head, name))
    if length is not None and len(bios) != length and not trouble.partial:
        kernel.warnings.add(name, head, f"its count says {length} bios, {len(bios)} are on it")
    return bios


def queue_at(kernel: Kernel, address: int) -> BioQueue:
    """The queue whose head is at ``address``: g_bioq, bio_queue_head or a plain TAILQ.

    Told apart by what follows the head: a g_bioq has a lock in it, and the
    counter of a bio_queue_head agrees with its list.
    """
    name = kernel.symbolize(address) or f"{address:#x}"
    layouts = kernel.layouts
    if layouts.get("g_bioq") is not None:
        lock = address + layouts.offsetof("g_bioq", "bio_queue_lock")
        if lock_object(kernel, lock) is not None:
            return _g_bioq(kernel, address, name)
    bios = list(bios_of_tailq(kernel, address, name))
    total: Optional[int] = None
    if layouts.get("bio_queue_head") is not None and layouts.has("bio_queue_head", "total"):
        try:
            total = kernel.view("bio_queue_head", address).total
        except MemoryFault:
            total = None
    if total == len(bios) and (bios or _is_empty_head(kernel, address)):
        return BioQueue(name, address, total, "bio_queue_head", bios)
    return BioQueue(name, address, None, "tailq", bios)


def _is_empty_head(kernel: Kernel, address: int) -> bool:
    """True for an initialised empty TAILQ: tqh_last points at tqh_first."""
    try:
        first = kernel.pointer(address)
        last = kernel.pointer(address + kernel.pointer_size)
    except MemoryFault:
        return False
    return first == 0 and last == address


def is_queue_head(kernel: Kernel, address: int) -> bool:
    """True where a tail queue of bios has its head, by the links that point back to it."""
    if _is_empty_head(kernel, address):
        return True
    try:
        first = kernel.pointer(address)
        back = kernel.pointer(first + kernel.layouts.offsetof("bio", "bio_queue.tqe_prev"))
    except MemoryFault:
        return False
    return back == address


# The chain and its top


def bio_chain(kernel: Kernel, bio: Bio, known: Optional[Mapping[int, Bio]] = None) -> List[Bio]:
    """The bio and its parents, up to the request that nobody cloned.

    Parents that are in ``known`` are not read again.
    """
    known = known or {}
    chain = [bio]
    seen = {bio.address}
    while chain[-1].parent:
        address = chain[-1].parent
        if address in seen or len(chain) >= MAX_CHAIN:
            kernel.warnings.add(
                "bio_parent", chain[-1].address, f"loops back to {address:#x}", partial=False
            )
            break
        parent = known.get(address) or try_bio_at(kernel, address, "bio_parent")
        if parent is None:
            break
        seen.add(address)
        chain.append(parent)
    return chain


def done_name(kernel: Kernel, bio: Bio) -> str:
    """The function that bio_done points to, or the module it lies in; "" for NULL."""
    return _function(kernel, bio.done) if bio.done else ""


@cached(MEMORY)
def _function(kernel: Kernel, address: int) -> str:
    return name_of(kernel, address)


class Origin(NamedTuple):
    """What stands behind a bio: who made the request at the top of its chain.

    ``kind``: "buf" (``address`` is a struct buf), "swap" (a buf, ``detail`` the
    swdevt), "physio", "aio", "zfs" (a zio), "ctl", "thread" (somebody waits in
    biowait), "class" (a GEOM class for its own purposes) or "unknown".
    ``evidence`` says what it was told by.
    """

    kind: str
    address: Optional[int]
    detail: Optional[int]
    top: Bio
    evidence: str


def _buf(bio: Bio) -> Tuple[Optional[int], Optional[int]]:
    return bio.caller2 or None, bio.caller1 or None


def _caller1(bio: Bio) -> Tuple[Optional[int], Optional[int]]:
    return bio.caller1 or None, bio.caller2 or None


def _itself(bio: Bio) -> Tuple[Optional[int], Optional[int]]:
    return bio.address, None


def _nothing(bio: Bio) -> Tuple[Optional[int], Optional[int]]:
    return None, None


Where = Callable[[Bio], Tuple[Optional[int], Optional[int]]]
#: bio_done at the top of a chain -> (kind, where the thing behind it is kept)
_ORIGINS: Dict[str, Tuple[str, Where]] = {
    # geom/geom_vfs.c
    "g_vfs_done": ("buf", _buf),
    # vm/swap_pager.c; bio_caller1 is the swdevt from 10.x on
    "swapgeom_done": ("swap", _buf),
    # kern/vfs_bio.c dev_strategy(), to 10.x
    "bufdonebio": ("buf", _buf),
    # kern/vfs_aio.c: to 10.x, and since
    "aio_physwakeup": ("aio", _caller1),
    "aio_biowakeup": ("aio", _caller1),
    # the ZFS vdev of GEOM
    "vdev_geom_io_intr": ("zfs", _caller1),
    "vdev_geom_io_done": ("zfs", _caller1),
    # cam/ctl/ctl_backend_block.c
    "ctl_be_block_biodone": ("ctl", _caller1),
    # the only one of ZFS's bios that reach GEOM, where its module has no symbols here
    "zfs.ko": ("zfs", _caller1),
}


def bio_origin(kernel: Kernel, bio: Bio, known: Optional[Mapping[int, Bio]] = None) -> Origin:
    """What is behind a bio, told by bio_done at the top of its chain.

    ``known`` as in bio_chain().
    """
    top = bio_chain(kernel, bio, known)[-1] if bio.parent else bio
    if top.dev and not top.done:
        return Origin("physio", top.address, top.dev, top, "bio_dev is set, as physio() does")
    kind, where, evidence = _completion(kernel, top.done)
    return Origin(kind, *where(top), top, evidence)


@cached(MEMORY)
def _completion(kernel: Kernel, done: int) -> Tuple[str, Where, str]:
    """What a bio_done tells of who made the request: kind, where it is kept, evidence."""
    if not done:
        return "thread", _itself, "bio_done is NULL: biowait() waits for BIO_DONE"
    name = _function(kernel, done)
    base = name.split("+")[0]
    evidence = f"bio_done is {name}"
    if base in _ORIGINS:
        return (*_ORIGINS[base], evidence)
    if name.startswith("g_") or base == "biodone":
        return "class", _itself, evidence
    return "unknown", _nothing, evidence if name else f"bio_done is {done:#x}, no known function"


def bio_waiters(kernel: Kernel, address: int) -> List[Thread]:
    """Threads that sleep on this bio or buf."""
    return sleepers(kernel).get(address, [])
