"""The buffer cache and the pbufs, each kernel's pools with their limits.

Mirrors sys/sys/buf.h, sys/kern/vfs_bio.c, sys/vm/vm_pager.c, swap_pager.c and
vnode_pager.c, 7.0-CURRENT of 2006 to 15.0.  Up to 12.x pbufs are an array with a
free list and a counter per user; from 13.0 they are UMA zones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence

from plugin.errors import UsageError
from tests.forge.builder import Obj
from tests.forge.locks import Lockmgr
from tests.forge.memory import PAGE_SIZE
from tests.forge.uma import Zone

if TYPE_CHECKING:
    from tests.forge.geom import Bio
    from tests.forge.machine import Machine
    from tests.forge.procs import Thread
    from tests.forge.vfs import Mount, Vnode
    from tests.forge.vm import Page, SwapDevice

B_ASYNC, B_INVAL = 0x4, 0x2000
BIO_READ, BIO_WRITE = 1, 2
_BKVASIZE = 16384


class Buf:
    """A struct buf in use."""

    def __init__(self, bufs: Bufs, obj: Obj, lock: Lockmgr) -> None:
        self.bufs = bufs
        self.obj = obj
        self.lock = lock
        self.bio: Optional[Bio] = None
        self.pool: Optional[Pool] = None

    def __index__(self) -> int:
        return self.obj.address

    def waited_by(self, thread: Thread, wmesg: str = "biord", **how: Any) -> Buf:
        """A thread in bufwait(): its wait channel is the buf."""
        calls = ("bwait", "bufwait") if wmesg in ("biord", "biowr") else ("bwait",)
        thread.call(*calls)
        thread.sleeps(self, wmesg, **how)
        return self


class Pool:
    """A pool of pbufs: a counter of those left (to 12.x) or a zone with a limit."""

    def __init__(self, name: str, symbol: str, limit: int, zone: Optional[Zone]) -> None:
        self.name = name
        self.symbol = symbol
        self.limit = limit
        self.zone = zone
        self.used: List[Buf] = []


class Bufs:
    """All bufs of the machine."""

    def __init__(self, machine: Machine, nbuf: int = 0) -> None:
        m = self.machine = machine
        self.nbuf = nbuf or _nbuf(m.map.ram[1] - m.map.ram[0], m.osreldate)
        self.nswbuf = max(min(self.nbuf // 4, 256), 16)
        self.used: List[Buf] = []
        self.pools: Dict[str, Pool] = {}
        self.running = 0
        #: bufs of the cache nobody has, pbufs nobody has, in order
        self.idle: List[Obj] = []
        self.free_pbufs: List[Obj] = []
        self._array()
        self._symbols()
        self._pbufs()

    # The cache

    def _array(self) -> None:
        m = self.machine
        size = m.sizeof("buf")
        if m.osreldate >= 1300000:
            # b_pages became a tail: room for atop(maxbcachebuf) pointers follows each buf.
            size += 65536 // PAGE_SIZE * m.pointer_size
        base = m.arenas["kva"].take(size * self.nbuf, PAGE_SIZE)
        m.space.touch(base, size * self.nbuf)
        template = m.new("buf", arena="kva", size=size)
        self._initialize(template, "bufwait")
        queue = m.constant("QUEUE_EMPTY", 4)
        template.set(b_flags=B_INVAL, b_qindex=queue)
        raw = m.space.read(template.address, size)
        for number in range(self.nbuf):
            at = base + number * size
            m.space.write(at, raw)
            self.idle.append(Obj(m, "buf", at, m.sizeof("buf")))
        m.variable("buf", base, static=m.osreldate >= 1100000)
        m.variable("nbuf", self.nbuf, size=4)

    def _initialize(self, buf: Obj, name: str) -> None:
        m = self.machine
        lock = buf.sub("b_lock")
        if lock.has("lk_lockholder"):
            # LK_NOPROC
            lock.set(lk_wmesg=name, lk_lockholder=-1, lk_prio=80)
        else:
            m.locks.initialize(lock, "lockmgr", name)
            lock["lk_lock"] = 1
            lock.probe(lk_pri=80)

    def _symbols(self) -> None:
        m = self.machine
        long_ = m.pointer_size if m.osreldate >= 900000 else 4
        space = self.nbuf * _BKVASIZE
        for name, value, static in (
            ("lobufspace", space * 9 // 10, True),
            ("hibufspace", space * 95 // 100, False),
            ("maxbufspace", space, True),
        ):
            m.variable(name, value, size=long_, static=static)
        m.variable("lorunningspace", 524288, size=long_, static=True)
        self.hirunningspace = 1048576
        m.variable("hirunningspace", self.hirunningspace, size=long_, static=True)
        m.variable("runningbufspace", 0, size=long_)
        m.variable("runningbufreq", 0, size=4, static=True)
        m.variable("bd_request", 0, size=4, static=True)
        m.variable("lodirtybuffers", self.nbuf // 8, size=4, static=True)
        m.variable("hidirtybuffers", self.nbuf // 4 + 20, size=4, static=True)
        if m.osreldate < 1200000:
            m.variable("numdirtybuffers", 0, size=4, static=True)
            m.variable("numfreebuffers", 0, size=4, static=True)
            m.variable("bufspace", 0, size=long_, static=True)
            m.variable("needsbuffer", 0, size=4, static=True)
            count = m.constant("QUEUE_EMPTY", 4) + 1
            self.queues = m.symbol(
                "bufqueues", size=count * 2 * m.pointer_size, static=True, align=16
            )
        else:
            domains = m.constant("BUF_DOMAINS", 8)
            self.bdomain = m.symbol("bdomain", "bufdomain", count=domains, align=64)
            m.variable("buf_domains", 1, size=4, static=True)
            self.empty = m.symbol("bqempty", "bufqueue", align=64)
            if self.bdomain.has("bd_subq") and m.locate("bufdomain", "bd_subq").is_pointer:
                self.subqueues = m.array("bufqueue", m.cpus + 1)
                self.bdomain["bd_subq"] = self.subqueues[0]
            else:
                self.subqueues = [
                    m.view("bufqueue", self.bdomain.at(f"bd_subq[{n}]")) for n in range(m.cpus + 1)
                ]
        if m.osreldate >= 1000000:
            m.variable("bdirtywait", 0, size=4, static=True)

    def buf(
        self,
        vnode: Optional[Vnode],
        lblkno: int,
        *,
        blkno: Optional[int] = None,
        size: int = 16384,
        cmd: int = BIO_READ,
        owner: Optional[Thread] = None,
        pages: Sequence[Page] = (),
    ) -> Buf:
        """A buffer out of the cache, locked by ``owner``, by nobody but I/O without one."""
        if not self.idle:
            raise UsageError("no buffer is left")
        obj = self.idle.pop()
        return self._take(obj, vnode, lblkno, blkno, size, cmd, owner, pages, "bufwait", self.used)

    def _take(
        self,
        obj: Obj,
        vnode: Optional[Vnode],
        lblkno: int,
        blkno: Optional[int],
        size: int,
        cmd: int,
        owner: Optional[Thread],
        pages: Sequence[Page],
        name: str,
        into: List[Buf],
    ) -> Buf:
        m = self.machine
        lock = m.locks.lockmgr(name, at=obj.at("b_lock"))
        if owner is not None:
            lock.owned_by(owner)
        else:
            lock.owned_by_io()
        made = Buf(self, obj, lock)
        block = lblkno * size // 512 if blkno is None else blkno
        flags = 0 if owner is not None else B_ASYNC
        obj.set(
            b_bcount=size,
            b_bufsize=size,
            b_lblkno=lblkno,
            b_blkno=block,
            b_iocmd=cmd,
            b_flags=flags,
            b_qindex=0,
            b_offset=lblkno * size,
            b_iooffset=block * 512,
        )
        if vnode is not None:
            obj.set(b_vp=vnode, b_bufobj=vnode.bufobj)
        self._pages(obj, pages)
        # Where the data would be mapped: an address of the buffer map, never written here.
        obj["b_data"] = (m.map.stacks + 0x20000000 + len(into) * 65536) & (
            (1 << 8 * m.pointer_size) - 1
        )
        into.append(made)
        return made

    def _pages(self, obj: Obj, pages: Sequence[Page]) -> None:
        base = obj.at("b_pages")
        for index, page in enumerate(pages):
            self.machine.write_pointer(base + index * self.machine.pointer_size, page)
        obj["b_npages"] = len(pages)

    def start(self, buf: Buf, mount: Mount, seconds: float = 60.0, at: Optional[int] = None) -> Bio:
        """g_vfs_strategy(): the buffer's bio to the file system's provider."""
        if mount.consumer is None:
            raise UsageError(f"{mount.on} is on no device")
        obj = buf.obj
        bio = self.machine.geom.request(
            mount.consumer,
            obj["b_iocmd"],
            obj["b_iooffset"],
            obj["b_bcount"],
            done="g_vfs_done",
            caller2=buf,
            data=obj["b_data"],
            seconds=seconds,
            at=at,
        )
        buf.bio = bio
        if "g_vfs_softc" in self.machine.layouts:
            # g_vfs_strategy() counts it until g_vfs_done().
            softc = self.machine.view("g_vfs_softc", mount.consumer.geom.obj["softc"])
            softc["sc_active"] = softc["sc_active"] + 1
        if obj["b_iocmd"] == BIO_WRITE:
            obj["b_runningbufspace"] = obj["b_bcount"]
            self.running += obj["b_bcount"]
            if obj["b_bufobj"]:
                bufobj = self.machine.view("bufobj", obj["b_bufobj"])
                bufobj["bo_numoutput"] = bufobj["bo_numoutput"] + 1
        return bio

    # pbufs

    def _pbufs(self) -> None:
        m = self.machine
        n = self.nswbuf
        m.variable("nswbuf", n, size=4)
        if m.osreldate >= 1300000:
            self._pbuf_zones(n)
            return
        size = m.sizeof("buf")
        base = m.arenas["kva"].take(size * n, PAGE_SIZE)
        m.space.touch(base, size * n)
        for number in range(n):
            obj = Obj(m, "buf", base + number * size, size)
            self._initialize(obj, "bufwait")
            self.free_pbufs.append(obj)
        m.variable("swbuf", base)
        m.symbol("bswlist", size=2 * m.pointer_size, static=True)
        m.variable("bswneeded", 0, size=4, static=True)
        m.locks.mutex("pbuf mutex", symbol="pbuf_mtx")
        counters = {
            "nsw_rcount": (n + 1) // 2,
            "nsw_wcount_sync": (n + 3) // 4,
            "nsw_wcount_async": 4,
            "cluster_pbuf_freecnt": n // 2,
            "vnode_pbuf_freecnt": n // 2 + 1,
        }
        if m.osreldate >= 1100000:
            counters["vnode_async_pbuf_freecnt"] = n // 2
        for name, limit in counters.items():
            static = name.startswith("nsw_")
            m.variable(name, limit, size=4, static=static)
            self.pools[name] = Pool(name, name, limit, None)
        m.variable("nsw_wcount_async_max", 4, size=4, static=True)

    def _pbuf_zones(self, n: int) -> None:
        m = self.machine
        # PBUF_PAGES is atop(maxphys) + 1; maxphys is 1 MB, 128 KB on 32-bit machines.
        pages = (1 << 20 if m.pointer_size == 8 else 1 << 17) // PAGE_SIZE + 1
        size = m.sizeof("buf") + pages * m.pointer_size
        primary = m.uma.zone("pbuf", size, align=64)
        m.variable("pbuf_zone", primary)
        limits = {
            "swrbuf": ("swrbuf_zone", n // 2),
            "swwbuf": ("swwbuf_zone", n // 4),
            "vnpbuf": ("vnode_pbuf_zone", n // 2),
            "clpbuf": ("cluster_pbuf_zone", n // 2),
        }
        for name, (symbol, limit) in limits.items():
            zone = m.uma.zone(name, size, of=primary, limit=limit)
            m.variable(symbol, zone, static=True)
            self.pools[name] = Pool(name, symbol, limit, zone)
        m.variable("nsw_wcount_async", 4, size=4, static=True)
        m.variable("nsw_wcount_async_max", 4, size=4, static=True)
        self.pools["nsw_wcount_async"] = Pool("nsw_wcount_async", "nsw_wcount_async", 4, None)

    def pool(self, name: str) -> Pool:
        found = self.pools.get(name)
        if found is None:
            raise UsageError(f"this kernel has no pbuf pool {name}; it has {sorted(self.pools)}")
        return found

    def pbuf(
        self,
        pool: str,
        *,
        size: int = PAGE_SIZE,
        blkno: int = 0,
        cmd: int = BIO_WRITE,
        owner: Optional[Thread] = None,
        pages: Sequence[Page] = (),
    ) -> Buf:
        """getpbuf() from a pool; nobody's but the I/O's without ``owner``."""
        m = self.machine
        found = self.pool(pool)
        if len(found.used) >= found.limit:
            raise UsageError(f"pbuf pool {pool} has {found.limit} pbufs, all in use")
        if found.zone is not None:
            obj = Obj(m, "buf", found.zone.alloc(), m.sizeof("buf"))
            self._initialize(obj, "pbufwait" if m.osreldate >= 1500000 else "bufwait")
        else:
            obj = self.free_pbufs.pop()
        made = self._take(obj, None, 0, blkno, size, cmd, owner, pages, "bufwait", found.used)
        made.pool = found
        obj["b_blkno"] = blkno
        paging = m.constant("B_PAGING", 0x04000000)
        obj["b_flags"] = obj["b_flags"] | paging
        return made

    def swap_write(
        self,
        device: SwapDevice,
        blkno: int,
        pages: Sequence[Page],
        *,
        pool: str = "",
        seconds: float = 60.0,
        at: Optional[int] = None,
    ) -> Buf:
        """An asynchronous swap write under way: pbuf, pages, and its bio at the swap device."""
        m = self.machine
        zones = m.osreldate >= 1300000
        name = pool or ("swwbuf" if zones else "nsw_wcount_async")
        size = len(pages) * PAGE_SIZE
        made = self.pbuf(name, size=size, blkno=blkno, cmd=BIO_WRITE, pages=pages)
        made.obj["b_iodone"] = "swp_pager_async_iodone"
        if zones:
            # From 13.0 the pbuf's zone and the count of writes under way are two things.
            counter = self.pool("nsw_wcount_async")
            if len(counter.used) < counter.limit:
                counter.used.append(made)
        for page in pages:
            page.dirty = 0xFF
            page.swap_in_progress = True
            if m.has("vm_page", "busy_lock"):
                page.sharers = max(page.sharers, 1)
            else:
                page.sharers += 1
        if m.osreldate >= 1000000:
            # swapgeom_acquire(): requests under way, and one for being in use.
            device.consumer.obj["index"] = max(device.consumer.obj["index"], 1) + 1
        made.bio = m.geom.request(
            device.consumer,
            BIO_WRITE,
            (blkno - device.first) * PAGE_SIZE,
            size,
            done="swapgeom_done",
            caller1=device if m.osreldate >= 900000 else None,
            caller2=made,
            data=made.obj["b_data"],
            seconds=seconds,
            at=at,
        )
        return made

    def cluster(self, children: Sequence[Buf]) -> Buf:
        """cluster_rbuild(), cluster_wbuild(): one pbuf whose I/O is that of all ``children``."""
        m = self.machine
        first = children[0].obj
        made = self.pbuf(
            "clpbuf" if m.osreldate >= 1300000 else "cluster_pbuf_freecnt",
            size=sum(each.obj["b_bcount"] for each in children),
            blkno=first["b_blkno"],
            cmd=first["b_iocmd"],
        )
        made.obj.set(
            b_iodone="cluster_callback",
            b_iooffset=first["b_iooffset"],
            b_vp=first["b_vp"],
            b_bufobj=first["b_bufobj"],
        )
        m.tailq(made.obj.at("b_cluster"), "b_cluster", [each.obj for each in children])
        return made

    def pool_waited_by(self, pool: str, thread: Thread, **how: Any) -> None:
        """A thread that waits for a pbuf: the wait channel says of which pool."""
        m = self.machine
        found = self.pool(pool)
        if found.zone is not None:
            thread.call("uma_zalloc_arg")
            found.zone.waited_by(thread, **how)
            return
        modern = m.osreldate >= 1300000
        if not modern:
            thread.call("getpbuf")
        thread.sleeps(m.address_of(found.symbol), "swbufa" if modern else "wswbuf0", **how)

    # Finishing

    def finish(self) -> None:
        m = self.machine
        m.assign("runningbufspace", self.running)
        free = list(reversed(self.idle))
        if m.osreldate < 1200000:
            m.assign("numfreebuffers", len(free))
            word = 2 * m.pointer_size
            empty = m.constant("QUEUE_EMPTY", 4)
            for queue in range(empty + 1):
                bufs = free if queue == empty else []
                m.tailq(self.queues.address + queue * word, "b_freelist", bufs)
        else:
            self._domain(len(free), free)
        if m.osreldate < 1300000:
            m.tailq(m.address_of("bswlist"), "b_freelist", list(reversed(self.free_pbufs)))
        for pool in self.pools.values():
            if pool.zone is None:
                m.assign(pool.symbol, pool.limit - len(pool.used))
        self._bufobjs()

    def _domain(self, free: int, bufs: List[Obj]) -> None:
        m = self.machine
        space = self.nbuf * _BKVASIZE
        domain = self.bdomain
        domain.probe(
            bd_maxbufspace=space,
            bd_hibufspace=space * 95 // 100,
            bd_lobufspace=space * 9 // 10,
            bd_freebuffers=free,
            bd_lofreebuffers=self.nbuf // 20,
            bd_hifreebuffers=self.nbuf // 10,
            bd_lodirtybuffers=self.nbuf // 8,
            bd_hidirtybuffers=self.nbuf // 4 + 20,
            bd_cleanq=self.subqueues[-1],
        )
        m.locks.initialize(domain.sub("bd_run_lock"), "sleep mutex", "bufspace daemon run lock")
        named = [(domain.sub("bd_dirtyq"), "dirtyq", []), (self.empty, "bufq empty lock", bufs)]
        named.extend((q, "bufq clean lock", []) for q in self.subqueues)
        for queue, name, members in named:
            m.locks.initialize(queue.sub("bq_lock"), "sleep mutex", name)
            m.tailq(queue.at("bq_queue"), "b_freelist", members)
            queue["bq_len"] = len(members)

    def _bufobjs(self) -> None:
        """Buffers of a vnode hang on its clean list, those being written on its dirty list."""
        m = self.machine
        by_list: Dict[int, List[Obj]] = {}
        for buf in self.used:
            at = buf.obj["b_bufobj"]
            if at:
                dirty = buf.obj["b_iocmd"] == BIO_WRITE
                bufobj = m.view("bufobj", at)
                head = bufobj.sub("bo_dirty" if dirty else "bo_clean")
                by_list.setdefault(head.address, []).append(buf.obj)
                # BX_VNDIRTY, BX_VNCLEAN
                buf.obj["b_xflags"] = 1 if dirty else 2
        for address, members in by_list.items():
            bufv = m.view("bufv", address)
            m.tailq(bufv.at("bv_hd"), "b_bobufs", members)
            bufv["bv_cnt"] = len(members)


def _nbuf(ram: int, osreldate: int) -> int:
    """nbuf as kern_vfs_bio_buffer_alloc() sizes it for a machine's memory."""
    kilobytes = ram // 1024
    factor = 4 * _BKVASIZE // 1024
    nbuf = 50
    if kilobytes > 4096:
        nbuf += min((kilobytes - 4096) // factor, 65536 // factor)
    if kilobytes > 65536:
        nbuf += (kilobytes - 65536) * 2 // (factor * 5)
    return nbuf
