"""Layouts out of CTF, the compact type information FreeBSD's kernels carry in .SUNW_ctf.

Versions 2 (to 13.x) and 3 (from 14.0), compressed or not, as sys/sys/ctf.h and
ctf(5) describe them and ctfconvert and ctfmerge write them: with types of kind 0
where ctfmerge left a number unused, and with a parent where a module's types were
made unique against the kernel's.  A kernel with CTF needs neither debug files nor
structs.yaml for its layouts.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Dict, List, NamedTuple, Optional

from plugin.errors import LayoutError
from plugin.structs.cache import LayoutCache, cache_key
from plugin.structs.ctype import Field, Node, base_name, flatten
from plugin.structs.layout import Layout
from plugin.vmcore.elf import ElfFile

SECTION = ".SUNW_ctf"

_MAGIC = 0xCFF1
_COMPRESSED = 1
_HEADER = struct.Struct("<HBB8I")
#: more than any kernel's types take: damaged or hostile data
_MAX_BYTES = 256 << 20

# CTF_K_*
_UNKNOWN = 0
_INTEGER, _FLOAT, _POINTER, _ARRAY, _FUNCTION, _STRUCT, _UNION, _ENUM = range(1, 9)
_FORWARD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(9, 14)
_SIZED = frozenset((_STRUCT, _UNION, _ENUM, _INTEGER, _FLOAT, _ARRAY))
_QUALIFIERS = {_VOLATILE: "volatile", _CONST: "const", _RESTRICT: "restrict"}


class _Form(NamedTuple):
    """Where one version keeps its fields."""

    type: struct.Struct
    large: int
    kind_shift: int
    root: int
    max_vlen: int
    array: struct.Struct
    member: struct.Struct
    large_member: struct.Struct
    #: structs from this size on keep 64-bit offsets
    large_struct: int
    argument: struct.Struct
    #: a function's arguments come in pairs
    pairs: bool
    #: set in the number of a type that is a child's own (CTF_INDEX_TO_TYPE)
    child: int


_FORMS = {
    2: _Form(
        struct.Struct("<IHH"), 0xFFFF, 11, 0x0400, 0x03FF,
        struct.Struct("<HHI"), struct.Struct("<IHH"), struct.Struct("<IHxxII"), 1 << 13,
        struct.Struct("<H"), True, 0x8000,
    ),
    3: _Form(
        struct.Struct("<III"), 0xFFFFFFFF, 26, 0x02000000, 0x00FFFFFF,
        struct.Struct("<III"), struct.Struct("<III"), struct.Struct("<IIII"), 1 << 29,
        struct.Struct("<I"), False, 0x80000000,
    ),
}  # fmt: skip


class _Type(NamedTuple):
    kind: int
    root: bool
    vlen: int
    name: int
    #: of a type with a size that, else the type referred to
    value: int
    #: where what follows the fixed part begins
    data: int


class Ctf:
    """A LayoutSource over the CTF section of an ELF file.

    ``name`` is "ctf".  ``parent`` is the kernel's CTF, for a module whose types refer
    to it.  LayoutError, in one line, for what cannot be understood.
    """

    name = "ctf"

    def __init__(self, elf: ElfFile, parent: Optional[Ctf] = None) -> None:
        raw = elf.section(SECTION)
        if not raw:
            raise LayoutError(f"{elf.path} has no CTF (no {SECTION} section)")
        self._open(elf.path, raw, elf.bits // 8, parent)

    @classmethod
    def from_bytes(
        cls, data: bytes, pointer_size: int, path: str = "CTF", parent: Optional[Ctf] = None
    ) -> Ctf:
        """CTF that is no ELF section."""
        self = cls.__new__(cls)
        self._open(path, data, pointer_size, parent)
        return self

    def _open(self, path: str, raw: bytes, pointer_size: int, parent: Optional[Ctf]) -> None:
        self.path = path
        self.pointer_size = pointer_size
        self._raw = raw
        if len(raw) < _HEADER.size:
            raise LayoutError(f"{path}: CTF is cut short")
        magic, self.version, flags, label, name, *offsets = _HEADER.unpack_from(raw)
        if magic != _MAGIC:
            raise LayoutError(f"{path}: no CTF: it begins with {raw[:2].hex()}")
        if self.version not in _FORMS:
            raise LayoutError(f"{path}: CTF version {self.version} is not supported, only 2 and 3")
        #: ctfmerge writes both the label and the name of a parent or neither
        self.is_child = bool(label or name)
        if self.is_child and parent is None:
            raise LayoutError(
                f"{path}: CTF of a module, which refers to its kernel's; name the kernel"
            )
        self._parent = parent if self.is_child else None
        _, _, _, self._type_start, self._string_start, string_size = offsets
        self._form = _FORMS[self.version]
        self._compressed = bool(flags & _COMPRESSED)
        self._string_end = self._string_start + string_size
        if self._type_start > self._string_start or self._string_end > _MAX_BYTES:
            raise LayoutError(f"{path}: damaged CTF header")
        self._body = b""
        self._types: List[_Type] = []
        self._records: Dict[str, List[int]] = {}
        self.digest = hashlib.sha256(raw).hexdigest()
        above = self._parent.digest if self._parent is not None else ""
        self._cache = LayoutCache(cache_key("ctf", self.digest, above))

    # What a LayoutSource gives

    def struct(self, name: str) -> Optional[Layout]:
        """The layout of ``struct name`` or ``union name``; None where it is not defined.

        Of several of one name the one visible everywhere, which ctfmerge marks.
        """
        if name not in self._cache:
            self._cache[name] = self._look_up(name)
        return self._cache[name]

    def variants(self, name: str) -> List[Layout]:
        """Every layout of that name: two source files may each declare a struct of their own."""
        found: List[Layout] = []
        while True:
            key = f"{name}#{len(found)}"
            if key not in self._cache:
                self._index()
                same = self._records.get(name, [])
                number = same[len(found)] if len(found) < len(same) else None
                self._cache[key] = None if number is None else self._flat(number, name)
            layout = self._cache[key]
            if layout is None:
                return found
            found.append(layout)

    def names(self) -> List[str]:
        """Every struct and union defined, sorted."""
        self._index()
        return sorted(self._records)

    def _look_up(self, name: str) -> Optional[Layout]:
        self._index()
        candidates = self._records.get(name, [])
        if not candidates:
            return None
        best = max(candidates, key=lambda i: (self._types[i].root, -i))
        return self._flat(best, name)

    def _flat(self, number: int, name: str) -> Layout:
        try:
            return flatten(self, number | self._mine, name)
        except LayoutError as error:
            raise LayoutError(f"{self.path}: {error}") from None
        except (IndexError, ValueError, struct.error, RecursionError, OverflowError):
            raise self._damaged() from None

    def _damaged(self) -> LayoutError:
        return LayoutError(f"{self.path}: damaged CTF")

    # The type table

    def _index(self) -> None:
        """Finds where each type begins; they follow one another without an index."""
        if self._types:
            return
        body = self._raw[_HEADER.size :]
        if self._compressed:
            try:
                body = zlib.decompressobj().decompress(body, self._string_end or 1)
            except zlib.error as error:
                raise LayoutError(f"{self.path}: CTF cannot be decompressed: {error}") from None
        if self._string_end > len(body):
            raise LayoutError(f"{self.path}: CTF is cut short")
        self._body = body
        try:
            # ctfconvert pairs a function's arguments in version 2; of version 3 both exist
            self._types = self._walk(self._form.pairs) or self._walk(not self._form.pairs) or []
        except (IndexError, struct.error):
            self._types = []
        if not self._types:
            raise self._damaged()
        for i, type_ in enumerate(self._types):
            if type_.kind in (_STRUCT, _UNION):
                name = self._string(type_.name)
                if name:
                    self._records.setdefault(name, []).append(i)

    def _walk(self, pairs: bool) -> Optional[List[_Type]]:
        """All types, the first at index 1; None where they do not end where they should."""
        form, body = self._form, self._body
        # id 0 is void
        types = [_Type(0, False, 0, 0, 0, 0)]
        at, end = self._type_start, self._string_start
        try:
            while at < end:
                name, info, value = form.type.unpack_from(body, at)
                at += form.type.size
                kind = info >> form.kind_shift
                vlen = info & form.max_vlen
                if value == form.large and kind in _SIZED:
                    high, low = struct.unpack_from("<II", body, at)
                    value = high << 32 | low
                    at += 8
                types.append(_Type(kind, bool(info & form.root), vlen, name, value, at))
                if kind in (_INTEGER, _FLOAT):
                    at += 4
                elif kind == _ARRAY:
                    at += form.array.size
                elif kind == _FUNCTION:
                    at += form.argument.size * (vlen + (vlen & 1) if pairs else vlen)
                elif kind in (_STRUCT, _UNION):
                    member = form.member if value < form.large_struct else form.large_member
                    at += member.size * vlen
                elif kind == _ENUM:
                    at += 8 * vlen
                elif kind != _UNKNOWN and not _POINTER <= kind <= _RESTRICT:
                    return None
        except struct.error:
            return None
        return types if at == end else None

    def _string(self, reference: int) -> str:
        """A name; one in the ELF file's own string table is none that types need."""
        if reference >> 31:
            return ""
        at = self._string_start + reference
        end = self._body.find(b"\0", at, self._string_end)
        if at >= self._string_end or end < 0:
            raise self._damaged()
        return self._body[at:end].decode("utf-8", "replace")

    # What plugin.structs.ctype asks for

    @property
    def _mine(self) -> int:
        """What every number of a type of this file has set: a child's are told by a bit."""
        return self._form.child if self._parent is not None else 0

    def _foreign(self, ref: int) -> Optional[Ctf]:
        """The parent, where the type of that number is one of the parent's; else None."""
        if self._parent is None or ref & self._form.child:
            return None
        self._parent._index()
        return self._parent

    def _type(self, ref: int) -> _Type:
        return self._types[ref ^ self._mine]

    def node(self, ref: int) -> Node:
        """The type of that number; 0 is void, and so is a number that nothing was given."""
        foreign = self._foreign(ref)
        if foreign is not None:
            return foreign.node(ref)
        type_ = self._type(ref)
        kind, target = type_.kind, type_.value or None
        if kind == _UNKNOWN:
            return Node("void")
        if kind == _POINTER:
            return Node("pointer", size=self.pointer_size, target=target)
        if kind == _TYPEDEF:
            return Node("typedef", self._string(type_.name), target=target)
        if kind in _QUALIFIERS:
            return Node(_QUALIFIERS[kind], target=target)
        if kind == _ARRAY:
            contents, _, count = self._form.array.unpack_from(self._body, type_.data)
            return Node("array", target=contents or None, elements=count or None)
        if kind == _FUNCTION:
            return Node("function", target=target, params=self._arguments(type_))
        name = self._string(type_.name)
        if kind in (_STRUCT, _UNION, _ENUM):
            tag = {_STRUCT: "struct", _UNION: "union", _ENUM: "enum"}[kind]
            return Node(tag, name, type_.value)
        if kind == _FORWARD:
            # 0 where its writer did not say what it is a forward of
            return Node({_UNION: "union", _ENUM: "enum"}.get(type_.value, "struct"), name)
        return Node("base", base_name(name), type_.value, bits=self._bits(type_))

    def _arguments(self, type_: _Type) -> tuple[Optional[int], ...]:
        form = self._form
        given = [
            form.argument.unpack_from(self._body, type_.data + i * form.argument.size)[0]
            for i in range(type_.vlen)
        ]
        # a last argument of type 0 is "..."
        return tuple(argument or None for argument in given)

    def _bits(self, type_: _Type) -> int:
        """Width of an integer that fills only part of its bytes, else 0."""
        if type_.kind != _INTEGER:
            return 0
        encoding = int.from_bytes(self._body[type_.data : type_.data + 4], "little")
        bits = encoding & 0xFFFF
        return bits if bits and bits != 8 * type_.value else 0

    def fields(self, ref: int) -> List[Field]:
        """The members of a struct or union."""
        foreign = self._foreign(ref)
        if foreign is not None:
            return foreign.fields(ref)
        type_, form = self._type(ref), self._form
        made = []
        for i in range(type_.vlen):
            if type_.value < form.large_struct:
                at = type_.data + i * form.member.size
                name, kind, bit = form.member.unpack_from(self._body, at)
            else:
                at = type_.data + i * form.large_member.size
                name, kind, high, low = form.large_member.unpack_from(self._body, at)
                bit = high << 32 | low
            made.append(Field(self._string(name), kind, bit, self._width(kind)))
        return made

    def _width(self, ref: int) -> int:
        for _ in range(64):
            node = self.node(ref)
            if node.kind == "base":
                return node.bits
            if node.kind not in ("typedef", "const", "volatile") or node.target is None:
                return 0
            ref = node.target
        raise self._damaged()


def inflated(raw: bytes) -> bytes:
    """The same section without its own compression, for what packs better; as it is if damaged."""
    if len(raw) < _HEADER.size or not raw[3] & _COMPRESSED:
        return raw
    inflating = zlib.decompressobj()
    try:
        body = inflating.decompress(raw[_HEADER.size :], _MAX_BYTES)
    except zlib.error:
        return raw
    head = raw[:3] + bytes((raw[3] & ~_COMPRESSED,)) + raw[4 : _HEADER.size]
    return head + body if inflating.eof else raw
