"""zfs's report: each pool with its transaction groups, devices, zios and waiters."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List, Optional, Tuple

from plugin.errors import UsageError
from plugin.judge import zfs as judge
from plugin.judge.geom_io import doing, outstanding
from plugin.kernel.proc import thread_at
from plugin.kernel.zfs import spa as spa_module
from plugin.kernel.zfs.spa import Spa
from plugin.kernel.zfs.txg import Txg, txg_of
from plugin.kernel.zfs.vdev import Vdev, file_of, provider_of, vdev_queue
from plugin.kernel.zfs.zio import children
from plugin.kernel.zfs.zvol import Zvol, workers, zvols
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, seconds


def pools(kernel: Kernel, wanted: Optional[str]) -> Report:
    """Every pool, or the one named ``wanted`` (UsageError where there is none of that name)."""
    found = spa_module.spas(kernel)
    here = judge.presence(kernel)
    chosen = [spa for spa in found if wanted is None or spa.name == wanted]
    if wanted is not None and not chosen:
        names = ", ".join(spa.name for spa in found) or "none"
        raise UsageError(f"there is no pool {wanted!r}; there are: {names}")
    report = Report(
        {
            "loaded": here.loaded,
            "readable": here.readable,
            "pools": [_data(kernel, spa) for spa in chosen],
        }
    )
    if not found:
        if here.loaded and not here.readable:
            kernel.warnings.add("ZFS", None, here.why)
            report.text(f"ZFS is loaded, and its pools cannot be read: {here.why}.")
        elif here.loaded:
            report.text(f"ZFS is loaded and has no pool ({here.why}).")
        else:
            report.text(f"This kernel has no ZFS: {here.why}.")
    for spa in chosen:
        _show(kernel, report, spa)
    return report


# Text


def _show(kernel: Kernel, report: Report, spa: Spa) -> None:
    mode = f", failmode={spa.failmode}" if spa.failmode else ""
    report.heading(f"pool {spa.name} at {spa.address:#x}: {spa.state}{mode}")
    trouble = _trouble(kernel, spa)
    if trouble is not None:
        since = f" for {seconds(trouble.since)}" if trouble.since is not None else ""
        report.text(f"SUSPENDED{since}. {trouble.summary} ({trouble.evidence}).")
    groups = txg_of(kernel, spa.dsl_pool) if spa.dsl_pool else None
    if groups is not None:
        _show_txgs(kernel, report, spa, groups)
    _show_vdevs(kernel, report, spa)
    _show_zios(kernel, report, spa)
    _show_volumes(kernel, report, spa)
    _show_locks(kernel, report, spa)
    _show_waiters(kernel, report, spa)


def _trouble(kernel: Kernel, spa: Spa) -> Optional[judge.Trouble]:
    return next((t for t in judge.suspended(kernel) if t.spa.address == spa.address), None)


def _show_txgs(kernel: Kernel, report: Report, spa: Spa, groups: Txg) -> None:
    quiescing = f", quiescing {groups.quiescing}" if groups.quiescing else ""
    syncing = f"syncing {groups.syncing}" if groups.syncing else "none syncing"
    if groups.syncing and spa.sync_age is not None:
        syncing += f" for {seconds(spa.sync_age)}, pass {spa.sync_pass}"
    limit = f" of {groups.dirty_max}" if groups.dirty_max is not None else ""
    report.text(
        f"txg: open {groups.open}{quiescing}, quiesced {groups.quiesced or 'none'}, {syncing}, "
        f"synced {groups.synced}; dirty {groups.dirty}{limit} bytes.",
        indent=2,
    )
    for role, at in (("sync", groups.sync_thread), ("quiesce", groups.quiesce_thread)):
        thread = thread_at(kernel, at) if at else None
        if thread is not None:
            doing = f'sleeps in "{thread.wmesg}"' if thread.wmesg else thread.state
            age = f" for {seconds(thread.age)}" if thread.age is not None else ""
            report.text(f"{role} thread {thread.tid}: {doing}{age}.", indent=2)
    for held in _held(kernel, groups):
        who = ", ".join(f"{each.thread.tid} {each.thread.label}" for each in held.holders)
        missing = f"; {held.missing} more, whose threads were not found" if held.missing else ""
        report.text(
            f"txg {held.number} is held open by {count(held.counted or 0, 'transaction')}: "
            f"{who or 'no thread found'}{missing}.",
            indent=2,
        )


def _held(kernel: Kernel, groups: Txg) -> List[judge.OpenTxg]:
    found = []
    for number in (groups.open - 1, groups.open):
        held = judge.holders_of(kernel, groups.dsl_pool, number)
        if held is not None and held.counted:
            found.append(held)
    return found


def _show_vdevs(kernel: Kernel, report: Report, spa: Spa) -> None:
    rows = []
    for vdev in judge.vdevs_of(kernel, spa.address):
        queue = vdev_queue(kernel, vdev.address) if vdev.leaf else None
        mine = [o for o in judge.outstanding(kernel) if o.vdev.address == vdev.address]
        oldest = max((o.age for o in mine if o.age is not None), default=None)
        file = file_of(kernel, vdev)
        rows.append(
            (
                address(vdev.address),
                vdev.name + (f" ({file.fstype} {file.on})" if file is not None else ""),
                _state(vdev),
                len(queue.active) if queue else None,
                len(queue.waiting) if queue else None,
                seconds(oldest),
            )
        )
    if rows:
        report.table(["address", "vdev", "state", "active>", "queued>", "oldest>"], rows)


def _state(vdev: Vdev) -> str:
    flags = (("cant_read", vdev.cant_read), ("cant_write", vdev.cant_write))
    said = [word for word, is_so in flags if is_so]
    aux = f" {vdev.aux}" if vdev.aux not in ("", "NONE") else ""
    return " ".join([vdev.state + aux, *said])


def _show_zios(kernel: Kernel, report: Report, spa: Spa) -> None:
    mine = [each for each in judge.outstanding(kernel) if each.spa.address == spa.address]
    if not mine:
        report.text("No zio is in the queue of a vdev.", indent=2)
        return
    active = [each for each in mine if each.active]
    kinds: Dict[str, int] = {}
    for each in mine:
        kinds[each.zio.priority] = kinds.get(each.zio.priority, 0) + 1
    by = ", ".join(f"{number} {name}" for name, number in kinds.items())
    report.heading(
        f"{count(len(mine), 'zio')}: {len(active)} at a device, {len(mine) - len(active)} "
        f"in the queues ({by})"
    )
    report.table(
        ["address", "what", "priority", "vdev", "offset>", "size>", "bio", "age>"],
        [
            (
                address(each.zio.address),
                each.zio.type,
                each.zio.priority,
                each.vdev.name,
                each.zio.offset,
                each.zio.size,
                address(each.bio.bio.address) if each.bio else ("" if each.active else "queued"),
                seconds(each.age),
            )
            for each in mine
        ],
        optional=("what", "offset", "size"),
    )


def _volumes(kernel: Kernel, spa: Spa) -> List[Tuple[Zvol, int]]:
    """The pool's volumes, each with how many requests are under way at it."""
    asked = Counter(each.bio.to for each in outstanding(kernel) if each.bio.to)
    mine = [zvol for zvol in zvols(kernel) if zvol.name.split("/", 1)[0] == spa.name]
    return [(zvol, asked[zvol.provider] if zvol.provider else 0) for zvol in mine]


def _show_volumes(kernel: Kernel, report: Report, spa: Spa) -> None:
    found = _volumes(kernel, spa)
    if not found:
        return
    report.heading(count(len(found), "volume"))
    report.table(
        ["address", "volume", "mode", "open>", "requests>", "queued>", "served by"],
        [
            (
                address(zvol.address),
                zvol.name + (" (being removed)" if zvol.removing else ""),
                zvol.mode or "?",
                zvol.opens,
                asked,
                len(zvol.queued) if zvol.queue else None,
                ", ".join(f"{t.tid} {t.label}, {doing(t)}" for t in workers(kernel, zvol)),
            )
            for zvol, asked in found
        ],
    )


def _show_locks(kernel: Kernel, report: Report, spa: Spa) -> None:
    for lock in spa_module.config_locks(kernel, spa.address):
        if lock.writer or lock.write_wanted:
            thread = thread_at(kernel, lock.writer) if lock.writer else None
            who = (
                f"written by {thread.tid} {thread.label}"
                if thread
                else (f"held by {count(lock.holders, 'reader')}")
            )
            wanted = f", {lock.write_wanted} want to write" if lock.write_wanted else ""
            report.text(f"{lock.name} is {who}{wanted}.", indent=2)


def _show_waiters(kernel: Kernel, report: Report, spa: Spa) -> None:
    mine = [each for each in judge.waiters(kernel) if each.spa == spa.address]
    if not mine:
        return
    report.heading(f"{count(len(mine), 'thread')} waiting in it")
    report.table(
        ["tid>", "name", "wmesg", "for", "age>"],
        [
            (
                each.thread.tid,
                each.thread.label,
                each.thread.wmesg,
                each.what,
                seconds(each.thread.age),
            )
            for each in mine
        ],
    )
    report.text("why-stuck TID follows one to its end.")


# JSON


def _data(kernel: Kernel, spa: Spa) -> Dict[str, Any]:
    trouble = _trouble(kernel, spa)
    groups = txg_of(kernel, spa.dsl_pool) if spa.dsl_pool else None
    return {
        "name": spa.name,
        "address": address(spa.address),
        "state": spa.state,
        "suspended": trouble
        and {
            "reason": spa.suspended,
            "summary": trouble.summary,
            "evidence": trouble.evidence,
            "since": trouble.since,
            "zios": len(children(kernel, spa.suspend_zio_root)) if spa.suspend_zio_root else 0,
        },
        "failmode": spa.failmode,
        "found_by": spa.source,
        "txg": groups and _txg_data(kernel, spa, groups),
        "vdevs": [_vdev_data(kernel, v) for v in judge.vdevs_of(kernel, spa.address)],
        "zios": [
            _zio_data(each) for each in judge.outstanding(kernel) if each.spa.address == spa.address
        ],
        "locks": [
            {
                "address": address(lock.address),
                "name": lock.name,
                "writer": _tid(kernel, lock.writer),
                "write_wanted": lock.write_wanted,
                "holders": lock.holders,
            }
            for lock in spa_module.config_locks(kernel, spa.address)
        ],
        "volumes": [
            {
                "address": address(zvol.address),
                "name": zvol.name,
                "mode": zvol.mode or None,
                "opens": zvol.opens,
                "removing": zvol.removing,
                "provider": address(zvol.provider) if zvol.provider else None,
                "requests": asked,
                "queued": len(zvol.queued) if zvol.queue else None,
                "threads": [thread.tid for thread in workers(kernel, zvol)],
            }
            for zvol, asked in _volumes(kernel, spa)
        ],
        "waiters": [
            {
                "tid": each.thread.tid,
                "wmesg": each.thread.wmesg,
                "for": each.what,
                "age": each.thread.age,
            }
            for each in judge.waiters(kernel)
            if each.spa == spa.address
        ],
    }


def _tid(kernel: Kernel, at: int) -> Optional[int]:
    thread = thread_at(kernel, at) if at else None
    return thread.tid if thread is not None else None


def _txg_data(kernel: Kernel, spa: Spa, groups: Txg) -> Dict[str, Any]:
    return {
        "open": groups.open,
        "quiescing": groups.quiescing,
        "quiesced": groups.quiesced,
        "syncing": groups.syncing,
        "synced": groups.synced,
        "sync_age": spa.sync_age,
        "sync_pass": spa.sync_pass,
        "sync_thread": _tid(kernel, groups.sync_thread),
        "quiesce_thread": _tid(kernel, groups.quiesce_thread),
        "dirty": groups.dirty,
        "dirty_max": groups.dirty_max,
        "held": [
            {
                "txg": held.number,
                "transactions": held.counted,
                "holders": [
                    {"tid": each.thread.tid, "dmu_tx": address(each.tx.address)}
                    for each in held.holders
                ],
            }
            for held in _held(kernel, groups)
        ],
    }


def _vdev_data(kernel: Kernel, vdev: Vdev) -> Dict[str, Any]:
    queue = vdev_queue(kernel, vdev.address) if vdev.leaf else None
    provider = provider_of(kernel, vdev) if vdev.leaf else None
    file = file_of(kernel, vdev)
    return {
        "address": address(vdev.address),
        "name": vdev.name,
        "type": vdev.type or None,
        "parent": address(vdev.parent) if vdev.parent else None,
        "leaf": vdev.leaf,
        "state": vdev.state,
        "aux": vdev.aux or None,
        "cant_read": vdev.cant_read,
        "cant_write": vdev.cant_write,
        "provider": provider.name if provider is not None else None,
        "file": file
        and {"vnode": address(file.address), "fstype": file.fstype, "mount": file.on or None},
        "active": len(queue.active) if queue else None,
        "queued": {name: len(found) for name, found in queue.queued.items()} if queue else None,
    }


def _zio_data(each: judge.Outstanding) -> Dict[str, Any]:
    zio = each.zio
    return {
        "address": address(zio.address),
        "type": zio.type,
        "priority": zio.priority,
        "stage": zio.stage_name,
        "vdev": address(each.vdev.address),
        "active": each.active,
        "offset": zio.offset,
        "size": zio.size,
        "error": zio.error,
        "bookmark": str(zio.bookmark),
        "bio": address(each.bio.bio.address) if each.bio else None,
        "age": each.age,
    }
