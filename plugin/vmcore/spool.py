"""Compressed kernels and dumps, decompressed once into a cache.

A dump is read at random, so ``vmcore.0.zst`` is first written out whole, with
holes for what is zero, under ``$XDG_CACHE_HOME/wchan`` (``~/.cache/wchan``).
The name of that file is made from the path, size, time and inode of the
compressed one, so that a changed dump is never served stale; the copy appears
by an atomic rename, so that several openers do not disturb each other.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import io
import os
import shutil
import stat
import subprocess
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, NamedTuple, Optional, Union

from plugin.cachedir import cache_path, ours, writable
from plugin.errors import DumpError
from plugin.vmcore.file import open_input

PathLike = Union[str, "os.PathLike[str]"]
#: called with (compressed bytes read, compressed bytes in all)
Progress = Callable[[int, int], None]

_CHUNK = 1 << 20
_FEED = 1 << 12
#: bytes that compression() needs to see
_HEAD = 8
_HOLE = 1 << 16
_ABANDONED = 24 * 3600
_MAGICS = (
    ("zst", b"\x28\xb5\x2f\xfd"),
    ("gz", b"\x1f\x8b"),
    ("xz", b"\xfd7zXZ\x00"),
    ("bz2", b"BZh"),
)
#: parts of Python that a build may lack
_OPTIONAL = {"xz": ("lzma", "LZMADecompressor"), "bz2": ("bz2", "BZ2Decompressor")}


class Plain(NamedTuple):
    """A file that can be read at random."""

    path: str
    #: the compressed input ended early; what there was has been kept
    truncated: bool
    #: "zst", "gz", "xz", "bz2", or "" where the file was plain already
    compression: str


class _Damaged(Exception):
    """The compressed stream is corrupt from here on."""


def compression(head: bytes) -> str:
    """What ``head``, the first bytes of a file, says of its compression; "" if none."""
    for name, magic in _MAGICS:
        if head.startswith(magic):
            return name
    # zstd's skippable frames, 0x184D2A50 to 0x184D2A5F
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return "zst"
    return ""


def plain_file(
    path: PathLike,
    *,
    spool_dir: Optional[PathLike] = None,
    progress: Optional[Progress] = None,
) -> Plain:
    """The file itself, or the decompressed copy of a .zst, .gz, .xz or .bz2 file.

    DumpError where it cannot be opened or decompressed.
    """
    path = os.fspath(path)
    with open_input(path) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            return Plain(path, False, "")
        try:
            kind = compression(file.read(_HEAD))
        except OSError as error:
            raise DumpError(f"{path}: cannot be read: {error.strerror}") from None
        if not kind:
            return Plain(path, False, "")
        file.seek(0)
        return _kept(file, kind, status.st_size, _spool_folder(spool_dir), progress, path)


def plain_part(
    path: PathLike,
    start: int,
    size: int,
    *,
    spool_dir: Optional[PathLike] = None,
    progress: Optional[Progress] = None,
) -> Plain:
    """The decompressed copy of a stream of ``size`` bytes at ``start`` of a file or device.

    DumpError where it is none, or cannot be decompressed.
    """
    path = os.fspath(path)
    with open_input(path) as file:
        part = _Part(file, start, size)
        kind = compression(part.read(_HEAD))
        if not kind:
            raise DumpError(f"{path}: no compressed dump lies where its header says")
        part.seek(0)
        return _kept(part, kind, size, _spool_folder(spool_dir), progress, path)


class _Part(io.RawIOBase):
    """A stretch of a file, read from its beginning on, in whole sectors of a device."""

    _SECTOR = 4096

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def fileno(self) -> int:
        """The file's, which stands where this one does."""
        self._file.seek(self._start + self._at)
        return self._file.fileno()

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        most = self._size - self._at
        size = most if size < 0 else min(size, most)
        first = self._start + self._at
        skip = first % self._SECTOR
        self._file.seek(first - skip)
        whole = -(-(skip + size) // self._SECTOR) * self._SECTOR
        data = self._file.read(whole)[skip : skip + size]
        self._at += len(data)
        return data


def _kept(
    file: Union[BinaryIO, _Part],
    kind: str,
    size: int,
    folder: Path,
    progress: Optional[Progress],
    path: str,
) -> Plain:
    """The copy that is there already, else a new one."""
    status = os.stat(path)
    source = digest(os.path.realpath(path))
    stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ino} {status.st_dev}"
    name = f"{source}-{digest(f'{stamp} {_sample(file, size)}')}"
    for truncated in (False, True):
        ready = folder / (name + _suffix(truncated))
        if ready.is_file() and ours(ready):
            return Plain(str(ready), truncated, kind)
    _sweep(folder, source, name)
    return _spool(file, kind, size, folder, name, progress, path)


def _sample(file: Union[BinaryIO, _Part], size: int) -> str:
    """What is in the file, as far as three places tell: a copy over it may keep size and time."""
    found = hashlib.sha256()
    for at in sorted({0, max(0, size // 2 - _CHUNK // 2), max(0, size - _CHUNK)}):
        file.seek(at)
        found.update(file.read(_CHUNK) or b"")
    file.seek(0)
    return found.hexdigest()


def _suffix(truncated: bool) -> str:
    return ".truncated" if truncated else ".plain"


def digest(text: str) -> str:
    """A name made from ``text``, that no other text makes."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def _spool_folder(wanted: Optional[PathLike]) -> Path:
    return writable(Path(wanted) if wanted is not None else cache_path())


def _sweep(folder: Path, source: str, current: str) -> None:
    """Remove copies of what the same file was before, and what a killed run left behind.

    A copy of the file as it is now may just have been finished by someone else.
    """
    for entry in folder.glob("*-*.*"):
        with suppress(OSError):
            if entry.suffix == ".part":
                stale = entry.stat().st_mtime < time.time() - _ABANDONED
            else:
                stale = entry.name.startswith(f"{source}-") and entry.stem != current
            if stale:
                entry.unlink()


def _spool(
    file: Union[BinaryIO, _Part],
    kind: str,
    size: int,
    folder: Path,
    name: str,
    progress: Optional[Progress],
    path: str,
) -> Plain:
    handle, part = tempfile.mkstemp(prefix=name + ".", suffix=".part", dir=str(folder))
    done = False
    try:
        truncated = False
        with os.fdopen(handle, "wb", buffering=0) as out:
            written = 0
            try:
                for piece in _decompressed(file, kind, size, progress, path):
                    written += len(piece)
                    write_sparse(out, piece)
            except (_Damaged, EOFError):
                truncated = True
            out.truncate(written)
        if not written:
            raise DumpError(f"{path}: the {kind} stream is damaged from its first block on")
        ready = folder / (name + _suffix(truncated))
        os.replace(part, ready)
        done = True
        return Plain(str(ready), truncated, kind)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DumpError(
                f"{path}: no room in {folder} to decompress it; set XDG_CACHE_HOME to a "
                "folder on a larger disk"
            ) from None
        raise DumpError(f"{path}: cannot be decompressed: {error.strerror or error}") from None
    finally:
        if not done:
            with suppress(OSError):
                os.unlink(part)


def write_sparse(out: BinaryIO, data: bytes) -> None:
    """Append ``data``, leaving a hole for every aligned stretch of zeros."""
    view = memoryview(data)
    zeros = bytes(_HOLE)
    at = pending = 0
    while at < len(view):
        end = min(at + _HOLE, len(view))
        if view[at:end] == zeros[: end - at]:
            _write(out, view[pending:at])
            out.seek(end - at, os.SEEK_CUR)
            pending = end
        at = end
    _write(out, view[pending:])


def _write(out: BinaryIO, view: memoryview) -> None:
    while view:
        view = view[out.write(view) :]


def _decompressed(
    file: Union[BinaryIO, _Part], kind: str, size: int, progress: Optional[Progress], path: str
) -> Iterator[bytes]:
    """The pieces of a stream of one or more frames; EOFError or _Damaged if it ends early."""
    make = _decoder(kind)
    if make is None:
        yield from _by_program(file, size, progress, path)
        return

    def more() -> bytes:
        data = file.read(_CHUNK)
        if progress is not None:
            progress(file.tell(), size)
        return data

    data = more()
    while compression(data):
        decoder = make()
        while not decoder.eof:
            if not data:
                data = more()
                if not data:
                    raise EOFError
            # Fed in small pieces: a few bytes of a hostile stream can stand for a megabyte.
            feed, data = data[:_FEED], data[_FEED:]
            try:
                piece = decoder.decompress(feed)
            except Exception as error:
                # Each library has an error class of its own; all mean the same here.
                raise _Damaged from error
            if piece:
                yield piece
        # Another frame may follow; the kernel pads the last one's block with zeros.
        data = decoder.unused_data + data
        while len(data) < _HEAD:
            following = more()
            if not following:
                break
            data += following


def _decoder(kind: str) -> Optional[Callable[[], Any]]:
    """Makes an object with decompress(), eof and unused_data; None if only a program can."""
    if kind == "gz":
        return lambda: zlib.decompressobj(wbits=31)
    if kind in _OPTIONAL:
        name, made = _OPTIONAL[kind]
        try:
            return getattr(importlib.import_module(name), made)  # type: ignore[no-any-return]
        except ImportError:
            raise DumpError(
                f"this Python was built without its {name} module: decompress the file with "
                f"{'xz' if kind == 'xz' else 'bzip2'} -d first"
            ) from None
    with suppress(ImportError):
        zstandard = importlib.import_module("zstandard")
        window = {"max_window_size": 1 << 31}
        if hasattr(zstandard.ZstdDecompressor().decompressobj(), "unused_data"):
            return lambda: zstandard.ZstdDecompressor(**window).decompressobj()
    # Python 3.14 has the one, the other brings it to older ones.
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            module = importlib.import_module(name)
            limit = {module.DecompressionParameter.window_log_max: 31}
            return lambda: module.ZstdDecompressor(options=limit)
    return None


def _by_program(
    file: Union[BinaryIO, _Part], size: int, progress: Optional[Progress], path: str
) -> Iterator[bytes]:
    program = shutil.which("zstd") or shutil.which("unzstd")
    if program is None:
        raise DumpError(
            f"{path} is compressed with zstd and nothing here can read that: install the "
            "zstandard module (pip install zstandard) or the zstd program"
        )
    command = [program, "-d", "-c", "-q", "--long=31"]
    with subprocess.Popen(
        command, stdin=file.fileno(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        while piece := child.stdout.read(_CHUNK):
            if progress is not None:
                # The child reads through the same open file: its position is ours.
                progress(file.tell(), size)
            yield piece
    if child.returncode:
        raise EOFError
