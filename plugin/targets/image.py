"""The kernel file a debugger has loaded, read by our own ELF reader.

A debugger's own look-ups lack something each: gdb's Python finds static
variables and duplicate names only with debug information, lldb invents sizes
for symbols that have none.  The file's symbol table says what is so.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from plugin.errors import WchanError
from plugin.structs.debuginfo import open_debug
from plugin.symbol import Symbol
from plugin.vmcore.elf import SHT_SYMTAB, ElfFile

if TYPE_CHECKING:
    from plugin.structs import LayoutSource


#: what beside allproc only a kernel of FreeBSD's has
_TELLTALES = ("osreldate", "thread_off_td_tid")
#: bytes of a file whose symbols cost nothing to look at
_SMALL = 1 << 16


class KernelImage:
    """Symbols of a kernel file, moved by ``slide`` bytes from where it was linked."""

    _opened: Dict[Tuple[str, int, int], KernelImage] = {}

    def __init__(self, elf: ElfFile) -> None:
        self.elf = elf
        self.slide = 0
        self._is_kernel: Optional[bool] = None

    @classmethod
    def open(cls, path: Optional[str]) -> Optional[KernelImage]:
        """The image of the file at ``path``, None where it cannot be read."""
        if not path:
            return None
        try:
            status = os.stat(path)
            # A kernel built anew under its old name is another file.
            key = (path, status.st_mtime_ns, status.st_size)
            image = cls._opened.get(key)
            if image is None:
                image = cls._opened[key] = cls(ElfFile(path))
            return image
        except (WchanError, OSError):
            return None

    @property
    def has_frame_information(self) -> bool:
        """True where a debugger can unwind by call-frame information.

        The few .eh_frame entries of assembler files do not count.
        """
        return any(s.name == ".debug_frame" and s.size for s in self.elf.sections)

    @property
    def is_kernel(self) -> bool:
        """True for a FreeBSD kernel, whatever else the debugger may have loaded."""
        if self._is_kernel is None:
            # A large program's symbols are not read for this: only a kernel lies so high, or
            # a file that has little more than the symbols that debuggers want of one.
            low = self.elf.bits == 64 and not any(s.addr >> 63 for s in self.elf.sections)
            small = os.path.getsize(self.elf.plain_path) < _SMALL
            second = any(map(self.elf.symbols, _TELLTALES)) if small or not low else False
            self._is_kernel = second and bool(self.elf.symbols("allproc"))
        return self._is_kernel

    @property
    def is_whole(self) -> bool:
        """True where the file names all that the kernel has: statics too (.symtab).

        What it does not name is then a module's, whose table in memory knows it better than
        a debugger that was handed some file of it.
        """
        return any(s.type == SHT_SYMTAB and s.size for s in self.elf.sections)

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        """Layouts out of the file's own debug information or one beside it, None if none.

        What could not be read is said in ``notes``.
        """
        try:
            found = open_debug(self.elf, notes)
        except WchanError as error:
            notes.append(f"the kernel's debug information is not used: {error}")
            return None
        return found.source if found is not None else None

    def read_only(self, address: int, size: int) -> Optional[bytes]:
        """What the file says of memory that the kernel cannot change, None of any other."""
        try:
            return self.elf.read_only(address - self.slide, size)
        except WchanError:
            return None

    def symbols(self, name: str) -> List[Symbol]:
        return [
            s if s.kind == "absolute" else s._replace(address=s.address + self.slide)
            for s in self.elf.symbols(name)
        ]

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        return self.elf.symbolize(address - self.slide)
