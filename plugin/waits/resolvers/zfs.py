"""ZFS: from a condition variable in its structures to the I/O, the thread or the pool behind it.

The structures' layouts say what a wait channel lies in; plugin.judge.zfs, where each zio is
and who holds a transaction group open.  What memory does not tell is guessed by stacks, and
said to be; what not even those tell is said to be unknown, with the reason.
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.judge import geom_io
from plugin.judge import zfs as judge
from plugin.kernel.bio import bio_origin
from plugin.kernel.mount import mounts
from plugin.kernel.proc import Thread, thread_at
from plugin.kernel.zfs import arc, dbuf, rlock, txg, zil
from plugin.kernel.zfs import spa as spa_module
from plugin.kernel.zfs import zio as zio_module
from plugin.kernel.zfs.common import try_peek
from plugin.kernel.zfs.spa import Spa
from plugin.kernel.zfs.vdev import Vdev, provider_of, vdev_queue
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import at_work, resolver, without_thread
from plugin.waits.resolvers.io import bio_node, provider_node
from plugin.waits.resolvers.stacks import guess_holders, runs, sleepers_on
from plugin.waits.resolvers.tasks import taskqueue_node
from plugin.words import count, seconds

#: of a wide tree so many of its bottom zios become nodes: one that waits is enough to wait for
_MOST_BELOW = 64
_MOST_HOLDERS = 16
#: functions between dmu_tx_assign() and dmu_tx_commit(), where no symbol names a module's
_INSIDE = ("zfs_", "zil_", "zvol_", "dmu_", "dsl_", "zpl_")


def _is_new(builder: Builder, node: Node) -> bool:
    """True for a node of which nothing more has been said yet."""
    return node.end is None and not builder.graph.successors(node.id)


# Pools


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


def _join_suspended(builder: Builder, node: Node, spa: Optional[Spa], why: str) -> bool:
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


# I/O


def zio_node(builder: Builder, address: int) -> Node:
    """A zio, joined to those at the bottom of its tree, and those to what has them."""
    kernel = builder.kernel
    node = builder.object(NodeKind.ZIO, address, f"zio {address:#x}")
    if not _is_new(builder, node):
        return node
    index = judge.zios(kernel)
    zio = index.at(address)
    if zio is None:
        _any_request(builder, node)
        return node
    spa = spa_module.spa_of(kernel, zio.spa)
    node.label = f"zio {address:#x} ({zio_module.describe(zio)})"
    if spa is not None:
        node.facts = [f"in pool {spa.name}"]
    below = index.bottom(address)
    if below != [address]:
        for at in below[:_MOST_BELOW]:
            between = index.depth(address, at)
            how = f"io_child_list, {count(between, 'zio')} between" if between else "io_child_list"
            builder.join(
                node, zio_node(builder, at), EdgeKind.NEEDS, Certainty.PROVEN, f"below it by {how}"
            )
        return node
    age = zio_module.age(kernel, zio)
    if age is not None:
        node.facts.append(f"queued {seconds(age)} ago")
    _join_place(builder, node, zio, judge.place(kernel, zio), spa)
    return node


def _any_request(builder: Builder, node: Node) -> None:
    """What cannot be read as a zio waits for one of the requests that ZFS has in GEOM."""
    kernel = builder.kernel
    requests = [
        request
        for request in geom_io.top_requests(kernel)
        if bio_origin(kernel, request.bio).kind == "zfs"
    ]
    for request in requests[:_MOST_BELOW]:
        builder.join(
            node,
            bio_node(builder, request),
            EdgeKind.SERVED_BY,
            Certainty.GUESSED,
            f"one of {count(len(requests), 'request')} that ZFS has under way",
        )
    if not requests:
        known = "zio" in kernel.layouts
        why = "what lies there is no zio" if known else "the layout of struct zio is not known"
        node.end = End(CauseKind.UNKNOWN, f"{node.label} cannot be followed: {why}", "")


def _join_place(
    builder: Builder, node: Node, zio: zio_module.Zio, place: judge.Place, spa: Optional[Spa]
) -> None:
    kernel = builder.kernel
    sure = Certainty.PROVEN if place.certainty == judge.PROVEN else Certainty.GUESSED
    if place.state == judge.AT_DEVICE and place.bio is not None:
        builder.join(node, bio_node(builder, place.bio), EdgeKind.SERVED_BY, sure, place.why)
    elif place.state == judge.AT_DEVICE:
        provider = provider_of(kernel, place.vdev) if place.vdev is not None else None
        if provider is not None:
            builder.join(
                node, provider_node(builder, provider), EdgeKind.SERVED_BY, sure, place.why
            )
        else:
            node.end = End(CauseKind.UNKNOWN, f"{node.label}: {place.why}", place.why)
    elif place.state == judge.QUEUED and place.vdev is not None:
        queue = queue_node(builder, place.vdev)
        builder.join(node, queue, EdgeKind.CONTAINED_IN, sure, place.why)
    elif place.state == judge.SUSPENDED:
        _join_suspended(builder, node, spa, place.why)
    elif place.state == judge.JOINED:
        builder.join(node, zio_node(builder, place.other), EdgeKind.NEEDS, sure, place.why)
    elif place.queue is not None and place.thread is None:
        builder.join(
            node, taskqueue_node(builder, place.queue), EdgeKind.CONTAINED_IN, sure, place.why
        )
    elif place.thread is not None:
        builder.join(node, builder.thread(place.thread), EdgeKind.SERVED_BY, sure, place.why)
    elif not _join_suspended(builder, node, spa, "the pool is suspended"):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} is nowhere to be found",
            place.why,
            zio_module.age(kernel, zio),
        )


def queue_node(builder: Builder, vdev: Vdev) -> Node:
    """The queue of a vdev: one of the zios that the device has must end before the next is sent."""
    node = builder.node(NodeKind.QUEUE, f"vdev:{vdev.address:#x}", f"queue of vdev {vdev.name}")
    if not _is_new(builder, node):
        return node
    queue = vdev_queue(builder.kernel, vdev.address)
    active = queue.active if queue is not None else []
    waiting = len(queue.waiting) if queue is not None else 0
    node.facts = [f"{len(active)} active, {waiting} waiting"]
    node.any = True
    for at in active[:_MOST_BELOW]:
        builder.join(
            node,
            zio_node(builder, at),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            f"one of {len(active)} that the queue has given to the device",
        )
    if not active:
        node.end = End(
            CauseKind.UNKNOWN,
            f"queue of vdev {vdev.name}: {waiting} wait and none is with the device",
            "vq_active",
        )
    return node


@resolver("zfs_zio")
def zio(case: Case) -> Optional[Verdict]:
    """zio_wait(): io_cv lies in the zio at the top of the tree."""
    kernel = case.kernel
    known = "zio" in kernel.layouts
    address = case.channel.container("zio", "io_cv") if known else case.address
    node = zio_node(case.builder, address)
    found = judge.zios(kernel).at(address)
    own = found is not None and found.waiter == case.thread.address
    said = case.said() + ("; io_waiter is this thread" if own else "")
    case.waits_for(node, Certainty.PROVEN, said)
    if (
        own
        and found is not None
        and not found.executor
        and not judge.zios(kernel).children[address]
    ):
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} is done, yet {case.thread.tid} {case.thread.label} sleeps on it",
            "io_executor is NULL",
            case.thread.age,
        )
    return Verdict(Status.STUCK, "waits for a ZFS I/O", case.row)


@resolver("zfs_joined")
def joined(case: Case) -> Optional[Verdict]:
    """arc_read() with ARC_WAIT: another's read of the same block."""
    kernel = case.kernel
    if not kernel.layouts.has("arc_callback", "acb_wait_cv"):
        return other(case)
    callback = case.channel.container("arc_callback", "acb_wait_cv")
    head = try_peek(kernel, "arc_callback", callback, "acb_zio_head", 0)
    if not head:
        return other(case)
    case.waits_for(
        zio_node(case.builder, head), Certainty.PROVEN, f"{case.said()}; acb_zio_head {head:#x}"
    )
    return Verdict(Status.STUCK, "waits for another's ZFS read", case.row)


# Buffers


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
    if not _is_new(builder, node):
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
    if _is_new(builder, node):
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
    for at in judge.tops(kernel, same)[:_MOST_BELOW]:
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
    for thread in _holding(builder, own, found.address)[:_MOST_HOLDERS]:
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


# Transaction groups


def _txg_of(case: Case) -> Tuple[Optional[txg.Txg], str]:
    """The pool's tx_state that a wait channel belongs to, and the name of the channel there.

    None where no pool is around what would be a tx_state.
    """
    found, member = _tx_state_of(case)
    if found is not None and spa_module.spa_of(case.kernel, found.spa) is None:
        found = None
    return found, member


def _tx_state_of(case: Case) -> Tuple[Optional[txg.Txg], str]:
    kernel, layouts = case.kernel, case.kernel.layouts
    for member in ("tx_sync_done_cv", "tx_quiesce_done_cv", "tx_quiesce_more_cv"):
        if member in (case.thread.wmesg or "") and layouts.has("tx_state", member):
            at = case.channel.container("tx_state", member)
            return txg.txg_of(kernel, txg.pool_of_tx(kernel, at)), member
    if "dp_spaceavail_cv" in (case.thread.wmesg or ""):
        at = case.channel.container("dsl_pool", "dp_spaceavail_cv")
        return txg.txg_of(kernel, at), "dp_spaceavail_cv"
    if "dn_notxholds" in (case.thread.wmesg or ""):
        dnode = case.channel.container("dnode", "dn_notxholds")
        objset = try_peek(kernel, "dnode", dnode, "dn_objset", 0)
        at = try_peek(kernel, "objset", objset, "os_spa", 0) if objset else 0
        spa = spa_module.spa_of(kernel, at) if at else None
        return (txg.txg_of(kernel, spa.dsl_pool) if spa else None), "dn_notxholds"
    for spa in spa_module.spas(kernel):
        found = txg.txg_of(kernel, spa.dsl_pool) if spa.dsl_pool else None
        if found is not None and txg.cv_index(kernel, found, case.address) is not None:
            return found, "tc_cv"
    return None, ""


def _pool_name(builder: Builder, found: txg.Txg) -> str:
    spa = spa_module.spa_of(builder.kernel, found.spa)
    return spa.name if spa is not None else f"pool {found.spa:#x}"


def sync_node(builder: Builder, found: txg.Txg) -> Node:
    """The txg that has to be synced: by the pool's sync thread once it has been handed over."""
    kernel = builder.kernel
    number = found.syncing or found.quiesced or found.quiescing or found.open
    name = _pool_name(builder, found)
    node = builder.node(
        NodeKind.TXG, f"{found.spa:#x}:sync", f"txg {number} of pool {name}", found.address
    )
    if not _is_new(builder, node):
        return node
    node.facts = [f"open {found.open}, syncing {found.syncing or 'none'}, synced {found.synced}"]
    spa = spa_module.spa_of(kernel, found.spa)
    if spa is not None and spa.sync_age is not None and found.syncing:
        node.facts.append(f"spa_sync() began {seconds(spa.sync_age)} ago")
    thread = thread_at(kernel, found.sync_thread)
    if found.syncing or found.quiesced:
        if thread is not None:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.SERVED_BY,
                Certainty.PROVEN,
                f"tx_sync_thread, which has txg {found.syncing or found.quiesced}",
            )
    else:
        builder.join(
            node,
            quiesce_node(builder, found),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            "no txg is with the sync thread: one has to be quiesced first",
        )
    if _is_new(builder, node):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label}: its sync thread {found.sync_thread:#x} was not found",
            "tx_sync_thread",
        )
    return node


def quiesce_node(builder: Builder, found: txg.Txg) -> Node:
    """The txg that has to be quiesced: every transaction in it has to be committed."""
    kernel = builder.kernel
    name = _pool_name(builder, found)
    number = found.quiescing or (found.open if not found.syncing else found.open - 1)
    # Before 12.0 nothing says that one is quiescing: it is the one whose count is not 0.
    for each in (found.open - 1, found.open):
        holders = judge.holders_of(kernel, found.dsl_pool, each)
        if found.quiescing in (None, 0) and holders is not None and holders.counted:
            number = each
            break
    node = builder.node(
        NodeKind.TXG, f"{found.spa:#x}:{number}", f"txg {number} of pool {name}", found.address
    )
    if not _is_new(builder, node):
        return node
    held = judge.holders_of(kernel, found.dsl_pool, number)
    if held is not None:
        node.facts = [f"held open by {count(held.counted or 0, 'transaction')}"]
        for holder in held.holders[:_MOST_HOLDERS]:
            builder.join(
                node,
                builder.thread(holder.thread),
                EdgeKind.OWNED_BY,
                Certainty.PROVEN,
                f"dmu_tx {holder.tx.address:#x} on its stack is open in txg {number}",
            )
        if held.missing and not held.holders:
            node.end = End(
                CauseKind.UNKNOWN,
                f"{node.label} is held open by {count(held.counted or 0, 'transaction')}; "
                "no thread has one on its stack",
                "tc_count",
            )
    thread = thread_at(kernel, found.quiesce_thread)
    if _is_new(builder, node) and thread is not None:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            "tx_quiesce_thread",
        )
    if _is_new(builder, node):
        node.end = End(
            CauseKind.UNKNOWN, f"{node.label}: who holds it open cannot be read", "tc_count"
        )
    return node


@resolver("zfs_txg")
def group(case: Case) -> Optional[Verdict]:
    """A transaction group has to be quiesced or synced, or its dirty data to be written."""
    builder, kernel = case.builder, case.kernel
    verdict = Verdict(Status.STUCK, "waits for a transaction group", case.row)
    try:
        found, member = _txg_of(case)
    except (LayoutError, MemoryFault):
        found, member = None, ""
    if found is None:
        return _group_by_stacks(case)
    spa = spa_module.spa_of(kernel, found.spa)
    if member == "tc_cv":
        case.waits_for(quiesce_node(builder, found), Certainty.PROVEN, case.said())
    elif member in ("tx_quiesce_done_cv", "dn_notxholds"):
        case.waits_for(_open_node(builder, found), Certainty.PROVEN, case.said())
    elif member == "dp_spaceavail_cv":
        case.waits_for(dirty_node(builder, found), Certainty.PROVEN, case.said())
    else:
        case.waits_for(sync_node(builder, found), Certainty.PROVEN, case.said())
    if spa is not None and spa.suspended:
        _join_suspended(builder, case.node, spa, f"the pool is suspended ({spa.suspended})")
    return verdict


def _open_node(builder: Builder, found: txg.Txg) -> Node:
    """A new txg opens once the one before is quiesced, and that once its own is syncing."""
    if found.quiescing:
        return quiesce_node(builder, found)
    if found.syncing and found.quiesced:
        return sync_node(builder, found)
    for number in (found.open, found.open - 1):
        held = judge.holders_of(builder.kernel, found.dsl_pool, number)
        if held is not None and held.counted:
            return quiesce_node(builder, found)
    return sync_node(builder, found)


def dirty_node(builder: Builder, found: txg.Txg) -> Node:
    """The dirty data of a pool, which only syncing makes less."""
    name = _pool_name(builder, found)
    node = builder.node(
        NodeKind.MEMORY, f"dirty:{found.spa:#x}", f"dirty data of pool {name}", found.dsl_pool
    )
    if _is_new(builder, node):
        limit = f" of {found.dirty_max}" if found.dirty_max is not None else ""
        node.facts = [f"dp_dirty_total {found.dirty}{limit}"]
        builder.join(
            node,
            sync_node(builder, found),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            "dirty data becomes less as a txg is synced",
        )
    return node


def _group_by_stacks(case: Case) -> Verdict:
    """Where the layouts are not known: the threads whose functions do it."""
    builder = case.builder
    wmesg = case.thread.wmesg or ""
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    if _is_new(builder, node):
        if "tc_cv" in wmesg:
            for thread in builder.threads:
                if (
                    thread.address != case.thread.address
                    and runs(builder, thread, _INSIDE)
                    and not runs(builder, thread, ("dmu_tx_assign", "dmu_tx_wait", "txg_wait"))
                ):
                    builder.join(
                        node,
                        builder.thread(thread),
                        EdgeKind.OWNED_BY,
                        Certainty.GUESSED,
                        "inside ZFS, maybe with a transaction open",
                    )
        else:
            function = "txg_quiesce_thread" if "quiesce" in wmesg else "txg_sync_thread"
            for thread in builder.threads:
                if builder.is_kernel_thread(thread) and runs(builder, thread, (function,)):
                    builder.join(
                        node,
                        builder.thread(thread),
                        EdgeKind.SERVED_BY,
                        Certainty.CATALOGUED,
                        f"{function}() is on its stack and ends these waits",
                    )
        if _is_new(builder, node):
            node.end = End(
                CauseKind.UNKNOWN,
                f'"{wmesg}": of which pool cannot be told',
                "no tx_state is where the channel would have it",
            )
    return Verdict(Status.STUCK, "waits for a transaction group", case.row)


@resolver("zfs_throttle")
def throttle(case: Case) -> Optional[Verdict]:
    """dmu_tx_delay(): a writer made slow; stuck where its pool's sync does not go on."""
    builder, kernel = case.builder, case.kernel
    for spa in spa_module.spas(kernel):
        found = txg.txg_of(kernel, spa.dsl_pool) if spa.dsl_pool else None
        if found is None:
            continue
        for each in judge.transactions(kernel, found):
            if each.thread.address == case.thread.address:
                case.waits_for(
                    dirty_node(builder, found),
                    Certainty.PROVEN,
                    f"{case.said()}; dmu_tx {each.tx.address:#x} of the pool on its stack",
                )
                return Verdict(Status.STUCK, f"slowed down by dirty data of {spa.name}", case.row)
    return None


# The log


@resolver("zfs_zil")
def commit(case: Case) -> Optional[Verdict]:
    """zil_commit_waiter(): a block of the log has to be on disk."""
    builder, kernel = case.builder, case.kernel
    if not kernel.layouts.has("zil_commit_waiter", "zcw_cv"):
        return other(case)
    waiter = zil.commit_waiter_at(kernel, case.channel.container("zil_commit_waiter", "zcw_cv"))
    verdict = Verdict(Status.STUCK, "waits for the ZFS log", case.row)
    if waiter.done:
        node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"the log block is on disk, yet {case.thread.tid} {case.thread.label} sleeps",
            "zcw_done is set",
            case.thread.age,
        )
        return verdict
    if waiter.lwb:
        case.waits_for(lwb_node(builder, waiter.lwb), Certainty.PROVEN, f"{case.said()}; zcw_lwb")
        return verdict
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, f"{case.said()}; zcw_lwb NULL")
    _log_without_block(builder, node, case)
    return verdict


def _log_without_block(builder: Builder, node: Node, case: Case) -> None:
    """zcw_lwb is NULL: whoever issues the log has it in hand, or waits for a whole txg."""
    waiting = sleepers_on(builder, case.address)
    address = case.channel.container("zil_commit_waiter", "zcw_cv")
    for thread in judge.range_holders(builder.kernel, address, [each.address for each in waiting])[
        :_MOST_HOLDERS
    ]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.GUESSED,
            f"its kernel stack holds {address:#x}",
        )
    if _is_new(builder, node):
        node.end = End(
            CauseKind.UNKNOWN,
            "a commit of the ZFS log that no block has taken yet, by nobody found",
            "zcw_lwb is NULL",
        )


def lwb_node(builder: Builder, address: int) -> Node:
    """A block of the log, joined to the zio that ends it."""
    kernel = builder.kernel
    node = builder.object(NodeKind.LWB, address, f"log block {address:#x}")
    if not _is_new(builder, node):
        return node
    lwb = zil.lwb_at(kernel, address)
    name = zil.zilog_name(kernel, lwb.zilog)
    if name:
        node.label = f"log block {address:#x} of {name}"
    issued = f" {seconds(lwb.age)} ago" if lwb.age is not None else ""
    node.facts = [f"{lwb.state.lower()}{issued}"] if lwb.state else []
    # The root ends last, but its children include the root of the block before.
    for member, at in (("lwb_root_zio", lwb.root_zio), ("lwb_write_zio", lwb.write_zio)):
        if at and judge.zios(kernel).at(at) is not None:
            builder.join(node, zio_node(builder, at), EdgeKind.SERVED_BY, Certainty.PROVEN, member)
            break
    if _is_new(builder, node):
        _writer_of(builder, node, lwb)
    return node


def _writer_of(builder: Builder, node: Node, lwb: zil.Lwb) -> None:
    """A block not issued yet: the one before it, or the thread that holds zl_issuer_lock."""
    before = zil.lwbs(builder.kernel, lwb.zilog)
    place = next((i for i, each in enumerate(before) if each.address == lwb.address), 0)
    if place:
        builder.join(
            node,
            lwb_node(builder, before[place - 1].address),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            "the block before it on zl_lwb_list is not on disk",
        )
    elif not guess_holders(builder, node, lwb.zilog, ("zil_",), (), 4):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} has no zio and is the oldest: who has to issue it is not recorded",
            f"lwb_state {lwb.state or 'unknown'}",
        )


@resolver("zfs_zilog")
def log(case: Case) -> Optional[Verdict]:
    """zil_commit() to 11.x, zil_sync() of 14.2 on: the blocks of one log under way."""
    builder, kernel = case.builder, case.kernel
    wmesg = case.thread.wmesg or ""
    zilog = 0
    for member in ("zl_cv_batch[0]", "zl_cv_batch[1]", "zl_cv_writer", "zl_lwb_io_cv"):
        if member.split("[")[0] in wmesg and kernel.layouts.has("zilog", member):
            at = case.channel.container("zilog", member)
            spa = try_peek(kernel, "zilog", at, "zl_spa", 0)
            if spa and spa_module.spa_of(kernel, spa) is not None:
                zilog = at
                break
    if not zilog:
        return other(case)
    name = zil.zilog_name(kernel, zilog)
    node = builder.object(NodeKind.OBJECT, zilog, f"log of {name or f'zilog {zilog:#x}'}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if _is_new(builder, node):
        for lwb in zil.lwbs(kernel, zilog)[:_MOST_BELOW]:
            if lwb.root_zio or lwb.write_zio:
                builder.join(
                    node,
                    lwb_node(builder, lwb.address),
                    EdgeKind.NEEDS,
                    Certainty.PROVEN,
                    "on zl_lwb_list, with a zio",
                )
        root = try_peek(kernel, "zilog", zilog, "zl_root_zio", 0)
        if root:
            builder.join(
                node, zio_node(builder, root), EdgeKind.NEEDS, Certainty.PROVEN, "zl_root_zio"
            )
        waiting = sleepers_on(builder, case.address)
        if _is_new(builder, node) and not guess_holders(
            builder, node, zilog, ("zil_",), waiting, 4
        ):
            node.end = End(
                CauseKind.UNKNOWN, f"{node.label}: no block is under way, its writer not found"
            )
    return Verdict(Status.STUCK, "waits for the ZFS log", case.row)


# Locks


def _owner(builder: Builder, node: Node, thread: int, member: str) -> bool:
    found = builder.thread_node_at(thread)
    if found is None:
        return False
    builder.join(node, found, EdgeKind.OWNED_BY, Certainty.PROVEN, f"{member} {thread:#x}")
    return True


@resolver("zfs_config_lock")
def config_lock(case: Case) -> Optional[Verdict]:
    """spa_config_enter(): the writer is recorded; readers of SCL_ZIO are the zios under way."""
    builder, kernel = case.builder, case.kernel
    found = spa_module.config_lock_of_cv(kernel, case.address)
    if found is None:
        return other(case)
    spa, lock = found
    node = builder.object(NodeKind.LOCK, lock.address, f"{lock.name} of pool {spa.name}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, f"waits for {lock.name} of pool {spa.name}", case.row)
    if not _is_new(builder, node):
        return verdict
    if lock.writer and _owner(builder, node, lock.writer, "scl_writer"):
        node.facts = ["held by a writer"]
        return verdict
    node.facts = [f"held by {count(lock.holders, 'reader')}"]
    if lock.name in ("SCL_ZIO", "SCL_STATE"):
        for each in judge.outstanding(kernel)[:_MOST_BELOW]:
            if each.spa.address == spa.address and each.active:
                builder.join(
                    node,
                    zio_node(builder, each.zio.address),
                    EdgeKind.OWNED_BY,
                    Certainty.CATALOGUED,
                    "a zio at a device holds it as a reader",
                )
    thread = _sync_thread(builder, spa)
    if lock.name == "SCL_CONFIG" and thread is not None and spa.syncing_txg:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.CATALOGUED,
            "spa_sync() holds it as a reader",
        )
    if _is_new(builder, node) and not _join_suspended(
        builder, node, spa, "the pool is suspended, its zios keep the lock"
    ):
        waiting = sleepers_on(builder, case.address)
        if not guess_holders(builder, node, lock.address, (), waiting, 4):
            node.end = End(
                CauseKind.UNKNOWN,
                f"{node.label}: its {count(lock.holders, 'reader')} ZFS does not record",
                f"scl_count {lock.holders}, scl_writer {lock.writer:#x}",
            )
    return verdict


def _sync_thread(builder: Builder, spa: Spa) -> Optional[Thread]:
    found = txg.txg_of(builder.kernel, spa.dsl_pool) if spa.dsl_pool else None
    return thread_at(builder.kernel, found.sync_thread) if found is not None else None


@resolver("zfs_rrwlock")
def rrwlock(case: Case) -> Optional[Verdict]:
    """rrw_enter(): the writer is recorded, readers are counted."""
    builder, kernel = case.builder, case.kernel
    if not kernel.layouts.has("rrwlock", "rr_cv"):
        return other(case)
    address = case.channel.container("rrwlock", "rr_cv")
    lock = rlock.rrwlock_at(kernel, address)
    name, protects = _rrwlock_of(kernel, address)
    node = builder.object(NodeKind.LOCK, address, name)
    case.waits_for(node, Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, f"waits for {node.label}", case.row)
    if not _is_new(builder, node):
        return verdict
    if lock.writer and _owner(builder, node, lock.writer, "rr_writer"):
        node.facts = ["held by a writer"]
        return verdict
    readers = lock.anonymous + lock.linked
    node.facts = [f"held by {count(readers, 'reader')}"]
    waiting = [each.address for each in sleepers_on(builder, case.address)]
    for at in (address, protects):
        for thread in judge.range_holders(kernel, at, waiting)[:_MOST_HOLDERS] if at else []:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.OWNED_BY,
                Certainty.GUESSED,
                f"inside ZFS with {at:#x} on its stack",
            )
        if not _is_new(builder, node):
            return verdict
    node.end = End(
        CauseKind.UNKNOWN,
        f"{node.label} is held by {count(readers, 'reader')}, which ZFS does not record",
        f"rr_anon_rcount {lock.anonymous}, rr_linked_rcount {lock.linked}",
    )
    return verdict


def _rrwlock_of(kernel: Kernel, address: int) -> Tuple[str, int]:
    """What an rrwlock is called, and the struct it guards: its readers have that on their stacks.

    To 12.x the teardown lock of a file system is one (9.3) or an array of them.
    """
    layouts = kernel.layouts
    for spa in spa_module.spas(kernel):
        if layouts.has("dsl_pool", "dp_config_rwlock") and address == spa.dsl_pool + (
            layouts.offsetof("dsl_pool", "dp_config_rwlock")
        ):
            return f"dp_config_rwlock of pool {spa.name}", spa.dsl_pool
    if layouts.has("zfsvfs", "z_teardown_lock"):
        member = layouts.resolve("zfsvfs", "z_teardown_lock")
        for mount in mounts(kernel):
            at = try_peek(kernel, "mount", mount.address, "mnt_data", 0)
            if mount.fstype == "zfs" and 0 <= address - at - member.offset < member.size:
                return f"z_teardown_lock of {mount.on}", at
    return f"rrwlock {address:#x}", 0


@resolver("zfs_range")
def locked_range(case: Case) -> Optional[Verdict]:
    """A range of a file that another has locked: who, only the stacks tell."""
    builder, kernel = case.builder, case.kernel
    found = rlock.range_of_cv(kernel, case.address)
    if found is None:
        return other(case)
    znode = rlock.znode_id(kernel, found.owner) if found.owner else None
    what = f"object {znode}" if znode is not None else f"{found.owner:#x}"
    node = builder.object(NodeKind.LOCK, found.address, f"range of {what}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, "waits for a range of a file", case.row)
    if not _is_new(builder, node):
        return verdict
    node.facts = [found.label]
    waiting = [each.address for each in sleepers_on(builder, case.address)]
    for thread in judge.range_holders(kernel, found.address, waiting)[:_MOST_HOLDERS]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.CATALOGUED,
            f"its kernel stack holds the range {found.address:#x}",
        )
    if _is_new(builder, node) and znode is not None:
        # zfs_get_data() leaves the range to the write of the log.
        for each in judge.outstanding(kernel):
            if each.zio.bookmark.object == znode and each.active:
                builder.join(
                    node,
                    zio_node(builder, each.zio.address),
                    EdgeKind.OWNED_BY,
                    Certainty.GUESSED,
                    f"a write of object {znode} is under way",
                )
    if _is_new(builder, node):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} ({found.label}) is locked, and no thread has it on its stack",
            f"zfs_locked_range {found.address:#x}",
        )
    return verdict


# The ARC, and the rest


@resolver("zfs_arc")
def evict(case: Case) -> Optional[Verdict]:
    """arc_wait_for_eviction(): the zthr that evicts has to make room."""
    builder, kernel = case.builder, case.kernel
    node = builder.node(NodeKind.MEMORY, "arc", "memory of the ARC")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if _is_new(builder, node):
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


@resolver("zfs_other")
def other(case: Case) -> Optional[Verdict]:
    """What has no recorded holder: told by stacks, if at all."""
    builder = case.builder
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    if _is_new(builder, node):
        waiting = sleepers_on(builder, case.address)
        if not guess_holders(builder, node, case.address, ("z", "d", "spa", "txg"), waiting, 4):
            wmesg = case.thread.wmesg or ""
            node.end = End(
                CauseKind.UNKNOWN, f'"{wmesg}": a wait inside ZFS; for whom is not recorded'
            )
    return Verdict(Status.STUCK, "waits inside ZFS", case.row)
