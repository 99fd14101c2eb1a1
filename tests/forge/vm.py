"""The page array, objects, page queues and counters, swap devices.

Mirrors sys/vm/vm_page.h, vm_object.h, vm_pagequeue.h, vm_pageout.c, swap_pager.c and
sys/sys/vmmeter.h, 7.0-CURRENT of 2006 to 15.0.

Every physical page of the forged machine has its struct vm_page.  What the
scenario says of a page stands; pages with content are wired kernel pages; the
rest is shared out among the free list and the page queues as ``counts``
asks, so that the kernel's own counters agree with a scan.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from plugin.errors import UsageError
from tests.forge.builder import Obj
from tests.forge.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from tests.forge.geom import Consumer
    from tests.forge.machine import Machine
    from tests.forge.procs import Thread

# vm/vm_page.h; busy words 10.1 on, wire counts in ref_count 13.0 on
VPB_BIT_SHARED, VPB_BIT_EXCLUSIVE, VPB_BIT_WAITERS, VPB_SHARERS_SHIFT = 1, 2, 4, 3
VPRC_OBJREF = 0x80000000
PG_SWAPINPROG = 0x200
PGA_ENQUEUED = 8
OBJT_DEFAULT, OBJT_SWAP, OBJT_VNODE, OBJT_DEVICE, OBJT_PHYS = range(5)
_TYPES = {"default": OBJT_DEFAULT, "swap": OBJT_SWAP, "vnode": OBJT_VNODE, "phys": OBJT_PHYS}
_CODES = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}


class Page:
    """A physical page and what the kernel knows of it."""

    def __init__(self, vm: Vm, pfn: int) -> None:
        self.vm = vm
        self.pfn = pfn
        self.object: Optional[VmObject] = None
        self.pindex = 0
        self.valid = self.dirty = 0
        self.wired = 0
        self.queue: Optional[str] = None
        self.exclusive: Union[bool, Thread] = False
        self.sharers = 0
        self.waiters = False
        self.swap_in_progress = False
        self.free = False

    def __index__(self) -> int:
        return self.vm.address(self.pfn)

    @property
    def phys_addr(self) -> int:
        return self.pfn << PAGE_SHIFT

    def busied(self, by: Union[bool, Thread] = True) -> Page:
        """Exclusively busied; ``by`` a thread, which INVARIANTS kernels from 13.0 record."""
        self.exclusive = by
        return self

    def shared_busied(self, count: int = 1) -> Page:
        self.sharers = count
        return self

    def slept_on_by(self, thread: Thread, wmesg: str = "vmpfw", **how: Any) -> Page:
        """A thread that waits for the page's busy state to end."""
        self.waiters = True
        thread.sleeps(self, wmesg, **how)
        return self


class VmObject:
    """A struct vm_object and its resident pages."""

    def __init__(self, vm: Vm, obj: Obj) -> None:
        self.vm = vm
        self.obj = obj
        self.pages: List[Page] = []

    def __index__(self) -> int:
        return self.obj.address

    def page(
        self,
        pindex: int,
        *,
        pfn: Optional[int] = None,
        valid: int = 0xFF,
        dirty: int = 0,
        queue: Optional[str] = "active",
        wired: int = 0,
    ) -> Page:
        """A resident page; ``queue`` active, inactive, laundry, unswappable or None."""
        made = self.vm.claim(pfn)
        made.object, made.pindex = self, pindex
        made.valid, made.dirty, made.queue, made.wired = valid, dirty, queue, wired
        self.pages.append(made)
        return made

    def paging(self, count: int) -> VmObject:
        """paging_in_progress: that many operations hold the object."""
        self.obj["paging_in_progress"] = count
        return self


class Counts(NamedTuple):
    """Pages by state; None means what an idle machine has."""

    free: Optional[int] = None
    inactive: Optional[int] = None
    laundry: Optional[int] = None
    cache: int = 0


class SwapDevice:
    """A swap device: struct swdevt over a GEOM consumer."""

    def __init__(self, obj: Obj, consumer: Consumer, first: int) -> None:
        self.obj = obj
        self.consumer = consumer
        #: its first swap block (page) in the swap space
        self.first = first

    def __index__(self) -> int:
        return self.obj.address


class Vm:
    """The machine's memory as the VM system sees it."""

    def __init__(
        self,
        machine: Machine,
        *,
        array_at: Optional[int] = None,
        bogus_at: Optional[int] = None,
        busy_every: int = 0,
    ) -> None:
        m = self.machine = machine
        self.stride = m.sizeof("vm_page")
        self.first = m.map.ram[0] >> PAGE_SHIFT
        self.count = (m.map.ram[1] >> PAGE_SHIFT) - self.first
        self.pages: Dict[int, Page] = {}
        self.objects: List[VmObject] = []
        self.counts = Counts()
        self.swap_devices: List[SwapDevice] = []
        #: a page array made by arithmetic, every so many pages busied: for large machines
        self.busy_every = busy_every
        self.array = self._place_array(array_at)
        wide = m.osreldate >= 900000
        m.variable("vm_page_array", self.array)
        m.variable("vm_page_array_size", self.count, size=m.pointer_size if wide else 4)
        m.variable("first_page", self.first)
        m.symbol("vm_object_list", size=2 * m.pointer_size)
        self.kernel_object = self._static_object("kernel_object_store", "phys")
        self.kmem_object = (
            self._static_object("kmem_object_store", "phys")
            if m.osreldate < 1200000
            else self.kernel_object
        )
        # One global wired page that stands in for valid pages during I/O.
        self.bogus_page = self.claim() if bogus_at is None else self.page_at(bogus_at)
        self.bogus_page.wired = 1
        self.bogus_page.valid = 0
        m.variable("bogus_page", self.bogus_page)
        self._symbols()

    # Places

    def _place_array(self, at: Optional[int]) -> int:
        """vm_page_array: in the direct map up to 12.x, in kernel virtual memory else."""
        m = self.machine
        size = self.count * self.stride
        if self.busy_every:
            at = m.arenas["wide"].take(size, PAGE_SIZE)
            m.space.map_bulk(at, -(-size // PAGE_SIZE), self._arithmetic)
            return at
        if at is None and m.map.dmap[1] and m.osreldate < 1300000:
            at = m.space.direct(m.space.claim(-(-size // PAGE_SIZE)) << PAGE_SHIFT)
        elif at is None:
            at = m.arenas["kva"].take(size, PAGE_SIZE)
        m.space.touch(at, size)
        return at

    def address(self, pfn: int) -> int:
        """Address of the struct vm_page of a physical page."""
        index = pfn - self.first
        if not 0 <= index < self.count:
            raise UsageError(f"physical page {pfn:#x} lies outside vm_page_array")
        return self.array + index * self.stride

    def claim(self, pfn: Optional[int] = None) -> Page:
        """A physical page of one's own: the next unused one, or ``pfn``."""
        if pfn is None:
            pfn = self.machine.space.claim()
        if pfn in self.pages:
            raise UsageError(f"physical page {pfn:#x} is in use")
        made = self.pages[pfn] = Page(self, pfn)
        return made

    def page_at(self, address: int) -> Page:
        """The page whose struct vm_page is to lie at ``address``."""
        index, rest = divmod(address - self.array, self.stride)
        if rest or not 0 <= index < self.count:
            raise UsageError(f"no struct vm_page begins at {address:#x}")
        return self.pages.get(self.first + index) or self.claim(self.first + index)

    # Objects

    def object(self, type_: str, handle: Any = 0, *, size: int = 0) -> VmObject:
        """A vm_object: "default", "swap", "vnode" or "phys"."""
        obj = self.machine.allocate("vm_object")
        return self._object(obj, type_, handle, size)

    def _static_object(self, symbol: str, type_: str) -> VmObject:
        return self._object(self.machine.symbol(symbol, "vm_object", align=64), type_, 0, 0)

    def _object(self, obj: Obj, type_: str, handle: Any, size: int) -> VmObject:
        m = self.machine
        obj.set(type=self._object_type(type_), handle=handle, ref_count=1, size=size)
        if obj.has("lock"):
            m.locks.initialize(obj.sub("lock"), "rw", "vm object")
            obj["lock.rw_lock"] = 1
        else:
            m.locks.initialize(obj.sub("mtx"), "sleep mutex", "vm object")
        if type_ == "vnode":
            obj["un_pager.vnp.vnp_size"] = size << PAGE_SHIFT
        made = VmObject(self, obj)
        self.objects.append(made)
        return made

    def _object_type(self, type_: str) -> int:
        # OBJT_DEFAULT became OBJT_SWAP with 14.0 (vm/vm.h).
        if type_ == "default" and self.machine.osreldate >= 1400000:
            return OBJT_SWAP
        return _TYPES[type_]

    # Counters and thresholds

    def _symbols(self) -> None:
        m = self.machine
        old = m.osreldate < 1200000
        name = "vm_cnt" if m.osreldate >= 1100000 else "cnt"
        self.cnt = m.symbol(name, "vmmeter", align=64)
        if old:
            bool_ = 1 if m.osreldate >= 1100000 else 4
            m.variable("vm_pages_needed", 0, size=bool_)
            if m.osreldate >= 1100000:
                m.variable("vm_pageout_wanted", 0, size=1)
            m.variable("vm_pageout_pages_needed", 0, size=4, static=m.osreldate >= 1100000)
            m.variable("vm_pageout_deficit", 0, size=4)
        else:
            width = m.pointer_size if m.osreldate >= 1200000 else 4
            m.variable("vm_min_domains", 0, size=width)
            m.variable("vm_severe_domains", 0, size=width)
            for counter in ("vm_min_waiters", "vm_severe_waiters", "vm_pageproc_waiters"):
                m.variable(counter, 0, size=4, static=True)
        m.variable("vm_daemon_needed", 0, size=4, static=True)
        if "vm_domain" in m.layouts:
            count = m.constant("MAXMEMDOM", 8 if m.osreldate >= 1100000 and m.arch != "i386" else 1)
            self.domains = m.symbol("vm_dom", "vm_domain", count=count, align=64)
            m.variable("vm_ndomains", 1, size=4)
        self._queues()
        self._swap_symbols()

    def _queues(self) -> None:
        """Heads of the page queues: global to 9.x, of the domain from 10.0."""
        m = self.machine
        if m.osreldate < 800000:
            # PQ_NUMCOLORS is 32 where the cache's size is not known (vm_pageq.c).
            colors = 32
            self.colors = colors
            self.heads = {
                "free": 1,
                "inactive": 1 + colors,
                "active": 2 + colors,
                "cache": 3 + colors,
                "hold": 3 + 2 * colors,
            }
            values = (
                colors,
                colors - 1,
                9,
                5,
                self.heads["inactive"],
                self.heads["active"],
                self.heads["cache"],
                self.heads["hold"],
                4 + 2 * colors,
                colors // 3 + 9,
            )
            coloring = m.symbol("page_queue_coloring", size=4 * len(values), align=16)
            m.space.write(coloring.address, struct.pack(f"<{len(values)}i", *values))
            self.queues = m.symbol("vm_page_queues", "vpgqueues", count=4 + 2 * 1024, align=64)
            m.locks.mutex("vm page queue mutex", symbol="vm_page_queue_mtx")
            m.locks.mutex("vm page queue free mutex", symbol="vm_page_queue_free_mtx", spin=True)
            return
        self.colors = 0
        self.heads = {
            name: m.constant("PQ_" + name.upper(), number)
            for name, number in (("inactive", 0), ("active", 1), ("laundry", 2), ("unswappable", 3))
        }
        if m.osreldate < 1000000:
            count = m.constant("PQ_COUNT", 3)
            self.queues = m.symbol("vm_page_queues", "vpgqueues", count=count, align=64)

    def set_counts(self, **counts: int) -> None:
        """How many pages are ``free``, ``inactive``, in the ``laundry``, in the ``cache``."""
        self.counts = self.counts._replace(**counts)

    def thresholds(self, free_at_boot: int) -> Dict[str, int]:
        """v_free_min and the like as vm_pageout() computes them at boot."""
        m = self.machine
        pages = self.count
        interrupt_free_min = 2
        pageout_free_min = 2 * 65536 // PAGE_SIZE + interrupt_free_min
        if m.osreldate < 1200000:
            page_count = 16 if pages >= 2000 else 8
            reserved = page_count + pageout_free_min + pages // 768 + self.colors
            minimum = 4 + (pages - 1024) // 200 if pages > 1024 else 4
            severe = minimum // 2
            minimum += reserved
            severe += reserved
            target = (4 if free_at_boot > 6144 else 2) * minimum + reserved
        else:
            reserved = 32 + pageout_free_min + pages // 768
            minimum = pages // 200
            severe = minimum // 2
            target = 4 * minimum + reserved
            minimum += reserved
            severe += reserved
        return {
            "interrupt_free_min": interrupt_free_min,
            "pageout_free_min": pageout_free_min,
            "free_reserved": reserved,
            "free_min": minimum,
            "free_severe": severe,
            "free_target": target,
            "inactive_target": min(3 * target // 2, free_at_boot // 3),
        }

    @property
    def memory_channel(self) -> int:
        """What vm_wait() and vm_waitpfault() sleep on.

        &cnt.v_free_count to 11.x, &vm_min_domains from 12.0.
        """
        m = self.machine
        if m.osreldate < 1200000:
            return self.cnt.at("v_free_count")
        return m.address_of("vm_min_domains")

    def waited_by(self, thread: Thread, wmesg: str = "vmwait", **how: Any) -> None:
        """A thread asleep in vm_wait() or, with "pfault", vm_waitpfault()."""
        m = self.machine
        function = "vm_waitpfault" if wmesg == "pfault" else "vm_wait"
        if m.osreldate >= 1200000 and wmesg == "vmwait":
            thread.call("vm_wait_doms", "vm_wait_domain" if wmesg == "VMWait" else "vm_wait")
            counter = "vm_min_waiters"
        else:
            thread.call(function)
            counter = "vm_min_waiters" if m.osreldate >= 1200000 else ""
        if counter:
            self._count_up(counter)
        if wmesg == "pfault" and m.osreldate >= 1201000:
            # Timed since 12.1: vm_pfault_oom_wait seconds.
            how.setdefault("timeout", 10.0)
        thread.sleeps(self.memory_channel, wmesg, **how)

    def _count_up(self, name: str) -> None:
        found = self.machine.lookup(name)
        if found is not None:
            value = int.from_bytes(self.machine.space.read(found.address, found.size), "little")
            self.machine.assign(name, value + 1)

    # Swap

    def _swap_symbols(self) -> None:
        m = self.machine
        m.symbol("swtailq", size=2 * m.pointer_size, static=True)

    def swap_device(
        self, consumer: Consumer, *, pages: Optional[int] = None, used: int = 0
    ) -> SwapDevice:
        """swapon(8) on a provider."""
        m = self.machine
        total = consumer.provider.mediasize // PAGE_SIZE if pages is None else pages
        first = self.swap_devices[-1].obj["sw_end"] + 1 if self.swap_devices else 0
        obj = m.new("swdevt")
        obj.set(
            sw_id=consumer,
            sw_nblks=total,
            sw_used=used,
            sw_first=first,
            sw_end=first + total,
            sw_strategy="swapgeom_strategy",
            sw_close="swapgeom_close",
        )
        made = SwapDevice(obj, consumer, first)
        self.swap_devices.append(made)
        return made

    def _finish_swap(self) -> None:
        m = self.machine
        devices = [d.obj for d in self.swap_devices]
        m.tailq(m.address_of("swtailq"), "sw_list", devices)
        total = sum(d["sw_nblks"] for d in devices)
        avail = total - sum(d["sw_used"] for d in devices)
        m.variable("nswapdev", len(devices), size=4, static=True)
        m.variable("swap_pager_avail", avail, size=4)
        full = int(total > 0 and avail < 128)
        m.variable("swap_pager_full", full, size=4, static=m.osreldate >= 1200000)
        m.variable("swap_pager_almost_full", full, size=4, static=m.osreldate < 1500000)
        if m.osreldate >= 900000:
            # In bytes to 11.x, in pages from 12.0.
            scale = 1 if m.osreldate >= 1200000 else PAGE_SIZE
            m.variable("swap_total", total * scale, size=8 if m.arch != "i386" else 4, static=True)
            m.variable("swap_reserved", 0, size=8 if m.arch != "i386" else 4, static=True)

    # Finishing

    def finish(self) -> None:
        """What takes memory of its own, or does not depend on the pages claimed last."""
        self._finish_swap()
        m = self.machine
        # The object that owns the pages nobody asked for: some process's memory.
        self._filler = self.object("swap", size=self.count)
        m.tailq(
            m.address_of("vm_object_list"), "object_list", [o.obj for o in reversed(self.objects)]
        )
        for member in list(m.layouts["vmmeter"]):
            if member.is_pointer:
                self.cnt[member.name] = m.counter(1000)
        for name, index in self.heads.items():
            if m.osreldate >= 1000000 and self._head(index) is not None:
                queue = m.view("vm_pagequeue", self.domains.at(f"vmd_pagequeues[{index}]"))
                queue["pq_name"] = f"vm {name} pagequeue"
                m.locks.initialize(queue.sub("pq_mutex"), "sleep mutex", "vm pagequeue")
        # Named now, for symbols must be complete before the page tables are made.
        if m.osreldate >= 800000:
            self._phys_segs()
        self._avail()

    def _phys_segs(self) -> None:
        m = self.machine
        static = m.osreldate < 1000000
        count = m.constant("VM_PHYSSEG_MAX", 31)
        if "vm_phys_seg" in m.layouts:
            segs = m.symbol("vm_phys_segs", "vm_phys_seg", count=count, static=static, align=16)
            segs.set(start=self.first << PAGE_SHIFT, end=m.map.ram[1])
            segs.probe(first_page=self.array)
        m.variable("vm_phys_nsegs", 1, size=4, static=static)

    def _avail(self) -> None:
        """dump_avail[] and phys_avail[]: pairs that end with a zero."""
        m = self.machine
        width = 4 if m.arch == "i386" and m.osreldate < 1200000 else 8
        for name in ("dump_avail", "phys_avail"):
            made = m.symbol(name, size=10 * width, align=16)
            m.write_int(made.address, self.first << PAGE_SHIFT, width)
            m.write_int(made.address + width, m.map.ram[1], width)
        m.variable("physmem", self.count)
        m.variable("Maxmem", m.map.ram[1] >> PAGE_SHIFT)

    def finish_pages(self) -> None:
        """Write the page array, once every page in use is known."""
        m = self.machine
        if self.busy_every:
            self._arithmetic_counts()
            return
        states = self._share_out()
        image = bytearray(self.count * self.stride)
        queues = self._encode(image, states)
        self._link_objects(image)
        self._link_queues(image, queues)
        m.space.write(self.array, bytes(image))
        self._write_counts(states, queues)

    def _arithmetic(self) -> Iterator[bytes]:
        """struct vm_page by number: even ones free, odd ones active, some exclusively busied."""
        numpy = _numpy()
        m = self.machine
        wanted = ["phys_addr", "object", "pindex", "busy_lock", "valid"]
        modern = m.has("vm_page", "ref_count")
        wanted += ["ref_count", "a.queue"] if modern else ["wire_count", "queue"]
        wanted += ["plinks.q.tqe_next", "plinks.q.tqe_prev"]
        members = {name: m.locate("vm_page", name) for name in wanted}
        record = numpy.dtype(
            {
                "names": list(members),
                "formats": [f"<u{member.size}" for member in members.values()],
                "offsets": [member.offset for member in members.values()],
                "itemsize": self.stride,
            }
        )
        step = 512 * 128
        for first in range(0, self.count, step):
            number = numpy.arange(first, min(first + step, self.count), dtype="u8")
            active = number % 2 == 1
            pages = numpy.zeros(len(number), dtype=record)
            pages["phys_addr"] = (number + self.first) << PAGE_SHIFT
            pages["object"] = numpy.where(active, self._filler.obj.address, 0)
            pages["pindex"] = numpy.where(active, number // 2, 0)
            pages["valid"] = numpy.where(active, 0xFF, 0)
            busy = active & (number // 2 % self.busy_every == 0)
            idle = numpy.where(active, VPB_BIT_SHARED, 0xFFFFFFFE if modern else VPB_BIT_SHARED)
            pages["busy_lock"] = numpy.where(busy, VPB_BIT_EXCLUSIVE, idle)
            queue = numpy.where(active, self.heads["active"], m.constant("PQ_NONE", 0xFF))
            pages["a.queue" if modern else "queue"] = queue
            if modern:
                pages["ref_count"] = numpy.where(active, VPRC_OBJREF, 0)
            own = numpy.uint64(self.array) + number * numpy.uint64(self.stride)
            both = numpy.uint64(2 * self.stride)
            last = number + 2 >= self.count
            pages["plinks.q.tqe_next"] = numpy.where(active & ~last, own + both, 0)
            head = self._head(self.heads["active"]) or 0
            before = numpy.where(number == 1, numpy.uint64(head), own - both)
            pages["plinks.q.tqe_prev"] = numpy.where(active, before, 0)
            yield pages.tobytes()

    def _arithmetic_counts(self) -> None:
        m = self.machine
        active = self.count // 2
        head = self._head(self.heads["active"])
        if head is not None:
            m.write_pointer(head, self.array + self.stride)
            last = self.array + (2 * active - 1) * self.stride
            m.write_pointer(head + m.pointer_size, last)
        self._filler.obj["resident_page_count"] = min(active, 0x7FFFFFFF)
        limits = self.thresholds(self.count // 2)
        self._write_counters(0, limits)
        self._domain_counts(self.count - active, {"active": active}, limits)

    def _share_out(self) -> Dict[int, Page]:
        """A Page for every page frame of the array."""
        m = self.machine
        states = dict(self.pages)
        wanted = self.counts
        kernel_va = {pfn: vpn for vpn, pfn in m.space.kva.items()}
        rest: List[int] = []
        for pfn in range(self.first, self.first + self.count):
            if pfn in states:
                continue
            if pfn in m.space.pages:
                page = states[pfn] = Page(self, pfn)
                page.wired, page.valid = 1, 0xFF
                vpn = kernel_va.get(pfn)
                if vpn is not None:
                    page.object = self.kmem_object
                    page.pindex = vpn - (m.map.kva_min >> PAGE_SHIFT)
                    self.kmem_object.pages.append(page)
            else:
                rest.append(pfn)
        free = len(rest) // 2 if wanted.free is None else wanted.free
        there = sum(1 for p in self.pages.values() if p.queue == "inactive")
        inactive = len(rest) // 6 if wanted.inactive is None else max(wanted.inactive - there, 0)
        laundry = 0
        if m.osreldate >= 1200000:
            there = sum(1 for p in self.pages.values() if p.queue == "laundry")
            laundry = len(rest) // 32 if wanted.laundry is None else max(wanted.laundry - there, 0)
        filler = self._filler
        order: List[Tuple[str, int]] = [
            ("free", free),
            ("cache", wanted.cache),
            ("inactive", inactive),
            ("laundry", laundry),
        ]
        if sum(n for _, n in order) > len(rest):
            raise UsageError(f"only {len(rest)} pages are left to share out, fewer than asked for")
        # From the top of memory down, so that low pages, which the kernel keeps, stay together.
        for kind, number in [*order, ("active", len(rest) - sum(n for _, n in order))]:
            for _ in range(number):
                pfn = rest.pop()
                page = states[pfn] = Page(self, pfn)
                if kind == "free":
                    page.free = True
                    continue
                page.object, page.pindex = filler, len(filler.pages)
                page.valid, page.queue = 0xFF, kind
                page.dirty = 0xFF if kind != "cache" and page.pindex % 3 == 0 else 0
                filler.pages.append(page)
        return states

    def _encode(self, image: bytearray, states: Dict[int, Page]) -> Dict[str, List[Page]]:
        """Every struct vm_page but its links; what is on which queue."""
        m = self.machine
        put = _Writer(m, image, self.stride)
        queues: Dict[str, List[Page]] = {}
        known: Dict[Tuple[Any, ...], bytes] = {}
        for pfn in range(self.first, self.first + self.count):
            page = states[pfn]
            at = (pfn - self.first) * self.stride
            queue = "free" if page.free and self.colors else page.queue
            if queue is not None:
                queues.setdefault(queue, []).append(page)
            # Most pages are like many others but for where they lie and whose they are.
            kind = (
                queue,
                page.free,
                page.valid,
                page.dirty,
                page.wired,
                page.exclusive,
                page.sharers,
                page.waiters,
                page.swap_in_progress,
                page.object is None,
            )
            found = known.get(kind)
            if found is None:
                found = known[kind] = self._pattern(page, queue)
            image[at : at + self.stride] = found
            put("phys_addr", at, pfn << PAGE_SHIFT)
            if page.object is not None:
                put("object", at, page.object.obj.address)
                put("pindex", at, page.pindex)
            if self.colors:
                color = pfn & self.colors - 1
                put("pc", at, color)
                if queue in ("free", "cache"):
                    put("queue", at, self.heads[queue] + color)
        return queues

    def _pattern(self, page: Page, queue: Optional[str]) -> bytes:
        """What does not depend on which page it is."""
        m = self.machine
        image = bytearray(self.stride)
        put = _Writer(m, image, self.stride)
        modern = m.has("vm_page", "ref_count")
        busy_word = m.has("vm_page", "busy_lock")
        put("valid", 0, page.valid)
        put("dirty", 0, page.dirty)
        flags = oflags = 0
        if m.has("vm_page", "order"):
            # 13 is VM_NFREEORDER: no block of free pages begins here.
            put("order", 0, 0 if page.free else 13)
        # Busy: a bit of flags (to 7.x), of oflags (8 to 10.0), a word of its own since.
        if busy_word:
            put("busy_lock", 0, self._busy(page, modern))
        else:
            put("busy", 0, page.sharers)
            flags = (1 if page.exclusive else 0) | (2 if page.waiters else 0)
        if page.swap_in_progress:
            if busy_word:
                oflags = m.constant("VPO_SWAPINPROG", 8)
            else:
                flags |= PG_SWAPINPROG
        if not busy_word and m.has("vm_page", "oflags"):
            flags, oflags = 0, flags
        none = m.constant("PQ_NONE", 0xFF)
        number = none if queue is None else self.heads[queue]
        active = 5 if queue == "active" else 0
        if modern:
            put("ref_count", 0, page.wired | (VPRC_OBJREF if page.object is not None else 0))
            put("a.queue", 0, number)
            put("a.flags", 0, PGA_ENQUEUED if queue is not None else 0)
            put("a.act_count", 0, active)
        else:
            put("wire_count", 0, page.wired)
            put("queue", 0, number)
            if m.has("vm_page", "aflags") and queue is not None and m.osreldate >= 1200000:
                put("aflags", 0, PGA_ENQUEUED)
            put("act_count", 0, active)
        if flags:
            put("flags", 0, flags)
        if oflags:
            put("oflags", 0, oflags)
        return bytes(image)

    def _busy(self, page: Page, modern: bool) -> int:
        if page.free and modern:
            # VPB_FREED
            return 0xFFFFFFFE
        if page.sharers:
            word = VPB_BIT_SHARED | page.sharers << VPB_SHARERS_SHIFT
        elif page.exclusive:
            word = VPB_BIT_EXCLUSIVE
            if "INVARIANTS" in self.machine.variant and modern and page.exclusive is not True:
                # VPB_CURTHREAD_EXCLUSIVE
                word |= page.exclusive.__index__() & 0xFFFFFFF8
        else:
            return VPB_BIT_SHARED
        return word | (VPB_BIT_WAITERS if page.waiters else 0)

    def _link_objects(self, image: bytearray) -> None:
        """memq, in the order of pindex (to 14.x), and how many pages an object has."""
        m = self.machine
        put = _Writer(m, image, self.stride)
        word = m.pointer_size
        linked = m.has("vm_page", "listq")
        splay = m.has("vm_page", "left")
        offset = m.entry("vm_page", "listq") if linked else 0
        for owner in self.objects:
            pages = sorted(owner.pages, key=lambda p: p.pindex)
            owner.obj["resident_page_count"] = len(pages)
            if owner.obj["size"] == 0 and pages:
                owner.obj["size"] = pages[-1].pindex + 1
            if not linked:
                continue
            head = owner.obj.at("memq")
            previous = head
            m.write_pointer(head, pages[0] if pages else 0)
            for page, following in zip(pages, [*pages[1:], None]):
                at = (page.pfn - self.first) * self.stride
                put.pointer(at + offset, following)
                put.pointer(at + offset + word, previous)
                previous = page.__index__() + offset
                if splay and following is not None:
                    # A degenerate splay tree: every page the right child of the one before.
                    put("right", at, following)
            m.write_pointer(head + word, previous)
            if splay and pages:
                owner.obj["root"] = pages[0]

    def _link_queues(self, image: bytearray, queues: Dict[str, List[Page]]) -> None:
        m = self.machine
        put = _Writer(m, image, self.stride)
        word = m.pointer_size
        link = "pageq" if m.has("vm_page", "pageq") else "plinks.q"
        offset = m.entry("vm_page", link)
        chains: Dict[int, List[Page]] = {}
        for name, pages in queues.items():
            if self.colors and name in ("free", "cache"):
                for page in pages:
                    number = self.heads[name] + (page.pfn & self.colors - 1)
                    chains.setdefault(number, []).append(page)
            else:
                chains[self.heads[name]] = pages
        every = range(4 + 2 * self.colors) if self.colors else range(len(self.heads))
        for number in every:
            head = self._head(number)
            if head is None:
                continue
            pages = chains.get(number, [])
            previous = head
            m.write_pointer(head, pages[0] if pages else 0)
            for page, following in zip(pages, [*pages[1:], None]):
                at = (page.pfn - self.first) * self.stride
                put.pointer(at + offset, following)
                put.pointer(at + offset + word, previous)
                previous = page.__index__() + offset
            m.write_pointer(head + word, previous)

    def _head(self, number: int) -> Optional[int]:
        """Address of the TAILQ head of page queue ``number``, None where there is none."""
        m = self.machine
        if m.osreldate < 1000000:
            stride = m.sizeof("vpgqueues")
            if m.osreldate >= 800000 and number > 1:
                return None
            return self.queues.address + number * stride + m.locate("vpgqueues", "pl").offset
        path = f"vmd_pagequeues[{number}].pq_pl"
        element = m.locate("vm_domain", "vmd_pagequeues").element
        if element is None or number >= element[1]:
            return None
        return self.domains.at(path)

    def _write_counts(self, states: Dict[int, Page], queues: Dict[str, List[Page]]) -> None:
        m = self.machine
        free = sum(1 for p in states.values() if p.free)
        wired = sum(1 for p in states.values() if p.wired)
        number = {name: len(pages) for name, pages in queues.items()}
        limits = self.thresholds(self.count // 2)
        cnt = self.cnt
        self._write_counters(wired, limits)
        plain = {
            "v_free_count": free,
            "v_wire_count": wired,
            "v_active_count": number.get("active", 0),
            "v_inactive_count": number.get("inactive", 0),
            "v_cache_count": number.get("cache", 0),
            "v_laundry_count": number.get("laundry", 0),
        }
        for name, value in plain.items():
            if cnt.has(name) and not m.locate("vmmeter", name).is_pointer:
                cnt[name] = value
        if m.osreldate < 1000000:
            self._old_counts()
        else:
            self._domain_counts(free, number, limits)
        below = free + number.get("cache", 0)
        if m.osreldate < 1200000:
            if below < limits["free_min"]:
                m.assign("vm_pages_needed", 1)
        elif below < limits["free_min"]:
            m.assign("vm_min_domains", 1)
            if below < limits["free_severe"]:
                m.assign("vm_severe_domains", 1)

    def _write_counters(self, wired: int, limits: Dict[str, int]) -> None:
        """Thresholds, and the event counters where they are counter(9)s."""
        m, cnt = self.machine, self.cnt
        if m.has("vmmeter", "v_wire_count") and m.locate("vmmeter", "v_wire_count").is_pointer:
            m.set_counter(cnt["v_wire_count"], wired)
        cnt.set(v_page_size=PAGE_SIZE, v_page_count=self.count)
        cnt.probe(**{f"v_{name}": value for name, value in limits.items()})

    def _old_counts(self) -> None:
        """vm_page_queues[].cnt point at the counters; lcnt is each queue's own (to 7.x)."""
        m = self.machine
        names: Dict[int, str] = {}
        if self.colors:
            for color in range(self.colors):
                names[self.heads["free"] + color] = "v_free_count"
                names[self.heads["cache"] + color] = "v_cache_count"
            names[self.heads["hold"]] = "v_active_count"
        names[self.heads["inactive"]] = "v_inactive_count"
        names[self.heads["active"]] = "v_active_count"
        stride = m.sizeof("vpgqueues")
        for number, name in names.items():
            queue = m.view("vpgqueues", self.queues.address + number * stride)
            queue["cnt"] = self.cnt.at(name)
            if queue.has("lcnt"):
                queue["lcnt"] = self._length(queue.at("pl"))

    def _length(self, head: int) -> int:
        m = self.machine
        offset = m.entry("vm_page", "pageq")
        count, at = 0, m.read_pointer(head)
        while at:
            count += 1
            at = m.read_pointer(at + offset)
        return count

    def _domain_counts(self, free: int, number: Dict[str, int], limits: Dict[str, int]) -> None:
        m = self.machine
        domain = self.domains
        domain.probe(vmd_page_count=self.count, vmd_free_count=free, vmd_domain=0)
        domain.probe(**{f"vmd_{name}": value for name, value in limits.items()})
        domain.probe(
            vmd_segs=1,
            vmd_pageout_wakeup_thresh=limits["free_target"] // 10 * 9,
            vmd_background_launder_target=(limits["free_target"] - limits["free_min"]) // 10,
            vmd_minset=int(free < limits["free_min"]),
            vmd_severeset=int(free < limits["free_severe"]),
        )
        for name, index in self.heads.items():
            element = m.locate("vm_domain", "vmd_pagequeues").element
            if element is None or index >= element[1]:
                continue
            queue = m.view("vm_pagequeue", domain.at(f"vmd_pagequeues[{index}]"))
            queue["pq_cnt"] = number.get(name, 0)
            if queue.has("pq_vcnt"):
                queue["pq_vcnt"] = self.cnt.at(f"v_{name}_count")


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise UsageError("a page array of this size needs numpy: pip install numpy") from None
    return numpy


class _Writer:
    """Writes members of the n-th struct vm_page into the array's image."""

    def __init__(self, machine: Machine, image: bytearray, stride: int) -> None:
        self.machine = machine
        self.image = image
        self.known: Dict[str, Tuple[Any, int]] = {}
        self._word = struct.Struct("<I" if machine.pointer_size == 4 else "<Q").pack_into

    def __call__(self, path: str, at: int, value: Any) -> None:
        found = self.known.get(path)
        if found is None:
            member = self.machine.locate("vm_page", path)
            pack = struct.Struct(_CODES[member.size]).pack_into
            found = self.known[path] = (pack, member.offset)
        pack, offset = found
        pack(self.image, at + offset, value.__index__())

    def pointer(self, at: int, value: Any) -> None:
        self._word(self.image, at, 0 if value is None else value.__index__())
