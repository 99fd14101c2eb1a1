"""Reading a folder of layout JSON, from which the shipped structs.yaml is made.

The folder holds ``layouts/NAME.json`` and, where known, ``consts/NAME.json`` and
``symbols/NAME.json`` per kernel, NAME as in structs.yaml.  A layout file is
``{struct: {size, kind, file, members:
[{name, offset, size, type, ctype, bit_offset, bit_size}]}}`` with anonymous
structs flattened; a constants file ``{macros: {name: value}, enums: {name:
{value, enum}}}``; a symbols file ``{variable: {type}}``.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Dict, Iterable, List, Mapping, Optional

from plugin.errors import LayoutError
from plugin.structs.decoders import NOISE, NOISE_NAMES
from plugin.structs.kernels import KernelRow, split_name
from plugin.structs.layout import Layout, Member
from plugin.structs.making.corpus import Source, with_nested_enums

_OPTIONS = (
    "SMP",
    "INVARIANTS",
    "WITNESS",
    "BUF_TRACKING",
    "FULL_BUF_TRACKING",
    "QUEUE_MACRO_DEBUG_TRASH",
)
#: variables that macros of sys/kernel.h and sys/malloc.h make by the hundred
_NO_GLOBAL = re.compile(
    r"M_|pmc_|__|sysinit_|\w+_(sys|sysinit|sysuninit)_?(un)?init$|\w+_sys_(un)?init$"
)
_NOISE = re.compile(NOISE)
_NOISE_NAMES = re.compile(NOISE_NAMES)


def read_folder(directory: str, known: Iterable[KernelRow]) -> List[Source]:
    """Every kernel of the folder; what ``known`` rows say of a version is kept.

    LayoutError with the file's name where one is malformed.
    """
    versions = {row.version: row for row in known}
    layouts = os.path.join(directory, "layouts")
    try:
        names = sorted(n[: -len(".json")] for n in os.listdir(layouts) if n.endswith(".json"))
    except OSError as error:
        raise LayoutError(f"{layouts}: {error.strerror}") from None
    return [_source(directory, name, versions) for name in names]


def _source(directory: str, name: str, versions: Mapping[str, KernelRow]) -> Source:
    path = os.path.join(directory, "layouts", f"{name}.json")
    loaded = _json(path)
    constants_path = os.path.join(directory, "consts", f"{name}.json")
    constants = _json(constants_path) if os.path.exists(constants_path) else {}
    try:
        meta = loaded.get("_meta", {})
        structs = {s: layout(s, d) for s, d in loaded.items() if s != "_meta"}
        values = read_constants(constants)
        symbols_path = os.path.join(directory, "symbols", f"{name}.json")
        symbols = _json(symbols_path) if os.path.exists(symbols_path) else {}
        row = _row(name, meta, values, versions)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LayoutError(f"{path}: not a layout file: {error!r}") from None
    return Source(row, structs, with_nested_enums(values), _globals(symbols, structs))


def _globals(symbols: Mapping[str, Any], structs: Mapping[str, Layout]) -> Dict[str, str]:
    """{variable: type} of those that are a known struct, or an array of one."""
    found = {}
    for name, symbol in symbols.items():
        if name == "_meta" or _NO_GLOBAL.match(name):
            continue
        type_ = re.sub(r"^(const|volatile|static) ", "", str(symbol["type"]))
        tag = re.fullmatch(r"(?:struct|union) (\w+)(?:\[\d*\])*", type_)
        if tag and tag.group(1) in structs:
            found[name] = type_
    return found


def _json(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            loaded = json.load(stream)
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise LayoutError(f"{path}: no JSON: {error}") from None
    if not isinstance(loaded, dict):
        raise LayoutError(f"{path}: no JSON object")
    return loaded


def layout(name: str, value: Mapping[str, Any]) -> Layout:
    """One struct of a layout file."""
    members = {}
    for m in value["members"]:
        members[m["name"]] = Member(
            m["name"],
            int(m["offset"]),
            # a flexible array has no size of its own
            max(int(m["size"]), 0),
            m["type"],
            m.get("ctype", m["type"]),
            "",
            int(m.get("bit_offset", 0)),
            int(m.get("bit_size", 0)),
        )
    return Layout(name, int(value["size"]), members, value["kind"], value.get("file", ""))


def read_constants(loaded: Mapping[str, Any]) -> Dict[str, int]:
    """Macros and enumerators of a constants file, without what decodes nothing here."""
    found: Dict[str, int] = {}
    for name, entry in loaded.get("enums", {}).items():
        tag = entry["enum"]
        if not (_NOISE.fullmatch(tag) if tag else _NOISE_NAMES.fullmatch(name)):
            found[name] = int(entry["value"])
    for name, value in loaded.get("macros", {}).items():
        found[name] = int(value, 0) if isinstance(value, str) else int(value)
    return found


def _row(
    name: str,
    meta: Mapping[str, Any],
    constants: Mapping[str, int],
    versions: Mapping[str, KernelRow],
) -> KernelRow:
    version, arch, variant = split_name(name)
    given = {str(option).partition("=")[0] for option in meta.get("options", ())}
    options = frozenset(option for option in _OPTIONS if option in given)
    old: Optional[KernelRow] = versions.get(version)
    if old is not None:
        return old._replace(name=name, arch=arch, variant=variant, options=options)
    date = constants["__FreeBSD_version"]
    source = str(meta.get("source", "")).partition(",")[0]
    return KernelRow(name, version, arch, variant, options, date, date, "", source)
