"""A struct's layout, and reading one with a single precompiled ``struct.Struct``.

Layouts come from structs.yaml, DWARF or CTF; once here they are all alike.
"""

from __future__ import annotations

import re
import struct
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Tuple

from plugin.errors import LayoutError

_SIGNED = frozenset(
    ("char", "signed char", "short", "int", "long", "long long", "__int128")
)
_ARRAY = re.compile(r"^(.*?)\s*\[(\d*)\](.*)$")
_QUALIFIER = re.compile(r"\b(?:const|volatile|_Atomic|restrict)\b\s*")
_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Member(NamedTuple):
    """One member.  ``offset`` and ``size`` in bytes from the start of the struct."""

    name: str
    offset: int
    size: int
    #: as declared ("off_t"), and with typedefs resolved ("long")
    type: str
    ctype: str
    #: name of the flag or enum table that explains the value, or ""
    decoder: str = ""
    #: of a bit-field: first bit counted from the least significant one at
    #: ``offset``, and width; width 0 means an ordinary member
    bit_pos: int = 0
    bit_size: int = 0

    @property
    def bare(self) -> str:
        """The canonical type without qualifiers."""
        return _QUALIFIER.sub("", self.ctype).strip()

    @property
    def is_array(self) -> bool:
        return "[" in self.ctype and "(*" not in self.ctype

    @property
    def is_pointer(self) -> bool:
        return not self.is_array and (self.bare.endswith("*") or "(*" in self.ctype)

    @property
    def is_signed(self) -> bool:
        return self.bare in _SIGNED

    @property
    def struct(self) -> Optional[str]:
        """Tag of the struct or union that this member is, by value, or None."""
        if self.is_pointer or self.is_array:
            return None
        head, _, tag = self.bare.partition(" ")
        return tag if head in ("struct", "union") and "(" not in tag else None

    @property
    def points_to(self) -> Optional[str]:
        """Tag of the struct that this member points to, or None."""
        if not self.is_pointer or not self.bare.startswith(("struct ", "union ")):
            return None
        target = self.bare[:-1].strip()
        return None if "*" in target or "(" in target else target.split(" ", 1)[1]

    @property
    def element(self) -> Optional[Tuple[str, int]]:
        """(element type, count) of an array; count 0 for a flexible one; else None."""
        match = _ARRAY.match(self.bare) if self.is_array else None
        if match is None:
            return None
        return (match.group(1) + match.group(3)).strip(), int(match.group(2) or 0)


class Layout:
    """Where the members of one struct lie in one kernel."""

    __slots__ = ("name", "size", "members", "_fields")

    def __init__(self, name: str, size: int, members: Mapping[str, Member]) -> None:
        self.name = name
        self.size = size
        self.members: Dict[str, Member] = dict(members)
        self._fields: Dict[Tuple[str, ...], "Fields"] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def __repr__(self) -> str:
        return f"<struct {self.name}, {self.size} bytes, {len(self.members)} members>"

    def member(self, name: str) -> Member:
        """The member, or LayoutError naming the struct."""
        try:
            return self.members[name]
        except KeyError:
            raise LayoutError(f"struct {self.name} has no member {name!r} in this kernel") from None


class Fields:
    """Some members of a struct, read together with one precompiled format.

    ``unpack(data)`` takes the bytes from the struct's first byte on and returns
    the values in the order asked for, ints throughout; bit-fields are shifted
    and masked.  ``span`` is the number of bytes needed, counted from the
    struct's first byte.
    """

    __slots__ = ("span", "unpack", "unpack_from")

    def __init__(self, members: List[Member]) -> None:
        order = sorted(range(len(members)), key=lambda i: (members[i].offset, members[i].size))
        code, at, slots = "<", 0, []
        overlapping = False
        for i in order:
            m = members[i]
            if m.offset < at:
                overlapping = True
                break
            code += f"{m.offset - at}x" if m.offset > at else ""
            code += _code(m)
            at = m.offset + m.size
            slots.append(i)
        self.span = max((m.offset + m.size for m in members), default=0)
        bits = any(m.bit_size for m in members)
        self.unpack: Callable[[bytes], Tuple[int, ...]]
        self.unpack_from: Callable[..., Tuple[int, ...]]
        if not overlapping and not bits and slots == list(range(len(members))):
            compiled = struct.Struct(code)
            if compiled.size == self.span:
                self.unpack_from = compiled.unpack_from
                self.unpack = compiled.unpack_from
                return
        singles = [struct.Struct("<" + _code(m)).unpack_from for m in members]
        plan = [
            (single, m.offset, m.bit_pos, (1 << m.bit_size) - 1 if m.bit_size else 0)
            for single, m in zip(singles, members)
        ]

        def unpack_from(data: bytes, base: int = 0) -> Tuple[int, ...]:
            values = []
            for single, offset, shift, mask in plan:
                value = single(data, base + offset)[0]
                values.append(value >> shift & mask if mask else value)
            return tuple(values)

        self.unpack = self.unpack_from = unpack_from


def _code(member: Member) -> str:
    code = _CODES.get(member.size)
    if code is None:
        return f"{member.size}s"
    return code.lower() if member.is_signed and not member.bit_size else code


class LayoutSource(Protocol):
    """Where layouts come from: a DWARF, CTF or YAML reader, or a debugger."""

    #: "dwarf", "ctf" or "yaml:<kernel>"
    name: str

    def struct(self, name: str) -> Optional[Layout]:
        """The layout of ``struct name`` (or union), None if this source lacks it."""
        ...
