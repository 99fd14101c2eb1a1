"""Processes that wait for processes: file locks, threads of a driver made for Linux."""

from __future__ import annotations

from typing import Dict, List, Optional

from plugin.kernel.file import by_file
from plugin.kernel.lockf import Entry, blockers
from plugin.kernel.proc import Thread
from plugin.kernel.vnode import vnode_at
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.procs import served_by_peers, threads_by_proc

_MAX_EDGES = 64


@resolver("lockf")
def lockf(case: Case) -> Optional[Verdict]:
    """fcntl(2), flock(2): the owners of the locks in the way; benign unless all are stuck."""
    builder = case.builder
    found = blockers(case.kernel, case.address)
    if not found:
        return None
    vnode = vnode_at(case.kernel, found[0].vnode)
    name = vnode.label if vnode is not None else f"vnode {found[0].vnode:#x}"
    node = case.waits_for(
        builder.object(NodeKind.LOCK, case.address, f"file lock on {name}"),
        Certainty.PROVEN,
        case.said(),
    )
    held = "; ".join(_described(entry) for entry in found[:2])
    owners: Dict[int, Thread] = {}
    for entry in found[:_MAX_EDGES]:
        for thread in _owners(builder, entry):
            owners[thread.address] = thread
    owners.pop(case.thread.address, None)
    if not owners:
        remote = [entry for entry in found if entry.sysid]
        who = "a client of NFS" if remote else "a process that was not found"
        node.end = node.end or End(CauseKind.EXTERNAL, f"{node.label} is held by {who}", held)
        return Verdict(Status.BENIGN, f"waits for {node.label}", case.row)
    return served_by_peers(case, node, list(owners.values()), held)


def _owners(builder: Builder, entry: Entry) -> List[Thread]:
    if entry.sysid:
        return []
    if not entry.is_flock:
        return [thread for thread in builder.threads if thread.pid == entry.pid]
    procs = {each.proc for each in by_file(builder.kernel).get(entry.id, ())}
    return [thread for proc in procs for thread in threads_by_proc(builder.kernel).get(proc, [])]


def _described(entry: Entry) -> str:
    kind = "flock" if entry.is_flock else f"fcntl of pid {entry.pid}"
    return f"{entry.type} lock by {kind}, lockf_entry {entry.address:#x}"


@resolver("linux_wait")
def linux_wait(case: Case) -> Optional[Verdict]:
    """wait_event() and kin: a driver's own thread waits for work, a process for an answer."""
    if case.builder.is_kernel_thread(case.thread):
        node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
        node.end = node.end or End(
            CauseKind.EXTERNAL, "a driver's kernel thread without work", "P_KPROC"
        )
        return Verdict(Status.IDLE, "a driver's kernel thread without work", case.row)
    return None
