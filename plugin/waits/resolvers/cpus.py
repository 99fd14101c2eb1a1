"""Threads on a CPU and threads that wait for one: who spins, who is held up, and by what.

A thread that was preempted has been runnable since; of one that was woken the
kernel keeps no time, but a CPU that has not switched for long says enough.
"""

from __future__ import annotations

from typing import List, Optional

from plugin.kernel.proc import Thread
from plugin.kernel.sched import dispatch, is_idle_thread, on_cpu_for, running
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
    hogs = _hogs(builder, found.pinned)
    ages = [on_cpu_for(kernel, each.cpu) for each in hogs if each.cpu is not None]
    held = min((age for age in ages if age is not None), default=None)
    if found.never_ran:
        words, since = "has never run", None
    elif found.since is None:
        words, since = "", None
    else:
        words, since = f"last ran {seconds(found.since)} ago", found.since
    text = f"{node.label} is runnable and waits for a CPU"
    if words:
        text += f"; it {words}"
    queue = f"on a run queue, last on CPU {thread.lastcpu}"
    if found.pinned is not None:
        text += f"; it is pinned to CPU {found.pinned}"
        queue = f"td_pinned, td_lastcpu {found.pinned}"
    if hogs:
        text += f", where {_names(hogs)}" if found.pinned is not None else f"; {_names(hogs)}"
    waited = since if found.preempted else None
    if held is not None and since is not None:
        # It cannot have run while that CPU did not switch.
        waited = max(waited or 0.0, min(held, since))
    elif held is not None and found.never_ran:
        waited = held
    node.end = End(CauseKind.RUNNABLE, text, queue, waited or None)
    limit = LONG_RUNNABLE if found.pinned is None else LONG_PINNED
    if waited is None or waited < limit:
        return Verdict(Status.RUNNABLE, f"waits for a CPU{'; ' + words if words else ''}")
    if found.pinned is not None and len(hogs) == 1:
        cpu = builder.node(NodeKind.CPU, str(found.pinned), f"CPU {found.pinned}")
        said = f"td_pinned: it may run on CPU {found.pinned} alone"
        builder.join(node, cpu, EdgeKind.WAITS_FOR, Certainty.PROVEN, said)
        builder.join(
            cpu,
            builder.thread(hogs[0]),
            EdgeKind.OWNED_BY,
            Certainty.PROVEN,
            f"td_oncpu {found.pinned}",
        )
        node.end = None
    return Verdict(Status.STUCK, f"runnable for {seconds(waited)} without a CPU")


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
