"""Files of the kernel's modules on this machine: ``zfs.ko``, the types and symbols in it.

A file is used only where it is proven to be the one that was loaded: by its build id,
or by the symbols that the kernel keeps of it.  One of another build is refused, and the
evidence is kept.

Mirrors sys/kern/kern_linker.c for where modules are looked for (``linker_path``).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import LAYOUT, MEMORY, cached
from plugin.errors import LayoutError, MemoryFault, SymbolMissing, WchanError
from plugin.kernel.linker import LinkerFile, ModuleTable, memory_table, modules
from plugin.session import Kernel
from plugin.structs.ctf import SECTION, Ctf
from plugin.structs.dwarf import Dwarf, has_dwarf
from plugin.structs.kept import kept_layouts
from plugin.structs.layout import Layout, LayoutSource
from plugin.symbol import Symbol
from plugin.vmcore.elf import (
    ET_REL,
    FORMS,
    NT_GNU_BUILD_ID,
    PT_NOTE,
    SHN_LORESERVE,
    SHN_UNDEF,
    ElfFile,
    SymbolTable,
    notes,
)

_DEBUG_ROOT = "usr/lib/debug"
_NOTE_SECTION = ".note.gnu.build-id"
_MOST_NOTES = 4096
#: program headers: more than any module has
_MOST_SEGMENTS = 64
#: as struct Elf_progent keeps them: more sections than any module has
_MOST_SECTIONS = 4096
#: symbols compared where a whole table is too much to read
_SAMPLES = 12


class ModuleFile(NamedTuple):
    """What was found of one module on this machine.

    ``elf`` is None where no file was, or none that is the one loaded; ``why`` says what
    proves it; ``refused`` are (path, evidence) of files of another build.
    """

    elf: Optional[ElfFile]
    why: str
    refused: List[Tuple[str, str]]


@cached(LAYOUT)
def module_file(kernel: Kernel, file: LinkerFile) -> ModuleFile:
    """The file that ``file`` was loaded from, beside the kernel or where the dump says."""
    refused: List[Tuple[str, str]] = []
    told = kernel.target.carried.get(file.filename)
    if told is not None:
        elf = ElfFile(told.file) if told.file is not None else None
        if elf is not None:
            elf.path = told.path
        return ModuleFile(elf, told.why, told.refused)
    # Over a wire the file is proven without the table, which is then not read at all.
    table = None if kernel.chosen else memory_table(kernel, file)[0]
    for path in _candidates(kernel, file):
        try:
            elf = ElfFile(path)
        except WchanError as error:
            refused.append((path, str(error)))
            continue
        belongs, why = _belongs(kernel, file, table, elf)
        if belongs:
            return ModuleFile(elf, why, refused)
        refused.append((path, why))
        elf.close()
    return ModuleFile(None, "", refused)


def _candidates(kernel: Kernel, file: LinkerFile) -> Iterator[str]:
    """Paths where the file may lie, likeliest first; the names come out of a dump."""
    name = os.path.basename(file.filename)
    if not name or name in (".", ".."):
        return
    roots = kernel.facts.roots
    beside = [os.path.dirname(os.path.abspath(path)) for path in kernel.target.files]
    places = [os.path.join(place, name) for place in dict.fromkeys(beside)]
    installed = [file.pathname] if file.pathname.startswith("/") else []
    installed += [os.path.join(place, name) for place in _linker_path(kernel)]
    for root in (*roots, "/"):
        for path in installed:
            within = os.path.join(root, os.path.normpath(path).lstrip("/"))
            places += [within, os.path.join(root, _DEBUG_ROOT, path.lstrip("/") + ".debug")]
    places += [os.path.join(root, name) for root in roots]
    # The debug file of a module has its symbols and the types besides.
    every = [each for place in places for each in (place, place + ".debug")]
    seen = set()
    for path in every:
        if path not in seen and os.path.isfile(path):
            seen.add(path)
            yield path


def _linker_path(kernel: Kernel) -> List[str]:
    """The folders of linker_path[], which sysctl kern.module_path sets: "/boot/kernel;...".

    The kernel that runs here may be another, so that each file found has to prove itself.
    """
    found = next(iter(kernel.target.symbols("linker_path")), None)
    text = kernel.try_cstring(found.address, limit=1024) if found is not None else ""
    return [place for place in text.split(";") if place.startswith("/")][:16]


def _belongs(
    kernel: Kernel, file: LinkerFile, table: Optional[ModuleTable], elf: ElfFile
) -> Tuple[bool, str]:
    """Whether the file is the one that was loaded, and what says so."""
    if table is None and kernel.chosen and elf.arch == kernel.arch:
        return _sampled(kernel, file, elf)
    loaded = loaded_build_id(kernel, file)
    if loaded and elf.build_id:
        same = loaded == elf.build_id
        return same, f"build id {elf.build_id}" + ("" if same else f", loaded is {loaded}")
    if table is None:
        return False, "neither a build id nor symbols of what is loaded are there to compare"
    if elf.arch != kernel.arch:
        return False, f"it is a file for {elf.arch}"
    return _alike(table, elf)


def _sampled(kernel: Kernel, file: LinkerFile, elf: ElfFile) -> Tuple[bool, str]:
    """Holds some of the symbols in memory against the file's, where all are too many for a wire.

    Their number and the length of their names, then of symbols all over the table the name's
    place, the size and, section by section, one distance that all have been moved by.
    """
    linker = "progtab" if elf.etype == ET_REL else "dynamic"
    struct = kernel.layouts.having("elf_file", linker)
    if struct is None:
        return False, "no layout of its struct elf_file"
    own = elf.table
    size = own.form.symbol.size
    try:
        view = kernel.view(struct, file.address)
        if (view.ddbsymcnt, view.ddbstrcnt) != (own.count, len(own.strings)):
            return False, f"it has {own.count} symbols, {view.ddbsymcnt} are loaded"
        moved: Dict[int, int] = {}
        defined = [n for n in range(own.count) if 0 < own.fields(n)[4] < SHN_LORESERVE]
        for number in defined[:: max(1, len(defined) // _SAMPLES)]:
            raw = kernel.exactly(view.ddbsymtab + number * size, size)
            name, value, length, _, _ = SymbolTable(own.form, raw, b"").fields(0)
            own_name, own_value, own_length, _, home = own.fields(number)
            distance = moved.setdefault(home, value - own_value)
            if (name, length) != (own_name, own_length) or value - own_value != distance:
                return False, f"{own.name(own_name)} is another one in memory"
    except MemoryFault as fault:
        return False, f"{fault.address:#x} cannot be read ({fault.reason})"
    return bool(moved), f"{_SAMPLES} of {own.count} symbols alike"


def _alike(table: ModuleTable, elf: ElfFile) -> Tuple[bool, str]:
    """Holds the symbols in memory against the file's: names, sizes, and how far they lie apart."""
    if _same_table(table.table, elf.table):
        return True, f"{table.table.count} symbols alike"
    there: Dict[str, List[Symbol]] = {}
    for symbol in elf.all_symbols():
        there.setdefault(symbol.name, []).append(symbol)
    compared = 0
    far: Dict[int, Tuple[int, str]] = {}
    relocatable = elf.etype == ET_REL
    for symbol, home in table.every():
        if not symbol.size or symbol.kind not in ("object", "function"):
            continue
        same = there.get(symbol.name)
        if same is None:
            return False, f"{symbol.name} is in memory and not in the file"
        if all(other.size != symbol.size for other in same):
            sizes = f"{symbol.size} bytes in memory, {same[0].size} in the file"
            return False, f"{symbol.name} has {sizes}"
        compared += 1
        if len(same) > 1:
            continue
        # What was loaded together lies as far apart as in the file, section by section.
        moved = symbol.address - same[0].address
        known, first = far.setdefault(home if relocatable else 0, (moved, symbol.name))
        if known != moved:
            return False, f"{symbol.name} lies {moved - known:+#x} bytes from where {first} has it"
    if not compared:
        return False, "there are no symbols to compare"
    return True, f"{compared} symbols alike"


def _same_table(loaded: SymbolTable, own: SymbolTable) -> bool:
    """True where the file's own table was loaded, each section's symbols moved by one distance.

    Says of a table of ten thousand symbols in a moment what _alike says of each.
    """
    if (loaded.count, loaded.strings, loaded.names) != (own.count, own.strings, own.names):
        return False
    heads, values, sizes = loaded.columns()
    own_heads, own_values, own_sizes = own.columns()
    # The ends of linker sets are undefined in the file and filled in at load.
    if sizes != own_sizes or any(
        head != other for head, other in zip(heads, own_heads) if other >> 16
    ):
        return False
    # Files, constants and what other files define have not been moved.
    moves = {
        (head >> 16, value - other)
        for head, value, other in zip(own_heads, values, own_values)
        if 0 < head >> 16 < SHN_LORESERVE
    }
    return len({section for section, _ in moves}) == len(moves)


def loaded_build_id(kernel: Kernel, file: LinkerFile) -> Optional[str]:
    """The GNU build id that was loaded with a module, None where it cannot be read.

    Of a relocatable one it is a section of its own (progtab); a shared one lies in memory as
    its program headers say, and the first page begins with them.
    """
    try:
        parts = _note_sections if file.linker.endswith("_obj") else _note_segments
        for address, size in parts(kernel, file):
            if 0 < size <= _MOST_NOTES:
                for owner, type_, descriptor in notes(kernel.read(address, size)):
                    if owner == b"GNU" and type_ == NT_GNU_BUILD_ID and any(descriptor):
                        return descriptor.hex()
    except (MemoryFault, LayoutError):
        pass
    return None


def _note_sections(kernel: Kernel, file: LinkerFile) -> Iterator[Tuple[int, int]]:
    for address, size, name in _progtab(kernel, file, "addr", "size", "name"):
        if kernel.try_cstring(name, limit=32) == _NOTE_SECTION:
            yield address, size


def _note_segments(kernel: Kernel, file: LinkerFile) -> Iterator[Tuple[int, int]]:
    form = FORMS[kernel.pointer_size // 4]
    magic = kernel.read(file.base, 5)
    if magic != b"\x7fELF" + bytes((kernel.pointer_size // 4,)):
        return
    header = form.header.unpack(kernel.read(file.base, form.header.size))
    offset, entry, count = header[4], header[8], header[9]
    if entry != form.segment.size or count > _MOST_SEGMENTS or not 0 < offset < file.size:
        return
    for raw in form.segment.iter_unpack(kernel.read(file.base + offset, count * entry)):
        # p_type, p_vaddr, p_filesz
        kind, start, size = raw[0:6:2] if form.word == "I" else (raw[0], raw[3], raw[5])
        if kind == PT_NOTE and start + size <= file.size:
            yield file.base + start, size


@cached(MEMORY)
def module_tables(kernel: Kernel) -> List[ModuleTable]:
    """The symbol tables of the modules; one that cannot be used is a finding."""
    # The tables of a live kernel's modules stay the same as long as the files do.
    return [table for file in modules(kernel) for table in [module_table(kernel, file)] if table]


@cached(LAYOUT)
def module_table(kernel: Kernel, file: LinkerFile) -> Optional[ModuleTable]:
    """The symbols of one module: those in memory, else those of the file proven to be it.

    None where neither serves; that the table in memory does not is a finding.
    """
    found = module_file(kernel, file) if kernel.chosen else None
    table, why = None, "not read over the wire"
    if found is None or found.elf is None:
        table, why = memory_table(kernel, file)
    if table is not None:
        return table
    what = f"symbols of {file.filename}"
    found = found or module_file(kernel, file)
    if found.elf is not None and found.elf.etype == ET_REL:
        try:
            table = _placed(kernel, file, found.elf)
        except (LayoutError, MemoryFault) as error:
            why += f"; {found.elf.path}: {error}"
        else:
            why += f"; taken from {found.elf.path} ({found.why})"
    kernel.warnings.add(what, file.address, why, partial=table is None)
    return table


def _placed(kernel: Kernel, file: LinkerFile, elf: ElfFile) -> ModuleTable:
    """The file's symbols where link_elf_obj.c put their sections (struct Elf_progent)."""
    where = {}
    for number, address, size in _progtab(kernel, file, "sec", "addr", "size"):
        where[number] = (address, address + size)
    own = elf.table
    form = own.form
    section, value = (3, 4) if form.word == "Q" else (5, 1)
    symbols = bytearray(own.symbols)
    for at in range(0, len(symbols), form.symbol.size):
        fields = list(form.symbol.unpack_from(symbols, at))
        if not 0 < fields[section] < SHN_LORESERVE:
            continue
        # What was not loaded (debug information) has no address to be named by.
        start, _ = where.get(fields[section], (0, 0))
        fields[value] = (fields[value] + start) & ((1 << 8 * kernel.pointer_size) - 1)
        fields[section] = fields[section] if start else SHN_UNDEF
        form.symbol.pack_into(symbols, at, *fields)
    table = SymbolTable(form, bytes(symbols), own.strings)
    return ModuleTable(file, table, 0, (), [ends for ends in where.values() if ends[0]])


def _progtab(kernel: Kernel, file: LinkerFile, *members: str) -> List[Tuple[int, ...]]:
    """Members of each struct Elf_progent of a relocatable module; LayoutError, MemoryFault."""
    struct = kernel.layouts.having("elf_file", "progtab")
    if struct is None:
        raise LayoutError("no layout of link_elf_obj.c's struct elf_file for this kernel")
    fields = kernel.layouts.fields("Elf_progent", *members)
    stride = kernel.layouts.sizeof("Elf_progent")
    view = kernel.view(struct, file.address)
    raw = kernel.read(view.progtab, min(view.nprogtab, _MOST_SECTIONS) * stride)
    return [fields.unpack_from(raw, at) for at in range(0, len(raw), stride)]


@cached(LAYOUT)
def module_types(kernel: Kernel, file: LinkerFile) -> Optional[LayoutSource]:
    """The types in a module's file or its debug file, None where they have none.

    What is unreadable is a finding.  CTF first: it is made for this, and as good.
    """
    parents = [s for s in kernel.layouts.sources if isinstance(s, Ctf)]
    for elf in _proven(kernel, file):
        try:
            kept = kept_layouts(elf)
            if kept is not None:
                return kept
            if any(section.name == SECTION for section in elf.sections):
                return Ctf(elf, parents[0] if parents else None)
            if has_dwarf(elf):
                return Dwarf(elf)
        except LayoutError as error:
            kernel.warnings.add(f"types of {file.filename}", None, str(error), partial=False)
    return None


def _proven(kernel: Kernel, file: LinkerFile) -> Iterator[ElfFile]:
    """The files that are proven to be the module's: the first found, then its debug file."""
    first = module_file(kernel, file).elf
    if first is None:
        return
    yield first
    table, _ = memory_table(kernel, file)
    for path in _candidates(kernel, file):
        if path != first.path and path.endswith(".debug"):
            with suppress(WchanError):
                elf = ElfFile(path)
                if _belongs(kernel, file, table, elf)[0]:
                    yield elf


def untyped(kernel: Kernel) -> List[str]:
    """What a report has to say of modules whose structs it took from structs.yaml.

    One sentence where the kernel's own types are its debug information, a module's are not at
    hand, and a struct was asked for that this module declares; one for each file refused.
    """
    layouts = kernel.layouts
    if layouts.name.startswith("yaml"):
        return []
    taken = [name for name, source in layouts.elsewhere.items() if source.startswith("yaml")]
    files = {part for name in taken for part in layouts[name].file.split("/")[:-1]}
    if not files:
        return []
    try:
        found = [f for f in modules(kernel) if _declares(f, files) and not module_types(kernel, f)]
    except LayoutError:
        return []
    if not found:
        return []
    names = " and ".join(file.filename for file in found)
    sources = {layouts.elsewhere[name] for name in taken}
    source = ", ".join(sorted(sources)).replace("yaml:", "")
    missing = f"no {' or '.join(file.filename for file in found)} with types is at hand"
    said = [f"structs of {names} are as in structs.yaml ({source}): {missing}"]
    for file in found:
        said += [f"{path} is not used: {why}" for path, why in module_file(kernel, file).refused]
    return said


def _declares(file: LinkerFile, folders: Set[str]) -> bool:
    """True for zfs.ko and "openzfs" or "zfs", fusefs.ko and "fuse": where its sources lie."""
    stem = os.path.splitext(os.path.basename(file.filename))[0]
    return not folders.isdisjoint((stem, f"open{stem}", stem[: -len("fs")]))


class ModuleTypes:
    """A LayoutSource over the types of every module whose file is at hand.

    No file is looked for before a struct is asked for that the kernel's own types lack.
    """

    name = "modules"

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._asking = False

    def struct(self, name: str) -> Optional[Layout]:
        """The layout of ``struct name`` in the first module loaded that declares it."""
        if self._asking:
            # finding the modules needs layouts too
            return None
        self._asking = True
        try:
            for file in modules(self._kernel):
                types = module_types(self._kernel, file)
                found = types.struct(name) if types is not None else None
                if found is not None:
                    return found
        except LayoutError as error:
            self._kernel.warnings.add(f"struct {name}", None, str(error), partial=False)
        finally:
            self._asking = False
        return None


class ModuleSymbols:
    """The symbols of all modules, for a Kernel to ask: read when first asked for one."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._asking = False

    def symbols(self, name: str) -> List[Symbol]:
        """Every symbol of that name, of all modules in the order of loading."""
        return [symbol for table in self._tables() for symbol in table.symbols(name)]

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        """(name, offset) of the module's symbol that covers ``address``, or None.

        Only the module that holds the address is read.
        """
        for file in self._files():
            if file.holds(address):
                table = module_table(self._kernel, file)
                return table.symbolize(address) if table is not None else None
        return None

    def _files(self) -> List[LinkerFile]:
        # What reads linker_files may itself ask for symbols that the kernel lacks.
        if self._asking:
            return []
        self._asking = True
        try:
            return modules(self._kernel)
        except (LayoutError, SymbolMissing):
            return []
        finally:
            self._asking = False

    def _tables(self) -> List[ModuleTable]:
        files = self._files()
        return module_tables(self._kernel) if files else []
