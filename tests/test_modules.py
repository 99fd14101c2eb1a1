"""Modules: named, and their symbols found, from the dump alone and with their files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import debuggers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.kernel import callout, linker, module_file, pcpu, stack
from plugin.kernel.proc import threads
from plugin.opening import open_core
from plugin.session import Kernel
from plugin.vmcore.elf import ElfFile, SymbolTable
from tests.conftest import SHARED, RealDump, decompress
from tests.forge.machine import Machine
from tests.forge.modules import Module
from tests.hosts import ROOT, wchan

_OSRELDATES = {
    "15.0": 1500068,
    "14.2": 1402000,
    "13.0": 1300139,
    "9.3": 903000,
    "7.0": 700014,
}


@pytest.fixture(scope="module")
def zfs_kernel(zfs_dump: RealDump) -> Kernel:
    return open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel))


def test_the_modules_of_a_real_machine_are_listed(zfs_kernel: Kernel) -> None:
    files = linker.linker_files(zfs_kernel)
    assert [f.filename for f in files] == ["kernel", "zfs.ko", "nullfs.ko", "fusefs.ko"]
    assert [f.linker for f in files] == ["elf64"] + 3 * ["elf64_obj"]
    assert files[1].pathname == "/boot/kernel/zfs.ko"
    assert [len(t.table.used) > 100 for t in module_file.module_tables(zfs_kernel)] == 3 * [True]


def test_a_modules_functions_and_statics_are_found_with_no_file_at_hand(
    zfs_kernel: Kernel,
) -> None:
    zfs, _, fuse = linker.modules(zfs_kernel)
    for name, home, local in (
        ("spa_namespace_avl", zfs, True),
        ("zio_wait", zfs, False),
        ("fuse_dev", fuse, True),
    ):
        found = zfs_kernel.symbol(name)
        assert found is not None
        assert home.holds(found.address)
        assert found.local == local
    entry = zfs_kernel.address_of("zio_wait")
    assert zfs_kernel.symbolize(entry + 5) == "zio_wait+0x5"
    assert zfs_kernel.symbolize(zfs.base + zfs.size) == ""


def test_stacks_through_modules_are_ddbs(zfs_dump: RealDump, zfs_kernel: Kernel) -> None:
    """All 156 that DDB traced from a saved context; where it printed none there is none to hold."""
    wanted = zfs_dump.truth["stacks"]
    found: List[int] = []
    for thread in threads(zfs_kernel):
        frames = stack.backtrace(zfs_kernel, thread)
        if frames[: len(wanted[str(thread.tid)])] == wanted[str(thread.tid)] != []:
            found.append(thread.tid)
    assert len(found) == sum(bool(frames) for frames in wanted.values())


def test_what_asks_for_no_module_reads_none(zfs_dump: RealDump) -> None:
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel))
    read: List[int] = []

    def noted(address: int, size: int) -> bytes:
        read.append(address)
        return zfs_dump_read(address, size)

    zfs_dump_read, kernel.read = kernel.read, noted
    assert kernel.symbol("allproc") is not None
    assert kernel.symbolize(kernel.address_of("sched_switch")) == "sched_switch"
    assert read == []


# Their files


@pytest.fixture(scope="module")
def sysroot(zfs_dump: RealDump, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of that machine, nullfs.ko under the name of fusefs.ko: of another build."""
    root = tmp_path_factory.mktemp("sysroot")
    for source, name in (("zfs", "zfs"), ("nullfs", "nullfs"), ("nullfs", "fusefs")):
        packed = SHARED / "real2" / zfs_dump.name / f"{source}.ko.zst"
        decompress(packed, root / "boot" / "kernel" / f"{name}.ko")
    return root


def test_a_modules_file_gives_the_layouts_of_its_own_structs(
    zfs_dump: RealDump, sysroot: Path
) -> None:
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel), sysroot=str(sysroot))
    zfs = linker.modules(kernel)[0]
    found = module_file.module_file(kernel, zfs)
    assert found.elf is not None
    assert found.elf.path == str(sysroot / "boot" / "kernel" / "zfs.ko")
    assert found.why == "9158 symbols alike"
    types = module_file.module_types(kernel, zfs)
    assert types is not None and types.name == "ctf"
    assert kernel.layouts["zilog"] is types.struct("zilog")
    # the kernel and ZFS have each a struct list of their own
    assert kernel.layouts.offsetof("list", "list_head") == 16
    assert kernel.layouts.offsetof("list", "host") > 0


def test_a_module_of_another_build_is_refused_with_the_evidence(
    zfs_dump: RealDump, sysroot: Path
) -> None:
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel), sysroot=str(sysroot))
    fuse = linker.modules(kernel)[2]
    found = module_file.module_file(kernel, fuse)
    assert found.elf is None
    (path, why), *_ = found.refused
    assert path == str(sysroot / "boot" / "kernel" / "fusefs.ko")
    assert why.endswith("is in memory and not in the file")


def test_modules_lists_each_file_and_where_its_names_and_types_come_from(
    zfs_dump: RealDump, sysroot: Path
) -> None:
    words = ("-k", str(zfs_dump.kernel), "--sysroot", str(sysroot), str(zfs_dump.vmcore))
    status, out, _ = wchan(*words, "modules", "--json")
    assert status == 0
    listed = json.loads(out)["data"]["modules"]
    assert [(m["name"], m["id"], m["refs"]) for m in listed] == [
        ("kernel", 1, 14),
        ("zfs.ko", 2, 1),
        ("nullfs.ko", 3, 1),
        ("fusefs.ko", 4, 1),
    ]
    assert listed[1]["address"] == "0xffffffff81c00000"
    assert listed[1]["symbols"] == {"source": "memory", "count": 9158}
    assert listed[1]["types"]["source"] == "ctf"
    assert listed[3]["types"] == {"source": None, "path": None}
    status, out, _ = wchan(*words, "modules")
    assert status == 0
    assert "3 modules beside the kernel:" in out
    assert "fusefs.ko is not used:" in " ".join(out.split())


# Forged machines: no file of a module, both linkers


def _forged(
    kernel: str, folder: Path, damage: Optional[Callable[[Machine, Module], None]] = None
) -> Kernel:
    """A thread asleep in example.ko, and a static variable there."""
    version, arch = kernel.split()
    machine = Machine(_OSRELDATES[version], arch)
    module = machine.modules.load("example.ko", "example_")
    machine.modules.load("other.ko", "other_")
    machine.variable("example_head", 0x1234, static=True)
    machine.variable("other_head", 0x5678)
    thread = machine.procs.process("user").thread(calls=["example_wait", "example_ioctl"])
    thread.sleeps(machine.take(8), "example")
    if damage is not None:
        machine.at_the_end(lambda: damage(machine, module))
    vmcore, file = machine.write(folder)
    return open_core(str(vmcore), str(file))


@pytest.mark.parametrize(
    "kernel", ["14.2 amd64", "15.0 amd64", "13.0 arm64", "14.2 i386", "9.3 amd64", "7.0 i386"]
)
def test_both_linkers_symbol_tables_are_read_in_every_version(kernel: str, tmp_path: Path) -> None:
    opened = _forged(kernel, tmp_path)
    assert [f.filename for f in linker.modules(opened)] == ["example.ko", "other.ko"]
    assert not opened.target.symbols("example_head")
    assert opened.global_value("example_head") == 0x1234
    assert opened.global_value("other_head") == 0x5678
    found = opened.symbol("example_head")
    assert found is not None and found.local
    thread = next(t for t in threads(opened) if t.wmesg == "example")
    names = stack.backtrace(opened, thread)
    assert [n for n in names if n.startswith("example")] == ["example_wait", "example_ioctl"]
    assert not list(opened.warnings)


def _huge(machine: Machine, module: Module) -> None:
    assert module.obj is not None
    module.obj["ddbsymcnt"] = 1 << 40


def _unterminated(machine: Machine, module: Module) -> None:
    assert module.obj is not None
    machine.space.write(module.strtab + module.obj["ddbstrcnt"] - 1, b"x")


def _elsewhere(machine: Machine, module: Module) -> None:
    assert module.obj is not None
    module.obj["ddbstrtab"] = machine.arenas["stacks"].end + (1 << 30)


def _noise(machine: Machine, module: Module) -> None:
    machine.space.write(module.symtab, b"\xa5" * 96)


@pytest.mark.parametrize("damage", [_huge, _unterminated, _elsewhere, _noise])
def test_a_damaged_symbol_table_costs_one_finding_and_no_other_module(
    damage: Callable[[Machine, Module], None], tmp_path: Path
) -> None:
    kernel = _forged("14.2 amd64", tmp_path, damage)
    assert kernel.symbol("example_head") is None
    assert kernel.symbol("example_wait") is None
    assert kernel.global_value("other_head") == 0x5678
    found = [f for f in kernel.warnings if "example.ko" in f.what]
    assert len(found) == 1
    module = linker.modules(kernel)[0]
    assert linker.name_of(kernel, module.base + 16) == "example.ko+0x10"


@pytest.mark.parametrize("damage", [_huge, _elsewhere, _noise])
def test_a_module_whose_table_in_memory_is_damaged_is_named_by_the_file_of_its_build_id(
    damage: Callable[[Machine, Module], None], tmp_path: Path
) -> None:
    def damaged(machine: Machine, module: Module) -> None:
        damage(machine, module)
        module.write(tmp_path / "example.ko")

    kernel = _forged("14.2 amd64", tmp_path, damaged)
    assert kernel.global_value("example_head") == 0x1234
    thread = next(t for t in threads(kernel) if t.wmesg == "example")
    names = stack.backtrace(kernel, thread)
    assert [n for n in names if n.startswith("example")] == ["example_wait", "example_ioctl"]
    (found,) = [f for f in kernel.warnings if "example.ko" in f.what]
    assert "example.ko (build id 6578616d706c652e6b6f" in found.detail
    assert not kernel.warnings.partial
    _, out, _ = wchan("-k", str(tmp_path / "kernel"), str(tmp_path / "vmcore"), "modules", "--json")
    listed = json.loads(out)["data"]["modules"]
    assert [m["symbols"]["source"] for m in listed] == ["file", "file", "memory"]


def test_a_damaged_table_in_memory_gets_no_names_of_a_file_of_another_build(
    tmp_path: Path,
) -> None:
    def damaged(machine: Machine, module: Module) -> None:
        _huge(machine, module)
        module.build_id = b"another".ljust(20)
        module.write(tmp_path / "example.ko")

    kernel = _forged("14.2 amd64", tmp_path, damaged)
    assert kernel.symbol("example_head") is None
    assert kernel.warnings.partial
    ((_, why),) = module_file.module_file(kernel, linker.modules(kernel)[0]).refused
    assert why.startswith("build id") and "loaded is 6578616d706c65" in why


@pytest.mark.parametrize("kernel", ["14.2 arm64", "14.2 i386", "15.0 amd64"])
def test_the_build_id_of_a_module_is_read_from_what_is_loaded_of_it(
    kernel: str, tmp_path: Path
) -> None:
    """A section of its own of a relocatable module, the program headers of a shared one."""
    opened = _forged(kernel, tmp_path)
    ids = [module_file.loaded_build_id(opened, file) for file in linker.modules(opened)]
    assert ids == [b"example.ko".ljust(20, b"\1").hex(), b"other.ko".ljust(20, b"\1").hex()]


def test_a_shared_modules_file_of_another_build_is_refused_by_its_build_id(tmp_path: Path) -> None:
    kernel = _forged("14.2 arm64", tmp_path)
    built = Machine(1402000, "amd64")
    other = built.modules.load("example.ko", "example_")
    other.build_id = b"another".ljust(20)
    other.write(tmp_path / "example.ko")
    ((_, why),) = module_file.module_file(kernel, linker.modules(kernel)[0]).refused
    assert why.startswith("build id") and "loaded is 6578616d706c65" in why


_SOURCE = """
struct example_softc { int es_unit; void *es_lock; struct { char es_name[24]; } es_inner; };
struct example_softc *example_probe;
__attribute__((section(".note.gnu.build-id"))) const unsigned char example_note[] = {%s};
"""


@pytest.mark.parametrize("dwarf", [4, 5])
@pytest.mark.parametrize("beside", ["example.ko.debug alone", "a stripped example.ko"])
def test_types_are_read_from_the_dwarf_of_a_relocatable_modules_debug_file(
    dwarf: int, beside: str, tmp_path: Path
) -> None:
    """Its sections refer to each other by relocations that no linker has applied yet."""
    compiler = next(filter(None, map(shutil.which, ("clang", "gcc", "cc"))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no compiler that makes relocatable ELF files")

    def built(machine: Machine, module: Module) -> None:
        note = ",".join(map(str, module.note))
        (tmp_path / "example.c").write_text(_SOURCE % note)
        out = tmp_path / "example.ko.debug"
        words = [compiler, "-g", f"-gdwarf-{dwarf}", "-c", "example.c", "-o", str(out)]
        subprocess.run(words, cwd=tmp_path, check=True)
        if beside.startswith("a stripped"):
            module.write(tmp_path / "example.ko")

    kernel = _forged("14.2 amd64", tmp_path, built)
    softc = kernel.layouts["example_softc"]
    assert softc.size == 40
    assert kernel.layouts.offsetof("example_softc", "es_inner.es_name") == 16


def test_a_loop_of_linker_files_ends_with_one_finding(tmp_path: Path) -> None:
    def loop(machine: Machine, module: Module) -> None:
        last = machine.modules.files[-1]
        last["link.tqe_next"] = machine.modules.files[1]

    kernel = _forged("14.2 amd64", tmp_path, loop)
    assert kernel.global_value("other_head") == 0x5678
    assert [f.what for f in kernel.warnings if "loop" in f.detail] == ["linker_files"]


@pytest.mark.parametrize("osreldate, arch", [(700014, "i386"), (1402000, "amd64")])
def test_a_machine_whose_list_of_modules_is_not_found_is_not_said_to_have_none(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    vmcore, file = Machine(osreldate, arch).write(tmp_path)
    words = ("-k", str(file), str(vmcore), "modules")
    status, out, _ = wchan(*words)
    assert status == 0
    assert "Which modules are loaded is not known: no symbol of the kernel file" in out
    assert "0 modules" not in out
    status, out, _ = wchan(*words, "--json")
    assert status == 0
    assert json.loads(out)["data"]["modules"] is None


def test_ctf_that_is_not_used_is_said_in_the_first_lines(
    zfs_dump: RealDump, tmp_path: Path
) -> None:
    data = bytearray(zfs_dump.kernel.read_bytes())
    with ElfFile(zfs_dump.kernel) as elf:
        where = next(s.offset for s in elf.sections if s.name == ".SUNW_ctf")
    data[where + 2] = 9
    (tmp_path / "kernel").write_bytes(data)
    status, out, _ = wchan("-k", str(tmp_path / "kernel"), str(zfs_dump.vmcore), "why-stuck")
    first = " ".join(out.split("\n\n")[0].split())
    assert status == 0
    assert "layouts: yaml:14.2-amd64." in first
    assert "CTF version 9 is not supported" in first


def test_structs_of_a_module_without_types_are_said_in_the_first_lines_to_be_structs_yamls(
    zfs_dump: RealDump, sysroot: Path
) -> None:
    words = ("-k", str(zfs_dump.kernel), str(zfs_dump.vmcore))
    _, out, _ = wchan(*words, "why-stuck")
    first = " ".join(out.split("\n\n")[0].split())
    assert "layouts: ctf." in first
    assert "Structs of zfs.ko and fusefs.ko are as in structs.yaml (14.2-amd64)" in first
    _, out, _ = wchan(*words, "zfs", "--json")
    (warning,) = json.loads(out)["warnings"]
    assert warning["what"] == "layouts" and "zfs.ko" in warning["detail"]
    # With zfs.ko, and a fusefs.ko of another build.
    _, out, _ = wchan("--sysroot", str(sysroot), *words, "why-stuck")
    first = " ".join(out.split("\n\n")[0].split())
    assert "Structs of fusefs.ko are as in structs.yaml" in first
    assert "fusefs.ko is not used:" in first and "is in memory and not in the file" in first
    # What reads no struct of theirs has nothing to say.
    _, out, _ = wchan(*words, "kthreads", "--json")
    assert json.loads(out)["warnings"] == []


# Variables that every CPU or every network stack has a copy of


@pytest.mark.parametrize(
    "osreldate, arch", [(903000, "amd64"), (1402000, "amd64"), (1402000, "i386")]
)
@pytest.mark.parametrize("home", ["the kernel", "a module"])
def test_variables_of_each_cpu_and_of_a_network_stack_are_read_where_their_copies_are(
    osreldate: int, arch: str, home: str, tmp_path: Path
) -> None:
    machine = Machine(osreldate, arch)
    if home == "a module":
        machine.modules.load("example.ko", "pcpu_entry_example", "vnet_entry_example")
    width = machine.pointer_size

    entries = [
        machine.symbol(f"{set_}_entry_example", size=width).address for set_ in ("pcpu", "vnet")
    ]
    copies, own = [machine.take(width) for _ in range(machine.cpus)], machine.take(64)
    offsets = machine.symbol("dpcpu_off", size=width * machine.cpus)
    # A copy that lies below its template is told by a distance that wraps.
    for cpu, copy in enumerate(copies):
        distance = (copy - entries[0]) % (1 << 8 * width)
        machine.write_int(offsets.address + cpu * width, distance, width)
    distance = (own - entries[1]) % (1 << 8 * width)
    vnet0 = machine.new("vnet", vnet_data_base=distance)
    machine.write_pointer(machine.symbol("vnet0", size=width).address, vnet0)
    # A jail with a network stack of its own comes first on the list, the host's last.
    jails = machine.take(64)
    jail = machine.new("vnet", vnet_data_base=(jails - entries[1]) % (1 << 8 * width))
    machine.list(machine.symbol("vnet_head", size=width).address, "vnet_le", [jail, vnet0])
    vmcore, file = machine.write(tmp_path)
    kernel = open_core(str(vmcore), str(file))
    assert list(pcpu.dpcpu_addresses(kernel, "example")) == list(enumerate(copies))
    assert pcpu.vnet_address(kernel, "example") == own
    both = [(int(vnet0), own), (int(jail), jails)]
    assert list(pcpu.vnet_addresses(kernel, "example")) == both
    assert list(pcpu.dpcpu_addresses(kernel, "other")) == []
    assert pcpu.vnet_address(kernel, "other") is None
    _, out, _ = wchan("-k", str(file), str(vmcore), "kprint", "mtx", "example", "--json")
    assert f"{own:#x}" in out
    words = ("-k", str(file), str(vmcore), "kprint", "mtx", "example", "--json", "--vnet")
    assert f"{jails:#x}" in wchan(*words, "1")[1]
    status, _, err = wchan(*words, "2")
    assert status == 1 and "there is no network stack 2: example has 2 copies" in err


@pytest.mark.parametrize("kernel", ["14.2 arm64", "14.2 i386", "13.0 arm64"])
@pytest.mark.parametrize("set_", ["pcpu", "vnet"])
def test_a_shared_modules_variables_of_each_cpu_or_stack_lie_where_its_linker_put_the_set(
    kernel: str, set_: str, tmp_path: Path
) -> None:
    """link_elf.c copies set_pcpu and set_vnet of a module to room that the kernel set aside."""

    def placed(machine: Machine, module: Module) -> None:
        assert module.obj is not None
        at = next(s.address for s in module.symbols if s.name == "example_head")
        room = machine.address_of("other_head") - 8
        module.obj[f"{set_}_start"] = at - 8
        module.obj[f"{set_}_stop"] = at + 16
        module.obj[f"{set_}_base"] = room

    opened = _forged(kernel, tmp_path, placed)
    assert opened.address_of("example_head") == opened.address_of("other_head")
    assert opened.global_value("example_head") == 0x5678


def test_a_real_machines_network_stack_and_callouts_are_where_it_keeps_them(
    zfs_kernel: Kernel,
) -> None:
    interfaces = pcpu.vnet_address(zfs_kernel, "if_index")
    assert interfaces is not None and int.from_bytes(zfs_kernel.read(interfaces, 4), "little") == 1
    clocks = [each.thread for each in callout.callout_cpus(zfs_kernel)]
    names = {thread.address: thread.name for thread in threads(zfs_kernel)}
    assert [names[clock] for clock in clocks] == ["clock (0)", "clock (1)"]


# In the debuggers


def _is_ddbs(done: debuggers.Batch, dump: RealDump, names: Dict[str, str]) -> None:
    traced = dump.truth["stacks"]
    compared = [
        tid
        for tid in traced
        if traced[tid]
        and "kdb_reenter" not in traced[tid]
        # lldb heads a backtrace with the thread's name alone
        and list(names.values()).count(names.get(tid, tid)) < 2
    ]
    found = {tid: done.stacks[names.get(tid, tid)] for tid in compared}
    through = [tid for tid in compared if "zio_wait" in traced[tid]]
    assert through
    assert [found[tid] for tid in through] == [traced[tid] for tid in through]
    assert sum(found[tid] == traced[tid] for tid in compared) >= len(compared) - 2


def test_gdb_names_a_modules_frames_and_lists_it(venv_gdb: Path, zfs_dump: RealDump) -> None:
    done = debuggers.gdb(
        venv_gdb, zfs_dump, "info sharedlibrary", "info address fuse_dev", "thread apply all bt"
    )
    assert re.search(r"^0xffffffff81c00000 +0xffffffff81fcd727 .*/zfs.ko$", done.out, re.MULTILINE)
    assert re.search(r'"fuse_dev" is at 0xffffffff81a2ed\w\w ', done.out)
    _is_ddbs(done, zfs_dump, {})


def test_lldb_names_a_modules_frames_and_lists_it(venv_lldb: Path, zfs_dump: RealDump) -> None:
    done = debuggers.lldb(venv_lldb, zfs_dump, "image list", "thread list", "bt all")
    assert re.search(r"^\[ *1\] .*/zfs.ko *$", done.out, re.MULTILINE)
    _is_ddbs(done, zfs_dump, {str(tid): name for tid, name in done.threads})


def test_modules_says_the_same_in_every_host(
    venv_gdb: Path, venv_lldb: Path, zfs_dump: RealDump
) -> None:
    words = ("-k", str(zfs_dump.kernel), str(zfs_dump.vmcore))
    shell = json.loads(wchan(*words, "modules", "--json")[1])["data"]
    for debugger, program in ((debuggers.gdb, venv_gdb), (debuggers.lldb, venv_lldb)):
        out = debugger(program, zfs_dump, "modules --json").out
        found, _ = json.JSONDecoder().raw_decode(out[out.index("{\n") :])
        assert found["data"] == shell


# Debuggers that their user opened: nothing tells them of modules


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Tuple[Path, str]]:
    """(kernel, address) of a machine with a thread asleep in a module, behind a remote stub."""
    _forged("14.2 amd64", tmp_path)
    words = ("serve", "-k", str(tmp_path / "kernel"), str(tmp_path / "vmcore"))
    server = subprocess.Popen(
        [sys.executable, "-m", "plugin", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    yield tmp_path / "kernel", server.stdout.readline().split(" on ")[1].strip()
    server.terminate()
    server.wait(10)
    server.stdout.close()


def _opened(words: List[str]) -> str:
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, stdin=DEVNULL
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_lldb_that_its_user_opened_names_a_modules_frames_after_the_first_command(
    venv_lldb: Path, served: Tuple[Path, str]
) -> None:
    kernel, address = served
    connect = f"process connect --plugin gdb-remote unix-connect://{address}"
    lines = (f"command script import {ROOT}/plugin", connect, "modules", "image list", "bt all")
    rest = [word for line in lines for word in ("-o", line)]
    out = _opened([str(venv_lldb), "--no-lldbinit", "-b", str(kernel), *rest])
    assert out.count("symbols of example.ko, other.ko are loaded") == 1
    assert re.search(r"^\[ *1\] .*/example.ko *$", out, re.MULTILINE)
    assert re.search(r"example.ko`example_wait", out)


def test_gdb_that_its_user_opened_names_a_modules_frames_after_the_first_command(
    venv_gdb: Path, served: Tuple[Path, str]
) -> None:
    kernel, address = served
    lines = (
        *("set auto-solib-add off", f"target remote {address}"),
        *(f"source {ROOT}/plugin/kernel-gdb.py", "modules", "kthreads --limit 1"),
        *("info address example_head", "thread apply all bt"),
    )
    rest = [word for line in lines for word in ("-ex", line)]
    start = ["-nx", "-batch", "-iex", "set osabi none", "-iex", "set sysroot /nowhere"]
    out = _opened([str(venv_gdb), *start, str(kernel), *rest])
    assert out.count("symbols of example.ko, other.ko are loaded") == 1
    assert re.search(r'"example_head" is at 0x', out)
    assert re.search(r"in example_wait \(\)", out)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=8),
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=8),
)
def test_whatever_a_symbol_table_holds_it_raises_nothing(
    zfs_kernel: Kernel, symbols: List[Tuple[int, int]], strings: List[Tuple[int, int]]
) -> None:
    """Indexes, sizes and names that lead anywhere: an answer or none, and an end."""
    table = module_file.module_tables(zfs_kernel)[1].table
    damaged, names = bytearray(table.symbols), bytearray(table.strings)
    for at, value in symbols:
        damaged[at * 7 % len(damaged)] = value
    for at, value in strings:
        names[at * 7 % len(names)] = value
    made = SymbolTable(table.form, bytes(damaged), bytes(names))
    module = linker.ModuleTable(linker.modules(zfs_kernel)[1], made, 0, (), ())
    for _ in range(6):
        module.symbols("null_mount")
    for address in range(module.file.base, module.file.base + module.file.size, 0x400):
        module.symbolize(address)
