"""The daemons that make pages and buffers free, and what each of them is at.

Mirrors sys/vm/vm_pageout.c (page daemon, laundry, vmdaemon), sys/vm/uma_core.c
(uma_reclaim_worker()) and sys/kern/vfs_bio.c (buf_daemon(), bufspace_daemon()),
6.x to 15.x.
"""

from __future__ import annotations

import re
from typing import Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.judge.geom_io import AT_DEVICE, QUEUED
from plugin.judge.pbufs import swap_requests, swap_writes
from plugin.kernel.pbuf import Pool, pool_of_channel
from plugin.kernel.proc import Thread, threads
from plugin.kernel.vfs_bio import spaces
from plugin.kernel.vm_domain import Domain, domains
from plugin.session import Kernel


class Daemon(NamedTuple):
    """A service thread.  ``role``: "pagedaemon", "laundry", "helper", "uma", "vmdaemon",
    "bufdaemon", "bufspacedaemon", "softdep worker"; ``trouble`` where it cannot do its
    work."""

    thread: Thread
    role: str
    domain: Optional[int]
    doing: str
    trouble: bool


_DOMAIN = re.compile(r"dom(\d+)")


@cached(MEMORY)
def daemons(kernel: Kernel) -> List[Daemon]:
    """Every daemon of the VM and of the buffer cache."""
    return list(_daemons(kernel))


def _daemons(kernel: Kernel) -> Iterator[Daemon]:
    owners = {}
    for symbol in ("pageproc", "vmproc", "bufdaemonproc"):
        try:
            owners[kernel.global_value(symbol, 0)] = symbol
        except MemoryFault:
            continue
    for thread in threads(kernel):
        role = _role(thread, owners.get(thread.proc, ""))
        if role is None:
            continue
        match = _DOMAIN.search(thread.name)
        domain = int(match.group(1)) if match else 0
        doing, trouble = explain(kernel, thread, role, domain)
        yield Daemon(thread, role, domain if role in _OF_DOMAINS else None, doing, trouble)


_OF_DOMAINS = ("pagedaemon", "laundry", "helper")


def _role(thread: Thread, process: str) -> Optional[str]:
    name, comm = thread.name, thread.comm
    if process == "pageproc" or comm == "pagedaemon":
        if name.startswith("laundry"):
            return "laundry"
        if "helper" in name:
            return "helper"
        return "uma" if name == "uma" else "pagedaemon"
    if process == "vmproc" or comm == "vmdaemon":
        return "vmdaemon"
    if process == "bufdaemonproc" or comm == "bufdaemon":
        if name.startswith("bufspacedaemon"):
            return "bufspacedaemon"
        return "bufdaemon" if name in ("bufdaemon", comm, "") else "softdep worker"
    return None


def explain(kernel: Kernel, thread: Thread, role: str, domain: int = 0) -> Tuple[str, bool]:
    """(what the daemon does, whether that is trouble)."""
    if thread.state == "running":
        return f"runs on CPU {thread.cpu}", False
    if thread.state == "runnable":
        return "wants to run, has no CPU", False
    wmesg = thread.wmesg or ""
    if thread.state == "locked":
        return f"blocked on {wmesg.lstrip('*')}", True
    if thread.state != "sleeping":
        return thread.state, False
    place = next((d for d in domains(kernel) if d.domain == domain), None)
    pool = pool_of_channel(kernel, thread.wchan) if thread.wchan else None
    if pool is not None:
        return _pool_text(kernel, pool, wmesg), True
    if role in ("pagedaemon", "helper"):
        return _pagedaemon(kernel, thread, role, place, wmesg)
    if role == "laundry":
        return _laundry(place, wmesg)
    if role == "uma":
        return ("idle", False) if wmesg.startswith("umarcl") else (f'sleeps in "{wmesg}"', True)
    if role == "vmdaemon":
        return ("idle", False) if wmesg == "psleep" else (f'sleeps in "{wmesg}"', True)
    if role == "bufspacedaemon":
        if wmesg == "-":
            return "idle", False
        if wmesg == "bufspace":
            return "finds no buffer it can free, tries again", True
    elif wmesg in ("psleep", "sdflush"):
        return "idle", False
    elif wmesg == "qsleep":
        dirty = sum(s.value for s in spaces(kernel) if s.name == "dirty buffers")
        return f"{dirty} dirty buffers, none it could flush", dirty > 0
    return f'sleeps in "{wmesg}"', True


def _pool_text(kernel: Kernel, pool: Pool, wmesg: str) -> str:
    if pool.symbol == "nsw_wcount_async":
        names = ", ".join(sorted({s.device.name for s in swap_requests(kernel) if s.writes}))
        states = {write.state for write in swap_writes(kernel)}
        where = f"in flight to {names}" if names else "in flight"
        if names and states == {AT_DEVICE}:
            where = f"at {names}"
        elif names and states == {QUEUED}:
            where = f"queued for {names}"
        return f"all {pool.limit} swap writes are {where}"
    used = f"all {pool.limit} in use" if pool.limit else "none free"
    return f"no pbuf for {pool.name}: {used}"


def _pagedaemon(
    kernel: Kernel, thread: Thread, role: str, place: Optional[Domain], wmesg: str
) -> Tuple[str, bool]:
    if wmesg in ("VMWait", "pageprocwait"):
        return "is itself out of pages", True
    if wmesg == "pwait":
        return "freed too little, lets the laundry go on", True
    if wmesg == "vmpoid":
        return "waits for its helpers", False
    if wmesg == "swwrt":
        return "waits for its own write to swap", True
    if wmesg == "psleep":
        if role == "helper":
            return "idle", False
        if place is None or not place.below_min:
            return "idle", False
        if place.minset is None:
            return "found no page to free, backs off half a second", True
        return "sleeps a tenth of a second, pages are short", True
    return f'sleeps in "{wmesg}"', True


def _laundry(place: Optional[Domain], wmesg: str) -> Tuple[str, bool]:
    request = place.laundry_request if place else None
    if wmesg == "launds":
        if request in (None, "idle"):
            return "idle", False
        return f"asleep in spite of {request}", True
    if wmesg == "laundp":
        return f"paces itself ({request})" if request else "paces itself", False
    if wmesg == "swwrt":
        return "waits for its own write to swap", True
    return f'sleeps in "{wmesg}"', True
