"""Layouts out of a debugger's own types: what lldb and gdb have in common.

A debugger finds debug information where our reader does not look: in separate
files, bundles and loaded modules.  Its types are described here as the readers
of DWARF and CTF describe theirs, so that all are flattened alike.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from plugin.structs.ctype import Field, Node, flatten
from plugin.structs.layout import Layout


class DebuggerTypes:
    """A LayoutSource and TypeReader over the types of a debugger.

    A back end gives the three methods that raise NotImplementedError here.
    """

    name = "dwarf"

    def __init__(self, pointer_size: int) -> None:
        self.pointer_size = pointer_size
        self._types: List[Any] = []
        self._nodes: Dict[int, Node] = {}
        self._layouts: Dict[str, Optional[Layout]] = {}

    def struct(self, name: str) -> Optional[Layout]:
        """The layout of ``struct name`` or ``union name``; None where it is not defined."""
        if name not in self._layouts:
            found = self.find(name)
            self._layouts[name] = None if found is None else flatten(self, self.ref(found), name)
        return self._layouts[name]

    def ref(self, type_: Any) -> int:
        """A reference to a type of the debugger's."""
        self._types.append(type_)
        return len(self._types) - 1

    def node(self, ref: int) -> Node:
        known = self._nodes.get(ref)
        if known is None:
            known = self._nodes[ref] = self.describe(self._types[ref])
        return known

    def fields(self, ref: int) -> List[Field]:
        return self.members(self._types[ref])

    def qualified(self, qualifiers: List[str], bare: Any) -> Node:
        """The node of a type ``bare`` under its qualifiers, one at least."""
        ref = self.ref(bare)
        for qualifier in qualifiers[1:]:
            ref, inner = self.ref(None), ref
            self._nodes[ref] = Node(qualifier, target=inner)
        return Node(qualifiers[0], target=ref)

    # What a back end gives

    def find(self, name: str) -> Optional[Any]:
        """The definition of a struct or union, None if the debugger knows none."""
        raise NotImplementedError

    def describe(self, type_: Any) -> Node:
        """One type as a node; the types it refers to by ``self.ref``."""
        raise NotImplementedError

    def members(self, type_: Any) -> List[Field]:
        """The members of a struct or union."""
        raise NotImplementedError
