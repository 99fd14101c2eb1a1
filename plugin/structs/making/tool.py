"""What `wchan structs` does: compare layouts, and make structs.yaml from a kernel."""

from __future__ import annotations

import os
import re
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.structs.choose import choose_yaml, kindred_arch
from plugin.structs.debuginfo import debug_of_kind, open_debug
from plugin.structs.kernels import RELEASE, KernelRow, split_name
from plugin.structs.layout import Layout, LayoutSource, Member
from plugin.structs.making.corpus import Corpus, Source
from plugin.structs.selfcheck import options_of
from plugin.structs.yamlfile import KernelData, StructsFile, read_kernel
from plugin.symbol import Symbol
from plugin.vmcore.elf import ElfFile

_QUALIFIER = re.compile(r"\b(const|volatile|restrict|_Atomic)\b ?")
#: a struct without a tag has its typedef's name alone, which some write as if it were its tag
_UNTAGGED = re.compile(r"^(?:struct|union) (?=\w+_t$)")


class Difference(NamedTuple):
    """Where two layouts differ; "" for what one of them does not have at all."""

    struct: str
    member: str
    left: str
    right: str


def compare(left: Layout, right: Layout) -> Iterator[Difference]:
    """Every difference in size, offset, width, bits or type; names of tables do not count."""
    if left.size != right.size:
        yield Difference(left.name, "", f"{left.size} bytes", f"{right.size} bytes")
    for name in list(dict.fromkeys([*left.members, *right.members])):
        mine, theirs = left.members.get(name), right.members.get(name)
        if mine is None or theirs is None or _place(mine) != _place(theirs):
            yield Difference(left.name, name, _shown(mine), _shown(theirs))


def _place(member: Member) -> Tuple[object, ...]:
    # CTF has no way to tell a bit-field that fills its type from an ordinary member
    width = 0 if member.bit_size == 8 * member.size else member.bit_size
    return (member.offset, member.size, member.bit_pos, width, _plain(member.ctype))


def _plain(ctype: str) -> str:
    """A type without what compilers and formats record differently."""
    bare = _QUALIFIER.sub("", ctype).replace("[0]", "[]").replace(" (*)", "(*)").strip()
    return _UNTAGGED.sub("", bare)


def _shown(member: Optional[Member]) -> str:
    if member is None:
        return ""
    at = str(member.offset)
    if member.bit_size:
        at += f".{member.bit_pos}+{member.bit_size}"
    return f"{at}:{member.size} {member.type}"


def compare_sources(
    left: LayoutSource, right: LayoutSource, names: Iterable[str]
) -> Tuple[int, List[Difference]]:
    """(structs that both know, every difference) among ``names``."""
    both = 0
    found: List[Difference] = []
    for name in names:
        mine, theirs = left.struct(name), right.struct(name)
        if mine is not None and theirs is not None:
            both += 1
            found += compare(mine, theirs)
    return both, found


class KernelFile:
    """A kernel's ELF file asked as the self-checks ask a kernel."""

    def __init__(self, path: str) -> None:
        self.elf = ElfFile(path)
        self.path = path
        self.arch = self.elf.arch

    def read(self, address: int, size: int) -> bytes:
        data = self.elf.read(address, size)
        if data is None:
            raise MemoryFault(address, "no bytes in the kernel file")
        return data

    def symbols(self, name: str) -> Sequence[Symbol]:
        return self.elf.symbols(name)

    def text(self, name: str) -> str:
        """A string variable's initial value, "" where the file has none."""
        for symbol in self.symbols(name)[:1]:
            data = self.elf.read(symbol.address, symbol.size or 1)
            if data:
                return data.split(b"\0")[0].decode("ascii", "replace")
        return ""

    @property
    def osreldate(self) -> int:
        """``int osreldate`` as conf/newvers.sh writes it, 0 where the file has no data."""
        for symbol in self.symbols("osreldate")[:1]:
            data = self.elf.read(symbol.address, 4)
            if data:
                return int.from_bytes(data, "little")
        return 0

    def source(self, kind: Optional[str] = None) -> LayoutSource:
        """Its debug information, or that of the kind named; LayoutError where there is none."""
        if kind is not None:
            return debug_of_kind(self.elf, kind)
        notes: List[str] = []
        found = open_debug(self.elf, notes)
        if found is None:
            raise LayoutError(
                "; ".join(notes)
                or f"{self.path} has neither DWARF nor CTF, and there is no debug file beside it; "
                "install the kernel-dbg set, or take kernel.debug from the build"
            )
        return found.source


def near_yaml(
    kernel: KernelFile, osreldate: int, name: Optional[str], path: Optional[str]
) -> KernelData:
    """The kernel of structs.yaml to hold a kernel file against."""
    if name is not None:
        return choose_yaml(osreldate, kernel.arch, path=path, kernel_name=name).source
    if not osreldate:
        raise LayoutError(
            f"{kernel.path} does not say its version; name a kernel of structs.yaml with --kernel"
        )
    return choose_yaml(osreldate, kernel.arch, options_of(kernel), path, force=True).source


class Generated(NamedTuple):
    """The text of a structs.yaml, and which known structs the kernel does not describe."""

    text: str
    #: what was added to it
    made: Source
    row: KernelRow
    structs: int
    missing: List[str]
    source: str


def generate(
    path: str,
    *,
    name: Optional[str] = None,
    osreldate: int = 0,
    kind: Optional[str] = None,
    only: Sequence[str] = (),
    into: Optional[str] = None,
) -> Generated:
    """A structs.yaml for one kernel, out of its debug information.

    ``name`` is VERSION-ARCH[-debug]; left out, made from the kernel's own version
    string.  ``only`` names the structs, else all that the shipped file knows of the
    nearest kernel.  ``into`` is a structs.yaml to add the kernel to.  Macros are in no
    debug information: constants and tables are those of the nearest kernel.
    """
    kernel = KernelFile(path)
    osreldate = osreldate or kernel.osreldate
    if not osreldate:
        raise LayoutError(f"{path} does not say its version; give it with --osreldate")
    source = kernel.source(kind)
    options = options_of(kernel)
    near = choose_yaml(osreldate, kindred_arch(kernel.arch), options, force=True)
    row = _row(kernel, name, osreldate, options, source.name)
    structs: Dict[str, Layout] = {}
    missing = []
    for struct in only or near.source.names():
        layout = source.struct(struct)
        if layout is None:
            missing.append(struct)
            continue
        known = near.source.structs.get(struct)
        file = known.file if known is not None else ""
        structs[struct] = Layout(struct, layout.size, layout.members, layout.kind, file)
    constants = {**near.source.constants, "__FreeBSD_version": osreldate}
    own = {
        variable: type_
        for variable, type_ in near.source.globals.items()
        if type_.split("[")[0].split()[1] in structs
    }
    made = Source(row, structs, constants, own)
    corpus = Corpus([made], {})
    if into is not None:
        corpus = Corpus.load(StructsFile(into)).replaced([made])
    return Generated(corpus.write(), made, row, len(structs), missing, source.name)


def _row(
    kernel: KernelFile, name: Optional[str], osreldate: int, options: Iterable[str], kind: str
) -> KernelRow:
    found = frozenset(options) - {"UP"} | (frozenset() if "UP" in options else {"SMP"})
    variant = "debug" if found & {"INVARIANTS", "WITNESS"} else RELEASE
    if "UP" in options:
        variant = "up"
    if name is None:
        release = kernel.text("osrelease") or str(osreldate)
        release = re.sub(r"[^\w.]+", "-", release).strip("-")
        name = f"{release}-{kernel.arch}" + ("" if variant == RELEASE else f"-{variant}")
    version, arch, variant = split_name(name)
    if arch != kernel.arch:
        raise LayoutError(f"{kernel.path} is a kernel for {kernel.arch}, {name!r} says {arch}")
    file = re.sub(r"[;\n]", " ", os.path.basename(kernel.path))
    note = f"generated from the {kind.upper()} of {file}"
    return KernelRow(name, version, arch, variant, found, osreldate, osreldate, "", note)


def named_source(name: str, path: Optional[str]) -> LayoutSource:
    """What a word on the command line means: a kernel file, or a kernel of structs.yaml."""
    if os.path.isfile(name):
        return KernelFile(name).source()
    file = StructsFile(path)
    return read_kernel(file, f"yaml:{name}", file.row(name), {})


def known_names(*sources: LayoutSource) -> List[str]:
    """Every struct that some of the sources can list."""
    names: set[str] = set()
    for source in sources:
        lister = getattr(source, "names", None)
        if lister is not None:
            names.update(lister())
    return sorted(names) or StructsFile().struct_names()
