"""Semaphores and message queues, System V's and POSIX's: to who has taken, or used it last.

The kernel records no owner of a semaphore.  Who has promised to give back at its exit
(SEM_UNDO) has taken; who has the other end open can give; who used it last is a guess.
"""

from __future__ import annotations

from typing import Iterable, List, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.judge.files import peers_of
from plugin.kernel.file import by_data
from plugin.kernel.proc import Thread
from plugin.kernel.sysv import messages_at, semaphores_at
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.procs import served_by_peers, threads_by_proc


def _of_pids(case: Case, pids: Iterable[int]) -> List[Thread]:
    wanted = set(pids)
    return [
        thread
        for thread in case.builder.threads
        if thread.pid in wanted and thread.proc != case.thread.proc
    ]


def _of_procs(case: Case, procs: Iterable[int]) -> List[Thread]:
    by_proc = threads_by_proc(case.kernel)
    return [
        thread
        for proc in dict.fromkeys(procs)
        if proc != case.thread.proc
        for thread in by_proc.get(proc, [])
    ]


def _waits(case: Case, label: str, threads: List[Thread], sure: Certainty, why: str) -> Verdict:
    node = case.waits_for(
        case.builder.object(NodeKind.LOCK, case.address, label), Certainty.PROVEN, case.said()
    )
    if threads:
        return served_by_peers(case, node, threads, why, sure)
    node.end = node.end or End(
        CauseKind.EXTERNAL, f"{label}: who could end the wait is not known", case.said()
    )
    return Verdict(Status.BENIGN, f"waits for {label}", case.row)


@resolver("semaphores")
def semaphores(case: Case) -> Optional[Verdict]:
    """semwait: the channel is the set in sema[]."""
    found = semaphores_at(case.kernel, case.address)
    if found is None:
        return None
    values = ", ".join(map(str, found.values[:8]))
    label = f"semaphore set {found.id} (key {found.key:#x}, values {values})"
    takers = _of_procs(case, (proc for proc, value in found.undo if value > 0))
    if takers:
        return _waits(
            case, label, takers, Certainty.CATALOGUED, "SEM_UNDO: its exit gives back what it took"
        )
    last = _of_pids(case, found.last)
    return _waits(case, label, last, Certainty.GUESSED, "sempid: it operated on the set last")


@resolver("messages")
def messages(case: Case) -> Optional[Verdict]:
    """msgrcv waits for a sender, msgsnd (the queue is full) for a receiver."""
    found = messages_at(case.kernel, case.address)
    if found is None:
        return None
    label = (
        f"message queue with key {found.key:#x} ({found.number} messages, {found.bytes} of "
        f"{found.most} bytes)"
    )
    receives = case.thread.wmesg == "msgrcv"
    pid = found.sender if receives else found.receiver
    why = "msg_lspid: it sent last" if receives else "msg_lrpid: it received last"
    return _waits(case, label, _of_pids(case, [pid]), Certainty.GUESSED, why)


@resolver("posix_semaphore")
def posix_semaphore(case: Case) -> Optional[Verdict]:
    """ksem: whoever else has the semaphore open can post it."""
    try:
        address = case.channel.container("ksem", "ks_cv")
        view = case.kernel.view("ksem", address)
    except (MemoryFault, LayoutError):
        return None
    if not by_data(case.kernel).get(address):
        return None
    name = case.kernel.try_cstring(view.get("ks_path", 0)) or f"{address:#x}"
    others = _of_procs(case, (p.proc.address for p in peers_of(case.kernel, address)))
    label = f"semaphore {name} (value {view.ks_value}, {view.ks_waiters} waiting)"
    return _waits(case, label, others, Certainty.CATALOGUED, "has the semaphore open, and can post")


@resolver("mqueue")
def mqueue(case: Case) -> Optional[Verdict]:
    """mqsend, mqrecv: whoever else has the queue open can take or send."""
    kernel = case.kernel
    sends = case.thread.wmesg == "mqsend"
    try:
        address = case.channel.container("mqueue", "mq_senders" if sends else "mq_receivers")
        view = kernel.view("mqueue", address)
        inside = kernel.layouts.offsetof("mqfs_node", "mn_data")
        nodes = [data for data in by_data(kernel) if _is_node(case, data + inside, address)]
    except (MemoryFault, LayoutError):
        return None
    if not nodes:
        return None
    name = kernel.view("mqfs_node", nodes[0]).text("mn_name")
    others = _of_procs(
        case, (peer.proc.address for node in nodes for peer in peers_of(kernel, node))
    )
    label = f"message queue {name} ({view.mq_curmsgs} of {view.mq_maxmsg} messages)"
    return _waits(case, label, others, Certainty.CATALOGUED, "has the queue open too")


def _is_node(case: Case, at: int, queue: int) -> bool:
    try:
        return case.kernel.pointer(at) == queue
    except MemoryFault:
        return False
