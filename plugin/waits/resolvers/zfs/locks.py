"""Locks of ZFS's own: of a pool's configuration, readers and writers, ranges of files."""

from __future__ import annotations

from typing import Optional, Tuple

from plugin.judge import zfs as judge
from plugin.kernel.mount import mounts
from plugin.kernel.proc import Thread, thread_at
from plugin.kernel.zfs import rlock, txg
from plugin.kernel.zfs import spa as spa_module
from plugin.kernel.zfs.common import try_peek
from plugin.kernel.zfs.spa import Spa
from plugin.kernel.zfs.zvol import zvol_around
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.stacks import guess_holders, sleepers_on
from plugin.waits.resolvers.zfs.common import MOST_BELOW, MOST_HOLDERS, is_new, other, owner
from plugin.waits.resolvers.zfs.spa import join_suspended
from plugin.waits.resolvers.zfs.zio import zio_node
from plugin.words import count


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
    if not is_new(builder, node):
        return verdict
    if lock.writer and owner(builder, node, lock.writer, "scl_writer"):
        node.facts = ["held by a writer"]
        return verdict
    node.facts = [f"held by {count(lock.holders, 'reader')}"]
    if lock.name in ("SCL_ZIO", "SCL_STATE"):
        for each in judge.outstanding(kernel)[:MOST_BELOW]:
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
    if is_new(builder, node) and not join_suspended(
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
    if not is_new(builder, node):
        return verdict
    if lock.writer and owner(builder, node, lock.writer, "rr_writer"):
        node.facts = ["held by a writer"]
        return verdict
    readers = lock.anonymous + lock.linked
    node.facts = [f"held by {count(readers, 'reader')}"]
    waiting = [each.address for each in sleepers_on(builder, case.address)]
    for at in (address, protects):
        for thread in judge.range_holders(kernel, at, waiting)[:MOST_HOLDERS] if at else []:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.OWNED_BY,
                Certainty.GUESSED,
                f"inside ZFS with {at:#x} on its stack",
            )
        if not is_new(builder, node):
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
    volume = zvol_around(kernel, found.tree)
    if volume is not None:
        what = f"zvol {volume.name}"
    node = builder.object(NodeKind.LOCK, found.address, f"range of {what}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, "waits for a range of a file", case.row)
    if not is_new(builder, node):
        return verdict
    node.facts = [found.label]
    waiting = [each.address for each in sleepers_on(builder, case.address)]
    for thread in judge.range_holders(kernel, found.address, waiting)[:MOST_HOLDERS]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.CATALOGUED,
            f"its kernel stack holds the range {found.address:#x}",
        )
    if is_new(builder, node) and znode is not None:
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
    if is_new(builder, node):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} ({found.label}) is locked, and no thread has it on its stack",
            f"zfs_locked_range {found.address:#x}",
        )
    return verdict
