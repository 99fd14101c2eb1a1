"""Layouts out of DWARF (versions 2 to 5), one struct at a time; pyelftools decodes it.

A FreeBSD kernel.debug describes every struct thousands of times, once for each
source file, in a hundred megabytes and more, of which pyelftools would take
minutes to read one half.  So it is given nothing that is not asked for: a
struct's name is looked up in the string table, the bytes that refer to that
string lead to what may be its definitions, and those entries alone are decoded.
What was found is kept in the cache, keyed by the file's build-id or content.

The search guesses where a definition may be, never what it says: whatever it
comes upon counts only once pyelftools has read a struct of that name there.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import struct
import zlib
from bisect import bisect_right
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from io import SEEK_SET, BytesIO
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    FrozenSet,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Tuple,
    Type,
    cast,
)

from plugin.errors import LayoutError
from plugin.structs.cache import LayoutCache, cache_key
from plugin.structs.ctype import Field, Node, base_name, flatten, size_of
from plugin.structs.layout import Layout
from plugin.vmcore.elf import SHT_NOBITS, ElfFile

if TYPE_CHECKING:
    from elftools.dwarf.abbrevtable import AbbrevDecl
    from elftools.dwarf.compileunit import CompileUnit
    from elftools.dwarf.die import DIE
    from elftools.dwarf.dwarfinfo import DWARFInfo

#: those that types, and the attributes of the units that hold them, refer to
_SECTIONS = ("info", "abbrev", "str", "line_str", "str_offsets", "addr", "rnglists")
_RECORDS = {"DW_TAG_structure_type": "struct", "DW_TAG_union_type": "union"}
_QUALIFIERS = {
    "DW_TAG_const_type": "const",
    "DW_TAG_volatile_type": "volatile",
    "DW_TAG_restrict_type": "restrict",
    "DW_TAG_atomic_type": "_Atomic",
}

#: An abbreviation of a struct or union (DW_TAG 0x13, 0x17) with its code and the form of
#: its name (DW_AT 0x03).  Every compiler puts the name first but GCC before 4.5, which
#: put DW_AT_sibling as DW_FORM_ref4 before it.  DW_AT_declaration (0x3C) comes next
#: where nothing is defined.
_RECORD = re.compile(
    rb"\0\0([\x80-\xff]{0,3}[\x01-\x7f])[\x13\x17][\0\1](\x01\x13)?\x03([\x08\x0e\x1a\x25-\x28])(?!\x3c)",
    re.DOTALL,
)
_STRING, _STRP = 0x08, 0x0E
#: DW_FORM_strx and its like: bytes of an index, 0 where that varies
_STRX = {0x1A: 0, 0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4}

#: definitions of one struct that agree before the search ends
_ENOUGH = 4
_MAX_CHILDREN = 20000
#: bytes that one entry, one string or the abbreviations of one unit may have
_MAX_READ = 1 << 18
#: how far behind its start a unit's own entry may give DW_AT_str_offsets_base
_BASE_WITHIN = 64
#: more than any kernel's debug information has: bytes of a section, units
_MAX_SECTION = 1 << 32
_MAX_UNITS = 1 << 18


class _Record(NamedTuple):
    """How a unit writes struct definitions: code, bytes between it and the name, DW_FORM."""

    code: bytes
    gap: int
    form: int


class _Section(BytesIO):
    """A section's bytes, of which no single look reads more than _MAX_READ.

    A number or a block without end in damaged data is thereby none of 100 MB.
    """

    _limit = _MAX_READ

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        at = super().seek(offset, whence)
        self._limit = at + _MAX_READ
        return at

    def read(self, size: Optional[int] = -1, /) -> bytes:
        left = max(0, self._limit - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def has_dwarf(elf: ElfFile) -> bool:
    """True for a file with types in DWARF, which are not read yet."""
    return any(
        section.name in (".debug_info", ".zdebug_info")
        and section.size
        and section.type != SHT_NOBITS
        for section in elf.sections
    )


class Dwarf:
    """A LayoutSource over the DWARF sections of an ELF file.

    ``name`` is "dwarf".  LayoutError, in one line, for what cannot be understood,
    and where pyelftools is not installed.
    """

    name = "dwarf"

    def __init__(self, elf: ElfFile) -> None:
        self.path = elf.path
        self._elf = elf
        if not has_dwarf(elf):
            raise LayoutError(f"{elf.path} has no DWARF debug information")
        if find_spec("elftools") is None:
            raise LayoutError(
                f"debug information in {elf.path} is not read: pyelftools is not installed"
            )
        self.pointer_size = elf.bits // 8
        self._loaded: Optional[DWARFInfo] = None
        self._info = self._abbrev = self._str = self._str_offsets = b""
        #: where the abbreviations of the units begin, and those that define structs
        self._tables: List[int] = []
        self._records: Dict[int, List[_Record]] = {}
        #: where the units' contributions to .debug_str_offsets begin, and whose they may be
        self._bases: List[int] = []
        self._of_base: Dict[int, List[CompileUnit]] = {}
        self._walked: Dict[int, FrozenSet[int]] = {}
        self._nodes: Dict[int, Node] = {}
        self._cache = LayoutCache(cache_key("dwarf", elf.build_id or self._digest()))

    def _section(self, name: str) -> bytes:
        """A section's bytes, decompressed; b"" where there is none."""
        data = self._elf.section(f".debug_{name}")
        if data is None:
            packed = self._elf.section(f".zdebug_{name}") or b""
            size = int.from_bytes(packed[4:12], "big")
            if packed[:4] == b"ZLIB" and size <= _MAX_SECTION:
                with suppress(zlib.error):
                    data = zlib.decompressobj().decompress(packed[12:], size)
        return data or b""

    def _digest(self) -> str:
        """Without a build-id only the content itself tells one kernel from another."""
        digest = hashlib.sha256()
        for name in ("info", "abbrev", "str", "str_offsets"):
            digest.update(self._section(name))
        return digest.hexdigest()

    @property
    def _dwarf(self) -> DWARFInfo:
        """The sections, read on first use: a start with a warm cache is spared them."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> DWARFInfo:
        try:
            from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
        except ImportError as error:
            raise LayoutError(f"pyelftools cannot be imported: {error}") from None
        sections = {}
        for name in _SECTIONS:
            data = self._section(name)
            if data:
                sections[f"debug_{name}_sec"] = DebugSectionDescriptor(
                    _Section(data), f".debug_{name}", 0, len(data), 0
                )
            if name in ("info", "abbrev", "str", "str_offsets"):
                setattr(self, f"_{name}", data)
        if not self._info or not self._abbrev:
            raise LayoutError("damaged DWARF debug information")
        # the sections it can be given are more in each of its releases
        known = [name for name in inspect.signature(DWARFInfo).parameters if name != "config"]
        made = DWARFInfo(
            config=DwarfConfig(True, "", self.pointer_size),
            **{name: sections.get(name) for name in known},
        )
        units = list(self._units(made))
        self._tables = sorted({unit["debug_abbrev_offset"] for unit in units})
        if self._str_offsets:
            self._find_bases(made, units)
        return made

    def _units(self, dwarf: DWARFInfo) -> Iterator[CompileUnit]:
        at, end, count = 0, len(self._info), 0
        # some linkers fill up with zeros
        while at + 11 <= end and any(self._info[at : at + 6]):
            unit = dwarf.get_CU_at(at)
            at += unit.size
            count += 1
            if unit["unit_length"] < 7 or at > end or count > _MAX_UNITS:
                raise LayoutError(f"damaged DWARF debug information at {unit.cu_offset:#x}")
            yield unit

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
            return self._most_common(name)
        except LayoutError as error:
            raise LayoutError(f"{self.path}: {error}") from None
        except _damage():
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

    def _definitions(self, name: str) -> Iterator[int]:
        """Offsets of the entries that define a struct or union of that name."""
        dwarf = self._dwarf
        text = name.encode() + b"\0"
        places = list(_finds(self._str, text))
        whole = [at for at in places if at == 0 or self._str[at - 1] == 0]
        seen = set()
        for unit, at in self._candidates(dwarf, text, whole):
            if at not in seen and self._defines(name, unit, at):
                seen.add(at)
                yield at
        if not seen:
            # a linker may have made it the end of a longer string
            for unit, at in self._candidates(dwarf, b"", sorted({*places} - {*whole})):
                if at not in seen and self._defines(name, unit, at):
                    seen.add(at)
                    yield at

    # Finding where a struct may be defined

    def _candidates(
        self, dwarf: DWARFInfo, text: bytes, places: List[int]
    ) -> Iterator[Tuple[CompileUnit, int]]:
        """(unit, offset) where an entry may begin that defines a struct of the name wanted.

        ``places`` is where the name lies in .debug_str, ``text`` how it is written in place.
        """
        for place in places:
            # the low half of an offset of 64 bits is found as well
            for hit in _finds(self._info, struct.pack("<I", place)):
                yield from self._before(dwarf, hit, _STRP)
            for position in _finds(self._str_offsets, struct.pack("<I", place)):
                yield from self._by_index(position)
        for hit in _finds(self._info, text) if text else ():
            yield from self._before(dwarf, hit, _STRING)

    def _before(self, dwarf: DWARFInfo, hit: int, form: int) -> Iterator[Tuple[CompileUnit, int]]:
        """The entry whose name is written at ``hit``."""
        unit = dwarf.get_CU_containing(hit)
        for record in self._records_of(unit):
            start = hit - record.gap - len(record.code)
            if record.form == form and self._info.startswith(record.code, max(start, 0)):
                yield unit, start

    def _by_index(self, position: int) -> Iterator[Tuple[CompileUnit, int]]:
        """Entries whose name is what .debug_str_offsets has at ``position``."""
        i = bisect_right(self._bases, position) - 1
        base = self._bases[i] if i >= 0 else 0
        for unit in self._of_base.get(base, ()):
            index, odd = divmod(position - base, unit.structs.dwarf_format // 8)
            if odd:
                continue
            for record in self._records_of(unit):
                if record.form not in _STRX or record.gap:
                    continue
                width = _STRX[record.form] or len(_uleb(index))
                if index >> 8 * width:
                    continue
                value = index.to_bytes(width, "little") if _STRX[record.form] else _uleb(index)
                end = unit.cu_offset + unit.size
                for start in _finds(self._info, record.code + value, unit.cu_die_offset, end):
                    yield unit, start

    def _find_bases(self, dwarf: DWARFInfo, units: List[CompileUnit]) -> None:
        """Where .debug_str_offsets begins for which unit.

        Decoding every unit's own entry would take longer than all the rest: what there
        looks like the address of a contribution is taken for it, and read again by pyelftools.
        """
        at, data = 0, self._str_offsets
        while at + 8 <= len(data):
            length, head = struct.unpack_from("<I", data, at)[0], 8
            if length == 0xFFFFFFFF and at + 16 <= len(data):
                length, head = struct.unpack_from("<Q", data, at + 4)[0], 16
            if length < 4:
                break
            self._bases.append(at + head)
            at += length + head - 4
        known = frozenset(self._bases)
        for unit in units:
            start = unit.cu_die_offset
            own = self._info[start : min(start + _BASE_WITHIN, unit.cu_offset + unit.size)]
            values = {struct.unpack_from("<I", own, k)[0] for k in range(len(own) - 3)}
            for base in values & known:
                self._of_base.setdefault(base, []).append(unit)

    def _records_of(self, unit: CompileUnit) -> List[_Record]:
        """The unit's abbreviations that look as if they define structs."""
        start = unit["debug_abbrev_offset"]
        if start not in self._records:
            i = bisect_right(self._tables, start)
            end = self._tables[i] if i < len(self._tables) else len(self._abbrev)
            self._records[start] = [
                _Record(match[1], 4 if match[2] else 0, match[3][0])
                for match in _RECORD.finditer(self._abbrev, start, end)
            ]
        return self._records[start]

    # Making sure

    def _defines(self, name: str, unit: CompileUnit, start: int) -> bool:
        """True where a whole definition of that name begins at ``start``, and not by chance."""
        try:
            die = self._die(unit, start)
            if die.tag not in _RECORDS or _name(die) != name:
                return False
            size, members = die.attributes["DW_AT_byte_size"].value, 0
            for child in self._children(die):
                if child.tag == "DW_TAG_member" and "DW_AT_type" in child.attributes:
                    self._target(child)
                    members += 1
                    if self._place(child)[0] > 8 * size:
                        return False
            # four bytes of a name right behind the code, and members: hardly by chance
            by_string = die.attributes["DW_AT_name"].form in ("DW_FORM_strp", "DW_FORM_string")
            first = next(iter(die.attributes))
            certain = by_string and first == "DW_AT_name" and size and members
            return bool(certain) or start in self._starts(unit)
        except LayoutError:
            return False
        except _damage():
            return False

    def _starts(self, unit: CompileUnit) -> FrozenSet[int]:
        """Where the unit's structs and unions begin, by passing over all of its entries.

        A short index may occur by chance where no entry begins; this tells.  What
        need not be decoded is passed over by the sizes that pyelftools gives its forms.
        """
        known = self._walked.get(unit.cu_offset)
        if known is None:
            known = self._walked[unit.cu_offset] = frozenset(self._walk(unit))
        return known

    def _walk(self, unit: CompileUnit) -> Iterator[int]:
        stream, uleb = unit.get_top_DIE().stream, unit.structs.Dwarf_uleb128("")
        table = unit.get_abbrev_table()
        steps: Dict[int, Tuple[bool, List[Any]]] = {0: (False, [0])}
        at, end = unit.cu_die_offset, unit.cu_offset + unit.size
        while at < end:
            start, code = at, self._info[at]
            at += 1
            if code >= 0x80:
                stream.seek(start)
                code = uleb.parse_stream(stream)
                at = stream.tell()
            if code not in steps:
                declared = table.get_abbrev(code)
                steps[code] = declared["tag"] in _RECORDS, _widths(unit, declared)
            is_record, widths = steps[code]
            if is_record:
                yield start
            for width in widths:
                if isinstance(width, int):
                    at += width
                else:
                    stream.seek(at)
                    width.parse_stream(stream)
                    at = stream.tell()

    # Entries

    def _die(self, unit: CompileUnit, at: int) -> DIE:
        """The entry at ``at``, which ends within its unit."""
        die = unit.get_DIE_from_refaddr(at)
        if at + die.size > unit.cu_offset + unit.size:
            raise LayoutError(f"damaged DWARF debug information at {at:#x}")
        return die

    def _children(self, die: DIE) -> Iterator[DIE]:
        """The entries below ``die``, without those below them.

        pyelftools' own iteration trusts that DW_AT_sibling leads forward.
        """
        unit, at = cast("CompileUnit", die.cu), die.offset + die.size
        for _ in range(_MAX_CHILDREN if die.has_children else 0):
            child = self._die(unit, at)
            if child.is_null():
                return
            yield child
            at = self._after(unit, child)
        if die.has_children:
            raise LayoutError(f"damaged DWARF debug information at {die.offset:#x}")

    def _after(self, unit: CompileUnit, die: DIE) -> int:
        """Where the next sibling of ``die`` begins."""
        at = die.offset + die.size
        if not die.has_children:
            return at
        if "DW_AT_sibling" in die.attributes:
            sibling = die.get_DIE_from_attribute("DW_AT_sibling").offset
            if sibling < at:
                raise LayoutError(f"damaged DWARF debug information at {die.offset:#x}")
            return sibling
        depth = 1
        while depth:
            child = self._die(unit, at)
            at += child.size
            depth += -1 if child.is_null() else bool(child.has_children)
        return at

    def _target(self, die: DIE) -> Optional[int]:
        """Offset in .debug_info of the type that an entry refers to; None is void."""
        if "DW_AT_type" not in die.attributes:
            return None
        return die.get_DIE_from_attribute("DW_AT_type").offset

    # What plugin.structs.ctype asks for

    def node(self, ref: int) -> Node:
        """The type whose entry lies at ``ref``."""
        known = self._nodes.get(ref)
        if known is None:
            known = self._nodes[ref] = self._make(self._at(ref))
        return known

    def _at(self, ref: int) -> DIE:
        return self._die(self._dwarf.get_CU_containing(ref), ref)

    def _make(self, die: DIE) -> Node:
        size = _number(die, "DW_AT_byte_size") or 0
        target = self._target(die)
        tag = str(die.tag)
        if tag in _QUALIFIERS:
            return Node(_QUALIFIERS[tag], target=target)
        if tag == "DW_TAG_pointer_type":
            return Node("pointer", size=size, target=target)
        if tag == "DW_TAG_typedef":
            return Node("typedef", _name(die), target=target)
        if tag in _RECORDS:
            return Node(_RECORDS[tag], _name(die), size)
        if tag == "DW_TAG_enumeration_type":
            return Node("enum", _name(die), size)
        if tag == "DW_TAG_array_type":
            return self._array(die, target)
        if tag == "DW_TAG_subroutine_type":
            params: List[Optional[int]] = []
            for child in self._children(die):
                if child.tag == "DW_TAG_formal_parameter":
                    params.append(self._target(child))
                elif child.tag == "DW_TAG_unspecified_parameters":
                    params.append(None)
            known = tuple(params) if params or "DW_AT_prototyped" in die.attributes else None
            return Node("function", target=target, params=known)
        if tag == "DW_TAG_base_type":
            return Node("base", base_name(_name(die)), size)
        return Node("base", _name(die) or "void", size)

    def _array(self, die: DIE, target: Optional[int]) -> Node:
        counts: List[Optional[int]] = []
        for child in self._children(die):
            if child.tag == "DW_TAG_subrange_type":
                count = _number(child, "DW_AT_count")
                bound = _number(child, "DW_AT_upper_bound")
                # some compilers write the bound of a flexible array as -1
                if count is None and bound is not None and 0 <= bound < 0xFFFFFFFF:
                    count = bound + 1
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
        made = []
        for child in self._children(self._at(ref)):
            type_ = self._target(child) if child.tag == "DW_TAG_member" else None
            if type_ is not None:
                bit, width = self._place(child, type_)
                made.append(Field(_name(child), type_, bit, width))
        return made

    def _place(self, die: DIE, type_: Optional[int] = None) -> Tuple[int, int]:
        """(bit from the start of the struct, width of a bit-field or 0) of a member."""
        width = _number(die, "DW_AT_bit_size") or 0
        bit = _number(die, "DW_AT_data_bit_offset")
        if bit is not None:
            return bit, width
        byte = _location(die)
        high = _number(die, "DW_AT_bit_offset")
        if not width or high is None:
            return 8 * byte, width
        # the old form counts from the most significant bit of the storage unit
        unit_size = _number(die, "DW_AT_byte_size") or 0
        if not unit_size and type_ is not None:
            unit_size = size_of(self, type_)
        return 8 * (byte + unit_size) - high - width, width


def _widths(unit: CompileUnit, declared: AbbrevDecl) -> List[Any]:
    """Bytes of an abbreviation's attributes, with a parser for each that varies."""
    from elftools.construct import SizeofError

    widths: List[Any] = [0]
    for _, form in declared.iter_attr_specs():
        if form == "DW_FORM_implicit_const":
            continue
        parser = unit.structs.Dwarf_dw_form[form]
        if parser is None or form == "DW_FORM_indirect":
            raise LayoutError(f"{form} is not supported")
        try:
            widths[-1] += parser.sizeof()
        except SizeofError:
            widths += [parser, 0]
    return widths


def _name(die: DIE) -> str:
    """DW_AT_name, "" without one."""
    if "DW_AT_name" not in die.attributes:
        return ""
    value = die.attributes["DW_AT_name"].value
    if not isinstance(value, bytes):
        raise LayoutError(f"damaged DWARF debug information at {die.offset:#x}")
    return value.decode("utf-8", "replace")


def _number(die: DIE, attribute: str) -> Optional[int]:
    """A constant, None where there is none or it is computed when the program runs."""
    found = die.attributes.get(attribute)
    if found is None or not isinstance(found.value, int) or "ref" in found.form:
        return None
    return int(found.value)


def _location(die: DIE) -> int:
    """DW_AT_data_member_location in bytes: a constant, in DWARF 2 and 3 an expression."""
    found = die.attributes.get("DW_AT_data_member_location")
    if found is None:
        return 0
    if isinstance(found.value, int):
        return found.value
    from elftools.dwarf.dwarf_expr import DWARFExprParser

    steps = DWARFExprParser(die.cu.structs).parse_expr(found.value)
    if len(steps) != 1 or steps[0].op_name != "DW_OP_plus_uconst":
        raise LayoutError(f"damaged DWARF debug information at {die.offset:#x}")
    return int(steps[0].args[0])


def _damage() -> Tuple[Type[Exception], ...]:
    """What pyelftools raises, in its own words and in Python's, for data that is damaged."""
    from elftools.common.exceptions import DWARFError, ELFError
    from elftools.construct import ConstructError

    return (
        *(DWARFError, ELFError, ConstructError, ArithmeticError, AssertionError, AttributeError),
        *(LookupError, NotImplementedError, RecursionError, TypeError, ValueError, struct.error),
    )


def _finds(data: bytes, wanted: bytes, start: int = 0, end: Optional[int] = None) -> Iterator[int]:
    at = data.find(wanted, start, end)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1, end)


def _uleb(value: int) -> bytes:
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)
