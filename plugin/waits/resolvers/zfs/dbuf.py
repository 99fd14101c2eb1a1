"""Buffers: a block that is read, filled, or written by dmu_sync() for the log."""

from __future__ import annotations

from typing import List, Optional, Sequence

from plugin.judge import zfs as judge
from plugin.kernel.proc import Thread
from plugin.kernel.zfs import dbuf
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.stacks import sleepers_on
from plugin.waits.resolvers.zfs.common import MOST_BELOW, MOST_HOLDERS, is_new, other
from plugin.waits.resolvers.zfs.zio import zio_node


@resolver("zfs_dbuf")
def buffer(case: Case) -> Optional[Verdict]:
    """db_changed: a block is read, filled, or written by dmu_sync() for the log."""
    builder, kernel = case.builder, case.kernel
    if not kernel.layouts.has("dmu_buf_impl", "db_changed"):
        return other(case)
    address = case.channel.container("dmu_buf_impl", "db_changed")
    node = builder.object(NodeKind.DBUF, address, f"dbuf {address:#x}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, "waits for a ZFS buffer", case.row)
    if not is_new(builder, node):
        return verdict
    found = dbuf.dbuf_at(kernel, address)
    node.label = f"dbuf {found.label}"
    node.facts = [found.state]
    if found.syncing is not None and found.state == "CACHED":
        node.facts = [f"dmu_sync() in txg {found.syncing}"]
    if found.state == "FILL":
        _fillers(builder, node, case, found)
    else:
        _transfers(builder, node, found)
    if is_new(builder, node):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} is in state {found.state}; no I/O of its block was found",
            f"bookmark {found.bookmark}",
        )
    return verdict


def _transfers(builder: Builder, node: Node, found: dbuf.Dbuf) -> None:
    kernel = builder.kernel
    wanted = judge.readers_of(kernel, found.bookmark, found.dva)
    index = judge.zios(kernel)
    kind = "WRITE" if found.syncing is not None and found.state != "READ" else "READ"
    same = [at for at in wanted if index.all[at].type == kind] or wanted
    for at in judge.tops(kernel, same)[:MOST_BELOW]:
        zio_found = index.all[at]
        exact = zio_found.bookmark == found.bookmark
        why = f"io_bookmark {found.bookmark}" if exact else "its blkptr is this block's"
        builder.join(node, zio_node(builder, at), EdgeKind.SERVED_BY, Certainty.PROVEN, why)


def _fillers(builder: Builder, node: Node, case: Case, found: dbuf.Dbuf) -> None:
    waiting = sleepers_on(builder, case.address)
    own = [
        thread
        for thread in judge.threads_inside(builder.kernel)
        if thread.address not in {each.address for each in waiting}
    ]
    for thread in _holding(builder, own, found.address)[:MOST_HOLDERS]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.GUESSED,
            f"DB_FILL, and its kernel stack holds {found.address:#x}",
        )


def _holding(builder: Builder, threads: Sequence[Thread], address: int) -> List[Thread]:
    wanted = {thread.address for thread in threads}
    return [
        thread
        for thread in judge.range_holders(builder.kernel, address, ())
        if thread.address in wanted
    ]
