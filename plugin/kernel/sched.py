"""When a thread last ran, where it may run, and what a CPU has been doing since when.

Mirrors mi_switch() in sys/kern/kern_synch.c (td_swvoltick, td_swinvoltick, 10.0 on;
pc_switchticks, all versions) and sched_pin() in sys/sys/sched.h (td_pinned, 6.0 on).
All ticks are 32 bits wide and wrap.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread, clock, threads
from plugin.session import Kernel


class Dispatch(NamedTuple):
    """What the scheduler keeps of one thread that waits for a CPU.

    ``since``: seconds since it last left a CPU, None where that is not kept or it
    never ran.  ``preempted``: it was taken off the CPU and did not leave by
    itself, so it has been runnable for all that time.  ``pinned``: the CPU that
    it may not leave (sched_pin(), sched_bind()), None where it is free to move.  ``queue``:
    the CPU on whose run queue it is put, None where the scheduler keeps none.
    """

    since: Optional[float]
    preempted: bool
    never_ran: bool
    pinned: Optional[int]
    queue: Optional[int] = None


def dispatch(kernel: Kernel, thread: Thread) -> Dispatch:
    """The scheduler's view of ``thread`` (struct thread *)."""
    voluntary = _member(kernel, thread, "td_swvoltick")
    involuntary = _member(kernel, thread, "td_swinvoltick")
    held = _member(kernel, thread, "td_pinned")
    queue = ts_cpu(kernel, thread)
    if queue is None:
        queue = runq_cpu(kernel, thread)
    # sched_pin() keeps a thread where it is; sched_bind() names another CPU in ts_cpu.
    at = thread.lastcpu if queue is None or thread.state != "runnable" else queue
    pinned = at if held is not None and 0 < held < 1 << 31 else None
    if voluntary is None or involuntary is None:
        return Dispatch(None, False, False, pinned, queue)
    if not voluntary and not involuntary:
        return Dispatch(None, False, True, pinned, queue)
    left = _ago(kernel, voluntary) if voluntary else None
    taken = _ago(kernel, involuntary) if involuntary else None
    known = [each for each in (left, taken) if each is not None]
    since = min(known) if known else None
    return Dispatch(since, since is not None and since == taken, False, pinned, queue)


def _member(kernel: Kernel, thread: Thread, member: str) -> Optional[int]:
    try:
        found = kernel.layouts.resolve("thread", member)
        return kernel.unsigned(thread.address + found.offset, found.size)
    except (MemoryFault, LayoutError):
        return None


def _ago(kernel: Kernel, tick: int) -> Optional[float]:
    now = clock(kernel)
    if now is None:
        return None
    age = ((now.ticks - tick) & 0xFFFFFFFF) / now.hz
    return age if age <= 0x80000000 / now.hz else None


@cached(MEMORY)
def running(kernel: Kernel) -> Dict[int, Thread]:
    """{CPU: the thread that runs on it}, idle threads too."""
    return {
        thread.cpu: thread
        for thread in threads(kernel)
        if thread.state == "running" and thread.cpu is not None
    }


def is_idle_thread(kernel: Kernel, thread: Thread) -> bool:
    """TDF_IDLETD (sys/proc.h, all versions): what a CPU runs when there is nothing to run."""
    return bool(thread.flags & kernel.layouts.constant("TDF_IDLETD", 0x20))


@cached(MEMORY)
def on_cpu_for(kernel: Kernel, cpu: int) -> Optional[float]:
    """Seconds since ``cpu`` last switched threads (pc_switchticks); None where not kept."""
    if not kernel.has_symbol("cpuid_to_pcpu"):
        return None
    try:
        table = kernel.address_of("cpuid_to_pcpu")
        pcpu = kernel.pointer(table + cpu * kernel.pointer_size)
        member = kernel.layouts.resolve("pcpu", "pc_switchticks")
        tick = kernel.unsigned(pcpu + member.offset, member.size) if pcpu else 0
    except (MemoryFault, LayoutError):
        return None
    return _ago(kernel, tick) if tick else None


class Queued(NamedTuple):
    """A thread on a run queue: the CPU whose queue it is, as far as that is kept.

    ``cpu``: ts_cpu of ULE (kern/sched_ule.c), the CPU last run on where that is not kept.
    """

    thread: Thread
    dispatch: Dispatch

    @property
    def cpu(self) -> Optional[int]:
        return self.thread.lastcpu if self.dispatch.queue is None else self.dispatch.queue


def queued(kernel: Kernel) -> List[Queued]:
    """Every runnable thread that is on no CPU, the one that has waited longest first."""
    found = [
        Queued(thread, dispatch(kernel, thread))
        for thread in threads(kernel)
        if thread.state == "runnable" and not is_idle_thread(kernel, thread)
    ]
    return sorted(found, key=lambda each: -(each.dispatch.since or 0.0))


#: what a kernel with ULE has: tdq_cpu[] up to 11.x, a variable of each CPU since (sched_ule.c)
_ULE = ("tdq_cpu", "pcpu_entry_tdq")
_MAX_CPUS = 1 << 12


def ts_cpu(kernel: Kernel, thread: Thread) -> Optional[int]:
    """ts_cpu of a thread's struct td_sched *: td_sched up to 10.x, behind the thread since.

    The CPU on whose run queue the thread is, or goes.  None without ULE, which alone keeps it.
    """
    layouts = kernel.layouts
    if not layouts.has("td_sched", "ts_cpu") or not any(kernel.has_symbol(n) for n in _ULE):
        return None
    try:
        cpu: int = kernel.view("td_sched", _td_sched(kernel, thread)).ts_cpu
    except MemoryFault:
        return None
    return cpu if 0 <= cpu < _MAX_CPUS else None


def _td_sched(kernel: Kernel, thread: Thread) -> int:
    layouts = kernel.layouts
    if layouts.has("thread", "td_sched"):
        return kernel.pointer(thread.address + layouts.offsetof("thread", "td_sched"))
    return thread.address + layouts.sizeof("thread")


#: a struct td_sched of 4BSD is not larger, in bytes
_TD_SCHED = 64


def runq_cpu(kernel: Kernel, thread: Thread) -> Optional[int]:
    """The CPU whose own queue of runq_pcpu[] a thread's ts_runq is (kern/sched_4bsd.c).

    sched_bind() and sched_add() of a bound thread choose such a queue; all others share one.
    The place of ts_runq in 4BSD's struct td_sched differs by version: what points into
    runq_pcpu[] is it.  None without 4BSD.
    """
    table = kernel.symbol("runq_pcpu")
    if table is None or "runq" not in kernel.layouts:
        return None
    size, word = kernel.layouts.sizeof("runq"), kernel.pointer_size
    try:
        raw = kernel.read(_td_sched(kernel, thread), _TD_SCHED)
    except MemoryFault:
        return None
    for at in range(0, _TD_SCHED, word):
        place = int.from_bytes(raw[at : at + word], "little") - table.address
        cpu, rest = divmod(place, size)
        if not rest and cpu in running(kernel):
            return cpu
    return None
