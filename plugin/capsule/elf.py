"""The file of symbols that a capsule carries of a kernel or module: no code, no data.

What names things is kept as it is: section headers, symbols, the build id, CTF.  Everything
else is there as a header without bytes, which is how debuggers and ``plugin.vmcore.elf`` meet
a stripped kernel too.
"""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Tuple

from plugin.structs.ctf import SECTION as CTF
from plugin.structs.ctf import inflated
from plugin.structs.kept import SECTION as KEPT
from plugin.vmcore.elf import FORMS, SHT_DYNSYM, SHT_NOBITS, SHT_NOTE, SHT_SYMTAB, ElfFile, Section

_IDENT = 16
_PROGBITS = 1
_STRTAB = 3
#: ET_REL's relocations mean nothing without what they relocate
_RELOCATIONS = (4, 9)


class _Kept(NamedTuple):
    section: Section
    data: bytes


def symbol_file(elf: ElfFile, layouts: bytes) -> bytes:
    """The bytes of such a file; ``layouts``, if any, become its section of kept layouts."""
    form = FORMS[elf.bits // 32]
    kept = [_kept(elf, section) for section in elf.sections[1:]]
    if layouts:
        kept.append(_Kept(Section(KEPT, _PROGBITS, 0, 0, 0, 0, 0, 0, 1, 0), layouts))
    names = _Kept(Section(".shstrtab", _STRTAB, 0, 0, 0, 0, 0, 0, 1, 0), b"")
    strings, offsets = _strings([each.section.name for each in (*kept, names)])
    kept.append(names._replace(data=strings))
    segments = [segment for segment in elf.segments if segment.type == 1]
    at = form.header.size + len(segments) * form.segment.size
    body: List[bytes] = []
    headers = [bytes(form.section.size)]
    for (section, data), name in zip(kept, offsets):
        if data:
            pad = -at % 8
            body += [bytes(pad), data]
            at += pad
        headers.append(
            form.section.pack(
                name, section.type, section.flags, section.addr, at if data else 0,
                len(data) or section.size, section.link, section.info, section.addralign,
                section.entsize,
            )
        )  # fmt: skip
        at += len(data)
    pad = -at % 8
    head = _header(elf, len(segments), at + pad, len(headers))
    programs = [_segment(elf, form.segment, segment) for segment in segments]
    return b"".join((head, *programs, *body, bytes(pad), *headers))


def _kept(elf: ElfFile, section: Section) -> _Kept:
    """The section with its bytes where they name something, else without any."""
    tables = [s for s in elf.sections if s.type == SHT_SYMTAB and s.size]
    wanted = {s.name for s in elf.sections if s.type in (SHT_SYMTAB, SHT_DYNSYM)}
    if tables:
        wanted = {tables[0].name}
    linked = {elf.sections[s.link].name for s in elf.sections if s.name in wanted and s.link}
    if section.name in wanted | linked | {CTF} or section.type == SHT_NOTE:
        data = elf.section(section.name)
        if data:
            data = inflated(data) if section.name == CTF else data
            return _Kept(section._replace(flags=section.flags & ~0x800), data)
    type_ = _PROGBITS if section.type in _RELOCATIONS else section.type
    if type_ not in (0, SHT_NOBITS):
        type_ = SHT_NOBITS
    return _Kept(section._replace(type=type_, link=0, info=0), b"")


def _strings(names: List[str]) -> Tuple[bytes, List[int]]:
    offsets, strings = [], b"\0"
    for name in names:
        offsets.append(len(strings))
        strings += name.encode("utf-8", "backslashreplace") + b"\0"
    return strings, offsets


def _header(elf: ElfFile, segments: int, sections_at: int, count: int) -> bytes:
    form = FORMS[elf.bits // 32]
    size = form.header.size
    head = bytearray(
        form.header.pack(
            elf.etype, elf.machine, 1, elf.entry, size if segments else 0, sections_at, elf.flags,
            size, form.segment.size, segments, form.section.size, count, count - 1,
        )
    )  # fmt: skip
    head[:_IDENT] = elf.pread(0, _IDENT)
    return bytes(head)


def _segment(elf: ElfFile, form: struct.Struct, segment: Tuple[int, ...]) -> bytes:
    type_, flags, _, vaddr, paddr, _, memsz = segment
    if elf.bits == 64:
        return form.pack(type_, flags, 0, vaddr, paddr, 0, memsz, 16)
    return form.pack(type_, 0, vaddr, paddr, 0, memsz, flags, 16)
