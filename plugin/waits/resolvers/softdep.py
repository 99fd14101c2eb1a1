"""Soft updates: whose dependencies are waited for, who flushes them, and the disk behind it."""

from __future__ import annotations

from typing import List, Optional

from plugin.judge import geom_io
from plugin.kernel.proc import Thread, thread_at
from plugin.kernel.softdep import Softdep, softdeps, waited_for
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.io import provider_node
from plugin.words import count


@resolver("softdep")
def softdep(case: Case) -> Optional[Verdict]:
    """Dependencies of a file system have to be worked off: by its flusher, or by its writes.

    Which file system the channel tells; "softupdate" is for any.
    """
    found = waited_for(case.kernel, case.address)
    known = [found] if found is not None else softdeps(case.kernel)
    if not known:
        return _by_name(case)
    verdict = Verdict(Status.STUCK, "waits for soft updates", case.row)
    for each in known:
        node = softdep_node(case.builder, each, case.thread)
        certainty = Certainty.PROVEN if found is not None else Certainty.CATALOGUED
        case.waits_for(node, certainty, case.said())
    return verdict


def softdep_node(builder: Builder, found: Softdep, waiter: Thread) -> Node:
    """The dependencies of one mount, joined to its flusher and to the disk that owes writes."""
    where = found.mount.on if found.mount is not None else f"{found.address:#x}"
    node = builder.object(NodeKind.OBJECT, found.address, f"soft updates of {where}")
    if node.end is not None or builder.graph.successors(node.id):
        return node
    node.facts = [
        f"{found.worklist} on the worklist",
        f"{found.journal} on the journal",
        f"{count(found.deps, 'dependency', 'dependencies')}",
    ]
    for thread, certainty, said in _flushers(builder, found):
        if thread.address != waiter.address and not builder.waits_for_work(thread):
            target = builder.thread(thread)
            builder.join(node, target, EdgeKind.SERVED_BY, certainty, said)
    provider = found.provider
    io = geom_io.provider_io(builder.kernel).get(provider.address) if provider is not None else None
    if provider is not None and io is not None and io.verdict in ("owes", "waits") and io.in_flight:
        builder.join(
            node,
            provider_node(builder, provider),
            EdgeKind.NEEDS,
            Certainty.CATALOGUED,
            "a dependency ends when what it depends on is written to the device (um_cp)",
        )
    if not builder.graph.successors(node.id):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label}: {', '.join(node.facts)}; its flusher is idle and its disk owes nothing",
            f"{found.address:#x}",
        )
    return node


def _flushers(builder: Builder, found: Softdep) -> List[tuple[Thread, Certainty, str]]:
    own = thread_at(builder.kernel, found.flusher) if found.flusher else None
    if own is not None:
        return [(own, Certainty.PROVEN, "sd_flushtd: the flusher of this file system")]
    return [
        (thread, Certainty.CATALOGUED, "softdepflush serves every file system")
        for thread in builder.threads
        if builder.is_kernel_thread(thread) and thread.comm.startswith("softdepflush")
    ]


def _by_name(case: Case) -> Verdict:
    """Where no struct of soft updates can be read: a flusher that is stuck, told by its name."""
    builder = case.builder
    flushers = [
        thread
        for thread in builder.threads
        if builder.is_kernel_thread(thread)
        and (thread.name.endswith(" worker") or thread.comm.startswith("softdepflush"))
        and thread.address != case.thread.address
    ]
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    busy = [each for each in flushers if builder.verdict(each).status == Status.STUCK]
    for thread in busy:
        said = "the soft updates flusher"
        builder.join(node, builder.thread(thread), EdgeKind.SERVED_BY, Certainty.CATALOGUED, said)
    if not busy:
        node.end = node.end or End(
            CauseKind.UNKNOWN,
            f'"{case.thread.wmesg}": soft updates have to be worked off; the flusher is idle',
        )
    return Verdict(Status.STUCK, "waits for soft updates", case.row)
