"""What ZFS has under way and what each thing waits for: zios, open transactions, ranges.

Of every zio that can be reached (from the vdevs' queues, the bios, the suspended ones and
whoever asks) is said where it is and how that is known; of a transaction group, who holds it
open.
"""

from __future__ import annotations

from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge import geom_io
from plugin.judge.geom_io import OutstandingBio
from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.bio import bio_origin
from plugin.kernel.geom import Provider
from plugin.kernel.linker import linker_files
from plugin.kernel.mount import mounts
from plugin.kernel.proc import Thread, threads
from plugin.kernel.stack import frames, stack_words
from plugin.kernel.taskqueue import TaskQueue, of_task, worker_of
from plugin.kernel.zfs import arc
from plugin.kernel.zfs.common import peek, try_peek
from plugin.kernel.zfs.dbuf import dbuf_at
from plugin.kernel.zfs.metaslab import throttled
from plugin.kernel.zfs.spa import Spa, spa_of, spas
from plugin.kernel.zfs.taskq import dispatched
from plugin.kernel.zfs.txg import DmuTx, Txg, dmu_tx_at, tc_count, txg_of
from plugin.kernel.zfs.vdev import (
    Vdev,
    VdevQueue,
    file_of,
    provider_of,
    vdev_at,
    vdev_queue,
    vdev_tree,
)
from plugin.kernel.zfs.zil import commit_waiter_at, lwb_at, zilog_name
from plugin.kernel.zfs.zio import QS_ACTIVE, QS_QUEUED, Bookmark, Zio, children, parents, try_zio
from plugin.kernel.zfs.zio import age as zio_age
from plugin.session import Kernel

PROVEN, INFERRED = "proven", "inferred"
#: zios followed: a pool with more under way than this is garbage
_MOST = 200_000
_MODULES = ("zfs.ko", "openzfs.ko")
#: how the functions begin through which a thread is inside ZFS, where it is no module
_FUNCTIONS = (
    *("zfs_", "zil_", "zvol_", "zio_", "dmu_", "dbuf_", "dsl_", "txg_", "spa_", "zap_", "sa_"),
    *("arc_", "vdev_", "dnode_", "space_map_", "metaslab_", "zpl_", "zthr_"),
)


# The pools' devices


class Leaf(NamedTuple):
    """A leaf vdev of a pool, and its queue (None where it cannot be read)."""

    spa: Spa
    vdev: Vdev
    queue: Optional[VdevQueue]


@cached(MEMORY)
def vdevs_of(kernel: Kernel, spa: int) -> List[Vdev]:
    """Every vdev of the pool (struct spa *), parents first."""
    found = spa_of(kernel, spa)
    return list(vdev_tree(kernel, found.root_vdev)) if found and found.root_vdev else []


@cached(MEMORY)
def leaves(kernel: Kernel) -> List[Leaf]:
    """The leaf vdevs of every pool with their queues."""
    return [
        Leaf(spa, vdev, vdev_queue(kernel, vdev.address))
        for spa in spas(kernel)
        for vdev in vdevs_of(kernel, spa.address)
        if vdev.leaf
    ]


# Every zio that can be reached


class Zios:
    """The zios of the machine: each once, with the trees they make.

    ``active`` and ``queued``: which queue (struct vdev *) has a zio; ``joined``: zio_null
    of a reader that waits for another's read -> that read.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.all: Dict[int, Zio] = {}
        self.children: Dict[int, List[int]] = {}
        self.parents: Dict[int, List[int]] = {}
        self.active: Dict[int, int] = {}
        self.queued: Dict[int, int] = {}
        self.joined: Dict[int, int] = {}
        self.bios: Dict[int, OutstandingBio] = {}
        self.by_bookmark: Dict[Bookmark, List[int]] = {}
        self._find()

    def _find(self) -> None:
        kernel = self.kernel
        if "zio" not in kernel.layouts or "zio_link" not in kernel.layouts:
            return
        for leaf in leaves(kernel):
            if leaf.queue is not None:
                self.active.update(dict.fromkeys(leaf.queue.active, leaf.vdev.address))
                self.queued.update(dict.fromkeys(leaf.queue.waiting, leaf.vdev.address))
        for request in geom_io.top_requests(kernel):
            origin = bio_origin(kernel, request.bio)
            if origin.address and origin.kind in ("zfs", "unknown"):
                self._carry(origin.address, request)
            elif request.bio.caller1 in self.active:
                self._carry(request.bio.caller1, request)
        self.reach([*self.active, *self.queued, *self.bios])
        for spa in spas(kernel):
            self.reach(throttled(kernel, spa.address))
        for spa in spas(kernel):
            if spa.suspended and spa.suspend_zio_root:
                self.reach([spa.suspend_zio_root])

    def _carry(self, zio: int, request: OutstandingBio) -> None:
        found = try_zio(self.kernel, zio)
        if found is not None and found.bio in (0, request.bio.address):
            self.bios.setdefault(zio, request)

    def reach(self, seeds: Iterable[int]) -> None:
        """Take in these zios and all above and below them."""
        kernel = self.kernel
        pending = [zio for zio in seeds if zio not in self.all]
        while pending:
            at = pending.pop()
            if at in self.all:
                continue
            zio = try_zio(kernel, at)
            if zio is None:
                continue
            if len(self.all) >= _MOST or (len(self.all) % 1024 == 1023 and kernel.interrupted()):
                kernel.warnings.add("zios", at, f"given up after {len(self.all)}")
                return
            self.all[at] = zio
            self.by_bookmark.setdefault(zio.bookmark, []).append(at)
            self.children[at] = children(kernel, at)
            self.parents[at] = parents(kernel, at)
            pending += self.children[at] + self.parents[at]
            if zio.type == "READ" and zio.private:
                for dummy, _ in arc.joined_reads(kernel, zio.private, at):
                    self.joined[dummy] = at

    def at(self, address: int) -> Optional[Zio]:
        """The zio at ``address``, taken in if it was not known yet."""
        self.reach([address])
        return self.all.get(address)

    def bottom(self, address: int) -> List[int]:
        """The zios at the bottom of the tree of ``address``, itself if it has no children."""
        self.reach([address])
        found: List[int] = []
        pending, seen = [address], set()
        while pending:
            at = pending.pop()
            if at in seen:
                continue
            seen.add(at)
            below = [child for child in self.children.get(at, ()) if child in self.all]
            if below:
                pending.extend(below)
            else:
                found.append(at)
        return sorted(found, key=lambda at: at not in self.active)

    def depth(self, top: int, bottom: int) -> int:
        """How many zios lie between the two on one way down."""
        steps, at = 0, bottom
        while at != top and steps < 32:
            above = self.parents.get(at) or []
            if not above:
                break
            at = top if top in above else above[0]
            steps += 1
        return max(steps - 1, 0)


@cached(MEMORY)
def zios(kernel: Kernel) -> Zios:
    """The machine's zios, as far as anything leads to them."""
    return Zios(kernel)


# Where one is

AT_DEVICE = "at the device"
QUEUED = "in the vdev's queue"
SUSPENDED = "suspended"
JOINED = "waits for another's read"
IN_HAND = "in a thread's hands"
IN_TASKQ = "in a task queue"
CHILDREN = "waits for its children"
THROTTLED = "in the allocation throttle"
UNKNOWN = "not known"


class Place(NamedTuple):
    """Where a zio at the bottom of a tree is.

    ``vdev`` the device it is for; ``bio`` what carries it; ``thread`` who has it in hand;
    ``other`` the zio it waits for; ``queue`` the task queue that has its next step.
    """

    state: str
    why: str
    certainty: str
    vdev: Optional[Vdev] = None
    bio: Optional[OutstandingBio] = None
    thread: Optional[Thread] = None
    other: int = 0
    queue: Optional[TaskQueue] = None


def place(kernel: Kernel, zio: Zio) -> Place:
    """Where a zio without children is, and by what that is known."""
    index = zios(kernel)
    spa = spa_of(kernel, zio.spa)
    if spa is not None and spa.suspended and _is_suspended(index, spa, zio.address):
        return Place(SUSPENDED, f"a child of {spa.name}'s spa_suspend_zio_root", PROVEN)
    vdev = vdev_at(kernel, zio.vd) if zio.vd else None
    bio = index.bios.get(zio.address)
    if zio.address in index.active or zio.queue_state == QS_ACTIVE or bio is not None:
        return _active(kernel, index, zio, vdev, bio)
    if zio.address in index.queued or zio.queue_state == QS_QUEUED:
        name = vdev.name if vdev else "its vdev"
        return Place(QUEUED, f"it waits in the queue of {name} ({zio.priority})", PROVEN, vdev)
    at_file = _at_file(kernel, zio, vdev)
    if at_file is not None:
        return at_file
    before = throttled(kernel, zio.spa).get(zio.address) if spa is not None else None
    if before is not None:
        return Place(THROTTLED, f"it waits for a slot to allocate, {before} before it", PROVEN)
    other = index.joined.get(zio.address)
    if other is not None:
        return Place(JOINED, "acb_zio_dummy of an arc_callback of that read", PROVEN, other=other)
    task = zio.address + kernel.layouts.offsetof("zio", "io_tqent")
    queue, running = of_task(kernel, task)
    if queue is not None:
        worker = worker_of(kernel, queue, running.busy) if running is not None else None
        where = "runs in" if running is not None else f"waits behind {queue.queued.index(task)} in"
        why = f"its task (io_tqent) {where} task queue {queue.name}"
        return Place(IN_TASKQ, why, PROVEN, vdev, thread=worker, queue=queue)
    holder = in_hand(kernel, zio.address)
    if holder is not None:
        return Place(
            IN_HAND,
            f"thread {holder.tid} {holder.label} has it on its stack",
            INFERRED,
            vdev,
            thread=holder,
        )
    return Place(
        UNKNOWN,
        f"io_stage {zio.stage_name}, on no queue of a vdev and on no thread's stack",
        INFERRED,
        vdev,
    )


def allocating(kernel: Kernel, spa: int) -> List[int]:
    """The pool's writes that have allocated and not ended (struct zio *): each holds a slot.

    Told by their stage, past ZIO_STAGE_DVA_ALLOCATE, and by having no vdev: the logical ones.
    """
    index = zios(kernel)
    allocate = kernel.layouts.constant("ZIO_STAGE_DVA_ALLOCATE", 0)
    return [
        zio.address
        for zio in index.all.values()
        if zio.spa == spa and zio.type == "WRITE" and not zio.vd and zio.stage > allocate > 0
    ]


def _is_suspended(index: Zios, spa: Spa, zio: int) -> bool:
    """A zio that zio_suspend() has hung below the pool's root of suspended ones."""
    root = spa.suspend_zio_root
    return bool(root) and (zio == root or root in index.parents.get(zio, ()))


def _active(
    kernel: Kernel, index: Zios, zio: Zio, vdev: Optional[Vdev], bio: Optional[OutstandingBio]
) -> Place:
    name = vdev.name if vdev else "its vdev"
    at_file = _at_file(kernel, zio, vdev)
    if at_file is not None:
        return at_file
    if bio is not None:
        why = f"bio {bio.bio.address:#x} carries it (bio_caller1)"
        return Place(AT_DEVICE, why, PROVEN, vdev, bio)
    holder = in_hand(kernel, zio.address)
    if holder is not None:
        return Place(
            IN_HAND,
            f"active at {name}; thread {holder.tid} {holder.label} has it on its stack",
            INFERRED,
            vdev,
            thread=holder,
        )
    file = file_of(kernel, vdev) if vdev is not None else None
    missing = f"no thread at {file.label} has it" if file else "no bio of it was found"
    return Place(AT_DEVICE, f"active in the queue of {name}; {missing}", PROVEN, vdev)


#: the task queue of file vdevs (13.0 on); before, whoever executes the zio does its I/O
_FILE_TASKQ = "z_vdev_file"


def _at_file(kernel: Kernel, zio: Zio, vdev: Optional[Vdev]) -> Optional[Place]:
    """A zio for a file: a task of z_vdev_file has it; None where no task has."""
    if vdev is None or vdev.type != "file":
        return None
    task = dispatched(kernel, _FILE_TASKQ).get(zio.address)
    if task is None:
        return None
    file = file_of(kernel, vdev)
    of = f" of {file.label}" if file is not None else f" of file {vdev.name}"
    where = "runs in" if task.position is None else f"waits behind {task.position} in"
    why = f"{task.function}(){of} {where} task queue {task.queue.name}"
    return Place(IN_TASKQ, why, PROVEN, vdev, thread=task.worker, queue=task.queue)


# Outstanding I/O


class Outstanding(NamedTuple):
    """A zio that a vdev's queue has: ``active`` (given to the device) or waiting there."""

    zio: Zio
    spa: Spa
    vdev: Vdev
    active: bool
    bio: Optional[OutstandingBio]
    age: Optional[float]


@cached(MEMORY)
def outstanding(kernel: Kernel) -> List[Outstanding]:
    """Every zio in the queue of a vdev, once; the oldest first."""
    index = zios(kernel)
    found = []
    for leaf in leaves(kernel):
        if leaf.queue is None:
            continue
        for address in dict.fromkeys([*leaf.queue.active, *leaf.queue.waiting]):
            zio = index.all.get(address)
            if zio is not None:
                active = address in index.active
                bio = index.bios.get(address)
                age = zio_age(kernel, zio)
                if age is None and bio is not None:
                    age = bio.age
                found.append(Outstanding(zio, leaf.spa, leaf.vdev, active, bio, age))
    return sorted(found, key=lambda each: -(each.age or 0.0))


def readers_of(kernel: Kernel, bookmark: Bookmark, dva: Optional[Tuple[int, int]]) -> List[int]:
    """The zios that are about a block: by its bookmark, else by where it lies on disk."""
    index = zios(kernel)
    own = [at for at in index.by_bookmark.get(bookmark, ()) if index.all[at].type != "NULL"]
    if own or dva is None:
        return own
    found = []
    for zio in index.all.values():
        if zio.type == "READ" and zio.bp and _dva(kernel, zio.bp) == dva:
            found.append(zio.address)
    return found


def _dva(kernel: Kernel, bp: int) -> Optional[Tuple[int, int]]:
    try:
        return kernel.unsigned(bp, 8), kernel.unsigned(bp + 8, 8)
    except MemoryFault:
        return None


def tops(kernel: Kernel, wanted: Iterable[int]) -> List[int]:
    """Of some zios those that are below no other of them."""
    index = zios(kernel)
    chosen = list(wanted)
    own: Set[int] = set(chosen)
    return [at for at in chosen if not own.intersection(index.parents.get(at, ()))] or chosen


# Threads inside ZFS


@cached(MEMORY)
def _module(kernel: Kernel) -> Optional[Tuple[int, int]]:
    try:
        for file in linker_files(kernel):
            if file.filename in _MODULES:
                return file.base, file.base + file.size
    except (MemoryFault, LayoutError):
        pass
    return None


@cached(MEMORY)
def _inside(kernel: Kernel, thread: Thread) -> bool:
    module = _module(kernel)
    for frame in frames(kernel, thread):
        if module is not None and module[0] <= frame.pc < module[1]:
            return True
        if frame.function.startswith(_FUNCTIONS):
            return True
    return False


@cached(MEMORY)
def threads_inside(kernel: Kernel) -> List[Thread]:
    """Threads one of whose frames lies in ZFS, by the module's address or its functions."""
    return [
        thread
        for thread in threads(kernel)
        if thread.kstack and thread.state != "zombie" and _inside(kernel, thread)
    ]


#: who is in one of these does the I/O of a file, and may wait for a zio of another pool
_OF_FILES = ("vdev_file_io_strategy", "vdev_file_io_start")


def in_hand(kernel: Kernel, zio: int) -> Optional[Thread]:
    """The thread inside ZFS that works on a zio, and does not merely wait for it."""
    for thread in threads_inside(kernel):
        if not kernel_stack_holds(kernel, thread, zio):
            continue
        waits = (thread.wmesg or "").startswith(("zio->io_cv", "zcw->zcw_cv"))
        if not waits or any(f.function.startswith(_OF_FILES) for f in frames(kernel, thread)):
            return thread
    return None


class TxHolder(NamedTuple):
    """A thread that has a transaction of a pool on its stack."""

    thread: Thread
    tx: DmuTx


def transactions(kernel: Kernel, txg: Txg) -> List[TxHolder]:
    """Threads inside ZFS with a dmu_tx of this pool on their stacks, each with what it is."""
    return list(_transactions(kernel, txg.dsl_pool, txg))


def _transactions(kernel: Kernel, pool: int, txg: Txg) -> Iterator[TxHolder]:
    for thread in threads_inside(kernel):
        for word in sorted(stack_words(kernel, thread)):
            if not kernel.is_kernel_address(word) or word % kernel.pointer_size:
                continue
            if thread.kstack <= word < thread.kstack + thread.kstack_size or word == pool:
                continue
            tx = dmu_tx_at(kernel, word, txg)
            if tx is not None:
                yield TxHolder(thread, tx)
                break


class OpenTxg(NamedTuple):
    """Who holds a txg open: the threads found, and how many tx_cpu[] counts (None: unread)."""

    number: int
    holders: List[TxHolder]
    counted: Optional[int]

    @property
    def missing(self) -> int:
        """Transactions counted of which no thread was found."""
        return max((self.counted or 0) - len(self.holders), 0)


@cached(MEMORY)
def holders_of(kernel: Kernel, dsl_pool: int, number: int) -> Optional[OpenTxg]:
    """Who holds txg ``number`` of a pool (struct dsl_pool *) open; None where it is unread."""
    txg = txg_of(kernel, dsl_pool)
    if txg is None:
        return None
    counts = tc_count(kernel, txg, number)
    counted = None if counts is None else sum(each.number for each in counts)
    if counted == 0:
        return OpenTxg(number, [], 0)
    held = [each for each in transactions(kernel, txg) if each.tx.open and each.tx.txg == number]
    return OpenTxg(number, held, counted)


def range_holders(kernel: Kernel, locked: int, waiting: Iterable[int]) -> List[Thread]:
    """Threads inside ZFS that have a locked range on their stacks and do not wait for it."""
    left = set(waiting)
    return [
        thread
        for thread in threads_inside(kernel)
        if thread.address not in left and kernel_stack_holds(kernel, thread, locked)
    ]


def pool_of_stack(kernel: Kernel, thread: Thread) -> Optional[Tuple[Spa, str]]:
    """The pool that a thread inside ZFS is at work for, and by what that is told.

    "" where only one pool exists; None for a thread that is not inside ZFS, and where
    nothing on its stack tells which of several pools it is.
    """
    if not _inside(kernel, thread):
        return None
    found = spas(kernel)
    own: Dict[int, Tuple[Spa, str]] = {}
    for spa in found:
        own[spa.address] = spa, "the spa"
        own[spa.dsl_pool] = spa, "the dsl_pool"
    words = [word for word in sorted(stack_words(kernel, thread)) if word]
    for word in words:
        if word in own:
            spa, what = own[word]
            return spa, f"{what} {word:#x} of pool {spa.name} is on its stack"
    for word in words:
        if not kernel.is_kernel_address(word) or word % kernel.pointer_size:
            continue
        for struct, member in (("zilog", "zl_spa"), ("objset", "os_spa"), ("zio", "io_spa")):
            at = try_peek(kernel, struct, word, member, 0)
            if at in own:
                return own[at][0], f"{struct} {word:#x} of pool {own[at][0].name} is on its stack"
    return (found[0], "") if len(found) == 1 else None


def zilogs_of_stack(kernel: Kernel, thread: Thread) -> List[int]:
    """The logs (struct zilog *) that a thread has on its stack: of a pool, and their objset's."""
    known = {spa.address for spa in spas(kernel)}
    found = []
    for word in sorted(stack_words(kernel, thread)):
        if not kernel.is_kernel_address(word) or word % kernel.pointer_size:
            continue
        if try_peek(kernel, "zilog", word, "zl_spa", 0) in known:
            objset = try_peek(kernel, "zilog", word, "zl_os", 0)
            if objset and try_peek(kernel, "objset", objset, "os_zil", 0) == word:
                found.append(word)
    return found


# Pools that do not go on


class Trouble(NamedTuple):
    """A suspended pool: what is said of it, by what, and for how long (seconds or None)."""

    spa: Spa
    summary: str
    evidence: str
    since: Optional[float]


@cached(MEMORY)
def suspended(kernel: Kernel) -> List[Trouble]:
    """Every suspended pool, with the vdevs that failed and the I/O that waits."""
    return [_trouble(kernel, spa) for spa in spas(kernel) if spa.suspended]


def suspended_on(kernel: Kernel, provider: Provider) -> Optional[Trouble]:
    """The suspended pool that has a vdev on ``provider`` or on what is made of it, else None."""
    for trouble in suspended(kernel):
        for vdev in vdevs_of(kernel, trouble.spa.address):
            below = provider_of(kernel, vdev) if vdev.leaf else None
            seen: Set[int] = set()
            while below is not None and below.address not in seen:
                if below.address == provider.address:
                    return trouble
                seen.add(below.address)
                geom = below.geom
                consumer = geom.consumers[0] if geom is not None and geom.consumers else None
                below = consumer.provider if consumer is not None else None
    return None


def _trouble(kernel: Kernel, spa: Spa) -> Trouble:
    index = zios(kernel)
    held = index.children.get(spa.suspend_zio_root, [])
    ill = [
        vdev
        for vdev in vdevs_of(kernel, spa.address)
        if vdev.leaf and (vdev.state not in ("HEALTHY", "7") or vdev.cant_read or vdev.cant_write)
    ]
    failed = {index.all[at].vd for at in held if at in index.all and index.all[at].vd}
    names = [vdev.name for vdev in ill] or [
        vdev.name for vdev in vdevs_of(kernel, spa.address) if vdev.address in failed
    ]
    if not names:
        names = [vdev.name for vdev in vdevs_of(kernel, spa.address) if vdev.leaf]
        # With one device there is no doubt which it was.
        names = names if len(names) == 1 else []
    mode = f", failmode={spa.failmode}" if spa.failmode else ""
    by = f" of {', '.join(names)}" if names else ""
    why = "another host has it (MMP)" if spa.suspended == "MMP" else f"I/O failures{by}"
    ages = [age for at in held if at in index.all for age in [zio_age(kernel, index.all[at])]]
    known = [age for age in ages if age is not None]
    errors = sorted({index.all[at].error for at in held if at in index.all and index.all[at].error})
    evidence = f"spa_suspended {spa.suspended}; {len(held)} zios below spa_suspend_zio_root"
    if errors:
        evidence += f", io_error {', '.join(map(str, errors))}"
    if ill:
        evidence += "; " + ", ".join(f"{vdev.name} is {vdev.state}" for vdev in ill)
    since = max(known) if known else spa.sync_age
    summary = f"ZFS pool {spa.name} is suspended after {why}{mode}: zpool clear resumes it"
    return Trouble(spa, summary, evidence, since)


# Who waits inside ZFS


class Waiter(NamedTuple):
    """A thread that sleeps inside ZFS: for what, and of which pool (None: not told)."""

    thread: Thread
    what: str
    spa: Optional[int]


@cached(MEMORY)
def waiters(kernel: Kernel) -> List[Waiter]:
    """The threads that sleep in ZFS's functions or on its condition variables, oldest first."""
    found = []
    known = {spa.address: spa for spa in spas(kernel)}
    for thread in threads_inside(kernel):
        if thread.state != "sleeping" or _is_idle(thread):
            continue
        what, spa = _waits_for(kernel, thread)
        if spa is None and len(known) == 1:
            spa = next(iter(known))
        found.append(Waiter(thread, what, spa))
    return sorted(found, key=lambda each: -(each.thread.age or 0.0))


#: what ZFS's own service threads sleep on while there is nothing to do
_IDLE = (
    *(
        "-",
        "zevent_cv",
        "tx->tx_quiesce_more_cv",
        "tx->tx_sync_more_cv",
        "t->zthr_cv",
        "dbuf_evict_cv",
    ),
    *("l2arc_feed_thr_cv", "arc_reclaim_thr_cv", "spa->spa_async_cv", "mmp->mmp_thread_cv"),
)


def _is_idle(thread: Thread) -> bool:
    return thread.wmesg in _IDLE or not thread.wchan


def _waits_for(kernel: Kernel, thread: Thread) -> Tuple[str, Optional[int]]:
    layouts, wmesg, wchan = kernel.layouts, thread.wmesg or "", thread.wchan or 0
    try:
        if wmesg.startswith("zio->io_cv") and layouts.has("zio", "io_cv"):
            return _zio_words(kernel, wchan - layouts.offsetof("zio", "io_cv"))
        if wmesg.startswith("db->db_changed"):
            dbuf = dbuf_at(kernel, wchan - layouts.offsetof("dmu_buf_impl", "db_changed"))
            objset = peek(kernel, "dmu_buf_impl", dbuf.address, "db_objset")
            return f"{dbuf.label} ({dbuf.state})", try_peek(kernel, "objset", objset, "os_spa")
        if wmesg.startswith("zcw->zcw_cv"):
            waiter = commit_waiter_at(
                kernel, wchan - layouts.offsetof("zil_commit_waiter", "zcw_cv")
            )
            if not waiter.lwb:
                return "the log, no block yet", None
            lwb = lwb_at(kernel, waiter.lwb)
            name = zilog_name(kernel, lwb.zilog)
            spa = try_peek(kernel, "zilog", lwb.zilog, "zl_spa")
            return f"log block {lwb.address:#x} of {name} ({lwb.state})", spa
        for member in ("tx_sync_done_cv", "tx_quiesce_done_cv"):
            if member in wmesg:
                tx = wchan - layouts.offsetof("tx_state", member)
                pool = tx - layouts.offsetof("dsl_pool", "dp_tx")
                word = "synced" if "sync" in member else "opened"
                return f"a txg to be {word}", try_peek(kernel, "dsl_pool", pool, "dp_spa")
    except (MemoryFault, LayoutError):
        pass
    return f'"{wmesg}"', None


def _zio_words(kernel: Kernel, address: int) -> Tuple[str, Optional[int]]:
    index = zios(kernel)
    zio = index.at(address)
    if zio is None:
        return f"zio {address:#x}, which cannot be read", None
    below = index.bottom(address)
    at = sum(1 for each in below if each in index.active)
    return f"zio {address:#x}: {len(below)} below it, {at} at a device", zio.spa


# Whether there is any ZFS


class Presence(NamedTuple):
    """``loaded``: this kernel has ZFS; ``readable``: its structures can be walked."""

    loaded: bool
    readable: bool
    why: str


@cached(MEMORY)
def presence(kernel: Kernel) -> Presence:
    """Whether the kernel has ZFS and wchan can read it, and by what that is known."""
    known = all(name in kernel.layouts for name in ("spa", "zio", "vdev", "avl_tree"))
    if spas(kernel):
        return Presence(True, known, "pools were found")
    mounted = any(mount.fstype == "zfs" for mount in mounts(kernel))
    if _module(kernel) is None and kernel.symbol("spa_namespace_avl") is None and not mounted:
        return Presence(False, known, "no zfs.ko is loaded, none is built in and none is mounted")
    if not known:
        return Presence(True, False, "no layouts of its structures are known for this kernel")
    if kernel.symbol("spa_namespace_avl") is None:
        return Presence(
            True, False, "no symbol spa_namespace_avl, and no ZFS mount leads to a pool"
        )
    return Presence(True, True, "spa_namespace_avl is empty")
