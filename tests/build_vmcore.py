"""Kernels, minidumps and full dumps built byte by byte, for the tests of plugin.vmcore.

Written from FreeBSD's headers (sys/<arch>/include/minidump.h, pmap.h, pte.h,
sys/sys/kerneldump.h), apart from the code under test and apart from
tests.forge: an error in one must not hide the same error in the other.
"""

from __future__ import annotations

import random
import struct
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

PAGE = 4096

EM = {"i386": 3, "armv7": 40, "amd64": 62, "arm64": 183, "riscv64": 243}
NOTYPE, OBJECT, FUNC, SECTION, FILE = 0, 1, 2, 3, 4
UNDEF, ABS = 0, 0xFFF1


def page_of(seed: int, size: int = PAGE) -> bytes:
    """A page unlike any other."""
    return (
        random.Random(seed).randbytes(size) if hasattr(random, "randbytes") else _bytes(seed, size)
    )


def _bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "little")


def pad(data: bytes, page: int = PAGE) -> bytes:
    return data + bytes(-len(data) % page)


# ELF


class Sym(NamedTuple):
    name: str
    value: int
    size: int = 8
    type: int = OBJECT
    local: bool = False
    #: index of the section it lies in; UNDEF and ABS are special
    section: int = 1


class Sec(NamedTuple):
    name: str
    type: int = 1
    flags: int = 2
    addr: int = 0
    data: bytes = b""
    #: of a NOBITS section, whose data is empty
    size: int = 0
    link: int = 0


def elf(
    machine: str = "amd64",
    symbols: Sequence[Sym] = (),
    *,
    etype: int = 2,
    sections: Sequence[Sec] = (),
    segments: Sequence[Tuple[int, int, int, bytes]] = (),
    strings: Optional[bytes] = None,
    dynamic: bool = False,
    hold_symbols: bool = True,
) -> bytes:
    """An ELF file; ``segments`` are (type, vaddr, paddr, data).

    Section 1 is a .bss without bytes, as all of a stripped kernel's are.  With
    ``strings`` given, symbols' names are looked up in it, wherever they lie.
    """
    bits = 32 if machine in ("i386", "armv7") else 64
    made: List[Sec] = [Sec("", 0, 0), Sec(".bss", 8, 3, 0x1000, b"", 0x4000), *sections]
    if symbols:
        if strings is None:
            strings = b"\0" + b"".join(dict.fromkeys(s.name.encode() + b"\0" for s in symbols))
        table = bytes(16 if bits == 32 else 24)
        for s in symbols:
            at = strings.index(s.name.encode() + b"\0")
            info = (0 if s.local else 0x10) | s.type
            if bits == 64:
                table += struct.pack("<IBBHQQ", at, info, 0, s.section, s.value, s.size)
            else:
                table += struct.pack("<IIIBBH", at, s.value, s.size, info, 0, s.section)
        name = (".dynsym", ".dynstr") if dynamic else (".symtab", ".strtab")
        kind = 11 if dynamic else 2
        if not hold_symbols:
            kind, table = 8, b""
        made.append(Sec(name[0], kind, 0, data=table, link=len(made) + 1))
        made.append(Sec(name[1], 3, 0, data=strings))
    names = b"\0"
    offsets = []
    for home in [*made, Sec(".shstrtab")]:
        offsets.append(len(names) if home.name else 0)
        names += home.name.encode() + b"\0" if home.name else b""
    made.append(Sec(".shstrtab", 3, 0, data=names))

    header = 64 if bits == 64 else 52
    phsize = 56 if bits == 64 else 32
    body = b""
    base = header + phsize * len(segments)
    programs = b""
    for type_, vaddr, paddr, data in segments:
        at = base + len(body)
        fields = (at, vaddr, paddr, len(data), len(data))
        if bits == 64:
            programs += struct.pack("<IIQQQQQQ", type_, 6, *fields, PAGE)
        else:
            programs += struct.pack("<IIIIIIII", type_, *fields, 6, PAGE)
        body += data
    headers = b""
    form = "<IIQQQQIIQQ" if bits == 64 else "<IIIIIIIIII"
    for home, name_at in zip(made, offsets):
        at = base + len(body)
        size = home.size or len(home.data)
        width = (24 if bits == 64 else 16) if home.type in (2, 11) else 0
        headers += struct.pack(
            form, name_at, home.type, home.flags, home.addr, at, size, home.link, 0, 1, width
        )
        body += home.data
    shoff = base + len(body)
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1, 9]) + bytes(8)
    head = ident + struct.pack(
        "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH",
        etype, EM[machine], 1, 0, header if segments else 0, shoff, 0, header, phsize,
        len(segments), 64 if bits == 64 else 40, len(made), len(made) - 1,
    )  # fmt: skip
    return head + programs + body + headers


def full_dump(machine: str, memory: Dict[int, bytes], *, notes: Sequence[bytes] = ()) -> bytes:
    """A full dump of pages at physical addresses: one segment for each contiguous stretch."""
    segments: List[Tuple[int, int, int, bytes]] = []
    raw = b""
    for note in notes:
        owner = note + b"\0"
        raw += struct.pack("<III", len(owner), 2, 1) + owner + bytes(-len(owner) % 4) + bytes(4)
    if raw:
        segments.append((4, 0, 0, raw))
    for pa in sorted(memory):
        if segments and segments[-1][0] == 1 and segments[-1][2] + len(segments[-1][3]) == pa:
            last = segments.pop()
            segments.append((1, last[1], last[2], last[3] + memory[pa]))
        else:
            segments.append((1, pa, pa, memory[pa]))
    return elf(machine, etype=4, segments=segments)


# Page tables


class Memory:
    """Physical pages being laid out; page tables are taken from ``spare`` upwards."""

    def __init__(self, spare: int = 0x100000) -> None:
        self.pages: Dict[int, bytearray] = {}
        self.spare = spare

    def page(self, pa: int) -> bytearray:
        return self.pages.setdefault(pa, bytearray(PAGE))

    def new(self) -> int:
        pa, self.spare = self.spare, self.spare + PAGE
        self.page(pa)
        return pa

    def put(self, pa: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            inside = pa + at & 0xFFF
            piece = data[at : at + PAGE - inside]
            self.page(pa + at - inside)[inside : inside + len(piece)] = piece
            at += len(piece)

    def entry(self, table: int, index: int, width: int) -> int:
        return int.from_bytes(self.page(table)[index * width : (index + 1) * width], "little")

    def set_entry(self, table: int, index: int, width: int, value: int) -> None:
        self.page(table)[index * width : (index + 1) * width] = value.to_bytes(width, "little")

    def map(
        self, root: int, va: int, pa: int, shifts: Sequence[int], width: int = 8, large: int = 0
    ) -> None:
        """Map one page; ``large`` is the shift at which PG_PS ends the walk (21, 22, 30)."""
        table = root
        for shift in shifts:
            index = va >> shift & (PAGE // width - 1)
            if shift == large:
                # With PG_PDE_PAT, which in a small page's entry would be address.
                self.set_entry(table, index, width, pa | 0x1083)
                return
            following = self.entry(table, index, width)
            if not following & 1:
                # A pointer table of PAE has no other bits than these.
                following = self.new() | 1
                self.set_entry(table, index, width, following)
            table = following & ~0xFFF
        self.set_entry(table, va >> 12 & (PAGE // width - 1), width, pa | 0x3)

    def bytes(self) -> Dict[int, bytes]:
        return {pa: bytes(page) for pa, page in self.pages.items()}


LA48 = (39, 30, 21)
LA57 = (48, 39, 30, 21)


# Minidumps


def stale(layout: Layout, pa: int) -> int:
    """An entry that holds an address but maps no kernel page."""
    if layout.arch == "arm64":
        # A block's descriptor, which this level does not have.
        return pa | 0x401
    if layout.arch == "riscv64":
        # Valid, but a pointer to another table.
        return pa >> 12 << 10 | 1
    if layout.arch == "armv7":
        # Of no type.
        return pa | 0x450
    return pa | 0x162


#: page-table entries that are not valid but still hold addresses
STALE = b"".join((0x5000 + n * PAGE).to_bytes(8, "little") for n in range(512))


class Layout(NamedTuple):
    """One architecture's minidump, as sys/<arch>/include/minidump.h and pte.h have it."""

    arch: str
    version: int
    kernbase: int
    dmapbase: int = 0
    dmapend: int = 0
    dmapphys: int = 0
    page: int = PAGE
    #: width of a page-table entry
    width: int = 8


AMD64 = (0xFFFFFE0000000000, 0xFFFFF80000000000, 0xFFFFFC0000000000)
LAYOUTS = {
    **{f"amd64-v{v}": Layout("amd64", v, *AMD64) for v in (1, 2, 3)},
    "amd64-v2-9.3": Layout("amd64", 2, 0xFFFFFF8000000000, 0xFFFFFE0000000000, 0xFFFFFF0000000000),
    **{f"armv7-v{v}": Layout("armv7", v, 0xC0000000, width=4) for v in (1, 2)},
    **{f"i386-v{v}": Layout("i386", v, 0xC0000000, width=4) for v in (1, 2)},
    **{f"i386-pae-v{v}": Layout("i386", v, 0x800000, width=8) for v in (1, 2)},
    **{
        f"arm64-v{v}": Layout(
            "arm64", v, 0xFFFF000000000000, 0xFFFFA00000000000, 0xFFFFA10000000000, 0x40000000
        )
        for v in (1, 2, 3)
    },
    "arm64-v3-16k": Layout(
        "arm64", 3, 0xFFFF000000000000, 0xFFFFA00000000000, 0xFFFFA10000000000, 0x40000000, 16384
    ),
    **{
        f"riscv64-v{v}": Layout(
            "riscv64", v, 0xFFFFFFC000000000, 0xFFFFFFD000000000, 0xFFFFFFF000000000, 0x80000000
        )
        for v in (1, 2)
    },
}
HAS_DUMP_AVAIL = {"armv7": 2, "amd64": 3, "i386": 2, "arm64": 2, "riscv64": 2}


def entry(layout: Layout, pa: int) -> int:
    """The page-table entry of a valid kernel page."""
    if layout.arch == "arm64":
        # AF, inner shareable, UXN and L3_PAGE, as pmap_kenter() makes them.
        attributes = 1 << 54 | 1 << 10 | 3 << 8
        # Below a page of 16 KB these bits are no address.
        return pa | attributes | (0x3000 if layout.page == 16384 else 0) | 3
    if layout.arch == "riscv64":
        # With Svnapot's and Svpbmt's bits above the page's number.
        return 1 << 63 | 1 << 61 | pa >> 12 << 10 | 0xE7
    if layout.arch == "armv7":
        # A small page, not executable, as pmap-v6.c makes them.
        return pa | 0x453
    nx = 1 << 63 if layout.width == 8 else 0
    return pa | nx | 0x163


def minidump(
    layout: Layout,
    memory: Dict[int, bytes],
    mapping: Dict[int, int],
    *,
    superpages: Optional[Dict[int, int]] = None,
    ranges: Sequence[Tuple[int, int]] = (),
    msgbuf: bytes = b"hello from the message buffer\n",
    absent: Iterable[int] = (),
) -> bytes:
    """A minidump of ``memory`` (page by physical address) with ``mapping`` (va to pa).

    ``superpages`` maps 2 MB pages (amd64 from version 2).  Where the version
    has dump_avail, ``ranges`` are its pairs; else the bitmap starts at page 0.
    Pages in ``absent`` are mapped but not dumped.
    """
    page = layout.page
    memory = dict(memory)
    pmap = _pmap(layout, memory, mapping, superpages or {})
    for pa in absent:
        memory.pop(pa, None)
    numbers = sorted(memory)
    has_avail = layout.version >= HAS_DUMP_AVAIL[layout.arch]
    avail = b""
    if has_avail:
        ranges = ranges or [(0, max(numbers, default=0) + page)]
        avail = b"".join(struct.pack("<QQ", *pair) for pair in ranges) + bytes(16)
        avail = pad(avail, page)
    bits = [_bit(pa, page, ranges if has_avail else None) for pa in numbers]
    bitmap = bytearray((max(bits, default=0) // 64 + 1) * 8)
    for bit in bits:
        bitmap[bit >> 3] |= 1 << (bit & 7)
    data = b"".join(memory[pa] for pa in numbers)
    head = _header(layout, len(msgbuf), len(bitmap), len(pmap), len(avail))
    return (
        # What lies behind the header's last member means nothing.
        head.ljust(page, b"\xa5")
        + pad(msgbuf, page)
        + avail
        + pad(bytes(bitmap), page)
        + pad(pmap, page)
        + data
    )


def _bit(pa: int, page: int, ranges: Optional[Sequence[Tuple[int, int]]]) -> int:
    if ranges is None:
        return pa // page
    before = 0
    for start, end in ranges:
        if start // page * page <= pa < end:
            return before + pa // page - start // page
        before += -(-end // page) - start // page
    raise AssertionError(f"{pa:#x} is in no range")


def _pmap(
    layout: Layout, memory: Dict[int, bytes], mapping: Dict[int, int], superpages: Dict[int, int]
) -> bytes:
    if layout.arch == "amd64" and layout.version > 1:
        return _directory(layout, memory, mapping, superpages)
    assert not superpages
    last = max((va - layout.kernbase for va in mapping), default=0) // layout.page
    table = bytearray(-(-(last + 1) * layout.width // layout.page) * layout.page)
    held = next(iter(memory))
    table[:] = stale(layout, held).to_bytes(layout.width, "little") * (len(table) // layout.width)
    for va, pa in mapping.items():
        index = (va - layout.kernbase) // layout.page
        value = entry(layout, pa).to_bytes(layout.width, "little")
        table[index * layout.width : (index + 1) * layout.width] = value
    return bytes(table)


def _directory(
    layout: Layout, memory: Dict[int, bytes], mapping: Dict[int, int], superpages: Dict[int, int]
) -> bytes:
    """Page-directory entries from kernbase on; page-table pages join ``memory``."""
    spare = max(memory, default=0) + PAGE
    tables: Dict[int, bytearray] = {}
    for va, pa in mapping.items():
        table = tables.setdefault((va - layout.kernbase) >> 21, bytearray(STALE))
        index = va >> 12 & 511
        table[index * 8 : index * 8 + 8] = entry(layout, pa).to_bytes(8, "little")
        if va + PAGE not in mapping and index < 511:
            # Not valid, but where the next page would be.
            table[index * 8 + 8 : index * 8 + 16] = stale(layout, pa + PAGE).to_bytes(8, "little")
    entries: Dict[int, int] = {
        (va - layout.kernbase) >> 21: pa | 0x1000 | 0x80 | 0x163 | 1 << 63
        for va, pa in superpages.items()
    }
    for number, table in sorted(tables.items()):
        assert number not in entries
        entries[number] = spare | 0x63
        memory[spare] = bytes(table)
        spare += PAGE
    # One page of entries for each GB, as the kernel writes them.
    directory = bytearray((max(entries, default=0) // 512 + 1) * PAGE)
    for number, value in entries.items():
        directory[number * 8 : number * 8 + 8] = value.to_bytes(8, "little")
    return bytes(directory)


def _header(layout: Layout, msgbuf: int, bitmap: int, pmap: int, avail: int) -> bytes:
    name = {"riscv64": "riscv", "armv7": "arm"}.get(layout.arch, layout.arch)
    magic = f"minidump FreeBSD/{name}".encode().ljust(24, b"\0")
    sizes = struct.pack("<4I", layout.version, msgbuf, bitmap, pmap)
    last = struct.pack("<I", avail) if avail else b""
    if layout.arch == "i386":
        return magic + sizes + struct.pack("<2I", layout.kernbase, layout.width == 8) + last
    if layout.arch == "armv7":
        # arch and mmuformat lie between: 7, and MINIDUMP_MMU_FORMAT_V6.
        return magic + sizes + struct.pack("<3I", layout.kernbase, 7, 2) + last
    if layout.arch == "amd64":
        rest = struct.pack("<3Q", layout.kernbase, layout.dmapbase, layout.dmapend)
    else:
        rest = struct.pack("<4Q", layout.kernbase, layout.dmapphys, layout.dmapbase, layout.dmapend)
    flags = struct.pack("<I", layout.page == 16384) if layout.version >= 3 else b""
    return magic + sizes + rest + last + flags


# Dump devices


def dump_header(
    length: int,
    *,
    magic: bytes = b"FreeBSD Kernel Dump",
    arch: bytes = b"amd64",
    version: int = 4,
    keysize: int = 0,
    compression: int = 0,
    extent: Optional[int] = None,
) -> bytes:
    """struct kerneldumpheader, with its parity."""
    host, text, panic = b"stuck.example.org", b"FreeBSD 14.2-RELEASE GENERIC", b"page fault"
    front = magic.ljust(20, b"\0") + arch.ljust(12, b"\0")
    if version >= 4:
        made = front + struct.pack(
            ">IIQQII64s192s175sBQ4s", version, 2, length, 1700000000, keysize, 512,
            host, text, panic, compression, length if extent is None else extent, b"",
        )  # fmt: skip
    else:
        made = front + struct.pack(
            ">IIQQI64s192s192s", version, 2, length, 1700000000, 512, host, text, panic
        )
    parity = 0
    for word in struct.unpack(">127I", made):
        parity ^= word
    return made + struct.pack(">I", parity)


def dump_device(dump: bytes, *, front: int = 65536, sector: int = 512, **header: object) -> bytes:
    """A dump device's content: metadata left alone, header, dump, header in the last sector."""
    head = dump_header(len(dump), **header)  # type: ignore[arg-type]
    return bytes(front) + head.ljust(sector, b"\0") + dump + head.ljust(sector, b"\0")
