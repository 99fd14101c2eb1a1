"""The first report: a storage deadlock behind a shortage of memory (i386, 7.0-CURRENT).

Everything the report prints is here with the same figures and, where the
layouts of 700014 allow, at the same addresses.  What it is silent on is
chosen so that the sources of that time lead to what it prints:

* g_io_request() counts nstart and devstat *before* it queues a bio
  (sys/geom/geom_io.c), so the 396 requests in flight at da0 are those queued
  for da0, the one in g_down's hand, and whatever the disk holds.  Here the disk
  holds none: 395 queued + 1 in hand = 396.  A disk that had returned nothing
  for minutes would have said so; g_down is asleep because it paces itself.
* pace counts failures with ENOMEM since g_down last slept.  The report looks
  for them in g_io_check(), where they cannot come from; they come from
  g_slice_start() and g_disk_start(), which clone every bio they pass on with
  g_clone_bio(), M_NOWAIT.  g_io_deliver() then ends the request (nend), makes it
  anew at the tail of the queue (nstart) and adds one to pace.  So the whole
  queue goes round at ten bios a second, each failing again.
* M_NOWAIT is VM_ALLOC_INTERRUPT in kmem_malloc(), which fails only when not a
  page is free: v_free_count is 0 here, the cache queue empty.
* acr 3, acw 3, ace 5 with one consumer: three open partitions, two of them file
  systems (r1 w1 e1), one swap (r1 w1 e0), and one exclusive count more for each
  slicer's first open (g_slice_access()): two BSD labels and the MBR.
* The page daemon writes asynchronously (swap_pager_putpages() is synchronous
  for everybody else), so it waits for nsw_wcount_async, which is 4.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

from tests.forge.bufs import BIO_READ, BIO_WRITE, Buf
from tests.forge.geom import Bio
from tests.forge.machine import Machine
from tests.forge.procs import Call, Thread
from tests.forge.vfs import Mount, Vnode
from tests.forge.vm import SwapDevice

# What the report prints.
QUEUED = 559
NSTART, NEND = 6007328, 6006932
MEDIASIZE = 36703933440
PACE = 1
_FIRST, _LAST = 0xC38DA318, 0xC38DA248
_DA0_GEOM, _DA0, _DA0_STAT, _DA0_CONSUMER = 0xC258C780, 0xC258C880, 0xC25C35A0, 0xC24671C0
_G_DOWN, _G_DOWN_STACK = 0xC2275480, 0xE35DF000
#: function: (start, pc in it); of the starts only g_down_procbody's is in the report
_TEXT = {
    "sched_switch": (0xC06537F0, 0xC0653933),
    "mi_switch": (0xC0649020, 0xC0649178),
    "sleepq_switch": (0xC06606F0, 0xC066075C),
    "sleepq_timedwait": (0xC0660974, 0xC06609BC),
    "msleep": (0xC0648B60, 0xC0648DC2),
    "g_io_schedule_down": (0xC06068A8, 0xC0606958),
    "g_down_procbody": (0xC0606E5C, 0xC0606EB6),
    "fork_exit": (0xC0630300, 0xC06303BC),
    "fork_trampoline": (0xC07F5F94, 0xC07F5F9C),
}

# What it leaves open: of 560 requests one is in g_down's hand, the others are queued.
TO_DA0 = 395
TO_SLICES = 100
READERS, FAULTERS, WAITERS, LOCKERS = 60, 84, 96, 20
SWAP_WRITES = 4
#: seconds a bio has waited in the queue at most, at ten a second
_ROUND = QUEUED / 10


def storage_deadlock(at_device: int = 0) -> Machine:
    """The machine of the first report.

    ``at_device`` of the 396 requests in flight at da0, 16 at most, are with the
    disk, for a machine whose disk is not without guilt; as many more stand in
    the queue for the partitions, which stays 559 long.
    """
    m = Machine(700014, "i386", ram=128 << 20, hz=1000, uptime=11220.0, time=1130782500)
    _as_printed(m)
    root, stress, swap = _disks(m)
    pagedaemon = m.services["pagedaemon"]
    requests = _swap_writes(m, swap)
    m.bufs.pool_waited_by("nsw_wcount_async", _pageout(pagedaemon), seconds=1210)
    readers, reads = _readers(m, stress)
    requests += reads
    requests += _writes(m, root, stress, 1 + QUEUED + at_device - len(requests))
    _send(m, requests, at_device)
    _g_down(m)
    _starved(m, stress, readers)
    _out_of_memory(m)
    m.cast.update(pagedaemon=pagedaemon, g_down=m.services["g_down"])
    m.expected.update(
        queued=QUEUED,
        in_flight=NSTART - NEND,
        queued_for_da0=TO_DA0 - at_device,
        in_hand=1,
        at_device=at_device,
        vmwait=WAITERS,
        pfault=FAULTERS,
        biord=READERS,
        ufs=LOCKERS,
        pool="nsw_wcount_async",
        pool_limit=4,
        pool_used=SWAP_WRITES,
    )
    return m


def _as_printed(m: Machine) -> None:
    """Text and strings where the report's backtrace has them; the stack of g_down."""
    for name, (start, pc) in _TEXT.items():
        m.function(name, at=start, size=(pc - start + 0x40) & ~0xF, site=pc - start)
    m.string("g_down", at=0xC08695B3)
    for bio in (_FIRST, _last_bio(m)):
        m.zones["bio"].keep(bio)
    m.services.pin(
        "g_down",
        at=_G_DOWN,
        kstack=_G_DOWN_STACK,
        calls=(
            Call("g_io_schedule_down", fp=0xE35E0D00),
            Call("g_down_procbody", fp=0xE35E0D0C),
        ),
    )


def _disks(m: Machine) -> Tuple[Mount, Mount, SwapDevice]:
    """da0 with two slices: / and swap on the first, the file system under test on the second."""
    da0 = m.geom.disk(
        "da", 0, mediasize=MEDIASIZE, geom_at=_DA0_GEOM, provider_at=_DA0, stat_at=_DA0_STAT
    )
    da0.provider.finished = NEND
    da0.finished = NEND
    sector, gigabyte = 512, 1 << 30
    first = 4 * gigabyte
    mbr = m.geom.slice(
        "MBR",
        da0,
        {
            "da0s1": (63 * sector, first),
            "da0s2": (63 * sector + first, MEDIASIZE - first - 64 * sector),
        },
        consumer_at=_DA0_CONSUMER,
    )
    label = m.geom.slice(
        "BSD",
        mbr.provider("da0s1"),
        {"da0s1a": (0, 3 * gigabyte), "da0s1b": (3 * gigabyte, gigabyte)},
    )
    other = m.geom.slice(
        "BSD", mbr.provider("da0s2"), {"da0s2d": (0, mbr.provider("da0s2").mediasize)}, index=3
    )
    for geom, count in ((mbr, 6006400), (label, 2406100), (other, 3600300)):
        for provider in geom.providers:
            provider.finished = count // len(geom.providers)
    root = m.vfs.ffs("/", m.geom.vfs(label.provider("da0s1a")))
    swap = m.vm.swap_device(m.geom.swap(label.provider("da0s1b")), used=61440)
    stress = m.vfs.ffs("/stress", m.geom.vfs(other.provider("da0s2d")))
    return root, stress, swap


# I/O: what it is for, then how far it has come


def _swap_writes(m: Machine, swap: SwapDevice) -> List[Bio]:
    """Four clusters of 16 pages each: all that the page daemon may have under way."""
    memory = m.vm.object("swap", size=4096)
    requests = []
    for number in range(SWAP_WRITES):
        pages = [memory.page(number * 16 + i, dirty=0xFF, queue="inactive") for i in range(16)]
        write = m.bufs.swap_write(swap, 2048 + number * 16, pages, seconds=1215 - number)
        requests.append(_bio(write))
    memory.paging(SWAP_WRITES * 16)
    return requests


def _readers(m: Machine, stress: Mount) -> Tuple[List[Tuple[Thread, Vnode]], List[Bio]]:
    """Processes in bread(), each with its vnode locked, and the reads they wait for."""
    readers, requests = [], []
    for number in range(READERS):
        vnode = m.vfs.vnode(stress)
        name = ("rw", "symlink", "rename")[number % 3]
        calls = ("bread", "ffs_read", "VOP_READ_APV", "vn_read", "dofileread", "kern_readv", "read")
        reader = m.procs.process(name).thread(calls=calls)
        vnode.lock.owned_by(reader)
        pages = [vnode.object(64).page(i, valid=0, queue=None) for i in range(4)]
        for page in pages:
            page.shared_busied()
        read = m.bufs.buf(
            vnode, 0, blkno=200_000 + number * 960, cmd=BIO_READ, owner=reader, pages=pages
        )
        requests.append(m.bufs.start(read, stress, seconds=1180 - number))
        read.waited_by(reader, "biord", seconds=1180 - number)
        readers.append((reader, vnode))
    return readers, requests


def _writes(m: Machine, root: Mount, stress: Mount, count: int) -> List[Bio]:
    """Delayed writes on their way out, in fragments of 2 KB: less than hirunningspace."""
    requests = []
    vnodes = {mount.on: [m.vfs.vnode(mount) for _ in range(16)] for mount in (root, stress)}
    for number in range(count):
        mount = root if number % 5 == 0 else stress
        vnode = vnodes[mount.on][number % 16]
        index = number // 16 * 2
        page = vnode.object(256).page(number // 16, dirty=0xFF, queue="inactive")
        page.shared_busied()
        write: Buf = m.bufs.buf(
            vnode, index, blkno=900_000 + number * 64, size=2048, cmd=BIO_WRITE, pages=[page]
        )
        requests.append(m.bufs.start(write, mount, seconds=1200 - number))
    return requests


def _send(m: Machine, requests: Sequence[Bio], at_device: int) -> None:
    """Down through the slicers as far as the 395, the 100 and the rest have come.

    The queue goes round: what is first has waited longest since its last failure.
    """
    bottom, middle, top = [], [], []
    for number, bio in enumerate(_mixed(requests)):
        if number < TO_DA0 + 1:
            bottom.append(_to_da0(m, bio, number))
        elif number < TO_DA0 + 1 + TO_SLICES:
            middle.append(bio.passed()[0])
        else:
            top.append(bio)
    in_hand = bottom.pop(7)
    for _ in range(at_device):
        bottom.pop(20).to_device()
    m.geom.down.extend(_merged(bottom, middle, top))
    for position, bio in enumerate(m.geom.down):
        m.geom.stamp(bio, _ROUND - position / 10)
    m.geom.stamp(in_hand, _ROUND)
    m.geom.in_hand = in_hand
    m.geom.pace = PACE
    m.zones["bio"].fails = 12 * 1020


def _to_da0(m: Machine, bio: Bio, number: int) -> Bio:
    """Clones to the slice and to da0; the first and last of the queue lie where they did."""
    return bio.down_to("da0", at={0: _FIRST, TO_DA0: _last_bio(m)}.get(number))


def _last_bio(m: Machine) -> int:
    """tqh_last is the address of the last bio's link, not of the bio."""
    return _LAST - m.locate("bio", "bio_queue").offset


def _mixed(requests: Sequence[Bio]) -> List[Bio]:
    """Swap writes, reads and writes in turn, not sorted by who made them."""
    return [requests[i * 9 % len(requests)] for i in range(len(requests))]


def _merged(bottom: List[Bio], middle: List[Bio], top: List[Bio]) -> List[Bio]:
    """One queue of three kinds, evenly spread, that begins and ends with requests to da0."""
    rest = [bio for pair in zip(middle, top) for bio in pair]
    rest += middle[len(top) :] + top[len(middle) :]
    queue, taken = [], 0
    for position, bio in enumerate(bottom):
        queue.append(bio)
        due = (position + 1) * len(rest) // len(bottom)
        if position < len(bottom) - 1:
            queue.extend(rest[taken:due])
            taken = due
    last = queue.pop()
    return [*queue, *rest[taken:], last]


# Threads


def _pageout(thread: Thread) -> Thread:
    return thread.call(
        "swap_pager_putpages", "vm_pageout_flush", "vm_pageout_clean", "vm_pageout_scan"
    )


def _g_down(m: Machine) -> None:
    """Pacing: asleep on the address of its local variable ``error``, which is 0."""
    thread = m.services["g_down"]
    error = thread.local("g_io_schedule_down", 0xC)
    m.write_int(error, 0, 4)
    m.write_pointer(thread.local("g_io_schedule_down", 0x8), m.geom.in_hand)
    # PRIBIO
    thread.sleeps(error, "g_down", seconds=0.04, timeout=0.1, priority=76)


def _starved(m: Machine, stress: Mount, readers: Sequence[Tuple[Thread, Vnode]]) -> None:
    """Who waits for a page, and who waits for a vnode that one of those has locked."""
    write = ("dofilewrite", "kern_writev", "write")
    growing = ("allocbuf", "getblk", "ffs_balloc_ufs2", "ffs_write", "VOP_WRITE_APV", "vn_write")
    forking = ("kmem_malloc", "page_alloc", "slab_zalloc", "uma_zone_slab", "uma_zalloc_arg")
    for number in range(WAITERS):
        if number % 3:
            thread = m.procs.process(("rw", "creat")[number % 2]).thread(calls=growing + write)
            vnode = m.vfs.vnode(stress)
            vnode.lock.owned_by(thread)
        else:
            thread = m.procs.process("mkdir").thread(calls=(*forking, "fork1", "fork"))
        m.vm.waited_by(thread, "vmwait", seconds=1150 - number)
    for number in range(FAULTERS):
        process = m.procs.process(("swap", "mmap")[number % 2])
        thread = process.thread(calls=("vm_fault", "trap_pfault"), entry="fault")
        m.vm.waited_by(thread, "pfault", seconds=1100 - number)
    lookup = ("vn_lock", "vget", "ufs_ihashget", "ffs_vget", "ufs_lookup", "lookup", "namei")
    for number in range(LOCKERS):
        _, vnode = readers[number % 10]
        thread = m.procs.process("mkdir").thread(calls=(*lookup, "kern_mkdir", "mkdir"))
        vnode.lock.slept_on_by(thread, seconds=1000 - number)
    shell = m.procs.process("sh")
    shell.thread(calls=("kern_wait", "wait4")).sleeps(
        shell, "wait", interruptible=True, seconds=9000
    )


def _out_of_memory(m: Machine) -> None:
    """Not one page free, none cached: what makes M_NOWAIT allocations fail."""
    m.vm.set_counts(free=0, cache=0, inactive=7800)
    m.assign("vm_pages_needed", 1)
    m.assign("vm_pageout_deficit", 1340)
    m.message("da0 at ahc0 bus 0 target 0 lun 0")
    m.message("da0: 35003MB (71687370 512 byte sectors: 255H 63S/T 4462C)")
    m.message("Mounting root from ufs:/dev/da0s1a")


def _bio(buf: Buf) -> Bio:
    if buf.bio is None:
        raise ValueError(f"{buf!r} has no I/O under way")
    return buf.bio
