"""Volumes (zvols): which there are, what each has queued, and the threads that do its I/O.

Mirrors zvol.c (9.3 to 12.x) and os/freebsd/zfs/zvol_os.c (13.0 on).  A volume is a provider of
GEOM (volmode=geom, the only one to 9.x) or a device of its own (volmode=dev).  A request
that comes from a thread that may sleep is done by that thread.  Any other waits, to 14.x, on
the volume's queue for its one thread, "zvol NAME"; from 15.0 on (OpenZFS 2.4) it is a
zv_request_task of one of the task queues zvol_tq-N.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.bio import bios_of_tailq
from plugin.kernel.geom import ZVOL_CLASS, Provider, mesh
from plugin.kernel.list import list_t_foreach
from plugin.kernel.proc import Thread, thread_at, threads
from plugin.kernel.queue import list_foreach
from plugin.kernel.stack import stack_words
from plugin.kernel.taskqueue import Running, TaskQueue, taskqueues, worker_of
from plugin.kernel.zfs.common import peek, text_of, try_peek
from plugin.session import Kernel

#: ZFS_VOLMODE_* (sys/fs/zfs.h); to 9.x there is but the first
_MODES = {1: "geom", 2: "dev", 3: "none"}
_MOST_ZVOLS = 100_000
#: td_name holds so many characters (MAXCOMLEN)
_NAME = 19
_TASKQS = "zvol_tq-"
_OS = "_zso_state._zso_geom"
_ZVOL_REMOVING = 8


class Zvol(NamedTuple):
    """One zvol_state_t.

    ``mode`` "geom", "dev" or "none", "" where it cannot be told.  ``queue`` is the address
    of its bio_queue_head and ``state`` that of the state its thread is stopped by, both 0
    where it has none (15.0 on, volmode=dev); ``queued`` are the struct bio * that wait there.
    ``opens`` counts who has it open; ``removing`` True once it is on its way out.
    """

    address: int
    name: str
    mode: str
    objset: int
    zilog: int
    provider: int
    opens: int
    removing: bool
    queue: int
    queued: List[int]
    state: int


@cached(MEMORY)
def zvols(kernel: Kernel) -> List[Zvol]:
    """Every volume: by the module's own list (10.0 on), and those that only GEOM leads to."""
    found: Dict[int, Zvol] = {}
    if "zvol_state" not in kernel.layouts:
        return []
    for at in (*_listed(kernel), *_providers(kernel)):
        if at not in found:
            zvol = _zvol(kernel, at)
            if zvol is not None:
                found[at] = zvol
    return list(found.values())


def _listed(kernel: Kernel) -> List[int]:
    layouts = kernel.layouts
    if layouts.has("zvol_state", "zv_next"):
        head = kernel.symbol("zvol_state_list")
        return (
            list(list_t_foreach(kernel, head.address, what="zvol_state_list", bound=_MOST_ZVOLS))
            if head is not None
            else []
        )
    head = kernel.symbol("all_zvols")
    if head is None or not layouts.has("zvol_state", "zv_links"):
        return []
    walk = list_foreach(
        kernel, head.address, "zvol_state", "zv_links", what="all_zvols", bound=_MOST_ZVOLS
    )
    return [at for at, _ in walk]


def _providers(kernel: Kernel) -> Iterator[int]:
    for provider in mesh(kernel).providers.values():
        if provider.class_name == ZVOL_CLASS and provider.private:
            yield provider.private


def _zvol(kernel: Kernel, address: int) -> Optional[Zvol]:
    try:
        return _zvol_at(kernel, address)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("zvol", address, str(error))
        return None


def _zvol_at(kernel: Kernel, address: int) -> Zvol:
    layouts = kernel.layouts
    name = text_of(peek(kernel, "zvol_state", address, "zv_name"))
    if not name or not name.isprintable():
        raise MemoryFault(address, "it has no name")
    opens = layouts.first_of("zvol_state", "zv_open_count", "zv_total_opens") or "zv_open_count"
    mode = try_peek(kernel, "zvol_state", address, "zv_volmode")
    own = layouts.has("zvol_state", "zv_zso")
    base = peek(kernel, "zvol_state", address, "zv_zso") if own else address
    struct, queue, state, provider = (
        ("zvol_state_os", f"{_OS}.zsg_queue", f"{_OS}.zsg_state", f"{_OS}.zsg_provider")
        if own
        else ("zvol_state", "zv_queue", "zv_state", "zv_provider")
    )
    modes = "geom" if mode is None else _MODES.get(mode, "")
    queued = modes != "dev" and bool(base) and layouts.has(struct, queue)
    head = base + layouts.offsetof(struct, queue) if queued else 0
    in_geom = modes != "dev" and bool(base)
    flags = try_peek(kernel, "zvol_state", address, "zv_flags", 0)
    return Zvol(
        address,
        name,
        modes,
        peek(kernel, "zvol_state", address, "zv_objset"),
        peek(kernel, "zvol_state", address, "zv_zilog"),
        peek(kernel, struct, base, provider) if in_geom else 0,
        peek(kernel, "zvol_state", address, opens),
        own and bool(flags & _ZVOL_REMOVING or try_peek(kernel, struct, base, "zso_dying")),
        head,
        [bio.address for bio in bios_of_tailq(kernel, head, f"queue of zvol {name}")]
        if head
        else [],
        base + layouts.offsetof(struct, state) if queued else 0,
    )


def zvol_of(kernel: Kernel, address: int) -> Optional[Zvol]:
    """The volume whose struct zvol_state this is, None where it is none."""
    return next((zvol for zvol in zvols(kernel) if zvol.address == address), None)


def zvol_around(kernel: Kernel, address: int) -> Optional[Zvol]:
    """The volume whose struct zvol_state holds ``address``: that of one of its locks."""
    if "zvol_state" not in kernel.layouts:
        return None
    size = kernel.layouts.sizeof("zvol_state")
    found = (zvol for zvol in zvols(kernel) if 0 <= address - zvol.address < size)
    return next(found, None)


def zvol_of_provider(kernel: Kernel, provider: Provider) -> Optional[Zvol]:
    """The volume that a provider of class ZFS::ZVOL is the device of, else None."""
    return zvol_of(kernel, provider.private) if provider.class_name == ZVOL_CLASS else None


class Request(NamedTuple):
    """A request of 15.0 on: the volume, its task queue, and the worker if it runs."""

    zvol: int
    bio: int
    queue: TaskQueue
    running: Optional[Running]
    worker: Optional[Thread]


@cached(MEMORY)
def requests(kernel: Kernel) -> Dict[int, Request]:
    """{struct bio *: its zv_request_task}; {} to 14.x, which has none."""
    layouts = kernel.layouts
    found: Dict[int, Request] = {}
    if "zv_request_task" not in layouts:
        return found
    ent = layouts.offsetof("zv_request_task", "ent")
    for queue in taskqueues(kernel):
        if not queue.name.startswith(_TASKQS):
            continue
        for running in queue.running:
            worker = worker_of(kernel, queue, running.busy)
            _take(kernel, found, running.task - ent, queue, running, worker)
        for task in queue.queued:
            _take(kernel, found, task - ent, queue, None, None)
    return found


def _take(
    kernel: Kernel,
    found: Dict[int, Request],
    at: int,
    queue: TaskQueue,
    running: Optional[Running],
    worker: Optional[Thread],
) -> None:
    zvol = try_peek(kernel, "zv_request_task", at, "zvr.zv", 0)
    bio = try_peek(kernel, "zv_request_task", at, "zvr.bio", 0)
    if zvol_of(kernel, zvol) is not None and bio:
        found[bio] = Request(zvol, bio, queue, running, worker)


def workers(kernel: Kernel, zvol: Zvol) -> List[Thread]:
    """The threads that do the I/O of a volume, beside those that ask for it.

    To 14.x its own: told by what it sleeps on, else by its name and by the zvol_state on its
    stack where the name is cut.  From 15.0 on those of the task queues that have requests of
    it: that run one, and where none does all of the queue's.
    """
    if "zv_request_task" in kernel.layouts:
        return _taskq_workers(kernel, zvol)
    wanted = f"zvol {zvol.name}"
    named = [
        thread
        for thread in threads(kernel)
        if (thread.wmesg == "zvol:io" and thread.wchan == zvol.queue and zvol.queue)
        or (thread.wmesg != "zvol:io" and wanted[:_NAME] in (thread.name, thread.comm))
    ]
    if len(wanted) > _NAME and len(named) > 1:
        named = [t for t in named if zvol.address in stack_words(kernel, t)] or named
    return named


def _taskq_workers(kernel: Kernel, zvol: Zvol) -> List[Thread]:
    own = [each for each in requests(kernel).values() if each.zvol == zvol.address]
    running = [each.worker for each in own if each.worker is not None]
    if running:
        return running
    serving = {address: None for each in own for address in each.queue.threads}
    return [t for t in (thread_at(kernel, at) for at in serving) if t is not None]
