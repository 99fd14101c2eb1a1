"""FreeBSD/riscv64 dumps: minidumps only, as on arm64.

Unverified: written after sys/riscv/include/minidump.h, minidump_machdep.c and
lib/libkvm/kvm_minidump_riscv.c (12.1 to 15.0) and tried on dumps built by the
tests, never on one of a real machine.  The section of page-table entries holds
an L3 entry for each 4 KB of kernel memory; version 2 (13.0) adds dump_avail.
"""

from __future__ import annotations

import struct

from plugin.arch.common import MinidumpHeader, ReadPhysical
from plugin.errors import DumpError
from plugin.vmcore.elf import ElfFile
from plugin.vmcore.physical import Physical
from plugin.vmcore.space import DirectMap, LinearSpace, Space, Words

NAME = "riscv64"
MAGIC = b"minidump FreeBSD/riscv"
VERSIONS = (1, 2)

_PTE_V = 0x01
_PTE_RWX = 0x0E
#: bits 53:10 are the page's number; those above are extensions' (Svpbmt, Svnapot)
_PPN_SHIFT = 10
_PPN = (1 << 44) - 1

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


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> Space:
    dmap = DirectMap(header.dmapbase, header.dmapend, header.dmapphys)
    return LinearSpace(entries, header.kernbase, 12, _page_of, dmap)


def _page_of(entry: int) -> int:
    if not entry & _PTE_V or not entry & _PTE_RWX:
        return -1
    return (entry >> _PPN_SHIFT & _PPN) << 12


def full_space(kernel: ElfFile, physical: Physical, read: ReadPhysical) -> Space:
    raise DumpError(
        "this is a full dump of a riscv64 machine; FreeBSD/riscv64 makes minidumps only"
    )
