"""Waits for other processes: children, peers of pipes and sockets, umtx.

Such waits are benign by themselves; they become part of a chain where the
other side is stuck, or where somebody waits for the waiter.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.file import by_data, fifo_sockets
from plugin.kernel.proc import Thread, processes, threads
from plugin.kernel.socket import Endpoints, endpoints, inet_peer, socket_at, unix_peer
from plugin.kernel.umtx import blocked_on
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.nfs import sends_to_server
from plugin.words import count

#: more threads of a peer than this are not looked at
MAX_PEERS = 64
_INIT = 1


@cached(MEMORY)
def threads_by_proc(kernel: Kernel) -> Dict[int, List[Thread]]:
    found: Dict[int, List[Thread]] = {}
    for thread in threads(kernel):
        found.setdefault(thread.proc, []).append(thread)
    return found


@cached(MEMORY)
def _children(kernel: Kernel) -> Dict[int, List[int]]:
    found: Dict[int, List[int]] = {}
    for proc in processes(kernel):
        found.setdefault(proc.parent, []).append(proc.address)
    return found


def served_by_peers(
    case: Case,
    node: Node,
    peers: List[Thread],
    evidence: str,
    certainty: Certainty = Certainty.PROVEN,
) -> Verdict:
    """Benign by itself; ``plugin.waits.settle`` corrects it where every peer is stuck."""
    builder = case.builder
    peers = peers[:MAX_PEERS]
    for peer in peers:
        builder.join(node, builder.thread(peer), EdgeKind.SERVED_BY, certainty, evidence)
    node.any = True
    row = case.row
    why = f"waits for {row.woken_by}" if row is not None else "waits for a peer"
    return Verdict(Status.BENIGN, why, row)


def single_threading(builder: Builder, thread: Thread, node: Node) -> Optional[Verdict]:
    """A suspended thread whose process becomes single-threaded (exit, exec, fork).

    thread_single() (sys/kern/kern_thread.c) suspends the caller, p_singlethread,
    until every other thread has suspended or gone; those wait for the caller.
    """
    member = "p_singlethread"
    if not builder.kernel.layouts.has("proc", member):
        return None
    try:
        single = builder.kernel.pointer(
            thread.proc + builder.kernel.layouts.offsetof("proc", member)
        )
    except MemoryFault:
        return None
    if not single:
        return None
    others = others_of_process(builder, thread)
    if single != thread.address:
        own = threads_by_proc(builder.kernel).get(thread.proc, [])
        others = [other for other in own if other.address == single]
    if not others:
        return None
    for other in others[:MAX_PEERS]:
        builder.join(
            node,
            builder.thread(other),
            EdgeKind.WAITS_FOR,
            Certainty.PROVEN,
            f"{member} {single:#x}",
        )
    what = count(len(others), "other thread")
    return Verdict(Status.BENIGN, f"waits for {what} of its process to stop")


def stopped(builder: Builder, thread: Thread, node: Node) -> Optional[Verdict]:
    """A thread of a stopped process: its debugger has to go on, or somebody send SIGCONT.

    P_STOPPED_TRACE and P_STOPPED_SIG of p_flag; of a traced process p_pptr is the debugger
    (proc_reparent() in sys/kern/sys_process.c).
    """
    constant = builder.kernel.layouts.constant
    if thread.p_flag & constant("P_TRACED", 0x800):
        parent = next((p.parent for p in processes(builder.kernel) if p.address == thread.proc), 0)
        tracers = threads_by_proc(builder.kernel).get(parent, [])
        for tracer in tracers[:MAX_PEERS]:
            builder.join(
                node,
                builder.thread(tracer),
                EdgeKind.WAITS_FOR,
                Certainty.PROVEN,
                "P_TRACED: p_pptr is the debugger",
            )
        node.any = True
        if tracers:
            return Verdict(Status.BENIGN, f"stopped by its debugger, {tracers[0].comm}")
    if thread.p_flag & constant("P_STOPPED_SIG", 0x20000):
        member = next(
            (m for m in ("p_xsig", "p_xstat") if builder.kernel.layouts.has("proc", m)), None
        )
        said = "stopped by a signal"
        if member is not None:
            where = builder.kernel.layouts.resolve("proc", member)
            try:
                number = builder.kernel.unsigned(thread.proc + where.offset, where.size)
                said = f"stopped by signal {number}"
            except MemoryFault:
                pass
        node.end = End(CauseKind.EXTERNAL, f"{node.label} is {said}", "P_STOPPED_SIG in p_flag")
        return Verdict(Status.OTHER, said)
    return None


def others_of_process(builder: Builder, thread: Thread) -> List[Thread]:
    """The other threads of a thread's process that have not stopped."""
    return [
        other
        for other in threads_by_proc(builder.kernel).get(thread.proc, [])
        if other.address != thread.address and other.state not in ("suspended", "inactive")
    ]


@resolver("children")
def children(case: Case) -> Optional[Verdict]:
    """wait4(), vfork(): a child has to exit or exec.

    init waits for whoever ends, for ever: no child's fault is its own.
    """
    builder = case.builder
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    own = _children(case.kernel).get(case.thread.proc, [])
    threads = [thread for proc in own for thread in threads_by_proc(builder.kernel).get(proc, [])]
    if not threads or case.thread.pid == _INIT:
        node.end = node.end or End(CauseKind.EXTERNAL, "waits for a child process", case.said())
        return Verdict(Status.BENIGN, "waits for a child process", case.row)
    return served_by_peers(case, node, threads, "p_pptr: a child of it")


@resolver("pipe")
def pipe(case: Case) -> Optional[Verdict]:
    """The process that has the other end of a pipe open; of a FIFO whoever else has it open."""
    layouts = case.kernel.layouts
    if "pipe" not in layouts:
        return None
    try:
        peer = case.kernel.pointer(case.address + layouts.offsetof("pipe", "pipe_peer"))
    except (MemoryFault, LayoutError):
        return None
    what = f"pipe {case.address:#x}"
    # Both ends of a FIFO are one struct file's f_data: the pipe itself.
    data = peer if by_data(case.kernel).get(peer) else case.address
    return _peers_of(case, data, what, f"has the other end {data:#x} open")


@resolver("socket")
def socket(case: Case) -> Optional[Verdict]:
    """A socket's peer: the process that has it open, where it is on this machine."""
    kernel, layouts = case.kernel, case.kernel.layouts
    if "socket" not in layouts or "unpcb" not in layouts:
        return None
    for path in ("so_rcv.sb_acc", "so_snd.sb_acc", "so_rcv.sb_cc", "so_snd.sb_cc", "so_timeo"):
        if not layouts.has("socket", path):
            continue
        address = case.channel.container("socket", path)
        fifo = fifo_sockets(kernel).get(address)
        if fifo is not None:
            return _peers_of(case, fifo, f"FIFO {fifo:#x}", "has the FIFO open too")
        sending = sends_to_server(case, address)
        if sending is not None:
            return sending
        try:
            peer = unix_peer(kernel, address)
        except MemoryFault:
            continue
        if peer:
            if _has_open(case, peer) and not _has_open(case, address):
                # From 15.0 on a writer sleeps on the buffer of the socket it writes to.
                address, peer = peer, address
            what = f"local socket {address:#x}{_path_of(kernel, address)}"
            return _peers_of(case, peer, what, f"has its peer {peer:#x} open")
        ends = endpoints(kernel, address)
        if ends is not None:
            return _internet(case, ends)
    return None


def _path_of(kernel: Kernel, socket: int) -> str:
    """ " (/var/run/log)": the path that a local socket or its peer is bound to, else ""."""
    try:
        found = socket_at(kernel, socket)
    except (MemoryFault, LayoutError):
        return ""
    path = found.name or found.peer
    return f" ({path})" if path else ""


@resolver("accept")
def accept(case: Case) -> Optional[Verdict]:
    """accept(2): anybody may connect; what the socket listens on is said."""
    layouts = case.kernel.layouts
    for member in ("sol_comp", "so_timeo"):
        if not layouts.has("socket", member):
            continue
        try:
            found = socket_at(case.kernel, case.channel.container("socket", member))
        except (MemoryFault, LayoutError):
            continue
        if found.state != "listening" or not found.name:
            continue
        label = f'"{case.thread.wmesg}" on {found.family} socket {found.name}'
        node = case.waits_for(case.channel_node(label), Certainty.PROVEN, case.said())
        said = f"waits for somebody to connect to {found.name}"
        node.end = node.end or End(CauseKind.EXTERNAL, said, case.said())
        return Verdict(Status.BENIGN, said, case.row)
    return None


def _has_open(case: Case, data: int) -> bool:
    return any(each.proc == case.thread.proc for each in by_data(case.kernel).get(data, ()))


def _internet(case: Case, ends: Endpoints) -> Verdict:
    peer = inet_peer(case.kernel, ends)
    if peer:
        return _peers_of(case, peer, f"socket {ends}", f"has its peer {peer:#x} open")
    node = case.waits_for(
        case.channel_node(f'"{case.thread.wmesg}" on socket {ends}'), Certainty.PROVEN, case.said()
    )
    node.end = node.end or End(CauseKind.EXTERNAL, f"waits for {ends.peer}", case.said())
    return Verdict(Status.BENIGN, f"waits for {ends.peer}", case.row)


def _peers_of(case: Case, data: int, what: str, evidence: str) -> Verdict:
    node = case.waits_for(
        case.channel_node(f'"{case.thread.wmesg}" on {what}'), Certainty.PROVEN, case.said()
    )
    procs = {each.proc for each in by_data(case.kernel).get(data, ())} - {case.thread.proc}
    threads = [thread for proc in procs for thread in threads_by_proc(case.kernel).get(proc, [])]
    if not threads:
        node.end = node.end or End(
            CauseKind.EXTERNAL, f"{what}: no other process has its other end open", case.said()
        )
        return Verdict(
            Status.BENIGN, "waits for the other end, which nobody else has open", case.row
        )
    return served_by_peers(case, node, threads, evidence)


@resolver("umtx")
def umtx(case: Case) -> Optional[Verdict]:
    """A userland lock; of a priority-inheritance mutex the kernel knows the owner."""
    held = blocked_on(case.kernel, case.thread)
    owner = case.builder.thread_node_at(held.owner) if held is not None else None
    if held is None or owner is None:
        return None
    builder = case.builder
    node = builder.object(NodeKind.LOCK, held.address, f"PI mutex {held.address:#x}")
    node.facts = ["umtx", "exclusive"]
    case.waits_for(node, Certainty.PROVEN, f"uq_pi_blocked {held.address:#x}")
    builder.join(node, owner, EdgeKind.OWNED_BY, Certainty.PROVEN, f"pi_owner {held.owner:#x}")
    why = f"waits for a PI mutex of {owner.label}"
    return Verdict(Status.BENIGN, why, case.row)
