"""The target port: what any source of a kernel's bytes must give.

A back end is one module here: ``core`` (a dump and a kernel file, no
debugger), ``lldb`` and ``gdb``.  Plain ints and bytes cross the port, never a
debugger's own values, so that nothing else knows which debugger it runs in.
The port is complete: nothing else of a target is used anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, List, Mapping, Optional, Protocol, Sequence

from plugin.symbol import Symbol

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.targets.wire import Wire
    from plugin.vmcore.memory import CarriedModule

__all__ = ["Symbol", "Target"]


class Target(Protocol):
    """What a back end gives.  Every address is a kernel virtual address."""

    #: as in uname -p; a module of ``plugin.arch`` knows it
    arch: str
    #: bytes, 0 where the back end does not know: the architecture's then
    page_size: int
    #: False for a kernel that runs: nothing read may be kept
    stable: bool
    #: True where a page costs no more to read than a word in it: a walk may read whole pages
    in_pages: bool
    #: True where the dump lacks memory that it announces
    truncated: bool
    #: what is looked at, for messages: the dump's path, "live kernel", ...
    description: str

    @property
    def wire(self) -> Optional[Wire]:
        """What keeps and counts memory that comes from a stub; None where reading is cheap."""
        ...

    @property
    def read(self) -> Callable[[int, int], bytes]:
        """``read(address, size)``: so many bytes, or MemoryFault with the first bad one.

        May be an attribute: a dump's own ``read``, with no call of ours between.
        """
        ...

    @property
    def files(self) -> Sequence[str]:
        """The files that it is read from, which no report may be written over."""
        ...

    @property
    def carried(self) -> Mapping[str, CarriedModule]:
        """What a capsule tells of its modules' files, by file name; {} of any other target."""
        ...

    @property
    def message_buffer(self) -> bytes:
        """The copy of the kernel's message buffer that the dump itself carries, b"" if none."""
        ...

    def symbols(self, name: str) -> Sequence[Symbol]:
        """Every symbol of that name, static ones and duplicates too; [] if none."""
        ...

    def symbolize(self, address: int) -> Optional[tuple[str, int]]:
        """(name, offset) of the symbol that covers ``address``, or None."""
        ...

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        """Layouts out of the back end's own debug information, or None.

        Debug information that could not be used is said in ``notes``, one line each.
        """
        ...

    def interrupted(self) -> bool:
        """True once the user has asked to stop (Ctrl-C)."""
        ...
