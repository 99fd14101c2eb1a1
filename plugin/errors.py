"""The errors a user can meet: each is one clear line and an exit status.

Everything wchan raises on purpose derives from WchanError; a command's runner
turns it into that line.  Any other exception is a defect of wchan itself.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_PARTIAL = 3


class WchanError(Exception):
    """A failure whose text is meant for the user: what happened and what to do."""


class UsageError(WchanError):
    """The arguments make no sense."""


class MemoryFault(WchanError):
    """A read of kernel memory failed.

    ``address`` is the first byte that could not be read, ``reason`` why.
    """

    def __init__(self, address: int, reason: str = "not in the dump") -> None:
        super().__init__(f"cannot read memory at {address:#x}: {reason}")
        self.address = address
        self.reason = reason


class DumpError(WchanError):
    """The file is no dump that can be read; says what it is and what to do."""


class KernelMismatch(WchanError):
    """The kernel file given is not the one that made the dump."""


class LayoutError(WchanError):
    """A struct, member or constant is not known for this kernel."""


class SymbolMissing(WchanError):
    """The kernel does not define a symbol that the work needs."""

    def __init__(self, name: str) -> None:
        super().__init__(f"this kernel has no symbol {name!r}")
        self.name = name
