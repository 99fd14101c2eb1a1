"""Devices and file systems that a process of this machine serves: ggate, cuse, autofs.

The process is told by the device it has open, and is at rest while it sleeps for requests.
"""

from __future__ import annotations

from typing import List, Optional

from plugin.kernel.cdev import users
from plugin.kernel.cuse import request_of
from plugin.kernel.proc import Thread
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.procs import threads_by_proc

#: the class of ggate(4)'s geoms
GATE = "GATE"
_MAX_THREADS = 64


def _serving(builder: Builder, device: str, resting: str) -> List[Thread]:
    """The threads at work in processes that have ``device`` open; all of them if none is."""
    found = [
        thread
        for proc in users(builder.kernel, device)
        for thread in threads_by_proc(builder.kernel).get(proc, [])
    ]
    return [thread for thread in found if thread.wmesg != resting] or found


def _join(
    builder: Builder, node: Node, threads: List[Thread], certainty: Certainty, evidence: str
) -> bool:
    for thread in threads[:_MAX_THREADS]:
        builder.join(node, builder.thread(thread), EdgeKind.SERVED_BY, certainty, evidence)
    node.any = len(threads) > 1
    return bool(threads)


def join_gate(builder: Builder, node: Node, softc: int, evidence: str = "") -> bool:
    """A ggate device: the process that asks for its requests, ggatec, ggatel or ggated.

    While it waits for one it sleeps on the device's softc; one that is at work is told by
    having /dev/ggctl open, which names no device where there are several.
    """
    resting = [t for t in builder.threads if t.wmesg == "ggwait" and t.wchan == softc]
    if resting:
        said = f"it sleeps in ggwait on the device's softc {softc:#x}"
        return _join(builder, node, resting, Certainty.PROVEN, f"{evidence}; {said}".strip("; "))
    threads = _serving(builder, "ggctl", "ggwait")
    procs = {thread.proc for thread in threads}
    certainty = Certainty.CATALOGUED if len(procs) == 1 else Certainty.GUESSED
    said = "its process has /dev/ggctl open"
    return _join(builder, node, threads, certainty, f"{evidence}; {said}".strip("; "))


#: by resolver: the device its server has open, what that sleeps in without work
_SERVED = {
    "cuse": ("cuse", "cuse-server-cv"),
    "autofs": ("autofs", "autofscv"),
}


def _served(case: Case, name: str) -> Optional[Verdict]:
    device, resting = _SERVED[name]
    builder = case.builder
    if case.thread.proc in users(case.kernel, device):
        # automountd at rest sleeps on the same condition as those who ask it.
        own = builder.node(NodeKind.CHANNEL, f"requests:{case.thread.tid}", f"requests to {device}")
        own.end = End(CauseKind.EXTERNAL, f"waits for requests to /dev/{device}", case.said())
        case.waits_for(own, Certainty.PROVEN, case.said())
        return Verdict(Status.BENIGN, f"serves /dev/{device}, and waits for a request", case.row)
    threads = _serving(builder, device, resting)
    if not threads:
        return None
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    several = len({thread.proc for thread in threads}) > 1
    certainty = Certainty.GUESSED if several else Certainty.CATALOGUED
    _join(builder, node, threads, certainty, f"its process has /dev/{device} open")
    return Verdict(Status.STUCK, f"waits for the process that serves /dev/{device}", case.row)


@resolver("cuse")
def cuse(case: Case) -> Optional[Verdict]:
    """cuse-client-cv: a request to a character device that a process serves.

    The request's server has its process's pid (11.0 on); else who has /dev/cuse open.
    """
    builder = case.builder
    request = request_of(case.kernel, case.address)
    if request is None:
        return _served(case, "cuse")
    own = [thread for thread in builder.threads if thread.pid == request.server]
    taker = [thread for thread in own if thread.address == request.taken]
    threads = taker or [thread for thread in own if thread.wmesg != "cuse-server-cv"] or own
    if not threads:
        return None
    node = case.waits_for(
        builder.object(
            NodeKind.REQUEST, request.address, f"cuse {request.command} to pid {request.server}"
        ),
        Certainty.PROVEN,
        case.said(),
    )
    said = "entered: it has the request" if taker else "pid of the request's cuse_server"
    _join(builder, node, threads, Certainty.PROVEN, said)
    return Verdict(Status.STUCK, f"waits for pid {request.server}, which serves it", case.row)


@resolver("daemon")
def daemon(case: Case) -> Optional[Verdict]:
    """A request to a daemon that the row names by its command: gssd, nfsuserd, rpc.lockd."""
    builder = case.builder
    names = tuple(case.row.server) if case.row is not None else ()
    threads = [t for t in builder.threads if t.comm in names and t.proc != case.thread.proc]
    if not threads:
        said = f"{' or '.join(names)} has to answer, and no such process runs"
        node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
        node.end = node.end or End(CauseKind.EXTERNAL, said, case.said())
        return Verdict(Status.STUCK, said, case.row)
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    _join(builder, node, threads, Certainty.CATALOGUED, f"{threads[0].comm} answers such requests")
    return Verdict(Status.STUCK, f"waits for {threads[0].comm}", case.row)


@resolver("autofs")
def autofs(case: Case) -> Optional[Verdict]:
    """autofscv: automountd has to mount what was asked for."""
    return _served(case, "autofs")
