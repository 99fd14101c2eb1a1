"""FreeBSD/riscv64: dumps (minidumps only), saved registers, frames, debuggers' names.

Unverified: written after sys/riscv/include/minidump.h, minidump_machdep.c and
lib/libkvm/kvm_minidump_riscv.c (12.1 to 15.0) and tried on dumps built by the
tests, never on one of a real machine.  The section of page-table entries holds
an L3 entry for each 4 KB of kernel memory; version 2 (13.0) adds dump_avail.
"""

from __future__ import annotations

import struct
from typing import Tuple

from plugin.arch.common import (
    Architecture,
    Debuggers,
    KernelFile,
    MinidumpHeader,
    Minidumps,
    PhysicalRanges,
    ReadPhysical,
    Saved,
    Stacks,
    registers,
    saved,
)
from plugin.arch.space import AddressSpace, DirectMap, LinearSpace, Words, named_space

_PTE_V = 0x01
_PTE_RWX = 0x0E
#: bits 53:10 are the page's number; those above are extensions' (Svpbmt, Svnapot)
_PPN_SHIFT = 10
_PPN = (1 << 44) - 1

#: of an image of memory: bits below the index into a table of each level (Sv39)
_SHIFTS = (30, 21, 12)
_KERNBASE = 0xFFFFFFC000000000

_HEADER = struct.Struct("<24x4I4QI")


def minidump_header(head: bytes) -> MinidumpHeader:
    version, msgbuf, bitmap, pmap, kernbase, phys, base, end, avail = _HEADER.unpack_from(head)
    return MinidumpHeader(
        version,
        msgbuf,
        bitmap,
        pmap,
        kernbase,
        dmapphys=phys,
        dmapbase=base,
        dmapend=end,
        dumpavailsize=avail if version >= 2 else 0,
    )


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> AddressSpace:
    dmap = DirectMap(header.dmapbase, header.dmapend, header.dmapphys)
    return LinearSpace(entries, header.kernbase, 12, _page_of, dmap)


def _page_of(entry: int) -> int:
    if not entry & _PTE_V or not entry & _PTE_RWX:
        return -1
    return (entry >> _PPN_SHIFT & _PPN) << 12


def full_space(kernel: KernelFile, physical: PhysicalRanges, read: ReadPhysical) -> AddressSpace:
    """The address space of a whole image of memory, as QEMU writes it; FreeBSD writes none.

    The root table is in the kernel's own data (sys/riscv/riscv/locore.S), and the kernel where
    the loader put it.  KernelMismatch where no place proves itself.
    """
    return named_space(
        kernel, physical.ranges(), read, "pagetable_l1", _KERNBASE, _SHIFTS, _decoded
    )


def _decoded(entry: int, level: int) -> Tuple[str, int]:
    if not entry & _PTE_V:
        return "", -1
    pa = (entry >> _PPN_SHIFT & _PPN) << 12
    return "page" if entry & _PTE_RWX else "table", pa


#: s0 is the frame pointer, and "fp" in both debuggers
_S = ("fp", *(f"s{number}" for number in range(1, 12)))
_T = tuple(f"t{number}" for number in range(7))
_A = tuple(f"a{number}" for number in range(8))

ARCHITECTURE = Architecture(
    name="riscv64",
    machine=243,
    pointer_size=8,
    page_size=4096,
    lowest=1 << 63,
    minidumps=Minidumps(b"minidump FreeBSD/riscv", (1, 2), minidump_header, minidump_space),
    full_space=full_space,
    stacks=Stacks(
        pcb=(*saved("pcb_", "ra sp gp tp"), Saved("pcb_s", _S)),
        trapframe=(
            *saved("tf_", "ra sp gp tp"),
            Saved("tf_t", _T),
            Saved("tf_s", _S),
            Saved("tf_a", _A),
            Saved("tf_sepc", ("pc",)),
        ),
        # a thread goes on where it returns to
        pc=("pc", "ra"),
        fp="fp",
        sp="sp",
        saved_fp=-2,
        saved_pc=-1,
        traps=frozenset(),
        trap_prefixes=("cpu_exception_handler",),
        # A frame pointer is the stack pointer at entry, which the handler passes on as
        # the address of the trap frame (sys/riscv/riscv/exception.S, db_trace.c).
        trapframe_at=lambda frame: frame.callee,
        entries=frozenset(("do_trap_user",)),
        trapframe_from=("sp", True),
        from_user=lambda registers: False,
    ),
    debuggers=Debuggers(
        gdb_names=("riscv:rv64", "riscv"),
        lldb_names=("riscv64",),
        triple="riscv64-unknown-freebsd",
        feature="org.gnu.gdb.riscv.cpu",
        registers=(
            *registers("ra", 64, "code_ptr"),
            *registers("sp gp tp", 64, "data_ptr"),
            *registers("fp", 64, "data_ptr"),
            *registers(" ".join(_S[1:]), 64, "int"),
            *registers("pc", 64, "code_ptr"),
            *registers("zero", 64, "int"),
            *registers(" ".join((*_T, *_A)), 64, "int"),
        ),
        floating=frozenset(),
        dwarf={"ra": 1, "sp": 2, "fp": 8, "pc": 32},
        roles={"pc": "pc", "sp": "sp", "fp": "fp", "ra": "ra"},
        machines=frozenset(("riscv64",)),
    ),
)
