"""Memory images that no FreeBSD wrote: QEMU's of an arm64 or riscv64 guest, Xen's, raw ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import pytest
from build_vmcore import ABS, NOTYPE, Sec, Sym, elf, full_dump, page_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_vmcore_full import Amd64

from plugin.errors import DumpError, KernelMismatch, MemoryFault
from plugin.vmcore import ElfFile, KernelMemory, open_memory

PAGE = 4096


class Guest:
    """A guest of QEMU's: RAM from ``ram`` on, its kernel ``load`` bytes into it.

    ``pages``: {page number above the kernel's base: seed}; the holes are not mapped.
    """

    #: root symbol, kernel's base, level shifts, first level at which an entry may be a page
    KINDS = {
        "arm64": ("pagetable_l0_ttbr1", 0xFFFF000000000000, (39, 30, 21, 12)),
        "riscv64": ("pagetable_l1", 0xFFFFFFC000000000, (30, 21, 12)),
    }

    def __init__(self, machine: str, ram: int, load: int, pages: Sequence[int]) -> None:
        self.machine = machine
        self.root_name, self.base, self.shifts = self.KINDS[machine]
        self.memory: Dict[int, bytearray] = {}
        self.spare = ram + (64 << 20)
        # The kernel: its first 2 MB are one block, the root table lies in them.
        self.start = ram + load
        root = self.start + 0x5000
        self.memory[root] = bytearray(PAGE)
        self.map(root, self.base, self.start, len(self.shifts) - 2)
        self.truth = {}
        for number in pages:
            va = self.base + (1 << 30) + number * PAGE
            frame = self.new()
            self.memory[frame][:] = page_of(number)
            self.map(root, va, frame, len(self.shifts) - 1)
            self.truth[va] = page_of(number)
        self.root_va = self.base + 0x5000

    def new(self) -> int:
        pa, self.spare = self.spare, self.spare + PAGE
        self.memory[pa] = bytearray(PAGE)
        return pa

    def entry(self, pa: int, kind: str, last: bool) -> int:
        if self.machine == "arm64":
            low = 3 if kind == "table" or last else 1
            return pa | low | (0 if kind == "table" else 0x0060000000000700)
        return pa >> 12 << 10 | (1 if kind == "table" else 0xCF)

    def map(self, root: int, va: int, pa: int, leaf: int) -> None:
        table = root
        for level, shift in enumerate(self.shifts):
            at = (va >> shift & 511) * 8
            if level == leaf:
                value = self.entry(pa, "page", leaf == len(self.shifts) - 1)
                self.memory[table][at : at + 8] = struct.pack("<Q", value)
                return
            known = struct.unpack_from("<Q", self.memory[table], at)[0]
            if not known:
                following = self.new()
                value = self.entry(following, "table", False)
                self.memory[table][at : at + 8] = struct.pack("<Q", value)
            elif self.machine == "arm64":
                following = known & 0x0000FFFFFFFFF000
            else:
                following = known >> 10 << 12
            table = following

    def symbols(self) -> List[Sym]:
        return [
            Sym("kernbase", self.base, 0, NOTYPE, False, ABS),
            Sym(self.root_name, self.root_va, 0, NOTYPE),
        ]

    def open(self, folder: Path) -> KernelMemory:
        kernel, dump = folder / "kernel", folder / "guest.elf"
        kernel.write_bytes(elf(self.machine, self.symbols()))
        memory = {pa: bytes(page) for pa, page in self.memory.items()}
        dump.write_bytes(full_dump(self.machine, memory, notes=(b"CORE", b"QEMU")))
        return open_memory(dump, ElfFile(kernel))


@pytest.mark.parametrize("machine", Guest.KINDS)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ram=st.sampled_from([0, 0x40000000, 0x80000000]),
    load=st.integers(0, 15).map(lambda n: n << 21),
    pages=st.lists(st.integers(0, 2000), min_size=1, max_size=30, unique=True),
)
def test_a_guests_memory_is_read_wherever_its_kernel_was_loaded(
    tmp_path: Path, machine: str, ram: int, load: int, pages: List[int]
) -> None:
    guest = Guest(machine, ram, load, pages)
    with guest.open(tmp_path) as core:
        assert (core.arch, core.format) == (machine, "full ELF dump")
        for va, data in guest.truth.items():
            assert core.read(va, PAGE) == data
        holes = {n + 1 for n in pages} - set(pages)
        for number in holes:
            va = guest.base + (1 << 30) + number * PAGE
            with pytest.raises(MemoryFault) as fault:
                core.read(va, 8)
            assert fault.value.address == va
        span = (max(pages) + 1) * PAGE
        covered = sum(length for *_, length in core.runs(guest.base + (1 << 30), span))
        assert covered == len(pages) * PAGE
        assert not core.present(0x1000)


@pytest.mark.parametrize("machine", Guest.KINDS)
def test_another_kernels_symbols_are_found_out(tmp_path: Path, machine: str) -> None:
    guest = Guest(machine, 0x40000000, 0, [1])
    guest.root_va += 0x3000
    with pytest.raises(KernelMismatch, match="it is not the kernel that ran there"):
        guest.open(tmp_path)


def xen_core(memory: Dict[int, bytes], *, pfns: bool = True) -> bytes:
    """What xl dump-core writes of a guest: its pages, and their numbers, in sections."""
    order = sorted(memory)
    numbers = struct.pack(f"<{len(order)}Q", *(pa // PAGE for pa in order))
    sections = [Sec(".xen_pages", 1, 0, data=b"".join(memory[pa] for pa in order))]
    sections.append(Sec(".xen_pfn" if pfns else ".xen_p2m", 1, 0, data=numbers))
    made: bytes = elf("amd64", etype=4, sections=sections)
    return made


def test_a_xen_guests_core_is_read(tmp_path: Path) -> None:
    made = Amd64()
    kernel, dump = tmp_path / "kernel", tmp_path / "guest.core"
    kernel.write_bytes(elf("amd64", made.symbols()))
    dump.write_bytes(xen_core(made.memory.bytes()))
    with open_memory(dump, ElfFile(kernel)) as core:
        assert core.format == "Xen memory image"
        for va, data in made.truth.items():
            assert core.read(va, PAGE) == data


def test_a_paravirtual_xen_guest_is_named(tmp_path: Path) -> None:
    made = Amd64()
    kernel, dump = tmp_path / "kernel", tmp_path / "guest.core"
    kernel.write_bytes(elf("amd64", made.symbols()))
    dump.write_bytes(xen_core(made.memory.bytes(), pfns=False))
    with pytest.raises(DumpError, match="paravirtual Xen guest"):
        open_memory(dump, ElfFile(kernel))


def raw(folder: Path) -> Tuple[Amd64, Path, Path]:
    made = Amd64()
    kernel, image = folder / "kernel", folder / "memory.raw"
    kernel.write_bytes(elf("amd64", made.symbols()))
    with image.open("wb") as file:
        for pa, page in made.memory.bytes().items():
            file.seek(pa)
            file.write(page)
    return made, kernel, image


def test_raw_memory_is_read_with_the_kernel_that_ran_there(tmp_path: Path) -> None:
    made, kernel, image = raw(tmp_path)
    with open_memory(image, ElfFile(kernel)) as core:
        assert core.format == "raw memory image"
        for va, data in made.truth.items():
            assert core.read(va, PAGE) == data


def test_raw_memory_without_its_kernel_is_no_dump(tmp_path: Path) -> None:
    _, kernel, image = raw(tmp_path)
    with pytest.raises(DumpError, match="begins with zeros"):
        open_memory(image)
    for symbols in (Amd64().symbols()[:1], [Sym("KPML4phys", 0xFFFFFFFF80203008)]):
        kernel.write_bytes(elf("amd64", symbols))
        with pytest.raises(DumpError, match="begins with zeros"):
            open_memory(image, ElfFile(kernel))
