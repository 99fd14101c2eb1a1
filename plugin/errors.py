"""The errors a user can meet: each is one clear line and an exit status.

Everything wchan raises on purpose derives from WchanError; a command's runner
turns it into that line.  Any other exception is a defect of wchan itself.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_PARTIAL = 3


class WchanError(Exception):
    """A failure whose text is meant for the user: what happened and what to do.

    ``code`` tells programs the kind: what ``--json`` gives as the error's reason.
    """

    code = "failed"


class UsageError(WchanError):
    """The arguments make no sense."""

    code = "usage"


class MemoryFault(WchanError):
    """A read of kernel memory failed.

    ``address`` is the first byte that could not be read, ``reason`` why.
    """

    code = "damaged"

    def __init__(self, address: int, reason: str = "not in the dump") -> None:
        super().__init__(f"cannot read memory at {address:#x}: {reason}")
        self.address = address
        self.reason = reason


class DumpError(WchanError):
    """The file is no dump that can be read; says what it is and what to do."""

    code = "no dump"


class KernelMissing(WchanError):
    """No kernel file that made the dump was found."""

    code = "no kernel"


class KernelMismatch(WchanError):
    """The kernel file given is not the one that made the dump."""

    code = "no kernel"


class LayoutError(WchanError):
    """A struct, member or constant is not known for this kernel."""

    code = "no layouts"


class SymbolMissing(WchanError):
    """The kernel does not define a symbol that the work needs."""

    code = "no layouts"

    def __init__(self, name: str) -> None:
        super().__init__(f"this kernel has no symbol {name!r}")
        self.name = name
