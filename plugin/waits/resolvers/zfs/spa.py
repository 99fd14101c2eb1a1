"""Pools: a suspended one is the end of every chain that comes to it."""

from __future__ import annotations

from typing import Optional

from plugin.judge import zfs as judge
from plugin.kernel.proc import Thread
from plugin.kernel.zfs import spa as spa_module
from plugin.kernel.zfs.spa import Spa
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import at_work, resolver, without_thread


def pool_node(builder: Builder, spa: Spa) -> Node:
    """A suspended pool: the end of every chain that comes to it."""
    node = builder.object(NodeKind.ZPOOL, spa.address, f"pool {spa.name}")
    if node.end is None:
        for trouble in judge.suspended(builder.kernel):
            if trouble.spa.address == spa.address:
                node.end = End(
                    CauseKind.EXTERNAL,
                    trouble.summary,
                    trouble.evidence,
                    trouble.since,
                    alone=True,
                )
    return node


def join_suspended(builder: Builder, node: Node, spa: Optional[Spa], why: str) -> bool:
    """Join to the pool if it is suspended: nothing of it goes on before it is cleared."""
    if spa is None or not spa.suspended:
        return False
    builder.join(node, pool_node(builder, spa), EdgeKind.NEEDS, Certainty.PROVEN, why)
    return True


@without_thread
def suspended_pools(builder: Builder) -> None:
    """A suspended pool is a cause, whoever sleeps, spins or has given up on it."""
    for trouble in judge.suspended(builder.kernel):
        pool_node(builder, trouble.spa)


@at_work
def at_work_in_suspended(
    builder: Builder, thread: Thread, node: Node, verdict: Verdict
) -> Optional[Verdict]:
    """A thread that spins or loops inside ZFS, whose pool does not go on."""
    if verdict.status is Status.IDLE or not judge.suspended(builder.kernel):
        return None
    found = judge.pool_of_stack(builder.kernel, thread)
    if found is None or not found[0].suspended:
        return None
    spa, evidence = found
    sure = Certainty.CATALOGUED if evidence else Certainty.GUESSED
    why = evidence or "it is inside ZFS, and there is no other pool"
    builder.join(node, pool_node(builder, spa), EdgeKind.NEEDS, sure, why)
    node.end = None
    return Verdict(Status.STUCK, f"{verdict.why} inside suspended pool {spa.name}")


@resolver("zfs_suspended")
def suspended(case: Case) -> Optional[Verdict]:
    """zio_resume_wait(), txg_wait_synced(): the pool has lost its devices."""
    kernel, builder = case.kernel, case.builder
    spa = (
        spa_module.spa_of(kernel, case.channel.container("spa", "spa_suspend_cv"))
        if (kernel.layouts.has("spa", "spa_suspend_cv"))
        else None
    )
    if spa is not None and spa.suspended:
        case.waits_for(pool_node(builder, spa), Certainty.PROVEN, case.said())
        return Verdict(Status.STUCK, f"waits for suspended pool {spa.name}", case.row)
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    node.end = node.end or End(
        CauseKind.EXTERNAL,
        "a ZFS pool is suspended after I/O failures (failmode=wait): zpool clear resumes it",
        case.said(),
        case.thread.age,
    )
    return Verdict(Status.STUCK, "waits for a suspended pool", case.row)
