"""Struct layouts: which source is used for a kernel, and one way to ask them all."""

from __future__ import annotations

import re
from typing import Dict, Iterator, List, Optional, Protocol, Sequence, Set, Tuple

from plugin.errors import LayoutError
from plugin.structs.layout import Fields, Layout, LayoutSource, Member
from plugin.words import did_you_mean

__all__ = ["Fields", "Layout", "LayoutSource", "Layouts", "Member", "Tables"]

_INDEXED = re.compile(r"(.*)\[(\d+)\]")


class Tables(Protocol):
    """The constants, enums and flag tables of one kernel, out of structs.yaml."""

    def constant(self, name: str) -> Optional[int]:
        """The value of a macro or enumerator, None where this kernel has none."""
        ...

    def table(self, decoder: str) -> Optional[Dict[int, str]]:
        """{value: name}, None where this kernel has no such table."""
        ...

    def table_kind(self, decoder: str) -> str:
        """ "enum" or "flags", "" where there is no such table."""
        ...

    def decoder(self, struct: str, member: str) -> str:
        """The table that explains ``struct.member``, "" if none does."""
        ...

    def alias(self, struct: str, path: str) -> List[str]:
        """What ``struct.path`` is a macro for in some versions: paths to try."""
        ...

    def head(self, symbol: str) -> Optional[Tuple[str, str]]:
        """(struct, link) of the elements of the global list head ``symbol``."""
        ...


class Layouts:
    """The layouts, constants and decoders of one kernel.

    ``sources`` are asked in order; the first that knows a struct gives it.
    ``layouts["bio"]`` raises LayoutError where no source does.
    """

    def __init__(self, sources: Sequence[LayoutSource], tables: Tables) -> None:
        self.sources = list(sources)
        self.tables = tables
        self._structs: Dict[str, Optional[Layout]] = {}
        #: structs that the preferred source lacks: the name of the source that gave each
        self.elsewhere: Dict[str, str] = {}
        self._paths: Dict[Tuple[str, str], Member] = {}
        self._absent: Set[Tuple[str, str]] = set()
        self._fields: Dict[Tuple[str, ...], Fields] = {}
        self._others: Dict[str, List[str]] = {}

    @property
    def name(self) -> str:
        """Name of the preferred source, as the reports give it."""
        return self.sources[0].name if self.sources else "none"

    @property
    def asked(self) -> List[str]:
        """The names of the structs that anyone has asked for so far."""
        return list(self._structs)

    def get(self, struct: str) -> Optional[Layout]:
        try:
            return self._structs[struct]
        except KeyError:
            pass
        found = None
        for source in self.sources:
            found = source.struct(struct)
            if found is not None:
                self._decode(found)
                if source is not self.sources[0]:
                    self.elsewhere[struct] = source.name
                break
        self._structs[struct] = found
        return found

    def having(self, struct: str, member: str) -> Optional[str]:
        """The name under which the layout of ``struct`` that has ``member`` is known here.

        Two source files may each declare a struct of one name: ``struct elf_file`` of
        link_elf.c and of link_elf_obj.c.  structs.yaml calls the second NAME#FILE; CTF
        keeps both under one name.  None where no source has such a struct.
        """
        known = f"{struct}#{member}"
        if known not in self._structs:
            self._structs[known] = next(
                (found for found in self._variants(struct) if member in found), None
            )
        return known if self._structs[known] is not None else None

    def _namesakes(self, struct: str) -> List[str]:
        """Names, as ``having`` makes them, of other structs of that name.

        A kernel's CTF may have a ``struct list`` of its own beside that of ZFS, which
        structs.yaml knows.  Only what shares no member with the first is another struct
        and no other version of it.
        """
        if struct not in self._others:
            first = self.get(struct)
            mine = set(first.members) if first is not None else set()
            found = self._others[struct] = []
            for source in self.sources if first is not None and "#" not in struct else ():
                # to open the modules' files for each member that is missing is too much
                if source.name == "modules":
                    continue
                every = getattr(source, "variants", None)
                layouts = every(struct) if every else [source.struct(struct)]
                for layout in layouts:
                    if layout is not None and layout.members and not mine & set(layout.members):
                        found.append(f"{struct}#{len(found)}")
                        self._structs[found[-1]] = layout
        return self._others[struct]

    def _variants(self, struct: str) -> Iterator[Layout]:
        for source in self.sources:
            every = getattr(source, "variants", None)
            if every is not None:
                yield from every(struct)
                continue
            names = getattr(source, "names", list)
            for name in (struct, *(n for n in names() if n.startswith(f"{struct}#"))):
                found = source.struct(name)
                if found is not None:
                    yield found

    def _decode(self, layout: Layout) -> None:
        """Names the tables of members whose source knows types only (DWARF, CTF)."""
        for name, member in layout.members.items():
            if not member.decoder:
                decoder = self.tables.decoder(layout.name, name)
                if decoder:
                    layout.members[name] = member._replace(decoder=decoder)

    def __getitem__(self, struct: str) -> Layout:
        found = self.get(struct)
        if found is None:
            raise LayoutError(
                f"no layout of struct {struct} for this kernel ({self.name})"
                f"{self._near(struct)}; give one with --structs FILE"
            )
        return found

    def _near(self, struct: str) -> str:
        listers = [getattr(source, "names", None) for source in self.sources]
        return did_you_mean(struct, {name for lister in listers if lister for name in lister()})

    def __contains__(self, struct: str) -> bool:
        return self.get(struct) is not None

    def sizeof(self, struct: str) -> int:
        return self[struct].size

    def resolve(self, struct: str, path: str) -> Member:
        """The member at ``path``, through structs held by value and array elements.

        ``resolve("buf", "b_lock.lk_lock")`` and ``resolve("sleepqueue",
        "sq_blocked[1].tqh_first")`` give a Member whose offset counts from the
        start of the struct.  A member that this kernel has made a macro for
        another one is found under its name (``bio_error``, ``mtx_recurse``).
        LayoutError where there is none.
        """
        key = (struct, path)
        known = self._paths.get(key)
        if known is None:
            known = self._find(struct, path)
            if known is None:
                for other in self.tables.alias(struct, path):
                    known = self._find(struct, other)
                    if known is not None:
                        decoder = self.tables.decoder(struct, path) or known.decoder
                        known = known._replace(name=path, decoder=decoder)
                        break
            if known is None:
                others = (self._find(name, path) for name in self._namesakes(struct))
                known = next(filter(None, others), None)
            if known is None:
                raise LayoutError(f"struct {struct} has no member {path!r} in this kernel")
            self._paths[key] = known
        return known

    def _find(self, struct: str, path: str) -> Optional[Member]:
        layout = self[struct]
        member = layout.members.get(path)
        if member is not None:
            return member
        parts = path.split(".")
        for cut in range(len(parts), 0, -1):
            outer = layout.members.get(".".join(parts[:cut]))
            rest = ".".join(parts[cut:])
            if outer is not None:
                if not outer.struct or outer.struct not in self:
                    return None
                try:
                    inner = self.resolve(outer.struct, rest)
                except LayoutError:
                    return None
                return inner._replace(name=path, offset=outer.offset + inner.offset)
            indexed = _INDEXED.fullmatch(".".join(parts[:cut]))
            array = layout.members.get(indexed.group(1)) if indexed else None
            if indexed is not None and array is not None and array.element is not None:
                return self._element(layout, array, int(indexed.group(2)), rest, path)
        return None

    def _element(
        self, layout: Layout, array: Member, index: int, rest: str, path: str
    ) -> Optional[Member]:
        """Element ``index`` of an array member, or the member ``rest`` within it."""
        type_, count = array.element or ("", 0)
        if count and index >= count:
            return None
        if count:
            size = array.size // count
        elif type_.endswith("*"):
            size = self._pointer_size()
        else:
            tag = type_.partition(" ")[2]
            size = self[tag].size if tag and tag in self else 0
        at = array.offset + index * size
        if not rest:
            return (
                array._replace(name=path, offset=at, size=size, type=type_, ctype=type_)
                if size
                else None
            )
        inner = layout.members.get(f"{array.name}[].{rest}")
        if inner is None:
            tag = type_.partition(" ")[2]
            if not type_.startswith(("struct ", "union ")) or tag not in self:
                return None
            try:
                inner = self.resolve(tag, rest)
            except LayoutError:
                return None
        return inner._replace(name=path, offset=at + inner.offset)

    def _pointer_size(self) -> int:
        """Bytes of a pointer, as any struct with one shows."""
        for struct in ("thread", "proc", "bio"):
            layout = self.get(struct)
            if layout is not None:
                for member in layout:
                    if member.is_pointer:
                        return member.size
        return 8

    def has(self, struct: str, path: str) -> bool:
        """True where this kernel's ``struct`` has a member at ``path``."""
        key = (struct, path)
        if key in self._paths:
            return True
        if key in self._absent:
            return False
        try:
            self.resolve(struct, path)
        except LayoutError:
            self._absent.add(key)
            return False
        return True

    def offsetof(self, struct: str, path: str) -> int:
        return self.resolve(struct, path).offset

    def first_of(self, struct: str, *paths: str) -> Optional[str]:
        """The first of ``paths`` that this kernel's struct has, or None."""
        return next((path for path in paths if self.has(struct, path)), None)

    def fields(self, struct: str, *paths: str) -> Fields:
        """A precompiled reader of several members of ``struct``."""
        key = (struct, *paths)
        known = self._fields.get(key)
        if known is None:
            known = self._fields[key] = Fields([self.resolve(struct, path) for path in paths])
        return known

    # Constants and decoders

    def constant(self, name: str, default: Optional[int] = None) -> int:
        """The value of a macro in this kernel's headers (``LK_SHARERS_SHIFT``)."""
        value = self.tables.constant(name)
        if value is None:
            value = default
        if value is None:
            raise LayoutError(f"constant {name} is not known for this kernel")
        return value

    def table(self, decoder: str) -> Dict[int, str]:
        """{value: name} of a flag or enum table; {} where this kernel has none."""
        return self.tables.table(decoder) or {}

    def enum(self, decoder: str, value: int) -> str:
        """The name of an enum value, or the number where it has none."""
        return self.table(decoder).get(value, str(value))

    def is_enum(self, decoder: str) -> bool:
        """True where a table names single values, False where it names bits."""
        return self.tables.table_kind(decoder) == "enum"

    def flags(self, decoder: str, value: int) -> List[str]:
        """Names of the bits set in ``value``; bits without a name as hex."""
        names, rest = [], value
        for bit, name in sorted(self.table(decoder).items()):
            if bit and value & bit == bit:
                names.append(name)
                rest &= ~bit
        if rest:
            names.append(f"{rest:#x}")
        return names
