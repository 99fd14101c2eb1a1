"""Waits that end in a daemon of this machine: FUSE."""

from __future__ import annotations

from typing import List, Optional

from plugin.errors import MemoryFault
from plugin.kernel.fuse import daemons, ticket_at
from plugin.kernel.mount import mount_at
from plugin.kernel.proc import Thread, all_found
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.procs import threads_by_proc
from plugin.waits.resolvers.stacks import runs

#: more threads of a daemon than this are not joined to a request
_MAX_DAEMON = 64


@resolver("fuse")
def fuse(case: Case) -> Optional[Verdict]:
    """fu_ans: the daemon of a FUSE file system has to answer.

    Which process that is the ticket tells: its session's device, and who has that open.  Else
    its threads' sleep in fu_msg on the session that the ticket points to (tk_data).
    """
    builder, kernel = case.builder, case.kernel
    with kernel.noting() as trouble:
        ticket = ticket_at(kernel, case.address)
        serving_procs = daemons(kernel, ticket.data) if ticket is not None else []
    label = ""
    if ticket is not None:
        mount = mount_at(kernel, ticket.mount)
        label = f"FUSE_{ticket.opcode}" + (f" on {mount.on}" if mount is not None else "")
    node = case.waits_for(case.channel_node(label), Certainty.PROVEN, case.said())
    if node.end is not None or builder.graph.successors(node.id):
        return Verdict(Status.STUCK, "waits for a FUSE daemon", case.row)
    if ticket is not None:
        if ticket.unread:
            node.facts = ["the daemon has not read it"]
        serving = [
            thread
            for proc in serving_procs
            for thread in threads_by_proc(builder.kernel).get(proc, [])
            if thread.proc != case.thread.proc
        ]
        if serving:
            busy = [thread for thread in serving if thread.wmesg != "fu_msg"] or serving
            for thread in busy[:_MAX_DAEMON]:
                builder.join(
                    node,
                    builder.thread(thread),
                    EdgeKind.SERVED_BY,
                    Certainty.PROVEN,
                    f"its process has /dev/fuse open with session {ticket.data:#x}",
                )
            node.any = len(busy) > 1
            return Verdict(Status.STUCK, "waits for a FUSE daemon", case.row)
    readers = [t for t in builder.threads if t.wmesg == "fu_msg"]
    try:
        words = kernel.read(case.address, 64 * kernel.pointer_size)
    except MemoryFault:
        words = b""
    size = kernel.pointer_size
    pointers = {
        int.from_bytes(words[at : at + size], "little") for at in range(0, len(words), size)
    }
    daemon = {t.proc: t for t in readers if t.wchan in pointers}
    if daemon:
        for first in daemon.values():
            _join_daemon(
                case, [t for t in builder.threads if t.proc == first.proc], Certainty.PROVEN, first
            )
        return Verdict(Status.STUCK, "waits for a FUSE daemon", case.row)
    inside = [
        t
        for t in builder.threads
        if not builder.is_kernel_thread(t)
        and runs(builder, t, ("fuse_device_", "fuse_devread", "fuse_dev_"))
    ]
    procs = {t.proc for t in [*readers, *inside]}
    if len(procs) == 1:
        _join_daemon(case, [t for t in builder.threads if t.proc in procs], Certainty.GUESSED, None)
    else:
        whole = all_found(kernel) and not trouble.partial
        node.end = End(
            CauseKind.EXTERNAL if whole else CauseKind.UNKNOWN,
            "the daemon of a FUSE file system has not answered"
            + ("" if whole else "; which process that is could not be read"),
            case.said(),
            case.thread.age,
        )
    return Verdict(Status.STUCK, "waits for a FUSE daemon", case.row)


def _join_daemon(
    case: Case, threads: List[Thread], certainty: Certainty, reader: Optional[Thread]
) -> None:
    """The daemon's threads: any that is not idle in fu_msg may have the request."""
    builder = case.builder
    node = builder.graph.nodes[builder.graph.out[case.node.id][0].target]
    busy = [t for t in threads if t.wmesg != "fu_msg"] or threads
    evidence = "the only process that serves FUSE"
    if reader is not None:
        evidence = f"thread {reader.tid} of it sleeps in fu_msg on {reader.wchan or 0:#x}, tk_data"
    for thread in busy[:16]:
        builder.join(node, builder.thread(thread), EdgeKind.SERVED_BY, certainty, evidence)
    node.any = len(busy) > 1
