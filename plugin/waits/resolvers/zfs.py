"""ZFS: condition variables in its structures, its sync threads, its I/O.

The structures are private to the zfs module: where no debug information gives
their layouts the cv's description and the stacks of ZFS's threads decide.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

from plugin.judge import geom_io
from plugin.kernel.bio import bio_origin
from plugin.kernel.proc import Thread
from plugin.waits.build import STUCK, Builder, Case, Standing
from plugin.waits.graph import CATALOGUED, GUESSED, PROVEN, End, Node
from plugin.waits.resolvers.io import bio_node
from plugin.waits.resolvers.stacks import runs


def _zfs_threads(b: Builder, functions: Tuple[str, ...]) -> List[Thread]:
    return [t for t in b.threads if b.is_kernel_thread(t) and runs(b, t, functions)]


def _outstanding(b: Builder) -> List[geom_io.OutstandingBio]:
    return [
        request
        for request in geom_io.top_requests(b.kernel)
        if bio_origin(b.kernel, request.bio).kind == "zfs"
    ]


def zio_node(b: Builder, address: int) -> Node:
    """A zio, joined to the bios that carry it or, where that is not known, to all of ZFS."""
    node = b.object("channel", address, f"zio {address:#x}")
    if node.end is not None or b.graph.successors(node.id):
        return node
    requests = _outstanding(b)
    own = [r for r in requests if bio_origin(b.kernel, r.bio).address == address]
    for request in own:
        b.join(node, bio_node(b, request), "served-by", PROVEN, "bio_caller1 is this zio")
    if not own:
        # A logical zio has children, and those the bios: any of what is under way.
        for request in requests[:256]:
            b.join(
                node,
                bio_node(b, request),
                "served-by",
                GUESSED,
                f"one of {len(requests)} requests that ZFS has under way",
            )
    if not requests:
        node.end = End("unknown", f"{node.label}: ZFS has no request under way", "g_bio zone")
    return node


def zio(case: Case) -> Optional[Standing]:
    """zio_wait(): the I/O, and through its bio the device."""
    address = case.address
    if "zio" in case.kernel.layouts and case.kernel.layouts.has("zio", "io_cv"):
        address = case.channel.container("zio", "io_cv")
    case.waits_for(zio_node(case.b, address), PROVEN, case.said())
    return Standing(STUCK, "waits for a ZFS I/O", case.row)


def dbuf(case: Case) -> Optional[Standing]:
    """db_changed: a buffer is being read; its zio is one of those under way."""
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    b = case.b
    if node.end is None and not b.graph.successors(node.id):
        requests = _outstanding(b)
        for request in requests[:256]:
            b.join(
                node,
                bio_node(b, request),
                "served-by",
                GUESSED,
                f"one of {len(requests)} requests that ZFS has under way",
            )
        if not requests:
            node.end = End("unknown", "a ZFS buffer is being read, yet no request is under way")
    return Standing(STUCK, "waits for a ZFS buffer", case.row)


def txg(case: Case) -> Optional[Standing]:
    """A transaction group has to be quiesced or synced by one of two threads."""
    b = case.b
    wmesg = case.thread.wmesg or ""
    quiesce = "quiesce" in wmesg
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    if node.end is not None or b.graph.successors(node.id):
        return Standing(STUCK, "waits for a transaction group", case.row)
    if "tc_cv" in wmesg:
        # Whoever has a transaction open: dmu_tx_assign() to dmu_tx_commit().
        holders = [
            t
            for t in b.threads
            if t.address != case.thread.address
            and runs(b, t, ("zfs_freebsd_", "zfs_write", "zfs_create", "zil_commit", "dmu_"))
            and not runs(b, t, ("dmu_tx_assign", "dmu_tx_wait", "txg_wait"))
        ]
        for thread in holders[:16]:
            b.join(
                node, b.thread(thread), "owned-by", GUESSED, "inside ZFS with a transaction open"
            )
    else:
        function = "txg_quiesce_thread" if quiesce else "txg_sync_thread"
        for thread in _zfs_threads(b, (function,)):
            b.join(
                node,
                b.thread(thread),
                "served-by",
                CATALOGUED,
                f"{function}() is on its stack and ends these waits",
            )
    if not b.graph.successors(node.id):
        node.end = End("unknown", f'"{wmesg}": a transaction group; its server was not found')
    return Standing(STUCK, "waits for a transaction group", case.row)


def suspended(case: Case) -> Optional[Standing]:
    """failmode=wait: the pool has lost its devices; only zpool clear goes on."""
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    node.end = node.end or End(
        "external",
        "a ZFS pool is suspended after I/O failures (failmode=wait): zpool clear resumes it",
        case.said(),
        case.thread.age,
    )
    return Standing(STUCK, "waits for a suspended pool", case.row)


def other(case: Case) -> Optional[Standing]:
    """Locks and throttles of ZFS: the holder is told by its stack, if at all."""
    b = case.b
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    if node.end is None and not b.graph.successors(node.id):
        wmesg = case.thread.wmesg or ""
        if wmesg.startswith("arc_"):
            for thread in _zfs_threads(
                b, ("arc_reclaim_thread", "arc_evict", "arc_adjust", "zthr")
            ):
                b.join(node, b.thread(thread), "served-by", CATALOGUED, "the ARC's thread")
        elif wmesg.startswith(("zcw", "zilog")):
            case.b.join(
                node, zio_node(b, case.address), "needs", GUESSED, "a log write is under way"
            )
        if not b.graph.successors(node.id):
            from plugin.waits.resolvers.stacks import guess_holders, sleepers_on

            waiting = sleepers_on(b, case.address)
            if not guess_holders(b, node, case.address, ("z", "d", "spa", "txg"), waiting, 4):
                node.end = End("unknown", f'"{wmesg}": a lock of ZFS; by whom is not recorded')
    return Standing(STUCK, "waits inside ZFS", case.row)
