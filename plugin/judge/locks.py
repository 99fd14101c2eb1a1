"""Which lock a waiting thread waits for, in which mode, and who holds that lock.

Follows DDB's ``show allchains`` (print_lockchain() in
sys/kern/subr_turnstile.c, lockmgr_chain(), sx_chain()) and goes on where DDB
cannot: read holders by td_rw_rlocks and its kin, by WITNESS, and by the stacks
of sleeping threads.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel import locks, witness
from plugin.kernel.lock_object import UNREAD
from plugin.kernel.locks import Lock
from plugin.kernel.proc import Thread, thread_at, threads
from plugin.kernel.sleepqueue import Sleep, sleeps
from plugin.kernel.stack import Frame, frames, stack_words
from plugin.kernel.turnstile import turnstile_at
from plugin.kernel.vnode import vnode_of_lock
from plugin.kernel.zfs.spa import zfsvfs_around
from plugin.kernel.zfs.zvol import zvol_around
from plugin.session import Kernel

PROVEN, GUESSED = "proven", "guessed"
#: bytes below a frame pointer in which a function keeps what it works on
_FRAME = 256


class LockWait(NamedTuple):
    """``mode`` is "exclusive", "shared" or "drain", None where it is not kept."""

    lock: Lock
    mode: Optional[str]


class Holder(NamedTuple):
    """A thread that holds a lock (or is taken to): how sure, and on what grounds."""

    thread: Thread
    shared: bool
    certainty: str
    evidence: str


class Contended(NamedTuple):
    """A lock with its holders and the threads that wait for it."""

    lock: Lock
    holders: List[Holder]
    waiters: List[Tuple[Thread, Optional[str]]]


@cached(MEMORY)
def lock_waits(kernel: Kernel) -> Dict[int, LockWait]:
    """{struct thread address: LockWait} of every thread that waits for a lock."""
    known: Dict[int, Optional[Lock]] = {}
    found: Dict[int, LockWait] = {}
    every = sleeps(kernel)
    for thread in threads(kernel):
        sleep = every.get(thread.address)
        if sleep is not None:
            wait = _lock_wait(kernel, thread, sleep, known)
            if wait is not None:
                found[thread.address] = wait
    for thread in threads(kernel):
        if thread.state == "running":
            wait = _spinning(kernel, thread)
            if wait is not None:
                found[thread.address] = wait
    return found


def _lock_wait(
    kernel: Kernel, thread: Thread, sleep: Sleep, known: Dict[int, Optional[Lock]]
) -> Optional[LockWait]:
    if thread.state == "locked":
        if thread.lock is None or not thread.lock.address:
            return None
        address = thread.lock.address
        if address not in known:
            known[address] = locks.decode(kernel, thread.lock)
        lock = known[address]
        return None if lock is None else LockWait(lock, _mode(sleep.queue))
    if not thread.wchan or not kernel.is_kernel_address(thread.wchan):
        return None
    if thread.wchan not in known:
        channel = locks.LockChannel(thread.wchan, sleep.type, sleep.wmesg, thread.wmesg)
        known[thread.wchan] = locks.lock_of_channel(kernel, channel)
    lock = known[thread.wchan]
    if lock is None:
        try:
            kernel.read(thread.wchan, 1)
        except MemoryFault as fault:
            what = f"thread {thread.tid}"
            kernel.warnings.add(what, fault.address, "its wait channel: whether it is a lock")
        return None
    kind = locks.lock_class_named(lock.lc_name)
    mode = kind.mode(kernel, lock, thread.wchan, sleep.queue) if kind is not None else None
    return LockWait(lock, mode)


def _mode(queue: Optional[int]) -> Optional[str]:
    return None if queue is None else ("exclusive", "shared")[queue & 1]


def _spinning(kernel: Kernel, thread: Thread) -> Optional[LockWait]:
    """The lock that a running thread spins for: td_wantedlock from 15.0 on, else by its stack."""
    if kernel.layouts.has("thread", "td_wantedlock"):
        try:
            address = kernel.pointer(
                thread.address + kernel.layouts.offsetof("thread", "td_wantedlock")
            )
        except MemoryFault:
            return None
        lock = locks.lock_at(kernel, address) if address else None
        if lock is not None and thread.address not in lock.owners:
            return LockWait(lock, None)
        return None
    for frame in frames(kernel, thread):
        for kind in locks.lock_classes():
            if frame.function in kind.spins:
                return _spun_for(kernel, thread, frame, kind.name)
    return None


def _spun_for(kernel: Kernel, thread: Thread, frame: Frame, lc_name: str) -> Optional[LockWait]:
    """The one lock of another thread that a spinning function's frame points at."""
    size = kernel.pointer_size
    try:
        raw = kernel.read(frame.fp - _FRAME, _FRAME)
    except MemoryFault:
        return None
    found: Dict[int, Lock] = {}
    for at in range(0, _FRAME, size):
        address = int.from_bytes(raw[at : at + size], "little")
        if address % size or not kernel.is_kernel_address(address) or address in found:
            continue
        lock = locks.lock_at(kernel, address)
        if lock is None or lock.lc_name != lc_name or thread.address in lock.owners:
            continue
        if lock.owners:
            found[address] = lock
    return LockWait(next(iter(found.values())), None) if len(found) == 1 else None


# Who holds a lock


def holders(kernel: Kernel, lock: Lock, waiting: List[Thread]) -> List[Holder]:
    """Every thread known to hold ``lock``; ``waiting`` are the threads that wait for it.

    In order of proof: the lock's own word; the turnstile; WITNESS; then, for
    shared holds that nothing records, the threads whose counters and stacks fit
    (certainty "guessed").
    """
    found: List[Holder] = []
    seen = set()

    def add(address: int, shared: bool, certainty: str, evidence: str) -> None:
        thread = thread_at(kernel, address)
        if thread is None:
            kernel.warnings.add(
                f"{lock.lc_name} lock {lock.name or UNREAD!r}",
                lock.address,
                f"its owner {address:#x} is no thread",
            )
        elif address not in seen:
            seen.add(address)
            found.append(Holder(thread, shared, certainty, evidence))

    blocked = {thread.address for thread in waiting}
    kind = locks.lock_class_named(lock.lc_name)
    rm = kind is not None and kind.writer_first
    for owner in lock.owners:
        # A writer of an rmlock owns the lock inside it before the readers have gone.
        if rm and owner in blocked:
            continue
        add(owner, lock.state == "shared", PROVEN, _word_evidence(lock, owner))
    for address in kind.readers(kernel, lock.address) if kind is not None else ():
        add(address, True, PROVEN, f"on rm_activeReaders of {lock.address:#x}")
    for thread in waiting:
        turnstile = turnstile_at(kernel, thread.blocked) if thread.blocked else None
        if turnstile is not None and turnstile.owner and turnstile.owner not in seen:
            add(
                turnstile.owner,
                rm,
                PROVEN,
                f"ts_owner {turnstile.owner:#x} of turnstile {turnstile.address:#x}",
            )
    for thread, held in witness.holders(kernel).get(lock.address, ()):
        if thread.address not in seen:
            where = f" at {held.file}:{held.line}" if held.file else ""
            add(thread.address, not held.exclusive, PROVEN, f"WITNESS: taken{where}")
    if lock.state == "shared" and len(found) < lock.sharers:
        for thread, evidence in _guess_sharers(kernel, lock, waiting, seen, len(found)):
            add(thread.address, True, GUESSED, evidence)
    return found


def _word_evidence(lock: Lock, owner: int) -> str:
    word = "" if lock.word is None else f", lock word {lock.word:#x}"
    return f"owner {owner:#x} in the {locks.word_for(lock.lc_name)}{word}"


def _reader_count(lc_name: str) -> Optional[str]:
    """The thread's own count of shared holds of that class."""
    kind = locks.lock_class_named(lc_name)
    return kind.reader_count if kind is not None else None


@cached(MEMORY)
def sharing_threads(kernel: Kernel, lc_name: str) -> List[Tuple[Thread, int]]:
    """Threads that hold some lock of ``lc_name`` shared, with how many, by their own count.

    td_rw_rlocks and td_lk_slocks exist from 8.0 on, td_sx_slocks from 12.0.
    """
    counter = _reader_count(lc_name)
    if counter is None or not kernel.layouts.has("thread", counter):
        return []
    member = kernel.layouts.resolve("thread", counter)
    found = []
    for thread in threads(kernel):
        try:
            held = kernel.unsigned(thread.address + member.offset, member.size)
        except MemoryFault:
            continue
        if 0 < held < 1 << (8 * member.size - 1):
            found.append((thread, held))
    return found


def _guess_sharers(
    kernel: Kernel, lock: Lock, waiting: List[Thread], known: Set[int], count: int
) -> List[Tuple[Thread, str]]:
    """Threads that fit a shared hold which nothing records.

    They hold as many locks of the class as are missing, by their own count, and
    either their stack names this lock or there is no other thread it could be.
    """
    counter = _reader_count(lock.lc_name)
    if counter is None:
        return _by_stack_alone(kernel, lock, waiting, known, lock.sharers - count)
    exclude = known | {thread.address for thread in waiting}
    candidates = [
        (thread, held)
        for thread, held in sharing_threads(kernel, lock.lc_name)
        if thread.address not in exclude
    ]
    wanted = lock.sharers - count
    named = [
        (thread, f"{counter} {held} and its stack holds {lock.address:#x}")
        for thread, held in candidates
        if _on_stack(kernel, thread, lock)
    ]
    if named:
        return named[:wanted]
    if sum(held for _, held in candidates) == wanted:
        why = f"no other thread holds any {lock.lc_name} lock shared"
        return [(thread, f"{counter} {held}: {why}") for thread, held in candidates]
    # Whoever keeps the waiters waiting was stuck before they were.
    oldest = max((thread.age or 0.0 for thread in waiting), default=0.0)
    earlier = [
        (thread, held)
        for thread, held in candidates
        if thread.waits and thread.age is not None and thread.age >= oldest
    ]
    if waiting and sum(held for _, held in earlier) == wanted:
        others = len(candidates) - len(earlier)
        why = f"it was stuck before the first waiter; {others} more threads hold such locks shared"
        return [(thread, f"{counter} {held}: {why}") for thread, held in earlier]
    return []


def _by_stack_alone(
    kernel: Kernel, lock: Lock, waiting: List[Thread], known: Set[int], wanted: int
) -> List[Tuple[Thread, str]]:
    """Readers of a kind that no thread counts: whose stack names the lock, while it waits.

    A thread that itself waits for the lock names it for that; only what lies further up its
    stack than the call that waits tells that it had taken the lock before.
    """
    asking = {thread.address for thread in waiting}
    found = []
    for thread in threads(kernel):
        if thread.address in known or not thread.kstack or not thread.waits:
            continue
        if thread.address in asking:
            if _named_before(kernel, thread, lock):
                why = f"its stack holds {lock.address:#x} above the call that waits for it"
                found.append((thread, why))
        elif _on_stack(kernel, thread, lock):
            found.append((thread, f"its stack holds {lock.address:#x}"))
    return found[:wanted]


def _named_before(kernel: Kernel, thread: Thread, lock: Lock) -> bool:
    walked = list(frames(kernel, thread))
    at = next((i for i, frame in enumerate(walked) if frame.function.startswith("rms_")), None)
    if at is None or at + 1 >= len(walked):
        return False
    low, top = walked[at + 1].fp, thread.kstack + thread.kstack_size
    if not thread.kstack <= low < top:
        return False
    try:
        raw = kernel.read(low, top - low)
    except MemoryFault:
        return False
    return lock.address.to_bytes(kernel.pointer_size, "little") in raw


def _on_stack(kernel: Kernel, thread: Thread, lock: Lock) -> bool:
    """True where the live part of a thread's kernel stack points at the lock, or what it guards."""
    wanted = (lock.address, *guarded(kernel, lock))
    return any(kernel_stack_holds(kernel, thread, address) for address in wanted)


def guarded(kernel: Kernel, lock: Lock) -> List[int]:
    """What a lock lies in whose holders have that on their stacks: callers pass it, not the lock.

    A vnode for its own lock, a struct zvol_state or zfsvfs for those of ZFS.
    """
    vnode, name = vnode_of_lock(kernel, lock.address), lock.name or ""
    volume = zvol_around(kernel, lock.address) if "zv_" in name else None
    found = [vnode, volume.address if volume is not None else None]
    if name.startswith("zfs teardown"):
        found.append(zfsvfs_around(kernel, lock.address))
    return [address for address in found if address is not None]


def kernel_stack_holds(kernel: Kernel, thread: Thread, value: int) -> bool:
    """True where the used part of a thread's kernel stack contains ``value``, aligned."""
    return value in stack_words(kernel, thread)


# The contended locks of the machine


@cached(MEMORY)
def contended(kernel: Kernel) -> List[Contended]:
    """Every lock that a thread waits for, most waited-for first."""
    waiting: Dict[int, Tuple[Lock, List[Tuple[Thread, Optional[str]]]]] = {}
    waits = lock_waits(kernel)
    for thread in threads(kernel):
        wait = waits.get(thread.address)
        if wait is not None:
            waiting.setdefault(wait.lock.address, (wait.lock, []))[1].append((thread, wait.mode))
    found = []
    for lock, who in waiting.values():
        # Who has waited longest comes first, where the kernel tells (8.0 on).
        who.sort(key=lambda pair: -(pair[0].age or 0.0))
        blocked = [thread for thread, _ in who]
        held = holders(kernel, lock, blocked)
        kind = locks.lock_class_named(lock.lc_name)
        if kind is not None and kind.writer_first and held and held[0].shared:
            # The writer inside waits for these readers: it does not hold the lock yet.
            lock = lock._replace(state="shared", sharers=len(held))
        found.append(Contended(lock, held, who))
    return sorted(found, key=lambda entry: -len(entry.waiters))


def contended_at(kernel: Kernel, at: int) -> Optional[Contended]:
    """The lock at ``at``, or of the struct vnode there, with its holders and waiters."""
    for entry in contended(kernel):
        if at in (entry.lock.address, vnode_of_lock(kernel, entry.lock.address)):
            return entry
    lock = locks.lock_at(kernel, at)
    if lock is None and kernel.layouts.has("vnode", "v_lock"):
        inside = at + kernel.layouts.offsetof("vnode", "v_lock")
        if vnode_of_lock(kernel, inside) == at:
            if locks.has_old_lockmgr(kernel):
                lock = locks.old_lockmgr(kernel, inside)
            else:
                lock = locks.lock_at(kernel, inside)
    return None if lock is None else Contended(lock, holders(kernel, lock, []), [])
