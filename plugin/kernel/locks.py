"""Every kind of lock, decoded: who holds it, how, and what its flags say.

Mirrors sys/kern/kern_mutex.c, kern_rwlock.c, kern_rmlock.c, kern_sx.c,
kern_lock.c and their headers, 6.x to 15.x.  From 8.0 on every lock begins with
a struct lock_object and keeps its owner in one word.  Before, sx is a mutex
with two condition variables and a holder (``sx_xholder``), and lockmgr's
``struct lock`` has no lock_object at all: it is known by its wait message.

A kind of lock is one LockClass, registered by ``@lock_class``: how people call it, which
variable is its struct lock_class, how its words decode, where its waiters sleep, which
counter of a thread tells of its readers.  Whoever asks about locks asks that record; a kind
is added here alone (and to the forge, to be tested).
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple, Type, TypeVar

from plugin.caching import LAYOUT, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.counter import zpcpu_offsets
from plugin.kernel.lock_object import CLASS_SYMBOLS, UNREAD, LockObject, lock_object
from plugin.kernel.queue import list_foreach
from plugin.session import Kernel

LOCKMGR = "lockmgr"
SX = "sx"
MUTEX = "sleep mutex"
SPIN = "spin mutex"
RW = "rw"
RM = "rm"
RM_SLEEPABLE = "sleepable rm"
RMS = "rmslock"

#: Low bits of a mutex word; 700014 defines MTX_FLAGMASK the other way round.
_MTX_FLAGS = 7


class Lock(NamedTuple):
    """One lock as its own memory describes it.

    ``state``: "unlocked", "exclusive", "shared", "disowned" (a lockmgr lock
    handed to the I/O, LK_KERNPROC), "destroyed" or "unreadable".  ``owners``
    are addresses of struct thread; a shared hold has none, for the kernel
    counts readers (``sharers``) and does not name them.  ``flags`` are the
    names of the waiter bits set in the word.  ``name`` is None where it could
    not be read.
    """

    address: int
    name: Optional[str]
    lc_name: str
    state: str
    owners: Tuple[int, ...] = ()
    sharers: int = 0
    recursion: int = 0
    flags: Tuple[str, ...] = ()
    word: Optional[int] = None

    @property
    def held(self) -> bool:
        return self.state in ("exclusive", "shared", "disowned")


def lock_at(kernel: Kernel, address: int) -> Optional[Lock]:
    """The lock whose struct lock_object is at ``address``, or None if there is none.

    A 6.x / 700014 lockmgr lock has no lock_object; ``old_lockmgr`` reads those.
    """
    found = lock_object(kernel, address)
    return decode(kernel, found) if found is not None else None


def decode(kernel: Kernel, lock: LockObject) -> Lock:
    """The state of a lock whose lock_object was read; never raises.

    What cannot be read gives state "unreadable" and a finding.
    """
    kind = lock_class_named(lock.lc_name)
    if kind is None:
        kernel.warnings.add(
            f"lock {lock.name or UNREAD!r}",
            lock.address,
            f"is of an unknown class, {lock.lc_name!r}",
        )
        return Lock(lock.address, lock.name, lock.lc_name, "unreadable")
    try:
        return kind.decode(kernel, lock)
    except MemoryFault as fault:
        kernel.warnings.add(
            f"{lock.lc_name} lock {lock.name or UNREAD!r}", fault.address, fault.reason
        )
    except LayoutError as error:
        kernel.warnings.add(
            f"{lock.lc_name} lock {lock.name or UNREAD!r}", lock.address, str(error)
        )
    return Lock(lock.address, lock.name, lock.lc_name, "unreadable")


class LockClass:
    """What there is to know about one kind of lock, struct lock_class and beyond."""

    #: lc_name
    name: str
    #: how people call it in a sentence
    word: str
    #: the variable that holds its struct lock_class (the names have not changed since 5.x);
    #: "" where its lock_object is of another class
    symbol: str = ""
    #: the member of struct thread that counts its shared holds of this kind
    reader_count: Optional[str] = None
    #: the functions in which a thread spins for it
    spins: Tuple[str, ...] = ()
    #: a waiting writer owns the lock inside it already, and the turnstile's owner is a reader
    writer_first = False

    def decode(self, kernel: Kernel, lock: LockObject) -> Lock:
        """Its state; MemoryFault or LayoutError where it cannot be read."""
        raise NotImplementedError

    def readers(self, kernel: Kernel, address: int) -> List[int]:
        """struct thread * of the readers that the lock names beside its owners."""
        return []

    def at_channel(self, kernel: Kernel, channel: LockChannel) -> Optional[Lock]:
        """The lock whose waiters sleep on ``channel``, None where it is no such lock's."""
        return None

    def mode(self, kernel: Kernel, lock: Lock, channel: int, queue: Optional[int]) -> Optional[str]:
        """ "exclusive", "shared" or "drain" for a sleeper on ``channel``; None if not kept."""
        return _mode_of_queue(queue)


class LockChannel(NamedTuple):
    """A wait channel with what the kernel keeps of a sleep on it.

    ``type`` as in sleepqueue.TYPES, None where it is not kept; ``text`` the wait message,
    None where it could not be read, and ``wmesg`` the pointer to it.
    """

    address: int
    type: Optional[str]
    wmesg: int
    text: Optional[str]


_CLASSES: Dict[str, LockClass] = {}
_C = TypeVar("_C", bound=Type[LockClass])


def lock_class(kind: _C) -> _C:
    """Registers a kind of lock, a LockClass without state."""
    _CLASSES[kind.name] = kind()
    if kind.symbol:
        CLASS_SYMBOLS[kind.symbol] = kind.name
    return kind


def lock_class_named(name: str) -> Optional[LockClass]:
    """The record of the kind whose lc_name that is, None for an unknown one."""
    return _CLASSES.get(name)


def lock_classes() -> List[LockClass]:
    """Every kind of lock, in the order in which they stand below."""
    return list(_CLASSES.values())


@cached(LAYOUT)
def _held_counters(kernel: Kernel) -> Tuple[str, ...]:
    """Members of struct thread that count what it holds.

    td_locks counts all but spin mutexes, and from 13.0 on INVARIANTS kernels alone keep it.
    """
    members = ["td_locks", *(kind.reader_count for kind in lock_classes() if kind.reader_count)]
    return tuple(m for m in dict.fromkeys(members) if kernel.layouts.has("thread", m))


def held_counts(kernel: Kernel, thread: int) -> Dict[str, int]:
    """{member: how many} of the counters of held locks in a struct thread * that are not 0.

    Nothing where the kernel keeps none; a finding where they cannot be read.
    """
    members = _held_counters(kernel)
    if not members:
        return {}
    fields = kernel.layouts.fields("thread", *members)
    try:
        values = kernel.values(fields, thread)
    except MemoryFault as fault:
        kernel.warnings.add("struct thread", fault.address, f"{thread:#x}: {fault.reason}")
        return {}
    return {member: value for member, value in zip(members, values) if value}


def word_for(name: str) -> str:
    """How people call a kind of lock; an unknown one by its lc_name."""
    kind = _CLASSES.get(name)
    return kind.word if kind is not None else name


def lock_of_channel(kernel: Kernel, channel: LockChannel) -> Optional[Lock]:
    """The lock that a sleeper on ``channel`` waits for, whatever its kind; None if for none."""
    for kind in _CLASSES.values():
        found = kind.at_channel(kernel, channel)
        if found is not None:
            return found
    if channel.type in ("sx", "lockmgr"):
        # The kernel itself says that this is a lock: not to recognise it is worth a word.
        found = lock_at(kernel, channel.address)
        if found is None or found.lc_name not in _CLASSES:
            kernel.warnings.add(
                f"lock at {channel.address:#x}",
                channel.address,
                f"its waiters sleep as on {channel.type}, but it cannot be read as one",
            )
    return None


def _mode_of_queue(queue: Optional[int]) -> Optional[str]:
    return None if queue is None else ("exclusive", "shared")[queue & 1]


def _constant(kernel: Kernel, name: str, default: int) -> int:
    return kernel.layouts.constant(name, default)


def _flags(kernel: Kernel, word: int, *names: str) -> Tuple[str, ...]:
    """The names of those single-bit macros of this kernel that are set in ``word``."""
    found = []
    for name in names:
        bit = kernel.layouts.constant(name, 0)
        if bit and word & bit:
            found.append(name)
    return tuple(found)


def _recursion(kernel: Kernel, struct: str, member: str, address: int) -> int:
    """mtx_recurse and its kin: a member to 700014, lock_object.lo_data since."""
    path = kernel.layouts.first_of(struct, member, "lock_object.lo_data")
    if path is None:
        return 0
    found = kernel.layouts.resolve(struct, path)
    return kernel.unsigned(address + found.offset, found.size)


def _word(kernel: Kernel, struct: str, member: str, address: int) -> int:
    return kernel.pointer(address + kernel.layouts.offsetof(struct, member))


def _mutex(kernel: Kernel, lock: LockObject) -> Lock:
    word = _word(kernel, "mtx", "mtx_lock", lock.address)
    owner = word & ~_MTX_FLAGS
    flags = _flags(kernel, word, "MTX_RECURSED", "MTX_CONTESTED") if owner else ()
    if owner:
        return Lock(
            lock.address,
            lock.name,
            lock.lc_name,
            "exclusive",
            (owner,),
            recursion=_recursion(kernel, "mtx", "mtx_recurse", lock.address),
            flags=flags,
            word=word,
        )
    # MTX_UNOWNED was 4 and MTX_DESTROYED 6 before 12.0; 0 and 4 since.
    unowned = _constant(kernel, "MTX_UNOWNED", 4 if kernel.osreldate < 1200000 else 0)
    destroyed = unowned | (2 if unowned else 4)
    state = "destroyed" if word == destroyed else "unlocked"
    return Lock(lock.address, lock.name, lock.lc_name, state, word=word)


class _Bits(NamedTuple):
    """The macros of a lock word that is shared or exclusive (rw, sx, lockmgr)."""

    shared: str
    mask: str
    shift: str
    #: values of mask and shift where the tables lack them: 12.0 on, and before
    newer: Tuple[int, int]
    older: Tuple[int, int]
    waiters: Tuple[str, ...]
    destroyed: Optional[int]


_RW_BITS = _Bits(
    "RW_LOCK_READ",
    "RW_LOCK_FLAGMASK",
    "RW_READERS_SHIFT",
    (0x1F, 5),
    (0xF, 4),
    ("RW_LOCK_READ_WAITERS", "RW_LOCK_WRITE_WAITERS", "RW_LOCK_WRITE_SPINNER"),
    6,
)
_SX_BITS = _Bits(
    "SX_LOCK_SHARED",
    "SX_LOCK_FLAGMASK",
    "SX_SHARERS_SHIFT",
    (0x1F, 5),
    (0xF, 4),
    ("SX_LOCK_SHARED_WAITERS", "SX_LOCK_EXCLUSIVE_WAITERS", "SX_LOCK_WRITE_SPINNER"),
    6,
)
_LK_BITS = _Bits(
    "LK_SHARE",
    "LK_FLAGMASK",
    "LK_SHARERS_SHIFT",
    (0xF, 4),
    (0xF, 4),
    ("LK_SHARED_WAITERS", "LK_EXCLUSIVE_WAITERS", "LK_EXCLUSIVE_SPINNERS"),
    None,
)


def _shared_or_exclusive(kernel: Kernel, lock: LockObject, word: int, bits: _Bits) -> Lock:
    mask, shift = bits.newer if kernel.osreldate >= 1200000 else bits.older
    mask = _constant(kernel, bits.mask, mask)
    shift = _constant(kernel, bits.shift, shift)
    flags = _flags(kernel, word, *bits.waiters)
    if bits.destroyed is not None and word == bits.destroyed:
        return Lock(lock.address, lock.name, lock.lc_name, "destroyed", word=word)
    if word & _constant(kernel, bits.shared, 1):
        sharers = word >> shift
        state = "shared" if sharers else "unlocked"
        return Lock(
            lock.address, lock.name, lock.lc_name, state, sharers=sharers, flags=flags, word=word
        )
    owner = word & ~mask
    if owner == _kernproc(kernel, mask):
        return Lock(lock.address, lock.name, lock.lc_name, "disowned", flags=flags, word=word)
    state = "exclusive" if owner else "unlocked"
    return Lock(
        lock.address,
        lock.name,
        lock.lc_name,
        state,
        (owner,) if owner else (),
        flags=flags,
        word=word,
    )


def _kernproc(kernel: Kernel, mask: int) -> int:
    """LK_KERNPROC: an address that no thread can have."""
    return ((1 << (8 * kernel.pointer_size)) - 1) & ~mask


def _rwlock(kernel: Kernel, lock: LockObject) -> Lock:
    found = _shared_or_exclusive(
        kernel, lock, _word(kernel, "rwlock", "rw_lock", lock.address), _RW_BITS
    )
    if found.state == "exclusive":
        found = found._replace(recursion=_recursion(kernel, "rwlock", "rw_recurse", lock.address))
    return found


def _sx(kernel: Kernel, lock: LockObject) -> Lock:
    if kernel.layouts.has("sx", "sx_cnt"):
        return _old_sx(kernel, lock)
    found = _shared_or_exclusive(
        kernel, lock, _word(kernel, "sx", "sx_lock", lock.address), _SX_BITS
    )
    if found.state == "exclusive":
        found = found._replace(recursion=_recursion(kernel, "sx", "sx_recurse", lock.address))
    return found


def _old_sx(kernel: Kernel, lock: LockObject) -> Lock:
    """To 700014: sx_cnt is -1 for an exclusive hold, else the number of sharers."""
    view = kernel.view("sx", lock.address)
    count, holder = view.sx_cnt, view.sx_xholder
    count -= (count & 0x80000000) << 1
    flags = tuple(
        name
        for name, member in (
            ("shared waiters", "sx_shrd_wcnt"),
            ("exclusive waiters", "sx_excl_wcnt"),
        )
        if view.get(member, 0)
    )
    if count < 0:
        owners = (holder,) if holder else ()
        return Lock(lock.address, lock.name, lock.lc_name, "exclusive", owners, flags=flags)
    state = "shared" if count else "unlocked"
    return Lock(lock.address, lock.name, lock.lc_name, state, sharers=count, flags=flags)


def _lockmgr(kernel: Kernel, lock: LockObject) -> Lock:
    found = _shared_or_exclusive(
        kernel, lock, _word(kernel, "lock", "lk_lock", lock.address), _LK_BITS
    )
    if found.state == "exclusive":
        found = found._replace(recursion=_recursion(kernel, "lock", "lk_recurse", lock.address))
    return found


def _rm(kernel: Kernel, lock: LockObject) -> Lock:
    """A read-mostly lock: the writer owns the lock inside it.

    Readers are counted nowhere.  Those that a writer has found lie on
    rm_activeReaders; the one it waits for owns the turnstile.  A writer that is
    itself blocked on this lock does not hold it yet: who asks must tell it apart.
    """
    inner = rm_inner(kernel, lock)
    readers = tuple(_active_readers(kernel, lock.address))
    owners = decode(kernel, inner).owners if inner is not None else ()
    if owners:
        return Lock(
            lock.address, lock.name, lock.lc_name, "exclusive", owners, sharers=len(readers)
        )
    state = "shared" if readers else "unlocked"
    return Lock(lock.address, lock.name, lock.lc_name, state, readers, sharers=len(readers))


def rm_inner(kernel: Kernel, lock: LockObject) -> Optional[LockObject]:
    """The mutex, or sx for a sleepable one, that writers and slow readers take first."""
    path = kernel.layouts.first_of("rmlock", "_rm_lock", "_rm_lock._rm_lock_mtx", "rm_lock_mtx")
    if path is None:
        return None
    return lock_object(kernel, lock.address + kernel.layouts.offsetof("rmlock", path))


def _active_readers(kernel: Kernel, address: int) -> List[int]:
    if "rm_priotracker" not in kernel.layouts:
        return []
    head = address + kernel.layouts.offsetof("rmlock", "rm_activeReaders")
    return [
        values[0]
        for _, values in list_foreach(
            kernel,
            head,
            "rm_priotracker",
            "rmp_qentry",
            ["rmp_thread"],
            what=f"readers of rm lock {address:#x}",
            bound=4096,
        )
    ]


# The lockmgr of 6.x and 700014


def has_old_lockmgr(kernel: Kernel) -> bool:
    """True where struct lock has no lock_object (before 8.0)."""
    return kernel.layouts.has("lock", "lk_lockholder")


def old_lockmgr(kernel: Kernel, address: int) -> Lock:
    """A struct lock of 6.x / 700014 at ``address`` (MemoryFault if unreadable).

    lk_lockholder is LK_KERNPROC ((struct thread *)-2) while an I/O owns a
    buffer, LK_NOPROC (-1) while nobody does.
    """
    view = kernel.view("lock", address)
    name = kernel.try_cstring(view.lk_wmesg)
    holder, flags, sharers = view.lk_lockholder, view.lk_flags, view.lk_sharecount
    top = 1 << (8 * kernel.pointer_size)
    wants = _flags(kernel, flags, "LK_WANT_EXCL", "LK_WANT_UPGRADE", "LK_WAITDRAIN")
    if view.lk_exclusivecount & 0x7FFF:
        if holder == top - 2:
            return Lock(address, name, LOCKMGR, "disowned", flags=wants)
        owners = (holder,) if 0 < holder < top - 2 else ()
        return Lock(
            address,
            name,
            LOCKMGR,
            "exclusive",
            owners,
            recursion=(view.lk_exclusivecount & 0x7FFF) - 1,
            flags=wants,
        )
    if sharers > 0:
        return Lock(address, name, LOCKMGR, "shared", sharers=sharers, flags=wants)
    return Lock(address, name, LOCKMGR, "unlocked", flags=wants)


def describe(lock: Lock) -> str:
    """The state in words: "exclusive", "shared by 11", "handed to the I/O (LK_KERNPROC)"."""
    if lock.state == "shared":
        text = f"shared by {lock.sharers}" if lock.sharers else "shared"
    elif lock.state == "disowned":
        text = "handed to the I/O (LK_KERNPROC)"
    else:
        text = lock.state
    if lock.recursion:
        text += f", recursed {lock.recursion}"
    return text


# The kinds


@lock_class
class _Mutex(LockClass):
    name, word, symbol = MUTEX, "mutex", "lock_class_mtx_sleep"

    def decode(self, kernel: Kernel, lock: LockObject) -> Lock:
        return _mutex(kernel, lock)


@lock_class
class _Spin(_Mutex):
    name, word, symbol = SPIN, "spin mutex", "lock_class_mtx_spin"
    spins = ("_mtx_lock_spin", "_mtx_lock_spin_cookie", "_thread_lock", "thread_lock_flags_")


@lock_class
class _Rw(LockClass):
    name, word, symbol = RW, "rwlock", "lock_class_rw"
    reader_count = "td_rw_rlocks"

    def decode(self, kernel: Kernel, lock: LockObject) -> Lock:
        return _rwlock(kernel, lock)


@lock_class
class _Rm(LockClass):
    name, word, symbol = RM, "rmlock", "lock_class_rm"
    writer_first = True

    def decode(self, kernel: Kernel, lock: LockObject) -> Lock:
        return _rm(kernel, lock)

    def readers(self, kernel: Kernel, address: int) -> List[int]:
        return _active_readers(kernel, address)


@lock_class
class _RmSleepable(_Rm):
    name, word, symbol = RM_SLEEPABLE, "sleepable rmlock", "lock_class_rm_sleepable"


@lock_class
class _Sx(LockClass):
    """To 700014 waiters sleep on its two condition variables, since on the lock itself."""

    name, word, symbol = SX, "sx", "lock_class_sx"
    reader_count = "td_sx_slocks"

    def decode(self, kernel: Kernel, lock: LockObject) -> Lock:
        return _sx(kernel, lock)

    def at_channel(self, kernel: Kernel, channel: LockChannel) -> Optional[Lock]:
        if not channel.wmesg:
            return None
        if not kernel.layouts.has("sx", "sx_cnt"):
            if channel.type in _NO_LOCK:
                return None
            found = lock_object(kernel, channel.address)
            # Its name is the wait message: two that could not be read are not the same.
            named = found is not None and (
                found.name == channel.text if found.name else channel.type == "sx"
            )
            return decode(kernel, found) if found and named and found.lc_name == SX else None
        # The condition variable's own name must be the very string the thread sleeps with.
        for member in ("sx_shrd_cv", "sx_excl_cv"):
            at = channel.address - kernel.layouts.offsetof("sx", member)
            found = lock_object(kernel, at)
            try:
                if (
                    found
                    and found.lc_name == SX
                    and kernel.pointer(channel.address) == channel.wmesg
                ):
                    return decode(kernel, found)
            except MemoryFault:
                continue
        return None

    def mode(self, kernel: Kernel, lock: Lock, channel: int, queue: Optional[int]) -> Optional[str]:
        offset = channel - lock.address
        if not offset:
            return _mode_of_queue(queue)
        return "shared" if offset == kernel.layouts.offsetof("sx", "sx_shrd_cv") else "exclusive"


@lock_class
class _Lockmgr(LockClass):
    """Waiters sleep on the lock; to 700014 that has no lock_object, who drains on its flags."""

    name, word, symbol = LOCKMGR, "lockmgr", "lock_class_lockmgr"
    reader_count = "td_lk_slocks"

    def decode(self, kernel: Kernel, lock: LockObject) -> Lock:
        return _lockmgr(kernel, lock)

    def at_channel(self, kernel: Kernel, channel: LockChannel) -> Optional[Lock]:
        if has_old_lockmgr(kernel):
            return self._old(kernel, channel)
        if channel.type in _NO_LOCK:
            return None
        found = lock_object(kernel, channel.address)
        return decode(kernel, found) if found and found.lc_name == LOCKMGR else None

    def _old(self, kernel: Kernel, channel: LockChannel) -> Optional[Lock]:
        if not channel.wmesg:
            return None
        wmesg = kernel.layouts.offsetof("lock", "lk_wmesg")
        for offset in (0, kernel.layouts.offsetof("lock", "lk_flags")):
            at = channel.address - offset
            try:
                if kernel.pointer(at + wmesg) != channel.wmesg:
                    continue
                if offset or kernel.view("lock", at).lk_waitcount > 0:
                    return old_lockmgr(kernel, at)
            except MemoryFault:
                continue
        return None

    def mode(self, kernel: Kernel, lock: Lock, channel: int, queue: Optional[int]) -> Optional[str]:
        if channel != lock.address:
            return "drain"
        return None if has_old_lockmgr(kernel) else _mode_of_queue(queue)


#: owner of a struct rmslock: RMS_NOOWNER, RMS_TRANSIENT, else a thread (sys/kern/kern_rmlock.c)
_RMS_TRANSIENT, _RMS_FLAGMASK = 2, 0xF
_RMS_CHANNELS = {"readers": "shared", "writers": "exclusive", "owner": "exclusive"}


@lock_class
class _Rms(LockClass):
    """struct rmslock, from 13.0: a mutex, the writer, counts of writers and of readers.

    A writer waits on &writers for the readers to go, further writers on &owner, readers
    behind a writer on &readers, each by msleep(9) with the mutex's name.  Readers are
    counted per CPU until a writer comes, then in ``readers``; who they are is not kept.
    """

    name, word, symbol = RMS, "rmslock", ""

    def decode(self, kernel: Kernel, lock: LockObject) -> Lock:
        view = kernel.view("rmslock", lock.address)
        owner, sharers = view.owner & ~_RMS_FLAGMASK, _signed32(view.readers)
        flags = ("writers waiting",) if view.writers > (1 if owner else 0) else ()
        if owner:
            return Lock(lock.address, lock.name, RMS, "exclusive", (owner,), flags=flags)
        if view.owner == _RMS_TRANSIENT:
            flags = (*flags, "RMS_TRANSIENT")
        member = kernel.layouts.resolve("rmslock_pcpu", "readers")
        mask = (1 << 8 * kernel.pointer_size) - 1
        for offset in zpcpu_offsets(kernel) if view.pcpu else ():
            at = view.pcpu + offset + member.offset & mask
            sharers += kernel.signed(at, member.size)
        state = "shared" if sharers > 0 else "unlocked"
        return Lock(lock.address, lock.name, RMS, state, sharers=max(sharers, 0), flags=flags)

    def at_channel(self, kernel: Kernel, channel: LockChannel) -> Optional[Lock]:
        layouts = kernel.layouts
        if "rmslock" not in layouts or channel.type not in (None, "sleep") or not channel.wmesg:
            return None
        name = layouts.offsetof("lock_object", "lo_name")
        for member in _RMS_CHANNELS:
            offset = layouts.offsetof("rmslock", member)
            try:
                if kernel.pointer(channel.address - offset + name) != channel.wmesg:
                    continue
            except MemoryFault:
                continue
            found = lock_object(kernel, channel.address - offset)
            if found is not None and found.lc_name == MUTEX:
                return decode(kernel, found._replace(lc_name=RMS))
        return None

    def mode(self, kernel: Kernel, lock: Lock, channel: int, queue: Optional[int]) -> Optional[str]:
        offset = channel - lock.address
        for member, mode in _RMS_CHANNELS.items():
            if offset == kernel.layouts.offsetof("rmslock", member):
                return mode
        return None


def _signed32(value: int) -> int:
    return value - ((value & 0x80000000) << 1)


#: sleep queues on which nobody waits for an sx or a lockmgr lock
_NO_LOCK = ("sleep", "pause", "condvar")
