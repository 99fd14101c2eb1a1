"""Minidumps: a header, the message buffer, dump_avail, the bitmap, page-table entries, pages.

Each section begins at a page (sys/<arch>/<arch>/minidump_machdep.c; the layout
of the header is the architecture's).
"""

from __future__ import annotations

import struct
from typing import List, Optional, Tuple

from plugin.arch import BY_MAGIC
from plugin.arch.space import Words
from plugin.errors import DumpError
from plugin.vmcore.file import DumpFile
from plugin.vmcore.memory import KernelMemory
from plugin.vmcore.physical import BitmapMemory

MAGIC = b"minidump FreeBSD/"
_HEAD = 128
#: 16 TB of 4 KB pages
_MOST_BITMAP = 512 << 20
_MOST_DUMP_AVAIL = 1 << 20


def open_minidump(file: DumpFile, path: str, file_path: str, truncated: bool) -> KernelMemory:
    """The memory of a minidump that begins at ``file.start``, or DumpError."""
    head = file.read(file.start, _HEAD).ljust(_HEAD, b"\0")
    magic = head[:24].split(b"\0", 1)[0]
    arch = BY_MAGIC.get(magic)
    if arch is None:
        # what is no letter is written as its code: the line stays one
        name = magic[len(MAGIC) :].decode("latin-1").encode("unicode_escape").decode()
        known = ", ".join(sorted(a.name for a in BY_MAGIC.values()))
        raise DumpError(f"{path} is a minidump of a {name} machine; those of {known} can be read")
    version = int.from_bytes(head[24:28], "little")
    if version not in arch.minidumps.versions:
        versions = arch.minidumps.versions
        raise DumpError(
            f"{path} is an {arch.name} minidump of version {version}; "
            f"versions {versions[0]} to {versions[-1]} can be read"
        )
    header = arch.minidumps.header(head)
    page = header.page_size
    if (header.kernbase | header.dmapbase | header.dmapphys) & (page - 1):
        raise DumpError(f"{path}: damaged minidump header: its addresses begin no page")

    at = file.start + page

    def section(size: int) -> int:
        nonlocal at
        place = at
        at += -(-size // page) * page
        return place

    msgbuf = section(header.msgbufsize), header.msgbufsize
    avail_at = section(header.dumpavailsize)
    bitmap_at = section(header.bitmapsize)
    pmap_at = section(header.pmapsize)
    if header.bitmapsize > _MOST_BITMAP or header.dumpavailsize > _MOST_DUMP_AVAIL:
        raise DumpError(f"{path}: damaged minidump header: no machine has that much memory")
    if at > file.end:
        raise DumpError(
            f"{path} is truncated before its first page of memory: {file.end - file.start} of "
            f"at least {at - file.start} bytes are there; copy it again, or look whether "
            "savecore ran out of room"
        )
    physical = BitmapMemory(
        file.read(bitmap_at, header.bitmapsize),
        page,
        at,
        file.end,
        _dump_avail(file.read(avail_at, header.dumpavailsize)) if header.dumpavailsize else None,
    )

    def read_physical(pa: int, size: int) -> Optional[bytes]:
        offset = physical.offset(pa)
        data = file.read(offset, size) if offset >= 0 else b""
        return data if len(data) == size else None

    entries = Words(
        lambda offset, size: file.read(pmap_at + offset, size), header.pmapsize, header.entry_size
    )
    return KernelMemory(
        file,
        path=path,
        file_path=file_path,
        arch=arch.name,
        format=f"minidump v{version}",
        page_size=page,
        physical=physical,
        space=arch.minidumps.space(header, entries, read_physical),
        truncated=truncated or physical.present < physical.pages * page,
        msgbuf=msgbuf,
    )


def _dump_avail(data: bytes) -> List[Tuple[int, int]]:
    """The [start, end) pairs of physical addresses, up to the one whose end is 0."""
    ranges: List[Tuple[int, int]] = []
    for start, end in struct.iter_unpack("<QQ", data[: len(data) & ~15]):
        if end == 0:
            break
        if end > start:
            ranges.append((start, end))
    return ranges
