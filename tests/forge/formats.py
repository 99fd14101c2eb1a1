"""Writers of FreeBSD's dump formats over a forged address space.

A *full dump* is an ELF core whose PT_LOADs are runs of physical memory
(sys/kern/kern_dump.c, sys/<arch>/<arch>/dump_machdep.c): what every kernel up
to 7.0 wrote, and any kernel with debug.minidump=0 still does.  A *minidump*
is a header, the message buffer, a bitmap of pages, page tables, then the pages
(sys/<arch>/<arch>/minidump_machdep.c and minidump.h).

A real machine dumps all of its memory; a forged one only the pages the
scenario touched, so a full dump has one segment per run of those.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Iterator, List, NamedTuple, Sequence, Tuple

from plugin.errors import UsageError
from tests.forge import paging
from tests.forge.memory import PAGE_SIZE, ZERO, Space

_MACHINE = {"i386": 3, "amd64": 62, "arm64": 183}


class Format(NamedTuple):
    """``kind`` is "full" or "minidump"; ``version`` that of the minidump header."""

    kind: str
    version: int = 0


def native(arch: str, osreldate: int) -> Format:
    """What a kernel of that version writes unless told otherwise.

    Minidumps came after 7.0-CURRENT of 2006-03; version 2 on amd64 with 9.1,
    dump_avail (3 on amd64, 2 on arm64 and i386) with 13.0, flags on arm64 with
    14.0 (sys/<arch>/include/minidump.h).
    """
    if osreldate < 800000:
        return Format("full")
    if arch == "amd64":
        return Format("minidump", 3 if osreldate >= 1300000 else 2 if osreldate >= 901000 else 1)
    if arch == "arm64":
        return Format("minidump", 3 if osreldate >= 1400000 else 2 if osreldate >= 1300000 else 1)
    return Format("minidump", 2 if osreldate >= 1300000 else 1)


def write(
    path: Path,
    space: Space,
    tables: paging.Tables,
    form: Format,
    *,
    msgbuf: bytes = b"",
    pae: bool = False,
) -> None:
    """Write the dump; ``msgbuf`` is the message buffer's text area as it lies in memory."""
    if form.kind == "full":
        _write_full(path, space)
    elif form.kind == "minidump":
        _write_minidump(path, space, tables, form.version, msgbuf, pae)
    else:
        raise UsageError(f"no such dump format: {form.kind}")


def _runs(pfns: Sequence[int]) -> Iterator[Tuple[int, int]]:
    """(first, count) of the contiguous runs in a sorted list."""
    first = previous = None
    for pfn in pfns:
        if previous is not None and pfn == previous + 1:
            previous = pfn
            continue
        if first is not None and previous is not None:
            yield first, previous - first + 1
        first = previous = pfn
    if first is not None and previous is not None:
        yield first, previous - first + 1


def _write_full(path: Path, space: Space) -> None:
    if space.bulk:
        raise UsageError("a page array made in bulk is written to minidumps only")
    runs = list(_runs(sorted(space.pages)))
    wide = space.map.pointer_size == 8
    ehsize, phentsize = (64, 56) if wide else (52, 32)
    offset = -(-(ehsize + phentsize * len(runs)) // PAGE_SIZE) * PAGE_SIZE
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1, 9)) + bytes(8)
    # ET_CORE; e_flags 0; no sections, as dump_machdep.c writes it.
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        4,
        _MACHINE[space.map.arch],
        1,
        0,
        ehsize,
        0,
        0,
        ehsize,
        phentsize,
        len(runs),
        64 if wide else 40,
        0,
        0,
    )
    programs = []
    for first, count in runs:
        pa, size = first * PAGE_SIZE, count * PAGE_SIZE
        if wide:
            programs.append(struct.pack("<IIQQQQQQ", 1, 4, offset, pa, pa, size, size, PAGE_SIZE))
        else:
            programs.append(struct.pack("<IIIIIIII", 1, offset, pa, pa, size, size, 4, PAGE_SIZE))
        offset += size
    with open(path, "wb") as out:
        out.write(_padded(header + b"".join(programs)))
        for first, count in runs:
            _write_pages(out, space, range(first, first + count))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % PAGE_SIZE)


def _write_pages(out: BinaryIO, space: Space, pfns: Sequence[int]) -> None:
    for pfn in pfns:
        page = space.pages[pfn]
        if page == ZERO:
            out.seek(PAGE_SIZE, 1)
        else:
            out.write(page)
    # A hole at the end is no part of the file until something follows it.
    out.truncate(out.tell())


def _write_minidump(
    path: Path, space: Space, tables: paging.Tables, version: int, msgbuf: bytes, pae: bool
) -> None:
    arch = space.map.arch
    if arch == "amd64":
        pmap = _amd64_directories(space, tables) if version >= 2 else _amd64_entries(space, tables)
    elif arch == "arm64":
        pmap = _arm64_entries(space, tables)
    else:
        pmap = _i386_entries(space, tables)
    avail = _dump_avail(space) if version >= (3 if arch == "amd64" else 2) else []
    bitmap = _bitmap(space, avail)
    pmapsize = sum(size for size, _ in pmap)
    avail_bytes = _padded(b"".join(struct.pack("<QQ", *pair) for pair in avail) + bytes(16))
    if not avail:
        avail_bytes = b""
    m = space.map
    magic = f"minidump FreeBSD/{arch}".encode()
    fields = [version, len(msgbuf), len(bitmap), pmapsize]
    if arch == "i386":
        header = struct.pack("<24s6I", magic, *fields, m.kernbase, int(pae))
        if avail:
            header += struct.pack("<I", len(avail_bytes))
    elif arch == "amd64":
        header = struct.pack("<24s4I3Q", magic, *fields, m.kva_min, *m.dmap)
        if avail:
            header += struct.pack("<I", len(avail_bytes))
    else:
        header = struct.pack("<24s4I4Q", magic, *fields, m.kva_min, m.dmap_pa, *m.dmap)
        if avail:
            header += struct.pack("<I", len(avail_bytes))
        if version >= 3:
            # MINIDUMP_FLAG_PS_4K
            header += struct.pack("<I", 0)
    with open(path, "wb") as out:
        out.write(_padded(header))
        out.write(_padded(msgbuf))
        out.write(avail_bytes)
        out.write(bitmap)
        for size, data in pmap:
            if data.count(0) == len(data):
                out.seek(size, 1)
            else:
                out.write(data)
                out.seek(size - len(data), 1)
        pages = sorted(space.pages)
        for bulk in sorted(space.bulk):
            before = bisect_left(pages, bulk.first)
            _write_pages(out, space, pages[:before])
            written = sum(out.write(piece) for piece in bulk.content())
            out.write(bytes(bulk.pages * PAGE_SIZE - written))
            pages = pages[before:]
        _write_pages(out, space, pages)


def _dump_avail(space: Space) -> List[Tuple[int, int]]:
    """dump_avail[]: all of memory, in two ranges as a machine with a hole has it."""
    first, end = space.map.ram
    pages = sorted(space.pages)
    low = min(first, pages[0] * PAGE_SIZE)
    end = max(end, (pages[-1] + 1) * PAGE_SIZE)
    hole = 0xA0000
    if (
        space.map.arch in ("amd64", "i386")
        and low < hole < end
        and not any(hole <= p * PAGE_SIZE < 0x100000 for p in pages)
    ):
        return [(low, hole), (0x100000, end)]
    return [(low, end)]


def _bitmap(space: Space, avail: List[Tuple[int, int]]) -> bytes:
    """One bit per page: over dump_avail's ranges where there is one, else by page number."""
    if avail:
        starts, total = [], 0
        for low, high in avail:
            starts.append((low // PAGE_SIZE, -(-high // PAGE_SIZE), total))
            total += -(-high // PAGE_SIZE) - low // PAGE_SIZE
    else:
        total = max(max(space.pages) + 1, space.map.ram[1] // PAGE_SIZE)
        starts = [(0, total, 0)]
    bits = bytearray(-(-total // 64) * 8)
    for pfn in chain(space.pages, *(range(b.first, b.first + b.pages) for b in space.bulk)):
        for low, high, base in starts:
            if low <= pfn < high:
                index = base + pfn - low
                bits[index >> 3] |= 1 << (index & 7)
                break
        else:
            raise UsageError(f"physical page {pfn:#x} lies outside the machine's memory")
    return _padded(bytes(bits))


_Pieces = List[Tuple[int, bytes]]


def _amd64_directories(space: Space, tables: paging.Tables) -> _Pieces:
    """Version 2 on: a page of page-directory entries per GB from kva_min on."""
    pieces = []
    end = (space.mapped()[-1][0] + 1) * PAGE_SIZE
    level = tables.levels - 3
    for address in range(space.map.kva_min, end, 1 << 30):
        above = paging.entry(space, tables, address, level)
        page = space.page((above & 0x000FFFFFFFFFF000) // PAGE_SIZE) if above else b"\0"
        pieces.append((PAGE_SIZE, bytes(page)))
    return pieces


def _amd64_entries(space: Space, tables: paging.Tables) -> _Pieces:
    """Version 1: a page-table entry per page from kva_min on, superpages expanded."""
    return _entries(space, tables, space.map.kva_min, 21, tables.levels - 2)


def _arm64_entries(space: Space, tables: paging.Tables) -> _Pieces:
    return _entries(space, tables, space.map.kva_min, 21, tables.levels - 2)


def _i386_entries(space: Space, tables: paging.Tables) -> _Pieces:
    shift = 21 if tables.width == 8 else 22
    return _entries(space, tables, space.map.kernbase, shift, tables.levels - 2)


def _entries(space: Space, tables: paging.Tables, base: int, shift: int, level: int) -> _Pieces:
    """The lowest entries of the tables, a page of them for every 1 << ``shift`` bytes."""
    pieces = []
    end = (space.mapped()[-1][0] + 1) * PAGE_SIZE
    code = "<I" if tables.width == 4 else "<Q"
    frame = 0xFFFFF000 if tables.width == 4 else 0x000FFFFFFFFFF000
    for address in range(base, end, 1 << shift):
        found = paging.entry(space, tables, address, level)
        if not found:
            data = b"\0"
        elif space.map.arch != "arm64" and found & paging.PG_PS:
            first, flags = found & frame & -(1 << shift), (found & 0xFFF) & ~paging.PG_PS
            data = b"".join(
                struct.pack(code, (first + at * PAGE_SIZE) | flags)
                for at in range(PAGE_SIZE // tables.width)
            )
        else:
            data = bytes(space.page((found & frame) // PAGE_SIZE))
        pieces.append((PAGE_SIZE, data))
    return pieces
