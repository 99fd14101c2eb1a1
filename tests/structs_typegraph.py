"""Types as debug information sees them, made out of layouts, and written as DWARF or CTF.

The readers are tested against these two writers: what a kernel of structs.yaml
declares goes in, and must come out again the same.  The writers share nothing
with the readers but the formats.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from plugin.structs.layout import Layout, Member

SIZES = {
    "char": 1, "signed char": 1, "unsigned char": 1, "_Bool": 1,
    "short": 2, "unsigned short": 2, "int": 4, "unsigned int": 4,
    "long long": 8, "unsigned long long": 8, "unsigned __int128": 16, "float": 4, "double": 8,
}  # fmt: skip
_DIMENSIONS = re.compile(r"(.*?) ?((?:\[\d*\])+)$")


class GraphField(NamedTuple):
    name: str
    type: int
    bit: int
    width: int


class GraphType:
    """One type; ``target`` is another's number, 0 for void."""

    def __init__(
        self,
        kind: str,
        name: str = "",
        size: int = 0,
        target: int = 0,
        elements: Optional[int] = None,
        params: Iterable[int] = (),
        bits: int = 0,
    ) -> None:
        self.kind = kind
        self.name = name
        self.size = size
        self.target = target
        self.elements = elements
        self.params = list(params)
        self.bits = bits
        self.fields: List[GraphField] = []


class Graph:
    """The types of one kernel.  Number 0 is void."""

    def __init__(self, pointer_size: int, typedefs: Dict[str, str]) -> None:
        self.pointer_size = pointer_size
        self.typedefs = typedefs
        self.types: List[GraphType] = [GraphType("void")]
        self._known: Dict[str, int] = {"void": 0}

    def add(self, made: GraphType, key: str = "") -> int:
        self.types.append(made)
        if key:
            self._known[key] = len(self.types) - 1
        return len(self.types) - 1

    # From layouts

    def add_layouts(self, layouts: Iterable[Layout]) -> None:
        for layout in layouts:
            key = f"{layout.kind} {layout.name}"
            number = self._known.get(key) or self.add(GraphType(layout.kind, layout.name), key)
            made = self.types[number]
            made.kind, made.size = layout.kind, layout.size
            made.fields = self._fields(layout, "", 0, None)

    def _fields(
        self, layout: Layout, prefix: str, start: int, inside: Optional[Member]
    ) -> List[GraphField]:
        """The members directly below ``prefix``; anonymous structs are made on the way."""
        made = []
        for member in layout:
            if not member.name.startswith(prefix) or member.name == prefix:
                continue
            rest = member.name[len(prefix) :]
            if "." in rest:
                continue
            made.append(
                GraphField(
                    rest,
                    self._member_type(layout, member),
                    8 * (member.offset - start) + member.bit_pos,
                    member.bit_size,
                )
            )
        return made

    def _member_type(self, layout: Layout, member: Member) -> int:
        match = re.fullmatch(r"(struct|union) \(anonymous\)((?:\[\d*\])*)", member.type)
        if match is None:
            number = self.parse(member.type)
            type_ = self.types[number]
            if type_.kind == "struct" and not type_.fields and type_.size not in (0, member.size):
                # several drivers have a private struct of that name
                return self.add(GraphType("struct", type_.name, member.size))
            self._sized(number, member.size)
            return number
        record = GraphType(match.group(1))
        count = 1
        for dimension in re.findall(r"\[(\d*)\]", match.group(2)):
            count *= int(dimension or 0)
        record.size = member.size // count if count else 0
        number = self.add(record)
        if match.group(2):
            record.fields = self._fields(layout, f"{member.name}[].", 0, member)
            return self._dimensions(number, match.group(2))
        record.fields = self._fields(layout, f"{member.name}.", member.offset, member)
        return number

    def _sized(self, number: int, size: int) -> None:
        """Tells a struct or enum that no layout defines the size its member has."""
        type_ = self.types[number]
        while type_.kind in ("typedef", "const", "volatile", "array"):
            if type_.kind == "array":
                size = size // type_.elements if type_.elements else 0
            type_ = self.types[type_.target]
        if size and type_.kind in ("struct", "union", "enum") and not type_.fields:
            type_.size = size

    # From C

    def parse(self, text: str) -> int:
        """The number of the type that is spelled so."""
        text = text.strip()
        if text not in self._known:
            self._known[text] = self._parse(text)
        return self._known[text]

    def _parse(self, text: str) -> int:
        inner = text.find("(*")
        if inner >= 0:
            close = _closing(text, inner)
            stars = text[inner + 1 : close]
            target = self._suffixed(text[:inner], text[close + 1 :])
            number = self.pointer(target)
            for _ in range(stars.count("*") - 1):
                number = self.pointer(number)
            return number
        array = _DIMENSIONS.fullmatch(text)
        if array:
            return self._dimensions(self.parse(array.group(1)), array.group(2))
        if text.endswith("*"):
            return self.pointer(self.parse(text[:-1]))
        for qualifier in ("const", "volatile"):
            if text.endswith(f"*{qualifier}"):
                return self.add(GraphType(qualifier, target=self.parse(text[: -len(qualifier)])))
            if text.startswith(f"{qualifier} "):
                return self.add(GraphType(qualifier, target=self.parse(text[len(qualifier) + 1 :])))
        tag = re.fullmatch(r"(struct|union|enum) (\w+)", text)
        if tag:
            # forward for now; add_layouts defines those it has
            return self.add(
                GraphType(tag.group(1), tag.group(2), 4 if tag.group(1) == "enum" else 0)
            )
        if text == "enum (anonymous)":
            return self.add(GraphType("enum", "", 4))
        if text in self.typedefs:
            return self.add(GraphType("typedef", text, target=self.parse(self.typedefs[text])))
        if f"{text} *" in self.typedefs:
            pointed = self.types[self.parse(self.typedefs[f"{text} *"])].target
            return self.add(GraphType("typedef", text, target=pointed))
        for spelt, stands_for in self.typedefs.items():
            # known as an array of it alone: "fn_t[2]" is "void (*[2])(void *)"
            suffix = spelt[len(text) :] if spelt.startswith(f"{text}[") else ""
            if suffix and suffix in stands_for:
                target = self.parse(stands_for.replace(suffix, "", 1))
                return self.add(GraphType("typedef", text, target=target))
        size = SIZES.get(text, self.pointer_size if text in ("long", "unsigned long") else 0)
        if size:
            return self.add(GraphType("base", text, size))
        # a typedef name that stands for itself: an enum or struct without a tag
        anonymous = self.add(GraphType("enum", "", 4))
        return self.add(GraphType("typedef", text, target=anonymous))

    def pointer(self, target: int) -> int:
        return self.add(GraphType("pointer", size=self.pointer_size, target=target))

    def _suffixed(self, base: str, suffix: str) -> int:
        """``base (*)suffix``: the array or function that is pointed to."""
        number = self.parse(base)
        if suffix.startswith("["):
            return self._dimensions(number, suffix)
        params = [p for p in _split(suffix[1:-1]) if p]
        if params == ["void"]:
            params = []
        numbers = [-1 if p == "..." else self.parse(p) for p in params]
        return self.add(GraphType("function", target=number, params=numbers))

    def _dimensions(self, element: int, text: str) -> int:
        for dimension in reversed(re.findall(r"\[(\d*)\]", text)):
            elements = int(dimension) if dimension else None
            element = self.add(GraphType("array", target=element, elements=elements))
        return element


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(text)


def _split(text: str) -> List[str]:
    """Parameters at the outermost level."""
    parts, depth, at = [], 0, 0
    for i, c in enumerate(text):
        depth += {"(": 1, ")": -1}.get(c, 0)
        if c == "," and depth == 0:
            parts.append(text[at:i].strip())
            at = i + 1
    return [*parts, text[at:].strip()]


# ELF


def elf(
    sections: Dict[str, bytes], bits: int = 64, machine: int = 62, compressed: bool = False
) -> bytes:
    """An ELF file that is nothing but sections, ``compressed`` as SHF_COMPRESSED if asked for."""
    wide = bits == 64
    names = b"\0"
    offsets = {}
    for name in [*sections, ".shstrtab"]:
        offsets[name] = len(names)
        names += name.encode() + b"\0"
    header_size, entry = (64, 64) if wide else (52, 40)
    body = b""
    headers = [b"\0" * entry]
    form = "<IIQQQQIIQQ" if wide else "<IIIIIIIIII"
    for name, data in [*sections.items(), (".shstrtab", names)]:
        at = header_size + len(body)
        kind = 3 if name == ".shstrtab" else 1
        flags = 0x800 if compressed and kind == 1 else 0
        if flags:
            size = len(data)
            data = struct.pack("<I4xQQ" if wide else "<III", 1, size, 1) + zlib.compress(data)
        headers.append(struct.pack(form, offsets[name], kind, flags, 0, at, len(data), 0, 0, 1, 0))
        body += data
    shoff = header_size + len(body)
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1, 9)) + b"\0" * 8
    header = struct.pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        2, machine, 1, 0, 0, shoff, 0, header_size, 0, 0, entry, len(headers), len(headers) - 1,
    )  # fmt: skip
    return ident + header + body + b"".join(headers)


# DWARF

_TAGS = {
    "struct": 0x13, "union": 0x17, "enum": 0x04, "base": 0x24, "typedef": 0x16, "pointer": 0x0F,
    "const": 0x26, "volatile": 0x35, "array": 0x01, "function": 0x15,
}  # fmt: skip


class _Abbrevs:
    def __init__(self) -> None:
        self.codes: Dict[Tuple[object, ...], int] = {}
        self.text = b""

    def code(self, tag: int, children: bool, attributes: Tuple[Tuple[int, int], ...]) -> bytes:
        key = (tag, children, attributes)
        if key not in self.codes:
            self.codes[key] = len(self.codes) + 1
            self.text += uleb(self.codes[key]) + uleb(tag) + bytes((children,))
            for attribute, form in attributes:
                self.text += uleb(attribute) + uleb(form)
            self.text += b"\0\0"
        return uleb(self.codes[key])


def uleb(value: int) -> bytes:
    out = b""
    while True:
        byte = value & 0x7F
        value >>= 7
        out += bytes((byte | (0x80 if value else 0),))
        if not value:
            return out


def sleb(value: int) -> bytes:
    out = b""
    while True:
        byte = value & 0x7F
        value >>= 7
        done = value == (-1 if byte & 0x40 else 0)
        out += bytes((byte | (0 if done else 0x80),))
        if done:
            return out


def dwarf(
    graph: Graph,
    version: int = 4,
    strings: str = "strp",
    old_bits: bool = False,
    gcc42: bool = False,
) -> Dict[str, bytes]:
    """The sections of one compilation unit, as version 4 or 5 has them.

    ``strings``: "strp" (into .debug_str), "strx" (by index, version 5) or "inline"
    (GCC's way with short names).  ``old_bits``: bit-fields as DWARF 2 and 3 wrote them.
    ``gcc42``: a struct's DW_AT_sibling before its name, where members lie as expressions.
    """
    table = b"\0"
    index: Dict[str, int] = {}
    offsets: List[int] = []

    def text(value: str) -> Tuple[int, bytes]:
        nonlocal table
        if strings == "inline" and len(value) < 4:
            return 0x08, value.encode() + b"\0"
        if value not in index:
            index[value] = len(offsets)
            offsets.append(len(table))
            table += value.encode() + b"\0"
        if strings == "strx":
            return 0x26, struct.pack("<H", index[value])
        return 0x0E, struct.pack("<I", offsets[index[value]])

    abbrevs = _Abbrevs()
    header = 12 if version >= 5 else 11
    starts: Dict[int, int] = {}
    ends: Dict[int, int] = {}

    def emit() -> bytes:
        body = b""

        def die(tag: int, children: bool, *attributes: Tuple[int, int, bytes]) -> None:
            nonlocal body
            forms = tuple((attribute, form) for attribute, form, _ in attributes)
            body += abbrevs.code(tag, children, forms)
            body += b"".join(value for _, _, value in attributes)

        def name(value: str) -> List[Tuple[int, int, bytes]]:
            return [(0x03, *text(value))] if value else []

        def ref(number: int) -> List[Tuple[int, int, bytes]]:
            return [(0x49, 0x13, struct.pack("<I", starts.get(number, 0)))] if number > 0 else []

        base = [(0x72, 0x17, struct.pack("<I", 8))] if strings == "strx" else []
        die(0x11, True, *name("unit.c"), *base)
        for number, type_ in enumerate(graph.types):
            if number == 0:
                continue
            starts[number] = header + len(body)
            size = [(0x0B, 0x0F, uleb(type_.size))]
            tag = _TAGS[type_.kind]
            if type_.kind in ("struct", "union"):
                if type_.name and not type_.size and not type_.fields:
                    die(tag, False, *name(type_.name), (0x3C, 0x19, b""))
                    continue
                after = [(0x01, 0x13, struct.pack("<I", ends.get(number, 0)))] if gcc42 else []
                die(tag, bool(type_.fields), *after, *name(type_.name), *size)
                for field in type_.fields:
                    where = [(0x38, 0x0F, uleb(field.bit // 8))]
                    if field.width and old_bits:
                        unit = _size_of(graph, field.type)
                        start = field.bit // 8 // unit * unit
                        high = 8 * (start + unit) - field.bit - field.width
                        where = [(0x38, 0x0F, uleb(start)), (0x0B, 0x0B, bytes((unit,)))]
                        where += [(0x0D, 0x0B, bytes((field.width,)))]
                        where += [(0x0C, 0x0D, sleb(high))]
                    elif field.width:
                        where = [(0x0D, 0x0B, bytes((field.width,))), (0x6B, 0x0F, uleb(field.bit))]
                    if gcc42 and where[0][0] == 0x38:
                        expression = b"\x23" + where[0][2]
                        block = bytes((len(expression),)) + expression
                        where[0] = (0x38, 0x0A, block)
                    die(0x0D, False, *name(field.name), *ref(field.type), *where)
                body += b"\0" if type_.fields else b""
                ends[number] = header + len(body)
            elif type_.kind == "array":
                die(tag, True, *ref(type_.target))
                count = [] if type_.elements is None else [(0x37, 0x0F, uleb(type_.elements))]
                die(0x21, False, *count)
                body += b"\0"
            elif type_.kind == "function":
                die(tag, True, *ref(type_.target), (0x27, 0x19, b""))
                for parameter in type_.params:
                    if parameter < 0:
                        die(0x18, False)
                    else:
                        die(0x05, False, *ref(parameter))
                body += b"\0"
            elif type_.kind in ("base", "enum"):
                die(tag, False, *name(type_.name), *size)
            elif type_.kind == "pointer":
                die(tag, False, *ref(type_.target))
            else:
                die(tag, False, *name(type_.name), *ref(type_.target))
        return body + b"\0"

    # twice, so that references forward have their addresses
    emit()
    body = emit()
    if version >= 5:
        unit = struct.pack("<HBBI", version, 1, graph.pointer_size, 0) + body
    else:
        unit = struct.pack("<HIB", version, 0, graph.pointer_size) + body
    sections = {
        ".debug_info": struct.pack("<I", len(unit)) + unit,
        ".debug_abbrev": abbrevs.text + b"\0",
        ".debug_str": table,
    }
    if strings == "strx":
        packed = b"".join(struct.pack("<I", offset) for offset in offsets)
        sections[".debug_str_offsets"] = struct.pack("<IHH", len(packed) + 4, 5, 0) + packed
    return sections


def _size_of(graph: Graph, number: int) -> int:
    type_ = graph.types[number]
    while type_.kind in ("typedef", "const", "volatile"):
        type_ = graph.types[type_.target]
    return type_.size


# CTF

_KINDS = {
    "base": 1, "pointer": 3, "array": 4, "function": 5, "struct": 6, "union": 7, "enum": 8,
    "typedef": 10, "volatile": 11, "const": 12,
}  # fmt: skip


def ctf(
    graph: Graph, version: int = 3, compressed: bool = False, child_from: int = 0, until: int = 0
) -> bytes:
    """The .SUNW_ctf section: header, types, strings.

    A type of kind "hole" is a number that ctfmerge has given to none.  ``until`` ends
    it before that type; with ``child_from`` it is a module's, which begins with that
    type and refers to the kernel's for those before.
    """
    own_bit = 0x8000 if version == 2 else 0x80000000

    def ref(number: int) -> int:
        return own_bit | (number - child_from + 1) if 0 < child_from <= number else number

    large, shift, root = (0xFFFF, 11, 0x400) if version == 2 else (0xFFFFFFFF, 26, 1 << 25)
    word = "<H" if version == 2 else "<I"
    strings = b"\0"
    known: Dict[str, int] = {"": 0}

    def text(value: str) -> int:
        nonlocal strings
        if value not in known:
            known[value] = len(strings)
            strings += value.encode() + b"\0"
        return known[value]

    # an integer of its own for each width of bit-field, as ctfconvert makes them
    extra: List[GraphType] = []
    fields: Dict[int, List[GraphField]] = {}
    for number, type_ in enumerate(graph.types):
        fields[number] = []
        for field in type_.fields:
            if field.width:
                size = _size_of(graph, field.type)
                extra.append(
                    GraphType("base", _base_name(graph, field.type), size, bits=field.width)
                )
                field = field._replace(type=len(graph.types) + len(extra) - 1)
            fields[number].append(field)

    body = b""
    whole = [*graph.types, *extra]
    for number, type_ in enumerate(whole[: until or len(whole)]):
        if number < max(child_from, 1):
            continue
        kind = _KINDS.get(type_.kind, 0)
        vlen, value, data = 0, type_.size, b""
        sized = type_.kind in ("base", "struct", "union", "enum")
        if type_.kind == "base":
            data = struct.pack("<I", type_.bits or 8 * type_.size)
        elif type_.kind in ("pointer", "typedef", "volatile", "const"):
            value = ref(type_.target)
        elif type_.kind == "array":
            data = struct.pack(
                "<HHI" if version == 2 else "<III", ref(type_.target), 0, type_.elements or 0
            )
            value = 0
        elif type_.kind == "function":
            params = [ref(max(parameter, 0)) for parameter in type_.params]
            vlen, value = len(params), ref(type_.target)
            if version == 2 and vlen & 1:
                params.append(0)
            data = b"".join(struct.pack(word, parameter) for parameter in params)
        elif type_.kind in ("struct", "union"):
            if type_.name and not type_.size and not fields[number]:
                kind, value, sized = 9, kind, False
            threshold = 1 << (13 if version == 2 else 29)
            vlen = len(fields[number])
            for field in fields[number]:
                if type_.size < threshold:
                    form = "<IHH" if version == 2 else "<III"
                    data += struct.pack(form, text(field.name), ref(field.type), field.bit)
                else:
                    form = "<IHxxII" if version == 2 else "<IIII"
                    data += struct.pack(
                        form,
                        text(field.name),
                        ref(field.type),
                        field.bit >> 32,
                        field.bit & 0xFFFFFFFF,
                    )
        info = kind << shift | root | vlen if type_.kind != "hole" else 0
        long = sized and value >= large
        body += struct.pack("<I", text(type_.name)) + struct.pack(word, info)
        body += struct.pack(word, large if long else value)
        body += struct.pack("<II", value >> 32, value & 0xFFFFFFFF) if long else b""
        body += data
    parent = text("kernel") if child_from else 0
    header = struct.pack(
        "<HBB8I", 0xCFF1, version, compressed, parent, parent, 0, 0, 0, 0, len(body), len(strings)
    )
    content = body + strings
    return header + (zlib.compress(content) if compressed else content)


def _base_name(graph: Graph, number: int) -> str:
    type_ = graph.types[number]
    while type_.kind in ("typedef", "const", "volatile"):
        type_ = graph.types[type_.target]
    return type_.name
