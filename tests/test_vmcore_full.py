"""Full dumps: the page tables are found through the kernel's symbols, wherever the kernel lies."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

import pytest
from build_vmcore import ABS, LA48, LA57, NOTYPE, Memory, Sym, dump_device, elf, full_dump, page_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.errors import DumpError, KernelMismatch, MemoryFault
from plugin.vmcore import ElfFile, KernelMemory, open_memory

KERNBASE = 0xFFFFFFFF80000000
LOAD = 0x200000
MB2, MB4, GB = 1 << 21, 1 << 22, 1 << 30


def opened(
    tmp_path: Path,
    machine: str,
    symbols: List[Sym],
    memory: Dict[int, bytes],
    *notes: bytes,
) -> KernelMemory:
    kernel, dump = tmp_path / "kernel", tmp_path / "vmcore.0"
    kernel.write_bytes(elf(machine, symbols))
    dump.write_bytes(full_dump(machine, memory, notes=notes))
    return open_memory(dump, ElfFile(kernel))


class Amd64:
    """A full dump of an amd64 machine; ``kernphys`` is where its kernel was loaded."""

    def __init__(self, *, la57: Optional[int] = None, kernphys: int = LOAD, seed: int = 1) -> None:
        rng = random.Random(seed)
        self.memory = memory = Memory(spare=0x40000000)
        self.shifts = LA57 if la57 else LA48
        root = memory.new()
        at = KERNBASE + LOAD + 0x1000
        names = ["KPML4phys", "KPML5phys", "la57", "kernphys", "allproc"]
        self.at = {name: at + 8 * n for n, name in enumerate(names)}
        for number in range(4):
            memory.map(
                root,
                KERNBASE + LOAD + number * MB2,
                kernphys + number * MB2,
                self.shifts,
                large=21,
            )
        pa = kernphys + 0x1000
        values = [root, root, la57 or 0, kernphys, 0x1234]
        if la57:
            # What KPML4phys holds then is no table to start from.
            values[0] = memory.new()
        memory.put(pa, struct.pack("<5Q", *values))
        self.truth: Dict[int, bytes] = {}
        kva = 0xFFFFFE0000000000
        for number in rng.sample(range(1500), 60):
            frame = memory.new()
            memory.put(frame, page_of(frame))
            memory.map(root, kva + number * 4096, frame, self.shifts)
            self.truth[kva + number * 4096] = page_of(frame)
        # The direct map, in pages of 1 GB.
        self.dmap = 0xFF11000000000000 if la57 else 0xFFFFF80000000000
        for number in range(3):
            memory.map(root, self.dmap + number * GB, number * GB, self.shifts, large=30)

    def symbols(self, *without: str, kernphys: Optional[int] = None) -> List[Sym]:
        made = [Sym("kernbase", KERNBASE, 0, NOTYPE, False, ABS)]
        made += [Sym(n, a, 4 if n == "la57" else 8) for n, a in self.at.items()]
        made = [s for s in made if s.name not in without]
        if kernphys is not None:
            made = [s for s in made if s.name != "kernphys"]
            made.append(Sym("kernphys", kernphys, 0, NOTYPE, False, ABS))
        return made

    def check(self, core: KernelMemory) -> None:
        assert (core.arch, core.format, core.truncated) == ("amd64", "full ELF dump", False)
        for va, data in self.truth.items():
            assert core.read(va, 4096) == data
            assert core.read(va + 100, 300) == data[100:400]
        assert core.read(self.at["allproc"], 8) == struct.pack("<Q", 0x1234)
        for pa, data in self.memory.bytes().items():
            assert core.read(self.dmap + pa, 4096) == data
        mapped = next(iter(self.truth))
        bits = 57 if len(self.shifts) == 4 else 48
        outside = (mapped & (1 << bits) - 1, mapped ^ 1 << 60, 1 << 48, 1 << 64 | mapped)
        for hole in (0xFFFFFE0000000000 + 1501 * 4096, self.dmap + 5 * GB, 0x1000, *outside):
            assert not core.present(hole)
            with pytest.raises(MemoryFault) as fault:
                core.read(hole, 8)
            assert fault.value.address == hole
        covered = sum(length for *_, length in core.runs(0xFFFFFE0000000000, 1500 * 4096))
        assert covered == len(self.truth) * 4096


def test_amd64_four_levels(tmp_path: Path) -> None:
    """12.x: kernphys is an absolute symbol, la57 is not there yet."""
    made = Amd64()
    core = opened(
        tmp_path, "amd64", made.symbols("la57", "KPML5phys", kernphys=LOAD), made.memory.bytes()
    )
    made.check(core)


def test_amd64_before_kernphys(tmp_path: Path) -> None:
    made = Amd64()
    made.check(
        opened(
            tmp_path,
            "amd64",
            made.symbols("la57", "KPML5phys", "kernphys"),
            made.memory.bytes(),
        )
    )


def test_amd64_with_la57_off(tmp_path: Path) -> None:
    made = Amd64(la57=0)
    made.check(opened(tmp_path, "amd64", made.symbols(), made.memory.bytes()))


def test_amd64_five_levels(tmp_path: Path) -> None:
    made = Amd64(la57=1)
    core = opened(tmp_path, "amd64", made.symbols(), made.memory.bytes())
    assert core.read(made.at["la57"], 4) == b"\1\0\0\0"
    made.check(core)
    assert not core.present(0xFFFFF80000000000)


@pytest.mark.parametrize("kernphys", [0x400000, 0x7A00000])
def test_amd64_kernel_that_the_loader_put_elsewhere(tmp_path: Path, kernphys: int) -> None:
    """14.0 on: kernphys is a variable, and to be found in memory by its own value."""
    made = Amd64(kernphys=kernphys)
    made.check(opened(tmp_path, "amd64", made.symbols(), made.memory.bytes()))


def test_the_memory_of_a_guest_that_qemu_wrote_is_read_alike(tmp_path: Path) -> None:
    made = Amd64()
    made.check(opened(tmp_path, "amd64", made.symbols(), made.memory.bytes(), b"CORE", b"QEMU"))


def test_a_full_dump_still_on_its_device(tmp_path: Path) -> None:
    made = Amd64()
    kernel, device = tmp_path / "kernel", tmp_path / "ada0p3"
    kernel.write_bytes(elf("amd64", made.symbols()))
    device.write_bytes(dump_device(full_dump("amd64", made.memory.bytes())))
    with open_memory(device, ElfFile(kernel)) as core:
        assert core.format == "full ELF dump on a dump device"
        for va, data in made.truth.items():
            assert core.read(va, 4096) == data


class I386:
    """A full dump of an i386 machine, with or without PAE."""

    def __init__(self, *, pae: bool, kernbase: int = 0xC0000000, shift: int = 0xC0000000) -> None:
        self.memory = memory = Memory(spare=0x2000000)
        self.kernbase = kernbase
        pointers = 0
        if pae:
            # The four pointers need not start a page.
            pointers = memory.new() + 0x60
        root = memory.new()
        start = 0x800000 + shift
        self.at = {"IdlePTD": start + 0x100, "IdlePDPT": start + 0x104, "allproc": start + 0x108}
        self.truth: Dict[int, bytes] = {}
        places = [(start, 0x800000)]
        for number in random.Random(3).sample(range(1, 900), 70):
            frame = memory.new()
            memory.put(frame, page_of(frame))
            places.append((start + 0x10000000 + number * 4096, frame))
            self.truth[places[-1][0]] = page_of(frame)
        large = start + 0x20000000 & ~(MB4 - 1)
        self.large = large
        for offset in range(0, MB4, MB2 if pae else MB4):
            self.map(pointers, root, large + offset, 0x8000000 + offset, pae, True)
        memory.put(0x8000000 + MB2 + 0x3000, b"in a large page")
        for va, pa in places:
            self.map(pointers, root, va, pa, pae, False)
        memory.put(0x800100, struct.pack("<3I", root, pointers, 0xABCD))

    def map(self, pointers: int, root: int, va: int, pa: int, pae: bool, large: bool) -> None:
        memory = self.memory
        if not pae:
            memory.map(root, va, pa, (22,), 4, 22 if large else 0)
            return
        page, inside = pointers & ~0xFFF, pointers & 0xFFF
        index = inside // 8 + (va >> 30)
        if not memory.entry(page, index, 8):
            memory.set_entry(page, index, 8, memory.new() | 1)
        directory = memory.entry(page, index, 8) & ~0xFFF
        memory.map(directory, va & (GB - 1), pa, (21,), 8, 21 if large else 0)

    def symbols(self, *without: str) -> List[Sym]:
        made = [Sym("kernbase", self.kernbase, 0, NOTYPE, False, ABS)]
        made += [Sym(name, at, 4) for name, at in self.at.items()]
        return [s for s in made if s.name not in without]

    def check(self, core: KernelMemory) -> None:
        assert (core.arch, core.format) == ("i386", "full ELF dump")
        for va, data in self.truth.items():
            assert core.read(va, 4096) == data
        assert core.read(self.at["allproc"], 4) == struct.pack("<I", 0xABCD)
        assert core.read(self.large + MB2 + 0x3000, 15) == b"in a large page"
        for hole in (0x10, 0xFFFFFFF0, 1 << 32, next(iter(self.truth)) + (1 << 32)):
            with pytest.raises(MemoryFault) as fault:
                core.read(hole, 4)
            assert fault.value.address == hole


@pytest.mark.parametrize(
    ("pae", "without"),
    [
        (False, ("IdlePDPT",)),
        # 6.x and 7.0-CURRENT of 2005: kernbase was no symbol then.
        (False, ("IdlePDPT", "kernbase")),
        (True, ()),
        (True, ("kernbase",)),
        # 13.0 on: one kernel for both; IdlePDPT is 0 without PAE.
        (False, ()),
    ],
)
def test_i386_up_to_11(tmp_path: Path, pae: bool, without: Tuple[str, ...]) -> None:
    made = I386(pae=pae)
    made.check(opened(tmp_path, "i386", made.symbols(*without), made.memory.bytes()))


@pytest.mark.parametrize("pae", [False, True])
def test_i386_from_12_on_lies_at_its_own_address(tmp_path: Path, pae: bool) -> None:
    """The 4/4 GB split: kernbase is where the kernel is loaded, virtual is physical."""
    made = I386(pae=pae, kernbase=0x800000, shift=0)
    made.check(opened(tmp_path, "i386", made.symbols(), made.memory.bytes()))


def test_without_a_kernel_the_line_says_why_one_is_needed(tmp_path: Path) -> None:
    dump = tmp_path / "vmcore.0"
    dump.write_bytes(full_dump("amd64", Amd64().memory.bytes()))
    with pytest.raises(DumpError, match=f"^{dump} is a full dump.*-k KERNEL"):
        open_memory(dump)


@pytest.mark.parametrize(("machine", "missing"), [("amd64", "KPML4phys"), ("i386", "IdlePTD")])
def test_a_kernel_without_the_symbol_is_named(tmp_path: Path, machine: str, missing: str) -> None:
    made = Amd64() if machine == "amd64" else I386(pae=False)
    with pytest.raises(DumpError, match=f"kernel has no symbol {missing}"):
        opened(tmp_path, machine, made.symbols(missing), made.memory.bytes())


@pytest.mark.parametrize("machine", ["amd64", "i386"])
def test_a_kernel_that_did_not_make_the_dump_is_found_out(tmp_path: Path, machine: str) -> None:
    """Its symbols lie elsewhere: no page table that they lead to maps them."""
    made = Amd64() if machine == "amd64" else I386(pae=False)
    made.at = {name: at + 0x40 for name, at in made.at.items()}
    with pytest.raises(KernelMismatch, match="not the kernel that made this dump"):
        opened(tmp_path, machine, made.symbols(), made.memory.bytes())


def test_a_kernel_of_another_architecture_is_refused(tmp_path: Path) -> None:
    kernel, dump = tmp_path / "kernel", tmp_path / "vmcore.0"
    kernel.write_bytes(elf("i386"))
    dump.write_bytes(full_dump("amd64", Amd64().memory.bytes()))
    with pytest.raises(KernelMismatch, match=r"kernel for i386, but .* dump of amd64"):
        open_memory(dump, ElfFile(kernel))


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (b"CORE", "core of a Linux process"),
        (b"LINUX", "core of a Linux process"),
        (b"FreeBSD", "core of a FreeBSD process"),
        (b"VMCOREINFO", "dump of a Linux kernel"),
    ],
)
def test_cores_of_something_else_are_named(tmp_path: Path, note: bytes, said: str) -> None:
    with pytest.raises(DumpError, match=said):
        opened(tmp_path, "amd64", [], {0x1000: bytes(4096)}, note)


@pytest.mark.parametrize("etype", [1, 2, 3])
def test_a_kernel_given_as_the_dump_is_named(tmp_path: Path, etype: int) -> None:
    path = tmp_path / "vmcore.0"
    path.write_bytes(elf("amd64", etype=etype))
    with pytest.raises(DumpError, match=r"not a dump: give it with -k"):
        open_memory(path)


def test_of_segments_that_begin_or_end_within_a_page_the_whole_pages_count(tmp_path: Path) -> None:
    made = Amd64()
    memory = made.memory.bytes()
    memory[0x90000800] = page_of(1) + page_of(2)
    core = opened(tmp_path, "amd64", made.symbols(), memory)
    assert core.read_physical(0x90001000, 4096) == (page_of(1) + page_of(2))[0x800:0x1800]
    for pa in (0x90000800, 0x90002000):
        with pytest.raises(MemoryFault):
            core.read_physical(pa, 8)
    for va, data in made.truth.items():
        assert core.read(va, 4096) == data


def test_a_truncated_full_dump_gives_what_it_has(tmp_path: Path) -> None:
    made = Amd64()
    memory = made.memory.bytes()
    # Segments at the end that nothing needs.
    for number in range(50):
        memory[0x90000000 + number * 4096] = page_of(number)
    made.memory.pages.clear()
    kernel, dump = tmp_path / "kernel", tmp_path / "vmcore.0"
    kernel.write_bytes(elf("amd64", made.symbols()))
    whole = full_dump("amd64", memory)
    last = whole.index(page_of(49))
    dump.write_bytes(whole[: last - 9 * 4096])
    core = open_memory(dump, ElfFile(kernel))
    assert core.truncated
    for va, data in made.truth.items():
        assert core.read(va, 4096) == data
    for number in range(50):
        if number < 40:
            assert core.read_physical(0x90000000 + number * 4096, 4096) == page_of(number)
        else:
            with pytest.raises(MemoryFault):
                core.read_physical(0x90000000 + number * 4096, 4096)


def test_a_full_dump_cut_before_its_page_tables_says_that_it_is_truncated(tmp_path: Path) -> None:
    made = Amd64()
    kernel, dump = tmp_path / "kernel", tmp_path / "vmcore.0"
    kernel.write_bytes(elf("amd64", made.symbols()))
    dump.write_bytes(full_dump("amd64", made.memory.bytes()))
    os.truncate(dump, 8192)
    with pytest.raises(DumpError, match="truncated"):
        open_memory(dump, ElfFile(kernel))


def built(made: Union[Amd64, I386], machine: str) -> Tuple[Union[Amd64, I386], bytes, bytes]:
    return made, elf(machine, made.symbols()), full_dump(machine, made.memory.bytes())


BUILT = {True: built(Amd64(), "amd64"), False: built(I386(pae=True), "i386")}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 1 << 22), st.integers(0, 255)), max_size=12),
    st.integers(0, 1 << 64),
)
def test_a_damaged_full_dump_raises_nothing_but_a_clear_line(
    tmp_path: Path, amd64: bool, damage: List[Tuple[int, int]], address: int
) -> None:
    made, kernel_bytes, dump_bytes = BUILT[amd64]
    kernel, dump = tmp_path / "kernel", tmp_path / "vmcore.0"
    kernel.write_bytes(kernel_bytes)
    raw = bytearray(dump_bytes)
    for number, (at, value) in enumerate(damage):
        # Half of the damage in the headers, where it hurts.
        raw[at % (400 if number % 2 else len(raw))] = value
    dump.write_bytes(raw)
    try:
        core = open_memory(dump, ElfFile(kernel))
    except (DumpError, KernelMismatch) as error:
        assert str(error) and "\n" not in str(error)
        return
    with core:
        for at in (address, *made.truth):
            try:
                assert len(core.read(at, 5000)) == 5000
            except MemoryFault as fault:
                assert at <= fault.address < at + 5000
