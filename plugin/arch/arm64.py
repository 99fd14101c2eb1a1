"""FreeBSD/arm64: dumps, saved registers, frames, what debuggers call it.

Minidumps only, the architecture makes no full ones, but QEMU writes a guest's memory whole:
sys/arm64/include/minidump.h, minidump_machdep.c: an L3 entry for each page of
kernel memory from kernbase on, larger blocks being written as such entries.
Version 1 (11.0 on), version 2 with dump_avail (13.0), version 3 with flags for
the page size, 4 KB or 16 KB (14.0), by which all sections are then aligned.
The direct map may lie on either side of kernbase and is looked at first.
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
from plugin.errors import DumpError

_ATTR_DESCR_MASK = 3
_L3_PAGE = 3
#: bits 49:12 of an entry (sys/arm64/include/pte.h, ATTR_MASK)
_ADDRESS = 0x0003FFFFFFFFF000
#: of an image of memory: bits below the index into a table of each level, with 4 KB pages
_SHIFTS = (39, 30, 21, 12)
_VALID, _TABLE = 1, 3
#: bits 47:12 of an entry there
_BITS_OF_PAGE = 0x0000FFFFFFFFF000
_KERNBASE = 0xFFFF000000000000
_PS_MASK = 3
_PAGE_SHIFTS = {0: 12, 1: 14}

_HEADER = struct.Struct("<24x4I4Q2I")


def minidump_header(head: bytes) -> MinidumpHeader:
    version, msgbuf, bitmap, pmap, kernbase, phys, base, end, avail, flags = _HEADER.unpack_from(
        head
    )
    size = flags & _PS_MASK if version >= 3 else 0
    if size not in _PAGE_SHIFTS:
        raise DumpError(f"the minidump's flags {flags:#x} name a page size that is not known")
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
        page_size=1 << _PAGE_SHIFTS[size],
    )


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> AddressSpace:
    address = _ADDRESS & ~(header.page_size - 1)
    return LinearSpace(
        entries,
        header.kernbase,
        header.page_size.bit_length() - 1,
        lambda entry: entry & address if entry & _ATTR_DESCR_MASK == _L3_PAGE else -1,
        DirectMap(header.dmapbase, header.dmapend, header.dmapphys),
    )


def full_space(kernel: KernelFile, physical: PhysicalRanges, read: ReadPhysical) -> AddressSpace:
    """The address space of a whole image of memory, as QEMU writes it; FreeBSD writes none.

    The root table is in the kernel's own data (sys/arm64/arm64/locore.S), and the kernel where
    the loader put it.  KernelMismatch where no place proves itself.
    """
    return named_space(
        kernel, physical.ranges(), read, "pagetable_l0_ttbr1", _KERNBASE, _SHIFTS, _decoded
    )


def _decoded(entry: int, level: int) -> Tuple[str, int]:
    last = level == len(_SHIFTS) - 1
    if not entry & _VALID or (last and entry & _ATTR_DESCR_MASK != _L3_PAGE):
        return "", -1
    table = not last and entry & _ATTR_DESCR_MASK == _TABLE
    return "table" if table else "page", entry & _BITS_OF_PAGE


def _x(first: int, last: int) -> Tuple[str, ...]:
    return tuple(f"x{number}" for number in range(first, last + 1))


ARCHITECTURE = Architecture(
    name="arm64",
    machine=183,
    pointer_size=8,
    page_size=4096,
    lowest=1 << 63,
    minidumps=Minidumps(b"minidump FreeBSD/arm64", (1, 2, 3), minidump_header, minidump_space),
    full_space=full_space,
    stacks=Stacks(
        # pcb_x was x0 to x30 and pcb_pc beside it to 12.x, x0 to x29 and pcb_lr to 14.0
        # (osreldate 1400083), and is x19 to x30 since (sys/arm64/include/pcb.h).
        pcb=(
            Saved("pcb_x", _x(19, 30)),
            Saved("pcb_x", _x(0, 29)),
            Saved("pcb_x", _x(0, 30)),
            Saved("pcb_lr", ("x30",)),
            *saved("pcb_", "sp pc"),
        ),
        trapframe=(
            Saved("tf_x", _x(0, 29)),
            Saved("tf_lr", ("x30",)),
            Saved("tf_sp", ("sp",)),
            Saved("tf_elr", ("pc",)),
        ),
        # without pcb_pc a thread goes on where it returns to
        pc=("pc", "x30"),
        fp="x29",
        sp="sp",
        saved_fp=0,
        saved_pc=1,
        traps=frozenset(("handle_serror", "handle_empty_exception")),
        trap_prefixes=("handle_el1h_", "handle_el0_"),
        # save_registers leaves the frame pointer at the end of the trap frame
        # (sys/arm64/arm64/exception.S, db_trace.c).
        trapframe_at=lambda frame: frame.fp - frame.trapframe_size,
        entries=frozenset(("do_el0_sync", "svc_handler")),
        trapframe_from=("x29", False),
        from_user=lambda registers: False,
    ),
    debuggers=Debuggers(
        gdb_names=("aarch64",),
        lldb_names=("aarch64", "arm64"),
        triple="aarch64-unknown-freebsd",
        feature="org.gnu.gdb.aarch64.core",
        registers=(
            *registers(" ".join(_x(19, 30)), 64, "int64"),
            *registers("sp", 64, "data_ptr"),
            *registers("pc", 64, "code_ptr"),
            *registers(" ".join(_x(0, 18)), 64, "int64"),
            *registers("cpsr", 32, "int"),
        ),
        floating=frozenset(),
        dwarf={**{name: n for n, name in enumerate(_x(0, 30))}, "sp": 31, "pc": 32},
        roles={"pc": "pc", "sp": "sp", "fp": "x29", "ra": "x30", "flags": "cpsr"},
        machines=frozenset(("aarch64", "arm64")),
    ),
)
