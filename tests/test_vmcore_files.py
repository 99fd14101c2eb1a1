"""Whatever file the user has: compressed, on the dump device, damaged, or something else."""

from __future__ import annotations

import bz2
import errno
import gzip
import importlib
import lzma
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import threading
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Callable, Dict, List, Tuple

import pytest
from build_vmcore import (
    LAYOUTS,
    Layout,
    dump_device,
    dump_header,
    elf,
    full_dump,
    minidump,
    page_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.errors import DumpError
from plugin.vmcore import open_memory, spool
from plugin.vmcore.spool import plain_file

AMD64: Layout = LAYOUTS["amd64-v3"]
# Noise that does not compress, and zeros that become holes.
PAGES = {
    n * 4096: page_of(n) if n % 3 and not 100 < n < 164 else bytes(4096) for n in range(1, 300)
}
DUMP = minidump(AMD64, PAGES, {}, ranges=[(0, 0x400000)])


def zstd(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="zstandard is needed to compress with zstd")
    value: bytes = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    return value


PACKERS: Dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wchan"


def same(path: Path) -> None:
    """The dump at ``path`` reads as DUMP does."""
    with open_memory(path) as core:
        for pa, data in PAGES.items():
            assert core.read(AMD64.dmapbase + pa, 4096) == data


# Compressed


@pytest.mark.parametrize("kind", PACKERS)
def test_a_compressed_dump_is_read_from_a_copy_made_once(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    path = tmp_path / f"vmcore.0.{kind}"
    path.write_bytes(PACKERS[kind](DUMP))
    seen: List[Tuple[int, int]] = []
    with open_memory(path, progress=lambda done, total: seen.append((done, total))) as core:
        assert core.path == str(path)
        assert Path(core.file_path).parent == cache
        assert not core.truncated
    size = path.stat().st_size
    assert seen[-1] == (size, size)
    same(path)
    (copy,) = cache.iterdir()
    assert copy.read_bytes() == DUMP
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    seen.clear()
    open_memory(path, progress=lambda done, total: seen.append((done, total))).close()
    assert not seen, "decompressed a second time"


def test_zeros_become_holes(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "vmcore.0.gz"
    big = DUMP + bytes(32 << 20)
    path.write_bytes(gzip.compress(big))
    plain = plain_file(path)
    status = os.stat(plain.path)
    assert status.st_size == len(big)
    assert status.st_blocks * 512 < len(DUMP) + (1 << 20)


def test_a_changed_dump_is_never_served_stale(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP))
    same(path)
    other = minidump(AMD64, {0x1000: page_of(99)}, {}, ranges=[(0, 0x8000)])
    path.write_bytes(gzip.compress(other))
    with open_memory(path) as core:
        assert core.read(AMD64.dmapbase + 0x1000, 4096) == page_of(99)
    assert len(list(cache.iterdir())) == 1, "the copy of what is gone is kept"


def test_same_size_and_time_but_another_file_is_another_dump(tmp_path: Path, cache: Path) -> None:
    path, other = tmp_path / "vmcore.0.gz", tmp_path / "other.gz"
    path.write_bytes(gzip.compress(DUMP, mtime=0))
    before = path.stat()
    same(path)
    changed = bytearray(DUMP)
    changed[-1] ^= 1
    other.write_bytes(
        gzip.compress(bytes(changed), mtime=0)[: before.st_size].ljust(before.st_size)
    )
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)
    assert path.stat().st_size == before.st_size
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert Path(plain_file(path).path).read_bytes()[-1] == changed[-1]


@pytest.mark.parametrize("kind", PACKERS)
def test_a_compressed_dump_cut_short_gives_what_it_has(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    path = tmp_path / f"vmcore.0.{kind}"
    big = minidump(
        AMD64, {n * 4096: page_of(n) for n in range(1, 1000)}, {}, ranges=[(0, 0x400000)]
    )
    packed = PACKERS[kind](big)
    path.write_bytes(packed[: len(packed) * 3 // 4])
    for _ in range(2):
        with open_memory(path) as core:
            assert core.truncated
            assert 0 < core.physical_bytes < 999 * 4096
            assert core.read(AMD64.dmapbase + 0x1000, 4096) == page_of(1)


def test_a_stream_without_its_end_is_truncated_even_if_every_page_is_there(
    tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP + bytes(1 << 20))[:-8])
    with open_memory(path) as core:
        assert core.physical_bytes == len(PAGES) * 4096
        assert core.truncated
    same(path)


@pytest.mark.parametrize("kind", PACKERS)
def test_a_damaged_stream_gives_what_lies_before_the_damage(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    path = tmp_path / f"vmcore.0.{kind}"
    big = minidump(
        AMD64, {n * 4096: page_of(n) for n in range(1, 1000)}, {}, ranges=[(0, 0x400000)]
    )
    packed = bytearray(PACKERS[kind](big))
    middle = len(packed) * 3 // 4
    packed[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(packed)
    with open_memory(path) as core:
        assert core.read(AMD64.dmapbase + 0x1000, 4096) == page_of(1)
        assert core.truncated


@pytest.mark.parametrize("kind", PACKERS)
def test_a_stream_damaged_from_its_beginning_is_named(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    path = tmp_path / f"vmcore.0.{kind}"
    path.write_bytes(PACKERS[kind](DUMP)[:12])
    with pytest.raises(DumpError, match=f"{kind} stream is damaged"):
        open_memory(path)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_several_frames_and_the_kernels_padding_are_read_through(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    """The kernel pads its last compressed block with zeros."""
    pack = PACKERS[kind]
    path = tmp_path / f"vmcore.0.{kind}"
    path.write_bytes(pack(DUMP[:70000]) + pack(DUMP[70000:]) + bytes(3_000_000))
    plain = plain_file(path)
    assert Path(plain.path).read_bytes() == DUMP
    assert not plain.truncated


def test_what_follows_the_stream_and_is_no_frame_is_left_alone(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP) + b"trailing garbage")
    assert Path(plain_file(path).path).read_bytes() == DUMP


def test_a_bomb_is_unpacked_in_bounded_memory(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a gigabyte of zeros in a few kilobytes: never in memory all at once."""
    path = tmp_path / "vmcore.0.zst"
    packer = pytest.importorskip("zstandard").ZstdCompressor().compressobj()
    with path.open("wb") as packed:
        for _ in range(512):
            packed.write(packer.compress(bytes(1 << 20)))
        packed.write(packer.flush())
    assert path.stat().st_size < 64 << 10
    pieces: List[int] = []

    def count(out: BinaryIO, data: bytes) -> None:
        pieces.append(len(data))

    monkeypatch.setattr(spool, "write_sparse", count)
    assert os.path.getsize(plain_file(path).path) == 512 << 20
    assert sum(pieces) == 512 << 20
    assert max(pieces) <= 130 << 20


def test_zstd_by_the_program_where_no_module_is_there(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("zstd"):
        pytest.skip("no zstd program here")
    path = tmp_path / "vmcore.0.zst"
    path.write_bytes(zstd(DUMP))
    cut = tmp_path / "vmcore.1.zst"
    cut.write_bytes(path.read_bytes()[:-5000])
    without_modules(monkeypatch)
    seen: List[int] = []
    plain_file(path, progress=lambda done, _: seen.append(done))
    assert seen
    same(path)
    assert plain_file(cut).truncated


def test_where_nothing_reads_zstd_the_line_says_what_to_install(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vmcore.0.zst"
    path.write_bytes(zstd(DUMP))
    without_modules(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DumpError, match="pip install zstandard"):
        open_memory(path)


@pytest.mark.parametrize("kind", ["xz", "bz2"])
def test_a_python_built_without_a_module_says_what_to_do(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / f"vmcore.0.{kind}"
    path.write_bytes(PACKERS[kind](DUMP))
    monkeypatch.setitem(sys.modules, "lzma" if kind == "xz" else "bz2", None)
    with pytest.raises(DumpError, match="decompress the file with"):
        open_memory(path)


def without_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def gone(name: str) -> object:
        if "zst" in name:
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", gone)


def test_where_the_cache_cannot_be_written_a_temporary_folder_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP))
    same(path)


def test_a_spool_folder_can_be_named(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP))
    with open_memory(path, spool_dir=tmp_path / "mine") as core:
        assert Path(core.file_path).parent == tmp_path / "mine"
    assert not cache.exists()


def test_a_full_disk_is_named(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP))
    monkeypatch.setattr(spool, "_write", full)
    with pytest.raises(DumpError, match=r"no room in .*XDG_CACHE_HOME"):
        open_memory(path)
    assert not list(cache.iterdir()), "half a copy is left behind"


def test_several_openers_at_once_do_not_disturb_each_other(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP))
    failures: List[BaseException] = []
    gate = threading.Barrier(6)

    def opener() -> None:
        try:
            gate.wait()
            same(path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=opener) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(cache.iterdir())) == 1


def test_the_copy_that_another_opener_has_just_finished_stays(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears between this opener's look into the cache and its tidying up."""
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP))
    real = spool._sweep
    finished = []

    def late(folder: Path, source: str, current: str) -> None:
        finished.append(folder / f"{current}.plain")
        finished[0].write_bytes(DUMP)
        real(folder, source, current)
        assert finished[0].exists()

    monkeypatch.setattr(spool, "_sweep", late)
    same(path)
    assert finished


def test_what_a_killed_run_left_behind_goes_after_a_day(tmp_path: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    old, new = cache / "aa-bb.x.part", cache / "aa-cc.y.part"
    for part in (old, new):
        part.write_bytes(b"half")
    os.utime(old, (1, 1))
    path = tmp_path / "vmcore.0.gz"
    path.write_bytes(gzip.compress(DUMP))
    same(path)
    assert not old.exists()
    assert new.exists()


# Dump devices


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("version", [1, 4])
def test_a_dump_still_on_its_device_is_read_in_place(
    tmp_path: Path, sector: int, version: int
) -> None:
    path = tmp_path / "ada0p3"
    path.write_bytes(dump_device(DUMP, sector=sector, version=version))
    same(path)
    with open_memory(path) as core:
        assert core.format == "minidump v3 on a dump device"
        assert core.panicstring == "page fault"
        assert core.hostname == "stuck.example.org"
        assert core.version == "FreeBSD 14.2-RELEASE GENERIC"


def test_a_full_dump_still_on_its_device_needs_the_kernel_like_any(tmp_path: Path) -> None:
    path = tmp_path / "ada0p3"
    path.write_bytes(dump_device(full_dump("i386", {0x1000: bytes(4096)}), arch=b"i386"))
    with pytest.raises(DumpError, match="-k KERNEL"):
        open_memory(path)


def test_a_character_device_is_read_in_whole_sectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FreeBSD's disks refuse anything else; the device's size is no multiple of 4096 here."""
    path = tmp_path / "ada0p3"
    path.write_bytes(dump_device(DUMP, sector=512))
    size = path.stat().st_size
    assert size % 4096
    real = os.pread

    def strict(fd: int, length: int, offset: int) -> bytes:
        if offset % 512 or length % 512 or offset + length > size:
            raise OSError(22, "Invalid argument")
        return real(fd, length, offset)

    monkeypatch.setattr(stat, "S_ISCHR", lambda mode: True)
    monkeypatch.setattr(stat, "S_ISREG", lambda mode: False)
    monkeypatch.setattr(os, "pread", strict)
    same(path)
    with open_memory(path) as core:
        assert core.hostname == "stuck.example.org"
        assert core.read_physical(0x1064, 8) == page_of(1)[100:108]


def test_a_saved_dump_that_is_still_whole_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ada0p3"
    path.write_bytes(dump_device(DUMP, magic=b"Cleared Kernel Dump"))
    same(path)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_dump_that_the_kernel_compressed_is_read_from_its_device(
    tmp_path: Path, cache: Path, kind: str
) -> None:
    if kind == "zstd":
        zstandard = pytest.importorskip("zstandard", reason="no zstandard to compress with")
        packed = zstandard.ZstdCompressor().compress(DUMP)
    else:
        packed = gzip.compress(DUMP)
    # The kernel writes whole blocks: the last is padded with zeros.
    packed += bytes(-len(packed) % 512)
    method = {"gzip": 1, "zstd": 2}[kind]
    head = dump_header(len(DUMP), compression=method, extent=len(packed))
    path = tmp_path / "ada0p3"
    path.write_bytes(bytes(65536) + head + packed + head)
    same(path)
    with open_memory(path) as core:
        assert core.hostname == "stuck.example.org"
        assert not core.truncated


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (dump_device(DUMP, keysize=512), "encrypted dump.*--key FILE"),
        (dump_device(bytes(4096), magic=b"FreeBSD Text Dump"), "textdump.*ddb.txt"),
        (dump_device(bytes(4096), magic=b"Cleared Kernel Dump"), "saved already.*/var/crash"),
        (dump_header(1 << 30) * 2, "too short"),
        (dump_device(page_of(1)), "overwritten"),
    ],
)
def test_a_device_whose_dump_cannot_be_read_in_place_says_what_to_do(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "ada0p3"
    path.write_bytes(content)
    with pytest.raises(DumpError, match=f"^{path}.*{said}"):
        open_memory(path)


def test_a_header_whose_parity_is_wrong_is_no_header(tmp_path: Path) -> None:
    made = bytearray(dump_device(DUMP))
    made[-100] ^= 1
    path = tmp_path / "ada0p3"
    path.write_bytes(made)
    with pytest.raises(DumpError, match="begins with zeros"):
        open_memory(path)


# Something else


def textdump() -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("ddb.txt", "msgbuf.txt"):
            tar.addfile(tarfile.TarInfo(name), BytesIO())
    return out.getvalue()


def archive() -> bytes:
    return textdump().replace(b"ddb.txt", b"abc.txt").replace(b"msgbuf", b"foobar")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vmcore.0", b"", "is empty"),
        ("info.0", b"Dump header from device: /dev/ada0p3\n", "savecore's description"),
        ("core.txt.0", b"stuck dumped core - see /var/crash/vmcore.0\n", "crashinfo's report"),
        ("vmcore.0", "Grüße vom Absturz\n".encode() * 60, "a text file"),
        ("vmcore.0", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("textdump.tar.0", textdump(), "a textdump: .* no memory"),
        ("x.tar", archive(), "a tar archive"),
        ("vmcore_encrypted.0", page_of(5), "--key FILE"),
        ("vmcore.0", page_of(5), "no FreeBSD kernel dump.*decryptcore"),
        ("vmcore.0", bytes(4096), "begins with zeros"),
        ("vmcore", b"KDUMP   " + bytes(100), "Linux kernel"),
        ("vmcore", b"makedumpfile\0" + bytes(100), "Linux kernel"),
        ("MEMORY.DMP", b"PAGEDU64" + bytes(100), "Windows"),
        ("disk.qcow2", b"QFI\xfb" + bytes(100), "qemu-img"),
        ("x.lz4", b"\x04\x22\x4d\x18" + bytes(100), "lz4"),
        ("disk.img", bytes(510) + b"\x55\xaa" + bytes(512), "whole disk"),
        ("ada0p3", dump_header(4096) + bytes(4096), "header without its dump"),
        ("kernel", elf("amd64"), "not a dump: give it with -k"),
        ("ppc", b"\x7fELF\2\2\1" + bytes(11) + b"\0\x15" + bytes(64), "powerpc64"),
        ("mips", b"minidump FreeBSD/mips" + bytes(200), "mips machine"),
    ],
)
def test_what_is_no_dump_is_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DumpError, match=f"^{path}.*{said}") as error:
        open_memory(path)
    assert "\n" not in str(error.value)


def test_a_folder_names_the_dumps_in_it(tmp_path: Path) -> None:
    (tmp_path / "vmcore.0").write_bytes(DUMP)
    (tmp_path / "info.0").write_text("")
    with pytest.raises(DumpError, match=r"is a directory: .*\(vmcore.0\)"):
        open_memory(tmp_path)


def test_a_pipe_is_named_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vmcore.0")
    with pytest.raises(DumpError, match="is a pipe"):
        open_memory(tmp_path / "vmcore.0")


def test_a_file_that_cannot_be_read_is_named() -> None:
    if not os.access("/proc/self/mem", os.R_OK):
        pytest.skip("no file here that opens but cannot be read")
    with pytest.raises(DumpError, match=r"^/proc/self/mem: cannot be read"):
        open_memory("/proc/self/mem")


def test_a_missing_dump_is_named(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="no such file"):
        open_memory(tmp_path / "vmcore.9")


def test_a_dump_of_root_alone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "vmcore.0"
    path.write_bytes(DUMP)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DumpError, match=r"permission denied.*sudo"):
        open_memory(path)


BEGINNINGS = [
    b"",
    b"minidump FreeBSD/amd64\0\0",
    b"minidump FreeBSD/arm64\0\0",
    b"\x7fELF\2\1\1",
    b"\x7fELF\1\1\1",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ\0",
    b"BZh9",
]


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(BEGINNINGS),
    st.binary(max_size=3000),
    st.booleans(),
)
def test_garbage_behind_any_beginning_raises_nothing_but_a_clear_line(
    tmp_path: Path, cache: Path, head: bytes, rest: bytes, device: bool
) -> None:
    path = tmp_path / "vmcore.0"
    path.write_bytes(dump_device(head + rest) if device else head + rest)
    try:
        open_memory(path).close()
    except DumpError as error:
        assert str(path) in str(error) and "\n" not in str(error)
