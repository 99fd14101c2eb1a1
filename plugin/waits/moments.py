"""Two moments of one boot: who has moved between them, so that slow is told from stuck.

A moment is what tells whether a thread ran, a device ended I/O, a pool wrote a transaction group:
ticks and counters as the kernel keeps them, raw, for comparing alone.  It comes out of memory or
text, and goes into the JSON of why-stuck, out of which it can be had again.

Mirrors mi_switch() (sys/kern/kern_synch.c: td_swvoltick and td_swinvoltick, 10.0 on; ru_nvcsw and
ru_nivcsw), td_slptick and td_blktick (8.0 on); __stack_chk_guard, filled at random once in
each boot (sys/kern/stack_protector.c, 8.0 on).
"""

from __future__ import annotations

import hashlib
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from plugin.captures.machine import TextKernel
from plugin.errors import LayoutError, MemoryFault, SymbolMissing, UsageError
from plugin.kernel import counter, vm_domain
from plugin.kernel.bio import g_bioqs
from plugin.kernel.disk import disks
from plugin.kernel.geom import mesh
from plugin.kernel.proc import Thread, threads
from plugin.kernel.tc import uptime
from plugin.kernel.zfs.spa import spas
from plugin.kernel.zfs.txg import txg_of
from plugin.session import Kernel
from plugin.waits.analysis import Analysis, Cause
from plugin.waits.kinds import NodeKind
from plugin.words import seconds

#: boot times differ by so much where only their rounding does
_ROUNDED = 2
#: of a queue so many bios are told apart
_MOST_BIOS = 10_000
#: threads enough for two texts to tell that they are of one machine
_FEW = 5
#: struct vmmeter: context switches, page faults, pages paged out to swap and to files
_COUNTERS = ("v_swtch", "v_vm_faults", "v_swappgsout", "v_vnodepgsout")


class At(NamedTuple):
    """Where a thread was: None where that is not known.

    ``since`` is td_slptick or td_blktick of its wait, ``left`` the ticks at which it last left a
    CPU, ``switches`` how often it did.
    """

    tid: int
    pid: int
    name: str
    state: str
    wmesg: Optional[str]
    wchan: Optional[int]
    since: Optional[int]
    left: Optional[Tuple[int, int]]
    switches: Optional[int]

    @property
    def place(self) -> Tuple[object, ...]:
        return self.state, self.wmesg, self.wchan


class Moment(NamedTuple):
    """One moment.  ``boot``: seconds of the epoch at which the machine booted; ``guard``: digest
    of the stack guard; ``devices``: {provider: (started, ended)}; ``pools``: {pool: (open,
    syncing, synced) txg}; ``queues``: {queue: bios}."""

    source: str
    release: str
    arch: str
    version: str
    boot: Optional[int]
    guard: Optional[str]
    uptime: Optional[float]
    threads: Dict[int, At]
    devices: Dict[str, Tuple[int, int]]
    pools: Dict[str, Tuple[int, int, int]]
    queues: Dict[str, List[int]]
    counters: Dict[str, int]


def moment(kernel: Kernel) -> Moment:
    """The moment that a kernel, or the text of one, is looked at."""
    text = isinstance(kernel, TextKernel)
    every: Sequence[Thread] = kernel.threads if isinstance(kernel, TextKernel) else threads(kernel)
    return Moment(
        kernel.target.description,
        kernel.release,
        kernel.arch,
        " ".join(kernel.facts.version.split()),
        None if text else _boot(kernel),
        None if text else _guard(kernel),
        None if text else uptime(kernel),
        {t.tid: _at(t) if text else _with_ticks(kernel, t) for t in every},
        {} if text else _devices(kernel),
        {} if text else _pools(kernel),
        {} if text else _queues(kernel),
        {} if text else _counters(kernel),
    )


def _boot(kernel: Kernel) -> Optional[int]:
    up = uptime(kernel)
    try:
        now = kernel.global_value("time_second")
    except (MemoryFault, SymbolMissing):
        return None
    return round(now - up) if now and up is not None else None


def _guard(kernel: Kernel) -> Optional[str]:
    symbol = kernel.symbol("__stack_chk_guard")
    if symbol is None:
        return None
    try:
        data = kernel.read(symbol.address, symbol.size or kernel.pointer_size)
    except MemoryFault:
        return None
    return hashlib.sha256(data).hexdigest()[:16] if any(data) else None


def _at(thread: Thread) -> At:
    return At(
        thread.tid, thread.pid, thread.label, thread.state, thread.wmesg, thread.wchan,
        None, None, None,
    )  # fmt: skip


def _with_ticks(kernel: Kernel, thread: Thread) -> At:
    """A thread with what the kernel counts of it; what cannot be read is None."""
    found: Dict[str, Optional[int]] = {}
    paths = [path for path in _TICKS if kernel.layouts.has("thread", path)]
    try:
        fields = kernel.layouts.fields("thread", *paths)
        found = dict(zip(paths, fields.unpack(kernel.read(thread.address, fields.span))))
    except (MemoryFault, LayoutError):
        pass
    tick = "td_blktick" if thread.state == "locked" else "td_slptick"
    left = found.get("td_swvoltick"), found.get("td_swinvoltick")
    times = found.get("td_ru.ru_nvcsw"), found.get("td_ru.ru_nivcsw")
    return _at(thread)._replace(
        # A start of 0 is none: the kernel clears it when the wait is over.
        since=(found.get(tick) or None) if thread.waits else None,
        left=None if left[0] is None or left[1] is None or not any(left) else (left[0], left[1]),
        switches=None if times[0] is None or times[1] is None else times[0] + times[1],
    )


_TICKS = (
    "td_slptick",
    "td_blktick",
    "td_swvoltick",
    "td_swinvoltick",
    "td_ru.ru_nvcsw",
    "td_ru.ru_nivcsw",
)


def _devices(kernel: Kernel) -> Dict[str, Tuple[int, int]]:
    found = {
        disk.name: (disk.devstat.start_count, disk.devstat.end_count)
        for disk in disks(kernel).values()
        if disk.devstat is not None
    }
    for provider in mesh(kernel).providers.values():
        if provider.name in found:
            continue
        if provider.nstart is not None and provider.nend is not None:
            found[provider.name] = provider.nstart, provider.nend
        elif provider.devstat is not None:
            found[provider.name] = provider.devstat.start_count, provider.devstat.end_count
    return found


def _pools(kernel: Kernel) -> Dict[str, Tuple[int, int, int]]:
    found = {}
    for spa in spas(kernel):
        txg = txg_of(kernel, spa.dsl_pool) if spa.dsl_pool else None
        if txg is not None:
            found[spa.name] = txg.open, txg.syncing, txg.synced
    return found


def _queues(kernel: Kernel) -> Dict[str, List[int]]:
    return {
        queue.name: [bio.address for bio in queue.bios[:_MOST_BIOS]] for queue in g_bioqs(kernel)
    }


def _counters(kernel: Kernel) -> Dict[str, int]:
    found: Dict[str, int] = {}
    meter = vm_domain.counters(kernel)
    for name in _COUNTERS if meter is not None else ():
        assert meter is not None
        try:
            found[name] = counter.stat(kernel, "vmmeter", meter.address, name)
        except (MemoryFault, LayoutError):
            continue
    return found


# As JSON


def to_json(at: Moment) -> Dict[str, Any]:
    """The moment as JSON's own types; addresses as the contract wants them."""
    told = at._asdict()
    # Where it was read is no part of it: a copy tells the same.
    del told["source"]
    told["threads"] = [
        {**each._asdict(), "wchan": None if each.wchan is None else f"{each.wchan:#x}"}
        for each in at.threads.values()
    ]
    told["queues"] = {name: [f"{bio:#x}" for bio in bios] for name, bios in at.queues.items()}
    return told


def from_json(report: Any, source: str) -> Moment:
    """The moment in a report of why-stuck; UsageError where there is none."""
    try:
        told = report["data"]["moment"]
        rows = [_row(each) for each in told["threads"]]
        return Moment(
            source,
            str(told["release"]),
            str(told["arch"]),
            str(told["version"]),
            None if told["boot"] is None else int(told["boot"]),
            None if told["guard"] is None else str(told["guard"]),
            None if told["uptime"] is None else float(told["uptime"]),
            {row.tid: row for row in rows},
            {str(name): (int(a), int(b)) for name, (a, b) in told["devices"].items()},
            {str(n): (int(a), int(b), int(c)) for n, (a, b, c) in told["pools"].items()},
            {str(n): [int(bio, 16) for bio in bios] for n, bios in told["queues"].items()},
            {str(name): int(value) for name, value in told["counters"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"{source} is no report of why-stuck --json with a moment in it") from None


def _row(told: Mapping[str, Any]) -> At:
    left, wchan = told["left"], told["wchan"]
    return At(
        int(told["tid"]),
        int(told["pid"]),
        str(told["name"]),
        str(told["state"]),
        told["wmesg"],
        None if wchan is None else int(wchan, 16),
        told["since"],
        None if left is None else (int(left[0]), int(left[1])),
        told["switches"],
    )


# Of one boot


def same_boot(then: Moment, now: Moment) -> str:
    """What says that both are of one boot, ``then`` the earlier; UsageError, with the evidence."""
    for what in ("arch", "release"):
        before, after = getattr(then, what), getattr(now, what)
        if before != after and "unknown" not in (before, after):
            raise _another(then, f"its {what} is {before}, not {after}")
    if then.guard is not None and now.guard is not None:
        if then.guard != now.guard:
            raise _another(then, "the kernel's stack guard, random in each boot, is another")
        evidence = "the kernel's stack guard is the same"
    elif then.boot is not None and now.boot is not None:
        if abs(then.boot - now.boot) > _ROUNDED:
            apart = seconds(abs(float(then.boot - now.boot)))
            raise _another(then, f"the two boots are {apart} apart")
        evidence = f"both booted at {now.boot} seconds of the epoch"
    else:
        evidence = _same_threads(then, now)
    if then.uptime is not None and now.uptime is not None and then.uptime > now.uptime:
        raise UsageError(
            f"{then.source} is the later of the two by {seconds(then.uptime - now.uptime)}: open "
            "that one, and give this one with --since"
        )
    return evidence


def _same_threads(then: Moment, now: Moment) -> str:
    """Where nothing else tells: threads of one number and name are in both."""
    shared = [
        tid for tid, at in then.threads.items()
        if tid in now.threads and now.threads[tid].name == at.name
    ]  # fmt: skip
    enough = min(_FEW, -(-min(len(then.threads), len(now.threads)) // 2))
    if not enough or len(shared) < enough:
        raise _another(
            then, f"{len(shared)} of {len(now.threads)} threads are in both, and no boot time is"
        )
    return f"{len(shared)} threads of one number and name are in both"


def _another(then: Moment, why: str) -> UsageError:
    return UsageError(f"{then.source} is of another boot or machine: {why}")


# Progress


class Device(NamedTuple):
    """I/O of one provider between the moments; ``owed`` is in flight now."""

    name: str
    started: int
    ended: int
    owed: int


class Pool(NamedTuple):
    name: str
    #: transaction groups synced between the moments, and the last
    synced: int
    txg: int


class Queue(NamedTuple):
    """Bios in a queue, and how many of them were in it at the earlier moment."""

    name: str
    then: int
    now: int
    same: int


class Standing(NamedTuple):
    """Of one cause: how many of its threads have not run, and whether it moves ("still",
    "moves", "unknown"); ``evidence`` says by what."""

    cause: Cause
    still: int
    verdict: str
    evidence: str


class Progress(NamedTuple):
    """What happened between two moments.  Lists of tids are of stuck threads.

    ``still``: has not run since (its ticks are the same); ``ran``: ran, and waits in the same
    place again; ``moved``: waits elsewhere; ``new``: was not there; ``unknown``: in the same
    place, and nothing tells whether it ran in between (text).
    """

    since: Moment
    seconds: Optional[float]
    evidence: str
    still: List[int]
    ran: List[int]
    moved: List[int]
    new: List[int]
    unknown: List[int]
    #: threads of all kinds that are gone
    gone: int
    devices: List[Device]
    pools: List[Pool]
    queues: List[Queue]
    counters: Dict[str, int]
    causes: List[Standing]


def progress(analysis: Analysis, then: Moment, now: Moment) -> Progress:
    """Who has moved since ``then``; UsageError where that is of another boot, or later."""
    evidence = same_boot(then, now)
    kinds: Dict[int, str] = {}
    for thread in analysis.stuck:
        kinds[thread.tid] = since_then(then.threads.get(thread.tid), now.threads[thread.tid])
    apart = None
    if then.uptime is not None and now.uptime is not None:
        apart = now.uptime - then.uptime
        if not apart:
            raise UsageError(f"{then.source} is of the same moment: nothing lies between the two")
    devices = [
        _device(name, then.devices[name], counts)
        for name, counts in now.devices.items()
        if name in then.devices
    ]
    pools = [
        Pool(name, synced - then.pools[name][2], synced)
        for name, (_, _, synced) in now.pools.items()
        if name in then.pools
    ]
    queues = [
        Queue(name, len(then.queues[name]), len(bios), len(set(bios) & set(then.queues[name])))
        for name, bios in now.queues.items()
        if name in then.queues
    ]
    counters = {
        name: value - then.counters[name]
        for name, value in now.counters.items()
        if name in then.counters and value >= then.counters[name]
    }

    def of_kind(wanted: str) -> List[int]:
        return [tid for tid, kind in kinds.items() if kind == wanted]

    return Progress(
        since=then,
        seconds=apart,
        evidence=evidence,
        still=of_kind("still"),
        ran=of_kind("ran"),
        moved=of_kind("moved"),
        new=of_kind("new"),
        unknown=of_kind("unknown"),
        gone=sum(tid not in now.threads for tid in then.threads),
        devices=devices,
        pools=pools,
        queues=queues,
        counters=counters,
        causes=[_standing(cause, kinds, devices, pools) for cause in analysis.causes],
    )


#: devstat's and a provider's counters are 32 bits wide and wrap
_WORD = 0xFFFFFFFF


def _device(name: str, then: Tuple[int, int], now: Tuple[int, int]) -> Device:
    started, ended = (after - before & _WORD for before, after in zip(then, now))
    return Device(name, started, ended, now[0] - now[1] & _WORD)


def since_then(before: Optional[At], after: At) -> str:
    """still, ran, moved, new or unknown: what a thread did between two moments."""
    if before is None or (before.pid, before.name) != (after.pid, after.name):
        return "new"
    if before.place != after.place:
        return "moved"
    told = [
        (one, other)
        for one, other in (
            (before.since, after.since),
            (before.left, after.left),
            (before.switches, after.switches),
        )
        if one is not None and other is not None
    ]
    if any(one != other for one, other in told):
        return "ran"
    return "still" if told else "unknown"


def _standing(
    cause: Cause, kinds: Mapping[int, str], devices: Sequence[Device], pools: Sequence[Pool]
) -> Standing:
    own = [kinds[tid] for tid in cause.tids if tid in kinds]
    still = own.count("still")
    moved = sum(kind in ("ran", "moved", "new") for kind in own)
    if cause.node.kind is NodeKind.PROVIDER:
        # The label may say what it is for: "da0 (swap)".
        device = next((d for d in devices if d.name == cause.node.label.split(" ")[0]), None)
        if device is not None and device.ended:
            ended = f"{device.name} has ended {device.ended} I/O since: slow, not silent"
            return Standing(cause, still, "moves", ended)
        if device is not None and device.owed:
            return Standing(cause, still, "still", f"{device.name} has ended no I/O since")
    if cause.node.kind in (NodeKind.ZPOOL, NodeKind.TXG):
        pool = next((p for p in pools if p.name in cause.node.label), None)
        if pool is not None and pool.synced > 0:
            wrote = f"pool {pool.name} has synced {pool.synced} txg since"
            return Standing(cause, still, "moves", wrote)
    if still:
        return Standing(cause, still, "still", f"{still} of its {len(own)} threads have not run")
    if moved and moved == len(own):
        return Standing(cause, 0, "moves", "all its threads have run since")
    return Standing(cause, 0, "unknown", "nothing tells whether its threads have run")
