"""How a thread sleeps: kind of sleep queue, which of its queues, with a timeout or not.

Mirrors sys/kern/subr_sleepqueue.c and the sleep members of struct thread
(sys/sys/proc.h), 6.x to 15.x.  sq_type is kept by every kernel from 9.x on and
by INVARIANTS kernels before; td_sleeptimo from 10.4 / 12.0, before that the
thread's own callout tells whether a timeout is pending.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Callable, Dict, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel.proc import Thread, threads
from plugin.kernel.queue import list_foreach
from plugin.kernel.tc import uptime
from plugin.session import Kernel

#: SLEEPQ_* (sys/sys/sleepqueue.h): 0 SLEEP, 1 CONDVAR, 2 PAUSE, 3 SX, 4 LK
TYPES = {0: "sleep", 1: "condvar", 2: "pause", 3: "sx", 4: "lockmgr"}

#: CALLOUT_PENDING (sys/sys/callout.h), the same in every version
_CALLOUT_PENDING = 0x0004
_TDF_SINTR = 0x0008
#: SC_SHIFT; SC_TABLESIZE to 9.3
_SC_SHIFT, _OLD_TABLE = 8, 128


class Sleep(NamedTuple):
    """What the kernel keeps about one wait, beside message and channel.

    ``type`` is one of TYPES' names, None where the kernel does not keep it.
    ``queue`` is 0 for the exclusive and 1 for the shared queue of a lock, None
    where it is not kept.  ``timed``: a timeout will end it, in ``expires``
    seconds (negative if it is overdue, None if that is not known).  ``wmesg`` is
    the pointer itself: a lock's sleepers share its name's address.
    """

    type: Optional[str]
    queue: Optional[int]
    timed: bool
    expires: Optional[float]
    interruptible: bool
    wmesg: int


@cached(MEMORY)
def sleep_types(kernel: Kernel) -> Dict[int, str]:
    """{wait channel: type of its sleep queue}, out of sleepq_chains[]; {} if not kept.

    Over a wire only the chains that a sleeper's channel belongs on are read.
    """
    table = kernel.symbol("sleepq_chains")
    layouts = kernel.layouts
    if (
        table is None
        or "sleepqueue_chain" not in layouts
        or not layouts.has("sleepqueue", "sq_type")
    ):
        return {}
    stride = layouts.sizeof("sleepqueue_chain")
    head = layouts.offsetof("sleepqueue_chain", "sc_queues")
    count = min(table.size // stride, 4096)
    found: Dict[int, str] = {}
    try:
        if kernel.chosen:
            chains = {
                _chain_of(channel, count)
                for channel, threads in sleepers(kernel).items()
                if any(map(_busy, threads))
            }
        else:
            raw = kernel.read(table.address, count * stride)
            size = kernel.pointer_size
            chains = {n for n in range(count) if any(raw[n * stride + head :][:size])}
    except MemoryFault as fault:
        kernel.warnings.add("sleep queues", fault.address, fault.reason)
        return {}
    for index in sorted(chains):
        at = index * stride + head
        for _, (wchan, kind) in list_foreach(
            kernel,
            table.address + at,
            "sleepqueue",
            "sq_hash",
            ["sq_wchan", "sq_type"],
            what="sleep queue chain",
            bound=1_000_000,
        ):
            name = TYPES.get(kind)
            if wchan and name:
                found[wchan] = name
    return found


def _busy(thread: Thread) -> bool:
    """False for a thread that waits for work, or says nothing: how it sleeps tells no more."""
    return thread.wmesg != "-"


def _chain_of(channel: int, count: int) -> int:
    """SC_HASH() (sys/kern/subr_sleepqueue.c): to 9.3, with 128 chains, shifted alone."""
    shifted = channel >> _SC_SHIFT
    return (shifted if count <= _OLD_TABLE else shifted ^ channel) & (count - 1)


@cached(MEMORY)
def sleepers(kernel: Kernel) -> Dict[int, List[Thread]]:
    """{td_wchan: the threads asleep on it}, in the order of the kernel's lists."""
    found: Dict[int, List[Thread]] = {}
    for thread in threads(kernel):
        if thread.wchan:
            found.setdefault(thread.wchan, []).append(thread)
    return found


@cached(MEMORY)
def sleeps(kernel: Kernel) -> Dict[int, Sleep]:
    """{struct thread address: Sleep} of every thread that waits."""
    types = sleep_types(kernel)
    layouts = kernel.layouts
    pending = layouts.constant("CALLOUT_PENDING", _CALLOUT_PENDING)
    sintr = layouts.constant("TDF_SINTR", _TDF_SINTR)
    timeout = ["td_sleeptimo"]
    if not layouts.has("thread", "td_sleeptimo"):
        timeout = ["td_slpcallout.c_flags", "td_slpcallout.c_iflags"]
    optional = [
        path for path in ("td_sqqueue", "td_tsqueue", *timeout) if layouts.has("thread", path)
    ]
    fields = layouts.fields("thread", "td_wmesg", *optional)
    expiry = "td_slpcallout.c_time"
    expires = layouts.fields("thread", expiry) if layouts.has("thread", expiry) else None
    left = _time_left(kernel)
    found: Dict[int, Sleep] = {}
    for thread in threads(kernel):
        if not thread.waits:
            continue
        if kernel.chosen and not _busy(thread):
            bare = bool(thread.flags & sintr)
            found[thread.address] = Sleep(None, None, False, None, bare, 0)
            continue
        try:
            values = kernel.values(fields, thread.address)
        except MemoryFault as fault:
            kernel.warnings.add(f"thread {thread.tid}", fault.address, fault.reason)
            continue
        extra = dict(zip(optional, values[1:]))
        locked = thread.state == "locked"
        if "td_sleeptimo" in extra:
            timed = bool(extra["td_sleeptimo"])
        else:
            bits = extra.get("td_slpcallout.c_flags", 0) | extra.get("td_slpcallout.c_iflags", 0)
            timed = bool(bits & pending)
        timed = timed and not locked
        until = None
        if timed and expires is not None:
            with suppress(MemoryFault):
                (until,) = kernel.values(expires, thread.address)
        found[thread.address] = Sleep(
            None if locked else types.get(thread.wchan or 0),
            extra.get("td_tsqueue" if locked else "td_sqqueue"),
            timed,
            left(until) if timed else None,
            bool(thread.flags & sintr),
            values[0],
        )
    return found


def _time_left(kernel: Kernel) -> Callable[[Optional[int]], Optional[float]]:
    """Seconds until a callout's c_time: an sbintime_t from 10.0 on, ticks before."""
    if not kernel.layouts.has("callout", "c_time"):
        return lambda time: None
    if kernel.layouts.resolve("callout", "c_time").size == 8:
        now = uptime(kernel)
        return lambda time: None if now is None or time is None else time / (1 << 32) - now
    hz = kernel.global_value("hz", 0)
    ticks = kernel.global_value("ticks", 0) & 0xFFFFFFFF

    def from_ticks(time: Optional[int]) -> Optional[float]:
        if not hz or time is None:
            return None
        distance = (time - ticks) & 0xFFFFFFFF
        return (distance - ((distance & 0x80000000) << 1)) / hz

    return from_ticks
