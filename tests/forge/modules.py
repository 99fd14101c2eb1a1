"""Loaded modules: struct linker_file and the symbol tables that the kernel keeps of them.

    zfs = m.modules.load("zfs.ko", "zio_", "txg_", "spa_namespace_avl")

Functions and variables whose names begin so are from then on placed in the module and
named by its table alone: the kernel file knows nothing of them, and no .ko is made.

Mirrors sys/kern/kern_linker.c, link_elf.c and link_elf_obj.c, 7.0-CURRENT to 15.0.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple, Union

from plugin.symbol import Symbol
from tests.forge.builder import Obj
from tests.forge.memory import PAGE_SIZE, Arena

if TYPE_CHECKING:
    from tests.forge.machine import Machine

_TYPES = {"object": 1, "function": 2}
_TEXT, _SIZE = 0x20000, 0x40000


class Module:
    """One module: ``base`` and ``size`` are where it lies; ``symbols`` what it defines.

    ``relocatable`` says which of the two linkers loads it.  ``obj`` is its struct
    elf_file, ``symtab`` and ``strtab`` are where its tables are, once the machine is
    finished: for ``Machine.at_the_end`` to damage.
    """

    def __init__(
        self, machine: Machine, name: str, names: Sequence[str], base: int, relocatable: bool
    ) -> None:
        self.machine = machine
        self.name = name
        self.names = tuple(names)
        self.base = base
        self.size = _SIZE
        self.relocatable = relocatable
        self.symbols: List[Symbol] = []
        self.arenas: Dict[str, Arena] = {
            # A shared object's first page begins with its headers.
            "text": Arena(base + (0 if relocatable else PAGE_SIZE), base + _TEXT),
            "data": Arena(base + _TEXT, base + _SIZE),
        }
        self.build_id = name.encode().ljust(20, b"\1")[:20]
        self.obj: Optional[Obj] = None
        self.symtab = self.strtab = 0

    def claims(self, name: str) -> bool:
        return name.startswith(self.names)

    def finish(self, place: int) -> Obj:
        """Write tables and struct elf_file."""
        m = self.machine
        member = "progtab" if self.relocatable else "dynamic"
        layout = m.layouts.having("elf_file", member)
        assert layout is not None
        symbols, strings, count = self._tables()
        self.symtab = m.take(len(symbols), align=16)
        m.space.write(self.symtab, symbols)
        self.strtab = m.take(len(strings), align=16)
        m.space.write(self.strtab, strings)
        self.obj = m.new(layout, address=self.base)
        self.obj.set(ddbsymtab=self.symtab, ddbsymcnt=count)
        self.obj.set(ddbstrtab=self.strtab, ddbstrcnt=len(strings))
        if self.relocatable:
            ends: tuple[tuple[str, int, int], ...] = (
                (".text", self.base, _TEXT),
                (".data", self.base + _TEXT, _SIZE - _TEXT),
            )
            note = m.take(len(self.note), align=16)
            m.space.write(note, self.note)
            ends += ((".note.gnu.build-id", note, len(self.note)),)
            sections = m.array("Elf_progent", len(ends), arena="kmem")
            for number, (section, (name, start, size)) in enumerate(zip(sections, ends), 1):
                section.set(addr=start, size=size, sec=number, name=m.string(name))
            self.obj.set(progtab=sections[0], nprogtab=len(sections))
        else:
            m.space.write(self.base, self._headers())
        linked(m, self.obj, self.name, self.base, self.size, place, self.linker)
        return m.view("linker_file", self.obj.address)

    @property
    def note(self) -> bytes:
        """What a linker puts into .note.gnu.build-id."""
        return struct.pack("<III4s", 4, len(self.build_id), 3, b"GNU") + self.build_id

    def _headers(self) -> bytes:
        """The ELF header, the program header of the note, and the note, as they are mapped."""
        wide = self.machine.pointer_size == 8
        head = b"\x7fELF" + bytes((2 if wide else 1, 1, 1, 9)) + bytes(8)
        # e_type DYN, e_phoff, e_phentsize, e_phnum; the rest is nothing a reader needs
        after, entry = (64, 56) if wide else (52, 32)
        at, size = after + entry, len(self.note)
        if wide:
            head += struct.pack("<HHIQQQIHHHHHH", 3, 0, 1, 0, after, 0, 0, after, entry, 1, 0, 0, 0)
            segment = struct.pack("<IIQQQQQQ", 4, 4, at, at, at, size, size, 4)
        else:
            head += struct.pack("<HHIIIIIHHHHHH", 3, 0, 1, 0, after, 0, 0, after, entry, 1, 0, 0, 0)
            segment = struct.pack("<IIIIIIII", 4, at, at, at, size, size, 4, 4)
        return head + segment + self.note

    def write(self, path: Path) -> None:
        """The relocatable .ko, of a 64-bit machine, that it was loaded from, without its code."""
        symbols, strings, _ = self._tables(filed=True)
        names = b"\0.text\0.data\0.note.gnu.build-id\0.symtab\0.strtab\0.shstrtab\0"
        # (name, type, flags, content or size, link, size of an entry), in sh_type's numbers
        rows: List[Tuple[str, int, int, Union[int, bytes], int, int]] = [
            (".text", 8, 6, _TEXT, 0, 0),
            (".data", 8, 3, _SIZE - _TEXT, 0, 0),
            (".note.gnu.build-id", 7, 2, self.note, 0, 0),
            (".symtab", 2, 0, symbols, 5, 24),
            (".strtab", 3, 0, strings, 0, 0),
            (".shstrtab", 3, 0, names, 0, 0),
        ]
        headers, body = bytearray(64), bytearray(64)
        for name, kind, flags, content, link, entry in rows:
            size = content if isinstance(content, int) else len(content)
            at = names.index(b"\0" + name.encode() + b"\0") + 1
            place = (at, kind, flags, 0, len(body), size, link, 1, 8, entry)
            headers += struct.pack("<IIQQQQIIQQ", *place)
            body += b"" if isinstance(content, int) else content
            body += bytes(-len(body) % 8)
        head = (1, 62, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(rows) + 1, len(rows))
        body[:64] = b"\x7fELF\2\1\1\x09".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", *head)
        path.write_bytes(bytes(body + headers))

    @property
    def linker(self) -> str:
        return f"elf{8 * self.machine.pointer_size}" + ("_obj" if self.relocatable else "")

    def _tables(self, filed: bool = False) -> tuple[bytes, bytes, int]:
        wide = self.machine.pointer_size == 8
        symbols, strings = bytearray(24 if wide else 16), bytearray(b"\0")
        for symbol in self.symbols:
            info = (0 if symbol.local else 0x10) | _TYPES.get(symbol.kind, 0)
            home = 1 if symbol.address < self.base + _TEXT else 2
            value = symbol.address - (0 if self.relocatable else self.base)
            if filed:
                value = symbol.address - self.base - (_TEXT if home == 2 else 0)
            if wide:
                symbols += struct.pack("<IBBHQQ", len(strings), info, 0, home, value, symbol.size)
            else:
                symbols += struct.pack("<IIIBBH", len(strings), value, symbol.size, info, 0, home)
            strings += symbol.name.encode() + b"\0"
        return bytes(symbols), bytes(strings), len(self.symbols) + 1


def linked(
    m: Machine, file: Obj, name: str, base: int, size: int, number: int, linker: str
) -> None:
    """Fill in the struct linker_file that every struct elf_file begins with."""
    made = m.view("linker_file", file.address)
    made.set(filename=m.string(name), refs=1, id=number, address=base, size=size)
    made.probe(pathname=m.string(f"/boot/kernel/{name}"))
    made["ops"] = m.modules.operations(linker)


class Modules:
    """What the machine has loaded; a machine that loads nothing has no linker_files."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.loaded: List[Module] = []
        self._classes: Dict[str, Obj] = {}
        self.files: List[Obj] = []

    def load(self, name: str, *names: str, relocatable: Optional[bool] = None) -> Module:
        """Load a module that defines all names beginning as ``names`` do.

        amd64 loads relocatable objects, the others shared ones (conf/kmod.mk).
        """
        m = self.machine
        if relocatable is None:
            relocatable = m.arch == "amd64"
        if m.arch == "amd64":
            base = m.map.image_end + len(self.loaded) * 0x100000
        else:
            base = m.arenas["kva"].take(_SIZE, PAGE_SIZE)
        module = Module(m, name, names, base, relocatable)
        self.loaded.append(module)
        m.claimants.append(module)
        return module

    def operations(self, linker: str) -> Obj:
        """The kobj_ops of a linker class."""
        if linker not in self._classes:
            m = self.machine
            cls = m.new("kobj_class", name=m.string(linker))
            self._classes[linker] = m.new("kobj_ops", cls=cls)
        return self._classes[linker]

    def finish(self) -> None:
        if not self.loaded:
            return
        m = self.machine
        head = m.symbol("linker_files", size=2 * m.pointer_size, static=True)
        layout = m.layouts.having("elf_file", "dynamic")
        assert layout is not None
        kernel = m.new(layout)
        whole = m.map.image_end - m.map.image
        linked(m, kernel, "kernel", m.map.image, whole, 1, f"elf{8 * m.pointer_size}")
        self.files = [m.view("linker_file", kernel.address)]
        self.files += [module.finish(n) for n, module in enumerate(self.loaded, 2)]
        m.tailq(head.address, "link", self.files)
