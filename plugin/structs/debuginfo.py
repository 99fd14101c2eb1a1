"""Finding a kernel's debug information: in the kernel, beside it, or where FreeBSD installs it."""

from __future__ import annotations

import os
import zlib
from typing import Iterator, List, NamedTuple, Optional

from plugin.errors import DumpError, LayoutError
from plugin.structs.ctf import SECTION, Ctf
from plugin.structs.dwarf import Dwarf, has_dwarf
from plugin.structs.kept import kept_layouts
from plugin.structs.layout import LayoutSource
from plugin.vmcore.elf import ElfFile

#: where base.txz's kernel-dbg set puts what `make installkernel` splits off
_DEBUG_ROOT = "/usr/lib/debug"


class DebugInfo(NamedTuple):
    """A source, the file it was found in, and what was looked at in vain."""

    source: LayoutSource
    path: str
    notes: List[str]


def open_debug(elf: ElfFile, notes: Optional[List[str]] = None) -> Optional[DebugInfo]:
    """The best debug information of a kernel: its DWARF, a separate file's, its CTF; else None.

    A separate file is found by ``.gnu_debuglink`` and by the names FreeBSD gives it
    (kernel.debug, kernel.symbols), beside the kernel and below /usr/lib/debug; one
    that belongs to another kernel is passed over, and DWARF is where there is no
    pyelftools: each with a line in ``notes``.
    """
    notes = [] if notes is None else notes
    kept = kept_layouts(elf)
    if kept is not None:
        # Of a capsule: what was chosen when it was made, whatever lies on this machine.
        return DebugInfo(kept, elf.path, notes)
    own = _dwarf(elf, notes)
    if own is not None:
        return DebugInfo(own, elf.path, notes)
    for path in _separate(elf):
        try:
            found = ElfFile(path)
        except DumpError as error:
            notes.append(f"debug file passed over: {error}")
            continue
        if not _belongs(elf, found):
            notes.append(f"{path} is passed over: it is another kernel's debug file")
        else:
            source = _dwarf(found, notes)
            if source is not None:
                return DebugInfo(source, path, notes)
        found.close()
    if elf.section(SECTION):
        return DebugInfo(Ctf(elf), elf.path, notes)
    return None


def _dwarf(elf: ElfFile, notes: List[str]) -> Optional[Dwarf]:
    """The DWARF of a file, None where it has none or nothing is there to read it with."""
    if not has_dwarf(elf):
        return None
    try:
        return Dwarf(elf)
    except LayoutError as error:
        notes.append(str(error))
        return None


def _separate(elf: ElfFile) -> Iterator[str]:
    """Files that may hold a kernel's debug information."""
    directory, name = os.path.split(os.path.abspath(elf.plain_path))
    names = [f"{name}.debug", f"{name}.symbols", "kernel.debug", "kernel.symbols"]
    linked = _debuglink(elf)
    if linked is not None:
        names.insert(0, linked[0])
    places = [directory, os.path.join(directory, ".debug"), _DEBUG_ROOT + directory]
    places += [os.path.join(_DEBUG_ROOT, "boot", "kernel")]
    for wanted in dict.fromkeys(names):
        for place in dict.fromkeys(places):
            path = os.path.join(place, wanted)
            if os.path.isfile(path) and not os.path.samefile(path, elf.plain_path):
                yield path


def _debuglink(elf: ElfFile) -> Optional[tuple[str, int]]:
    """(file name, CRC) that .gnu_debuglink gives, None where there is none."""
    data = elf.section(".gnu_debuglink")
    if not data or b"\0" not in data:
        return None
    end = data.index(b"\0")
    name = os.path.basename(data[:end].decode("utf-8", "replace"))
    at = (end + 4) & ~3
    if not name or len(data) < at + 4:
        return None
    return name, int.from_bytes(data[at : at + 4], "little")


def _belongs(elf: ElfFile, debug: ElfFile) -> bool:
    """True where build-ids agree, else where the CRC does; with neither, on trust."""
    if elf.build_id and debug.build_id:
        return elf.build_id == debug.build_id
    linked = _debuglink(elf)
    if linked is None:
        return True
    crc = 0
    at = 0
    while True:
        chunk = debug.pread(at, 1 << 20)
        if not chunk:
            return crc == linked[1]
        crc = zlib.crc32(chunk, crc)
        at += len(chunk)


def debug_of_kind(elf: ElfFile, kind: str) -> LayoutSource:
    """The DWARF or the CTF of a file, as asked for; LayoutError where it has none."""
    if kind == "ctf":
        return Ctf(elf)
    notes: List[str] = []
    found = open_debug(elf, notes)
    if found is None or found.source.name != "dwarf":
        none = f"{elf.path} has no DWARF, nor a debug file beside it"
        raise LayoutError("; ".join(notes) or none)
    return found.source
