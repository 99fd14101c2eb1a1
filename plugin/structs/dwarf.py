"""Layouts out of DWARF (versions 2 to 5), one struct at a time.

A FreeBSD kernel.debug describes every struct thousands of times, once for each
source file, in a hundred megabytes and more: nothing is read that is not asked
for.  A struct's name is looked up in the string table; the bytes that refer to
that string lead straight to its definitions.  What was found is kept in the
cache, keyed by the file's build-id or content.

The reader is wchan's own and needs no library.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError
from plugin.structs.cache import LayoutCache, cache_key
from plugin.structs.ctype import Field, Node, base_name, flatten, size_of
from plugin.structs.layout import Layout
from plugin.vmcore.elf import ElfFile

# DW_TAG_*
_ARRAY, _ENUM, _PARAMETER, _MEMBER, _POINTER = 0x01, 0x04, 0x05, 0x0D, 0x0F
_STRUCT, _FUNCTION, _TYPEDEF, _UNION, _UNSPECIFIED = 0x13, 0x15, 0x16, 0x17, 0x18
_SUBRANGE, _BASE, _UNIT_TAGS = 0x21, 0x24, (0x11, 0x3C, 0x41)
_QUALIFIERS = {0x26: "const", 0x35: "volatile", 0x37: "restrict", 0x47: "_Atomic"}

# DW_AT_*
_SIBLING, _NAME, _BYTE_SIZE, _BIT_OFFSET, _BIT_SIZE = 0x01, 0x03, 0x0B, 0x0C, 0x0D
_UPPER_BOUND, _COUNT, _LOCATION, _DECLARATION = 0x2F, 0x37, 0x38, 0x3C
_TYPE, _PROTOTYPED, _DATA_BIT_OFFSET, _STR_OFFSETS_BASE = 0x49, 0x27, 0x6B, 0x72

# DW_FORM_* whose value has a fixed number of bytes
_FIXED = {
    0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8,
    0x19: 0, 0x1C: 4, 0x1E: 16, 0x20: 8, 0x24: 8, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4,
    0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4,
}  # fmt: skip
_BLOCKS = {0x0A: 1, 0x03: 2, 0x04: 4}
#: strp, sec_offset, line_strp, strp_sup and GNU's like: as wide as the unit's offsets
_OFFSETS = frozenset((0x0E, 0x17, 0x1F, 0x1D, 0x1F20, 0x1F21))
_LEB = frozenset((0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23, 0x1F01, 0x1F02))
_STRING, _STRP, _LINE_STRP, _ADDR, _REF_ADDR, _SDATA = 0x08, 0x0E, 0x1F, 0x01, 0x10, 0x0D
_BLOCK, _EXPRLOC, _INDIRECT, _IMPLICIT, _PRESENT = 0x09, 0x18, 0x16, 0x21, 0x19
_STRX = frozenset((0x1A, 0x25, 0x26, 0x27, 0x28, 0x1F02))
_UNIT_REFS = frozenset((0x11, 0x12, 0x13, 0x14, 0x15))
_SIGNATURE = 0x20

#: definitions of one struct that agree before the search ends
_ENOUGH = 4
_MAX_CHILDREN = 20000


class _Unit(NamedTuple):
    """A compilation unit's header."""

    start: int
    first: int
    end: int
    version: int
    address_size: int
    offset_size: int
    abbrevs: int


class _Abbrev(NamedTuple):
    code: int
    tag: int
    children: bool
    #: (attribute, form, implicit constant)
    attributes: Tuple[Tuple[int, int, int], ...]


class _Die(NamedTuple):
    """One entry: its attributes' (form, value), and where the next begins."""

    offset: int
    tag: int
    children: bool
    attributes: Dict[int, Tuple[int, Any]]
    next: int


class Dwarf:
    """A LayoutSource over the DWARF sections of an ELF file.

    ``name`` is "dwarf".  LayoutError, in one line, for what cannot be understood.
    """

    name = "dwarf"

    def __init__(self, elf: ElfFile) -> None:
        self.path = elf.path
        self._elf = elf
        self._info = self._abbrev = self._str = self._line_str = self._str_offsets = b""
        if not any(section.name == ".debug_info" and section.size for section in elf.sections):
            raise LayoutError(f"{elf.path} has no DWARF debug information")
        self.pointer_size = elf.bits // 8
        self._units: List[_Unit] = []
        self._starts: List[int] = []
        self._abbrevs: Dict[int, Dict[int, _Abbrev]] = {}
        self._records: Dict[int, List[Tuple[bytes, int, int]]] = {}
        self._walked: Dict[int, FrozenSet[int]] = {}
        self._nodes: Dict[int, Node] = {}
        self._bases: Optional[List[Tuple[int, int]]] = None
        self._cache = LayoutCache(cache_key("dwarf", elf.build_id or self._digest()))

    def _load(self) -> None:
        """Reads the sections: a hundred megabytes that a start with a warm cache spares."""
        if self._units:
            return
        elf = self._elf
        self._info = elf.section(".debug_info") or b""
        self._abbrev = elf.section(".debug_abbrev") or b""
        self._str = elf.section(".debug_str") or b""
        self._line_str = elf.section(".debug_line_str") or b""
        self._str_offsets = elf.section(".debug_str_offsets") or b""
        self._units = list(self._read_units())
        self._starts = [unit.start for unit in self._units]
        if not self._units or not self._abbrev:
            raise LayoutError("damaged DWARF debug information")

    def _digest(self) -> str:
        """Without a build-id only the content itself tells one kernel from another."""
        digest = hashlib.sha256()
        for name in (".debug_info", ".debug_abbrev", ".debug_str", ".debug_str_offsets"):
            digest.update(self._elf.section(name) or b"")
        return digest.hexdigest()

    # What a LayoutSource gives

    def struct(self, name: str) -> Optional[Layout]:
        """The layout of ``struct name`` or ``union name``; None where it is not defined.

        Where source files define different structs of one name, the one that most
        of them define.
        """
        if name not in self._cache:
            self._cache[name] = self._look_up(name)
        return self._cache[name]

    def _look_up(self, name: str) -> Optional[Layout]:
        """The layout most definitions agree on.  Damaged data is told in one line."""
        try:
            self._load()
            return self._most_common(name)
        except LayoutError as error:
            raise LayoutError(f"{self.path}: {error}") from None
        except (IndexError, KeyError, ValueError, TypeError, OverflowError, RecursionError):
            raise LayoutError(f"{self.path}: damaged DWARF debug information") from None

    def _most_common(self, name: str) -> Optional[Layout]:
        counted: Counter[int] = Counter()
        first: Dict[int, int] = {}
        for at in self._definitions(name):
            size = self.node(at).size
            counted[size] += 1
            first.setdefault(size, at)
            if len(counted) == 1 and counted[size] >= _ENOUGH:
                break
        if not counted:
            return None
        return flatten(self, first[counted.most_common(1)[0][0]], name)

    # Finding a struct's definitions

    def _definitions(self, name: str) -> Iterator[int]:
        """Offsets of the entries that define a struct or union of that name."""
        seen = set()
        for at in self._candidates(name):
            if at not in seen:
                seen.add(at)
                yield at

    def _candidates(self, name: str) -> Iterator[int]:
        text = name.encode() + b"\0"
        # whole strings first, then the ends of others that a linker may have shared
        places = list(_finds(self._str, text))
        whole = [at for at in places if at == 0 or self._str[at - 1] == 0]
        found = False
        for group in (whole, [at for at in places if at not in set(whole)]):
            for place in group:
                for at in self._by_strp(name, place):
                    found = True
                    yield at
                for at in self._by_strx(name, place):
                    found = True
                    yield at
            if found:
                break
        for hit in _finds(self._info, text):
            yield from self._at_hit(name, hit, _STRING)

    def _by_strp(self, name: str, place: int) -> Iterator[int]:
        for width in {unit.offset_size for unit in self._units}:
            for hit in _finds(self._info, place.to_bytes(width, "little")):
                yield from self._at_hit(name, hit, _STRP)

    def _by_strx(self, name: str, place: int) -> Iterator[int]:
        if not self._str_offsets:
            return
        if self._bases is None:
            self._bases = sorted(self._unit_bases())
        for position in _finds(self._str_offsets, place.to_bytes(4, "little")):
            i = bisect_right(self._bases, (position, len(self._units))) - 1
            if i < 0:
                continue
            base = self._bases[i][0]
            # units that share a contribution stand next to one another
            while i >= 0 and self._bases[i][0] == base:
                unit = self._units[self._bases[i][1]]
                index, odd = divmod(position - base, unit.offset_size)
                if not odd:
                    yield from self._by_index(name, unit, index)
                i -= 1

    def _by_index(self, name: str, unit: _Unit, index: int) -> Iterator[int]:
        for code, prefix, form in self._record_abbrevs(unit):
            if form not in _STRX:
                continue
            width = _FIXED.get(form)
            if width is not None and index >> 8 * width:
                continue
            value = index.to_bytes(width, "little") if width is not None else _uleb_bytes(index)
            at = self._info.find(value, unit.first, unit.end)
            while at >= 0:
                start = at - prefix - len(code)
                if start >= unit.first and self._info.startswith(code, start):
                    yield from self._checked(name, unit, start)
                at = self._info.find(value, at + 1, unit.end)

    def _unit_bases(self) -> Iterator[Tuple[int, int]]:
        for i, unit in enumerate(self._units):
            top = self._die(unit, unit.first)
            if _STR_OFFSETS_BASE in top.attributes:
                yield int(top.attributes[_STR_OFFSETS_BASE][1]), i
            elif unit.version < 5:
                yield 0, i

    def _at_hit(self, name: str, hit: int, form: int) -> Iterator[int]:
        """The definition whose name attribute lies at ``hit``, if one does."""
        unit = self._unit_of(hit)
        if unit is None:
            return
        for code, prefix, own in self._record_abbrevs(unit):
            if own != form:
                continue
            start = hit - prefix - len(code)
            if start >= unit.first and self._info.startswith(code, start):
                yield from self._checked(name, unit, start)

    def _checked(self, name: str, unit: _Unit, start: int) -> Iterator[int]:
        """``start``, if a whole definition of that name begins there and not by chance."""
        try:
            die = self._die(unit, start)
            if die.tag not in (_STRUCT, _UNION) or self._name(unit, die) != name:
                return
            size = die.attributes[_BYTE_SIZE][1]
            for child in self._children(unit, die):
                if child.tag == _MEMBER and _TYPE in child.attributes:
                    self._reference(unit, child.attributes[_TYPE])
                    inside, _ = self._place(child)
                    if inside > 8 * size:
                        return
            certain = die.attributes[_NAME][0] in (_STRP, _STRING) and size and die.children
            if not certain and start not in self._records_of(unit):
                return
        except (LayoutError, IndexError, KeyError, ValueError, TypeError):
            return
        yield start

    def _records_of(self, unit: _Unit) -> FrozenSet[int]:
        """Where the unit's structs and unions begin, by walking all of its entries.

        A short index may occur by chance where no entry begins; this tells.
        """
        known = self._walked.get(unit.start)
        if known is None:
            starts = []
            table = self._table(unit.abbrevs)
            widths = {abbrev.code: _total(abbrev, unit) for abbrev in table.values()}
            info, at = self._info, unit.first
            while at < unit.end:
                code, after = _uleb(info, at)
                if code == 0:
                    at = after
                    continue
                if table[code].tag in (_STRUCT, _UNION):
                    starts.append(at)
                width = widths[code]
                at = self._die(unit, at).next if width is None else after + width
            known = self._walked[unit.start] = frozenset(starts)
        return known

    def _record_abbrevs(self, unit: _Unit) -> List[Tuple[bytes, int, int]]:
        """(code, bytes before the name, the name's form) of abbreviations that define structs.

        Every compiler known puts the name first; one that puts something of varying
        length before it would go unseen.
        """
        known = self._records.get(unit.abbrevs)
        if known is None:
            known = self._records[unit.abbrevs] = []
            for abbrev in self._table(unit.abbrevs).values():
                given = {attribute for attribute, _, _ in abbrev.attributes}
                if (
                    abbrev.tag not in (_STRUCT, _UNION)
                    or not {_NAME, _BYTE_SIZE} <= given
                    or _DECLARATION in given
                ):
                    continue
                prefix = 0
                for attribute, form, _ in abbrev.attributes:
                    if attribute == _NAME:
                        known.append((_uleb_bytes(abbrev.code), prefix, form))
                        break
                    width = _width(form, unit)
                    if width is None:
                        break
                    prefix += width
        return known

    # Units, abbreviations, entries

    def _read_units(self) -> Iterator[_Unit]:
        info, at = self._info, 0
        while at + 11 <= len(info):
            start, width = at, 4
            length = int.from_bytes(info[at : at + 4], "little")
            at += 4
            if length == 0xFFFFFFFF:
                width = 8
                length = int.from_bytes(info[at : at + 8], "little")
                at += 8
            end = at + length
            version = int.from_bytes(info[at : at + 2], "little")
            if length == 0 and version == 0:
                return
            if not 2 <= version <= 5 or end > len(info) or length < 7:
                raise LayoutError(f"damaged DWARF debug information at {start:#x}")
            at += 2
            if version >= 5:
                kind, address_size = info[at], info[at + 1]
                abbrevs = int.from_bytes(info[at + 2 : at + 2 + width], "little")
                # type units and split units carry an identifier behind
                first = at + 2 + width + {2: 8 + width, 6: 8 + width, 4: 8, 5: 8}.get(kind, 0)
            else:
                abbrevs = int.from_bytes(info[at : at + width], "little")
                address_size = info[at + width]
                first = at + width + 1
            yield _Unit(start, first, end, version, address_size, width, abbrevs)
            at = end

    def _unit_of(self, offset: int) -> Optional[_Unit]:
        i = bisect_right(self._starts, offset) - 1
        return self._units[i] if i >= 0 and offset < self._units[i].end else None

    def _table(self, offset: int) -> Dict[int, _Abbrev]:
        table = self._abbrevs.get(offset)
        if table is None:
            table = self._abbrevs[offset] = {}
            data, at = self._abbrev, offset
            while at < len(data):
                code, at = _uleb(data, at)
                if code == 0:
                    break
                tag, at = _uleb(data, at)
                children = data[at] != 0
                at += 1
                attributes = []
                while True:
                    attribute, at = _uleb(data, at)
                    form, at = _uleb(data, at)
                    implicit = 0
                    if form == _IMPLICIT:
                        implicit, at = _sleb(data, at)
                    if attribute == 0 and form == 0:
                        break
                    attributes.append((attribute, form, implicit))
                table[code] = _Abbrev(code, tag, children, tuple(attributes))
        return table

    def _die(self, unit: _Unit, offset: int) -> _Die:
        """The entry at ``offset``; tag 0 for the one that ends a list of children."""
        code, at = _uleb(self._info, offset)
        if code == 0:
            return _Die(offset, 0, False, {}, at)
        try:
            abbrev = self._table(unit.abbrevs)[code]
        except KeyError:
            raise LayoutError(f"damaged DWARF debug information at {offset:#x}") from None
        attributes: Dict[int, Tuple[int, Any]] = {}
        for attribute, form, implicit in abbrev.attributes:
            if form == _IMPLICIT:
                attributes[attribute] = form, implicit
                continue
            form, value, at = self._value(unit, form, at)
            attributes[attribute] = form, value
        if at > unit.end:
            raise LayoutError(f"damaged DWARF debug information at {offset:#x}")
        return _Die(offset, abbrev.tag, abbrev.children, attributes, at)

    def _value(self, unit: _Unit, form: int, at: int) -> Tuple[int, Any, int]:
        """(form, value, where the next begins) of one attribute."""
        info = self._info
        if form == _INDIRECT:
            form, at = _uleb(info, at)
        if form == _PRESENT:
            return form, 1, at
        width = _width(form, unit)
        if width is not None:
            return form, int.from_bytes(info[at : at + width], "little"), at + width
        if form in _LEB:
            value, at = _uleb(info, at)
            return form, value, at
        if form == _SDATA:
            value, at = _sleb(info, at)
            return form, value, at
        if form == _STRING:
            end = info.index(b"\0", at)
            return form, info[at:end], end + 1
        if form in (_BLOCK, _EXPRLOC):
            length, at = _uleb(info, at)
        elif form in _BLOCKS:
            length = int.from_bytes(info[at : at + _BLOCKS[form]], "little")
            at += _BLOCKS[form]
        else:
            raise LayoutError(f"DWARF form {form:#x} is not known")
        return form, info[at : at + length], at + length

    def _children(self, unit: _Unit, die: _Die) -> Iterator[_Die]:
        """The entries below ``die``, without those below them."""
        at = die.next
        for _ in range(_MAX_CHILDREN if die.children else 0):
            child = self._die(unit, at)
            if child.tag == 0:
                return
            yield child
            at = self._after(unit, child)
        if die.children:
            raise LayoutError(f"damaged DWARF debug information at {die.offset:#x}")

    def _after(self, unit: _Unit, die: _Die) -> int:
        """Where the next sibling of ``die`` begins."""
        if not die.children:
            return die.next
        if _SIBLING in die.attributes:
            at = self._reference(unit, die.attributes[_SIBLING])
            if at <= die.offset:
                raise LayoutError(f"damaged DWARF debug information at {die.offset:#x}")
            return at
        depth, at = 1, die.next
        while depth:
            child = self._die(unit, at)
            at = child.next
            depth += -1 if child.tag == 0 else child.children
        return at

    def _name(self, unit: _Unit, die: _Die) -> str:
        if _NAME not in die.attributes:
            return ""
        form, value = die.attributes[_NAME]
        if form == _STRING:
            return bytes(value).decode("utf-8", "replace")
        table = self._line_str if form == _LINE_STRP else self._str
        if form in _STRX:
            base = 0
            if unit.version >= 5:
                top = self._die(unit, unit.first)
                base = int(top.attributes[_STR_OFFSETS_BASE][1])
            at = base + int(value) * unit.offset_size
            value = int.from_bytes(self._str_offsets[at : at + unit.offset_size], "little")
        if not isinstance(value, int) or not 0 <= value < len(table):
            raise LayoutError(f"damaged DWARF debug information at {die.offset:#x}")
        return table[value : table.index(b"\0", value)].decode("utf-8", "replace")

    def _reference(self, unit: _Unit, attribute: Tuple[int, Any]) -> int:
        """Offset in .debug_info of what an attribute refers to."""
        form, value = attribute
        if form in _UNIT_REFS:
            at = unit.start + int(value)
            if not unit.first <= at < unit.end:
                raise LayoutError(f"damaged DWARF debug information at {unit.start:#x}")
            return at
        if form == _REF_ADDR and isinstance(value, int) and value < len(self._info):
            return value
        raise LayoutError(f"DWARF reference of form {form:#x} is not supported")

    # What plugin.structs.ctype asks for

    def node(self, ref: int) -> Node:
        """The type whose entry lies at ``ref``."""
        known = self._nodes.get(ref)
        if known is None:
            unit = self._unit_of(ref)
            if unit is None:
                raise LayoutError(f"damaged DWARF debug information at {ref:#x}")
            known = self._nodes[ref] = self._make(unit, self._die(unit, ref))
        return known

    def _make(self, unit: _Unit, die: _Die) -> Node:
        size = self._number(die, _BYTE_SIZE)
        target: Optional[int] = None
        if _TYPE in die.attributes:
            target = self._reference(unit, die.attributes[_TYPE])
        if die.tag in _QUALIFIERS:
            return Node(_QUALIFIERS[die.tag], target=target)
        if die.tag == _POINTER:
            return Node("pointer", size=size, target=target)
        if die.tag == _TYPEDEF:
            return Node("typedef", self._name(unit, die), target=target)
        if die.tag in (_STRUCT, _UNION, _ENUM):
            kind = {_STRUCT: "struct", _UNION: "union", _ENUM: "enum"}[die.tag]
            return Node(kind, self._name(unit, die), size)
        if die.tag == _ARRAY:
            return self._array(unit, die, target)
        if die.tag == _FUNCTION:
            params: List[Optional[int]] = []
            for child in self._children(unit, die):
                if child.tag == _PARAMETER and _TYPE in child.attributes:
                    params.append(self._reference(unit, child.attributes[_TYPE]))
                elif child.tag == _UNSPECIFIED:
                    params.append(None)
            known = tuple(params) if params or _PROTOTYPED in die.attributes else None
            return Node("function", target=target, params=known)
        if die.tag == _BASE:
            return Node("base", base_name(self._name(unit, die)), size)
        return Node("base", self._name(unit, die) or "void", size)

    def _array(self, unit: _Unit, die: _Die, target: Optional[int]) -> Node:
        counts: List[Optional[int]] = []
        for child in self._children(unit, die):
            if child.tag == _SUBRANGE:
                count: Optional[int] = None
                if _COUNT in child.attributes:
                    count = self._number(child, _COUNT)
                elif _UPPER_BOUND in child.attributes:
                    bound = self._number(child, _UPPER_BOUND)
                    # some compilers write the bound of a flexible array as -1
                    count = bound + 1 if 0 <= bound < 0xFFFFFFFF else None
                counts.append(count)
        node = Node("array", target=target, elements=counts[-1] if counts else None)
        # each further dimension is a node of its own, at an offset no entry has
        for i, count in enumerate(reversed(counts[:-1])):
            inner = -(die.offset << 8 | i) - 1
            self._nodes[inner] = node
            node = Node("array", target=inner, elements=count)
        return node

    def fields(self, ref: int) -> List[Field]:
        """The members of the struct or union whose entry lies at ``ref``."""
        unit = self._unit_of(ref)
        if unit is None:
            raise LayoutError(f"damaged DWARF debug information at {ref:#x}")
        made = []
        for child in self._children(unit, self._die(unit, ref)):
            if child.tag == _MEMBER and _TYPE in child.attributes:
                type_ = self._reference(unit, child.attributes[_TYPE])
                bit, width = self._place(child, type_)
                made.append(Field(self._name(unit, child), type_, bit, width))
        return made

    def _place(self, die: _Die, type_: Optional[int] = None) -> Tuple[int, int]:
        """(bit from the start of the struct, width of a bit-field or 0) of a member."""
        width = self._number(die, _BIT_SIZE)
        if _DATA_BIT_OFFSET in die.attributes:
            return self._number(die, _DATA_BIT_OFFSET), width
        byte = 0
        if _LOCATION in die.attributes:
            value = die.attributes[_LOCATION][1]
            if isinstance(value, bytes):
                # DWARF 2 and 3: DW_OP_plus_uconst
                if value[:1] != b"\x23":
                    raise LayoutError(f"DWARF member location {value.hex()} is not supported")
                byte, _ = _uleb(value, 1)
            else:
                byte = int(value)
        if not width or _BIT_OFFSET not in die.attributes:
            return 8 * byte, width
        # the old form counts from the most significant bit of the storage unit
        unit_size = self._number(die, _BYTE_SIZE)
        if not unit_size and type_ is not None:
            unit_size = size_of(self, type_)
        return 8 * (byte + unit_size) - self._number(die, _BIT_OFFSET) - width, width

    def _number(self, die: _Die, attribute: int) -> int:
        value = die.attributes.get(attribute, (0, 0))[1]
        return value if isinstance(value, int) else 0


def _finds(data: bytes, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


def _width(form: int, unit: _Unit) -> Optional[int]:
    """Bytes of a form's value, None where it varies."""
    if form in _OFFSETS:
        return unit.offset_size
    if form == _ADDR:
        return unit.address_size
    if form == _REF_ADDR:
        return unit.address_size if unit.version == 2 else unit.offset_size
    return _FIXED.get(form)


def _total(abbrev: _Abbrev, unit: _Unit) -> Optional[int]:
    """Bytes of all attributes of an abbreviation together, None where that varies."""
    total = 0
    for _, form, _ in abbrev.attributes:
        width = 0 if form in (_IMPLICIT, _PRESENT) else _width(form, unit)
        if width is None:
            return None
        total += width
    return total


def _uleb(data: bytes, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 70:
            raise LayoutError("damaged DWARF debug information: a number without end")


def _sleb(data: bytes, at: int) -> Tuple[int, int]:
    start = at
    value, at = _uleb(data, at)
    bits = 7 * (at - start)
    return (value - (1 << bits) if value >> (bits - 1) & 1 else value), at


def _uleb_bytes(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)
