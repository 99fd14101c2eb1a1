"""One entry of a kernel's symbol table, as every room speaks of it."""

from __future__ import annotations

from typing import NamedTuple


class Symbol(NamedTuple):
    """One entry of a kernel's symbol table; ``size`` is 0 where it has none."""

    name: str
    address: int
    size: int
    #: "object", "function", "absolute" or "other"
    kind: str
    #: STB_LOCAL, that is ``static`` in C
    local: bool
