"""The target without a debugger: a dump and the kernel file that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Mapping, Optional, Sequence

from plugin import interrupt
from plugin.targets import Symbol

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore import KernelMemory
    from plugin.vmcore.elf import ElfFile


class CoreTarget:
    """A dump opened by ``plugin.vmcore``, symbols from the kernel's ELF file."""

    stable = True

    def __init__(self, memory: KernelMemory, kernel: ElfFile) -> None:
        self.memory = memory
        self.kernel = kernel
        self.arch = memory.arch
        self.page_size = memory.page_size
        self.description = memory.path
        self.truncated = memory.truncated
        self.read = memory.read
        #: debug information that could not be used, one line each
        self.type_notes: List[str] = []

    @property
    def message_buffer(self) -> bytes:
        """The copy of the message buffer that the dump itself carries, b"" if none."""
        return self.memory.message_buffer

    def symbols(self, name: str) -> Sequence[Symbol]:
        return self.kernel.symbols(name)

    def symbolize(self, address: int) -> Optional[tuple[str, int]]:
        return self.kernel.symbolize(address)

    def registers(self, tid: int) -> Optional[Mapping[str, int]]:
        return None

    def backtrace(self, tid: int) -> Optional[Sequence[tuple[int, str]]]:
        return None

    def types(self) -> Optional[LayoutSource]:
        """The DWARF or CTF of the kernel file or of its separate debug file."""
        from plugin.structs.debuginfo import open_debug

        self.type_notes = []
        found = open_debug(self.kernel, self.type_notes)
        return found.source if found else None

    def interrupted(self) -> bool:
        return interrupt.requested()
