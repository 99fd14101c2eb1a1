"""Transaction groups, and the writers that are held back for dirty data."""

from __future__ import annotations

from typing import Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.judge import zfs as judge
from plugin.kernel.proc import thread_at
from plugin.kernel.zfs import spa as spa_module
from plugin.kernel.zfs import txg
from plugin.kernel.zfs.common import try_peek
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.stacks import runs
from plugin.waits.resolvers.zfs.common import MOST_HOLDERS, is_new
from plugin.waits.resolvers.zfs.spa import join_suspended
from plugin.words import count, seconds

#: functions between dmu_tx_assign() and dmu_tx_commit(), where no symbol names a module's
_INSIDE = ("zfs_", "zil_", "zvol_", "dmu_", "dsl_", "zpl_")


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
    if not is_new(builder, node):
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
    if is_new(builder, node):
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
    if not is_new(builder, node):
        return node
    held = judge.holders_of(kernel, found.dsl_pool, number)
    if held is not None:
        node.facts = [f"held open by {count(held.counted or 0, 'transaction')}"]
        for holder in held.holders[:MOST_HOLDERS]:
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
    if is_new(builder, node) and thread is not None:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            "tx_quiesce_thread",
        )
    if is_new(builder, node):
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
        join_suspended(builder, case.node, spa, f"the pool is suspended ({spa.suspended})")
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
    if is_new(builder, node):
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
    if is_new(builder, node):
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
        if is_new(builder, node):
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
