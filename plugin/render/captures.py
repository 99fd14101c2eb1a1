"""The reports that text can give: the same tables and JSON as out of memory, as far as it goes."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from plugin.captures.machine import TextKernel
from plugin.captures.model import TextLock, TextProvider
from plugin.errors import UsageError, WchanError
from plugin.render.report import Report
from plugin.words import address


def messages(kernel: TextKernel, limit: Optional[int]) -> Report:
    """kmsgbuf: the message buffer that ``show msgbuf`` or msgbuf.txt printed."""
    lines = kernel.capture.msgbuf
    text = "\n".join(lines) + ("\n" if lines else "")
    report = Report({"panic": kernel.panicstr, "version": kernel.facts.version, "text": text})
    if kernel.panicstr:
        report.text(f"panic: {kernel.panicstr}")
    if not lines:
        kernel.warnings.add("message buffer", None, "not printed (show msgbuf)")
    report.pre(*(lines[-limit:] if limit else lines))
    return report


def locks(kernel: TextKernel, wanted: Optional[int], *, every: bool = False) -> Report:
    """klocks: the locks that chains, WITNESS, vnodes and bufs name, their holders and waiters."""
    waiters: Dict[str, List[int]] = {}
    for blocked in kernel.capture.blocked.values():
        waiters.setdefault(blocked.lock, []).append(blocked.tid)
    found = list(kernel.capture.locks.values())
    if wanted is not None:
        found = [lock for lock in found if lock.address == wanted]
        if not found:
            raise WchanError(f"no lock at {wanted:#x} was printed")
    elif not every:
        found = [lock for lock in found if lock.key in waiters]
    report = Report({"locks": [_lock(lock, waiters.get(lock.key, [])) for lock in found]})
    report.table(
        ["lock", "class", "name", "held by", "waiters"],
        [
            (
                address(lock.address) or lock.key,
                lock.lc_name,
                lock.name,
                ", ".join(_who(kernel, tid) for tid in lock.owners) or _unowned(lock),
                ", ".join(map(str, waiters.get(lock.key, []))),
            )
            for lock in found
        ],
    )
    if not kernel.capture.seen & {"allchains", "chain", "alllocks", "locks"}:
        kernel.warnings.add("locks", None, "not printed (show allchains, show alllocks)")
    return report


def _who(kernel: TextKernel, tid: int) -> str:
    text = kernel.capture.threads.get(tid)
    return f"{tid} {text.label}" if text is not None else str(tid)


def _unowned(lock: TextLock) -> str:
    if lock.kernproc is not None:
        return "LK_KERNPROC"
    return f"{lock.shared} shared, not printed" if lock.shared else "not printed"


def _lock(lock: TextLock, waiting: List[int]) -> Dict[str, Any]:
    return {
        "address": address(lock.address),
        "name": lock.name,
        "class": lock.lc_name,
        "state": lock.mode or "unknown",
        "sharers": lock.shared,
        "recursion": None,
        "word": None,
        "flags": [],
        "vnode": None,
        "owners": list(lock.owners),
        "holders": [
            {
                "tid": tid,
                "shared": lock.shared is not None,
                "certainty": "proven",
                "evidence": f"printed at {source}",
            }
            for tid, source in lock.owners.items()
        ],
        "waiters": [{"tid": tid, "mode": None} for tid in waiting],
    }


def providers(kernel: TextKernel, name: Optional[str]) -> Report:
    """provider: what ``show geom`` printed; what is in flight is not in it."""
    found = list(kernel.capture.providers.values())
    if not found:
        raise WchanError("GEOM was not printed (show geom)")
    if name is not None:
        found = [each for each in found if name in (each.name, f"{each.address:#x}")]
        if not found:
            raise UsageError(f"provider: no provider {name!r} was printed")
    report = Report({"providers": [_provider(each) for each in found]})
    report.table(
        ["provider", "class", "geom", "access", "flags"],
        [
            (p.name, p.class_name, p.geom, "r{}w{}e{}".format(*p.access), f"{p.flags:#06x}")
            for p in found
        ],
    )
    report.text("What is in flight is not printed: that is in memory alone.")
    return report


def _provider(provider: TextProvider) -> Dict[str, Any]:
    return {
        "name": provider.name,
        "address": address(provider.address),
        "class": provider.class_name,
        "geom": provider.geom,
        "mediasize": None,
        "sectorsize": None,
        "access": list(provider.access),
        "error": None,
        "flags": [],
        "in_flight": None,
        "queued": None,
        "at_device": None,
        "nstart": None,
        "nend": None,
        "consumers": [address(each) for each in provider.consumers],
    }


_NOT_PRINTED_OF_DOMAINS = (
    "address", "cache", "pageout_free_min", "inactive_target", "minset", "severeset",
    "pageout_wanted", "pages_needed", "laundry_request", "oom",
)  # fmt: skip
_NOT_PRINTED_OF_ZONES = ("address", "keg", "limit", "items", "sleepers", "allocs", "fails")


def memory(kernel: TextKernel) -> Report:
    """vmstate: page queues and zones as ``show pageq``, ``page`` and ``uma`` printed them."""
    capture = kernel.capture
    if not capture.domains and not capture.counters and not capture.zones:
        raise WchanError("neither page queues nor zones were printed (show pageq, page, uma)")
    report = Report(
        {
            "domains": [
                {
                    **dict.fromkeys(_NOT_PRINTED_OF_DOMAINS),
                    "index": d.index,
                    **_domain(d.counts, capture.counters),
                    "waiters": [],
                }
                for d in capture.domains.values()
            ],
            "waits": [],
            "daemons": [],
            "swap": [],
            "swap_space": dict.fromkeys(("avail", "full", "almost_full")),
            "buffers": {"nbuf": None, "bufkvaspace": None, "spaces": []},
            "arenas": [],
            "zones": [
                {
                    **dict.fromkeys(_NOT_PRINTED_OF_ZONES),
                    "name": zone.name,
                    "size": zone.size,
                    "used": zone.used,
                    "free": zone.free,
                    "waiters": [],
                    "sleeps": zone.sleeps,
                }
                for zone in capture.zones
            ],
        }
    )
    rows = [(d.index, *_domain(d.counts, {}).values()) for d in capture.domains.values()]
    names = [name.replace("_", " ") + ">" for name in _domain({}, {})]
    if rows:
        report.table(["domain>", *names[:6]], [row[:7] for row in rows])
    if capture.counters:
        report.table(["counter", "pages>"], sorted(capture.counters.items()))
    asleep = [zone for zone in capture.zones if zone.sleeps]
    if asleep:
        report.heading("zones that somebody slept for")
        report.table(
            ["zone", "used>", "free>", "sleeps>"],
            [(z.name, z.used, z.free, z.sleeps) for z in asleep],
        )
    return report


def _domain(counts: Dict[str, int], counters: Dict[str, int]) -> Dict[str, Optional[int]]:
    return {
        "page_count": counts.get("page_cnt"),
        "free": counts.get("free"),
        "active": counts.get("pq_act"),
        "inactive": counts.get("pq_inact"),
        "laundry": counts.get("pq_laund"),
        "unswappable": counts.get("pq_unsw"),
        "free_min": counters.get("v_free_min"),
        "free_target": counters.get("v_free_target"),
        "free_reserved": counters.get("v_free_reserved"),
        "free_severe": counters.get("v_free_severe"),
    }
