"""Threads on a CPU and threads that wait for one: who spins, who is held up, and by what.

A thread that was preempted has been runnable since; of one that was woken the
kernel keeps no time, but a CPU that has not switched for long says enough.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from plugin.kernel.proc import Thread
from plugin.kernel.sched import Dispatch, dispatch, is_idle_thread, on_cpu_for, running, ts_cpu
from plugin.kernel.stack import backtrace
from plugin.waits.builder import Builder, Verdict, short
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.words import seconds

#: seconds without a CPU that are no matter of a time slice: for a thread that may run on one
#: CPU alone, and for one that any CPU could take (the lowest priority waits long by design)
LONG_PINNED, LONG_RUNNABLE = 5.0, 60.0
#: functions in which a thread spins for another CPU (kern_mutex.c, kern_sx.c, kern_rwlock.c,
#: subr_lock.c, subr_smp.c)
_SPINS = (
    "lock_delay",
    "_mtx_lock_spin",
    "__mtx_lock_sleep",
    "_mtx_lock_sleep",
    "__mtx_lock_spin",
    "_thread_lock",
    "thread_lock_flags_",
    "_sx_xlock_hard",
    "_sx_slock_hard",
    "__rw_wlock_hard",
    "__rw_rlock_hard",
    "_rw_wlock_hard",
    "smp_rendezvous_cpus",
    "smp_targeted_tlb_shootdown",
    "smp_tlb_shootdown",
)
#: functions through which a thread gives its CPU away and wants it back at once: a retry loop's
_YIELDS = ("kern_yield", "maybe_yield", "uio_yield", "sched_relinquish")
#: functions through which a thread leaves its CPU because it has to wait
_SLEEPS = (
    "sleepq_",
    "turnstile_",
    "_sleep",
    "msleep",
    "_cv_",
    "cv_",
    "ithread_loop",
    "swi_",
    "thread_suspend",
    "thread_single",
    "sched_idletd",
)


def contends_in(frames: Sequence[str]) -> Optional[str]:
    """The function in which a thread fights for what another has: a spin's or a yield's."""
    return next((frame for frame in frames if frame.startswith((*_SPINS, *_YIELDS))), None)


def spins_in(builder: Builder, thread: Thread) -> Optional[str]:
    """The function in which a running thread spins, None where it does not."""
    # The handler that stopped the CPU lies above what was interrupted.
    frames = backtrace(builder.kernel, thread)
    return next((frame for frame in frames if frame.startswith(_SPINS)), None)


def on_a_cpu(builder: Builder, thread: Thread, node: Node) -> Verdict:
    """A running thread: idle, at work, or spinning."""
    kernel, cpu = builder.kernel, thread.cpu
    on = "" if cpu is None else f" on CPU {cpu}"
    if is_idle_thread(kernel, thread):
        node.end = End(CauseKind.EXTERNAL, f"CPU {cpu} is idle", "TDF_IDLETD")
        return Verdict(Status.IDLE, "the idle thread")
    evidence = f"td_state TDS_RUNNING{on}"
    unswitched = on_cpu_for(kernel, cpu) if cpu is not None else None
    if unswitched is not None:
        evidence += f"; that CPU has not switched for {seconds(unswitched)}"
    spins = spins_in(builder, thread)
    how = f"spins in {spins}()" if spins is not None else "runs"
    node.end = End(CauseKind.RUNNING, f"{node.label} {how}{on}", evidence)
    if cpu is not None:
        target = builder.node(NodeKind.CPU, str(cpu), f"CPU {cpu}")
        said = f"td_oncpu {cpu}"
        builder.join(node, target, EdgeKind.CONTAINED_IN, Certainty.PROVEN, said, False)
    return Verdict(Status.SPINNING if spins is not None else Status.RUNNING, f"{how}{on}")


def without_a_cpu(builder: Builder, thread: Thread, node: Node) -> Verdict:
    """A runnable thread: since when, on which CPU's queue, and what runs there."""
    kernel = builder.kernel
    found = dispatch(kernel, thread)
    yielded = found.preempted or _yielded(builder, thread)
    pinned, certainty, how_known = _bound_to(builder, thread, found, yielded)
    hogs = _hogs(builder, pinned)
    ages = [on_cpu_for(kernel, each.cpu) for each in hogs if each.cpu is not None]
    held = min((age for age in ages if age is not None), default=None)
    if found.never_ran:
        words, since = "has never run", None
    elif found.since is None:
        words, since = "", None
    else:
        words, since = f"last ran {seconds(found.since)} ago", found.since
    queue = f"on a run queue, last on CPU {thread.lastcpu}"
    if found.queue is not None:
        queue = f"on the run queue of CPU {found.queue}, last on CPU {thread.lastcpu}"
    remarks = [f"it {words}"] if words else []
    if pinned is not None:
        queue = how_known
        where = f", where {_names(hogs)}" if hogs else ""
        remarks.append(f"pinned to CPU {pinned}{where}")
    elif found.pinned is not None:
        queue = how_known
        remarks.append(f"bound to another CPU than {thread.lastcpu}")
    elif hogs:
        remarks.append(_names(hogs))
    remark = f" ({'; '.join(remarks)})" if remarks else ""
    text = f"{node.label} is runnable and waits for a CPU{remark}"
    waited = since if yielded else None
    if held is not None and since is not None:
        # It cannot have run while that CPU did not switch.
        waited = max(waited or 0.0, min(held, since))
    elif held is not None and found.never_ran:
        waited = held
    long = waited is not None and waited >= (LONG_RUNNABLE if found.pinned is None else LONG_PINNED)
    if found.never_ran and found.pinned is not None and hogs and held is None:
        long = True
    node.end = End(CauseKind.RUNNABLE, text, queue, waited if waited and waited >= 1 else None)
    if not long:
        return Verdict(Status.RUNNABLE, f"waits for a CPU{'; ' + words if words else ''}")
    if pinned is not None and len(hogs) == 1 and (held is None or held >= LONG_PINNED):
        cpu = builder.node(NodeKind.CPU, str(pinned), f"CPU {pinned}")
        builder.join(node, cpu, EdgeKind.WAITS_FOR, certainty, how_known)
        on = f"td_oncpu {pinned}"
        hog = builder.thread(hogs[0])
        builder.join(cpu, hog, EdgeKind.OWNED_BY, Certainty.PROVEN, on)
        node.end = None
    how_long = f"for {seconds(waited)} " if waited is not None else ""
    return Verdict(Status.STUCK, f"runnable {how_long}without a CPU")


def _bound_to(
    builder: Builder, thread: Thread, found: Dispatch, yielded: bool
) -> Tuple[Optional[int], Certainty, str]:
    """The CPU that a pinned thread waits for, how sure that is, and what says so.

    sched_pin() keeps a thread where it is, on td_lastcpu.  sched_bind() pins it too, and
    leaves the CPU only for another one, which ULE keeps in ts_cpu, 4BSD in ts_runq.  Without
    that, of two CPUs it can only be the other, of more most likely the one that does not switch.
    """
    if found.pinned is None:
        return None, Certainty.PROVEN, ""
    if found.queue is not None:
        ule = ts_cpu(builder.kernel, thread) is not None
        told = f"ts_cpu {found.queue}" if ule else f"ts_runq &runq_pcpu[{found.queue}]"
        return found.queue, Certainty.PROVEN, f"td_pinned, {told} of its td_sched"
    if found.preempted or not yielded:
        return found.pinned, Certainty.PROVEN, f"td_pinned, td_lastcpu {found.pinned}"
    kernel = builder.kernel
    others = [cpu for cpu in running(kernel) if cpu != thread.lastcpu]
    left = f"it left CPU {thread.lastcpu} by itself without a sleep"
    said = f"td_pinned; {left}, as sched_bind() does"
    if len(others) == 1:
        return others[0], Certainty.PROVEN, f"{said}, and there is one other CPU"
    long = [cpu for cpu in others if (on_cpu_for(kernel, cpu) or 0.0) >= LONG_PINNED]
    busy = [cpu for cpu in long if not is_idle_thread(kernel, running(kernel)[cpu])]
    if len(busy) == 1:
        return busy[0], Certainty.GUESSED, f"{said}; CPU {busy[0]} alone does not switch"
    return None, Certainty.GUESSED, said


def _yielded(builder: Builder, thread: Thread) -> bool:
    """True where a thread left its CPU and did not go to sleep: runnable ever since.

    sched_bind() and kern_yield() do that; its stack then ends in mi_switch() with
    nothing of a sleep, a turnstile or an interrupt thread's loop below.
    """
    frames = backtrace(builder.kernel, thread)
    return any(frame.startswith(("mi_switch", "sched_switch")) for frame in frames) and not any(
        frame.startswith(_SLEEPS) for frame in frames
    )


def _hogs(builder: Builder, cpu: Optional[int]) -> List[Thread]:
    """What keeps a thread off its CPU, or off every CPU; [] where one is idle."""
    found = running(builder.kernel)
    some = [found[cpu]] if cpu is not None and cpu in found else list(found.values())
    return [] if any(is_idle_thread(builder.kernel, each) for each in some) else some


def _names(hogs: List[Thread]) -> str:
    shown = [f"{each.tid} {short(each)}" for each in hogs[:3]]
    if len(hogs) > 3:
        shown.append(f"{len(hogs) - 3} more")
    text = ", ".join(shown[:-1]) + f" and {shown[-1]}" if len(shown) > 1 else shown[0]
    return f"{text} run{'s' if len(hogs) == 1 else ''}"
