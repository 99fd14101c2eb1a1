"""What one thread is taken for: its lock, the catalogue's row and resolver, or its state."""

from __future__ import annotations

from plugin.catalogue import Catalogue
from plugin.errors import WchanError
from plugin.kernel.locks import RMS
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
    return found if found is not None else generic(case, why)
