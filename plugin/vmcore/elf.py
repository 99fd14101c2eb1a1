"""Kernel files: symbols and sections out of ELF, without decoding what is not asked for.

``ElfFile`` reads little-endian ELF of 32 and 64 bits.  One symbol costs a
search of the string table and of one column of the symbol table, so that
looking up a handful of names in a kernel of 40000 symbols stays under a few
milliseconds.  Sections without bytes (SHT_NOBITS, also of a kernel stripped of
its code) are met as such.  Malformed files raise DumpError.

Mirrors sys/sys/elf32.h, elf64.h and elf_common.h, the same in every FreeBSD.
"""

from __future__ import annotations

import os
import struct
import zlib
from bisect import bisect_right
from contextlib import suppress
from typing import (
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Literal,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from plugin.arch import name_of
from plugin.errors import DumpError
from plugin.symbol import Symbol
from plugin.vmcore.file import DumpFile
from plugin.vmcore.spool import PathLike, Progress, plain_file

ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
PT_LOAD, PT_NOTE = 1, 4
PF_X = 1
SHT_PROGBITS, SHT_SYMTAB, SHT_NOTE, SHT_NOBITS, SHT_DYNSYM = 1, 2, 7, 8, 11
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 0x1, 0x2, 0x4
SHF_COMPRESSED = 0x800
SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_XINDEX = 0, 0xFF00, 0xFFF1, 0xFFFF
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_GNU_IFUNC = 0, 1, 2, 3, 4, 10
NT_GNU_BUILD_ID = 3

_KINDS = {STT_OBJECT: "object", STT_FUNC: "function", STT_GNU_IFUNC: "function"}
SHT_RELA, SHT_REL = 4, 9
#: relocations of debug information that are a symbol's value and an addend: their widths
_RELOCATIONS = {
    "amd64": {1: 8, 10: 4, 11: 4},  # R_X86_64_64, _32, _32S
    "arm64": {257: 8, 258: 4},  # R_AARCH64_ABS64, _ABS32
    "i386": {1: 4},  # R_386_32
    "riscv64": {1: 4, 2: 8},  # R_RISCV_32, _64
}
#: more headers or symbols than any kernel has: a damaged file
_MOST_HEADERS = 1 << 20
_MOST_BYTES = 1 << 32
#: how far back symbolize looks past labels for the function around them
_LOOK_BACK = 16


class Segment(NamedTuple):
    """A program header."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class Section(NamedTuple):
    """A section header, with the section's name."""

    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


class Form(NamedTuple):
    """Where ELF of one class keeps its fields."""

    header: struct.Struct
    segment: struct.Struct
    section: struct.Struct
    symbol: struct.Struct
    #: what a symbol is made of, for array access: 3 words of 64 bits or 4 of 32
    word: Literal["Q", "I"]


FORMS = {
    1: Form(
        struct.Struct("<16xHHIIIIIHHHHHH"),
        struct.Struct("<IIIIIIII"),
        struct.Struct("<IIIIIIIIII"),
        struct.Struct("<IIIBBH"),
        "I",
    ),
    2: Form(
        struct.Struct("<16xHHIQQQIHHHHHH"),
        struct.Struct("<IIQQQQQQ"),
        struct.Struct("<IIQQQQIIQQ"),
        struct.Struct("<IBBHQQ"),
        "Q",
    ),
}


class SymbolTable:
    """The bytes of one symbol table and its strings; what is asked of it is found by searching.

    ``form`` is ``FORMS[1]`` for 32 bits, ``FORMS[2]`` for 64.
    """

    def __init__(self, form: Form, symbols: bytes, strings: bytes) -> None:
        self.form = form
        count = len(symbols) // form.symbol.size
        self.count = count
        self.symbols = symbols[: count * form.symbol.size]
        self.strings = strings
        self._names: Optional[bytes] = None
        self._used: Optional[FrozenSet[int]] = None
        self._addresses: Optional[List[int]] = None
        self._covering: List[int] = []

    @property
    def names(self) -> bytes:
        """st_name of every symbol, four bytes each, one after the other."""
        if self._names is None:
            step = self.form.symbol.size // 4
            self._names = memoryview(self.symbols).cast("I")[::step].tobytes()
        return self._names

    @property
    def used(self) -> FrozenSet[int]:
        """Every st_name there is."""
        if self._used is None:
            self._used = frozenset(memoryview(self.names).cast("I"))
        return self._used

    def every_name(self) -> FrozenSet[bytes]:
        """All names, and strings that name nothing: for telling at once what is not there."""
        strings = self.strings
        # a linker may have made a name the tail of a longer one
        tails = [at for at in self.used if 0 < at < len(strings) and strings[at - 1]]
        whole = frozenset(strings.split(b"\0"))
        return whole.union(strings[at : strings.find(b"\0", at)] for at in tails)

    def indexes(self, name: str) -> Iterator[int]:
        """Indexes of the symbols called ``name``.

        A linker may keep "foo" as the tail of "barfoo", and may keep one
        string twice: every place where the name ends in NUL is tried.
        """
        wanted = name.encode("utf-8", "backslashreplace") + b"\0"
        if len(wanted) == 1 or b"\0" in wanted[:-1]:
            return
        strings, names = self.strings, self.names
        place = strings.find(wanted)
        while place >= 0:
            packed = place.to_bytes(4, "little")
            whole = place == 0 or strings[place - 1] == 0
            at = names.find(packed) if whole or place in self.used else -1
            while at >= 0:
                if at & 3 == 0:
                    yield at >> 2
                    at = names.find(packed, at + 4)
                else:
                    at = names.find(packed, at + 1)
            place = strings.find(wanted, place + 1)

    def name(self, offset: int) -> str:
        end = self.strings.find(b"\0", offset)
        if end < 0:
            end = len(self.strings)
        return self.strings[offset:end].decode("utf-8", "backslashreplace")

    def fields(self, index: int) -> Tuple[int, int, int, int, int]:
        """(name offset, value, size, info, section index) of one symbol."""
        raw = self.form.symbol.unpack_from(self.symbols, index * self.form.symbol.size)
        if self.form.word == "Q":
            name, info, _, section, value, size = raw
        else:
            name, value, size, info, _, section = raw
        return name, value, size, info, section

    def columns(self) -> Tuple[List[int], List[int], List[int]]:
        """(info | section index << 16, value, size) of all symbols, each a list."""
        view = memoryview(self.symbols).cast(self.form.word)
        if self.form.word == "Q":
            return (
                [word >> 32 for word in view[0::3].tolist()],
                view[1::3].tolist(),
                view[2::3].tolist(),
            )
        return view[3::4].tolist(), view[1::4].tolist(), view[2::4].tolist()

    def symbol(self, index: int) -> Optional[Symbol]:
        """The symbol, None for an undefined one and those that only name files or sections."""
        name, value, size, info, section = self.fields(index)
        type_ = info & 15
        if section == SHN_UNDEF or type_ in (STT_SECTION, STT_FILE):
            return None
        kind = "absolute" if section == SHN_ABS else _KINDS.get(type_, "other")
        return Symbol(self.name(name), value, size, kind, info >> 4 == 0)

    def cover(self, address: int, end: Callable[[int, int], int]) -> Optional[Tuple[str, int]]:
        """(name, offset) of the symbol that covers ``address``, or None.

        A symbol without a size, as assembler leaves them, reaches to the next one or to
        ``end(value, section index)``, whichever comes first.
        """
        if self._addresses is None:
            self._index()
        assert self._addresses is not None
        place = bisect_right(self._addresses, address) - 1
        for back in range(_LOOK_BACK):
            if place < back:
                return None
            name, value, size, _, home = self.fields(self._covering[place - back])
            if address - value < size or (not size and not back and address < end(value, home)):
                return self.name(name), address - value
        return None

    def _index(self) -> None:
        """Sort the symbols that stand for memory; of those at one address the best stays."""
        best: Dict[int, int] = {}
        if self.count:
            heads, values, sizes = self.columns()
            ranks = {head: _rank(head) for head in set(heads)}
            graded = [
                2 * ranks[head] + (size > 0) if ranks[head] else 0
                for head, size in zip(heads, sizes)
            ]
            for rank in sorted(set(graded) - {0}):
                best.update(
                    (values[i], i) for i in range(self.count - 1, -1, -1) if graded[i] == rank
                )
        self._addresses = sorted(best)
        self._covering = [best[at] for at in self._addresses]


class ElfFile:
    """A kernel's ELF file, or any other; compressed ones are spooled first.

    ``path`` is the name given, ``plain_path`` the file that is read.  ``arch``
    is uname's name of the machine ("machine 123" for one without), ``etype``
    and ``machine`` are e_type and e_machine.  ``offset`` is where in the file the
    ELF header lies.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        offset: int = 0,
        spool_dir: Optional[PathLike] = None,
        progress: Optional[Progress] = None,
    ) -> None:
        self.path = os.fspath(path)
        plain = plain_file(path, spool_dir=spool_dir, progress=progress)
        self.plain_path = plain.path
        self._file = DumpFile(plain.path)
        try:
            self._start = offset
            self._size = max(0, len(self._file) - offset)
            self._parse(plain.truncated)
        except BaseException:
            self._file.close()
            raise
        self._table: Optional[SymbolTable] = None

    def __repr__(self) -> str:
        return f"<ElfFile {self.path} {self.arch}>"

    def __enter__(self) -> ElfFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    # Headers

    def _parse(self, truncated: bool) -> None:
        ident = self.pread(0, 20)
        if ident[:4] != b"\x7fELF":
            raise DumpError(f"{self.path} is no ELF file: name the kernel, not {_guess(ident)}")
        form = FORMS.get(ident[4]) if len(ident) == 20 else None
        if form is None:
            raise DumpError(f"{self.path}: damaged ELF header")
        if ident[5] != 1:
            name = name_of(int.from_bytes(ident[18:20], "big"))
            raise DumpError(
                f"{self.path} is a big-endian ELF file ({name}), which is not supported"
            )
        self._form = form
        self.bits = 32 * ident[4]
        head = self._exactly(0, form.header.size, "the header")
        (
            self.etype, self.machine, _, self.entry, phoff, shoff, self.flags,
            _, phentsize, phnum, shentsize, shnum, shstrndx,
        ) = form.header.unpack(head)  # fmt: skip
        self.arch = name_of(self.machine)
        raw = self._section_headers(shoff, shentsize, shnum)
        if raw and phnum == 0xFFFF:
            phnum = raw[0][7]
        if raw and shstrndx == SHN_XINDEX:
            shstrndx = raw[0][6]
        self.segments = self._segments(phoff, phentsize, phnum)
        self.sections = self._named(raw, shstrndx)
        self.truncated = truncated or any(
            s.type != SHT_NOBITS and s.offset + s.size > self._size for s in self.sections
        )

    def _section_headers(self, offset: int, entry: int, count: int) -> List[Tuple[int, ...]]:
        size = self._form.section.size
        if not offset or offset + size > self._size:
            # Section headers lie last: a file cut short has lost them.
            return []
        if entry != size:
            raise DumpError(f"{self.path}: damaged ELF section headers")
        if count == 0:
            count = self._form.section.unpack(self._exactly(offset, size, "section headers"))[5]
        if count > _MOST_HEADERS:
            raise DumpError(f"{self.path}: damaged ELF section headers")
        data = self.pread(offset, count * size)
        whole = len(data) // size * size
        return list(self._form.section.iter_unpack(data[:whole]))

    def _segments(self, offset: int, entry: int, count: int) -> List[Segment]:
        size = self._form.segment.size
        if not count or not offset:
            return []
        if entry != size or count > _MOST_HEADERS:
            raise DumpError(f"{self.path}: damaged ELF program headers")
        data = self._exactly(offset, count * size, "the program headers")
        made = []
        for raw in self._form.segment.iter_unpack(data):
            if self.bits == 64:
                type_, flags, at, vaddr, paddr, filesz, memsz, _ = raw
            else:
                type_, at, vaddr, paddr, filesz, memsz, flags, _ = raw
            made.append(Segment(type_, flags, at, vaddr, paddr, filesz, memsz))
        return made

    def _named(self, raw: Sequence[Tuple[int, ...]], strings: int) -> List[Section]:
        names = b""
        if strings < len(raw):
            _, type_, _, _, offset, size = raw[strings][:6]
            if type_ != SHT_NOBITS:
                names = self.pread(offset, min(size, 1 << 24))
        made = []
        for name, *fields in raw:
            text = names[name : names.find(b"\0", name)] if name < len(names) else b""
            made.append(Section(text.decode("utf-8", "backslashreplace"), *fields))
        return made

    # Bytes

    def pread(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes at an offset counted from the ELF header."""
        if offset >= self._size or size <= 0:
            return b""
        try:
            return self._file.read(self._start + offset, min(size, self._size - offset))
        except OSError as error:
            raise DumpError(f"{self.path}: cannot be read: {error.strerror}") from None

    def _exactly(self, offset: int, size: int, what: str) -> bytes:
        data = self.pread(offset, size)
        if len(data) != size:
            raise DumpError(f"{self.path}: truncated ELF file: {what} lies past its end")
        return data

    def _content(self, section: Section) -> Optional[bytes]:
        if section.type == SHT_NOBITS or section.size > _MOST_BYTES:
            return None
        data = self.pread(section.offset, section.size)
        return data if len(data) == section.size else None

    def section(self, name: str) -> Optional[bytes]:
        """The bytes of the first section of that name that has any, decompressed; else None."""
        for index, section in enumerate(self.sections):
            if section.name == name:
                data = self._content(section)
                if data is not None:
                    return self._relocated(index, self._inflated(section, data))
        return None

    def _relocated(self, index: int, data: Optional[bytes]) -> Optional[bytes]:
        """Debug information of a relocatable file (a module of amd64) as if it were linked.

        Only what refers from one debug section into another: each begins at 0.
        """
        own = next(
            (s for s in self.sections if s.type in (SHT_RELA, SHT_REL) and s.info == index), None
        )
        if data is None or own is None or self.etype != ET_REL or not self._is_debug(index):
            return data
        entries = self._content(own)
        entries = self._inflated(own, entries) if entries is not None else None
        if entries is None:
            return None
        wide, explicit = self.bits == 64, own.type == SHT_RELA
        form = struct.Struct({True: "<QQq", False: "<IIi"}[wide][: 4 if explicit else 3])
        widths = _RELOCATIONS.get(self.arch, {})
        shift, mask = (32, 0xFFFFFFFF) if wide else (8, 0xFF)
        symbols = memoryview(self.table.symbols).cast("Q" if wide else "I")[1 :: 3 if wide else 4]
        made = bytearray(data)
        usable = len(entries) // form.size * form.size
        for offset, info, *addend in form.iter_unpack(entries[:usable]):
            width, symbol = widths.get(info & mask), info >> shift
            if width is None or offset + width > len(made) or symbol >= len(symbols):
                continue
            value = symbols[symbol]
            if explicit:
                value += addend[0]
            else:
                value += int.from_bytes(made[offset : offset + width], "little")
            made[offset : offset + width] = (value & ((1 << 8 * width) - 1)).to_bytes(
                width, "little"
            )
        return bytes(made)

    def _is_debug(self, index: int) -> bool:
        return self.sections[index].name.startswith(".debug_")

    def _inflated(self, section: Section, data: bytes) -> Optional[bytes]:
        if not section.flags & SHF_COMPRESSED:
            return data
        form = "<I4xQQ" if self.bits == 64 else "<III"
        header = struct.calcsize(form)
        if len(data) < header:
            return None
        kind, size, _ = struct.unpack_from(form, data)
        if size > _MOST_BYTES:
            return None
        with suppress(zlib.error):
            if kind == 1:
                plain = zlib.decompressobj().decompress(data[header:], size)
                return plain if len(plain) == size else None
        return None

    def read(self, address: int, size: int) -> Optional[bytes]:
        """Initial bytes of the program at a virtual address; None where the file has none."""
        if size <= 0:
            return None
        for segment in self.segments:
            if segment.type == PT_LOAD and segment.vaddr <= address:
                inside = address - segment.vaddr
                if inside + size <= segment.filesz:
                    data = self.pread(segment.offset + inside, size)
                    if len(data) == size:
                        return data
        return None

    def read_only(self, address: int, size: int) -> Optional[bytes]:
        """Bytes at a virtual address that the running program cannot change; None of others."""
        for section in self.sections:
            inside = address - section.addr
            if (
                section.type == SHT_PROGBITS
                and section.flags & (SHF_ALLOC | SHF_WRITE | SHF_COMPRESSED) == SHF_ALLOC
                and 0 <= inside <= section.size - size
            ):
                data = self.pread(section.offset + inside, size)
                return data if len(data) == size else None
        return None

    # Symbols

    @property
    def table(self) -> SymbolTable:
        """The symbol table: .symtab, or .dynsym where that is missing or has no bytes."""
        if self._table is None:
            self._table = self._load_table()
        return self._table

    def _load_table(self) -> SymbolTable:
        for wanted in (SHT_SYMTAB, SHT_DYNSYM):
            for section in self.sections:
                if section.type != wanted or section.link >= len(self.sections):
                    continue
                symbols = self._content(section)
                strings = self._content(self.sections[section.link])
                if symbols and strings:
                    if section.entsize not in (0, self._form.symbol.size):
                        raise DumpError(f"{self.path}: damaged ELF symbol table")
                    return SymbolTable(self._form, symbols, strings)
        return SymbolTable(self._form, b"", b"")

    @property
    def has_symbols(self) -> bool:
        return self.table.count > 0

    def symbols(self, name: str) -> List[Symbol]:
        """Every defined symbol of that name, static ones and duplicates too; [] if none."""
        table = self.table
        found = (table.symbol(index) for index in sorted(set(table.indexes(name))))
        return [symbol for symbol in found if symbol is not None]

    def symbol(self, name: str) -> Optional[Symbol]:
        """The symbol of that name; of several the first global one, else the first."""
        found = self.symbols(name)
        return next((s for s in found if not s.local), found[0] if found else None)

    def all_symbols(self) -> Iterator[Symbol]:
        """Every defined symbol, in the table's order."""
        for index in range(self.table.count):
            symbol = self.table.symbol(index)
            if symbol is not None:
                yield symbol

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        """(name, offset) of the symbol that covers ``address``, or None.

        A symbol without a size ends with its section.  One that stands at that end
        (``_end``, ``etext``) names nothing: what follows is no longer its section's.
        """
        return self.table.cover(address, self._end)

    def _end(self, value: int, home: int) -> int:
        """Where the section that holds ``value`` ends; ``value`` itself where none does.

        A linker files a symbol it makes up under a neighbouring section, so that the
        one named by st_shndx, ``home``, is only the first to be looked at.
        """
        sections = self.sections
        likely = sections[home : home + 1] if home < len(sections) else []
        for section in (*likely, *sections):
            if section.flags & SHF_ALLOC and section.addr <= value < section.addr + section.size:
                return section.addr + section.size
        return value

    # Notes and links to other files

    @property
    def build_id(self) -> Optional[str]:
        """The GNU build id in hexadecimal digits, None where the file has none."""
        for section in self.sections:
            if section.type == SHT_NOTE or section.name == ".note.gnu.build-id":
                found = _build_id(self._content(section) or b"")
                if found:
                    return found
        for segment in self.segments:
            if segment.type == PT_NOTE:
                found = _build_id(self.pread(segment.offset, min(segment.filesz, 1 << 20)))
                if found:
                    return found
        return None

    @property
    def debuglink(self) -> Optional[Tuple[str, int]]:
        """(file name, CRC-32) of .gnu_debuglink, None where there is none."""
        data = self.section(".gnu_debuglink") or b""
        end = data.find(b"\0")
        place = (end + 4) & ~3
        if end <= 0 or place + 4 > len(data):
            return None
        name = data[:end].decode("utf-8", "backslashreplace")
        return name, int.from_bytes(data[place : place + 4], "little")


def _rank(head: int) -> int:
    """How well a symbol explains its address, 0 if not at all; ``head`` as of columns()."""
    type_, local, home = head & 15, not head >> 4 & 15, head >> 16
    if home in (SHN_UNDEF, SHN_ABS) or (type_ != STT_NOTYPE and type_ not in _KINDS):
        return 0
    return 1 + (not local) + 2 * (type_ in _KINDS)


def notes(data: bytes) -> Iterator[Tuple[bytes, int, bytes]]:
    """(owner, type, descriptor) of each note in a PT_NOTE segment's bytes."""
    at = 0
    while at + 12 <= len(data):
        namesz, descsz, type_ = struct.unpack_from("<III", data, at)
        start = at + 12 + (namesz + 3 & ~3)
        if start + descsz > len(data):
            return
        yield data[at + 12 : at + 12 + namesz].rstrip(b"\0"), type_, data[start : start + descsz]
        at = start + (descsz + 3 & ~3)


def _build_id(data: bytes) -> Optional[str]:
    for owner, type_, descriptor in notes(data):
        if owner == b"GNU" and type_ == NT_GNU_BUILD_ID and descriptor:
            return descriptor.hex()
    return None


def _guess(head: bytes) -> str:
    if head.startswith(b"minidump"):
        return "the dump"
    return "an empty file" if not head else "some other file"
