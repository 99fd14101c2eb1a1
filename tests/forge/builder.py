"""Structs, symbols, strings and functions in a forged machine's memory.

Everything here knows C but no kernel: where a member lies comes from the same
layouts the product reads with, and a value is an int, another object, a string
or a list of those.  What the members *mean* is the business of the modules
beside this one.
"""

from __future__ import annotations

import re
import struct as structs
from pathlib import Path
from typing import (
    Any,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Set,
    SupportsIndex,
    Tuple,
    Union,
)

from plugin.errors import LayoutError, UsageError
from plugin.structs import Layouts, Member
from plugin.symbol import Symbol
from tests.forge import elf
from tests.forge.memory import PAGE_SIZE, Arena, Space, address_map

# Offsets in the image of read-only data and of data, and where text begins: those of an
# i386 GENERIC of 2005.  Nothing depends on them.
_TEXT, _RODATA, _DATA = 0x43000, 0x430000, 0x4D0000

_INDEXED = re.compile(r"^(?P<base>[^\[]+)\[(?P<index>\d+)\](?:\.(?P<rest>.+))?$")

_DECLARED = re.compile(r"^struct (\w+)(?:\[(\d+)\])?$")

# push fp; move sp to fp: what an unwinder without debug information looks for.
_PROLOGUE = {
    "i386": b"\x55\x89\xe5",
    "amd64": b"\x55\x48\x89\xe5",
    "arm64": b"\xfd\x7b\xbf\xa9\xfd\x03\x00\x91",
}
_NOP = {"i386": b"\x90", "amd64": b"\x90", "arm64": b"\x1f\x20\x03\xd5"}

Value = Union[SupportsIndex, str, bytes, None, Sequence[Any]]


class Obj:
    """A struct (or a bare variable) at an address.

    ``obj["a.b[2].c"]`` reads, assignment writes; members that are structs come
    back as Obj.  An Obj is an int wherever a pointer is wanted.
    """

    __slots__ = ("_builder", "address", "size", "struct")

    def __init__(self, builder: Builder, struct: str, address: int, size: int) -> None:
        self._builder = builder
        self.struct = struct
        self.address = address
        self.size = size

    def __index__(self) -> int:
        return self.address

    def __repr__(self) -> str:
        return f"<{self.struct or 'variable'} at {self.address:#x}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Obj) and other.address == self.address

    def __hash__(self) -> int:
        return hash(self.address)

    def has(self, path: str) -> bool:
        """True where this kernel's struct has the member."""
        return self._builder.has(self.struct, path)

    def at(self, path: str) -> int:
        """Address of a member."""
        return self.address + self._builder.locate(self.struct, path).offset

    def sub(self, path: str) -> Obj:
        """A struct held by value."""
        member = self._builder.locate(self.struct, path)
        return Obj(self._builder, member.struct or "", self.address + member.offset, member.size)

    def __getitem__(self, path: str) -> Any:
        member = self._builder.locate(self.struct, path)
        if member.struct:
            return self.sub(path)
        raw = self._builder.space.read(self.address + member.offset, member.size)
        if member.is_array:
            return raw
        value = int.from_bytes(raw, "little", signed=member.is_signed and not member.bit_size)
        if member.bit_size:
            return value >> member.bit_pos & (1 << member.bit_size) - 1
        return value

    def __setitem__(self, path: str, value: Value) -> None:
        self._builder.store(self.address, self._builder.locate(self.struct, path), value)

    def set(self, **members: Value) -> Obj:
        """Write members; LayoutError where this kernel lacks one."""
        for path, value in members.items():
            self[path] = value
        return self

    def probe(self, **members: Value) -> Obj:
        """Write those members that this kernel's struct has."""
        for path, value in members.items():
            if self.has(path):
                self[path] = value
        return self


class Function(NamedTuple):
    name: str
    address: int
    size: int
    #: offset of the call that stacks show, where no offset is given
    site: int


class Claimant(Protocol):
    """A module: symbols it claims lie in its own arenas and in its own symbol table."""

    arenas: Dict[str, Arena]
    symbols: List[Symbol]

    def claims(self, name: str) -> bool: ...


class Builder:
    """Places things in memory and keeps the symbol table.

    ``new`` makes a struct in an arena: "kmem" (malloc), "kva" (mapped for
    good), "stacks", "data" (the image).  ``symbol`` makes a variable of the
    kernel's, ``function`` some text.
    """

    def __init__(
        self,
        layouts: Layouts,
        arch: str,
        osreldate: int,
        *,
        ram: int = 128 << 20,
        kstack_pages: Optional[int] = None,
        ram_start: Optional[int] = None,
    ) -> None:
        self.layouts = layouts
        self.osreldate = osreldate
        self.map = address_map(arch, osreldate, ram, kstack_pages, ram_start)
        self.space = Space(self.map)
        self.arch = arch
        self.pointer_size = self.map.pointer_size
        image = self.map.image
        self.arenas: Dict[str, Arena] = {
            "text": Arena(image + _TEXT, image + _RODATA),
            "rodata": Arena(image + _RODATA, image + _DATA),
            "data": Arena(image + _DATA, self.map.image_end),
            "kmem": Arena(self.map.kmem, self.map.stacks),
            "kva": Arena(self.map.kva, self.map.kmem),
            "stacks": Arena(self.map.stacks, self.map.stacks + 0x10000000),
            # Where there is room for what is larger than a small machine.
            "wide": Arena(self.map.stacks + 0x40000000, self.map.stacks + 0x400000000),
        }
        self.symbols: Dict[str, Symbol] = {}
        #: loaded modules, each of which places and names what it claims by its name
        self.claimants: List[Claimant] = []
        self._globals: Mapping[str, str] = getattr(layouts.tables, "globals", {})
        self._strings: Dict[str, int] = {}
        self._functions: Dict[str, Function] = {}
        self._members: Dict[Tuple[str, str], Member] = {}
        self._absent: Set[Tuple[str, str]] = set()
        self._pointer = structs.Struct("<I" if self.pointer_size == 4 else "<Q")

    # Layouts

    def sizeof(self, struct: str) -> int:
        return self.layouts.sizeof(struct)

    def locate(self, struct: str, path: str) -> Member:
        """The member at ``path``, its offset counted from the struct's start.

        Besides dots the path may index arrays: ``ts_blocked[1].tqh_first``.
        """
        key = (struct, path)
        known = self._members.get(key)
        if known is None:
            known = self._members[key] = self._locate(struct, path)
        return known

    def _locate(self, struct: str, path: str) -> Member:
        if "[" not in path:
            return self.layouts.resolve(struct, path)
        match = _INDEXED.match(path)
        if match is None:
            raise LayoutError(f"struct {struct} has no member {path!r}")
        base = self.locate(struct, match["base"])
        element = base.element
        if element is None:
            raise LayoutError(f"struct {struct}: {match['base']} is no array")
        type_, count = element
        stride = base.size // count if count else self._flexible_stride(type_)
        offset = base.offset + int(match["index"]) * stride
        rest = match["rest"]
        if rest is None:
            return Member(path, offset, stride, type_, type_)
        kind, _, tag = type_.partition(" ")
        if kind in ("struct", "union") and "(" not in tag:
            inner = self.locate(tag, rest)
        else:
            inner = self.layouts.resolve(struct, f"{match['base']}[].{rest}")
        return inner._replace(name=path, offset=offset + inner.offset)

    def _flexible_stride(self, type_: str) -> int:
        if type_.endswith("*"):
            return self.pointer_size
        kind, _, tag = type_.partition(" ")
        if kind in ("struct", "union"):
            return self.sizeof(tag)
        raise LayoutError(f"no size is known for an element of type {type_}")

    def has(self, struct: str, path: str) -> bool:
        key = (struct, path)
        if key in self._members:
            return True
        if key in self._absent or struct not in self.layouts:
            return False
        try:
            self.locate(struct, path)
        except LayoutError:
            self._absent.add(key)
            return False
        return True

    def constant(self, name: str, default: Optional[int] = None) -> int:
        return self.layouts.constant(name, default)

    # Values

    def store(self, base: int, member: Member, value: Value) -> None:
        """Write ``value`` into ``member`` of the struct at ``base``."""
        address = base + member.offset
        if member.bit_size:
            old = int.from_bytes(self.space.read(address, member.size), "little")
            mask = (1 << member.bit_size) - 1 << member.bit_pos
            new = old & ~mask | (int(value) << member.bit_pos & mask)  # type: ignore[arg-type]
            self.space.write(address, new.to_bytes(member.size, "little"))
            return
        self.space.write(address, self.encode(member, value))

    def encode(self, member: Member, value: Value) -> bytes:
        size = member.size
        if isinstance(value, str):
            if member.is_pointer:
                value = self.text(value) if "(*" in member.ctype else self.string(value)
            else:
                value = value.encode()
        if isinstance(value, (bytes, bytearray)):
            if len(value) > size:
                raise UsageError(f"{member.name} holds {size} bytes, not {len(value)}")
            return bytes(value).ljust(size, b"\0")
        if isinstance(value, (list, tuple)):
            element = member.element
            if element is None or not element[1]:
                raise UsageError(f"{member.name} is no array of known length")
            width = size // element[1]
            return b"".join(self._number(v, width) for v in value).ljust(size, b"\0")
        return self._number(value, size)

    def _number(self, value: Any, size: int) -> bytes:
        number = 0 if value is None else value.__index__()
        return (number & (1 << size * 8) - 1).to_bytes(size, "little")

    def write_pointer(self, address: int, value: Any) -> None:
        self.space.write(address, self._pointer.pack(0 if value is None else value.__index__()))

    def write_int(self, address: int, value: int, size: int = 4) -> None:
        self.space.write(address, self._number(value, size))

    def read_pointer(self, address: int) -> int:
        value: int = self._pointer.unpack(self.space.read(address, self.pointer_size))[0]
        return value

    # Placing

    def new(
        self,
        struct: str,
        *,
        at: Optional[int] = None,
        arena: str = "kmem",
        size: Optional[int] = None,
        align: Optional[int] = None,
        **members: Value,
    ) -> Obj:
        """A struct in memory, zeroed, with ``members`` set.

        ``at`` puts it at an address; ``size`` overrides that of the layout
        (structs that end in a flexible array).
        """
        if size is None:
            size = self.sizeof(struct)
        if at is None:
            at = self.take(size, arena, align or 2 * self.pointer_size)
        image = bytearray(size)
        late: List[Tuple[Member, Value]] = []
        for path, value in members.items():
            member = self.locate(struct, path)
            if member.bit_size:
                late.append((member, value))
            else:
                image[member.offset : member.offset + member.size] = self.encode(member, value)
        self.space.write(at, bytes(image))
        for member, value in late:
            self.store(at, member, value)
        return Obj(self, struct, at, size)

    def take(self, size: int, arena: str = "kmem", align: int = 8) -> int:
        """Bare memory, zeroed."""
        address = self.arenas[arena].take(size, align)
        self.space.touch(address, size)
        return address

    def array(self, struct: str, count: int, *, arena: str = "kva") -> List[Obj]:
        """``count`` structs in a row."""
        size = self.sizeof(struct)
        base = self.take(size * count, arena, 16)
        return [Obj(self, struct, base + i * size, size) for i in range(count)]

    def view(self, struct: str, address: int) -> Obj:
        """What lies at ``address``, seen as a struct."""
        return Obj(self, struct, address, self.sizeof(struct))

    def string(self, text: str, *, at: Optional[int] = None) -> int:
        """Address of a string constant; equal strings share one, as in a linked kernel."""
        if text not in self._strings:
            raw = text.encode() + b"\0"
            address = self.arenas["rodata"].take(len(raw), 1) if at is None else at
            if at is not None:
                self.arenas["rodata"].reserve(at, len(raw))
            self.space.write(address, raw)
            self._strings[text] = address
        return self._strings[text]

    # The kernel's own names

    def symbol(
        self,
        name: str,
        struct: str = "",
        *,
        size: int = 0,
        count: int = 1,
        static: bool = False,
        at: Optional[int] = None,
        align: int = 0,
        arena: str = "data",
    ) -> Obj:
        """A variable of the kernel: ``count`` structs, or ``size`` bytes.

        Where structs.yaml declares the variable, its type and length stand: a
        lock may be padded to a cache line, a table have room for more.
        """
        declared = _DECLARED.match(self._globals.get(name, ""))
        if struct and declared and declared[1] in self.layouts:
            struct, count = declared[1], max(count, int(declared[2] or 1))
        if struct:
            size = self.sizeof(struct)
        address = (
            self._arena(name, arena).take(size * count, align or (16 if size > 8 else max(size, 1)))
            if at is None
            else at
        )
        self.space.touch(address, size * count)
        self._name(Symbol(name, address, size * count, "object", static))
        return Obj(self, struct, address, size)

    def variable(
        self, name: str, value: Any = 0, *, size: Optional[int] = None, static: bool = False
    ) -> Obj:
        """An integer or pointer variable; a pointer's size unless ``size`` says otherwise."""
        size = size or self.pointer_size
        found = self.symbol(name, size=size, static=static)
        self.write_int(found.address, 0 if value is None else value.__index__(), size)
        return found

    def text_variable(self, name: str, text: str, *, room: int = 0) -> Obj:
        """A char array of the kernel's, in read-only data so that the kernel file has it."""
        raw = text.encode() + b"\0"
        found = self.symbol(name, size=max(len(raw), room), arena="rodata", align=16)
        self.space.write(found.address, raw)
        return found

    def constant_variable(self, name: str, value: int) -> Obj:
        """A constant int, in read-only data so that the kernel file has it."""
        found = self.symbol(name, size=4, arena="rodata", align=4)
        self.write_int(found.address, value, 4)
        return found

    def absolute(self, name: str, value: int) -> None:
        self._name(Symbol(name, value, 0, "absolute", False))

    def _name(self, symbol: Symbol) -> None:
        if symbol.name in self.symbols:
            raise UsageError(f"the kernel defines {symbol.name} already")
        self.symbols[symbol.name] = symbol
        claimant = self._claimant(symbol.name)
        if claimant is not None:
            claimant.symbols.append(symbol)

    def _claimant(self, name: str) -> Optional[Claimant]:
        return next((each for each in self.claimants if each.claims(name)), None)

    def _arena(self, name: str, arena: str) -> Arena:
        """Where a symbol of that name is placed: in the module that claims it."""
        claimant = self._claimant(name)
        return (claimant.arenas if claimant is not None else self.arenas)[arena]

    def lookup(self, name: str) -> Optional[Obj]:
        """The variable of that name, None where it is not defined (yet)."""
        found = self.symbols.get(name)
        return None if found is None else Obj(self, "", found.address, found.size)

    def assign(self, name: str, value: Any) -> None:
        """Store into a variable already defined, by its own size."""
        found = self.symbols.get(name)
        if found is None:
            raise UsageError(f"the kernel defines no {name}")
        self.write_int(found.address, 0 if value is None else value.__index__(), found.size)

    def address_of(self, name: str) -> int:
        found = self.lookup(name)
        if found is None:
            raise UsageError(f"the kernel defines no {name}")
        return found.address

    # Text

    def function(
        self,
        name: str,
        *,
        at: Optional[int] = None,
        size: int = 0x200,
        site: Optional[int] = None,
    ) -> Function:
        """A function: a prologue and nothing else, named in the symbol table.

        ``site`` is where in it stacks say it is, the middle unless given.
        """
        known = self._functions.get(name)
        if known is not None:
            return known
        if at is None:
            at = self._arena(name, "text").take(size, 16)
        else:
            self.arenas["text"].reserve(at, size)
        nop = _NOP[self.arch]
        body = (_PROLOGUE[self.arch] + nop * (size // len(nop)))[:size]
        self.space.write(at, body)
        self._name(Symbol(name, at, size, "function", False))
        made = self._functions[name] = Function(
            name, at, size, size // 2 & ~3 if site is None else site
        )
        return made

    def text(self, place: str) -> int:
        """Address of "name" (the function itself) or "name+0x12"; makes the function."""
        name, plus, offset = place.partition("+")
        distance = int(offset, 0) if plus else 0
        found = self._functions.get(name)
        if found is None:
            found = self.function(name, size=max(0x100, (distance + 0x7F) & ~0x3F))
        if distance >= found.size:
            raise UsageError(f"{name} is {found.size:#x} bytes long, {place} lies outside")
        return found.address + distance

    def call_site(self, place: str) -> int:
        """A return address in a function: "name" alone means somewhere in the middle."""
        if "+" in place:
            return self.text(place)
        return self.text(place) + self._functions[place].site

    # Lists of sys/queue.h: heads and entries are one or two pointers

    def entry(self, struct: str, link: str) -> int:
        """Offset of a list entry in a struct, whichever list it belongs to."""
        for path in (
            link,
            *(f"{link}.{n}" for n in ("tqe_next", "le_next", "stqe_next", "sle_next")),
        ):
            if self.has(struct, path):
                return self.locate(struct, path).offset
        raise LayoutError(f"struct {struct} has no list entry {link!r} in this kernel")

    def tailq(self, head: int, link: str, items: Iterable[Obj]) -> None:
        """TAILQ: head {first, last}, entry {next, prev}."""
        word = self.pointer_size
        previous = head.__index__()
        for item in items:
            at = item.address + self.entry(item.struct, link)
            self.write_pointer(previous, item)
            self.write_pointer(at + word, previous)
            previous = at
        self.write_pointer(previous, 0)
        self.write_pointer(head.__index__() + word, previous)

    def list(self, head: int, link: str, items: Iterable[Obj]) -> None:
        """LIST: head {first}, entry {next, prev}."""
        previous = head.__index__()
        for item in items:
            at = item.address + self.entry(item.struct, link)
            self.write_pointer(previous, item)
            self.write_pointer(at + self.pointer_size, previous)
            previous = at
        self.write_pointer(previous, 0)

    def slist(self, head: int, link: str, items: Iterable[Obj]) -> None:
        """SLIST: head {first}, entry {next}."""
        previous = head.__index__()
        for item in items:
            self.write_pointer(previous, item)
            previous = item.address + self.entry(item.struct, link)
        self.write_pointer(previous, 0)

    def stailq(self, head: int, link: str, items: Iterable[Obj]) -> None:
        """STAILQ: head {first, last}, entry {next}."""
        previous = head.__index__()
        for item in items:
            self.write_pointer(previous, item)
            previous = item.address + self.entry(item.struct, link)
        self.write_pointer(previous, 0)
        self.write_pointer(head.__index__() + self.pointer_size, previous)

    # The kernel file

    def write_kernel(self, path: Path) -> None:
        """The ELF executable: text, read-only data, bss and the symbol table."""
        pieces = []
        delta = (self.map.image - self.map.image_pa) // PAGE_SIZE
        bounds = (
            (".text", "text"),
            (".rodata", "rodata"),
            (".bss", "data"),
        )
        for section, arena in bounds:
            area = self.arenas[arena]
            pages = [
                ((pfn + delta) * PAGE_SIZE, bytes(self.space.pages[pfn]))
                for _, pfn in self.space.image_vpns()
                if area.start <= (pfn + delta) * PAGE_SIZE < area.end
            ]
            if pages:
                start, end = pages[0][0], pages[-1][0] + PAGE_SIZE
                pieces.append(elf.Piece(section, start, end, pages))
        entry = pieces[0].start
        own = [symbol for name, symbol in self.symbols.items() if self._claimant(name) is None]
        elf.write(path, self.arch, pieces, own, entry)
