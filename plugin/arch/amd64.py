"""FreeBSD/amd64: dumps, saved registers, frames, what debuggers call it.

Minidumps (sys/amd64/include/minidump.h, minidump_machdep.c): version 1
(7.0 to 9.0) holds a PTE for each page of kernel memory; from version 2 (9.1)
a PDE for each 2 MB, whose page-table pages lie among the dump's own pages
(a 1 GB page is written as 512 PDEs); version 3 (13.0) adds dump_avail.

Full dumps are walked from KPML4phys, or from KPML5phys where ``la57`` is set
(13.0 on).  Both are variables of the kernel, so their physical address must be
known first: the kernel lies at KERNLOAD, or from 14.0 on wherever the loader
put it, which the variable ``kernphys`` tells that itself is to be found.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Iterator, Optional

from plugin.arch import x86
from plugin.arch.common import (
    Architecture,
    Debuggers,
    KernelFile,
    MinidumpHeader,
    Minidumps,
    PhysicalRanges,
    ReadPhysical,
    Stacks,
    registers,
    saved,
)
from plugin.arch.space import (
    NOTHING,
    AddressSpace,
    DirectMap,
    Leaf,
    LinearSpace,
    TableSpace,
    WalkedSpace,
    Words,
)
from plugin.errors import DumpError, KernelMismatch

KERNBASE = 0xFFFFFFFF80000000
_PG_V = 0x001
_PG_FRAME = 0x000FFFFFFFFFF000
_PDRSHIFT = 21
_LA48 = (39, 30, 21)
_LA57 = (48, 39, 30, 21)
#: KERNLOAD of the kernels that have no symbol of it and whose kernphys may vary
_KERNLOAD = 0x200000
_SUPERPAGE = 1 << _PDRSHIFT
#: places tried for the kernel: 2 TB of memory
_MOST_PLACES = 1 << 20

_HEADER = struct.Struct("<24x4I3QI")


def minidump_header(head: bytes) -> MinidumpHeader:
    version, msgbuf, bitmap, pmap, kernbase, dmapbase, dmapend, avail = _HEADER.unpack_from(head)
    return MinidumpHeader(
        version,
        msgbuf,
        bitmap,
        pmap,
        kernbase,
        dmapbase=dmapbase,
        dmapend=dmapend,
        dumpavailsize=avail if version >= 3 else 0,
    )


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> AddressSpace:
    dmap = DirectMap(header.dmapbase, header.dmapend)
    if header.version == 1:
        return LinearSpace(entries, header.kernbase, 12, _page_of, dmap)
    return _PdeSpace(header.kernbase, entries, read, dmap)


def _page_of(entry: int) -> int:
    return entry & _PG_FRAME if entry & _PG_V else -1


class _PdeSpace(TableSpace):
    """The space of a minidump that holds page-directory entries from kernbase on."""

    def __init__(self, kernbase: int, entries: Words, read: ReadPhysical, dmap: DirectMap) -> None:
        super().__init__(lambda pa: read(pa, 4096), 8, _PDRSHIFT, dmap)
        self._kernbase = kernbase
        self._entries = entries
        self._end = kernbase + (entries.count << _PDRSHIFT)

    def _find_leaf(self, va: int) -> Leaf:
        if not self._kernbase <= va < self._end:
            return NOTHING
        return self._leaf_of(self._entries[(va - self._kernbase) >> _PDRSHIFT])


def full_space(kernel: KernelFile, physical: PhysicalRanges, read: ReadPhysical) -> AddressSpace:
    """The kernel's address space; each guess of where the kernel lies must prove itself.

    KernelMismatch where none does.
    """
    root = kernel.symbol("KPML4phys")
    if root is None:
        raise DumpError(
            f"{kernel.path} has no symbol KPML4phys: a full dump can be read only with the "
            "kernel that made it, symbols and all"
        )
    kernbase = kernel.symbol("kernbase")
    base = kernbase.address if kernbase is not None else KERNBASE
    for shift in _shifts(kernel, base, physical, read):
        space = _walked(kernel, shift, read)
        if space is not None and space.translate(root.address) == root.address - shift:
            return space
    raise KernelMismatch(
        f"no page tables found through KPML4phys of {kernel.path}: "
        "it is not the kernel that made this dump"
    )


def _shifts(
    kernel: KernelFile, kernbase: int, physical: PhysicalRanges, read: ReadPhysical
) -> Iterator[int]:
    """What the kernel's virtual addresses may be above its physical ones, likeliest first."""
    yield kernbase
    variable = kernel.symbol("kernphys")
    if variable is None or variable.kind == "absolute":
        return
    kernload = kernel.symbol("kernload")
    load = kernload.address if kernload is not None else _KERNLOAD
    places = (
        kernphys
        for start, end in physical.ranges()
        for kernphys in range(start // _SUPERPAGE * _SUPERPAGE, end, _SUPERPAGE)
    )
    for kernphys in islice(places, _MOST_PLACES):
        shift = kernbase + load - kernphys
        if _value(read, variable.address - shift, 8) == kernphys:
            yield shift


def _walked(kernel: KernelFile, shift: int, read: ReadPhysical) -> Optional[WalkedSpace]:
    la57 = kernel.symbol("la57")
    five = la57 is not None and _value(read, la57.address - shift, 4)
    symbol = kernel.symbol("KPML5phys" if five else "KPML4phys")
    root = _value(read, symbol.address - shift, 8) if symbol is not None else None
    if not root or root & ~_PG_FRAME:
        return None
    return WalkedSpace(
        lambda pa: read(pa, 4096), root, _LA57 if five else _LA48, bits=57 if five else 48
    )


def _value(read: ReadPhysical, pa: int, size: int) -> Optional[int]:
    data = read(pa, size) if pa >= 0 else None
    return int.from_bytes(data, "little") if data is not None else None


_PCB = "rbx rbp rsp r12 r13 r14 r15 rip"
_REST = "rax rcx rdx rsi rdi r8 r9 r10 r11"
#: of the System V ABI, AMD64 supplement
_DWARF = {
    name: number
    for number, name in enumerate(
        (
            *("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"),
            *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip"),
        )
    )
}

ARCHITECTURE = Architecture(
    name="amd64",
    machine=62,
    pointer_size=8,
    page_size=4096,
    lowest=1 << 63,
    minidumps=Minidumps(b"minidump FreeBSD/amd64", (1, 2, 3), minidump_header, minidump_space),
    full_space=full_space,
    stacks=Stacks(
        pcb=saved("pcb_", _PCB),
        # tf_rip, tf_rflags and tf_rsp are what the processor pushes, from rings 0 and 3 alike
        trapframe=(*saved("tf_", f"{_PCB} {_REST} cs ss"), *x86.flags("tf_rflags")),
        pc=("rip",),
        fp="rbp",
        sp="rsp",
        saved_fp=0,
        saved_pc=1,
        traps=x86.TRAPS,
        trap_prefixes=x86.TRAP_PREFIXES,
        # Above the return address that the call left: db_nextframe().
        trapframe_at=lambda frame: frame.callee + 16 if frame.callee is not None else None,
        entries=frozenset(("amd64_syscall", "fast_syscall_common", "syscall")),
        trapframe_from=("rsp", True),
        from_user=x86.from_user,
    ),
    debuggers=Debuggers(
        gdb_names=("i386:x86-64",),
        lldb_names=("x86_64",),
        triple="x86_64-unknown-freebsd",
        feature="org.gnu.gdb.i386.core",
        registers=(
            *registers("rbx", 64, "int64"),
            *registers("rbp rsp", 64, "data_ptr"),
            *registers("r12 r13 r14 r15", 64, "int64"),
            *registers("rip", 64, "code_ptr"),
            *registers(_REST, 64, "int64"),
            *registers("eflags cs ss ds es fs gs", 32, "int"),
            *x86.X87,
        ),
        floating=x86.FLOATING,
        dwarf=_DWARF,
        roles={"pc": "rip", "sp": "rsp", "fp": "rbp", "flags": "eflags"},
        machines=frozenset(("x86_64", "amd64")),
    ),
)
