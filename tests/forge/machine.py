"""A machine to describe: kernel, processes, locks, disks, memory; then a dump of it.

    from tests.forge.machine import Machine

    m = Machine(1402000)
    lock = m.locks.mutex("example lock")
    holder = m.procs.process("holder").thread(calls=("kern_example", "sys_example"))
    waiter = m.procs.process("waiter").thread(calls=("kern_example", "sys_example"))
    lock.owned_by(holder)
    waiter.blocks_on(lock)
    holder.sleeps(m.take(8), "example")
    vmcore, kernel = m.write(directory)

What a scenario does not say is filled in as on an idle machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, Optional, Tuple

from plugin.errors import LayoutError
from plugin.structs import Layouts
from tests.forge import formats, paging
from tests.forge.bufs import Bufs
from tests.forge.builder import Builder, Obj
from tests.forge.geom import Geom
from tests.forge.locks import Locks
from tests.forge.memory import PAGE_SIZE
from tests.forge.modules import Modules
from tests.forge.procs import Procs, Thread
from tests.forge.services import Services
from tests.forge.uma import Uma
from tests.forge.vfs import Vfs
from tests.forge.vm import Vm

MSG_MAGIC = 0x063062
_MSGBUF = 0x8000

#: __FreeBSD_version: (release, what stands in version[] behind it)
RELEASES = {
    700014: ("7.0-CURRENT", "#0: Mon Mar 13 21:04:32 UTC 2006"),
    800068: ("8.0-CURRENT", "#0: Sat Feb 28 12:11:09 UTC 2009"),
    903000: ("9.3-RELEASE", "#0 r268512: Thu Jul 10 23:44:39 UTC 2014"),
    1001000: ("10.1-RELEASE", "#0 r274401: Tue Nov 11 21:02:49 UTC 2014"),
    1004000: ("10.4-RELEASE", "#0 r324094: Fri Sep 29 01:40:03 UTC 2017"),
    1200058: ("12.0-CURRENT", "#0 r329363: Fri Feb 16 08:01:15 UTC 2018"),
    1200086: ("12.0-RELEASE", "r341666 GENERIC"),
    1201000: ("12.1-RELEASE", "r354233 GENERIC"),
    1300139: ("13.0-RELEASE", "#0 releng/13.0-n244733-ea31abc261f: Fri Apr  9 04:24:09 UTC 2021"),
    1402000: ("14.2-RELEASE", "releng/14.2-n269506-c8918d6c7412 GENERIC"),
    1500068: ("15.0-RELEASE", "releng/15.0-n280995-7aedc8de6446 GENERIC"),
}


class Machine(Builder):
    """One machine at the moment of its dump.

    ``osreldate``, ``arch`` and ``variant`` choose the layouts of structs.yaml;
    ``ram`` is in bytes; ``uptime`` in seconds.
    """

    def __init__(
        self,
        osreldate: int,
        arch: str = "amd64",
        variant: Iterable[str] = (),
        *,
        layouts: Optional[Layouts] = None,
        ram: int = 64 << 20,
        cpus: int = 2,
        ident: str = "GENERIC",
        release: Optional[str] = None,
        hz: int = 1000,
        uptime: float = 4000.0,
        time: int = 1_700_000_000,
        hostname: str = "forge",
        kstack_pages: Optional[int] = None,
        vm_page_array: Optional[int] = None,
        ram_start: Optional[int] = None,
        bogus_page: Optional[int] = None,
        busy_every: int = 0,
        nbuf: int = 0,
    ) -> None:
        self.variant: FrozenSet[str] = frozenset(variant)
        super().__init__(
            layouts or shipped_layouts(osreldate, arch, self.variant),
            arch,
            osreldate,
            ram=ram,
            kstack_pages=kstack_pages,
            ram_start=ram_start,
        )
        self.cpus = cpus
        self.hz = hz
        self.uptime = uptime
        self.ticks = int(uptime * hz)
        self.time = time
        self.ident = ident
        self.hostname = hostname
        self.dumping_cpu = 0
        self.dumper: Optional[Thread] = None
        self.panic_text: Optional[str] = None
        self.message_text = ""
        self.zones: Dict[str, Any] = {}
        #: the threads that matter, by the part they play, and what the scenario comes to:
        #: for tests, which then need not repeat the description
        self.cast: Dict[str, Thread] = {}
        self.expected: Dict[str, Any] = {}
        self._late: List[Callable[[], Any]] = []
        self._finished = False
        self._identity(release)
        self.ucred = self._ucred()
        self.locks = Locks(self)
        if "WITNESS" in self.variant:
            self.locks.mutex("witness lock", spin=True, symbol="w_mtx", static=True)
        self.pcpus = self._pcpus()
        self._counters = 0
        self.uma = Uma(self)
        self.vm = Vm(self, array_at=vm_page_array, bogus_at=bogus_page, busy_every=busy_every)
        self.procs = Procs(self)
        self.geom = Geom(self)
        self.bufs = Bufs(self, nbuf)
        self.vfs = Vfs(self)
        self.modules = Modules(self)
        self.services = Services(self)

    # Shorthands

    def allocate(self, struct_name: str, *, at: Optional[int] = None, **members: Any) -> Obj:
        """A struct from where its kernel takes it: its UMA zone if there is one, else malloc."""
        zone = self.zones.get(struct_name)
        if zone is None or at is not None:
            if at is not None:
                self.arenas["kmem"].reserve(at, self.sizeof(struct_name))
            return self.new(struct_name, at=at, **members)
        return self.new(struct_name, at=zone.alloc(), **members)

    def at_the_end(self, change: Callable[[], Any]) -> None:
        """Do something to memory when all lists are linked: this is how one is corrupted."""
        self._late.append(change)

    def message(self, text: str) -> None:
        """A line of the kernel's message buffer."""
        self.message_text += text.rstrip("\n") + "\n"

    def panics(self, thread: Thread, text: str, cpu: int = 0) -> None:
        """``thread`` panics on ``cpu``; it is the one that dumps."""
        self.panic_text = text
        self.dumps(thread, cpu)

    def dumps(self, thread: Thread, cpu: int = 0) -> None:
        """``thread`` runs on ``cpu`` and takes the dump (panic, or ``dump`` in DDB)."""
        self.dumper = thread
        self.dumping_cpu = cpu
        thread.runs_on(cpu)

    # Who this kernel is

    def _own_offsets(self) -> None:
        """What a kernel exports of its own structs for debuggers (kern_proc.c, 11.1 on)."""
        self.constant_variable("pcb_size", self.sizeof("pcb"))
        if self.osreldate < 1101000:
            return
        exported = {
            "proc": ["p_pid", "p_comm", "p_list", "p_threads"],
            "thread": ["td_tid", "td_name", "td_oncpu", "td_pcb", "td_plist"],
        }
        if self.osreldate >= 1300000:
            exported["proc"].append("p_hash")
        for struct, members in exported.items():
            for member in members:
                offset = self.layouts.offsetof(struct, member)
                self.constant_variable(f"{struct}_off_{member}", offset)

    def _identity(self, release: Optional[str]) -> None:
        known = RELEASES.get(self.osreldate)
        name = release or (known[0] if known else f"{self.osreldate // 100000}.0-CURRENT")
        build = known[1] if known else "#0: Thu Jan  1 00:00:00 UTC 1970"
        self.release = name
        if "GENERIC" in build:
            build = build.replace("GENERIC", self.ident)
            version = f"FreeBSD {name} {build}\n"
        else:
            where = f"/usr/obj/usr/src/sys/{self.ident}"
            version = f"FreeBSD {name} {build}\n    root@{self.hostname}:{where}\n"
        self.version = version
        self.text_variable("version", version)
        self.text_variable("ostype", "FreeBSD")
        self.text_variable("osrelease", name, room=32)
        self.text_variable("kern_ident", self.ident)
        self.constant_variable("osreldate", self.osreldate)
        self._own_offsets()
        if self.arch == "i386":
            self.absolute("kernbase", self.map.kernbase)
        if "INVARIANTS" in self.variant:
            # Compiled only with the option (vm/vm_object.c, vm/vm_map.c).
            self.function("vm_object_zdtor")
            self.function("vmspace_zdtor")
        if "WITNESS" in self.variant:
            # Switched off at run time: it keeps no list of held locks.
            self.variable("witness_watch", 0, size=4)

    def _ucred(self) -> Obj:
        made = self.new("ucred", arena="kva")
        return made.probe(cr_ref=1000, cr_uid=0, cr_ruid=0, cr_svuid=0)

    # Per-CPU memory

    def _pcpus(self) -> List[Obj]:
        """struct pcpu per CPU; amd64 names the array (13.0 on: a pointer to it)."""
        size = self.sizeof("pcpu")
        if self.arch != "arm64" and 800000 <= self.osreldate < 1300000:
            count = self.constant("MAXCPU", 32)
            base = self.symbol("__pcpu", "pcpu", count=count, align=256).address
        else:
            base = self.take(size * self.cpus, "kva", 4096 if self.osreldate >= 1200000 else 256)
            if self.arch == "amd64" and self.osreldate >= 1300000:
                self.variable("__pcpu", base)
        return [Obj(self, "pcpu", base + cpu * size, size) for cpu in range(self.cpus)]

    @property
    def _zpcpu_stride(self) -> int:
        """Distance between two CPUs' parts: a page from 12.0, struct pcpu's size before."""
        return PAGE_SIZE if self.osreldate >= 1200000 else self.sizeof("pcpu")

    @property
    def _relative_counters(self) -> bool:
        """True where zpcpu_base_to_offset() takes &__pcpu[0] off, since February 2020."""
        return self.arch == "amd64" and self.has("pcpu", "pc_zpcpu_offset")

    def counter(self, value: int = 0) -> int:
        """A counter(9) that sums to ``value``, as a counter_u64_t holds it."""
        stride = self._zpcpu_stride
        if not self._counters or self._counters % stride > stride - 16:
            self._counters = self.take(stride * self.cpus, "kva", max(stride, PAGE_SIZE)) + 8
        at = self._counters
        self._counters += 8
        held = at
        if self._relative_counters:
            held = at - self.pcpus[0].address & 0xFFFFFFFFFFFFFFFF
        self.set_counter(held, value)
        return held

    def set_counter(self, held: int, value: int) -> None:
        """Give the counter that a counter_u64_t holds another value, spread over the CPUs."""
        at = held
        if self._relative_counters:
            at = held + self.pcpus[0].address & 0xFFFFFFFFFFFFFFFF
        share = value // self.cpus
        for cpu in range(self.cpus):
            part = value - share * (self.cpus - 1) if cpu == 0 else share
            self.write_int(at + cpu * self._zpcpu_stride, part, 8)

    # Finishing

    def finish(self) -> None:
        """Link all lists and write all that depends on the whole; once."""
        if self._finished:
            return
        self._finished = True
        self.services.finish()
        self._clock()
        self._panic_state()
        self.procs.finish()
        self.geom.finish()
        self.bufs.finish()
        self.vfs.finish()
        self.modules.finish()
        self.vm.finish()
        self.locks.finish()
        self.uma.finish()
        self._msgbuf()

    def _clock(self) -> None:
        self.variable("hz", self.hz, size=4)
        if self.osreldate >= 1500000:
            # ticks is the low half of ticksl (sys/kern/subr_ticks.S).
            ticksl = self.variable("ticksl", self.ticks)
            self.alias("ticks", ticksl.address, 4)
        else:
            self.variable("ticks", self.ticks, size=4)
        self.variable("time_second", self.time, size=self.pointer_size)
        self.variable("time_uptime", int(self.uptime), size=self.pointer_size)

    def alias(self, name: str, address: int, size: int, *, static: bool = False) -> None:
        """A further name for memory that is there already."""
        from plugin.symbol import Symbol

        self._name(Symbol(name, address, size, "object", static))

    def _panic_state(self) -> None:
        pointer = 0
        if self.panic_text is not None:
            # vpanic()'s own static buffer.
            raw = self.panic_text.encode() + b"\0"
            buffer = self.symbol("buf.0", size=256, static=True)
            self.space.write(buffer.address, raw[:256])
            pointer = buffer.address
            self.message("panic: " + self.panic_text)
        self.variable("panicstr", pointer)
        if 1300000 <= self.osreldate < 1500000:
            self.variable("panicked", int(bool(pointer)), size=1)
        self.variable("dumping", 1, size=4)
        self.variable("rebooting", 0, size=4)

    def _msgbuf(self) -> None:
        """The message buffer: a ring of bytes with its struct behind it (subr_msgbuf.c)."""
        head = self.sizeof("msgbuf")
        room = _MSGBUF - head
        base = self.take(_MSGBUF, "kva", PAGE_SIZE)
        text = (self.version + self.message_text).encode()
        ring = bytearray(room)
        for position, byte in enumerate(text):
            ring[position % room] = byte
        self.space.write(base, bytes(ring))
        made = self.new(
            "msgbuf",
            at=base + room,
            msg_ptr=base,
            msg_magic=MSG_MAGIC,
            msg_size=room,
            msg_wseq=len(text),
            msg_rseq=0,
        )
        made.probe(msg_cksum=sum(text) & 0xFFFFFFFF)
        if made.has("msg_lock"):
            self.locks.initialize(made.sub("msg_lock"), "spin mutex", "msgbuf")
        self.variable("msgbufp", made)
        self._message_ring = bytes(ring)

    # Writing

    def write(
        self,
        directory: Any,
        *,
        form: Optional[formats.Format] = None,
        pae: bool = False,
        la57: bool = False,
        name: str = "",
    ) -> Tuple[Path, Path]:
        """Write ``vmcore`` and ``kernel`` into ``directory`` and return their paths.

        ``form`` is the format this kernel writes by itself unless given.
        """
        self.finish()
        where = Path(directory)
        where.mkdir(parents=True, exist_ok=True)
        form = form or formats.native(self.arch, self.osreldate)
        full = form.kind == "full"
        roots = self._root_symbols(pae, la57)
        tables = paging.build(self.space, pae=pae, la57=la57, dmap=full)
        for symbol, root in roots.items():
            self.assign(symbol, getattr(tables, root))
        self.space.frozen = True
        # Last, for the page tables take pages too.
        self.vm.finish_pages()
        for change in self._late:
            change()
        vmcore, kernel = where / f"vmcore{name}", where / f"kernel{name}"
        formats.write(vmcore, self.space, tables, form, msgbuf=self._message_ring, pae=pae)
        self.write_kernel(kernel)
        return vmcore, kernel

    def _root_symbols(self, pae: bool, la57: bool) -> Dict[str, str]:
        """The variables that hold where the page tables are: {name: what of Tables}."""
        if self.arch == "amd64":
            self.variable("KPML4phys", size=8)
            if self.osreldate < 1300000:
                return {"KPML4phys": "root"}
            self.variable("kernphys", self.map.image_pa, size=8)
            self.variable("la57", int(la57), size=4)
            self.variable("KPML5phys", size=8)
            return {"KPML5phys" if la57 else "KPML4phys": "root"}
        if self.arch == "i386":
            self.variable("IdlePTD", size=4)
            if pae:
                self.variable("IdlePDPT", size=4)
                return {"IdlePTD": "directory", "IdlePDPT": "root"}
            return {"IdlePTD": "directory"}
        return {}


def shipped_layouts(osreldate: int, arch: str, variant: FrozenSet[str]) -> Layouts:
    """The layouts of structs.yaml, which the product reads such a kernel with."""
    from plugin.structs.choose import choose_yaml

    choice = choose_yaml(osreldate, arch, variant)
    if not choice.exact and choice.row.first != osreldate:
        raise LayoutError(
            f"structs.yaml knows no kernel {osreldate} on {arch}; the nearest is {choice.row.name}"
        )
    return Layouts([choice.source], choice.tables)
