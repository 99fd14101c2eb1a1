"""bioq's report: queues, the requests that are outstanding, one bio with all that is behind it."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional, Sequence

from plugin.judge import controllers
from plugin.judge.geom_io import (
    LOST,
    OutstandingBio,
    age,
    bufs_without_bio,
    check_provider_io,
    found_bios,
    outstanding,
    outstanding_by_address,
    top_requests,
)
from plugin.judge.geom_workers import geom_threads, pacing
from plugin.judge.requests import Requests, age_of, clones_below, grouped, on_a_queue, provider_name
from plugin.kernel.bio import (
    GEOM_QUEUES,
    Bio,
    BioQueue,
    Origin,
    bio_chain,
    bio_waiters,
    done_name,
    flag_names,
    g_bioqs,
)
from plugin.kernel.buf import b_pages, iodone_name, try_buf_at
from plugin.kernel.cam import ccb_of
from plugin.kernel.controller import Command, Controller
from plugin.kernel.disk import disk_of, disks, provider_of_disk
from plugin.kernel.geom import consumer_at, provider_at
from plugin.kernel.proc import Thread
from plugin.kernel.vnode import vnode_at
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, seconds


def everything(kernel: Kernel) -> Report:
    queues = g_bioqs(kernel)
    everything = outstanding(kernel)
    requests = top_requests(kernel)
    orphans = bufs_without_bio(kernel)
    check_provider_io(kernel)
    pace = pacing(kernel)
    report = Report(
        {
            "queues": [_queue_data(kernel, queue) for queue in queues],
            "outstanding": [_outstanding_data(kernel, each) for each in everything],
            "summary": [_group_data(group) for group in grouped(kernel, requests)],
            "bufs_without_bio": [address(buf.address) for buf in orphans],
            "pacing": pace
            and {
                "pace": pace.pace,
                "paused": pace.paused,
                "pause": pace.pause,
                "per_failure": pace.per_failure,
                "nomem_count": pace.nomem_count,
                "pause_count": pace.pause_count,
            },
        }
    )
    report.table(
        ["queue", "length>", "walked>", "served by"],
        [(q.name, q.length, len(q.bios), _server(kernel, q.name)) for q in queues],
        limit=False,
    )
    length = next((len(q.bios) for q in queues if q.name == "g_bio_run_down"), 0)
    if pace and pace.active:
        report.text(pace.explain(length))
    for queue in queues:
        if queue.bios:
            _show_queue(kernel, report, queue)
    elsewhere = [r for r in requests if r.queue not in GEOM_QUEUES]
    on_queue = len(elsewhere) < len(requests)
    if not requests:
        report.text("No bio is outstanding.")
    if elsewhere:
        report.heading(_title(kernel, elsewhere, "on no GEOM queue" if on_queue else ""))
        _show_groups(report, grouped(kernel, elsewhere))
        report.heading("The oldest first:")
        show_bios(kernel, report, sorted(elsewhere, key=lambda r: -(age_of(kernel, r) or 0)))
    asked = {each.bio.disk for each in everything}
    for disk in disks(kernel).values():
        for line in controllers.sentences(kernel, disk) if disk.address in asked else ():
            report.text(line)
    for each in everything:
        if each.state == LOST or (each.queue in ("g_down", "g_up") and not each.clones):
            report.text(f"bio {each.bio.address:#x} is {each.state}: {each.why}")
    for buf in orphans:
        waiters = ", ".join(_thread(t) for t in bio_waiters(kernel, buf.address))
        report.text(f"buf {buf.address:#x} is waited for by {waiters}: no bio of it was found")
    return report


def _title(kernel: Kernel, requests: Sequence[OutstandingBio], where: str) -> str:
    oldest = max((age_of(kernel, r) or 0.0 for r in requests), default=0.0)
    return (
        f"{count(len(requests), 'request')} outstanding"
        + (f" {where}" if where else "")
        + (f", the oldest for {seconds(oldest)}" if oldest else "")
        + ":"
    )


_SERVED = {"g_bio_run_down": "g_down", "g_bio_run_up": "g_up", "g_bio_run_task": "g_up"}


def _server(kernel: Kernel, queue: str) -> str:
    for found in geom_threads(kernel):
        if found.role == _SERVED.get(queue):
            return f"{found.thread.tid} {found.role}, {found.state}"
    return ""


def _show_queue(kernel: Kernel, report: Report, queue: BioQueue) -> None:
    length = "" if queue.length in (None, len(queue.bios)) else f" (its count says {queue.length})"
    report.heading(f"{queue.name}: {count(len(queue.bios), 'bio')}{length}")
    if not queue.bios:
        return
    known = outstanding_by_address(kernel)
    rows = [known.get(bio.address) or on_a_queue(kernel, bio, queue) for bio in queue.bios]
    _show_groups(report, grouped(kernel, rows))
    report.heading("In the order of the queue:")
    show_bios(kernel, report, rows)


def _show_groups(report: Report, groups: Sequence[Requests]) -> None:
    report.table(
        ["provider", "command", "state", "requests>", "bytes>", "oldest>"],
        [
            (g.provider, _word(g.cmd), g.state, g.requests, g.bytes, seconds(g.oldest))
            for g in groups
        ],
        limit=False,
    )


def _group_data(group: Requests) -> Dict[str, Any]:
    return dict(group._asdict())


def show_bios(kernel: Kernel, report: Report, bios: Sequence[OutstandingBio]) -> None:
    report.table(
        ["bio", "cmd", "provider", "offset>", "length>", "age>", "for"],
        [
            (
                address(each.bio.address),
                _word(each.bio.cmd),
                provider_name(kernel, each),
                each.bio.offset,
                each.bio.length,
                seconds(age_of(kernel, each)),
                behind(kernel, found_bios(kernel).origin(each.bio)),
            )
            for each in bios
        ],
    )


def _word(cmd: str) -> str:
    return cmd[4:] if cmd.startswith("BIO_") else cmd


def _thread(thread: Thread) -> str:
    return f"{thread.tid} {thread.label}"


def behind(kernel: Kernel, origin: Origin) -> str:
    """Who or what a request is for, in a few words."""
    waiters = bio_waiters(kernel, origin.address) if origin.address else []
    who = ", ".join(_thread(t) for t in waiters[:2]) + (" ..." if len(waiters) > 2 else "")
    if origin.kind == "swap":
        return who or "swap pager"
    if origin.kind in ("buf", "aio", "zfs", "ctl") and not origin.address:
        return f"no {origin.kind} named"
    if origin.kind == "buf":
        return who or _file(kernel, origin) or f"buf {origin.address:#x}"
    if origin.kind == "physio":
        return who or "a raw device"
    if origin.kind == "thread":
        return who or "nobody waits"
    if origin.kind == "class":
        return done_name(kernel, origin.top)
    if origin.kind == "unknown":
        return origin.evidence
    return f"{origin.kind} {address(origin.address)}"


def _file(kernel: Kernel, origin: Origin) -> str:
    """The file whose buffer it is, "" where the buffer has no vnode."""
    buf = try_buf_at(kernel, origin.address) if origin.address else None
    vnode = vnode_at(kernel, buf.vp) if buf and buf.vp else None
    return vnode.label if vnode else ""


def one_bio(kernel: Kernel, bio: Bio) -> Report:
    known = outstanding_by_address(kernel)
    chain = bio_chain(kernel, bio)
    below = clones_below(known, bio.address)
    report = Report(
        {
            "queues": [],
            "outstanding": [
                _outstanding_data(kernel, known[b.address])
                for b in [*reversed(chain), *below]
                if b.address in known
            ],
        }
    )
    for depth, link in enumerate([*reversed(chain), *below]):
        each = known.get(link.address)
        report.pre(
            "  " * depth + f"bio {link.address:#x} {_word(link.cmd)}"
            f" off {link.offset} len {link.length}"
        )
        details = [
            f"flags {' '.join(flag_names(kernel, link)) or 'none'}, error {link.error}, "
            f"completed {link.completed}, clones {link.children}, back {link.inbed}",
        ]
        consumer = consumer_at(kernel, link.from_)
        provider = provider_at(kernel, link.to)
        if provider is not None:
            by = f"{consumer.geom.g_class.name} {consumer.geom.name}" if consumer else "?"
            details.append(f"asked of {provider.name} by {by}")
        if link.done:
            details.append(f"bio_done {done_name(kernel, link) or hex(link.done)}")
        if each is not None:
            details.append(f"{each.state}: {each.why} [{each.certainty}]")
        details += _in_cam(kernel, link)
        report.pre(*("  " * depth + "    " + line for line in details))
    origin = found_bios(kernel).origin(bio)
    report.text(f"It is for {behind(kernel, origin)} ({origin.evidence}).")
    for line in _behind_it(kernel, origin):
        report.text(line)
    return report


def _in_cam(kernel: Kernel, bio: Bio) -> Iterator[str]:
    """The CCB of a clone, and whether the SIM has had longer than it may take."""
    ccb = ccb_of(kernel, bio)
    if ccb is None:
        return
    line = f"ccb {ccb.address:#x} {ccb.place}, status {ccb.status:#x}"
    since = age(kernel, bio)
    if ccb.timeout:
        allowed = ccb.timeout / 1000
        line += f", timeout {seconds(allowed)}"
        if since is not None and since > allowed:
            line += ", asked for longer ago than that"
    yield line


def _behind_it(kernel: Kernel, origin: Origin) -> Iterator[str]:
    """What stands behind a request, in full."""
    if origin.kind not in ("buf", "swap") or not origin.address:
        return
    buf = try_buf_at(kernel, origin.address)
    if buf is None:
        return
    what = "buf" if buf.cached else "pbuf"
    flags = " ".join(kernel.layouts.flags("b_flags", buf.flags)) or "none"
    done = iodone_name(kernel, buf)
    yield (
        f"{what} {buf.address:#x}: {buf.iocmd} of {buf.bcount} bytes, b_blkno {buf.blkno}, "
        f"b_lblkno {buf.lblkno}, flags {flags}" + (f", b_iodone {done}" if done else "")
    )
    vnode = vnode_at(kernel, buf.vp) if buf.vp else None
    if vnode is not None:
        yield f"vnode {vnode.address:#x}: {vnode.label}"
    pages = b_pages(kernel, buf)
    if pages:
        shown = ", ".join(f"{page:#x}" for page in pages[:4])
        yield f"{count(len(pages), 'page')}: {shown}" + (" ..." if len(pages) > 4 else "")


def _queue_data(kernel: Kernel, queue: BioQueue) -> Dict[str, Any]:
    return {
        "name": queue.name,
        "address": address(queue.address),
        "length": queue.length,
        "walked": len(queue.bios),
        "kind": queue.kind,
        "bios": [bio_data(kernel, bio) for bio in queue.bios],
    }


def bio_data(kernel: Kernel, bio: Bio) -> Dict[str, Any]:
    """One bio as the contract has it, and what is behind it."""
    origin = found_bios(kernel).origin(bio)
    provider = provider_at(kernel, bio.to) or provider_of_disk(kernel, bio.disk)
    return {
        "address": address(bio.address),
        "cmd": bio.cmd,
        "offset": bio.offset,
        "length": bio.length,
        "completed": bio.completed,
        "error": bio.error,
        "flags": flag_names(kernel, bio),
        "from": address(bio.from_ or None),
        "to": address(bio.to or None),
        "provider": provider.name if provider else None,
        "parent": address(bio.parent or None),
        "top": address(origin.top.address),
        "buf": address(origin.address) if origin.kind in ("buf", "swap") else None,
        "origin": {
            "kind": origin.kind,
            "address": address(origin.address),
            "detail": address(origin.detail),
            "evidence": origin.evidence,
            "tids": [t.tid for t in bio_waiters(kernel, origin.address or 0)],
            **_buf_data(kernel, origin),
        },
        "done": done_name(kernel, bio) or None,
        "age": age(kernel, bio),
    }


def _buf_data(kernel: Kernel, origin: Origin) -> Dict[str, Any]:
    """The buf, pbuf or block of swap behind a request, and whose it is."""
    if origin.kind not in ("buf", "swap") or not origin.address:
        return {}
    buf = try_buf_at(kernel, origin.address)
    if buf is None:
        return {}
    return {
        "cached": buf.cached,
        "blkno": buf.blkno,
        "lblkno": buf.lblkno,
        "iodone": iodone_name(kernel, buf) or None,
        "vnode": address(buf.vp or None),
        "pages": [address(page) for page in b_pages(kernel, buf)],
    }


def _outstanding_data(kernel: Kernel, each: OutstandingBio) -> Dict[str, Any]:
    data = bio_data(kernel, each.bio)
    data.update(
        state=each.state,
        why=each.why,
        certainty=each.certainty,
        queue=each.queue,
        at=each.provider.name if each.provider else None,
        provider=provider_name(kernel, each) or None,
        clones=[address(clone) for clone in each.clones],
        ccb=_ccb_data(kernel, each.bio),
        command=_command_data(kernel, each.bio),
    )
    return data


def _command_data(kernel: Kernel, bio: Bio) -> Optional[Dict[str, Any]]:
    """The command that a driver's clone is; null for any other bio, or where it is unknown."""
    provider = provider_of_disk(kernel, bio.disk) if bio.disk else None
    disk = disk_of(kernel, provider) if provider is not None else None
    found = controllers.of_disk(kernel, disk) if disk is not None else None
    if not isinstance(found, controllers.OfDisk) or bio.address not in found.by_bio:
        return None
    return command_data(found.controller, found.by_bio[bio.address])


def command_data(controller: Controller, command: Command) -> Dict[str, Any]:
    return {
        "controller": controller.name,
        "struct": command.struct,
        "address": address(command.address),
        "bio": address(command.bio or None),
        "place": command.place,
        "where": command.where,
        "trouble": command.trouble or None,
        "age": command.seconds,
        "retries": command.retries,
    }


def _ccb_data(kernel: Kernel, bio: Bio) -> Optional[Dict[str, Any]]:
    """The CCB of a clone; null for a bio that CAM does not have, or of which it cannot be told."""
    ccb = ccb_of(kernel, bio)
    return ccb and {
        "address": address(ccb.address),
        "status": ccb.status,
        "timeout": ccb.timeout / 1000,
        "place": ccb.place,
    }


def one_queue(kernel: Kernel, queue: BioQueue) -> Report:
    """One queue: its bios grouped, then in their order."""
    report = Report({"queues": [_queue_data(kernel, queue)]})
    _show_queue(kernel, report, queue)
    return report
