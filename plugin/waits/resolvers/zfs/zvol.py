"""Volumes: their threads at rest, a volume that waits for its thread or for those who have it open.

Who does a request of a volume says plugin.judge.geom_io, with every other bio's place.
"""

from __future__ import annotations

from typing import Optional

from plugin.judge import geom_io
from plugin.kernel.cdev import users
from plugin.kernel.geom import mesh
from plugin.kernel.zfs import zvol
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.common import idle, lost_wakeup
from plugin.waits.resolvers.io import bio_node, uses
from plugin.waits.resolvers.procs import threads_by_proc
from plugin.waits.resolvers.zfs.common import MOST_HOLDERS, is_new
from plugin.words import count, verb


@resolver("zvol_work")
def work(case: Case) -> Optional[Verdict]:
    """zvol:io: the volume's thread waits for a request; there may be one."""
    for volume in zvol.zvols(case.kernel):
        if volume.queue == case.address and volume.queued:
            number = len(volume.queued)
            said = f"{count(number, 'request')} {verb(number, 'wait')} on its queue"
            summary = f"zvol {volume.name}: {said}, yet its thread sleeps for work"
            return lost_wakeup(case, summary, case.said())
    return idle(case, "a volume's thread without work")


@resolver("zvol_exit")
def leaving(case: Case) -> Optional[Verdict]:
    """zvol:w: the volume goes away, and its thread has to exit first."""
    builder, kernel = case.builder, case.kernel
    found = next((each for each in zvol.zvols(kernel) if each.state == case.address), None)
    if found is None:
        return None
    node = _node(builder, found)
    case.waits_for(node, Certainty.PROVEN, f"{case.said()}: the state its thread is stopped by")
    if is_new(builder, node):
        for thread in zvol.workers(kernel, found)[:MOST_HOLDERS]:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.SERVED_BY,
                Certainty.CATALOGUED,
                "the volume's own thread, which has to exit",
            )
    if is_new(builder, node):
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: its thread was not found", case.said())
    return Verdict(Status.STUCK, f"waits for the thread of zvol {found.name} to exit", case.row)


@resolver("zvol_open")
def opened(case: Case) -> Optional[Verdict]:
    """zvol:dying, zv_removing_cv: the volume is to go, and somebody has it open."""
    builder, kernel = case.builder, case.kernel
    found = zvol.zvol_around(kernel, case.address)
    if found is None:
        return None
    node = _node(builder, found)
    case.waits_for(node, Certainty.PROVEN, f"{case.said()}; it is open {found.opens} times")
    if is_new(builder, node):
        _join_openers(builder, node, found)
    return Verdict(Status.STUCK, f"waits for zvol {found.name} to be closed", case.row)


def _node(builder: Builder, found: zvol.Zvol) -> Node:
    node = builder.object(NodeKind.OBJECT, found.address, f"zvol {found.name}")
    node.facts = [f"volmode {found.mode}"] if found.mode else []
    return node


def _join_openers(builder: Builder, node: Node, found: zvol.Zvol) -> None:
    """Requests that are under way at the volume, and the processes that have it open."""
    kernel = builder.kernel
    for each in geom_io.outstanding(kernel):
        if found.provider and each.bio.to == found.provider and not each.bio.parent:
            builder.join(
                node,
                bio_node(builder, each),
                EdgeKind.NEEDS,
                Certainty.PROVEN,
                "a request to the volume, which is not closed before it ends",
            )
    for proc in users(kernel, f"zvol/{found.name}"):
        for thread in threads_by_proc(kernel).get(proc, [])[:MOST_HOLDERS]:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.OWNED_BY,
                Certainty.CATALOGUED,
                f"its process has /dev/zvol/{found.name} open",
            )
    if not is_new(builder, node):
        return
    provider = mesh(kernel).providers.get(found.provider)
    use = ", ".join(uses(kernel, provider)) if provider is not None else ""
    mounted = f" ({use})" if use else ""
    node.end = End(
        CauseKind.EXTERNAL,
        f"{node.label}{mounted} is open {found.opens} times: it goes once it is closed",
        "zv_open_count",
    )
