"""pbuf's report: pools of pager buffers, and the I/O behind each one in use."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from plugin.judge.pbufs import age, request
from plugin.kernel.pbuf import Pbuf, Pool, bufs, has_zones, pools
from plugin.kernel.proc import thread_by_tid
from plugin.kernel.vm_object import label, try_object_at
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, seconds


def pbufs(kernel: Kernel, *, waited: bool) -> Report:
    """Every pool, or those ``waited`` for or full, and every pbuf in use."""
    found = pools(kernel)
    used = bufs(kernel)
    if waited:
        found = [pool for pool in found if pool.waiters or pool.exhausted]
    report = Report(
        {
            "pools": [_pool_data(pool) for pool in found],
            "bufs": [_buf_data(kernel, buf) for buf in used],
        }
    )
    for pool in found:
        if pool.waiters or pool.exhausted:
            report.text(verdict(kernel, pool, used))
    era = "zones on the keg of pbuf_zone" if has_zones(kernel) else "swbuf, with a counter a user"
    report.heading(f"{count(len(found), 'pool')} ({era}):")
    report.table(
        ["pool", "symbol", "limit>", "in use>", "free>", "waiters"],
        [
            (
                pool.name,
                pool.symbol,
                "none" if pool.limit is None else pool.limit,
                pool.in_use,
                pool.free,
                _who(kernel, pool),
            )
            for pool in found
        ],
        limit=False,
    )
    if used:
        report.heading(f"{count(len(used), 'pbuf')} in use:")
        report.table(
            ["pbuf", "pool", "I/O", "pages of", "age>"],
            [
                (
                    address(buf.address),
                    buf.pool or "?",
                    _io(kernel, buf),
                    _of(kernel, buf),
                    seconds(age(kernel, buf)),
                )
                for buf in used
            ],
        )
    return report


def verdict(kernel: Kernel, pool: Pool, used: List[Pbuf]) -> str:
    """One sentence on a pool that is exhausted or waited for: who waits, and for what."""
    holders = [buf for buf in used if _belongs(pool, buf)]
    requests = [io for io in (request(kernel, buf) for buf in holders) if io]
    names = sorted({io.provider.name for io in requests if io.provider})
    sentence = f"{pool.name} ({pool.symbol or address(pool.address)}): {pool.in_use} in use"
    if pool.limit is not None:
        sentence = f"{pool.name} ({pool.symbol or address(pool.address)}): "
        every = "all " if pool.exhausted and pool.limit else f"{pool.in_use} of "
        sentence += f"{every}{pool.limit} in use"
    if pool.waiters:
        sentence += f", {_who(kernel, pool)} wait{'s' if len(pool.waiters) == 1 else ''}"
    if holders and names:
        flying = len(requests)
        if flying == pool.in_use:
            sentence += f"; {'it is' if flying == 1 else 'all are'} I/O to {', '.join(names)}"
        else:
            sentence += f"; {flying} pbufs found are I/O to {', '.join(names)}"
        ages = [a for a in (age(kernel, buf) for buf in holders) if a is not None]
        if ages:
            sentence += f", the oldest for {seconds(max(ages))}"
    return sentence + "."


def _belongs(pool: Pool, buf: Pbuf) -> bool:
    if pool.kind == "list" or buf.pool == pool.name:
        return True
    # The count of asynchronous swap writes has no pbufs of its own from 13.0 on.
    return pool.symbol == "nsw_wcount_async" and buf.pool == "swwbuf" and bool(buf.buf.flags & 4)


def _who(kernel: Kernel, pool: Pool) -> str:
    names = []
    for tid in pool.waiters[:3]:
        thread = thread_by_tid(kernel, tid)
        names.append(f"{tid} {thread.label}" if thread else str(tid))
    more = f" and {len(pool.waiters) - 3} more" if len(pool.waiters) > 3 else ""
    return ", ".join(names) + more


def _io(kernel: Kernel, buf: Pbuf) -> str:
    io = request(kernel, buf)
    what = f"{buf.buf.iocmd.replace('BIO_', '')} {buf.buf.bcount >> 10} KB"
    if io is None:
        return what + ", no bio found"
    if io.provider is None:
        return f"{what}, {io.state}"
    return f"{what}, {io.state.replace('at the device', 'at')} {io.provider.name}"


def _of(kernel: Kernel, buf: Pbuf) -> str:
    owner = try_object_at(kernel, buf.object)
    return label(kernel, owner) if owner else ""


def _pool_data(pool: Pool) -> Dict[str, Any]:
    return {
        "name": pool.name,
        "symbol": pool.symbol or None,
        "address": address(pool.address),
        "limit": pool.limit,
        "in_use": pool.in_use,
        "free": pool.free,
        "wchan": address(pool.wchan),
        "waiters": list(pool.waiters),
    }


def _buf_data(kernel: Kernel, buf: Pbuf) -> Dict[str, Any]:
    io = request(kernel, buf)
    return {
        "address": address(buf.address),
        "pool": buf.pool or None,
        "pool_told_by": buf.why,
        "cmd": buf.buf.iocmd,
        "bio": address(io.bio.address) if io else None,
        "state": io.state if io else None,
        "provider": io.provider.name if io and io.provider else None,
        "object": _address(buf.object),
        "vnode": _address(buf.vnode),
        "pages": [address(page) for page in buf.pages],
        "bcount": buf.buf.bcount,
        "waiters": list(buf.waiters),
        "age": age(kernel, buf),
    }


def _address(value: int) -> Optional[str]:
    return address(value) if value else None
