"""vmstate's report: memory, the daemons that make it free, swap, buffers, arenas, zones."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from plugin.judge import pbufs
from plugin.judge.daemons import Daemon, daemons
from plugin.judge.pbufs import SwapRequests
from plugin.kernel import swap_pager, vfs_bio
from plugin.kernel.proc import thread_by_tid
from plugin.kernel.uma import Zone, zones
from plugin.kernel.vfs_bio import BufSpace
from plugin.kernel.vm_domain import Domain, domains, memory_shortage
from plugin.kernel.vmem import Arena, arenas
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, seconds

_TOP_ZONES = 10


def vmstate(kernel: Kernel, *, every_zone: bool) -> Report:
    """The whole report; ``every_zone``, or the notable ones."""
    found = domains(kernel)
    shortage = memory_shortage(kernel)
    swap = pbufs.swap_requests(kernel)
    space = swap_pager.space(kernel)
    spaces = vfs_bio.spaces(kernel)
    every = zones(kernel)
    service = daemons(kernel)
    kva = arenas(kernel)
    report = Report(
        {
            "domains": [_domain_data(domain) for domain in found],
            "waits": [
                {
                    "name": channel.name,
                    "wchan": address(channel.address),
                    "wmesgs": list(channel.wmesgs),
                    "until": channel.wants,
                    "satisfied": channel.satisfied,
                    "waiters": list(channel.tids),
                }
                for channel in shortage.channels
            ],
            "daemons": [
                {
                    "tid": daemon.thread.tid,
                    "role": daemon.role,
                    "domain": daemon.domain,
                    "wmesg": daemon.thread.wmesg,
                    "doing": daemon.doing,
                    "trouble": daemon.trouble,
                }
                for daemon in service
            ],
            "swap": [_swap_data(each) for each in swap],
            "swap_space": {
                "avail": None if space.avail is None else space.avail * kernel.page_size,
                "full": space.full,
                "almost_full": space.almost_full,
            },
            "buffers": {
                "nbuf": vfs_bio.nbuf(kernel),
                "bufkvaspace": vfs_bio.bufkvaspace(kernel),
                "spaces": [_space_data(each) for each in spaces],
            },
            "arenas": [
                {
                    "name": arena.name,
                    "address": address(arena.address),
                    "size": arena.size,
                    "inuse": arena.inuse,
                    "waiters": list(arena.waiters),
                }
                for arena in kva
            ],
            "zones": [_zone_data(zone) for zone in every],
        }
    )
    for sentence in verdicts(kernel):
        report.text(sentence)
    _memory(kernel, report, found)
    _daemons(report, service)
    _swap(kernel, report, swap)
    _buffers(kernel, report, spaces)
    _arenas(report, kva)
    _zones(report, every if every_zone else _notable(every), len(every))
    return report


def verdicts(kernel: Kernel) -> List[str]:
    """The first lines: is memory short, who waits, and why it does not get better."""
    found = domains(kernel)
    shortage = memory_shortage(kernel)
    if not found:
        return []
    free = sum(domain.available for domain in found)
    least = sum(domain.free_min for domain in found)
    tids = shortage.tids
    lines = []
    if shortage.short:
        line = f"Memory is short: {free} pages free, free_min is {least}"
        if tids:
            line += (
                f"; {count(len(tids), 'thread')} {'waits' if len(tids) == 1 else 'wait'} for pages"
            )
        lines.append(line + ".")
    else:
        lines.append(f"Memory is not short: {free} pages free, free_min is {least}.")
    for channel in shortage.lost:
        lines.append(
            f"{count(len(channel.tids), 'thread')} still on {channel.name} although "
            f"{channel.wants}: a wakeup was lost, or is on its way."
        )
    for daemon in daemons(kernel):
        if daemon.trouble and daemon.role in ("pagedaemon", "laundry"):
            lines.append(f"{daemon.role} ({daemon.thread.tid}): {daemon.doing}.")
    full = [zone.name for zone in zones(kernel) if zone.waiters]
    if full:
        lines.append(f"Threads wait at the limit of {', '.join(full)}.")
    return lines


def _memory(kernel: Kernel, report: Report, found: List[Domain]) -> None:
    if not found:
        return
    report.heading("memory domains, in pages:")
    has_laundry = any(domain.laundry is not None for domain in found)
    more = ["laundry>", "unsw>"] if has_laundry else ["cache>"]
    report.table(
        ["dom>", "page_count>", "free>", "active>", "inactive>", *more, "waiters>"],
        [
            (
                domain.domain,
                domain.page_count,
                domain.free,
                domain.active,
                domain.inactive,
                *((domain.laundry, domain.unswappable) if has_laundry else (domain.cache,)),
                len(domain.waiters),
            )
            for domain in found
        ],
        limit=False,
    )
    report.table(
        ["dom>", "free_target>", "free_min>", "severe>", "reserved>", "state"],
        [
            (
                domain.domain,
                domain.free_target,
                domain.free_min,
                domain.free_severe,
                domain.free_reserved,
                _state(domain),
            )
            for domain in found
        ],
        limit=False,
    )
    waiting = [c for c in memory_shortage(kernel).channels if c.tids]
    if waiting:
        report.table(
            ["channel", "until", "so?", "threads"],
            [
                (c.name, c.wants, "yes" if c.satisfied else "no", _names(kernel, c.tids))
                for c in waiting
            ],
        )


def _state(domain: Domain) -> str:
    words = []
    if domain.below_severe:
        words.append("severe")
    elif domain.below_min:
        words.append("below min")
    elif domain.available < domain.free_target:
        words.append("below target")
    for value, actual, name in (
        (domain.minset, domain.below_min, "minset"),
        (domain.severeset, domain.below_severe, "severeset"),
    ):
        if value is not None and value != actual:
            words.append(f"{name} is {str(value).lower()}")
    if domain.pages_needed:
        words.append("page daemon needs pages")
    if domain.laundry_request not in (None, "idle"):
        words.append(f"laundry: {domain.laundry_request}")
    if domain.oom:
        words.append("out of memory")
    return ", ".join(words) or "ok"


def _daemons(report: Report, service: List[Daemon]) -> None:
    if not service:
        return
    report.heading("daemons:")
    report.table(
        ["tid>", "daemon", "wmesg", "what it does"],
        [
            (
                daemon.thread.tid,
                daemon.role + (f" {daemon.domain}" if daemon.domain is not None else ""),
                daemon.thread.wmesg,
                daemon.doing,
            )
            for daemon in service
        ],
        limit=False,
    )


def _swap(kernel: Kernel, report: Report, swap: List[SwapRequests]) -> None:
    if not swap:
        report.heading("no swap device")
        return
    report.heading("swap:")
    report.table(
        ["device", "total>", "used>", "reads>", "writes>", "oldest>"],
        [
            (
                each.device.name,
                size(each.device.total),
                size(each.device.used_bytes),
                len(each.reads),
                len(each.writes),
                seconds(_oldest(kernel, each)),
            )
            for each in swap
        ],
        limit=False,
    )
    space = swap_pager.space(kernel)
    if space.full and space.avail:
        report.text(
            f"swap_pager_full is set though {size(space.avail * kernel.page_size)} are free."
        )
    for each in swap:
        device = each.device
        if device.counted is not None and device.counted != each.in_flight:
            kernel.warnings.add(
                f"swap device {device.name}",
                device.address,
                f"the kernel counts {device.counted} requests in flight, {each.in_flight} found",
                partial=False,
            )


def _oldest(kernel: Kernel, swap: SwapRequests) -> Optional[float]:
    """Age in seconds of the oldest request in flight to a device."""
    ages = (pbufs.age(kernel, each) for each in (*swap.reads, *swap.writes))
    return max((age for age in ages if age is not None), default=None)


def _buffers(kernel: Kernel, report: Report, spaces: List[BufSpace]) -> None:
    if not spaces:
        return
    report.heading(f"buffer cache, {vfs_bio.nbuf(kernel)} buffers:")
    several = len({space.domain for space in spaces if space.domain is not None}) > 1
    report.table(
        ["space", "now>", "low>", "high>", "waiters"],
        [
            (
                space.name + (f" {space.domain}" if several and space.domain is not None else ""),
                _amount(space, space.value),
                _amount(space, space.low),
                _amount(space, space.high),
                f"{_names(kernel, space.waiters)} in {space.wmesg}" if space.waiters else "",
            )
            for space in spaces
        ],
        limit=False,
    )


def _amount(space: BufSpace, value: Optional[int]) -> str:
    if value is None:
        return ""
    return size(value) if space.unit == "bytes" else str(value)


def _arenas(report: Report, kva: List[Arena]) -> None:
    if not kva:
        return
    report.heading("kernel address space:")
    report.table(
        ["arena", "size>", "in use>", "waiters"],
        [
            (arena.name, size(arena.size), size(arena.inuse), ", ".join(map(str, arena.waiters)))
            for arena in kva
        ],
        limit=False,
    )


def _zones(report: Report, chosen: List[Zone], total: int) -> None:
    if not chosen:
        return
    report.heading(f"UMA zones, {len(chosen)} of {total}:")
    report.table(
        ["zone", "size>", "used>", "free>", "limit>", "fails>", "sleeps>", "waiters"],
        [
            (
                zone.name,
                zone.size,
                zone.used,
                zone.free,
                zone.limit,
                zone.fails or "",
                zone.sleeps or "",
                ", ".join(map(str, zone.waiters)) or (zone.sleepers or ""),
            )
            for zone in chosen
        ],
    )


def _notable(every: List[Zone]) -> List[Zone]:
    """The largest zones, and those with failures, sleepers or a limit that is reached."""
    largest = sorted(every, key=lambda zone: -(zone.used + zone.free) * zone.size)[:_TOP_ZONES]
    odd = [z for z in every if z.fails or z.sleeps or z.sleepers or z.waiters or z.full]
    return largest + [zone for zone in odd if zone not in largest]


def size(number: int) -> str:
    """Bytes for people: "720 KB"."""
    value = float(number)
    for unit in ("B", "KB", "MB", "GB"):
        if abs(value) < 1024:
            return (
                f"{value:.0f} {unit}" if value >= 100 or value % 1 == 0 else f"{value:.1f} {unit}"
            )
        value /= 1024
    return f"{value:.1f} TB"


def _names(kernel: Kernel, tids: Tuple[int, ...]) -> str:
    names = []
    for tid in tids[:3]:
        thread = thread_by_tid(kernel, tid)
        names.append(f"{tid} {thread.label}" if thread else str(tid))
    return ", ".join(names) + (f" and {len(tids) - 3} more" if len(tids) > 3 else "")


def _domain_data(domain: Domain) -> Dict[str, Any]:
    return {
        "index": domain.domain,
        "address": address(domain.address),
        "page_count": domain.page_count,
        "free": domain.free,
        "active": domain.active,
        "inactive": domain.inactive,
        "laundry": domain.laundry,
        "unswappable": domain.unswappable,
        "cache": domain.cache,
        "free_min": domain.free_min,
        "free_target": domain.free_target,
        "free_reserved": domain.free_reserved,
        "free_severe": domain.free_severe,
        "pageout_free_min": domain.pageout_free_min,
        "inactive_target": domain.inactive_target,
        "minset": domain.minset,
        "severeset": domain.severeset,
        "pageout_wanted": domain.pageout_wanted,
        "pages_needed": domain.pages_needed,
        "laundry_request": domain.laundry_request,
        "oom": domain.oom,
        "waiters": list(domain.waiters),
    }


def _swap_data(swap: SwapRequests) -> Dict[str, Any]:
    device = swap.device
    return {
        "name": device.name,
        "address": address(device.address),
        "used": device.used_bytes,
        "total": device.total,
        "in_flight": swap.in_flight,
        "flags": list(device.flags),
        "reads": [address(each.address) for each in swap.reads],
        "writes": [address(each.address) for each in swap.writes],
        "counted": device.counted,
    }


def _space_data(space: BufSpace) -> Dict[str, Any]:
    return {
        "name": space.name,
        "symbol": space.symbol,
        "domain": space.domain,
        "value": space.value,
        "low": space.low,
        "high": space.high,
        "unit": space.unit,
        "wmesg": space.wmesg,
        "wchan": address(space.wchan) if space.wchan else None,
        "until": space.until,
        "satisfied": space.satisfied,
        "waiters": list(space.waiters),
    }


def _zone_data(zone: Zone) -> Dict[str, Any]:
    return {
        "name": zone.name,
        "address": address(zone.address),
        "keg": address(zone.keg) if zone.keg else None,
        "size": zone.size,
        "used": zone.used,
        "free": zone.free,
        "limit": zone.limit,
        "items": zone.items,
        "sleepers": zone.sleepers,
        "waiters": list(zone.waiters),
        "allocs": zone.allocs,
        "fails": zone.fails,
        "sleeps": zone.sleeps,
    }
