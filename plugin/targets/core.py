"""The target without a debugger: a dump and the kernel file that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from plugin import interrupt
from plugin.structs.debuginfo import open_debug
from plugin.symbol import Symbol

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore import Memory
    from plugin.vmcore.elf import ElfFile


class CoreTarget:
    """A dump opened by ``plugin.vmcore``, symbols from the kernel's ELF file."""

    stable = True
    wire = None

    def __init__(self, memory: Memory, kernel: ElfFile) -> None:
        self.memory = memory
        self.kernel = kernel
        self.arch = memory.arch
        self.page_size = memory.page_size
        self.description = memory.path
        self.truncated = memory.truncated
        self.read = memory.read
        self.carried = memory.carried
        self.in_pages = memory.in_pages
        self.files: Tuple[str, ...] = (
            memory.path,
            memory.file_path,
            kernel.path,
            kernel.plain_path,
        )

    @property
    def message_buffer(self) -> bytes:
        """The copy that a minidump begins with, b"" of a full dump."""
        return self.memory.message_buffer

    def symbols(self, name: str) -> Sequence[Symbol]:
        return self.kernel.symbols(name)

    def symbolize(self, address: int) -> Optional[tuple[str, int]]:
        return self.kernel.symbolize(address)

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        """The DWARF or CTF of the kernel file or of its separate debug file."""
        found = open_debug(self.kernel, notes)
        return found.source if found else None

    def interrupted(self) -> bool:
        return interrupt.requested()
