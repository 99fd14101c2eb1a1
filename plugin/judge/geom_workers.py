"""GEOM's own machinery: its threads, the topology lock, its events and its pacing.

Mirrors sys/geom/geom_kern.c, geom_event.c and the scheduling loops of geom_io.c,
6.x to 15.x.
"""

from __future__ import annotations

import itertools
from typing import Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge.locks import Contended, contended, holders
from plugin.kernel.bio import BioQueue, g_bioqs
from plugin.kernel.disk import DISK_CLASS
from plugin.kernel.geom import ZVOL_CLASS, Geom, Provider, mesh
from plugin.kernel.geom_class import own_threads
from plugin.kernel.locks import Lock, lock_at
from plugin.kernel.proc import Thread, clock, kernel_thread_flag, threads
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.sleepqueue import sleeps
from plugin.kernel.stack import backtrace
from plugin.kernel.zfs import zvol
from plugin.session import Kernel

#: flag of a struct g_event (geom_event.c), the same in every version
EVENT_FLAGS = (
    (0x80000, "EV_DONE"),
    (0x40000, "EV_WAKEUP"),
    (0x20000, "EV_CANCELED"),
    (0x10000, "EV_INPROGRESS"),
)


class Pacing(NamedTuple):
    """What ``pace`` is and what it means in this version.

    A bio that fails with ENOMEM is not completed but asked for again, and g_down
    pauses.  Up to 10.2 each failure costs one pause of hz/10, so at most ten bios
    a second move while allocations fail; since then the pause is one tick of hz
    (min(hz / 1000, 1), and pause() takes 0 for 1), once, and direct dispatch is off
    meanwhile.  ``pause`` is its length in
    seconds, ``paused`` that g_down sleeps in one now.
    """

    pace: int
    pause: float
    per_failure: bool
    paused: bool
    #: kern.geom.nomem_count and pause_count, None before they were counted (13.0)
    nomem_count: Optional[int]
    pause_count: Optional[int]

    @property
    def active(self) -> bool:
        return self.pace > 0 or self.paused

    def explain(self, queued: int) -> str:
        """One line for a person, ``queued`` bios being on g_bio_run_down."""
        if not self.active:
            return ""
        state = "g_down sleeps in it now" if self.paused else "g_down is not in it now"
        if self.per_failure:
            return (
                f"GEOM is pacing (pace {self.pace}, {state}), not blocked: after an allocation "
                f"failure (ENOMEM) g_down pauses {self.pause:g} s before a bio, so at most "
                f"{1 / self.pause:.0f} bios a second move while allocations fail; the {queued} "
                f"queued need {queued * self.pause:g} s or more."
            )
        return (
            f"GEOM is pacing (pace {self.pace}, {state}), not blocked: after an allocation "
            f"failure (ENOMEM) g_down pauses one tick of hz, {self.pause * 1000:.3g} ms, before "
            f"the next bio and direct dispatch is off, so at most {1 / self.pause:.0f} bios a "
            f"second move while allocations fail; {queued} are queued.  A bio that fails is "
            "asked for again, so its age starts anew each time."
        )


def pacing(kernel: Kernel) -> Optional[Pacing]:
    """The pacing state; None where the kernel has no ``pace``."""
    if not kernel.has_symbol("pace"):
        return None
    try:
        value = kernel.global_value("pace")
    except MemoryFault as fault:
        kernel.warnings.add("pace", fault.address, fault.reason)
        return None
    release = kernel.osreldate
    # svn r287405 of September 2015, which 10.3 was the first release to have.
    per_failure = release < 1002500 or 1100000 <= release < 1100080
    down = next((t for t in geom_threads(kernel) if t.role == "g_down"), None)
    paused = bool(down and down.thread.wmesg == "g_down")
    return Pacing(
        value,
        0.1 if per_failure else 1 / _hz(kernel),
        per_failure,
        paused,
        _counter(kernel, "nomem_count"),
        _counter(kernel, "pause_count"),
    )


def _hz(kernel: Kernel) -> int:
    """Ticks a second; 1000 (the default of every release) where it cannot be read."""
    found = clock(kernel)
    return found.hz if found is not None else 1000


def _counter(kernel: Kernel, name: str) -> Optional[int]:
    try:
        return kernel.global_value(name) if kernel.has_symbol(name) else None
    except MemoryFault:
        return None


class GeomThread(NamedTuple):
    """One of g_up, g_down and g_event.

    ``state``: "idle" only if it sleeps for work and there is none; "working";
    "pacing"; "transient map" (waiting for kernel address space); "stuck" where
    there is work and it sleeps for it all the same.
    """

    role: str
    thread: Thread
    state: str
    detail: str


_ROLES = ("g_up", "g_down", "g_event")
#: up to 8.x they are processes of these names, since then threads of "geom"
_IDLE_CHANNELS = {"g_up": "g_wait_up", "g_down": "g_wait_down", "g_event": "g_wait_event"}


@cached(MEMORY)
def geom_threads(kernel: Kernel) -> List[GeomThread]:
    """g_up, g_down and g_event, with what each does."""
    return list(_geom_threads(kernel))


def _geom_threads(kernel: Kernel) -> Iterator[GeomThread]:
    known = {}
    for role in _ROLES:
        # The pointers exist from 9.x on; before, a process has the name.
        try:
            known[role] = kernel.global_value(f"{role}_td", 0)
        except MemoryFault:
            known[role] = 0
    for thread in threads(kernel):
        for role in _ROLES:
            if known[role]:
                match = thread.address == known[role]
            else:
                match = role in (thread.name, thread.comm) and thread.pid != 0
            if match:
                yield GeomThread(role, thread, *_work(kernel, role, thread))


def _work(kernel: Kernel, role: str, thread: Thread) -> Tuple[str, str]:
    if thread.state != "sleeping":
        return "working", thread.state
    idle = kernel.symbol(_IDLE_CHANNELS[role])
    if idle is not None and thread.wchan == idle.address:
        waiting = _waiting_for(kernel, role)
        if not waiting:
            return "idle", "its queue is empty"
        sleep = sleeps(kernel).get(thread.address)
        if sleep is not None and sleep.timed:
            # To 8.x it looks by itself ten times a second.
            return "working", f"{waiting}, it looks again when its timed sleep ends"
        return "stuck", f"{waiting}, yet it sleeps until woken: its wakeup was lost"
    if thread.wmesg == "g_down":
        return "pacing", "pauses after an allocation failure"
    if thread.wmesg == "g_d_tra":
        return "transient map", "waits for address space to map an unmapped bio"
    if role != "g_event" and thread.wmesg == "-":
        return "idle", "its queue is empty"
    return "working", f'sleeps in "{thread.wmesg}"'


def _waiting_for(kernel: Kernel, role: str) -> str:
    if role == "g_event":
        count = len(events(kernel))
        left = len([p for p in mesh(kernel).providers.values() if p.on_doorstep])
        if not count and not left:
            return ""
        return f"{count} events and {left} orphaned providers wait"
    names = ("g_bio_run_down",) if role == "g_down" else ("g_bio_run_up", "g_bio_run_task")
    found = [q for q in g_bioqs(kernel) if q.name in names and (q.bios or q.length)]
    return ", ".join(f"{_length(queue)} on {queue.name}" for queue in found)


def _length(queue: BioQueue) -> str:
    number = len(queue.bios) or queue.length or 0
    return "1 bio is" if number == 1 else f"{number} bios are"


#: MAXCOMLEN: a longer name of a thread is cut to it
_MAXCOMLEN = 19


@cached(MEMORY)
def workers(kernel: Kernel, geom: Geom) -> List[Thread]:
    """The kernel threads that do this geom's work, for classes that have some.

    Those that its own softc names (kernel/geom_class.py), else told by their names: "md0",
    "g_mirror gm0", "g_eli[1] da0p2" (the provider below), "g_raid3 name", "g_journal name"
    (kproc_create() calls in sys/geom and sys/dev/md); those of a volume of ZFS by what
    kernel.zfs.zvol says.
    """
    if geom.g_class.name == ZVOL_CLASS:
        volumes = (zvol.zvol_of_provider(kernel, provider) for provider in geom.providers)
        return [thread for each in volumes if each for thread in zvol.workers(kernel, each)]
    own = own_threads(kernel, geom)
    if own:
        return own
    prefix = f"g_{geom.g_class.name.lower()}"
    subjects = {geom.name, *(p.name for p in geom.providers)}
    subjects |= {c.provider.name for c in geom.consumers if c.provider}
    whole = {name[:_MAXCOMLEN] for name in (geom.name, *(p.name for p in geom.providers))}
    kproc = kernel_thread_flag(kernel)
    found = []
    for thread in threads(kernel):
        if not thread.p_flag & kproc:
            continue
        name = thread.name or thread.comm
        head, _, rest = name.partition(" ")
        if name in whole and geom.g_class.name != DISK_CLASS:
            found.append(thread)
        elif rest and head.split("[")[0] == prefix:
            room = _MAXCOMLEN - len(head) - 1
            if any(rest == subject[:room] for subject in subjects):
                found.append(thread)
    return found


class GeomEvent(NamedTuple):
    """One struct g_event waiting for the g_event thread; ``func`` by name."""

    address: int
    func: str
    arg: int
    flags: Tuple[str, ...]
    #: what it is about, as names of the mesh where they are
    refs: Tuple[str, ...]


@cached(MEMORY)
def events(kernel: Kernel) -> List[GeomEvent]:
    """g_events, in the order in which they will be run; the first may be running."""
    return list(_events(kernel))


def _events(kernel: Kernel) -> Iterator[GeomEvent]:
    head = kernel.symbol("g_events")
    if head is None or kernel.layouts.get("g_event") is None:
        return
    # EV_ flags: "flag" in every version; refs are an array of pointers, NULL at its end.
    for address, (func, arg, flag, refs) in tailq_foreach(
        kernel, head.address, "g_event", "events", ["func", "arg", "flag", "ref"], what="g_events"
    ):
        size = kernel.pointer_size
        raw: bytes = refs  # type: ignore[assignment]
        pointers = [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]
        named = tuple(_object_name(kernel, p) for p in itertools.takewhile(bool, pointers))
        yield GeomEvent(
            address,
            kernel.symbolize(func) or f"{func:#x}",
            arg,
            tuple(name for bit, name in EVENT_FLAGS if flag & bit),
            named,
        )


def _object_name(kernel: Kernel, address: int) -> str:
    found = mesh(kernel)
    if address in found.providers:
        return f"provider {found.providers[address].name}"
    if address in found.geoms:
        geom = found.geoms[address]
        return f"geom {geom.g_class.name} {geom.name}"
    if address in found.consumers:
        return f"consumer of {found.consumers[address].geom.name}"
    for g_class in found.classes:
        if g_class.address == address:
            return f"class {g_class.name}"
    return f"{address:#x}"


def topology_lock(kernel: Kernel) -> Optional[Contended]:
    """The topology lock with its holders and waiters; None where it cannot be read."""
    symbol = kernel.symbol("topology_lock")
    if symbol is None:
        return None
    for entry in contended(kernel):
        if entry.lock.address == symbol.address:
            return entry
    lock = _lock(kernel, symbol.address)
    return Contended(lock, holders(kernel, lock, []), []) if lock is not None else None


def _lock(kernel: Kernel, address: int) -> Optional[Lock]:
    try:
        return lock_at(kernel, address)
    except LayoutError as error:
        kernel.warnings.add("topology lock", address, str(error))
        return None


class Health(NamedTuple):
    """All of it, for a report."""

    pacing: Optional[Pacing]
    threads: List[GeomThread]
    events: List[GeomEvent]
    doorstep: List[Provider]
    topology: Optional[Contended]
    #: bios whose pages are mapped for a driver that cannot take them unmapped; 9.x on
    inflight_transient_maps: Optional[int]
    #: g_event's stack while it runs an event, innermost first
    event_stack: List[str]


def health(kernel: Kernel) -> Health:
    found = geom_threads(kernel)
    event = next((t for t in found if t.role == "g_event" and t.state != "idle"), None)
    return Health(
        pacing(kernel),
        found,
        events(kernel),
        [p for p in mesh(kernel).providers.values() if p.on_doorstep],
        topology_lock(kernel),
        _counter(kernel, "inflight_transient_maps"),
        backtrace(kernel, event.thread) if event else [],
    )
