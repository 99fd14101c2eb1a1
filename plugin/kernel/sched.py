"""When a thread last ran, where it may run, and what a CPU has been doing since when.

Mirrors mi_switch() in sys/kern/kern_synch.c (td_swvoltick, td_swinvoltick, 10.0 on;
pc_switchticks, all versions) and sched_pin() in sys/sys/sched.h (td_pinned, 6.0 on).
All ticks are 32 bits wide and wrap.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread, clock, threads
from plugin.session import Kernel


class Dispatch(NamedTuple):
    """What the scheduler keeps of one thread that waits for a CPU.

    ``since``: seconds since it last left a CPU, None where that is not kept or it
    never ran.  ``preempted``: it was taken off the CPU and did not leave by
    itself, so it has been runnable for all that time.  ``pinned``: the CPU that
    it may not leave (sched_pin(), sched_bind()), None where it is free to move.
    """

    since: Optional[float]
    preempted: bool
    never_ran: bool
    pinned: Optional[int]


def dispatch(kernel: Kernel, thread: Thread) -> Dispatch:
    """The scheduler's view of ``thread`` (struct thread *)."""
    voluntary = _member(kernel, thread, "td_swvoltick")
    involuntary = _member(kernel, thread, "td_swinvoltick")
    held = _member(kernel, thread, "td_pinned")
    pinned = thread.lastcpu if held is not None and 0 < held < 1 << 31 else None
    if voluntary is None or involuntary is None:
        return Dispatch(None, False, False, pinned)
    if not voluntary and not involuntary:
        return Dispatch(None, False, True, pinned)
    left = _ago(kernel, voluntary) if voluntary else None
    taken = _ago(kernel, involuntary) if involuntary else None
    known = [each for each in (left, taken) if each is not None]
    since = min(known) if known else None
    return Dispatch(since, since is not None and since == taken, False, pinned)


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
