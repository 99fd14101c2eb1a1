"""Struct layouts: which source is used for a kernel, and one way to ask them all."""

from __future__ import annotations

from typing import Dict, List, Optional, Protocol, Sequence, Tuple

from plugin.errors import LayoutError
from plugin.structs.layout import Fields, Layout, LayoutSource, Member

__all__ = ["Fields", "Layout", "LayoutSource", "Layouts", "Member", "Tables"]


class Tables(Protocol):
    """The constants, enums and flag tables of one kernel, out of structs.yaml."""

    def constant(self, name: str) -> Optional[int]: ...

    def table(self, decoder: str) -> Optional[Dict[int, str]]: ...


class Layouts:
    """The layouts, constants and decoders of one kernel.

    ``sources`` are asked in order; the first that knows a struct gives it.
    ``layouts["bio"]`` raises LayoutError where no source does.
    """

    def __init__(self, sources: Sequence[LayoutSource], tables: Tables) -> None:
        self.sources = list(sources)
        self.tables = tables
        self._structs: Dict[str, Optional[Layout]] = {}
        self._paths: Dict[Tuple[str, str], Member] = {}
        self._fields: Dict[Tuple[str, ...], Fields] = {}

    @property
    def name(self) -> str:
        """Name of the preferred source, as the reports give it."""
        return self.sources[0].name if self.sources else "none"

    def get(self, struct: str) -> Optional[Layout]:
        try:
            return self._structs[struct]
        except KeyError:
            pass
        found = None
        for source in self.sources:
            found = source.struct(struct)
            if found is not None:
                break
        self._structs[struct] = found
        return found

    def __getitem__(self, struct: str) -> Layout:
        found = self.get(struct)
        if found is None:
            raise LayoutError(
                f"no layout of struct {struct} for this kernel ({self.name}); "
                "give one with --structs FILE"
            )
        return found

    def __contains__(self, struct: str) -> bool:
        return self.get(struct) is not None

    def sizeof(self, struct: str) -> int:
        return self[struct].size

    def resolve(self, struct: str, path: str) -> Member:
        """The member at ``path``, through structs held by value.

        ``resolve("buf", "b_lock.lk_lock")`` gives a Member whose offset counts
        from the start of ``struct buf``.  LayoutError where there is none.
        """
        key = (struct, path)
        known = self._paths.get(key)
        if known is not None:
            return known
        layout = self[struct]
        member = layout.members.get(path)
        if member is None:
            parts = path.split(".")
            for cut in range(len(parts) - 1, 0, -1):
                outer = layout.members.get(".".join(parts[:cut]))
                if outer is not None and outer.struct:
                    inner = self.resolve(outer.struct, ".".join(parts[cut:]))
                    member = inner._replace(name=path, offset=outer.offset + inner.offset)
                    break
            else:
                raise LayoutError(f"struct {struct} has no member {path!r} in this kernel")
        self._paths[key] = member
        return member

    def has(self, struct: str, path: str) -> bool:
        """True where this kernel's ``struct`` has a member at ``path``."""
        try:
            self.resolve(struct, path)
        except LayoutError:
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
