"""What every resolver of ZFS shares, and the sleeps that nothing of memory leads on from."""

from __future__ import annotations

from typing import Optional

from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.stacks import guess_holders, sleepers_on

#: of a wide tree so many of its bottom zios become nodes: one that waits is enough to wait for
MOST_BELOW = 64
MOST_HOLDERS = 16


def is_new(builder: Builder, node: Node) -> bool:
    """True for a node of which nothing more has been said yet."""
    return node.end is None and not builder.graph.successors(node.id)


def owner(builder: Builder, node: Node, thread: int, member: str) -> bool:
    """Join a lock to the thread (struct thread *) that it records; False where there is none."""
    found = builder.thread_node_at(thread)
    if found is None:
        return False
    builder.join(node, found, EdgeKind.OWNED_BY, Certainty.PROVEN, f"{member} {thread:#x}")
    return True


@resolver("zfs_other")
def other(case: Case) -> Optional[Verdict]:
    """What has no recorded holder: told by stacks, if at all."""
    builder = case.builder
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    if is_new(builder, node):
        waiting = sleepers_on(builder, case.address)
        if not guess_holders(builder, node, case.address, ("z", "d", "spa", "txg"), waiting, 4):
            wmesg = case.thread.wmesg or ""
            node.end = End(
                CauseKind.UNKNOWN, f'"{wmesg}": a wait inside ZFS; for whom is not recorded'
            )
    return Verdict(Status.STUCK, "waits inside ZFS", case.row)
