"""ZFS: condition variables in its structures, its sync threads, its I/O.

The structures are private to the zfs module: where no debug information gives
their layouts the cv's description and the stacks of ZFS's threads decide.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

from plugin.judge import geom_io
from plugin.kernel.bio import bio_origin
from plugin.kernel.proc import Thread
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.io import bio_node
from plugin.waits.resolvers.stacks import guess_holders, runs, sleepers_on


def _zfs_threads(builder: Builder, functions: Tuple[str, ...]) -> List[Thread]:
    return [
        t for t in builder.threads if builder.is_kernel_thread(t) and runs(builder, t, functions)
    ]


def _outstanding(builder: Builder) -> List[geom_io.OutstandingBio]:
    return [
        request
        for request in geom_io.top_requests(builder.kernel)
        if bio_origin(builder.kernel, request.bio).kind == "zfs"
    ]


def zio_node(builder: Builder, address: int) -> Node:
    """A zio, joined to the bios that carry it or, where that is not known, to all of ZFS."""
    node = builder.object(NodeKind.CHANNEL, address, f"zio {address:#x}")
    if node.end is not None or builder.graph.successors(node.id):
        return node
    requests = _outstanding(builder)
    own = [r for r in requests if bio_origin(builder.kernel, r.bio).address == address]
    for request in own:
        builder.join(
            node,
            bio_node(builder, request),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            "bio_caller1 is this zio",
        )
    if not own:
        # A logical zio has children, and those the bios: any of what is under way.
        for request in requests[:256]:
            builder.join(
                node,
                bio_node(builder, request),
                EdgeKind.SERVED_BY,
                Certainty.GUESSED,
                f"one of {len(requests)} requests that ZFS has under way",
            )
    if not requests:
        node.end = End(
            CauseKind.UNKNOWN, f"{node.label}: ZFS has no request under way", "g_bio zone"
        )
    return node


@resolver("zfs_zio")
def zio(case: Case) -> Optional[Verdict]:
    """zio_wait(): the I/O, and through its bio the device."""
    address = case.address
    if "zio" in case.kernel.layouts and case.kernel.layouts.has("zio", "io_cv"):
        address = case.channel.container("zio", "io_cv")
    case.waits_for(zio_node(case.builder, address), Certainty.PROVEN, case.said())
    return Verdict(Status.STUCK, "waits for a ZFS I/O", case.row)


@resolver("zfs_dbuf")
def dbuf(case: Case) -> Optional[Verdict]:
    """db_changed: a buffer is being read; its zio is one of those under way."""
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    builder = case.builder
    if node.end is None and not builder.graph.successors(node.id):
        requests = _outstanding(builder)
        for request in requests[:256]:
            builder.join(
                node,
                bio_node(builder, request),
                EdgeKind.SERVED_BY,
                Certainty.GUESSED,
                f"one of {len(requests)} requests that ZFS has under way",
            )
        if not requests:
            node.end = End(
                CauseKind.UNKNOWN, "a ZFS buffer is being read, yet no request is under way"
            )
    return Verdict(Status.STUCK, "waits for a ZFS buffer", case.row)


@resolver("zfs_txg")
def txg(case: Case) -> Optional[Verdict]:
    """A transaction group has to be quiesced or synced by one of two threads."""
    builder = case.builder
    wmesg = case.thread.wmesg or ""
    quiesce = "quiesce" in wmesg
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    if node.end is not None or builder.graph.successors(node.id):
        return Verdict(Status.STUCK, "waits for a transaction group", case.row)
    if "tc_cv" in wmesg:
        # Whoever has a transaction open: dmu_tx_assign() to dmu_tx_commit().
        holders = [
            t
            for t in builder.threads
            if t.address != case.thread.address
            and runs(builder, t, ("zfs_freebsd_", "zfs_write", "zfs_create", "zil_commit", "dmu_"))
            and not runs(builder, t, ("dmu_tx_assign", "dmu_tx_wait", "txg_wait"))
        ]
        for thread in holders[:16]:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.OWNED_BY,
                Certainty.GUESSED,
                "inside ZFS with a transaction open",
            )
    else:
        function = "txg_quiesce_thread" if quiesce else "txg_sync_thread"
        for thread in _zfs_threads(builder, (function,)):
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.SERVED_BY,
                Certainty.CATALOGUED,
                f"{function}() is on its stack and ends these waits",
            )
    if not builder.graph.successors(node.id):
        node.end = End(
            CauseKind.UNKNOWN, f'"{wmesg}": a transaction group; its server was not found'
        )
    return Verdict(Status.STUCK, "waits for a transaction group", case.row)


@resolver("zfs_suspended")
def suspended(case: Case) -> Optional[Verdict]:
    """failmode=wait: the pool has lost its devices; only zpool clear goes on."""
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    node.end = node.end or End(
        CauseKind.EXTERNAL,
        "a ZFS pool is suspended after I/O failures (failmode=wait): zpool clear resumes it",
        case.said(),
        case.thread.age,
    )
    return Verdict(Status.STUCK, "waits for a suspended pool", case.row)


@resolver("zfs_other")
def other(case: Case) -> Optional[Verdict]:
    """Locks and throttles of ZFS: the holder is told by its stack, if at all."""
    builder = case.builder
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    if node.end is None and not builder.graph.successors(node.id):
        wmesg = case.thread.wmesg or ""
        if wmesg.startswith("arc_"):
            for thread in _zfs_threads(
                builder, ("arc_reclaim_thread", "arc_evict", "arc_adjust", "zthr")
            ):
                builder.join(
                    node,
                    builder.thread(thread),
                    EdgeKind.SERVED_BY,
                    Certainty.CATALOGUED,
                    "the ARC's thread",
                )
        elif wmesg.startswith(("zcw", "zilog")):
            case.builder.join(
                node,
                zio_node(builder, case.address),
                EdgeKind.NEEDS,
                Certainty.GUESSED,
                "a log write is under way",
            )
        if not builder.graph.successors(node.id):
            waiting = sleepers_on(builder, case.address)
            if not guess_holders(builder, node, case.address, ("z", "d", "spa", "txg"), waiting, 4):
                node.end = End(
                    CauseKind.UNKNOWN, f'"{wmesg}": a lock of ZFS; by whom is not recorded'
                )
    return Verdict(Status.STUCK, "waits inside ZFS", case.row)
