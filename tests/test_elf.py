"""Reading a kernel's ELF file: symbols, sections, and files that are damaged or something else."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any, List

import pytest
from build_vmcore import ABS, FILE, FUNC, NOTYPE, SECTION, UNDEF, Sec, Sym, elf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.errors import DumpError
from plugin.vmcore.elf import ElfFile

KERNEL = (
    Sym("kern_main.c", 0, 0, FILE, True, ABS),
    Sym(".bss", 0x1000, 0, SECTION, True),
    Sym("pace", 0x1010, 4, local=True),
    Sym("allproc", 0x1020, 8),
    Sym("pace", 0x1030, 4, local=True),
    Sym("kernbase", 0xC0000000, 0, NOTYPE, False, ABS),
    Sym("elsewhere", 0, 0, NOTYPE, False, UNDEF),
    Sym("biodone", 0x2000, 0x40, FUNC),
    Sym("label", 0x2010, 0, NOTYPE, True),
    Sym("asm_entry", 0x3000, 0, FUNC),
    Sym("g_down", 0x3100, 0x10, FUNC),
)


@pytest.fixture(params=["amd64", "i386"])
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> ElfFile:
    path = tmp_path / "kernel"
    path.write_bytes(elf(request.param, KERNEL))
    return ElfFile(path)


def test_a_kernel_tells_its_architecture(tmp_path: Path) -> None:
    for arch in ("amd64", "i386", "arm64", "riscv64"):
        path = tmp_path / arch
        path.write_bytes(elf(arch, KERNEL))
        assert ElfFile(path).arch == arch


def test_a_global_symbol_is_found_with_its_size_and_kind(kernel: ElfFile) -> None:
    assert kernel.symbols("allproc") == [("allproc", 0x1020, 8, "object", False)]
    assert kernel.symbols("biodone") == [("biodone", 0x2000, 0x40, "function", False)]
    assert kernel.symbols("kernbase") == [("kernbase", 0xC0000000, 0, "absolute", False)]


def test_static_symbols_and_duplicates_are_all_found(kernel: ElfFile) -> None:
    assert [(s.address, s.local) for s in kernel.symbols("pace")] == [
        (0x1010, True),
        (0x1030, True),
    ]


def test_what_is_undefined_or_only_names_a_file_or_section_is_no_symbol(kernel: ElfFile) -> None:
    for name in ("elsewhere", "kern_main.c", ".bss", "nosuch", "", "all", "proc", "allproc\0"):
        assert kernel.symbols(name) == []
    assert kernel.symbol("nosuch") is None


def test_of_several_symbols_the_global_one_is_preferred(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf(symbols=[Sym("hz", 0x1000, 4, local=True), Sym("hz", 0x1008, 4)]))
    symbol = ElfFile(path).symbol("hz")
    assert symbol is not None and symbol.address == 0x1008


def test_names_that_share_the_tail_of_another_are_found(tmp_path: Path) -> None:
    """A linker may keep "hz" only as the end of "stathz"."""
    path = tmp_path / "kernel"
    symbols = [Sym("stathz", 0x1000), Sym("hz", 0x1008)]
    path.write_bytes(elf(symbols=symbols, strings=b"\0stathz\0profhz\0"))
    kernel = ElfFile(path)
    assert [s.address for s in kernel.symbols("hz")] == [0x1008]
    assert [s.address for s in kernel.symbols("stathz")] == [0x1000]
    assert kernel.symbols("profhz") == kernel.symbols("z") == []


def test_a_name_is_not_mistaken_for_the_bytes_of_two_others(tmp_path: Path) -> None:
    """The names' offsets 0x100 and 0x200, one after the other, contain the bytes of 1."""
    path = tmp_path / "kernel"
    strings = (b"\0hz\0".ljust(0x100, b"\0") + b"first\0").ljust(0x200, b"\0") + b"second\0"
    symbols = [Sym("first", 0x1000), Sym("second", 0x1008), Sym("hz", 0x1010)]
    path.write_bytes(elf(symbols=symbols, strings=strings))
    assert [s.name for s in ElfFile(path).symbols("hz")] == ["hz"]


def test_one_name_kept_twice_in_the_string_table_is_found_both_times(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    made = bytearray(elf(symbols=[Sym("hz", 0x1000), Sym("hz", 0x1008)], strings=b"\0hz\0x\0hz\0"))
    table = made.index(struct.pack("<IBBHQQ", 1, 0x11, 0, 1, 0x1008, 8))
    made[table : table + 4] = struct.pack("<I", 6)
    path.write_bytes(made)
    assert [s.address for s in ElfFile(path).symbols("hz")] == [0x1000, 0x1008]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (0x2000, ("biodone", 0)),
        (0x200F, ("biodone", 0xF)),
        # As DDB does, the nearest label names what follows it ...
        (0x203F, ("label", 0x2F)),
        # ... but past a function's end there is nothing.
        (0x3110, None),
        (0x3200, None),
        (0x1010, ("pace", 0)),
        (0x1027, ("allproc", 7)),
        (0x1028, None),
        # Assembler leaves no sizes: such a function reaches to the next symbol.
        (0x3080, ("asm_entry", 0x80)),
        (0x310F, ("g_down", 0xF)),
        (0x10, None),
        (0xC0000000, None),
        (1 << 63, None),
    ],
)
def test_symbolize(kernel: ElfFile, address: int, expected: object) -> None:
    assert kernel.symbolize(address) == expected


def test_symbolize_prefers_functions_and_objects_to_labels_and_globals_to_statics(
    tmp_path: Path,
) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(
        elf(
            symbols=[
                Sym("begin", 0x1000, 0, NOTYPE),
                Sym("quiet", 0x1000, 16, FUNC, True),
                Sym("loud", 0x1000, 16, FUNC),
                Sym("louder", 0x1000, 16, FUNC),
            ]
        )
    )
    assert ElfFile(path).symbolize(0x1004) == ("loud", 4)
    path.write_bytes(
        elf(symbols=[Sym("begin", 0x1000, 16, NOTYPE), Sym("quiet", 0x1000, 16, FUNC, True)])
    )
    assert ElfFile(path).symbolize(0x1004) == ("quiet", 4)


def test_all_symbols_lists_each_defined_one(kernel: ElfFile) -> None:
    names = [s.name for s in kernel.all_symbols()]
    assert names == [s.name for s in KERNEL if s.type not in (FILE, SECTION) and s.section]


def test_dynsym_serves_where_symtab_is_stripped(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf(symbols=KERNEL, dynamic=True))
    assert ElfFile(path).symbol("allproc")
    path.write_bytes(elf(symbols=KERNEL, hold_symbols=False))
    stripped = ElfFile(path)
    assert not stripped.has_symbols
    assert stripped.symbols("allproc") == []
    assert stripped.symbolize(0x2000) is None


def test_sections_without_bytes_are_none_and_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    packed = zlib.compress(b"debug" * 100)
    squeezed = struct.pack("<I4xQQ", 1, 500, 1) + packed
    path.write_bytes(
        elf(
            symbols=KERNEL,
            sections=[
                Sec(".SUNW_ctf", data=b"ctf"),
                Sec(".debug_info", flags=0x800, data=squeezed),
                Sec(".debug_str", flags=0x800, data=squeezed[:30]),
            ],
        )
    )
    kernel = ElfFile(path)
    assert kernel.section(".bss") is None
    assert kernel.section(".nosuch") is None
    assert kernel.section(".SUNW_ctf") == b"ctf"
    assert kernel.section(".debug_info") == b"debug" * 100
    assert kernel.section(".debug_str") is None
    assert [s.name for s in kernel.sections][:3] == ["", ".bss", ".SUNW_ctf"]


def test_build_id_and_debug_link(tmp_path: Path) -> None:
    note = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes(range(20))
    link = b"kernel.debug\0\0\0\0" + struct.pack("<I", 0x12345678)
    path = tmp_path / "kernel"
    sections = [Sec(".note.gnu.build-id", 7, data=note), Sec(".gnu_debuglink", data=link)]
    path.write_bytes(elf(sections=sections))
    kernel = ElfFile(path)
    assert kernel.build_id == bytes(range(20)).hex()
    assert kernel.debuglink == ("kernel.debug", 0x12345678)
    path.write_bytes(elf(segments=[(4, 0, 0, note)]))
    assert ElfFile(path).build_id == bytes(range(20)).hex()
    path.write_bytes(elf(sections=[Sec(".gnu_debuglink", data=b"x")]))
    assert ElfFile(path).build_id is None
    assert ElfFile(path).debuglink is None


def test_initialised_data_is_read_by_address(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf(segments=[(1, 0x5000, 0x5000, b"FreeBSD 14.2")]))
    kernel = ElfFile(path)
    assert kernel.read(0x5008, 4) == b"14.2"
    assert kernel.read(0x5008, 5) is None
    assert kernel.read(0x4FFF, 1) is None


def test_a_compressed_kernel_is_read_like_a_plain_one(tmp_path: Path) -> None:
    path = tmp_path / "kernel.gz"
    path.write_bytes(gzip.compress(elf(symbols=KERNEL)))
    kernel = ElfFile(path, spool_dir=tmp_path / "cache")
    assert kernel.path == str(path)
    assert kernel.symbol("allproc")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"minidump FreeBSD/amd64", "the dump"),
        (b"#!/bin/sh\n", "no ELF file"),
        (b"\x7fELF", "damaged"),
        (b"\x7fELF\2\2\1" + bytes(11) + b"\0\x15" + bytes(64), "big-endian ELF file (powerpc64)"),
        (b"\x7fELF\7\1\1" + bytes(80), "damaged"),
        (elf(symbols=KERNEL)[:40], "truncated"),
    ],
)
def test_what_is_no_kernel_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    with pytest.raises(DumpError, match=f"^{path}.*{said.replace('(', '.').replace(')', '.')}"):
        ElfFile(path)


def test_missing_and_unreadable_kernels_are_named(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="no such file"):
        ElfFile(tmp_path / "kernel")
    with pytest.raises(DumpError, match="is a directory"):
        ElfFile(tmp_path)


def test_a_kernel_cut_short_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    """Section headers lie last: they go first, and the symbols with them."""
    whole = elf(symbols=KERNEL, segments=[(1, 0x5000, 0x5000, b"FreeBSD 14.2")])
    path = tmp_path / "kernel"
    path.write_bytes(whole[:-100])
    kernel = ElfFile(path)
    assert kernel.arch == "amd64"
    assert kernel.read(0x5000, 7) == b"FreeBSD"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["amd64", "i386"]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=12),
    st.integers(0, 2000),
)
def test_a_damaged_kernel_raises_nothing_but_a_clear_line(
    tmp_path: Path, machine: str, damage: List[Any], cut: int
) -> None:
    made = bytearray(elf(machine, KERNEL, sections=[Sec(".gnu_debuglink", data=b"k\0\0\0abcd")]))
    for at, value in damage:
        made[at % len(made)] = value
    path = tmp_path / "kernel"
    path.write_bytes(made[: len(made) - cut] if cut < len(made) else made)
    try:
        kernel = ElfFile(path)
        kernel.symbols("allproc")
        kernel.symbolize(0x2000)
        list(kernel.all_symbols())
        for section in kernel.sections:
            kernel.section(section.name)
        kernel.read(0x1000, 8)
        assert kernel.build_id is None or isinstance(kernel.build_id, str)
        assert kernel.debuglink is None or len(kernel.debuglink) == 2
    except DumpError as error:
        assert str(error) and "\n" not in str(error)


def test_a_symbol_without_a_size_ends_with_its_section(tmp_path: Path) -> None:
    """Else the last one would name every function of every module loaded above the kernel."""
    path = tmp_path / "kernel"
    text = Sec(".text", flags=6, addr=0x1000, data=bytes(0x100))
    path.write_bytes(
        elf(symbols=[Sym("last_function", 0x10F0, 0, FUNC, section=2)], sections=[text])
    )
    kernel = ElfFile(path)
    assert kernel.symbolize(0x10FF) == ("last_function", 15)
    assert kernel.symbolize(0x1100) is None
    assert kernel.symbolize(0x1000000) is None


def test_a_symbol_at_the_end_of_its_section_names_nothing(tmp_path: Path) -> None:
    """``_end`` stands where .bss ends, and in a real kernel at the end of the last section."""
    path = tmp_path / "kernel"
    path.write_bytes(
        elf(
            symbols=[
                Sym("last_variable", 0x4FF0, 8),
                Sym("tail", 0x4FFC, 0, NOTYPE),
                Sym("_end", 0x5000, 0, NOTYPE),
            ]
        )
    )
    kernel = ElfFile(path)
    assert kernel.symbolize(0x4FF4) == ("last_variable", 4)
    assert kernel.symbolize(0x4FFF) == ("tail", 3)
    for beyond in (0x5000, 0x5001, 0x1000000):
        assert kernel.symbolize(beyond) is None
    assert [s.address for s in kernel.symbols("_end")] == [0x5000]
