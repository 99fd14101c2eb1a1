"""GEOM classes that keep requests: their queues, their threads, what they synchronize.

Mirrors sys/geom/{eli,mirror,raid3,raid,journal,gate,vinum} and sys/dev/md, 7.0 to 15.x.  What is
where stands in ``KINDS``: the softc of a geom of that class, its queues of bios, the struct proc
* of its threads.  A softc that does not lead back to its geom is not believed.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.geom import Geom, mesh
from plugin.kernel.proc import Thread, threads
from plugin.kernel.queue import list_foreach, tailq_foreach
from plugin.kernel.vnode import vnode_at
from plugin.session import Kernel, View

_MAX = 1 << 12


class Queue(NamedTuple):
    """A queue of bios in a softc: ``member`` holds it, ``why`` says what a bio on it waits for.

    ``behind``: True where it waits for other requests below the geom, not for the thread.
    """

    member: str
    why: str
    behind: bool = False


class Kind(NamedTuple):
    """A class: its softc, the member that leads back to the geom, and what it has."""

    struct: str
    back: str
    queues: Tuple[Queue, ...]
    #: the member that is the struct proc * of its one thread, "" for none
    worker: str = ""


_MIRROR = (
    Queue("sc_queue", "its thread has not come to it"),
    Queue("sc_regular_delayed", "its range is being synchronized", True),
    Queue("sc_sync_delayed", "its range is being written", True),
    Queue("sc_inflight", "being written to the disks", True),
)

KINDS: Dict[str, Kind] = {
    "ELI": Kind("g_eli_softc", "sc_geom", (Queue("sc_queue", "waits for an encryption thread"),)),
    "MIRROR": Kind("g_mirror_softc", "sc_geom", _MIRROR, "sc_worker"),
    "RAID3": Kind("g_raid3_softc", "sc_geom", _MIRROR, "sc_worker"),
    "RAID": Kind(
        "g_raid_softc",
        "sc_geom",
        (Queue("sc_queue", "its thread has not come to it"),),
        "sc_worker",
    ),
    "JOURNAL": Kind(
        "g_journal_softc",
        "sc_geom",
        (
            Queue("sc_back_queue", "back from below, its thread has not come to it"),
            Queue("sc_regular_queue", "its thread has not come to it"),
            Queue("sc_delayed_queue", "the journal is being switched or is full", True),
        ),
        "sc_worker",
    ),
    "GATE": Kind(
        "g_gate_softc",
        "",
        (
            Queue("sc_inqueue", "its process has not fetched it"),
            Queue("sc_outqueue", "its process has it and has not answered"),
        ),
    ),
    "VINUM": Kind(
        "gv_softc",
        "",
        (
            Queue("bqueue_down", "its thread has not come to it"),
            Queue("bqueue_up", "back from below, its thread has not come to it"),
        ),
        "worker",
    ),
    "MD": Kind("md_s", "gp", (Queue("bio_queue", "its thread has not come to it"),), "procp"),
}
#: the struct and member in which a volume of RAID keeps its requests
_VOLUME = (
    Queue("v_inflight", "being done by the disks", True),
    Queue("v_locked", "its range is locked", True),
)


class ClassQueue(NamedTuple):
    """One of a geom's queues: ``head`` is the address of its struct bio * tqh_first."""

    head: int
    name: str
    geom: Geom
    queue: Queue


def softc(kernel: Kernel, geom: Geom) -> Optional[View]:
    """The softc of a geom of a class in ``KINDS``, None where there is none to be believed."""
    kind = KINDS.get(geom.g_class.name)
    if kind is None or kind.struct not in kernel.layouts:
        return None
    # A mirror's geom for synchronization has the mirror's softc as well; md keeps it there too.
    address = geom.softc or next((p.private for p in geom.providers if p.private), 0)
    if not address:
        return None
    try:
        view = kernel.view(kind.struct, address)
        if kind.back and view.has(kind.back) and view[kind.back] != geom.address:
            return None
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"softc of {geom.g_class.name} {geom.name}", address, str(error))
        return None
    return view


@cached(MEMORY)
def queues(kernel: Kernel) -> Dict[int, ClassQueue]:
    """The queues of all such geoms by the address of their head."""
    return {each.head: each for each in _queues(kernel)}


def _queues(kernel: Kernel) -> Iterator[ClassQueue]:
    for geom in mesh(kernel).geoms.values():
        view = softc(kernel, geom)
        if view is None:
            continue
        kind = KINDS[geom.g_class.name]
        yield from _of(kernel, geom, kind.struct, view.address, kind.queues, geom.name)
        if geom.g_class.name == "RAID" and "g_raid_volume" in kernel.layouts:
            for volume, _ in tailq_foreach(
                kernel,
                view.at("sc_volumes"),
                "g_raid_volume",
                "v_next",
                what=f"sc_volumes of {geom.name}",
                bound=_MAX,
            ):
                name = kernel.view("g_raid_volume", volume).text("v_name")
                yield from _of(kernel, geom, "g_raid_volume", volume, _VOLUME, name or geom.name)


def _of(
    kernel: Kernel, geom: Geom, struct: str, address: int, found: Tuple[Queue, ...], name: str
) -> Iterator[ClassQueue]:
    for queue in found:
        # A bio_queue_head begins with its TAILQ, named queue; a bio_queue is one.
        if kernel.layouts.has(struct, queue.member):
            head = address + kernel.layouts.offsetof(struct, queue.member)
            if kernel.layouts.has(struct, f"{queue.member}.queue"):
                head = address + kernel.layouts.offsetof(struct, f"{queue.member}.queue")
            label = f"{queue.member} of {geom.g_class.name} {name}"
            yield ClassQueue(head, label, geom, queue)


@cached(MEMORY)
def own_threads(kernel: Kernel, geom: Geom) -> List[Thread]:
    """The threads that a geom's softc names as its own: its worker's, or all of geli's workers."""
    view = softc(kernel, geom)
    if view is None:
        return []
    kind = KINDS[geom.g_class.name]
    procs = []
    if geom.g_class.name == "ELI":
        procs = [proc for proc, _ in eli_workers(kernel, view)]
    elif kind.worker:
        procs = [view[kind.worker]]
    # kproc_create() to 8.x, kproc_kthread_add() of g_eli and others since: a proc either way.
    wanted = {proc for proc in procs if proc}
    found = [thread for thread in threads(kernel) if thread.proc in wanted]
    if len(found) > max(1, len(wanted)):
        # Some keep a struct thread *, or share one process: their names tell them apart.
        return []
    return found


def eli_workers(kernel: Kernel, view: View) -> List[Tuple[int, bool]]:
    """(struct proc *, w_active) of each g_eli_worker of a struct g_eli_softc."""
    if "g_eli_worker" not in kernel.layouts:
        return []
    active = kernel.layouts.has("g_eli_worker", "w_active")
    found = []
    for _, values in list_foreach(
        kernel,
        view.at("sc_workers"),
        "g_eli_worker",
        "w_next",
        ["w_proc", "w_active"] if active else ["w_proc"],
        what="sc_workers",
        bound=_MAX,
    ):
        found.append((values[0], bool(values[1]) if active else True))
    return found


def standing(kernel: Kernel, geom: Geom) -> List[str]:
    """What the softc says of the whole geom, in words: synchronizing, suspended, destroyed."""
    view = softc(kernel, geom)
    if view is None:
        return []
    try:
        return list(_STANDING.get(geom.g_class.name, _nothing)(kernel, view))
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"softc of {geom.g_class.name} {geom.name}", view.address, str(error))
        return []


def _nothing(kernel: Kernel, view: View) -> Iterator[str]:
    return iter(())


def _flags(kernel: Kernel, value: int, *meanings: Tuple[str, str]) -> Iterator[str]:
    for name, words in meanings:
        if value & kernel.layouts.constant(name, 0):
            yield words


def _eli(kernel: Kernel, view: View) -> Iterator[str]:
    yield from _flags(
        kernel,
        view.sc_flags,
        ("G_ELI_FLAG_SUSPEND", "suspended: its requests wait for geli resume"),
        ("G_ELI_FLAG_DESTROY", "being destroyed"),
    )
    if view.get("sc_inflight"):
        yield f"{view.sc_inflight} requests counted as under way (sc_inflight)"


def _mirror(kernel: Kernel, view: View) -> Iterator[str]:
    yield from _flags(
        kernel,
        view.sc_flags,
        ("G_MIRROR_DEVICE_FLAG_DESTROY", "being destroyed"),
        ("G_MIRROR_DEVICE_FLAG_DRAIN", "waits for the last of its requests"),
        ("G_MIRROR_DEVICE_FLAG_CLOSEWAIT", "waits to be closed"),
    )
    if view.sc_state == kernel.layouts.constant("G_MIRROR_DEVICE_STATE_STARTING", 0):
        yield "starting: not all of its disks have come"
    wanted = kernel.layouts.constant("G_MIRROR_DISK_STATE_SYNCHRONIZING", 4)
    for disk, _ in list_foreach(
        kernel, view.at("sc_disks"), "g_mirror_disk", "d_next", what="sc_disks", bound=_MAX
    ):
        each = kernel.view("g_mirror_disk", disk)
        if each.d_state != wanted:
            continue
        name = _consumer_name(kernel, each.d_consumer)
        done = 100 * each["d_sync.ds_offset_done"] // max(1, view.sc_mediasize)
        text = f"synchronizing {name}: {done} % done"
        if each.has("d_sync.ds_inflight"):
            text += f", {each['d_sync.ds_inflight']} of its requests under way"
        yield text
    if view.get("sc_idle"):
        yield "idle: no write for a while, its disks are marked clean"


def _consumer_name(kernel: Kernel, address: int) -> str:
    found = mesh(kernel).consumers.get(address)
    return found.provider.name if found is not None and found.provider is not None else "a disk"


def _journal(kernel: Kernel, view: View) -> Iterator[str]:
    if view.sc_journal_copying:
        yield "copying the journal to its data provider"
    for member, words in (
        ("sc_flush_in_progress", "writes to the journal under way"),
        ("sc_copy_in_progress", "copies from the journal under way"),
        ("sc_delayed_count", "requests delayed"),
    ):
        if view.get(member):
            yield f"{view[member]} {words}"


def _raid(kernel: Kernel, view: View) -> Iterator[str]:
    if view.sc_stopping:
        yield "being stopped"


def _gate(kernel: Kernel, view: View) -> Iterator[str]:
    yield from _flags(kernel, view.sc_flags, ("G_GATE_FLAG_DESTROY", "being destroyed"))
    yield f"{view.sc_queue_count} of {view.sc_queue_size} requests in its queues"


def _md(kernel: Kernel, view: View) -> Iterator[str]:
    kind = kernel.layouts.enum("md_type", view.type)
    words = kind.replace("MD_", "").lower()
    if kind == "MD_VNODE":
        vnode = vnode_at(kernel, view.get("vnode") or view.get("s_vnode.vnode") or 0)
        words += f": {vnode.label}" if vnode is not None else ""
    yield f"backed by {words}"
    yield from _flags(
        kernel,
        view.flags,
        ("MD_SHUTDOWN", "being destroyed"),
        ("MD_EXITING", "its thread has gone"),
    )


_STANDING = {
    "ELI": _eli,
    "MIRROR": _mirror,
    "RAID3": _nothing,
    "JOURNAL": _journal,
    "RAID": _raid,
    "GATE": _gate,
    "MD": _md,
}
