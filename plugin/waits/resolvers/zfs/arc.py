"""The ARC: who waits for memory waits for the thread that evicts."""

from __future__ import annotations

from typing import Optional

from plugin.kernel.proc import thread_at
from plugin.kernel.zfs import arc
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.stacks import runs
from plugin.waits.resolvers.zfs.common import is_new


@resolver("zfs_arc")
def evict(case: Case) -> Optional[Verdict]:
    """arc_wait_for_eviction(): the zthr that evicts has to make room."""
    builder, kernel = case.builder, case.kernel
    node = builder.node(NodeKind.MEMORY, "arc", "memory of the ARC")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if is_new(builder, node):
        found = arc.evict_thread(kernel)
        thread = thread_at(kernel, found.thread) if found.thread else None
        servers = (
            [thread]
            if thread is not None
            else [
                each
                for each in builder.threads
                if builder.is_kernel_thread(each)
                and runs(builder, each, ("arc_reclaim_thread", "arc_evict", "arc_adjust"))
            ]
        )
        evidence = "arc_evict_zthr" if thread is not None else "evicts, by its functions"
        sure = Certainty.PROVEN if thread is not None else Certainty.CATALOGUED
        for each in servers[:4]:
            builder.join(node, builder.thread(each), EdgeKind.SERVED_BY, sure, evidence)
        if not servers:
            node.end = End(
                CauseKind.UNKNOWN, "memory of the ARC: the thread that evicts was not found", ""
            )
    return Verdict(Status.STUCK, "waits for the ARC to evict", case.row)
