"""A struct's layout, and reading one with a single precompiled ``struct.Struct``.

Layouts come from structs.yaml, DWARF or CTF; once here they are all alike.
"""

from __future__ import annotations

import re
import struct
from operator import itemgetter
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Tuple

from plugin.errors import LayoutError

_SIGNED = frozenset(("char", "signed char", "short", "int", "long", "long long", "__int128"))
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
    #: of a list head: the link its elements hang on ("thread.td_plist"), or ""
    link: str = ""

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
    """Where the members of one struct or union lie in one kernel.

    Members of anonymous structs appear under a dotted name
    (``plinks.q.tqe_next``); those of an anonymous array under ``name[].member``,
    their offsets counted from the array's element.
    """

    __slots__ = ("file", "kind", "members", "name", "size")

    def __init__(
        self,
        name: str,
        size: int,
        members: Mapping[str, Member],
        kind: str = "struct",
        file: str = "",
    ) -> None:
        self.name = name
        self.size = size
        self.members: Dict[str, Member] = dict(members)
        #: "struct" or "union"
        self.kind = kind
        #: where it is declared, below sys/, or "" where the source does not say
        self.file = file

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members.values())

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}, {self.size} bytes, {len(self.members)} members>"

    def member(self, name: str) -> Member:
        """The member, or LayoutError naming the struct."""
        try:
            return self.members[name]
        except KeyError:
            raise LayoutError(
                f"{self.kind} {self.name} has no member {name!r} in this kernel"
            ) from None


class Fields:
    """Some members of a struct, read together with one precompiled format.

    ``unpack(data)`` takes the bytes from the struct's first byte on and returns
    the values in the order asked for, ints throughout; bit-fields are shifted
    and masked.  ``span`` is the number of bytes needed, counted from the
    struct's first byte, ``parts`` the (start, end) of those that are looked at.

    A walk over very many does without the call in between: ``raw(data, base)`` gives
    the values in some order, ``places`` where in it each member asked for is.
    """

    __slots__ = ("_pickers", "parts", "places", "raw", "span", "unpack", "unpack_from")

    def __init__(self, members: List[Member]) -> None:
        self._pickers: Dict[int, Callable[[Tuple[int, ...]], Tuple[int, ...]]] = {}
        self.raw: Callable[..., Tuple[int, ...]]
        self.unpack: Callable[[bytes], Tuple[int, ...]]
        self.unpack_from: Callable[..., Tuple[int, ...]]
        order = sorted(range(len(members)), key=lambda i: (members[i].offset, members[i].size))
        code = _format([members[i] for i in order])
        self.parts = _parts([_narrowed(members[i]) for i in order])
        if code is not None:
            compiled = struct.Struct(code)
            self.span = compiled.size
            self.raw = compiled.unpack_from
            self.places = [order.index(i) for i in range(len(order))]
            if order == list(range(len(members))):
                self.unpack = self.unpack_from = compiled.unpack_from
            else:
                self.unpack = self.unpack_from = _reordered(compiled, self.places)
            return
        self.places = list(range(len(members)))
        reads = [_narrowed(m) for m in members]
        self.span = max((m.offset + m.size for m in reads), default=0)
        singles = [struct.Struct("<" + _code(m)).unpack_from for m in reads]
        plan = [
            (single, m.offset, m.bit_pos, (1 << m.bit_size) - 1 if m.bit_size else 0)
            for single, m in zip(singles, reads)
        ]

        def unpack_from(data: bytes, base: int = 0) -> Tuple[int, ...]:
            values = []
            for single, offset, shift, mask in plan:
                value = single(data, base + offset)[0]
                values.append(value >> shift & mask if mask else value)
            return tuple(values)

        self.raw = self.unpack = self.unpack_from = unpack_from

    def picker(self, first: int) -> Callable[[Tuple[int, ...]], Tuple[int, ...]]:
        """What makes the values from the ``first`` member asked for on of a ``raw`` tuple."""
        known = self._pickers.get(first)
        if known is None:
            known = self._pickers[first] = _picker(self.places[first:])
        return known


def _picker(places: List[int]) -> Callable[[Tuple[int, ...]], Tuple[int, ...]]:
    if places and places == list(range(places[0], places[0] + len(places))):
        return itemgetter(slice(places[0], places[0] + len(places)))
    if len(places) < 2:
        return lambda raw: tuple(raw[place] for place in places)
    return itemgetter(*places)


def _parts(reads: List[Member]) -> List[Tuple[int, int]]:
    """The stretches that members lie in, each as long as they adjoin."""
    parts: List[Tuple[int, int]] = []
    for start, end in sorted((m.offset, m.offset + m.size) for m in reads):
        if parts and start <= parts[-1][1]:
            parts[-1] = parts[-1][0], max(end, parts[-1][1])
        else:
            parts.append((start, end))
    return parts


def _format(ordered: List[Member]) -> Optional[str]:
    """The format that reads members lying one after the other, None if they do not."""
    code, at = "<", 0
    for member in ordered:
        if member.offset < at or member.bit_size:
            return None
        code += f"{member.offset - at}x" if member.offset > at else ""
        code += _code(member)
        at = member.offset + member.size
    return code


def _reordered(compiled: struct.Struct, places: List[int]) -> Callable[..., Tuple[int, ...]]:
    pick = itemgetter(*places)
    read = compiled.unpack_from

    def unpack_from(data: bytes, base: int = 0) -> Tuple[int, ...]:
        values: Tuple[int, ...] = pick(read(data, base))
        return values

    return unpack_from


def _narrowed(member: Member) -> Member:
    """A bit-field with the fewest bytes that hold it, any other member as it is.

    The storage unit of a bit-field may reach past the end of its struct.
    """
    if not member.bit_size:
        return member
    skip, pos = divmod(member.bit_pos, 8)
    size = 1
    while size * 8 < pos + member.bit_size and size < 8:
        size *= 2
    return member._replace(offset=member.offset + skip, size=size, bit_pos=pos)


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
