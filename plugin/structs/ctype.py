"""C types as debug information describes them: spelled as in C, structs flattened.

DWARF and CTF describe types alike, as a graph whose nodes refer to one another.
A reader of either gives ``Node`` and ``Field`` by reference; what is done with
them is the same for both and stands here: ``spell`` (the declared type),
``canonical`` (typedefs resolved) and ``flatten`` (a struct's Layout).
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Protocol, Tuple

from plugin.errors import LayoutError
from plugin.structs.layout import Layout, Member

#: deeper than any type a kernel declares: damaged debug information ends here
_MAX_DEPTH = 64
_MAX_MEMBERS = 20000

_QUALIFIERS = frozenset(("const", "volatile", "restrict", "_Atomic"))
_RECORDS = frozenset(("struct", "union"))


class Node(NamedTuple):
    """One type.  ``kind`` is base, typedef, struct, union, enum, pointer, array,
    function, void, or a qualifier (const, volatile, restrict, _Atomic).

    ``target`` refers to the type pointed to, qualified, repeated or returned;
    None is void.  ``elements`` is an array's number of elements, ``params`` a
    function's parameter types with None last for "...".
    """

    kind: str
    name: str = ""
    size: int = 0
    target: Optional[int] = None
    #: None for a flexible array
    elements: Optional[int] = 0
    params: Optional[Tuple[Optional[int], ...]] = None
    #: of an integer that is a bit-field: its width
    bits: int = 0


class Field(NamedTuple):
    """One member of a struct: ``bit`` counts from the start of the struct."""

    name: str
    type: int
    bit: int
    #: 0 for a member that is no bit-field
    width: int = 0


class TypeReader(Protocol):
    """What a reader of debug information gives."""

    pointer_size: int

    def node(self, ref: int) -> Node: ...

    def fields(self, ref: int) -> List[Field]: ...


_GCC_NAMES = {
    "long unsigned int": "unsigned long",
    "short unsigned int": "unsigned short",
    "long long unsigned int": "unsigned long long",
    "long int": "long",
    "short int": "short",
    "long long int": "long long",
    "__int128 unsigned": "unsigned __int128",
}


def base_name(name: str) -> str:
    """A base type's name as clang spells it; GCC's differ ("long unsigned int")."""
    return _GCC_NAMES.get(name, name)


def spell(reader: TypeReader, ref: Optional[int]) -> str:
    """The type as it was declared: "vm_object_t", "void (*)(struct bio *)"."""
    return _spell(reader, ref, "", False, 0)


def canonical(reader: TypeReader, ref: Optional[int]) -> str:
    """The type with typedefs resolved: "struct vm_object *"."""
    return _spell(reader, ref, "", True, 0)


def _spell(reader: TypeReader, ref: Optional[int], inner: str, resolve: bool, depth: int) -> str:
    if depth > _MAX_DEPTH:
        raise LayoutError("debug information: a type refers to itself")
    if ref is None:
        return _joined("void", inner)
    qualifiers: List[str] = []
    alias = ""
    node = reader.node(ref)
    while node.kind in _QUALIFIERS or (resolve and node.kind == "typedef"):
        if node.kind == "typedef":
            alias = node.name
        elif node.kind not in qualifiers:
            qualifiers.append(node.kind)
        if node.target is None:
            node = Node("void")
            break
        depth += 1
        if depth > _MAX_DEPTH:
            raise LayoutError("debug information: a type refers to itself")
        node = reader.node(node.target)
    prefix = " ".join(sorted(qualifiers))
    if node.kind == "pointer":
        star = f"*{prefix}" + (" " if prefix and inner[:1].isalpha() else "") + inner
        target = reader.node(node.target) if node.target is not None else Node("void")
        hidden = _unqualified(reader, node.target, resolve)
        if target.kind in ("array", "function") or hidden in ("array", "function"):
            star = f"({star})"
        return _spell(reader, node.target, star, resolve, depth + 1)
    if node.kind == "array":
        length = "" if node.elements is None else node.elements
        text = _spell(reader, node.target, f"{inner}[{length}]", resolve, depth + 1)
        return f"{prefix} {text}" if prefix else text
    if node.kind == "function":
        params = [
            "..." if p is None else _spell(reader, p, "", resolve, depth + 1)
            for p in node.params or ()
        ]
        if node.params is not None and not params:
            params = ["void"]
        return _spell(reader, node.target, f"{inner}({', '.join(params)})", resolve, depth + 1)
    name = node.name
    if node.kind in ("struct", "union", "enum"):
        # a typedef is the only name that an anonymous struct has
        name = alias if alias and not node.name else f"{node.kind} {node.name or '(anonymous)'}"
    elif node.kind == "void":
        name = "void"
    return _joined(f"{prefix} {name}" if prefix else name, inner)


def _unqualified(reader: TypeReader, ref: Optional[int], resolve: bool) -> str:
    for _ in range(_MAX_DEPTH):
        if ref is None:
            return "void"
        node = reader.node(ref)
        if node.kind not in _QUALIFIERS and not (resolve and node.kind == "typedef"):
            return node.kind
        ref = node.target
    raise LayoutError("debug information: a type refers to itself")


def _joined(base: str, inner: str) -> str:
    if not inner or inner.startswith("["):
        return base + inner
    return f"{base} {inner}"


def size_of(reader: TypeReader, ref: Optional[int]) -> int:
    """Bytes of a type, 0 for void, functions and flexible arrays."""
    times = 1
    for _ in range(_MAX_DEPTH):
        if ref is None:
            return 0
        node = reader.node(ref)
        if node.kind == "pointer":
            return times * (node.size or reader.pointer_size)
        if node.kind == "array":
            times *= node.elements or 0
        elif node.kind != "typedef" and node.kind not in _QUALIFIERS:
            return times * node.size
        ref = node.target
    raise LayoutError("debug information: a type refers to itself")


def flatten(reader: TypeReader, ref: int, name: str) -> Layout:
    """The layout of a struct or union, the members of anonymous ones under dotted names."""
    node = reader.node(ref)
    members: Dict[str, Member] = {}
    for member in _members(reader, ref, 0, "", 0):
        members.setdefault(member.name, member)
        if len(members) > _MAX_MEMBERS:
            raise LayoutError(f"debug information: {node.kind} {name} has too many members")
    return Layout(name, node.size, members, node.kind)


def _members(reader: TypeReader, ref: int, start: int, prefix: str, depth: int) -> Iterator[Member]:
    if depth > _MAX_DEPTH:
        raise LayoutError("debug information: a struct contains itself")
    for field in reader.fields(ref):
        bit = start + field.bit
        if bit < 0:
            raise LayoutError("debug information: a member lies before its struct")
        record = _anonymous(reader, field.type)
        name = prefix + field.name
        if field.name:
            yield Member(
                name,
                bit // 8,
                size_of(reader, field.type),
                spell(reader, field.type),
                canonical(reader, field.type),
                "",
                bit % 8 if field.width else 0,
                field.width,
            )
        if record is None:
            continue
        inner, is_array = record
        if not field.name:
            yield from _members(reader, inner, bit, prefix, depth + 1)
        elif is_array:
            yield from _members(reader, inner, 0, f"{name}[].", depth + 1)
        else:
            yield from _members(reader, inner, bit, f"{name}.", depth + 1)


def _anonymous(reader: TypeReader, ref: int) -> Optional[Tuple[int, bool]]:
    """The anonymous struct or union that a member is, or is an array of."""
    is_array = False
    at: Optional[int] = ref
    for _ in range(_MAX_DEPTH):
        if at is None:
            return None
        node = reader.node(at)
        if node.kind in _RECORDS:
            return (at, is_array) if not node.name else None
        if node.kind == "array":
            is_array = True
        elif node.kind not in _QUALIFIERS:
            return None
        at = node.target
    raise LayoutError("debug information: a type refers to itself")
