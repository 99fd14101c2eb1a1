"""DWARF: whole kernels written as DWARF and read back, and FreeBSD's real headers compiled.

The second half is the independent witness of structs.yaml: the PyPI wheel ``ziglang``
carries FreeBSD's own kernel headers and a compiler; what it makes of them must be
what structs.yaml says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Set

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.errors import LayoutError, WchanError
from plugin.structs.ctf import Ctf
from plugin.structs.debuginfo import open_debug
from plugin.structs.dwarf import Dwarf
from plugin.structs.making.tool import Difference, compare
from plugin.structs.yamlfile import StructsFile, read_kernel
from plugin.vmcore.elf import ElfFile
from tests.structs_typegraph import Graph, GraphType, ctf, dwarf, elf
from tests.test_ctf import _FILE, kernel_graph, same

pytest.importorskip("elftools", reason="pyelftools decodes DWARF")

FORMS = {
    "DWARF 4": {"version": 4},
    "DWARF 4 as GCC writes it": {"version": 4, "strings": "inline"},
    "DWARF 2 as GCC 4.2 writes it": {"version": 2, "old_bits": True, "gcc42": True},
    "DWARF 3 bit-fields": {"version": 3, "old_bits": True},
    "DWARF 5 with names by index": {"version": 5, "strings": "strx"},
    "DWARF 5": {"version": 5},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["14.2-amd64-debug", "7.0c-700014-i386"])
def test_a_whole_kernel_comes_back(name: str, form: str, tmp_path: Path) -> None:
    """Every struct of the kernel, each member with offset, size, bits and type."""
    graph, structs = kernel_graph(name)
    path = tmp_path / "kernel.debug"
    sections = dwarf(graph, **FORMS[form])  # type: ignore[arg-type]
    path.write_bytes(elf(sections, bits=8 * graph.pointer_size))
    source = Dwarf(ElfFile(path))
    assert source.name == "dwarf"
    for struct, layout in structs.items():
        found = source.struct(struct)
        assert found is not None, struct
        same(found, layout, typed_bits=True)
    assert source.struct("no_such_struct") is None


@pytest.mark.parametrize("way", ["SHF_COMPRESSED", ".zdebug"])
@pytest.mark.parametrize("name", ["14.2-amd64", "7.0c-700014-i386"])
def test_compressed_sections_are_read(name: str, way: str, tmp_path: Path) -> None:
    graph, structs = kernel_graph(name)
    sections = dwarf(graph)
    if way == ".zdebug":
        sections = {
            section.replace(".debug", ".zdebug"): b"ZLIB"
            + len(data).to_bytes(8, "big")
            + zlib.compress(data)
            for section, data in sections.items()
        }
    path = tmp_path / "kernel.debug"
    bits = 8 * graph.pointer_size
    path.write_bytes(elf(sections, bits=bits, compressed=way == "SHF_COMPRESSED"))
    found = Dwarf(ElfFile(path)).struct("bio")
    assert found is not None
    same(found, structs["bio"], typed_bits=True)


def test_a_struct_that_is_only_declared_is_not_found(tmp_path: Path) -> None:
    """Most units name structs that others define; nor is a member's name a struct's."""
    graph = Graph(8, {})
    graph.add(GraphType("struct", "somewhere"))
    graph.add_layouts([kernel_graph("14.2-amd64")[1]["bio"]])
    path = tmp_path / "kernel.debug"
    path.write_bytes(elf(dwarf(graph)))
    source = Dwarf(ElfFile(path))
    assert source.struct("somewhere") is None
    assert source.struct("bio_cmd") is None
    assert source.struct("bio") is not None


def test_without_pyelftools_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; CTF, where the kernel has it, is used in its place."""
    graph, _ = kernel_graph("14.2-amd64")
    path = tmp_path / "kernel"
    path.write_bytes(elf({**dwarf(graph), ".SUNW_ctf": ctf(graph)}))
    monkeypatch.setitem(sys.modules, "elftools", None)
    said = f"debug information in {path} is not read: pyelftools is not installed"
    with pytest.raises(LayoutError, match="pyelftools is not installed") as raised:
        Dwarf(ElfFile(path))
    assert str(raised.value) == said
    found = open_debug(ElfFile(path))
    assert found is not None
    assert isinstance(found.source, Ctf)
    assert found.notes == [said]


def test_of_several_structs_of_one_name_the_common_one_is_taken(tmp_path: Path) -> None:
    """Two drivers' own struct softc: the one that more units define."""
    units = [dwarf(kernel_graph(name)[0]) for name in ("14.2-amd64", "14.2-amd64", "9.3-amd64")]
    info, abbrev = b"", b""
    strings = units[0][".debug_str"]
    for unit in units:
        body = bytearray(unit[".debug_info"])
        # version 4: unit_length, version, then the offset of the unit's abbreviations
        body[6:10] = len(abbrev).to_bytes(4, "little")
        if unit is not units[2]:
            info += bytes(body)
            abbrev += unit[".debug_abbrev"]
    path = tmp_path / "two"
    path.write_bytes(elf({".debug_info": info, ".debug_abbrev": abbrev, ".debug_str": strings}))
    found = Dwarf(ElfFile(path)).struct("thread")
    assert found is not None
    assert found.size == kernel_graph("14.2-amd64")[1]["thread"].size


def test_what_was_found_is_kept_for_the_next_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph, structs = kernel_graph("14.2-amd64")
    path = tmp_path / "kernel.debug"
    path.write_bytes(elf(dwarf(graph)))
    first = Dwarf(ElfFile(path))
    assert first.struct("bio") is not None
    first._cache.save()
    second = Dwarf(ElfFile(path))
    monkeypatch.setattr(second, "_look_up", lambda name: pytest.fail(f"{name} looked up again"))
    found = second.struct("bio")
    assert found is not None
    same(found, structs["bio"], typed_bits=True)


# Where debug information is found


def _debuglink(name: str, debug: bytes) -> bytes:
    text = name.encode() + b"\0"
    text += b"\0" * (-len(text) % 4)
    return text + zlib.crc32(debug).to_bytes(4, "little")


def test_a_separate_debug_file_is_found_by_its_link(tmp_path: Path) -> None:
    graph, _ = kernel_graph("14.2-amd64")
    debug = elf(dwarf(graph))
    (tmp_path / "elsewhere.debug").write_bytes(debug)
    (tmp_path / "kernel").write_bytes(elf({".gnu_debuglink": _debuglink("elsewhere.debug", debug)}))
    found = open_debug(ElfFile(tmp_path / "kernel"))
    assert found is not None
    assert found.path == str(tmp_path / "elsewhere.debug")
    assert found.source.struct("bio") is not None


def test_the_debug_file_of_another_kernel_is_passed_over(tmp_path: Path) -> None:
    """The CRC in the link tells; CTF in the kernel itself is the next best."""
    graph, _ = kernel_graph("14.2-amd64")
    debug = elf(dwarf(graph))
    (tmp_path / "kernel.debug").write_bytes(debug + b"changed")
    link = _debuglink("kernel.debug", debug)
    (tmp_path / "kernel").write_bytes(elf({".gnu_debuglink": link, ".SUNW_ctf": ctf(graph)}))
    found = open_debug(ElfFile(tmp_path / "kernel"))
    assert found is not None
    assert isinstance(found.source, Ctf)
    assert "another kernel's debug file" in found.notes[0]


def test_a_kernel_debug_beside_the_kernel_needs_no_link(tmp_path: Path) -> None:
    graph, _ = kernel_graph("14.2-amd64")
    (tmp_path / "kernel.debug").write_bytes(elf(dwarf(graph, 5, "strx")))
    (tmp_path / "kernel").write_bytes(elf({".text": b""}))
    found = open_debug(ElfFile(tmp_path / "kernel"))
    assert found is not None
    assert isinstance(found.source, Dwarf)


def test_a_kernel_without_any_has_none(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(elf({".text": b""}))
    assert open_debug(ElfFile(tmp_path / "kernel")) is None
    with pytest.raises(LayoutError, match="no DWARF"):
        Dwarf(ElfFile(tmp_path / "kernel"))


# Hostile data


def _small_sections() -> Dict[str, bytes]:
    graph, structs = kernel_graph("14.2-amd64")
    small = Graph(8, graph.typedefs)
    small.add_layouts(structs[name] for name in ("bio", "g_bioq", "mtx", "lock_object"))
    return dwarf(small, 5, "strx")


_SECTIONS = _small_sections()
_SIZES = [(name, len(data)) for name, data in sorted(_SECTIONS.items())]


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_dwarf_is_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A layout, none, or one line; never a traceback, never a loop."""
    sections = dict(_SECTIONS)
    for _ in range(data.draw(st.integers(1, 5))):
        name, size = data.draw(st.sampled_from(_SIZES))
        damaged = bytearray(sections[name])
        damaged[data.draw(st.integers(0, size - 1)) % max(len(damaged), 1)] = data.draw(
            st.integers(0, 255)
        )
        cut = data.draw(st.integers(0, 40))
        sections[name] = bytes(damaged) if cut else bytes(damaged[: size // 2 + 1])
    path = tmp_path_factory.mktemp("damaged") / "kernel.debug"
    path.write_bytes(elf(sections))
    try:
        source = Dwarf(ElfFile(path))
        for struct in ("bio", "g_bioq", "mtx"):
            source.struct(struct)
    except WchanError as error:
        assert str(error)
        assert "\n" not in str(error)


# FreeBSD's own headers

_HEADERS = """
sys/param.h sys/systm.h sys/kernel.h sys/lock.h sys/mutex.h sys/sx.h sys/rwlock.h sys/rmlock.h
sys/lockmgr.h sys/proc.h sys/bio.h sys/buf.h sys/bufobj.h sys/vnode.h sys/mount.h sys/malloc.h
sys/conf.h sys/file.h sys/filedesc.h sys/jail.h sys/sleepqueue.h sys/turnstile.h sys/umtxvar.h
sys/user.h sys/bus.h sys/rman.h sys/taskqueue.h sys/_task.h sys/smp.h sys/pcpu.h sys/devicestat.h
sys/sbuf.h sys/msgbuf.h sys/linker.h sys/sysent.h sys/sysctl.h sys/event.h sys/eventvar.h
sys/selinfo.h sys/signalvar.h sys/resourcevar.h sys/cpuset.h sys/domainset.h sys/rangelock.h
sys/rangeset.h sys/pidctrl.h sys/vmmeter.h sys/kerneldump.h sys/blist.h sys/disk.h
sys/disk_zone.h sys/ucred.h sys/callout.h sys/condvar.h sys/osd.h sys/runq.h sys/sched.h
sys/timetc.h sys/sf_buf.h sys/capsicum.h sys/link_elf.h sys/kdb.h sys/imgact.h sys/time.h
geom/geom.h geom/geom_int.h geom/geom_disk.h geom/geom_vfs.h vm/vm.h vm/vm_param.h vm/pmap.h
vm/vm_map.h vm/vm_page.h vm/vm_object.h vm/vm_pager.h vm/vm_pageout.h vm/vm_phys.h
vm/vm_pagequeue.h vm/vm_radix.h vm/vm_reserv.h vm/vm_extern.h vm/vm_kern.h vm/swap_pager.h
vm/uma.h vm/uma_int.h vm/uma_dbg.h vm/vm_dumpset.h machine/pcb.h machine/frame.h
machine/minidump.h machine/cpu.h machine/md_var.h machine/proc.h
"""
HEADERS = _HEADERS.split()

#: the options of GENERIC that the headers look at, in opt_global.h
_OPTIONS = ["SMP", "VIMAGE", "NUMA", "MAC", "AUDIT", "KDTRACE_HOOKS"]
_DEBUG = ["INVARIANTS", "INVARIANT_SUPPORT", "WITNESS", "BUF_TRACKING", "FULL_BUF_TRACKING"]

#: The headers of the 0.15 wheel are of stable/14 after 14.2: one member was renamed
#: since, in its place.
_RENAMED = {("vm_object", "un_pager.devp.dev"): "un_pager.devp.handle"}

_CORE = {
    "thread", "proc", "pcpu", "pcb", "bio", "buf", "bufobj", "vnode", "mount", "mtx", "sx",
    "rwlock", "rmlock", "lock", "lock_object", "lock_class", "cv", "g_bioq", "g_class", "g_geom",
    "g_provider", "g_consumer", "disk", "devstat", "swdevt", "vm_page", "vm_object", "vm_map",
    "vm_domain", "vm_pagequeue", "uma_zone", "uma_keg", "msgbuf", "callout", "filedesc", "file",
    "cdev", "ucred", "prison", "session", "pgrp", "linker_file", "kinfo_proc", "umtx_q",
}  # fmt: skip


class Probe(NamedTuple):
    arch: str
    dwarf: int
    debug: bool = False


PROBES = [Probe("amd64", 4), Probe("amd64", 5, True), Probe("arm64", 5), Probe("i386", 4)]
_TARGETS = {"amd64": "x86_64", "arm64": "aarch64", "i386": "x86"}


def _zigs() -> List[str]:
    """Interpreters that have ziglang: this one, and what WCHAN_ZIGLANG_PYTHON names."""
    return [sys.executable, *filter(None, os.environ.get("WCHAN_ZIGLANG_PYTHON", "").split(":"))]


def _era(python: str) -> Optional[str]:
    """The FreeBSD release whose headers the wheel has, None where there is no wheel."""
    said = subprocess.run(
        [python, "-m", "ziglang", "version"], capture_output=True, text=True, check=False
    ).stdout
    match = re.match(r"0\.(\d+)\.", said)
    return None if match is None else "14.2" if int(match.group(1)) < 16 else "15.0"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.mark.parametrize("python", _zigs(), ids=lambda p: Path(p).parent.parent.name)
@pytest.mark.parametrize(
    "probe", PROBES, ids=lambda p: f"{p.arch}-dwarf{p.dwarf}" + "-debug" * p.debug
)
def test_freebsds_headers_say_the_same(python: str, probe: Probe, work: Path) -> None:
    """Every struct that the headers and structs.yaml both know: 0 differences."""
    era = _era(python)
    if era is None:
        pytest.skip(f"{python} has no ziglang, whose wheel carries FreeBSD's headers")
    name = f"{era}-{probe.arch}" + ("-debug" if probe.debug else "")
    if name not in {row.name for row in StructsFile().rows}:
        pytest.skip(f"structs.yaml has no {name}: these headers are for kernels without it")
    yaml = read_kernel(_FILE, name, _FILE.row(name), {})
    # "#" stands in the name of a struct that a .c file keeps to itself
    names = [n for n in yaml.names() if "#" not in n]
    built = _compile(python, era, probe, work, names, {n: yaml.structs[n].kind for n in names})
    source = Dwarf(ElfFile(built))
    differences: List[Difference] = []
    both: Set[str] = set()
    for struct in yaml.names():
        found = source.struct(struct)
        if found is not None:
            both.add(struct)
            differences += compare(yaml.structs[struct], found)
    if era == "14.2":
        differences = _without_renamed(differences)
    assert differences == []
    assert _CORE - both == set()
    assert len(both) > 140


def _without_renamed(differences: List[Difference]) -> List[Difference]:
    """Without the members that have another name in the same place."""
    by_name = {(d.struct, d.member): d for d in differences}
    for (struct, old), new in _RENAMED.items():
        before, after = by_name.get((struct, old)), by_name.get((struct, new))
        if before and after and before.left.split()[0] == after.right.split()[0]:
            differences = [d for d in differences if d not in (before, after)]
    return differences


def _compile(
    python: str, era: str, probe: Probe, work: Path, names: List[str], kinds: Dict[str, str]
) -> Path:
    """A shared object whose DWARF describes the structs that the headers have."""
    stubs = work / "stubs"
    stubs.mkdir(exist_ok=True)
    stem = f"probe_{era.replace('.', '_')}_{probe.arch}_{probe.dwarf}"
    options = _OPTIONS + (_DEBUG if probe.debug else [])
    command = [
        python, "-m", "ziglang", "cc", "-target", f"{_TARGETS[probe.arch]}-freebsd.{era}-none",
        "-D_KERNEL", "-DGENOFFSET", *(f"-D{option}" for option in options), f"-I{stubs}",
        "-nostdlib", "-ffreestanding", "-fPIC", "-w", "-g", f"-gdwarf-{probe.dwarf}",
        "-ferror-limit=0", *(["-mcpu=generic+reserve_x18"] if probe.arch == "arm64" else []),
    ]  # fmt: skip
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(work / "zig")}

    def run(*more: str) -> str:
        done = subprocess.run(
            [*command, *more],
            capture_output=True,
            text=True,
            check=False,
            cwd=work,
            env=environment,
        )
        return done.stderr if done.returncode else ""

    missing: Set[str] = set()
    for _ in range(40):
        source = "#define _WANT_FREEBSD_BITSET\n"
        source += "".join(f"#include <{header}>\n" for header in HEADERS)
        for name in names:
            if name not in missing:
                source += f"{kinds[name]} {name} *probe_{name};\n"
                source += f"unsigned long size_{name} = sizeof({kinds[name]} {name});\n"
        (work / f"{stem}.c").write_text(source)
        said = run("-c", f"{stem}.c", "-o", f"{stem}.o")
        if not said:
            break
        # the kernel's build makes these; they declare functions only
        generated = re.findall(r"fatal error: '((?:\w+_if|opt_\w+)\.h)' file not found", said)
        for header in generated:
            (stubs / header).touch()
        undefined = set(re.findall(r"incomplete type '(?:struct|union) (\w+)'", said))
        assert generated or undefined - missing, said[:2000]
        missing |= undefined
    said = run("-shared", f"{stem}.c", "-o", f"{stem}.so")
    assert not said, said[:2000]
    return work / f"{stem}.so"
