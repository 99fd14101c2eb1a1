"""The kernel's modules and their symbols: struct linker_file, and what its linker class keeps.

A module's symbol table stays in the kernel's memory, statics included (DDB names
functions by it), so that modules can be named with no ``.ko`` at hand.

Mirrors sys/sys/linker.h, sys/kern/kern_linker.c, link_elf.c (shared objects: the
modules of every machine but amd64) and link_elf_obj.c (relocatable objects: those of
amd64), 6.x to 15.x.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Callable, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from plugin.caching import LAYOUT, MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel
from plugin.symbol import Symbol
from plugin.vmcore.elf import FORMS, SymbolTable

#: more than any kernel has loaded, any module defines, any module's names take
_MOST_FILES = 4096
#: how many times over a symbol table has to be affordable, on a wire
_DEAR = 32
_MOST_SYMBOLS = 1 << 20
_MOST_STRINGS = 64 << 20
_MOST_SECTIONS = 4096

#: names of the linker classes (DEFINE_CLASS in link_elf.c and link_elf_obj.c)
SHARED = ("elf64", "elf32")
OBJECT = ("elf64_obj", "elf32_obj")


class LinkerFile(NamedTuple):
    """One file linked into the kernel; the first is the kernel itself.

    ``address`` is the struct linker_file's; ``base`` and ``size`` in bytes are where the
    file lies.  ``refs`` counts its users, ``linker`` is the name of its linker class
    ("elf64_obj"), "" where that cannot be read; ``pathname`` is "" to 7.x.
    """

    address: int
    filename: str
    base: int
    size: int
    refs: int
    id: int
    pathname: str
    linker: str

    def holds(self, address: int) -> bool:
        return self.base <= address < self.base + self.size


class ModuleTable:
    """The symbol table of one module as the kernel keeps it in memory.

    Values are absolute once ``bias`` is added; ``moved`` are the stretches (start, stop,
    base) of per-CPU and VNET variables that the linker has put elsewhere.  ``sections``
    are (start, end) where each section was loaded, [] where that is not known.
    """

    def __init__(
        self,
        file: LinkerFile,
        table: SymbolTable,
        bias: int,
        moved: Sequence[Tuple[int, int, int]],
        sections: Sequence[Tuple[int, int]],
    ) -> None:
        self.file = file
        self.table = table
        self._bias = bias
        self._moved = [(start, stop, base) for start, stop, base in moved if start < stop]
        self._sections = sorted(sections)
        self._starts = [start for start, _ in self._sections]
        self._asked = 0
        self._names: Optional[FrozenSet[bytes]] = None

    def symbols(self, name: str) -> List[Symbol]:
        """Every defined symbol of that name, where it lies now."""
        table = self.table
        self._asked += 1
        if self._names is None and self._asked > _SEARCHES:
            self._names = table.every_name()
        if self._names is not None and name.encode("utf-8", "replace") not in self._names:
            return []
        found = (table.symbol(index) for index in sorted(set(table.indexes(name))))
        return [
            symbol if symbol.kind == "absolute" else symbol._replace(address=self.home(symbol))
            for symbol in found
            if symbol is not None
        ]

    def every(self) -> Iterator[Tuple[Symbol, int]]:
        """Every defined symbol as the table has it, with the index of its section."""
        for index in range(self.table.count):
            symbol = self.table.symbol(index)
            if symbol is not None:
                yield symbol, self.table.fields(index)[4]

    def home(self, symbol: Symbol) -> int:
        """Where a symbol of the table, as it stands there, lies in memory."""
        address = symbol.address + self._bias
        for start, stop, base in self._moved:
            if start <= address < stop:
                return address - start + base
        return address

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        """(name, offset) of the symbol that covers ``address``, None outside the module."""
        if not self.file.holds(address):
            return None
        return self.table.cover(address - self._bias, self._end)

    def _end(self, value: int, home: int) -> int:
        address = value + self._bias
        place = bisect_right(self._starts, address) - 1
        end = self._sections[place][1] if place >= 0 else self.file.base + self.file.size
        return (end if address < end else address) - self._bias


#: names searched for one by one before it pays to make a set of all that a module has
_SEARCHES = 4


@cached(MEMORY)
def linker_files(kernel: Kernel) -> List[LinkerFile]:
    """The kernel and its modules, in the order in which they were loaded; [] if unknown."""
    head = next(iter(kernel.target.symbols("linker_files")), None)
    if head is None or kernel.layouts.get("linker_file") is None:
        return []
    wanted = ["filename", "address", "size", "refs", "id", "ops"]
    if kernel.layouts.has("linker_file", "pathname"):
        wanted.append("pathname")
    found = []
    for at, (filename, base, size, refs, number, ops, *path) in tailq_foreach(
        kernel,
        head.address,
        "linker_file",
        "link",
        wanted,
        what="linker_files",
        bound=_MOST_FILES,
    ):
        found.append(
            LinkerFile(
                at,
                kernel.name_at(f"linker_file {at:#x}", filename),
                base,
                size,
                refs,
                number,
                kernel.name_at(f"linker_file {at:#x}", path[0], 1024) if path else "",
                _linker(kernel, ops),
            )
        )
        if len(found) >= _MOST_FILES:
            break
    return found


def _linker(kernel: Kernel, ops: int) -> str:
    """The name of the class that linked a file: kobj_ops.cls, kobj_class.name."""
    layouts = kernel.layouts
    if not ops or "kobj_ops" not in layouts or "kobj_class" not in layouts:
        return ""
    try:
        cls = kernel.pointer(ops + layouts.offsetof("kobj_ops", "cls"))
        name = kernel.pointer(cls + layouts.offsetof("kobj_class", "name"))
    except MemoryFault as fault:
        kernel.warnings.add("linker class", fault.address, fault.reason)
        return ""
    except LayoutError:
        return ""
    return kernel.name_at("linker class", name, 32)


def modules(kernel: Kernel) -> List[LinkerFile]:
    """What is loaded beside the kernel, which comes first in linker_files."""
    return [file for file in linker_files(kernel)[1:] if file.size]


@cached(LAYOUT)
def memory_table(kernel: Kernel, file: LinkerFile) -> Tuple[Optional[ModuleTable], str]:
    """The symbol table of one module in memory; None, and why, where it is unusable."""
    reasons = []
    for kind in _kinds(file):
        try:
            return _READERS[kind](kernel, file), ""
        except LayoutError as error:
            reasons.append(str(error))
        except MemoryFault as fault:
            reasons.append(f"{fault.address:#x} cannot be read ({fault.reason})")
    return None, "; ".join(reasons)


def _kinds(file: LinkerFile) -> Tuple[str, ...]:
    """Which of the two linkers made it: its class says so, else both are tried."""
    if file.linker in OBJECT:
        return ("object",)
    if file.linker in SHARED:
        return ("shared",)
    return ("object", "shared")


def _object(kernel: Kernel, file: LinkerFile) -> ModuleTable:
    """link_elf_obj.c: symbol values were made absolute when it was loaded."""
    struct = kernel.layouts.having("elf_file", "progtab")
    if struct is None:
        raise LayoutError("no layout of link_elf_obj.c's struct elf_file for this kernel")
    view = kernel.view(struct, file.address)
    table = _table(kernel, view.ddbsymtab, view.ddbsymcnt, view.ddbstrtab, view.ddbstrcnt)
    return ModuleTable(file, table, 0, (), _sections(kernel, view.progtab, view.nprogtab))


def _sections(kernel: Kernel, progtab: int, count: int) -> List[Tuple[int, int]]:
    """Where the sections of a relocatable module were loaded; [] where that is not known."""
    if "Elf_progent" not in kernel.layouts or not 0 < count <= _MOST_SECTIONS:
        return []
    fields = kernel.layouts.fields("Elf_progent", "addr", "size")
    stride = kernel.layouts.sizeof("Elf_progent")
    try:
        raw = kernel.read(progtab, count * stride)
    except MemoryFault:
        return []
    found = (fields.unpack_from(raw, at) for at in range(0, count * stride, stride))
    return [(start, start + size) for start, size in found if start and size]


def _shared(kernel: Kernel, file: LinkerFile) -> ModuleTable:
    """link_elf.c: values count from where the module lies; .symtab, else the dynamic one."""
    struct = kernel.layouts.having("elf_file", "dynamic")
    if struct is None:
        raise LayoutError("no layout of link_elf.c's struct elf_file for this kernel")
    view = kernel.view(struct, file.address)
    where = (view.ddbsymtab, view.ddbsymcnt, view.ddbstrtab, view.ddbstrcnt)
    if not where[0]:
        where = (view.symtab, view.nchains, view.strtab, view.strsz)
    moved = [
        (view[f"{set_}_start"], view[f"{set_}_stop"], view[f"{set_}_base"])
        for set_ in ("pcpu", "vnet")
        if view.has(f"{set_}_start") and view.has(f"{set_}_base")
    ]
    return ModuleTable(file, _table(kernel, *where), file.base, moved, ())


_READERS: Dict[str, Callable[[Kernel, LinkerFile], ModuleTable]] = {
    "object": _object,
    "shared": _shared,
}


def _table(kernel: Kernel, symtab: int, count: int, strtab: int, length: int) -> SymbolTable:
    """Both tables, one read each; LayoutError where they are none, MemoryFault."""
    form = FORMS[kernel.pointer_size // 4]
    if not (kernel.is_kernel_address(symtab) and kernel.is_kernel_address(strtab)):
        raise LayoutError(f"no symbol table at {symtab:#x}")
    if not 0 < count <= _MOST_SYMBOLS or not 0 < length <= _MOST_STRINGS:
        raise LayoutError(f"a symbol table of {count} symbols and {length} bytes of names")
    whole = count * form.symbol.size + length
    # Not the first thing to spend on, though it comes to be asked for first.
    if not kernel.affords("", _DEAR * whole):
        raise LayoutError(f"{whole >> 10} KB, too much for the wire: --deep reads them")
    symbols = kernel.read(symtab, count * form.symbol.size)
    strings = kernel.read(strtab, length)
    # Both begin with an entry of nothing, and no name reaches past the end.
    if any(symbols[: form.symbol.size]) or strings[0] or strings[-1]:
        raise LayoutError(f"what lies at {symtab:#x} is no symbol table")
    return SymbolTable(form, symbols, strings)


def linker_file_of(kernel: Kernel, address: int) -> Optional[LinkerFile]:
    """The module that ``address`` lies in, None for the kernel itself and anything else."""
    try:
        return next((file for file in modules(kernel) if file.holds(address)), None)
    except LayoutError:
        return None


def name_of(kernel: Kernel, address: int) -> str:
    """ "g_vfs_done", or "zfs.ko+0x1234" for what no symbol of the module names, or ""."""
    name = kernel.symbolize(address)
    if name:
        return name
    module = linker_file_of(kernel, address)
    return f"{module.filename}+{address - module.base:#x}" if module else ""
