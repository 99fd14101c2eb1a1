"""Every kind of lock, decoded: who holds it, how, and what its flags say.

Mirrors sys/kern/kern_mutex.c, kern_rwlock.c, kern_rmlock.c, kern_sx.c,
kern_lock.c and their headers, 6.x to 15.x.  From 8.0 on every lock begins with
a struct lock_object and keeps its owner in one word.  Before, sx is a mutex
with two condition variables and a holder (``sx_xholder``), and lockmgr's
``struct lock`` has no lock_object at all: it is known by its wait message.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.lock_object import LockObject, lock_object
from plugin.kernel.queue import list_foreach
from plugin.session import Kernel

LOCKMGR = "lockmgr"
SX = "sx"
MUTEX = "sleep mutex"
SPIN = "spin mutex"
RW = "rw"
RM = "rm"
RM_SLEEPABLE = "sleepable rm"

#: Low bits of a mutex word; 700014 defines MTX_FLAGMASK the other way round.
_MTX_FLAGS = 7


class Lock(NamedTuple):
    """One lock as its own memory describes it.

    ``state``: "unlocked", "exclusive", "shared", "disowned" (a lockmgr lock
    handed to the I/O, LK_KERNPROC), "destroyed" or "unreadable".  ``owners``
    are addresses of struct thread; a shared hold has none, for the kernel
    counts readers (``sharers``) and does not name them.  ``flags`` are the
    names of the waiter bits set in the word.
    """

    address: int
    name: str
    klass: str
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
    decoder = _DECODERS.get(lock.klass)
    if decoder is None:
        return Lock(lock.address, lock.name, lock.klass, "unreadable")
    try:
        return decoder(kernel, lock)
    except MemoryFault as fault:
        kernel.warnings.add(f"{lock.klass} lock {lock.name!r}", fault.address, fault.reason)
    except LayoutError as error:
        kernel.warnings.add(f"{lock.klass} lock {lock.name!r}", lock.address, str(error))
    return Lock(lock.address, lock.name, lock.klass, "unreadable")


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
            lock.klass,
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
    return Lock(lock.address, lock.name, lock.klass, state, word=word)


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
        return Lock(lock.address, lock.name, lock.klass, "destroyed", word=word)
    if word & _constant(kernel, bits.shared, 1):
        sharers = word >> shift
        state = "shared" if sharers else "unlocked"
        return Lock(
            lock.address, lock.name, lock.klass, state, sharers=sharers, flags=flags, word=word
        )
    owner = word & ~mask
    if owner == _kernproc(kernel, mask):
        return Lock(lock.address, lock.name, lock.klass, "disowned", flags=flags, word=word)
    state = "exclusive" if owner else "unlocked"
    return Lock(
        lock.address,
        lock.name,
        lock.klass,
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
        return Lock(lock.address, lock.name, lock.klass, "exclusive", owners, flags=flags)
    state = "shared" if count else "unlocked"
    return Lock(lock.address, lock.name, lock.klass, state, sharers=count, flags=flags)


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
        return Lock(lock.address, lock.name, lock.klass, "exclusive", owners, sharers=len(readers))
    state = "shared" if readers else "unlocked"
    return Lock(lock.address, lock.name, lock.klass, state, readers, sharers=len(readers))


def rm_inner(kernel: Kernel, lock: LockObject) -> Optional[LockObject]:
    """The mutex, or sx for a sleepable one, that writers and slow readers take first."""
    path = kernel.layouts.first_of("rmlock", "_rm_lock", "_rm_lock._rm_lock_mtx", "rm_lock_mtx")
    if path is None:
        return None
    return lock_object(kernel, lock.address + kernel.layouts.offsetof("rmlock", path))


def rm_readers(kernel: Kernel, address: int) -> List[int]:
    """struct thread of each reader on rm_activeReaders, where the layouts tell."""
    return _active_readers(kernel, address)


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


_DECODERS = {
    MUTEX: _mutex,
    SPIN: _mutex,
    RW: _rwlock,
    SX: _sx,
    LOCKMGR: _lockmgr,
    RM: _rm,
    RM_SLEEPABLE: _rm,
}


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


#: how people call each class in a sentence
CLASS_WORDS: Dict[str, str] = {
    MUTEX: "mutex",
    SPIN: "spin mutex",
    RW: "rwlock",
    RM: "rmlock",
    RM_SLEEPABLE: "sleepable rmlock",
    SX: "sx",
    LOCKMGR: "lockmgr",
}
