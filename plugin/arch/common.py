"""What every architecture's minidump header says (sys/<arch>/include/minidump.h)."""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Protocol, Tuple

from plugin.vmcore.elf import ElfFile
from plugin.vmcore.physical import Physical
from plugin.vmcore.space import Space, Words

#: reads a stretch of physical memory, None where the dump has not all of it
ReadPhysical = Callable[[int, int], Optional[bytes]]


class MinidumpHeader(NamedTuple):
    """struct minidumphdr; sizes in bytes.  What an architecture lacks is 0."""

    version: int
    msgbufsize: int
    bitmapsize: int
    #: of the section of page-table entries; ptesize on i386
    pmapsize: int
    kernbase: int
    dmapphys: int = 0
    dmapbase: int = 0
    dmapend: int = 0
    dumpavailsize: int = 0
    page_size: int = 4096
    #: bytes of a page-table entry
    entry_size: int = 8


class Architecture(Protocol):
    """What a module of this package gives."""

    NAME: str
    MAGIC: bytes
    VERSIONS: Tuple[int, ...]

    def minidump_header(self, head: bytes) -> MinidumpHeader:
        """The header out of the first 128 bytes of a minidump."""
        ...

    def minidump_space(
        self, header: MinidumpHeader, entries: Words, read: ReadPhysical
    ) -> Space: ...

    def full_space(self, kernel: ElfFile, physical: Physical, read: ReadPhysical) -> Space:
        """The address space of a full dump, found by the kernel's symbols, or DumpError."""
        ...
