"""Reading layout JSON, from which the shipped structs.yaml is made.

A folder, or a tar archive of one, holds
``layouts/NAME.json`` and, where known, ``consts/NAME.json`` and ``symbols/NAME.json``
per kernel, NAME as in structs.yaml, and ``kernels.json``: ``{versions: {VERSION:
{first, last, vendor, source}}, options: {OPTION: [struct]}}``.  A folder may hold all
that packed in ``layouts.tar.xz``, and beside it ``added/NAME.json``, one file a kernel
that `wchan structs add` brought in (``tests/facts``).  A layout file is
``{struct: {size, kind, file, members:
[{name, offset, size, type, ctype, bit_offset, bit_size}]}}`` with anonymous
structs flattened; a constants file ``{macros: {name: value}, enums: {name:
{value, enum}}}``; a symbols file ``{variable: {type}}``.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

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
#: what a folder of facts may be packed in
ARCHIVE = "layouts.tar.xz"
_KINDS = ("layouts", "consts", "symbols")
_NOISE = re.compile(NOISE)
_NOISE_NAMES = re.compile(NOISE_NAMES)


class Facts(NamedTuple):
    """All that a folder or an archive says."""

    sources: List[Source]
    #: {option: structs whose layout depends on that option alone}
    options: Dict[str, Tuple[str, ...]]


class _Files:
    """The JSON files of a folder, or of a tar archive of one: nothing is unpacked to disk."""

    def __init__(self, path: str) -> None:
        self.path = path
        #: {name: bytes} of an archive, None for a folder
        self._packed: Optional[Dict[str, bytes]] = None
        archive = os.path.join(path, ARCHIVE) if os.path.isdir(path) else path
        if os.path.isfile(archive):
            try:
                with tarfile.open(archive) as opened:
                    self._packed = dict(_unpacked(opened))
            except (OSError, tarfile.TarError, EOFError) as error:
                raise LayoutError(f"{archive}: no archive of layout files: {error}") from None

    def added(self) -> List[str]:
        """The kernels that were added one by one, sorted by name."""
        try:
            names = os.listdir(os.path.join(self.path, "added"))
        except OSError:
            return []
        return sorted(name[: -len(".json")] for name in names if name.endswith(".json"))

    def kernels(self) -> List[str]:
        """The kernels that have a layout file, sorted by name."""
        if self._packed is None:
            layouts = os.path.join(self.path, "layouts")
            try:
                names = os.listdir(layouts)
            except OSError as error:
                raise LayoutError(f"{layouts}: {error.strerror}") from None
        else:
            names = [n[len("layouts/") :] for n in self._packed if n.startswith("layouts/")]
        return sorted(name[: -len(".json")] for name in names if name.endswith(".json"))

    def json(self, name: str) -> Optional[Dict[str, Any]]:
        """One file, None where there is none; LayoutError where it is no JSON object."""
        shown = os.path.join(self.path, name)
        try:
            raw = self._read(name)
            loaded = None if raw is None else json.loads(raw)
        except OSError as error:
            raise LayoutError(f"{shown}: {error.strerror}") from None
        except ValueError as error:
            raise LayoutError(f"{shown}: no JSON: {error}") from None
        if raw is not None and not isinstance(loaded, dict):
            raise LayoutError(f"{shown}: no JSON object")
        return loaded

    def _read(self, name: str) -> Optional[bytes]:
        if self._packed is not None and not name.startswith("added/"):
            return self._packed.get(name)
        try:
            with open(os.path.join(self.path, name), "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return None


def _unpacked(archive: tarfile.TarFile) -> Iterator[Tuple[str, bytes]]:
    for member in archive:
        packed = archive.extractfile(member) if member.isfile() else None
        if packed is not None:
            yield member.name, packed.read()


def read_facts(path: str, known: Iterable[KernelRow] = ()) -> Facts:
    """Every kernel of a folder or an archive of layout files.

    What ``known`` rows say of a version is kept where the files do not say it
    themselves.  LayoutError with the file's name where one is malformed.
    """
    files = _Files(path)
    versions = {row.version: row for row in known}
    told = files.json("kernels.json") or {}
    own = {name: files.json(f"added/{name}.json") or {} for name in files.added()}
    try:
        for each in (told, *own.values()):
            versions.update(_versions(each.get("versions", {})))
        options = {str(o): tuple(map(str, s)) for o, s in told.get("options", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LayoutError(f"{path}: kernels.json or added/: {error!r}") from None
    sources = {
        name: _source(
            os.path.join(path, "layouts", f"{name}.json"),
            name,
            {kind: files.json(f"{kind}/{name}.json") or {} for kind in _KINDS},
            versions,
        )
        for name in files.kernels()
    }
    for name, kinds in own.items():
        sources[name] = _source(os.path.join(path, "added", name), name, kinds, versions)
    return Facts(list(sources.values()), options)


def _versions(told: Mapping[str, Any]) -> Dict[str, KernelRow]:
    return {
        version: KernelRow(
            "",
            version,
            "",
            "",
            frozenset(),
            int(said["first"]),
            int(said["last"]),
            str(said["vendor"]),
            str(said["source"]),
        )
        for version, said in told.items()
    }


def _source(
    path: str, name: str, kinds: Mapping[str, Mapping[str, Any]], versions: Mapping[str, KernelRow]
) -> Source:
    try:
        loaded = kinds["layouts"]
        meta = loaded.get("_meta", {})
        structs = {s: layout(s, d) for s, d in loaded.items() if s != "_meta"}
        values = read_constants(kinds.get("consts", {}))
        row = _row(name, meta, values, versions)
        variables = _globals(kinds.get("symbols", {}), structs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LayoutError(f"{path}: not a layout file: {error!r}") from None
    return Source(row, structs, with_nested_enums(values), variables)


def write_added(directory: str, source: Source) -> str:
    """Keep one kernel's layouts in ``directory``/added, as read_facts reads them; its path."""
    row = source.row
    layouts: Dict[str, Any] = {"_meta": {"options": sorted(row.options)}}
    for name, each in source.structs.items():
        layouts[name] = {
            "size": each.size,
            "kind": each.kind,
            "file": each.file,
            "members": [
                {
                    "name": m.name,
                    "offset": m.offset,
                    "size": m.size,
                    "type": m.type,
                    "ctype": m.ctype,
                    "bit_offset": m.bit_pos,
                    "bit_size": m.bit_size,
                }
                for m in each
            ],
        }
    said = {"first": row.first, "last": row.last, "vendor": row.vendor, "source": row.source}
    whole = {
        "versions": {row.version: said},
        "layouts": layouts,
        "consts": {"macros": dict(source.constants)},
        "symbols": {name: {"type": type_} for name, type_ in source.globals.items()},
    }
    path = os.path.join(directory, "added", f"{row.name}.json")
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            json.dump(whole, stream, indent=0)
            stream.write("\n")
    except OSError as error:
        raise LayoutError(f"{path}: {error.strerror}") from None
    return path


def _globals(symbols: Mapping[str, Any], structs: Mapping[str, Layout]) -> Dict[str, str]:
    """{variable: type} of those that are a known struct, or an array of one."""
    found = {}
    for name, symbol in symbols.items():
        if name == "_meta" or _NO_GLOBAL.match(name):
            continue
        type_ = re.sub(r"^(const|volatile|static) ", "", str(symbol["type"]))
        tag = re.fullmatch(r"(?:struct|union) (\w+)(?:\[\d*\])*", type_)
        if tag and tag.group(1) in structs and not _open_ended(structs[tag.group(1)]):
            found[name] = type_
    return found


def _open_ended(layout: Layout) -> bool:
    """A struct that ends in a flexible array: a variable of it is as large as its initializer."""
    last = max(layout, key=lambda member: (member.offset, member.size), default=None)
    return last is not None and last.ctype.endswith("[]")


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
