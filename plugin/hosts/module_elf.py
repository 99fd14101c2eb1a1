"""A module's symbols as a file that a debugger can load, made from what the dump holds of it.

No code and no types: a shared object of one section without bytes, as long as the module
in memory, and its symbol table, counted from where the module lies.  By it lldb and gdb
name the frames of a module that no .ko is at hand of, list it and set breakpoints in it.
"""

from __future__ import annotations

import os
import struct
from typing import List, NamedTuple

from plugin.arch import BY_NAME
from plugin.kernel.linker import ModuleTable
from plugin.kernel.module_file import module_tables
from plugin.session import Kernel
from plugin.vmcore.elf import (
    ET_DYN,
    FORMS,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHN_ABS,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_SYMTAB,
    Form,
)

_SHT_STRTAB = 3
_NAMES = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
_LOCAL = 0


class SymbolFile(NamedTuple):
    """A file that was written, and where its one section, .text, lies in memory."""

    path: str
    base: int


def write_symbol_files(kernel: Kernel, folder: str) -> List[SymbolFile]:
    """One file for each module whose symbols the dump holds, named as the module is.

    Two modules of one file name cannot both be: the second is left out.
    """
    made: List[SymbolFile] = []
    for table in module_tables(kernel):
        name = os.path.basename(table.file.filename)
        path = os.path.join(folder, name)
        # The name is out of a dump, and goes into debuggers' command lines.
        if not name.replace("_", "").replace(".", "").replace("-", "").isalnum():
            continue
        if name.startswith((".", "-")) or not name.isascii() or os.path.lexists(path):
            continue
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(image(table, kernel.arch))
        made.append(SymbolFile(path, table.file.base))
    return made


def image(table: ModuleTable, arch: str) -> bytes:
    """The bytes of the file."""
    form = table.table.form
    symbols, first_global = _symbols(table, form)
    strings = table.table.strings
    contents = [symbols, strings, _NAMES]
    at = form.header.size
    places = []
    for content in contents:
        places.append(at)
        at += -(-len(content) // 8) * 8
    file = table.file
    flags = SHF_ALLOC | SHF_EXECINSTR
    width = form.symbol.size
    rows = [
        (0,) * 10,
        (_name(".text"), SHT_NOBITS, flags, 0, 0, file.size, 0, 0, 16, 0),
        (_name(".symtab"), SHT_SYMTAB, 0, 0, places[0], len(symbols), 3, first_global, 8, width),
        (_name(".strtab"), _SHT_STRTAB, 0, 0, places[1], len(strings), 0, 0, 1, 0),
        (_name(".shstrtab"), _SHT_STRTAB, 0, 0, places[2], len(_NAMES), 0, 0, 1, 0),
    ]
    bits = 64 if form is FORMS[2] else 32
    head = bytearray(
        form.header.pack(
            ET_DYN, BY_NAME[arch].machine, 1,
            0, 0, at, 0, form.header.size, 0, 0, form.section.size, len(rows), len(rows) - 1,
        )
    )  # fmt: skip
    # EI_OSABI 9 is FreeBSD's
    head[:16] = b"\x7fELF" + bytes((bits // 32, 1, 1, 9)) + bytes(8)
    body = b"".join(content + bytes(-len(content) % 8) for content in contents)
    return bytes(head) + body + b"".join(form.section.pack(*row) for row in rows)


def _name(section: str) -> int:
    return _NAMES.index(section.encode() + b"\0")


def _symbols(table: ModuleTable, form: Form) -> tuple[bytes, int]:
    """The symbol table, counted from the module's base, and where its global symbols begin."""
    local, others = bytearray(form.symbol.size), bytearray()
    file, own = table.file, table.table
    for index in range(own.count):
        name, _, size, info, home = own.fields(index)
        symbol = own.symbol(index)
        if symbol is None or home == SHN_UNDEF:
            continue
        address = table.home(symbol) if symbol.kind != "absolute" else symbol.address
        place = 1 if file.holds(address) else SHN_ABS
        address -= file.base if place == 1 else 0
        try:
            packed = (
                form.symbol.pack(name, info, 0, place, address, size)
                if form.word == "Q"
                else form.symbol.pack(name, address, size, info, 0, place)
            )
        except struct.error:
            # an address beyond what the machine has: a damaged table
            continue
        (local if info >> 4 == _LOCAL else others).extend(packed)
    return bytes(local + others), len(local) // form.symbol.size
