"""What one thread is taken for: its lock, the catalogue's row and resolver, or its state."""

from __future__ import annotations

from typing import Dict

from plugin.catalogue import Catalogue
from plugin.errors import WchanError
from plugin.kernel.locks import RMS, held_counts
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.waits import resolvers
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Status
from plugin.waits.registry import AT_WORK, RESOLVERS, WITHOUT_THREAD
from plugin.waits.resolvers.common import generic, unknown
from plugin.waits.resolvers.cpus import on_a_cpu, without_a_cpu
from plugin.waits.resolvers.locks import wait_for_lock
from plugin.waits.resolvers.procs import single_threading, stopped
from plugin.waits.resolvers.rmslocks import wait_for_rms
from plugin.waits.resolvers.swapped import swapped, wants_in

#: what a state other than asleep, blocked or running means for a thread
STATE_WORDS = {
    "suspended": "is stopped (a signal, a debugger, or its process single-threading)",
    "swapped": "is swapped out and has to be brought in",
    "iwait": "waits for an interrupt",
    "inactive": "is not started, or has ended",
    "zombie": "has ended; its parent has to wait for it",
}


def builder(kernel: Kernel, catalogue: Catalogue) -> Builder:
    """A builder that explains threads by every resolver there is."""
    assert resolvers.MODULES
    made = Builder(kernel, catalogue, explain)
    for add in WITHOUT_THREAD:
        add(made)
    return made


def explain(builder: Builder, thread: Thread) -> Verdict:
    """Explain one thread whose node is in the graph already."""
    node = builder.graph.nodes[f"thread:{thread.tid}"]
    wait = builder.lock_waits.get(thread.address)
    if wait is not None and wait.lock.lc_name == RMS:
        return wait_for_rms(builder, thread, node, wait)
    if wait is not None:
        wait_for_lock(builder, thread, node, wait)
        return Verdict(Status.STUCK, f"waits for a {wait.lock.lc_name} lock")
    if wants_in(thread):
        return swapped(builder, thread, node)
    if thread.state == "sleeping" or (thread.wchan and thread.state != "locked"):
        return _explain_sleep(builder, thread, node)
    return _explain_state(builder, thread, node)


def _explain_state(builder: Builder, thread: Thread, node: Node) -> Verdict:
    who = node.label
    if thread.state in ("running", "runnable"):
        runs = thread.state == "running"
        verdict = (on_a_cpu if runs else without_a_cpu)(builder, thread, node)
        for look in AT_WORK:
            verdict = look(builder, thread, node, verdict) or verdict
        return verdict
    if thread.state == "locked":
        node.end = End(CauseKind.UNKNOWN, f"{who} is blocked on a lock that cannot be read")
        return Verdict(Status.STUCK, "blocked on a lock that cannot be read")
    if thread.state == "suspended":
        found = single_threading(builder, thread, node) or stopped(builder, thread, node)
        if found is not None:
            return found
    text = STATE_WORDS.get(thread.state, thread.state)
    node.end = End(CauseKind.EXTERNAL, f"{who} {text}", f"thread state {thread.state}")
    return Verdict(Status.OTHER, text)


def _explain_sleep(builder: Builder, thread: Thread, node: Node) -> Verdict:
    channel = builder.channel(thread)
    row, why = builder.row(thread)
    case = Case(builder, thread, node, channel, row)
    if row is None:
        return unknown(case)
    resolver = RESOLVERS.get(row.resolver) if row.resolver else None
    try:
        found = resolver(case) if resolver is not None else None
    except (WchanError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        # One resolver that memory led astray does not take the others' answers away.
        said = str(error) if isinstance(error, WchanError) else f"defect of wchan: {error!r}"
        builder.kernel.warnings.add(
            f'thread {thread.tid} in "{thread.wmesg}"', channel.address, said
        )
        found = None
    verdict = found if found is not None else generic(case, why)
    by_message = why == "message"
    doubt = _doubt(builder, thread, verdict, by_message)
    return _doubted(case, doubt) if doubt else verdict


#: how the names of functions begin through which a thread leaves its CPU
_SLEEPS = (
    "sched_",
    "mi_switch",
    "sleepq_",
    "_sleep",
    "msleep",
    "tsleep",
    "_cv_",
    "cv_",
    "pause",
    "linux_",
)
#: so many functions of its own a service has on its stack, at most, when it waits for work
_DEEPEST = 4
#: bytes that a stack's frames come to, roughly
_STACK = 512
#: what those of all threads at rest come to
_COUNTERS = 1 << 15
#: functions that have called what the thread is at: it has work
_CALLERS = (
    "taskqueue_run_locked",
    "gtaskqueue_run_locked",
    "ithread_execute_handlers",
    "intr_event_execute_handlers",
    "softclock_call_cc",
    "VOP_",
)


def _doubt(builder: Builder, thread: Thread, verdict: Verdict, by_message: bool) -> str:
    """Why a sleep in a calm message is not calm, "" where nothing speaks against it.

    Nobody waits for work, or for the world, with a lock held.  A service of the kernel's own
    waits in its main loop: where the message alone tells, the stack has to agree.
    """
    if verdict.status not in (Status.IDLE, Status.BENIGN):
        return ""
    held: Dict[str, int] = {}
    if builder.kernel.affords("counters of the locks that threads at rest hold", _COUNTERS):
        held = held_counts(builder.kernel, thread.address)
    if held:
        counts = ", ".join(f"{member} {value}" for member, value in held.items())
        return f"it holds a lock meanwhile ({counts})"
    if not by_message:
        return ""
    if not builder.is_kernel_thread(thread):
        sleep = builder.sleeps.get(thread.address)
        ends = sleep is None or sleep.interruptible or sleep.timed
        return "" if ends else "it is a process's, and neither a signal nor a timeout ends it"
    if verdict.status is Status.BENIGN:
        return ""
    if not builder.kernel.affords("stacks of services at rest", _STACK):
        return ""
    frames = [frame for frame in builder.stack(thread) if not frame.startswith(_SLEEPS)]
    if "fork_exit" not in frames:
        return ""
    own = frames[: frames.index("fork_exit")]
    if len(own) > _DEEPEST or any(frame.startswith(_CALLERS) for frame in own):
        return f"it is at work in {own[0]}()"
    return ""


def _doubted(case: Case, doubt: str) -> Verdict:
    """Stuck for what is not understood: the calm reading of its message is contradicted."""
    said = f"sleeps as an idle thread does, but {doubt}"
    for edge in case.builder.graph.successors(case.node.id):
        node = case.builder.graph.nodes[edge.target]
        if node.end is None or node.end.kind is CauseKind.EXTERNAL:
            node.end = End(CauseKind.UNKNOWN, f"{node.label}: {said}", "", case.thread.age)
    return Verdict(Status.STUCK, said, case.row)
