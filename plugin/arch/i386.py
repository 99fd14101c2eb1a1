"""FreeBSD/i386 dumps, with 4-byte page-table entries or, under PAE, 8-byte ones.

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

from plugin.arch.common import MinidumpHeader, ReadPhysical
from plugin.errors import DumpError, KernelMismatch
from plugin.vmcore.elf import ElfFile
from plugin.vmcore.physical import Physical
from plugin.vmcore.space import DirectMap, LinearSpace, Space, TableSpace, WalkedSpace, Words

NAME = "i386"
MAGIC = b"minidump FreeBSD/i386"
VERSIONS = (1, 2)

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


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> Space:
    frame = _PG_FRAME_PAE if header.entry_size == 8 else _PG_FRAME
    return LinearSpace(
        entries,
        header.kernbase,
        12,
        lambda entry: entry & frame if entry & _PG_V else -1,
        DirectMap(),
    )


def full_space(kernel: ElfFile, physical: Physical, read: ReadPhysical) -> Space:
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


def _walked(kernel: ElfFile, shift: int, read: ReadPhysical) -> Iterator[TableSpace]:
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
