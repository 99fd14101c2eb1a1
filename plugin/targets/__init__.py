"""The target port: what any source of a kernel's bytes must give.

A back end is one module here: ``core`` (a dump and a kernel file, no
debugger), ``lldb`` and ``gdb``.  Plain ints and bytes cross the port, never a
debugger's own values, so that nothing else knows which debugger it runs in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, NamedTuple, Optional, Protocol, Sequence

if TYPE_CHECKING:
    from plugin.structs import LayoutSource


class Symbol(NamedTuple):
    """One entry of a kernel's symbol table; ``size`` is 0 where it has none."""

    name: str
    address: int
    size: int
    #: "object", "function", "absolute" or "other"
    kind: str
    #: STB_LOCAL, that is ``static`` in C
    local: bool


class Target(Protocol):
    """What a back end gives.  Every address is a kernel virtual address."""

    #: "amd64", "i386", "arm64" or "riscv64", as in uname -m / -p
    arch: str
    #: False for a kernel that runs: nothing read may be kept
    stable: bool
    #: what is looked at, for messages: the dump's path, "live kernel", ...
    description: str

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes, or MemoryFault with the first bad address."""
        ...

    def symbols(self, name: str) -> Sequence[Symbol]:
        """Every symbol of that name, static ones and duplicates too; [] if none."""
        ...

    def symbolize(self, address: int) -> Optional[tuple[str, int]]:
        """(name, offset) of the symbol that covers ``address``, or None."""
        ...

    def registers(self, tid: int) -> Optional[Mapping[str, int]]:
        """Registers the back end itself knows for a thread, None if it knows none."""
        ...

    def backtrace(self, tid: int) -> Optional[Sequence[tuple[int, str]]]:
        """(pc, function) innermost first by the back end's own unwinder, or None."""
        ...

    def types(self) -> Optional[LayoutSource]:
        """Layouts out of the back end's own debug information, or None."""
        ...

    def interrupted(self) -> bool:
        """True once the user has asked to stop (Ctrl-C)."""
        ...
