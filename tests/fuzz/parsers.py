"""Every parser of bytes and text that a stranger can hand to wchan, and what it must keep to.

A parser's function takes any bytes at all.  It returns, whether or not they made sense:
what may be raised on the way (plugin.errors) is met in here, so that whatever escapes is a
defect.  ``seeds`` yields whole inputs to begin with, made by the forge and by hand.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

import commands
from plugin.batch import store
from plugin.captures.machine import TextKernel
from plugin.captures.reader import read
from plugin.errors import DumpError, LayoutError, MemoryFault, WchanError
from plugin.hosts import rsp
from plugin.hosts.runner import run_command
from plugin.kernel.module_file import module_tables
from plugin.opening import open_core
from plugin.render import batch as shown
from plugin.session import Kernel
from plugin.structs.ctf import Ctf
from plugin.structs.dwarf import Dwarf
from plugin.structs.yamlfile import StructsFile, read_kernel
from plugin.vmcore import open_memory
from plugin.vmcore.elf import ElfFile
from plugin.waits import known
from tests import build_vmcore as build
from tests.contract import load, problems
from tests.damage import damaged
from tests.forge.machine import Machine
from tests.structs_typegraph import Graph, GraphField, GraphType, ctf, dwarf, elf

_HERE = Path(__file__).parent


class Parser(NamedTuple):
    """``run`` is fed bytes; ``seeds`` are whole inputs; ``reads`` says what is parsed."""

    reads: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


@lru_cache(maxsize=1)
def folder() -> Path:
    """Where this process writes the files that its parsers are given; gone with it."""
    made = tempfile.TemporaryDirectory(prefix="wchan-fuzz-")
    _kept.append(made)
    os.environ["XDG_CACHE_HOME"] = made.name
    return Path(made.name)


_kept: List[object] = []


def _file(data: bytes, name: str = "input") -> str:
    path = folder() / name
    path.write_bytes(data)
    return str(path)


# Dumps


def dump(data: bytes) -> None:
    """A minidump, a full dump, a dump device or none: opened, and read here and there."""
    path = _file(data, "vmcore.0")
    # A minidump is of any architecture; the page tables of a full dump are the kernel's.
    kernel = None if data.startswith(b"minidump") else ElfFile(_file(_kernel_file(), "kernel"))
    try:
        core = open_memory(path, kernel, spool_dir=str(folder()))
    except WchanError as error:
        _one_line(error)
        return
    finally:
        if kernel is not None:
            kernel.close()
    with core:
        for at in (*_ADDRESSES, *_words(data, 4)):
            for size in (8, 40_000):
                try:
                    assert len(core.read(at, size)) == size
                except MemoryFault as fault:
                    assert at <= fault.address < at + size
        for start, piece in core.chunks(_ADDRESSES[0], 1 << 22):
            assert piece == core.read(start, len(piece))


_LAYOUTS = build.LAYOUTS
_ADDRESSES = (
    *sorted({each.kernbase for each in _LAYOUTS.values()}),
    *sorted({each.dmapbase for each in _LAYOUTS.values()}),
    0,
    4092,
    (1 << 64) - 4,
)


_KERNBASE, _LOAD = 0xFFFFFFFF80000000, 0x200000


@lru_cache(maxsize=1)
def _kernel_file() -> bytes:
    """A kernel whose page tables are where the full dump below has them."""
    names = ("KPML4phys", "kernphys", "allproc")
    symbols = [build.Sym("kernbase", _KERNBASE, 0, build.NOTYPE, False, build.ABS)]
    symbols += [build.Sym(n, _KERNBASE + _LOAD + 4096 + 8 * i, 8) for i, n in enumerate(names)]
    return build.elf("amd64", symbols)


@lru_cache(maxsize=1)
def _full_dump() -> bytes:
    """Two pages of a kernel and the three of its page tables."""
    memory = build.Memory()
    root = memory.new()
    memory.map(root, _KERNBASE + _LOAD, _LOAD, build.LA48, large=21)
    memory.put(_LOAD + 4096, struct.pack("<3Q", root, _LOAD, 0x1234))
    memory.put(_LOAD, build.page_of(1))
    return build.full_dump("amd64", memory.bytes())


def _dumps() -> Iterator[bytes]:
    for layout in _LAYOUTS.values():
        base = layout.dmapphys
        pages = {base + n * layout.page: build.page_of(n, layout.page) for n in range(2)}
        mapping = {layout.kernbase + n * layout.page: base + n * layout.page for n in range(2)}
        ranges = [(base, base + 5 * layout.page)]
        yield build.minidump(layout, pages, mapping, ranges=ranges)
    yield _full_dump()
    small = build.full_dump("amd64", {0x1000: build.page_of(1)})
    for version in (1, 4):
        yield build.dump_device(small, front=512, version=version)
    yield build.dump_device(small, front=512, sector=4096, magic=b"FreeBSD Text Dump")


def header(data: bytes) -> None:
    """The last sector of a dump device: its parity mended, so that the fields are reached."""
    sector = bytearray(data[:512].ljust(512, b"\0"))
    parity = 0
    for at in range(0, 508, 4):
        parity ^= int.from_bytes(sector[at : at + 4], "big")
    sector[508:] = parity.to_bytes(4, "big")
    dump(data[512:] + bytes(sector))


def _headers() -> Iterator[bytes]:
    small = build.full_dump("amd64", {0x1000: build.page_of(1)})
    for version in (1, 4):
        yield build.dump_header(len(small), version=version) + small


# Kernel files


def elf_file(data: bytes) -> None:
    """An ELF file: headers, sections, symbols, notes."""
    try:
        with ElfFile(_file(data, "kernel"), spool_dir=str(folder())) as file:
            _ask_elf(file, data)
    except DumpError as error:
        _one_line(error)


def _ask_elf(file: ElfFile, data: bytes) -> None:
    for section in file.sections[:64]:
        file.section(section.name)
    file.build_id, file.debuglink, file.truncated  # noqa: B018
    table = file.table
    for number, symbol in enumerate(file.all_symbols()):
        if number >= 64:
            break
        file.symbol(symbol.name)
        file.symbolize(symbol.address)
    table.every_name()
    for address in _words(data, 8):
        file.symbolize(address)
        file.read(address, 16)


def _elves() -> Iterator[bytes]:
    for machine in ("amd64", "i386", "arm64", "riscv64"):
        base = 0xC0000000 if machine == "i386" else 0xFFFFFFFF80000000
        symbols = [build.Sym("panic", base + 4096, 64), build.Sym("allproc", base + 8192, 8)]
        yield build.elf(machine, symbols)
        yield build.elf(machine, symbols, dynamic=True)
    yield build.elf(segments=[(1, 0xFFFFFFFF80000000, 0x1000, bytes(64))])
    yield elf({".debug_str": b"abc\0" * 8}, compressed=True)


@lru_cache(maxsize=4)
def _graph(pointer_size: int) -> Graph:
    """A struct of every kind of member, and what they need."""
    graph = Graph(pointer_size, {"u_int": "unsigned int"})
    number = graph.add(GraphType("base", "unsigned int", 4), "unsigned int")
    char = graph.add(GraphType("base", "char", 1), "char")
    typedef = graph.add(GraphType("typedef", "u_int", 4, number))
    inner = graph.add(GraphType("union", "", 4))
    graph.types[inner].fields = [GraphField("a", number, 0, 0), GraphField("b", typedef, 0, 0)]
    array = graph.add(GraphType("array", "", 8, char, 8))
    outer = graph.add(GraphType("struct", "proc", 32 + 2 * pointer_size))
    pointer = graph.add(GraphType("pointer", "", pointer_size, outer))
    constant = graph.add(GraphType("const", "", 4, number))
    call = graph.add(GraphType("function", "", 0, number, params=[pointer, number]))
    to_call = graph.add(GraphType("pointer", "", pointer_size, call))
    word = 8 * pointer_size
    graph.types[outer].fields = [
        GraphField("p_list", pointer, 0, 0),
        GraphField("p_call", to_call, word, 0),
        GraphField("p_union", inner, 2 * word, 0),
        GraphField("p_flag", constant, 2 * word + 32, 0),
        GraphField("p_comm", array, 2 * word + 64, 0),
        GraphField("p_bits", number, 2 * word + 128, 3),
        GraphField("p_more", number, 2 * word + 131, 5),
    ]
    return graph


def ctf_section(data: bytes) -> None:
    """A .SUNW_ctf section, of 32 or 64 bits by the first byte."""
    try:
        source = Ctf.from_bytes(data[1:], 4 if data[:1] == b"\4" else 8)
        for name in source.names()[:16]:
            source.variants(name)
    except LayoutError as error:
        _one_line(error)
        return
    for name in ["proc", *source.names()[:16]]:
        try:
            source.struct(name)
        except LayoutError as error:
            _one_line(error)


def _ctfs() -> Iterator[bytes]:
    for size in (4, 8):
        for version in (2, 3):
            for compressed in (False, True):
                yield bytes((size,)) + ctf(_graph(size), version, compressed)


def dwarf_file(data: bytes) -> None:
    """An ELF file with DWARF: a struct looked up in it."""
    try:
        with ElfFile(_file(data, "kernel.debug")) as file:
            source = Dwarf(file)
            for name in ("proc", "thread"):
                source.struct(name)
    except (DumpError, LayoutError) as error:
        _one_line(error)


def _dwarfs() -> Iterator[bytes]:
    for size, version, strings in (
        (8, 4, "strp"),
        (8, 5, "strx"),
        (8, 5, "strp"),
        (4, 2, "inline"),
    ):
        yield elf(dwarf(_graph(size), version, strings, old_bits=version < 4), bits=8 * size)


# YAML


def structs(data: bytes) -> None:
    """A --structs file: all it says of every kernel it knows."""
    path = _file(data, "own.yaml")
    try:
        file = StructsFile(path)
        file.struct_names()
        rows = file.rows if file.own_kernels else file.rows[:2]
        for row in rows[:4]:
            whole = read_kernel(file, row.name, row, {})
            for name in whole.names():
                whole.struct(name)
    except LayoutError as error:
        _one_line(error)


def _structs() -> Iterator[bytes]:
    yield (
        b"kernels: all\nversions: |\n  14.2: 1402000-1402503; releng/14.2\n"
        b"kernels: |\n  14.2-amd64: INVARIANTS\noptions: |\n  INVARIANTS: thread\n---\n"
        b"typedefs: all\nvalues: |\n  u_int: unsigned int\n---\n"
        b"table: bio_cmd\nkind: enum\nof: bio.bio_cmd\nvalues: |\n  BIO_READ: 0x01\n"
        b"  BIO_WRITE: 2 for 14.2..; 3\n---\n"
        b"struct: bio\nsize: 16\nmembers: |\n  0 2 bio_cmd: u_int = bio_cmd\n---\n"
        b"heads: all\nvalues: |\n  allproc: proc.p_list\n"
    )
    yield (
        b"struct: my_softc\nfor: amd64 14.2..\nsize: 24\nmembers: |\n"
        b"  0     8    sc_dev: struct device *\n"
        b"  8     16   sc_queue: struct (anonymous) -> my_request.rq_link\n"
        b"  8     8    sc_queue.tqh_first: struct my_request *\n"
        b"  16.3+2 4   sc_bits: unsigned int = my_bits\n"
    )


def known_bugs(data: bytes) -> None:
    """A --known FILE."""
    try:
        known.read(_file(data, "own-bugs.yaml"))
    except WchanError as error:
        _one_line(error)


def _known() -> Iterator[bytes]:
    yield (
        b"- id: example\n  title: two locks\n  source: https://example.org/1\n  grade: B\n"
        b"  releases: [1400000, 1500000]\n  fixed: never\n  panic: ['^deadlkres']\n  threads:\n"
        b"  - frames: [sched_switch, mi_switch, _sx_xlock_hard]\n  - functions: [vnlru_proc]\n"
        b"  modules: [zfs]\n  derived: true\n  waits: sx\n"
    )
    text = Path(known.SHIPPED).read_text(encoding="utf-8")
    yield "\n".join(text.splitlines()[:40]).encode()


# The remote protocol


class Inferior:
    """Two threads and a page of memory."""

    arch = "amd64"
    page_size = 4096
    stopped_tid = 100002
    stop_reason = "panic: it's }#$*"
    still = "This is a dump: it cannot run."

    def threads(self) -> Sequence[rsp.Thread]:
        return [rsp.Thread(100001, "(pid 1) init"), rsp.Thread(100002, "<&> }#$* \x01 ü")]

    def registers(self, tid: int) -> Mapping[str, int]:
        return {"rip": 0xFFFFFFFF80200000 + tid, "rsp": 1 << 63}

    def read(self, address: int, size: int) -> bytes:
        if not 4096 <= address <= address + size <= 8192:
            raise MemoryFault(address)
        return bytes(size)

    def present(self, address: int) -> bool:
        return 4096 <= address < 8192

    def code(self, address: int) -> bool:
        return False

    def session(self) -> Mapping[str, object]:
        return {"vmcore": "/a/vmcore", "modules": [("/a/zfs.ko", 4096)]}


def remote(data: bytes) -> None:
    """What a client sends: cut into packets, each answered, none with a defect of ours.

    Each line is a packet without its frame; what does not fit is sent as it is.
    """
    defects: List[str] = []
    framer = rsp.Framer()
    connection = rsp.Connection(Inferior(), defects.append)
    packets = [payload for _, payload, _ in framer.feed(data)]
    for payload in (*packets, *data.split(b"\n")):
        answer = connection.handle(payload)
        if answer is not None:
            framed = rsp.frame(answer)
            got = [payload for kind, payload, good in rsp.Framer().feed(framed) if good]
            assert got == [answer], "a reply that its own frame ends early"
    assert not [each for each in defects if "internal error" in each], defects[0]


def _packets() -> Iterator[bytes]:
    every = [
        b"qSupported:multiprocess+;swbreak+", b"QStartNoAckMode", b"QThreadSuffixSupported",
        b"QListThreadsInStopReply", b"qXfer:features:read:target.xml:0,fff",
        b"qXfer:threads:read::0,40", b"qXfer:libraries:read::0,1000", b"qWchan.Session",
        b"qShlibInfoAddr", b"qOffsets", b"qHostInfo", b"qProcessInfo", b"qMemoryRegionInfo:1000",
        b"qThreadExtraInfo,186a1", b"qThreadStopInfo186a2", b"qfThreadInfo", b"qsThreadInfo",
        b"qAttached", b"qSymbol::", b"qC", b"jThreadsInfo", b"vKill;1", b"vCont;c", b"?",
        b"Hg186a1", b"Hc-1", b"T186a1", b"g", b"g;thread:186a1;", b"p10", b"p10;thread:186a2;",
        b"m1000,20", b"x1000,0", b"x1000,20", b"k", b"D", b"c", b"M1000,1:00", b"Z0,1000,1",
    ]  # fmt: skip
    yield b"\n".join(every)
    yield b"+" + b"+".join(map(rsp.frame, every)) + b"\3-"


# Text


def capture(data: bytes) -> None:
    """A console log, a textdump, a listing, packed or not: every state in it, reported."""
    path = _file(data, "log.txt")
    try:
        states = read([path])
    except WchanError as error:
        _one_line(error)
        return
    for state in states[-2:]:
        kernel = TextKernel(state, [path])
        for command in _OF_TEXT:
            _reported(kernel, command)


_OF_TEXT = tuple(name for name in commands.NAMES if commands.load(name).NEEDS.text)


def _reported(kernel: Kernel, command: str) -> None:
    out: List[str] = []
    err: List[str] = []
    status = run_command(command, ["--json"], lambda: kernel, out.append, err.append)
    # Anything else is a defect, which the runner tells by its own line.
    assert status in (0, 1, 3) and "internal error" not in "".join(err), err
    if status != 1:
        breaches = list(problems(load("".join(out)), command))
        assert not breaches, breaches[0]


def _captures() -> Iterator[bytes]:
    from tests.test_captures import DDB, PROCSTAT, PS

    for text in (DDB, PROCSTAT, PS):
        yield text.encode()
    yield gzip.compress(PROCSTAT.encode(), mtime=0)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, inside in (
            ("ddb.txt", _DDB),
            ("panic.txt", b"it broke"),
            ("version.txt", b"FreeBSD 14.2-RELEASE"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(inside)
            tar.addfile(member, io.BytesIO(inside))
    yield archive.getvalue()


_DDB = b"""db> ps
  pid  ppid  pgrp   uid  state   wmesg   wchan               cmd
   20     1     1     0  D+      ufs     0xfffff80002cf1af0  reader
db> bt
Tracing pid 20 tid 100101 td 0xfffff80002dc3000
sched_switch() at sched_switch+0x88b/frame 0xfffffe0055200000
"""


# A batch's summary


def summary(data: bytes) -> None:
    """summary.ndjson of an earlier run, grouped and shown."""
    rows = store.read(_file(data, "summary.ndjson"))
    found = store.groups(rows)
    failed = [row for row in rows if not row.get("signature")]
    shown.lines(found, failed, [])
    shown.page(found, failed, {}, str(folder()), [])


def _summaries() -> Iterator[bytes]:
    yield (
        b'{"path":"/a/vmcore.0","report":"/a/r","size":1,"mtime":2,"seconds":0.1,"status":"ok",'
        b'"release":"14.2-RELEASE","arch":"amd64","ident":"GENERIC","panic":null,'
        b'"verdict":"No deadlock.","cause":"device","causes":[["device","vtbd1 owes",3]],'
        b'"threads":9,"stuck":3,"known":[],"signature":"abc"}\n'
        b'{"path":"/a/vmcore.1","status":"failed","error":"no dump","signature":null}\n'
    )


# Symbol tables of modules, in the memory of a kernel


class _Loaded(NamedTuple):
    """A kernel with one module, and where in its memory that is told of: (address, size)."""

    kernel: Kernel
    places: List[Tuple[int, int]]


@lru_cache(maxsize=2)
def _loaded(relocatable: bool) -> _Loaded:
    machine = Machine(1402000)
    module = machine.modules.load("example.ko", "example_", relocatable=relocatable)
    for name in ("example_head", "example_lock"):
        machine.symbol(name, size=8)
    where = folder() / ("relocatable" if relocatable else "shared")
    where.mkdir()
    vmcore, file = machine.write(where)
    assert module.obj is not None
    kernel = open_core(str(vmcore), str(file))
    count = len(module.symbols) + 1
    places = [(module.obj.address, kernel.layouts.sizeof("linker_file"))]
    places += [(module.symtab, 24 * count), (module.strtab, 64)]
    whole = kernel.layouts.having("elf_file", "progtab" if relocatable else "dynamic")
    assert whole is not None
    places.append((module.obj.address, kernel.layouts.sizeof(whole)))
    return _Loaded(kernel, places)


def module_table(data: bytes) -> None:
    """What a kernel knows a module by (its structs, symbols, names), written over.

    The first byte chooses the linker and what is written over: the rest is what with.
    """
    if len(data) < 2:
        return
    kernel, places = _loaded(bool(data[0] & 1))
    address, size = places[data[0] >> 1 & 3]
    broken = damaged(kernel, words={address: data[1 : size + 1]})
    broken.modules = None
    for table in module_tables(broken):
        for number, (symbol, _) in enumerate(table.every()):
            if number >= 64:
                break
            table.symbols(symbol.name)
            table.symbolize(table.home(symbol))


def _tables() -> Iterator[bytes]:
    for which in range(8):
        kernel, places = _loaded(bool(which & 1))
        address, size = places[which >> 1]
        yield bytes((which,)) + kernel.read(address, size)


# Helpers


def _words(data: bytes, most: int) -> Iterator[int]:
    """A few numbers out of the input itself, to ask for."""
    for at in range(0, min(len(data) - 8, 8 * most), 8):
        yield int.from_bytes(data[at : at + 8], "little")


def _one_line(error: WchanError) -> None:
    assert str(error) and "\n" not in str(error), repr(str(error))


PARSERS: Dict[str, Parser] = {
    "dump": Parser("dumps of every format, and how memory is found in them", dump, _dumps),
    "header": Parser("struct kerneldumpheader of a dump device", header, _headers),
    "elf": Parser("kernel files: sections, symbols, notes", elf_file, _elves),
    "ctf": Parser("types in CTF", ctf_section, _ctfs),
    "dwarf": Parser("types in DWARF", dwarf_file, _dwarfs),
    "structs": Parser("layouts in YAML (--structs)", structs, _structs),
    "known": Parser("known bugs in YAML (--known)", known_bugs, _known),
    "remote": Parser("packets of the remote protocol", remote, _packets),
    "capture": Parser("text: DDB, textdumps, procstat, ps, debuggers", capture, _captures),
    "summary": Parser("a batch's summary, NDJSON", summary, _summaries),
    "modules": Parser("symbol tables of modules in memory", module_table, _tables),
}


def found(name: str) -> Iterator[Tuple[str, bytes]]:
    """Inputs that a parser once broke its promises on: (file name, bytes)."""
    for path in sorted((_HERE / "found").glob(f"{name}-*")):
        yield path.name, path.read_bytes()
