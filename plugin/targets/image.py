"""The kernel file a debugger has loaded, read by our own ELF reader.

A debugger's own look-ups lack something each: gdb's Python finds static
variables and duplicate names only with debug information, lldb invents sizes
for symbols that have none.  The file's symbol table says what is so.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Dict, List, Optional, Tuple

from plugin.errors import WchanError
from plugin.targets import Symbol
from plugin.vmcore.elf import ElfFile

if TYPE_CHECKING:
    from plugin.structs import LayoutSource


class KernelImage:
    """Symbols of a kernel file, moved by ``slide`` bytes from where it was linked."""

    _opened: Dict[str, ElfFile] = {}

    def __init__(self, elf: ElfFile) -> None:
        self.elf = elf
        self.slide = 0

    @classmethod
    def open(cls, path: Optional[str]) -> Optional[KernelImage]:
        """The image of the file at ``path``, None where it cannot be read."""
        if not path:
            return None
        try:
            elf = cls._opened.get(path)
            if elf is None:
                elf = cls._opened[path] = ElfFile(path)
            return cls(elf)
        except WchanError:
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
        return bool(self.elf.symbols("allproc")) and bool(self.elf.symbols("osreldate"))

    def types(self) -> Optional[LayoutSource]:
        """Layouts out of the file's own debug information or one beside it, None if none."""
        from plugin.structs.debuginfo import open_debug

        with suppress(WchanError):
            found = open_debug(self.elf)
            return found.source if found is not None else None
        return None

    def symbols(self, name: str) -> List[Symbol]:
        return [
            s if s.kind == "absolute" else s._replace(address=s.address + self.slide)
            for s in self.elf.symbols(name)
        ]

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        return self.elf.symbolize(address - self.slide)
