"""FreeBSD/i386: dumps, saved registers, frames, what debuggers call it.

Dumps come with 4-byte page-table entries or, under PAE, 8-byte ones.

Minidumps (sys/i386/include/minidump.h, minidump_machdep*.c) hold a PTE for each
page of kernel memory from kernbase on: version 1 (7.0 on), version 2 (13.0) with
dump_avail.  There is no direct map.

Full dumps, the only kind before 7.0, are walked from IdlePDPT (PAE) or IdlePTD.
Both are kernel variables that hold physical addresses.  Up to 11.x the kernel
lies at its virtual address less ``kernbase`` (0xc0000000 where that symbol is
missing); with the 4/4 GB split of 12.0 it lies at its virtual address.  From
13.0 on one kernel serves both kinds of page table, and IdlePDPT is 0 without PAE.
"""

from __future__ import annotations

import struct
from typing import Iterator, Optional

from plugin.arch import x86
from plugin.arch.common import (
    Architecture,
    Debuggers,
    Frame,
    KernelFile,
    MinidumpHeader,
    Minidumps,
    PhysicalRanges,
    ReadPhysical,
    Stacks,
    registers,
    saved,
)
from plugin.arch.space import AddressSpace, DirectMap, LinearSpace, TableSpace, WalkedSpace, Words
from plugin.errors import DumpError, KernelMismatch

KERNBASE = 0xC0000000
_PG_V = 0x001
_PG_FRAME = 0xFFFFF000
_PG_FRAME_PAE = 0x000FFFFFFFFFF000

_HEADER = struct.Struct("<24x7I")


def minidump_header(head: bytes) -> MinidumpHeader:
    version, msgbuf, bitmap, ptes, kernbase, pae, avail = _HEADER.unpack_from(head)
    return MinidumpHeader(
        version,
        msgbuf,
        bitmap,
        ptes,
        kernbase,
        dumpavailsize=avail if version >= 2 else 0,
        entry_size=8 if pae else 4,
    )


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> AddressSpace:
    frame = _PG_FRAME_PAE if header.entry_size == 8 else _PG_FRAME
    return LinearSpace(
        entries,
        header.kernbase,
        12,
        lambda entry: entry & frame if entry & _PG_V else -1,
        DirectMap(),
    )


def full_space(kernel: KernelFile, physical: PhysicalRanges, read: ReadPhysical) -> AddressSpace:
    """The kernel's address space; each guess of where the kernel lies must prove itself.

    KernelMismatch where none does.
    """
    directory = kernel.symbol("IdlePTD")
    if directory is None:
        raise DumpError(
            f"{kernel.path} has no symbol IdlePTD: a full dump can be read only with the "
            "kernel that made it, symbols and all"
        )
    symbol = kernel.symbol("kernbase")
    kernbase = symbol.address if symbol is not None else KERNBASE
    for shift in dict.fromkeys((kernbase, KERNBASE, 0)):
        for space in _walked(kernel, shift, read):
            if space.translate(directory.address) == directory.address - shift:
                return space
    raise KernelMismatch(
        f"no page tables found through IdlePTD of {kernel.path}: "
        "it is not the kernel that made this dump"
    )


def _walked(kernel: KernelFile, shift: int, read: ReadPhysical) -> Iterator[TableSpace]:
    pointers = kernel.symbol("IdlePDPT")
    root = _value(read, pointers.address - shift) if pointers is not None else None
    if root:
        yield _PaeSpace(read, root)
    directory = kernel.symbol("IdlePTD")
    root = _value(read, directory.address - shift) if directory is not None else None
    if root and not root & ~_PG_FRAME:
        yield WalkedSpace(
            lambda pa: read(pa, 4096), root, (22,), width=4, bits=32, sign_extended=False
        )


class _PaeSpace(WalkedSpace):
    """Page tables under PAE: four pointers, 32 bytes long, and two levels of 8-byte entries."""

    def __init__(self, read: ReadPhysical, root: int) -> None:
        super().__init__(
            lambda pa: read(pa, 4096), root, (30, 21), width=8, bits=32, sign_extended=False
        )
        # The pointers need not start a page.
        data = read(root, 32)
        if data is not None:
            self._tables[root & self._frame] = memoryview(data.ljust(4096, b"\0")).cast("Q")


def _value(read: ReadPhysical, pa: int) -> Optional[int]:
    data = read(pa, 4) if pa >= 0 else None
    return int.from_bytes(data, "little") if data is not None else None


def _trapframe_at(frame: Frame) -> Optional[int]:
    """Above the arguments of the function called: the frame itself to 6.x, since then its address.

    trap(frame) and lapic_handle_intr(vector, frame) were given the trap frame by
    value until 2006; in db_nextframe() only the offsets tell.
    """
    if frame.callee is None:
        return None
    arguments = frame.callee + 8
    for at in (arguments, arguments + 4):
        if frame.pointer(at) == at + 4:
            return at + 4
    return arguments + (4 if frame.name.startswith(("Xapic_isr", "Xatpic_intr")) else 0)


_PCB = "ebx ebp esp esi edi eip"

ARCHITECTURE = Architecture(
    name="i386",
    machine=3,
    pointer_size=4,
    page_size=4096,
    # 4/4 GB kernels (12.0 on) lie low; only page 0 is never mapped.
    lowest=0x1000,
    minidumps=Minidumps(b"minidump FreeBSD/i386", (1, 2), minidump_header, minidump_space),
    full_space=full_space,
    stacks=Stacks(
        pcb=saved("pcb_", _PCB),
        # tf_esp is there only where the trap came from ring 3; of one in the kernel the
        # stack goes on where that member would be.
        trapframe=(*saved("tf_", "ebx ebp esi edi eip eax ecx edx cs"), *x86.flags("tf_eflags")),
        pc=("eip",),
        fp="ebp",
        sp="esp",
        saved_fp=0,
        saved_pc=1,
        traps=x86.TRAPS,
        trap_prefixes=x86.TRAP_PREFIXES,
        trapframe_at=_trapframe_at,
        entries=frozenset(("syscall",)),
        trapframe_from=None,
        from_user=x86.from_user,
    ),
    debuggers=Debuggers(
        gdb_names=("i386",),
        lldb_names=("i386", "i486", "i586", "i686"),
        triple="i386-unknown-freebsd",
        feature="org.gnu.gdb.i386.core",
        registers=(
            *registers("ebx", 32, "int"),
            *registers("ebp esp", 32, "data_ptr"),
            *registers("esi edi", 32, "int"),
            *registers("eip", 32, "code_ptr"),
            *registers("eax ecx edx eflags cs ss ds es fs gs", 32, "int"),
            *x86.X87,
        ),
        floating=x86.FLOATING,
        dwarf=dict(zip(["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "eip"], range(9))),
        roles={"pc": "eip", "sp": "esp", "fp": "ebp", "flags": "eflags"},
        machines=frozenset(("x86_64", "amd64", "i386", "i686")),
    ),
)
