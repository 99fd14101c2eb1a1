"""A struct in memory as C would show it: members decoded, pointers by symbol, lists walked."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Protocol, Sequence, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.findings import Findings
from plugin.structs import Layouts
from plugin.structs.layout import Fields, Layout, Member

#: elements of an array that are shown
ARRAY_SHOWN = 8
#: more elements than a list of a real kernel has
_MOST = 1 << 24
_POLL = 1024
_TEXT = 96
_CHARS = frozenset(("char", "signed char", "unsigned char"))
_HEAD = re.compile(r"(?:^|\.)(tqh|lh|slh|stqh|cslh|csth)_first$")
_NEXT_OF = {
    "tqh": ("tqe_next",),
    "lh": ("le_next",),
    "slh": ("sle_next",),
    "stqh": ("stqe_next",),
    "cslh": ("csle_next",),
    "csth": ("cstqe_next",),
}
_NEXTS = tuple(name for names in _NEXT_OF.values() for name in names)


class Memory(Protocol):
    """The part of a Kernel that is needed here."""

    layouts: Layouts
    warnings: Findings
    pointer_size: int

    def read(self, address: int, size: int) -> bytes: ...

    def pointer(self, address: int) -> int: ...

    def try_cstring(self, address: int, default: str = "", limit: int = 256) -> str: ...

    def symbolize(self, address: int) -> str: ...

    def interrupted(self) -> bool: ...


class Value(NamedTuple):
    """One member.  ``value`` is as JSON wants it: an int, a text, a list, None if unreadable.

    ``meaning`` explains it: flag names, an enumerator, a symbol, the text pointed to.
    ``bits`` is True of flags, which people read in hexadecimal.
    """

    path: str
    address: int
    type: str
    value: Any
    meaning: str
    bits: bool = False


class Link(NamedTuple):
    """How the elements of a list hang together, and the first of them."""

    struct: str
    next_path: str
    first: int


class Wanted:
    """Picks members by path: those named, what holds them and what they hold."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._known: Dict[str, bool] = {}

    def __call__(self, path: str) -> bool:
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = self.is_named(path) or any(
                name.startswith((f"{path}.", f"{path}[")) for name in self._names
            )
        return known

    def is_named(self, path: str) -> bool:
        """True for what is named itself, or lies within."""
        return any(path == n or path.startswith((f"{n}.", f"{n}[")) for n in self._names)


def values(
    memory: Memory, struct: str, address: int, depth: int = 1, wanted: Optional[Wanted] = None
) -> Iterator[Value]:
    """Every member of the ``struct`` at ``address``, or those ``wanted``.

    Structs held by value are opened ``depth`` levels deep.  What cannot be read has
    the value None and is a finding; MemoryFault where not even the first byte can.
    """
    layout = memory.layouts[struct]
    data = _bytes(memory, f"struct {struct}", address, layout.size)
    for value in _members(memory, layout, data, address, "", depth, wanted):
        if wanted is None or wanted.is_named(value.path):
            yield value


def _bytes(memory: Memory, what: str, address: int, size: int) -> bytes:
    try:
        return memory.read(address, size)
    except MemoryFault as fault:
        if not address < fault.address < address + size:
            raise
        memory.warnings.add(what, fault.address, f"the rest cannot be read: {fault.reason}")
        return memory.read(address, fault.address - address)


def _members(
    memory: Memory,
    layout: Layout,
    data: bytes,
    address: int,
    prefix: str,
    depth: int,
    wanted: Optional[Wanted],
) -> Iterator[Value]:
    for member in layout:
        # Names are asked for first: a listing shows seven members of two hundred.
        if wanted is not None and not wanted(prefix + member.name):
            continue
        if "[]." in member.name or (_is_record(member) and not member.struct):
            # shown with the array, or by its own members
            continue
        piece = data[member.offset : member.offset + member.size]
        at = address + member.offset
        path = prefix + member.name
        if member.struct and depth > 0 and member.struct in memory.layouts:
            inner = memory.layouts[member.struct]
            yield from _members(memory, inner, piece, at, f"{path}.", depth - 1, wanted)
        elif member.element is not None:
            yield from _array(memory, layout, member, data, address, path, depth, wanted)
        elif member.struct:
            # its bytes are not looked at
            yield Value(path, at, member.type, f"{at:#x}", f"{{{member.bare}}}")
        else:
            yield _scalar(memory, member, data, at, path)


def _is_record(member: Member) -> bool:
    return member.bare.startswith(("struct (", "union (")) and not member.is_array


def _scalar(memory: Memory, member: Member, data: bytes, at: int, path: str) -> Value:
    fields = Fields([member])
    if fields.span > len(data):
        return Value(path, at, member.type, None, "unreadable")
    number = fields.unpack(data)[0]
    if not isinstance(number, int):
        return Value(path, at, member.type, bytes(number).hex(), "")
    bits = bool(member.decoder) and not memory.layouts.is_enum(member.decoder)
    return Value(path, at, member.type, *_shown(memory, member, number), bits)


def _shown(memory: Memory, member: Member, number: int) -> Tuple[Any, str]:
    """(value for JSON, meaning) of one integer or pointer."""
    if member.is_pointer:
        return f"{number:#x}", _pointed(memory, member, number)
    if member.decoder:
        if memory.layouts.is_enum(member.decoder):
            name = memory.layouts.table(member.decoder).get(number)
            return number, name or ""
        names = memory.layouts.flags(member.decoder, number & _mask(member))
        return number, " | ".join(names)
    return number, ""


def _mask(member: Member) -> int:
    return (1 << (member.bit_size or 8 * member.size)) - 1


def _pointed(memory: Memory, member: Member, number: int) -> str:
    if not number:
        return "NULL"
    name = memory.symbolize(number)
    if member.bare in ("char *", "char*"):
        text = memory.try_cstring(number, "", _TEXT)
        return " ".join(filter(None, (f'"{text}"' if text else "", name)))
    return name


def _array(
    memory: Memory,
    layout: Layout,
    member: Member,
    data: bytes,
    address: int,
    path: str,
    depth: int,
    wanted: Optional[Wanted],
) -> Iterator[Value]:
    type_, count = member.element or ("", 0)
    at = address + member.offset
    piece = data[member.offset : member.offset + member.size]
    if not count:
        # a flexible array: how long it is stands elsewhere
        yield Value(path, at, member.type, f"{at:#x}", "")
        return
    size = member.size // count
    if len(piece) < member.size:
        yield Value(path, at, member.type, None, "unreadable")
        return
    if type_ in _CHARS and size == 1:
        text = piece.split(b"\0")[0]
        if text.isascii() and (type_ == "char" or not any(piece[len(text) :])):
            yield Value(path, at, member.type, text.decode(), "")
        else:
            yield Value(path, at, member.type, piece.hex(), "")
        return
    tag = type_.partition(" ")[2] if type_.startswith(("struct ", "union ")) else ""
    if tag and not type_.endswith("*"):
        anonymous = [m for m in layout if m.name.startswith(f"{member.name}[].")]
        known = memory.layouts.get(tag) if not anonymous else None
        if depth <= 0 or (known is None and not anonymous):
            yield Value(path, at, member.type, f"{at:#x}", f"{{{type_}}} x {count}")
            return
        for i in range(min(count, ARRAY_SHOWN)):
            part = piece[i * size : (i + 1) * size]
            start = at + i * size
            if known is not None:
                inner = f"{path}[{i}]."
                yield from _members(memory, known, part, start, inner, depth - 1, wanted)
            for m in anonymous:
                inner = f"{path}[{i}].{m.name.partition('[].')[2]}"
                yield _scalar(memory, m, part, start + m.offset, inner)
    else:
        one = member._replace(offset=0, size=size, type=type_, ctype=type_)
        read = Fields([one])
        got = [read.unpack(piece[i * size : (i + 1) * size])[0] for i in range(count)]
        if all(isinstance(number, int) for number in got):
            shown = [_shown(memory, one, number) for number in got[:ARRAY_SHOWN]]
            yield Value(path, at, member.type, [value for value, _ in shown], _several(shown))
        else:
            yield Value(path, at, member.type, piece.hex(), "")
    if count > ARRAY_SHOWN:
        yield Value(f"{path}[{ARRAY_SHOWN}..]", at, member.type, None, f"{count} in all")


def _several(shown: Sequence[Tuple[Any, str]]) -> str:
    meanings = [meaning for _, meaning in shown]
    return ", ".join(meanings) if any(meanings) else ""


# Lists


def find_link(memory: Memory, struct: str, address: int, member: str) -> Link:
    """The list that ``member`` of the ``struct`` at ``address`` heads or is a link of.

    For a link the first element is the one at ``address``.  LayoutError where the
    member is neither, or where nothing says by which member the elements are linked.
    """
    layouts = memory.layouts
    for suffix in _NEXTS:
        if layouts.has(struct, f"{member}.{suffix}"):
            return Link(struct, f"{member}.{suffix}", address)
    for kind, suffixes in _NEXT_OF.items():
        path = f"{member}.{kind}_first"
        if layouts.has(struct, path):
            first = layouts.resolve(struct, path)
            return _headed(memory, struct, member, first, suffixes, address)
    raise LayoutError(
        f"struct {struct}: {member!r} is no list head and no link; those it has: "
        + (", ".join(_listed(layouts, struct)) or "none")
    )


def _headed(
    memory: Memory, struct: str, member: str, first: Member, suffixes: Sequence[str], address: int
) -> Link:
    layouts = memory.layouts
    element = first.points_to
    if element is None or element not in layouts:
        raise LayoutError(f"struct {struct}: the elements of {member} are of no struct known here")
    bare = re.sub(r"\[\d+\]", "", member)
    told = [
        layouts[struct].members[name].link
        for name in (bare, f"{bare}[]", first.name)
        if name in layouts[struct].members and layouts[struct].members[name].link
    ]
    if told:
        _, _, link = told[0].partition(".")
    else:
        links = [
            name[: -len(suffix) - 1]
            for name in layouts[element].members
            for suffix in suffixes
            if name.endswith(f".{suffix}")
        ]
        if len(links) != 1:
            raise LayoutError(
                f"struct {struct}: elements of {member} may be linked by "
                + (" or ".join(links) or "nothing known")
                + f"; walk from an element: kprint {element} ADDRESS --list LINK"
            )
        link = links[0]
    for suffix in suffixes:
        if layouts.has(element, f"{link}.{suffix}"):
            start = memory.pointer(address + first.offset)
            return Link(element, f"{link}.{suffix}", start)
    raise LayoutError(f"struct {element} has no link {link!r} in this kernel")


def _listed(layouts: Layouts, struct: str) -> List[str]:
    """Heads and links of a struct, by the names --list takes."""
    found = []
    for name in layouts[struct].members:
        head = _HEAD.search(name)
        if head is not None and head.start():
            found.append(name[: head.start()])
        elif name.endswith(tuple(f".{suffix}" for suffix in _NEXTS)):
            found.append(name.rpartition(".")[0])
    return found


def head_of_symbol(
    memory: Memory, symbol: str, address: int, struct: str, member: str
) -> Optional[Link]:
    """The list of a global head, where ``symbol`` is one whose elements hang on ``member``."""
    known = memory.layouts.tables.head(symbol)
    if known is None or known[0] != struct or known[1] not in ("", member):
        return None
    for suffix in _NEXTS:
        if memory.layouts.has(struct, f"{member}.{suffix}"):
            return Link(struct, f"{member}.{suffix}", memory.pointer(address))
    return None


def elements(memory: Memory, link: Link) -> Iterator[int]:
    """The addresses of a list's elements; a cycle or a bad pointer ends it with a finding."""
    what = f"list of struct {link.struct} by {link.next_path}"
    offset = memory.layouts.offsetof(link.struct, link.next_path)
    seen: set[int] = set()
    at = link.first
    while at:
        if at in seen:
            memory.warnings.add(what, at, f"loops back after {len(seen)} elements")
            return
        seen.add(at)
        try:
            following = memory.pointer(at + offset)
        except MemoryFault as fault:
            memory.warnings.add(what, fault.address, f"element {len(seen)}: {fault.reason}")
            return
        yield at
        at = following
        if len(seen) % _POLL == 0:
            why = "interrupted" if memory.interrupted() else "given up"
            if len(seen) >= _MOST or why == "interrupted":
                memory.warnings.add(what, at, f"{why} after {len(seen)} elements")
                return
