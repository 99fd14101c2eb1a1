"""Dumps that real kernels wrote, against what the kernels' own debugger and LLVM say of them.

The dumps of stuck machines lie beside the repository (see conftest).  LLVM's
sparse dumps are part of its source: the folder
lldb/test/API/functionalities/postmortem/FreeBSDKernel of LLVM 19 (for example
Debian's source package llvm-toolchain-19); WCHAN_LLVM_VMCORES names a copy.
"""

from __future__ import annotations

import bz2
import json
import os
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest
import yaml
from build_vmcore import ABS, Sym, elf
from conftest import RealDump

from plugin.errors import MemoryFault
from plugin.vmcore import ElfFile, KernelMemory, open_memory

# Real machines


class Opened(NamedTuple):
    dump: RealDump
    kernel: ElfFile
    core: KernelMemory

    def pointer(self, address: int) -> int:
        return int.from_bytes(self.core.read(address, 8), "little")

    def variable(self, name: str) -> int:
        symbol = self.kernel.symbol(name)
        assert symbol is not None, name
        return int.from_bytes(self.core.read(symbol.address, symbol.size), "little")


@pytest.fixture
def real(real_dump: RealDump) -> Iterator[Opened]:
    with ElfFile(real_dump.kernel) as kernel, open_memory(real_dump.vmcore, kernel) as core:
        yield Opened(real_dump, kernel, core)


def text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode()


def test_the_kernels_version_is_the_one_that_booted(real: Opened) -> None:
    symbol = real.kernel.symbol("version")
    assert symbol is not None
    version = text(real.core.read(symbol.address, 256)).strip()
    assert version.startswith("FreeBSD ")
    assert version in real.dump.ddb_log


def test_message_buffer_header_lies_where_ddb_saw_it(real: Opened) -> None:
    """DDB prints it; it lies in the direct map, at the end of physical memory."""
    shown = re.search(
        r"msgbufp = (0x\w+)\s+magic = (\w+), size = (\d+), r= \d+, w = \d+, ptr = (0x\w+)",
        real.dump.ddb_log,
    )
    if shown is None:
        pytest.skip("DDB's log of this machine shows no message buffer")
    address = int(shown[1], 16)
    assert real.variable("msgbufp") == address
    assert real.pointer(address) == int(shown[4], 16)
    assert int.from_bytes(real.core.read(address + 8, 4), "little") == int(shown[2], 16)
    buffer = real.core.read(int(shown[4], 16), int(shown[3]))
    assert real.core.message_buffer[:1000] == buffer[:1000]
    for line in re.findall(r"^(?:CPU|real memory|VT\(vga\)).*$", real.dump.ddb_log, re.M):
        assert line.strip().encode() in buffer


def layouts(facts: Path, name: str) -> Dict[str, Any]:
    """Struct layouts of the kernel, from the facts, not from the code under test."""
    release = name.split("-", 1)[0]
    text = (facts / "layouts" / f"{release}-amd64.json").read_text()
    value: Dict[str, Any] = json.loads(text)
    return value


def offset_of(made: Dict[str, Any], struct: str, member: str) -> int:
    value: int = next(m["offset"] for m in made[struct]["members"] if m["name"] == member)
    return value


def test_every_thread_that_ddb_lists_is_reached_through_page_tables(
    real: Opened, facts: Path
) -> None:
    """allproc and each p_threads list, walked link by link, with their names."""
    made = layouts(facts, real.dump.name)

    def at(struct: str, member: str) -> int:
        return offset_of(made, struct, member)

    found = set()
    process = real.variable("allproc")
    while process:
        pid = int.from_bytes(real.core.read(process + at("proc", "p_pid"), 4), "little")
        comm = text(real.core.read(process + at("proc", "p_comm"), 20))
        thread = real.pointer(process + at("proc", "p_threads"))
        while thread:
            tid = int.from_bytes(real.core.read(thread + at("thread", "td_tid"), 4), "little")
            found.add((pid, tid, comm))
            thread = real.pointer(thread + at("thread", "td_plist"))
        process = real.pointer(process + at("proc", "p_list"))
    # Of a zombie DDB shows no thread.
    listed = {
        (t["pid"], t["tid"], t["comm"]) for t in real.dump.truth["threads"] if t["tid"] is not None
    }
    assert {(pid, tid) for pid, tid, _ in found} >= {(pid, tid) for pid, tid, _ in listed}
    assert {pid: comm for pid, _, comm in found}.items() >= {
        pid: comm for pid, _, comm in listed if pid in {p for p, _, _ in found}
    }.items()


def test_vm_page_array_is_read_alike_in_bulk_and_page_by_page(real: Opened) -> None:
    start, count = real.variable("vm_page_array"), real.variable("vm_page_array_size")
    size = count * 104
    whole = real.core.read(start, size)
    assert whole == b"".join(data for _, data in real.core.chunks(start, size, 300000))
    for at in range(0, size - 4096, 4096 * 37):
        assert real.core.read(start + at, 4096) == whole[at : at + 4096]
        assert real.core.present(start + at)


def test_one_page_read_by_two_addresses_is_the_same(real: Opened) -> None:
    """By its kernel virtual address and through the direct map."""
    dmap = 0xFFFFF80000000000
    for name in ("allproc", "hz", "cdevsw_mtx", "version"):
        symbol = real.kernel.symbol(name)
        if symbol is not None:
            pa = real.core.translate(symbol.address)
            assert real.core.read(symbol.address, 4) == real.core.read(dmap + pa, 4)
            assert real.core.read(symbol.address, 4) == real.core.read_physical(pa, 4)


def test_user_addresses_and_freed_memory_fault(real: Opened) -> None:
    for address in (0, 0x400000, 0x7FFFFFFFF000, 0xFFFFFFFFFFFFFFF8, 0xFFFFF8FFFFFFF000):
        with pytest.raises(MemoryFault) as fault:
            real.core.read(address, 8)
        assert fault.value.address == address


def test_the_compressed_originals_open_as_they_are(real_dump: RealDump, shared: Path) -> None:
    folder = shared / "real" / real_dump.name
    kernel = ElfFile(folder / "kernel.zst")
    with open_memory(folder / "vmcore.zst", kernel) as core:
        symbol = kernel.symbol("version")
        assert symbol is not None
        assert core.read(symbol.address, 8) == b"FreeBSD "


# LLVM's sparse dumps


@pytest.fixture(scope="module")
def llvm() -> Path:
    folder = os.environ.get("WCHAN_LLVM_VMCORES")
    if not folder:
        pytest.skip("WCHAN_LLVM_VMCORES does not name a folder of LLVM's FreeBSD vmcores")
    return Path(folder)


class _Loader(yaml.SafeLoader):
    """Reads obj2yaml's documents, which carry the tag !ELF."""


def _document(loader: yaml.SafeLoader, node: yaml.MappingNode) -> Dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("!ELF", _document)


def llvm_kernel(folder: Path, arch: str, path: Path) -> ElfFile:
    described = yaml.load((folder / f"kernel-{arch}.yaml").read_text(), _Loader)
    symbols: List[Sym] = []
    for s in described["Symbols"]:
        section = ABS if s.get("Index") == "SHN_ABS" else 1
        symbols.append(Sym(s["Name"], s["Value"], s.get("Size", 0), 1, False, section))
    path.write_bytes(elf(arch, symbols))
    return ElfFile(path)


class LlvmCore:
    """One of the dumps with its kernel, walked by the offsets that the kernel itself gives."""

    def __init__(self, folder: Path, arch: str, name: str, scratch: Path) -> None:
        self.kernel = llvm_kernel(folder, arch, scratch / "kernel")
        dump = scratch / "vmcore"
        dump.write_bytes(bz2.decompress((folder / name).read_bytes()))
        self.core = open_memory(dump, self.kernel)
        self.width = 4 if arch == "i386" else 8

    def address(self, name: str) -> int:
        symbol = self.kernel.symbol(name)
        assert symbol is not None, name
        return symbol.address

    def unsigned(self, address: int, size: int) -> int:
        return int.from_bytes(self.core.read(address, size), "little")

    def value(self, name: str) -> int:
        return self.unsigned(self.address(name), 4)

    def threads(self) -> Iterator[Tuple[int, int, str]]:
        """(tid, address of the pcb, name as LLVM gives it)."""
        width = self.width
        process = self.unsigned(self.address("allproc"), width)
        while process:
            pid = self.unsigned(process + self.value("proc_off_p_pid"), 4)
            comm = text(self.core.read(process + self.value("proc_off_p_comm"), 20))
            thread = self.unsigned(process + self.value("proc_off_p_threads"), width)
            while thread:
                tid = self.unsigned(thread + self.value("thread_off_td_tid"), 4)
                name = text(self.core.read(thread + self.value("thread_off_td_name"), 20))
                cpu = self.unsigned(thread + self.value("thread_off_td_oncpu"), 4)
                label = f"(pid {pid}) {comm}" + (f"/{name}" if name != comm else "")
                pcb = self.unsigned(thread + self.value("thread_off_td_pcb"), width)
                if tid == self.value("dumptid"):
                    pcb, label = self.address("dumppcb"), label + " (crashed)"
                elif cpu not in (0xFFFFFFFF, 0xFF):
                    pcb = self.address("stoppcbs") + self.value("pcb_size") * cpu
                    label += f" (on CPU {cpu})"
                yield tid, pcb, label
                thread = self.unsigned(thread + self.value("thread_off_td_plist"), width)
            process = self.unsigned(process + self.value("proc_off_p_list"), width)

    def registers(self, pcb: int) -> Dict[str, int]:
        """As struct pcb of 13-CURRENT, which made these dumps, has them."""
        if self.width == 4:
            return {
                name: self.unsigned(pcb + 4 * n, 4)
                for n, name in enumerate(("edi", "esi", "ebp", "esp"))
            }
        if self.core.arch == "arm64":
            made = {f"x{n}": self.unsigned(pcb + 8 * n, 8) for n in (8, 19, 20, 21, 29)}
            return {**made, "lr": self.unsigned(pcb + 240, 8), "sp": self.unsigned(pcb + 256, 8)}
        names = ("r15", "r14", "r13", "r12", "rbp", "rsp", "rbx", "rip")
        return {name: self.unsigned(pcb + 8 * n, 8) for n, name in enumerate(names)}


CORES: Dict[str, Tuple[str, str, int, int, Dict[int, Tuple[str, Dict[str, int]]]]] = {
    "amd64-full": (
        "amd64", "full ELF dump", 13, 100,
        {
            0: ("(pid 806) sysctl (crashed)",
                {"rbp": 0xFFFFFE0085CB2760, "rsp": 0xFFFFFE0085CB2748, "rip": 0xFFFFFFFF80C09ADE}),
            1: ("(pid 11) idle/idle: cpu0 (on CPU 0)",
                {"rbx": 0xFFFFFFFF81D43950, "rbp": 0xFFFFFFFF81D43820, "rip": 0xFFFFFFFF81057988}),
            10: ("(pid 11) idle/idle: cpu9",
                 {"rbp": 0xFFFFFE00007A4AD0, "r15": 0xFFFFFE0045A6C300, "rip": 0xFFFFFFFF80C3C8C8}),
        },
    ),
    "amd64-minidump": (
        "amd64", "minidump v3", 16, 100,
        {
            0: ("(pid 800) sysctl (crashed)",
                {"rbp": 0xFFFFFE00798C4760, "r12": 0xFFFFFE0045B11C00, "rip": 0xFFFFFFFF80C09ADE}),
            1: ("(pid 28) pagedaemon/dom0 (on CPU 4)",
                {"rbx": 0xFFFFFE00008E2F30, "rsp": 0xFFFFFE00008E2DE8, "rip": 0xFFFFFFFF81057988}),
            2: ("(pid 28) pagedaemon/laundry: dom0",
                {"rbp": 0xFFFFFE00527DD890, "r14": 0xFFFFFE00008D70C0, "rip": 0xFFFFFFFF80C3C8C8}),
        },
    ),
    "arm64-minidump": (
        "arm64", "minidump v2", 10, 1000,
        {
            0: ("(pid 939) sysctl (crashed)",
                {"x8": 0xFFFFA00001548700, "x29": 0xFFFF0000D58F23B0, "lr": 0xFFFF0000004B6E78}),
            1: ("(pid 21) syncer (on CPU 6)",
                {"x20": 0xFFFF0000853A3670, "sp": 0xFFFF0000853A35C0, "lr": 0xFFFF000000811370}),
            4: ("(pid 11) idle/idle: cpu2",
                {"x19": 0xFFFFA0000032E580, "sp": 0xFFFF000082783570, "lr": 0xFFFF0000004EE99C}),
        },
    ),
    "i386-minidump": (
        "i386", "minidump v2", 13, 100,
        {
            0: ("(pid 806) sysctl (crashed)",
                {"ebp": 0x151968E4, "esp": 0x151968D8, "esi": 0x0C77AA80, "edi": 0x03F0DC80}),
            1: ("(pid 11) idle/idle: cpu0 (on CPU 0)",
                {"ebp": 0x03D979BC, "esp": 0x03D979A0, "esi": 0x000007F7, "edi": 0}),
            12: ("(pid 11) idle/idle: cpu11",
                 {"ebp": 0x03DC4AF0, "esp": 0x03DC4AA4, "esi": 0x03F97E00, "edi": 0x000003E8}),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CORES))
def test_threads_names_and_registers_are_those_that_lldb_expects(
    llvm: Path, tmp_path: Path, name: str
) -> None:
    """lldb/test/.../FreeBSDKernel/TestFreeBSDKernelVMCore.py of LLVM 19."""
    arch, form, count, hz, threads = CORES[name]
    made = LlvmCore(llvm, arch, f"vmcore-{name}.bz2", tmp_path)
    assert (made.core.arch, made.core.format) == (arch, form)
    assert made.value("hz") == hz
    listed = list(made.threads())
    assert len(listed) == count
    for number, (label, registers) in threads.items():
        _, pcb, got = listed[number]
        assert got == label
        assert made.registers(pcb).items() >= registers.items()


# The program counters of frame-pointer walks, by the same test.
CHAINS: List[Tuple[str, int, str, List[int]]] = [
    ("amd64-full", 0, "rbp",
     [0xFFFFFFFF80C09916, 0xFFFFFFFF80C09D90, 0xFFFFFFFF80C09B93, 0xFFFFFFFF80C57D91,
      0xFFFFFFFF80C19E71, 0xFFFFFFFF80C192BC, 0xFFFFFFFF80C19933, 0xFFFFFFFF80C1977F]),
    ("amd64-minidump", 2, "rbp",
     [0xFFFFFFFF80C16521, 0xFFFFFFFF80C15C3B, 0xFFFFFFFF80F48DFC, 0xFFFFFFFF80BC7C5E]),
    ("i386-minidump", 0, "ebp",
     [0x01002410, 0x010027D5, 0x01002644, 0x01049A2F, 0x01011077, 0x01010780, 0x01010C7A]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "number", "register", "expected"), CHAINS)
def test_stacks_are_read_through_the_same_page_tables(
    llvm: Path, tmp_path: Path, name: str, number: int, register: str, expected: List[int]
) -> None:
    made = LlvmCore(llvm, CORES[name][0], f"vmcore-{name}.bz2", tmp_path)
    frame = made.registers(list(made.threads())[number][1])[register]
    read: Callable[[int], int] = lambda at: made.unsigned(at, made.width)  # noqa: E731
    got = []
    for _ in expected:
        got.append(read(frame + made.width))
        frame = read(frame)
    assert got == expected
