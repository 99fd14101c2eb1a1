"""The kernel file of a forged machine: an ELF executable with a real symbol table.

Text and read-only data are in the file as in memory; data and bss are not, as
their content is the dump's.  Local symbols come first, as the format demands,
and carry what ``static`` variables are found by.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, List, NamedTuple, Sequence, Tuple

from plugin.symbol import Symbol

_MACHINE = {"i386": 3, "amd64": 62, "arm64": 183}
_TYPES = {"object": 1, "function": 2, "absolute": 0, "other": 0}
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 1, 2, 3, 8
_ALLOC_EXEC, _ALLOC, _ALLOC_WRITE = 6, 2, 3


class Piece(NamedTuple):
    """A stretch of the image: ``pages`` are (address, content); bss has none."""

    name: str
    start: int
    end: int
    pages: Sequence[Tuple[int, bytes]]


def write(
    path: Path, arch: str, pieces: Sequence[Piece], symbols: Sequence[Symbol], entry: int
) -> None:
    """Write the kernel file; ``pieces`` are .text, .rodata and .bss in order."""
    wide = arch != "i386"
    ehsize, phentsize, shentsize = (64, 56, 64) if wide else (52, 32, 40)
    with open(path, "wb") as out:
        offset = 0x1000
        placed: List[int] = []
        for piece in pieces:
            placed.append(offset)
            if piece.name != ".bss":
                for address, content in piece.pages:
                    out.seek(offset + address - piece.start)
                    out.write(content)
                offset += -(-(piece.end - piece.start) // 0x1000) * 0x1000
        out.seek(offset)
        strtab, symtab, local = _symbol_tables(symbols, pieces, wide)
        symtab_at = offset
        out.write(symtab)
        strtab_at = out.tell()
        out.write(strtab)
        names = b"\0" + b"\0".join(p.name.encode() for p in pieces) + b"\0"
        index = {p.name: names.index(b"\0" + p.name.encode() + b"\0") + 1 for p in pieces}
        extra = {}
        for name in (b".symtab", b".strtab", b".shstrtab"):
            extra[name] = len(names)
            names += name + b"\0"
        names_at = out.tell()
        out.write(names)
        _align(out, 8)
        sections_at = out.tell()
        sections: List[Tuple[int, ...]] = [(0,) * 10]
        for piece, at in zip(pieces, placed):
            kind = _SHT_NOBITS if piece.name == ".bss" else _SHT_PROGBITS
            flags = {".text": _ALLOC_EXEC, ".bss": _ALLOC_WRITE}.get(piece.name, _ALLOC)
            sections.append(
                (
                    index[piece.name],
                    kind,
                    flags,
                    piece.start,
                    at,
                    piece.end - piece.start,
                    0,
                    0,
                    4096,
                    0,
                )
            )
        count = len(sections)
        entsize = 24 if wide else 16
        sections.append(
            (
                extra[b".symtab"],
                _SHT_SYMTAB,
                0,
                0,
                symtab_at,
                len(symtab),
                count + 1,
                local,
                8,
                entsize,
            )
        )
        sections.append((extra[b".strtab"], _SHT_STRTAB, 0, 0, strtab_at, len(strtab), 0, 0, 1, 0))
        sections.append((extra[b".shstrtab"], _SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0))
        code = struct.Struct("<IIQQQQIIQQ" if wide else "<10I")
        for section in sections:
            out.write(code.pack(*section))
        out.seek(0)
        ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1, 9)) + bytes(8)
        out.write(
            ident
            + struct.pack(
                "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
                2,
                _MACHINE[arch],
                1,
                entry,
                ehsize,
                sections_at,
                0,
                ehsize,
                phentsize,
                len(pieces),
                shentsize,
                len(sections),
                len(sections) - 1,
            )
        )
        for piece, at in zip(pieces, placed):
            size = piece.end - piece.start
            in_file = 0 if piece.name == ".bss" else size
            rights = {".text": 5, ".bss": 6}.get(piece.name, 4)
            if wide:
                out.write(
                    struct.pack(
                        "<IIQQQQQQ", 1, rights, at, piece.start, piece.start, in_file, size, 4096
                    )
                )
            else:
                out.write(
                    struct.pack("<8I", 1, at, piece.start, piece.start, in_file, size, rights, 4096)
                )


def _align(out: BinaryIO, to: int) -> None:
    out.write(bytes(-out.tell() % to))


def _symbol_tables(
    symbols: Sequence[Symbol], pieces: Sequence[Piece], wide: bool
) -> Tuple[bytes, bytes, int]:
    """(string table, symbol table, index of the first global symbol)."""
    ordered = sorted(symbols, key=lambda s: (not s.local, s.address, s.name))
    strings, offsets = bytearray(b"\0"), {}
    for symbol in ordered:
        if symbol.name not in offsets:
            offsets[symbol.name] = len(strings)
            strings += symbol.name.encode() + b"\0"
    table = [bytes(24 if wide else 16)]
    for symbol in ordered:
        section = 0xFFF1 if symbol.kind == "absolute" else 0
        for number, piece in enumerate(pieces, 1):
            if piece.start <= symbol.address < piece.end and symbol.kind != "absolute":
                section = number
        info = (0 if symbol.local else 1) << 4 | _TYPES[symbol.kind]
        if wide:
            table.append(
                struct.pack(
                    "<IBBHQQ", offsets[symbol.name], info, 0, section, symbol.address, symbol.size
                )
            )
        else:
            table.append(
                struct.pack(
                    "<IIIBBH", offsets[symbol.name], symbol.address, symbol.size, info, 0, section
                )
            )
    return bytes(strings), b"".join(table), 1 + sum(s.local for s in ordered)
