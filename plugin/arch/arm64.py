"""FreeBSD/arm64 dumps: minidumps only, the architecture makes no full ones.

sys/arm64/include/minidump.h, minidump_machdep.c: an L3 entry for each page of
kernel memory from kernbase on, larger blocks being written as such entries.
Version 1 (11.0 on), version 2 with dump_avail (13.0), version 3 with flags for
the page size, 4 KB or 16 KB (14.0), by which all sections are then aligned.
The direct map may lie on either side of kernbase and is looked at first.
"""

from __future__ import annotations

import struct

from plugin.arch.common import MinidumpHeader, ReadPhysical
from plugin.errors import DumpError
from plugin.vmcore.elf import ElfFile
from plugin.vmcore.physical import Physical
from plugin.vmcore.space import DirectMap, LinearSpace, Space, Words

NAME = "arm64"
MAGIC = b"minidump FreeBSD/arm64"
VERSIONS = (1, 2, 3)

_ATTR_DESCR_MASK = 3
_L3_PAGE = 3
#: bits 49:12 of an entry (sys/arm64/include/pte.h, ATTR_MASK)
_ADDRESS = 0x0003FFFFFFFFF000
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


def minidump_space(header: MinidumpHeader, entries: Words, read: ReadPhysical) -> Space:
    address = _ADDRESS & ~(header.page_size - 1)
    return LinearSpace(
        entries,
        header.kernbase,
        header.page_size.bit_length() - 1,
        lambda entry: entry & address if entry & _ATTR_DESCR_MASK == _L3_PAGE else -1,
        DirectMap(header.dmapbase, header.dmapend, header.dmapphys),
    )


def full_space(kernel: ElfFile, physical: Physical, read: ReadPhysical) -> Space:
    raise DumpError("this is a full dump of an arm64 machine; FreeBSD/arm64 makes minidumps only")
