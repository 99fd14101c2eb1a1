"""The layouts that a capsule kept: those chosen when it was made, so that none is chosen anew.

They lie as JSON in a section of the file of symbols that the capsule carries.  Of structs.yaml
all of that kernel is kept, of DWARF the structs that were used; CTF is a section of its own.
"""

from __future__ import annotations

import json
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence

from plugin.errors import LayoutError
from plugin.structs import Layouts
from plugin.structs.cache import layout_from_json, layout_to_json
from plugin.structs.ctf import Ctf
from plugin.structs.layout import Layout, LayoutSource
from plugin.structs.yamlfile import KernelData, kernel_from_json, kernel_to_json
from plugin.vmcore.elf import ElfFile

SECTION = ".wchan.layouts"


class UsedLayouts:
    """A LayoutSource: the structs that were asked of another one, under that one's name."""

    def __init__(self, name: str, structs: Mapping[str, Layout]) -> None:
        self.name = name
        self._structs = structs

    def struct(self, name: str) -> Optional[Layout]:
        return self._structs.get(name)


class KeptLayouts:
    """What was chosen: ``layouts``, the ``variant`` of the kernel, the ``notes`` of the choice.

    A LayoutSource itself, so that it crosses the port as a file's debug information does.
    """

    def __init__(self, layouts: Layouts, variant: FrozenSet[str], notes: List[str]) -> None:
        self.layouts = layouts
        self.variant = variant
        self.notes = notes
        self.name = layouts.name

    def struct(self, name: str) -> Optional[Layout]:
        return self.layouts.get(name)


def kept_layouts(elf: ElfFile) -> Optional[KeptLayouts]:
    """What a capsule's file of symbols has of layouts; None of any other file.

    LayoutError where it makes no sense.
    """
    raw = elf.section(SECTION)
    if raw is None:
        return None
    try:
        told = json.loads(raw)
        tables = kernel_from_json(told["tables"])
        sources = [_source(each, elf, tables) for each in told["sources"]]
        variant = frozenset(map(str, told["variant"]))
        return KeptLayouts(Layouts(sources, tables), variant, [str(n) for n in told["notes"]])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise LayoutError(f"{elf.path}: the layouts kept in it are damaged") from None


def _source(told: Any, elf: ElfFile, tables: KernelData) -> LayoutSource:
    kind = told["kind"]
    if kind == "ctf":
        return Ctf(elf)
    if kind == "tables":
        return tables
    if kind == "yaml":
        return kernel_from_json(told["data"])
    return UsedLayouts(
        str(told["name"]),
        {str(name): layout_from_json(each) for name, each in told["structs"].items()},
    )


def kept_section(
    sources: Sequence[LayoutSource],
    tables: KernelData,
    names: Iterable[str],
    variant: Iterable[str] = (),
    notes: Sequence[str] = (),
) -> bytes:
    """The bytes of the section; ``names`` are the structs that were asked for."""
    wanted = sorted(names)
    told = {
        "variant": sorted(variant),
        "notes": list(notes),
        "tables": kernel_to_json(tables),
        "sources": [_told(source, tables, wanted) for source in sources],
    }
    return json.dumps(told, separators=(",", ":")).encode()


def _told(source: LayoutSource, tables: KernelData, names: Sequence[str]) -> Dict[str, Any]:
    if source is tables:
        return {"kind": "tables"}
    if isinstance(source, KernelData):
        return {"kind": "yaml", "data": kernel_to_json(source)}
    if isinstance(source, Ctf):
        return {"kind": "ctf"}
    found = {name: source.struct(name) for name in names}
    structs = {name: layout_to_json(each) for name, each in found.items() if each is not None}
    return {"kind": "used", "name": source.name, "structs": structs}
