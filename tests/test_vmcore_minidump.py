"""Minidumps of every architecture and version: what was written is what is read.

The dumps are built by build_vmcore, page tables and all, and compared with a
model: a dictionary from virtual page to the bytes that must be there.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Dict, List, Tuple

import pytest
from build_vmcore import LAYOUTS, Layout, elf, minidump, page_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.errors import DumpError, KernelMismatch, MemoryFault
from plugin.vmcore import ElfFile, KernelMemory, memory, open_memory, physical
from plugin.vmcore.physical import BitmapMemory

MB2 = 1 << 21
ALL = [(0, 1 << 40)]


class Model:
    """A dump in a file and the truth about it."""

    def __init__(self, path: Path, layout: Layout, seed: int, *, gaps: bool = True) -> None:
        self.layout = layout
        rng = random.Random(seed)
        page = layout.page
        base = layout.dmapphys
        self.ranges = [
            (base + 0x1000, base + 40 * page),
            (base + 64 * page, base + 100 * page),
            # As firmware reports them: not on a page's border.
            (base + 0x10000000 + 0x400, base + 0x10000000 + 60 * page - 0x400),
        ]
        frames = [pa for start, end in self.ranges for pa in range(start // page * page, end, page)]
        held = rng.sample(frames, len(frames) * 2 // 3)
        self.pages: Dict[int, bytes] = {pa: page_of(pa + seed, page) for pa in held}
        slots = [layout.kernbase + n * page for n in range(700)]
        self.mapping = dict(zip(rng.sample(slots, 120), (rng.choice(held) for _ in range(120))))
        # A contiguous buffer, as vm_page_array is.
        run = sorted(held)
        self.mapping.update((layout.kernbase + (800 + n) * page, pa) for n, pa in enumerate(run))
        self.absent = set(rng.sample(held, 5)) if gaps else set()
        self.superpages: Dict[int, int] = {}
        if layout.arch == "amd64" and layout.version > 1:
            # 2 MB of memory of which the dump holds a third.
            start = 0x20000000
            self.superpages = {layout.kernbase + (1 << 30): start}
            self.ranges.append((start, start + MB2))
            for pa in range(start, start + MB2, page):
                if rng.random() < 0.33:
                    self.pages[pa] = page_of(pa + seed, page)
            # Page-table pages are put behind the last page.
            self.ranges.append((start + MB2, start + 2 * MB2))
        path.write_bytes(
            minidump(
                layout,
                self.pages,
                self.mapping,
                superpages=self.superpages,
                ranges=self.ranges,
                absent=self.absent,
            )
        )
        self.path = path

    def truth(self) -> Dict[int, bytes]:
        """Every virtual page that can be read, with its bytes."""
        held = {pa: data for pa, data in self.pages.items() if pa not in self.absent}
        found = {va: held[pa] for va, pa in self.mapping.items() if pa in held}
        for va, start in self.superpages.items():
            for at in range(0, MB2, self.layout.page):
                if start + at in held:
                    found[va + at] = held[start + at]
        layout = self.layout
        if layout.dmapend:
            for pa, data in held.items():
                found[layout.dmapbase + pa - layout.dmapphys] = data
        return found


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Layout:
    return LAYOUTS[request.param]


def expected(truth: Dict[int, bytes], page: int, address: int, size: int) -> Tuple[bytes, int]:
    """(bytes up to the first hole, address of the hole or -1)."""
    made = b""
    while len(made) < size:
        at = address + len(made)
        data = truth.get(at // page * page)
        if data is None:
            return made, at
        made += data[at % page : at % page + size - len(made)]
    return made, -1


@pytest.mark.parametrize("seed", range(3))
def test_every_page_reads_back_and_every_hole_faults(
    tmp_path: Path, layout: Layout, seed: int
) -> None:
    model = Model(tmp_path / "vmcore.0", layout, seed)
    truth = model.truth()
    core = open_memory(model.path)
    assert core.arch == layout.arch
    assert core.format == f"minidump v{layout.version}"
    assert core.page_size == layout.page
    assert not core.truncated
    for va, data in truth.items():
        assert core.read(va, layout.page) == data
        assert core.present(va)
    for va in model.mapping:
        assert core.translate(va + 5) == model.mapping[va] + 5
        if va not in truth:
            assert not core.present(va)
            with pytest.raises(MemoryFault) as fault:
                core.read(va + 8, 4)
            assert fault.value.address == va + 8
    for hole in (layout.kernbase + 750 * layout.page, layout.kernbase - 8, 0, 8, (1 << 64) - 8, -8):
        assert hole // layout.page * layout.page not in truth
        assert not core.present(hole)
        with pytest.raises(MemoryFault) as fault:
            core.read(hole, 4)
        assert fault.value.address == hole


def test_reads_of_any_length_at_any_place_agree_with_the_model(
    tmp_path: Path, layout: Layout
) -> None:
    model = Model(tmp_path / "vmcore.0", layout, 7)
    truth = model.truth()
    page = layout.page
    core = open_memory(model.path)
    rng = random.Random(8)
    starts = sorted(truth)
    for _ in range(600):
        address = rng.choice(starts) + rng.randrange(-8, page)
        size = rng.choice((0, 1, 4, 8, 104, page - 1, page, page + 1, 3 * page, 20 * page))
        data, hole = expected(truth, page, address, size)
        if hole < 0:
            assert core.read(address, size) == data
        else:
            with pytest.raises(MemoryFault) as fault:
                core.read(address, size)
            assert fault.value.address == hole


def test_runs_are_the_pieces_that_are_there_and_no_more(tmp_path: Path, layout: Layout) -> None:
    model = Model(tmp_path / "vmcore.0", layout, 9)
    truth = model.truth()
    page = layout.page
    raw = model.path.read_bytes()
    core = open_memory(model.path)
    areas = [(layout.kernbase - 3 * page, 1200 * page), (layout.kernbase + 800 * page + 100, 333)]
    areas += [(va - page, MB2 + 2 * page) for va in model.superpages]
    if layout.dmapend:
        areas += [(layout.dmapbase - 7 * page, 100 * page), (layout.dmapend - page, 5 * page)]
    for address, size in areas:
        got = {}
        pieces = list(core.runs(address, size))
        for (start, offset, length), following in zip(pieces, [*pieces[1:], None]):
            assert length > 0
            assert address <= start and start + length <= address + size
            if following is not None:
                assert start + length <= following[0]
                assert (start + length, offset + length) != following[:2], "not coalesced"
            for at in range(length):
                if (start + at) % page == 0 or at == 0:
                    got[start + at] = raw[
                        offset + at : offset + min(length, at + page - (start + at) % page)
                    ]
        want = {}
        for va, data in truth.items():
            first, last = max(va, address), min(va + page, address + size)
            if first < last:
                want[first] = data[first - va : last - va]
        assert got == want
        assert b"".join(d for _, d in core.chunks(address, size, 1000)) == b"".join(
            want[va] for va in sorted(want)
        )


def test_a_contiguous_buffer_is_few_runs_however_many_pages_it_has(tmp_path: Path) -> None:
    layout = LAYOUTS["amd64-v2"]
    pages = {pa: page_of(pa) for pa in range(0x400000, 0x400000 + 600 * 4096, 4096)}
    mapping = {layout.kernbase + n * 4096: pa for n, pa in enumerate(sorted(pages))}
    path = tmp_path / "vmcore.0"
    path.write_bytes(minidump(layout, pages, mapping))
    core = open_memory(path)
    assert [length for *_, length in core.runs(layout.kernbase, 600 * 4096)] == [600 * 4096]
    assert core.read(layout.kernbase, 600 * 4096) == b"".join(pages[pa] for pa in sorted(pages))


def test_physical_memory_is_read_by_its_own_address(tmp_path: Path, layout: Layout) -> None:
    model = Model(tmp_path / "vmcore.0", layout, 11)
    core = open_memory(model.path)
    held = sorted(set(model.pages) - model.absent)
    for pa in held:
        assert core.read_physical(pa + 4, 8) == model.pages[pa][4:12]
    for pa in (*model.absent, model.layout.dmapphys + 50 * layout.page, 1 << 60):
        with pytest.raises(MemoryFault):
            core.read_physical(pa, 8)
    assert core.physical_bytes >= len(held) * layout.page


def test_the_copy_of_the_message_buffer_is_there(tmp_path: Path, layout: Layout) -> None:
    model = Model(tmp_path / "vmcore.0", layout, 1)
    assert open_memory(model.path).message_buffer == b"hello from the message buffer\n"


def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old pages make room for new ones; what is read stays the same."""
    model = Model(tmp_path / "vmcore.0", LAYOUTS["amd64-v3"], 2)
    monkeypatch.setattr(memory, "_CACHE", 16 * 4096)
    core = open_memory(model.path)
    truth = model.truth()
    for _ in range(2):
        for va, data in truth.items():
            assert core.read(va + 16, 8) == data[16:24]
            assert len(core._pages) <= 16


def test_an_absurd_length_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    core = open_memory(Model(tmp_path / "vmcore.0", LAYOUTS["amd64-v3"], 2).path)
    for size in (1 << 62, -1):
        with pytest.raises(MemoryFault, match="refused"):
            core.read(LAYOUTS["amd64-v3"].dmapbase, size)


def test_a_machine_with_a_terabyte_of_memory(tmp_path: Path) -> None:
    """A bitmap of 32 MB and pages 100 GB into the file, sparse on the disk."""
    bits = bytearray(1 << 25)
    # Every page of the second 100 GB, and a few beyond.
    bits[100 << 15 : 200 << 15] = b"\xff" * (100 << 15)
    beyond = (0x7000000, 0x9ABCDEF, 0xFFFFFFF)
    for number in beyond:
        bits[number >> 3] |= 1 << (number & 7)
    layout = LAYOUTS["amd64-v2"]
    path = tmp_path / "vmcore.0"
    head = minidump(layout, {0: bytes(4096)}, {}, msgbuf=b"")
    with path.open("wb") as file:
        made = bytearray(head[:4096])
        made[32:36] = len(bits).to_bytes(4, "little")
        file.write(made + bits + bytes(4096))
        start = file.tell()
        pages = (100 << 15) * 8
        for number, rank in [(0, 0), (0, pages - 1), *enumerate(range(pages, pages + 3), 1)]:
            file.seek(start + rank * 4096)
            file.write(page_of(number + rank))
    with open_memory(path) as core:
        assert core.physical_bytes == (pages + 3) * 4096
        assert not core.truncated
        assert core.read(layout.dmapbase + (100 << 30), 4096) == page_of(0)
        assert core.read(layout.dmapbase + (200 << 30) - 4096, 4096) == page_of(pages - 1)
        for number, page in enumerate(beyond):
            assert core.read_physical(page << 12, 4096) == page_of(number + 1 + pages + number)
        assert [length for *_, length in core.runs(layout.dmapbase, 1 << 40)] == [
            100 << 30, 4096, 4096, 4096
        ]  # fmt: skip


def test_nothing_is_read_at_an_address_without_memory(tmp_path: Path) -> None:
    core = open_memory(Model(tmp_path / "vmcore.0", LAYOUTS["amd64-v3"], 2).path)
    assert core.read(0, 0) == b""


def test_a_closed_dump_and_a_failing_disk_are_gaps_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(tmp_path / "vmcore.0", LAYOUTS["amd64-v3"], 2)
    first, second, third, *_ = model.truth()
    core = open_memory(model.path)
    assert core.read(first, 8) == model.truth()[first][:8]

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", fail)
        for size in (8, 40000):
            with pytest.raises(MemoryFault, match="Input/output error"):
                core.read(second, size)
    core.close()
    with pytest.raises(MemoryFault, match="Bad file descriptor"):
        core.read(third, 8)


def cut(tmp_path: Path, layout: Layout, pages: float) -> Tuple[Model, KernelMemory]:
    """A dump of which only the first ``pages`` pages were written."""
    model = Model(tmp_path / "vmcore.0", layout, 5, gaps=False)
    with model.path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
    core = open_memory(model.path)
    assert isinstance(core.physical, BitmapMemory)
    first = size - core.physical.pages * layout.page
    core.close()
    os.truncate(model.path, first + int(pages * layout.page))
    return model, open_memory(model.path)


def test_a_truncated_dump_opens_and_gives_what_it_has(tmp_path: Path, layout: Layout) -> None:
    model, core = cut(tmp_path, layout, 30.5)
    page = layout.page
    assert core.truncated
    assert core.physical_bytes == 30 * page + page // 2
    order = sorted(model.pages)
    for number, pa in enumerate(order[:100]):
        if number < 30:
            assert core.read_physical(pa, page) == model.pages[pa]
        elif number > 30:
            with pytest.raises(MemoryFault):
                core.read_physical(pa, 16)
    # The file ends within a page: what is left of it can be read.
    half = order[30]
    assert core.read_physical(half, page // 2) == model.pages[half][: page // 2]
    with pytest.raises(MemoryFault) as fault:
        core.read_physical(half + page // 2 - 4, 8)
    assert fault.value.address == half + page // 2
    if layout.dmapend:
        address = layout.dmapbase + half - layout.dmapphys
        for size in (8, page // 2):
            assert core.read(address, size) == model.pages[half][:size]
        assert core.present(address + page // 2 - 1)
        for bad, size in ((address + page // 2 - 4, 8), (address, page), (address, 9 * page)):
            with pytest.raises(MemoryFault, match="truncated") as fault:
                core.read(bad, size)
            assert fault.value.address == address + page // 2
        assert not core.present(address + page // 2)
        assert sum(n for *_, n in core.runs(layout.dmapbase, 100 * page)) == 30.5 * page
        assert sum(len(d) for _, d in core.chunks(layout.dmapbase, 100 * page)) == 30.5 * page


def test_a_dump_cut_before_its_first_page_is_refused(tmp_path: Path, layout: Layout) -> None:
    model = Model(tmp_path / "vmcore.0", layout, 5)
    os.truncate(model.path, 2 * layout.page)
    with pytest.raises(DumpError, match="truncated before its first page"):
        open_memory(model.path)


def test_a_version_from_the_future_is_named(tmp_path: Path, layout: Layout) -> None:
    path = tmp_path / "vmcore.0"
    path.write_bytes(minidump(layout._replace(version=9), {0: bytes(layout.page)}, {}))
    with pytest.raises(DumpError, match=f"{layout.arch} minidump of version 9"):
        open_memory(path)


def test_a_minidump_of_an_architecture_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vmcore.0"
    path.write_bytes(b"minidump FreeBSD/mips\0\0\0" + bytes(8192))
    with pytest.raises(
        DumpError, match="minidump of a mips machine; those of amd64, arm64, armv7, i386"
    ):
        open_memory(path)


def test_a_page_size_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vmcore.0"
    made = bytearray(minidump(LAYOUTS["arm64-v3"], {0x40000000: bytes(4096)}, {}))
    made[76] = 2
    path.write_bytes(made)
    with pytest.raises(DumpError, match="page size"):
        open_memory(path)


def test_a_kernel_of_another_architecture_is_refused(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(elf("i386"))
    dump = Model(tmp_path / "vmcore.0", LAYOUTS["amd64-v3"], 1).path
    with pytest.raises(KernelMismatch, match=r"kernel for i386, but .* dump of amd64"):
        open_memory(dump, ElfFile(kernel))


def test_page_table_pages_missing_from_the_dump_are_holes(tmp_path: Path) -> None:
    layout = LAYOUTS["amd64-v3"]
    pages = {0x1000: page_of(1)}
    path = tmp_path / "vmcore.0"
    # The page-table page is put behind the only page: 0x2000.
    path.write_bytes(
        minidump(layout, pages, {layout.kernbase: 0x1000}, ranges=[(0, 0x9000)], absent=[0x2000])
    )
    with pytest.raises(MemoryFault, match="page tables are not in the dump"):
        open_memory(path).read(layout.kernbase, 8)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000))
def test_counting_bits_without_bit_count_gives_the_same(data: bytes) -> None:
    """Python 3.9 has no int.bit_count: the other way must find the same pages."""
    block = data[: physical._BLOCK]
    assert physical._count_by_lanes(block) == sum(bin(byte).count("1") for byte in block)


def test_the_lanes_hold_even_where_every_bit_is_set() -> None:
    full = b"\xff" * physical._BLOCK
    assert physical._count_by_lanes(full) == physical._BLOCK * 8


@settings(max_examples=200, deadline=None)
@given(
    st.binary(min_size=1, max_size=1500),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 3000)), max_size=5),
    st.integers(0, 4000),
    st.data(),
)
def test_the_bitmap_finds_each_page_where_the_kernel_put_it(
    bitmap: bytes, gaps: List[Tuple[int, int]], stored: int, data: st.DataObject
) -> None:
    """Against a plain count over all bits, with and without dump_avail."""
    ranges = []
    at = 0
    for gap, length in gaps:
        start = at + gap * 4096
        at = start + length * 4096
        ranges.append((start, at))
    found = BitmapMemory(bitmap, 4096, 100, 100 + stored * 4096, ranges or None)
    places: Dict[int, int] = {}
    numbers = [
        pa // 4096 for start, end in ranges or [(0, len(bitmap) * 8 * 4096)]
        for pa in range(start, end, 4096)
    ]  # fmt: skip
    rank = 0
    for bit, number in enumerate(numbers[: len(bitmap) * 8]):
        if bitmap[bit // 8] >> bit % 8 & 1:
            if rank < stored:
                places[number] = 100 + rank * 4096
            rank += 1
    for number in data.draw(st.lists(st.integers(0, at // 4096 + 50), max_size=30)):
        place = places.get(number, -1)
        assert found.offset(number * 4096 + 17) == (place + 17 if place >= 0 else -1)
        offset, length = found.extent(number * 4096 + 17, 50000)
        assert 1 <= length <= 50000
        assert offset == (place + 17 if place >= 0 else -1)
        for step in range(1, (17 + length - 1) // 4096 + 1):
            assert places.get(number + step, -1) == (place + step * 4096 if place >= 0 else -1)


def test_a_header_whose_addresses_begin_no_page_is_damaged(tmp_path: Path, layout: Layout) -> None:
    path = tmp_path / "vmcore.0"
    shifted = layout._replace(kernbase=layout.kernbase + 8)
    path.write_bytes(minidump(shifted, {layout.dmapphys: bytes(layout.page)}, {}, ranges=ALL))
    with pytest.raises(DumpError, match="damaged minidump header"):
        open_memory(path)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=20),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=20),
    st.integers(0, 1 << 64),
)
def test_a_damaged_minidump_raises_nothing_but_a_clear_line(
    tmp_path: Path,
    name: str,
    header: List[Tuple[int, int]],
    body: List[Tuple[int, int]],
    address: int,
) -> None:
    layout = LAYOUTS[name]
    base = layout.dmapphys
    pages = {base + n * layout.page: page_of(n, layout.page) for n in range(3)}
    mapping = {layout.kernbase + n * layout.page: base + n * layout.page for n in range(3)}
    made = bytearray(minidump(layout, pages, mapping, ranges=[(base, base + 5 * layout.page)]))
    for at, value in header:
        made[24 + at % 60] = value
    for at, value in body:
        made[at % len(made)] = value
    path = tmp_path / "vmcore.0"
    path.write_bytes(made)
    try:
        core = open_memory(path)
    except DumpError as error:
        assert str(error) and "\n" not in str(error)
        return
    with core:
        for at in (address, *mapping, layout.dmapbase, core.page_size - 4, (1 << 64) - 4):
            for size in (8, 40000):
                try:
                    assert len(core.read(at, size)) == size
                except MemoryFault as fault:
                    assert at <= fault.address < at + size
        for start, data in core.chunks(layout.kernbase, 1 << 22):
            assert data == core.read(start, len(data))


def test_a_large_page_of_armv7_is_sixteen_pages_side_by_side(tmp_path: Path) -> None:
    layout = LAYOUTS["armv7-v2"]
    frames = {0x200000 + n * 4096: page_of(n) for n in range(16)}
    made = bytearray(
        minidump(layout, frames, {layout.kernbase + n * 4096: pa for n, pa in enumerate(frames)})
    )
    small = b"".join((pa | 0x453).to_bytes(4, "little") for pa in frames)
    at = made.index(small)
    made[at : at + len(small)] = (0x200000 | 0x41).to_bytes(4, "little") * 16
    path = tmp_path / "vmcore.0"
    path.write_bytes(made)
    with open_memory(path) as core:
        assert core.read(layout.kernbase, 65536) == b"".join(frames.values())
        assert not core.present(layout.kernbase + 65536)
