"""The intent log: from a commit to the block of the log that has to be on disk."""

from __future__ import annotations

from typing import Optional

from plugin.judge import zfs as judge
from plugin.kernel.zfs import spa as spa_module
from plugin.kernel.zfs import zil
from plugin.kernel.zfs.common import try_peek
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.stacks import guess_holders, sleepers_on
from plugin.waits.resolvers.zfs.common import MOST_BELOW, MOST_HOLDERS, is_new, other, owner
from plugin.waits.resolvers.zfs.zio import zio_node
from plugin.words import seconds


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
    for zilog in judge.zilogs_of_stack(builder.kernel, case.thread):
        if owner(builder, node, zil.issuer(builder.kernel, zilog), "zl_issuer_lock"):
            return
    address = case.channel.container("zil_commit_waiter", "zcw_cv")
    for thread in judge.range_holders(builder.kernel, address, [each.address for each in waiting])[
        :MOST_HOLDERS
    ]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.GUESSED,
            f"its kernel stack holds {address:#x}",
        )
    if is_new(builder, node):
        node.end = End(
            CauseKind.UNKNOWN,
            "a commit of the ZFS log that no block has taken yet, by nobody found",
            "zcw_lwb is NULL",
        )


def lwb_node(builder: Builder, address: int) -> Node:
    """A block of the log, joined to the zio that ends it."""
    kernel = builder.kernel
    node = builder.object(NodeKind.LWB, address, f"log block {address:#x}")
    if not is_new(builder, node):
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
    if is_new(builder, node):
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
    elif not owner(
        builder, node, zil.issuer(builder.kernel, lwb.zilog), "zl_issuer_lock"
    ) and not guess_holders(builder, node, lwb.zilog, ("zil_",), (), 4):
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
    if is_new(builder, node):
        for lwb in zil.lwbs(kernel, zilog)[:MOST_BELOW]:
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
        if is_new(builder, node) and not guess_holders(builder, node, zilog, ("zil_",), waiting, 4):
            node.end = End(
                CauseKind.UNKNOWN, f"{node.label}: no block is under way, its writer not found"
            )
    return Verdict(Status.STUCK, "waits for the ZFS log", case.row)
