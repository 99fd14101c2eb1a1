"""Whether layouts fit a kernel, by what the kernel itself says of its structs.

Every kernel carries witnesses of its own layouts, with or without debug
information:

* ``proc_off_*`` and ``thread_off_*`` (sys/kern/kern_proc.c, 11.1 on) and
  ``pcb_size`` (each architecture's genassym or machdep), kept for debuggers;
* the sizes of its variables in the symbol table: ``proc0`` is a struct proc,
  ``topology_lock`` a struct sx (``globals`` in structs.yaml);
* the item sizes of its UMA zones: the zone PROC hands out struct procs
  (sys/vm/uma_core.c; sys/kern/kern_proc.c, kern_thread.c, ...).

Only symbols and plain reads are needed.
"""

from __future__ import annotations

import re
from typing import (
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
)

from plugin.errors import MemoryFault, WchanError
from plugin.structs import Layouts
from plugin.structs.yamlfile import KernelData
from plugin.symbol import Symbol

#: UMA zones whose items are one struct each, in every version that has the zone.
#: sys/kern/kern_proc.c (PROC, PGRP), vfs_subr.c (VNODE), geom/geom_io.c (g_bio),
#: vm/vm_map.c, vm/vm_object.c, kern/subr_turnstile.c, subr_sleepqueue.c, ...
ZONES: Dict[str, str] = {
    "PROC": "proc",
    "PGRP": "pgrp",
    "VNODE": "vnode",
    "Mountpoints": "mount",
    "g_bio": "bio",
    "VMSPACE": "vmspace",
    "MAP ENTRY": "vm_map_entry",
    "VM OBJECT": "vm_object",
    "TURNSTILE": "turnstile",
    "SLEEPQUEUE": "sleepqueue",
    "Files": "file",
    "umtx pi": "umtx_pi",
    "swblk": "swblk",
    "SWAPMETA": "swblock",
    "ksiginfo": "ksiginfo",
}

#: the variables that those of a struct that differs by options are held in, 6.x to 15.x
_VARIABLES = (
    "proc_zone",
    "pgrp_zone",
    "vnode_zone",
    "mount_zone",
    "biozone",
    "vmspace_zone",
    "mapentzone",
    "obj_zone",
    "turnstile_zone",
    "sleepq_zone",
    "file_zone",
    "umtx_pi_zone",
    "ksiginfo_zone",
    "swblk_zone",
)

#: struct thread0_storage is a struct thread and this much room for the
#: scheduler's data (sys/proc.h, uint64_t t0st_sched[10], 11.0 on).
_T0ST_SCHED = 80
#: more zones than any kernel has: a damaged list ends here
_MAX_ZONES = 4096
_ARRAY = re.compile(r"(?:struct|union) (\w+)((?:\[\d*\])*)")
_OFFSETS = {
    "proc": ("p_pid", "p_comm", "p_list", "p_hash", "p_threads"),
    "thread": ("td_tid", "td_name", "td_oncpu", "td_pcb", "td_plist"),
}

#: A symbol that only a kernel with the option has.  Under #ifdef INVARIANTS stand the
#: destructors of two zones that exist for their assertions alone (vm/vm_object.c,
#: vm/vm_map.c, 6.x to 15.x), bq_len (kern/vfs_bio.c, 9.3 to 11.x) and uma_dbg_cnt
#: (vm/uma_core.c, 12.0 on); kern/subr_witness.c is compiled with WITNESS alone.
OPTION_SYMBOLS: Dict[str, Sequence[str]] = {
    "INVARIANTS": ("vm_object_zdtor", "vmspace_zdtor", "uma_dbg_cnt", "bq_len"),
    "WITNESS": ("w_mtx", "witness_watch"),
}
#: Symbols of any SMP kernel (sys/kern/subr_smp.c, each mp_machdep.c).
SMP_SYMBOLS = ("smp_ipi_mtx", "cpu_mp_start", "stopped_cpus")


class Named(Protocol):
    """The part of a kernel file that its options are told by."""

    def symbols(self, name: str) -> Sequence[Symbol]: ...


class Reader(Named, Protocol):
    """The part of a target that the checks need."""

    @property
    def read(self) -> Callable[[int, int], bytes]: ...

    @property
    def wire(self) -> object: ...


class Contradiction(NamedTuple):
    """One thing the kernel says that a layout does not.

    ``member`` is "" where the size is meant; ``says`` is the kernel's figure and
    ``layout`` the layout's, in bytes.
    """

    struct: str
    member: str
    says: int
    layout: int
    evidence: str

    def __str__(self) -> str:
        what = f"offset of {self.struct}.{self.member}" if self.member else f"size of {self.struct}"
        return f"{what}: {self.layout} in the layouts, {self.says} by {self.evidence}"


def options_of(reader: Named) -> FrozenSet[str]:
    """INVARIANTS, WITNESS and UP as the symbol table tells; a stub table tells nothing."""
    found = {
        option
        for option, names in OPTION_SYMBOLS.items()
        if any(reader.symbols(name) for name in names)
    }
    whole = all(reader.symbols(name) for name in ("Giant", "proc0", "sleepq_chains"))
    if whole and not any(reader.symbols(name) for name in SMP_SYMBOLS):
        found.add("UP")
    return frozenset(found)


def check(
    reader: Reader, layouts: Layouts, variables: Optional[Dict[str, str]] = None
) -> List[Contradiction]:
    """Every contradiction between ``layouts`` and the kernel, each member or size once.

    ``variables`` are {symbol: C type}; left out, those that structs.yaml names for
    this kernel.  What cannot be read contradicts nothing.
    """
    if variables is None:
        tables = layouts.tables
        variables = dict(tables.globals) if isinstance(tables, KernelData) else {}
    found: Dict[tuple[str, str], Contradiction] = {}
    for source in (
        _offsets(reader, layouts),
        _pcb_size(reader, layouts),
        _symbol_sizes(reader, layouts, variables),
        _thread0(reader, layouts),
        _zone_sizes(reader, layouts),
    ):
        for contradiction in source:
            found.setdefault((contradiction.struct, contradiction.member), contradiction)
    return list(found.values())


def _int(reader: Reader, symbol: Symbol, size: int = 4) -> Optional[int]:
    try:
        return int.from_bytes(reader.read(symbol.address, size), "little")
    except MemoryFault:
        return None


def _offsets(reader: Reader, layouts: Layouts) -> Iterator[Contradiction]:
    for struct, members in _OFFSETS.items():
        said = {}
        for member in members:
            prefix = "proc" if struct == "proc" else "thread"
            for symbol in reader.symbols(f"{prefix}_off_{member}")[:1]:
                value = _int(reader, symbol)
                # A dump may hold read-only pages as zeros, all of them or some; and of
                # p_list alone 0 could be meant, which is the first member everywhere.
                if value:
                    said[member] = (value, symbol.name)
        if struct not in layouts:
            continue
        for member, (value, name) in said.items():
            offset = layouts.offsetof(struct, member) if layouts.has(struct, member) else -1
            if offset != value:
                yield Contradiction(struct, member, value, offset, f"the kernel's own {name}")


def _pcb_size(reader: Reader, layouts: Layouts) -> Iterator[Contradiction]:
    for symbol in reader.symbols("pcb_size")[:1]:
        value = _int(reader, symbol)
        if value and "pcb" in layouts and layouts.sizeof("pcb") != value:
            yield Contradiction(
                "pcb", "", value, layouts.sizeof("pcb"), "the kernel's own pcb_size"
            )


def _symbol_sizes(
    reader: Reader, layouts: Layouts, variables: Dict[str, str]
) -> Iterator[Contradiction]:
    done = set()
    for name, type_ in variables.items():
        match = _ARRAY.fullmatch(type_)
        struct = match.group(1) if match else ""
        # one variable a struct will do, and a start has little time
        if match is None or struct in done or struct not in layouts:
            continue
        sizes = [s.size for s in reader.symbols(name) if s.kind == "object" and s.size]
        own = layouts.sizeof(struct)
        if not sizes or not own:
            continue
        done.add(struct)
        # how many elements an array has depends on options: whole ones is all one can ask
        array = bool(match.group(2))
        if not any(size % own == 0 if array else size == own for size in sizes):
            what = f"the {'array' if array else 'variable'} {name}, {sizes[0]} bytes"
            yield Contradiction(struct, "", sizes[0], own, what)


def _thread0(reader: Reader, layouts: Layouts) -> Iterator[Contradiction]:
    if "thread" not in layouts:
        return
    for name, more in (("thread0", 0), ("thread0_st", _T0ST_SCHED)):
        for symbol in reader.symbols(name)[:1]:
            says = symbol.size - more
            if symbol.size and says != layouts.sizeof("thread"):
                yield Contradiction(
                    "thread",
                    "",
                    says,
                    layouts.sizeof("thread"),
                    f"the variable {name}, {symbol.size} bytes",
                )


def _zone_sizes(reader: Reader, layouts: Layouts) -> Iterator[Contradiction]:
    sizes = zone_sizes(reader, layouts)
    # A walk with the wrong layout of UMA's own structs finds no zone of these names.
    for zone, struct in ZONES.items():
        says = sizes.get(zone)
        if says and struct in layouts and layouts.sizeof(struct) != says:
            yield Contradiction(
                struct,
                "",
                says,
                layouts.sizeof(struct),
                f"the items of UMA zone {zone}, {says} bytes",
            )


def zone_sizes(reader: Reader, layouts: Layouts) -> Dict[str, int]:
    """{zone name: item size in bytes} of the kernel's UMA zones, as far as they can be read.

    Kegs hang on ``uma_kegs``, each keg's zones on ``uk_zones`` (sys/vm/uma_int.h).  Over a
    wire those are read that a variable leads to.
    """
    sizes: Dict[str, int] = {}
    try:
        heads = reader.symbols("uma_kegs")
        # the size stood in the keg alone until zones could have several, in 8.0
        in_zone = layouts.has("uma_zone", "uz_size")
        keg = layouts.fields("uma_keg", "uk_link.le_next", "uk_zones.lh_first", "uk_size")
        own = ("uz_size",) if in_zone else ()
        zone = layouts.fields("uma_zone", "uz_link.le_next", "uz_name", *own)
        width = layouts.resolve("uma_keg", "uk_link.le_next").size
    except WchanError:
        return sizes
    if reader.wire is not None:
        return dict(_zones_of_variables(reader, layouts, width))
    if not heads:
        return sizes
    unread = _Bounded(reader.read, _MAX_ZONES)
    try:
        at = int.from_bytes(reader.read(heads[0].address, width), "little")
        while at and unread.fresh(at):
            at, member, whole = keg.unpack(unread(at, keg.span))
            while member and unread.fresh(member):
                member, name, *size = zone.unpack(unread(member, zone.span))
                text = unread(name, 32).split(b"\0")[0]
                if text.isascii():
                    sizes.setdefault(text.decode(), size[0] if size else whole)
    except MemoryFault:
        pass
    return sizes


def _zones_of_variables(reader: Reader, layouts: Layouts, width: int) -> Iterator[tuple[str, int]]:
    """(name, item size) of the zones that ``_VARIABLES`` point to, where their size is in them."""
    if not layouts.has("uma_zone", "uz_size"):
        return
    name_at, size_at = (layouts.resolve("uma_zone", name) for name in ("uz_name", "uz_size"))

    def number(address: int, size: int) -> int:
        return int.from_bytes(reader.read(address, size), "little")

    for variable in _VARIABLES:
        for symbol in reader.symbols(variable)[:1]:
            try:
                zone = number(symbol.address, width)
                name = reader.read(number(zone + name_at.offset, width), 16).split(b"\0")[0]
                yield name.decode("ascii", "replace"), number(zone + size_at.offset, size_at.size)
            except MemoryFault:
                continue


class _Bounded:
    """Reads, and tells an address met for the first time, up to a bound."""

    def __init__(self, read: Callable[[int, int], bytes], limit: int) -> None:
        self._read = read
        self._limit = limit
        self._seen: set[int] = set()

    def __call__(self, address: int, size: int) -> bytes:
        return self._read(address, size)

    def fresh(self, address: int) -> bool:
        new = address not in self._seen and len(self._seen) < self._limit
        self._seen.add(address)
        return new
