"""Writing a capsule: members packed in blocks, then an index of them."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import tempfile
import zlib
from array import array
from contextlib import suppress
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

from plugin.capsule.record import Range
from plugin.errors import WchanError
from plugin.vmcore.capsule import BLOCK, HEADER, MAGIC, RAW, VERSION, XZ, ZERO, ZLIB

#: of xz: larger ones take ten times as long for an eighth less
_PRESET = 1
#: a block's sample that tells how it packs best
_SAMPLE = 64 << 10


class Writer:
    """A capsule being written, under another name until ``finish``: whole or not at all."""

    def __init__(self, path: str, strides: Sequence[int] = ()) -> None:
        """``strides``: sizes of structs that lie in large arrays, which pack by their columns."""
        self.path = os.path.realpath(path)
        self._packer = Packer(strides)
        self.facts: Dict[str, Any] = {}
        self._members: Dict[str, List[List[int]]] = {}
        self._index_at = 0
        try:
            handle, self.part = tempfile.mkstemp(
                prefix=f".{os.path.basename(self.path)}.", dir=os.path.dirname(self.path)
            )
        except OSError as error:
            raise WchanError(f"cannot write {path}: {error.strerror}") from None
        self._file: BinaryIO = os.fdopen(handle, "wb")
        self._file.write(bytes(HEADER.size))

    def add(self, name: str, data: bytes) -> None:
        """A member that is at hand; none where it is empty."""
        self.stream(name, (data[at : at + BLOCK] for at in range(0, len(data), BLOCK)))

    def add_json(self, name: str, value: Any) -> None:
        self.add(name, json.dumps(value, separators=(",", ":")).encode())

    def stream(self, name: str, pieces: Iterable[bytes]) -> None:
        """A member whose blocks are made one by one; all but the last of BLOCK bytes."""
        blocks = self._members[name] = []
        for piece in pieces:
            codec, packed = self._packer.pack(piece)
            blocks.append([self._file.tell(), len(packed), len(piece), zlib.crc32(packed), codec])
            self._file.write(packed)

    def size(self, name: str) -> int:
        """Bytes of a member that was added."""
        return sum(block[2] for block in self._members[name])

    def index(self) -> None:
        """Write the index: the file under ``part`` is a capsule now, and may still grow."""
        self._index_at = self._file.tell()
        told = {"facts": self.facts, "members": self._members}
        raw = json.dumps(told, separators=(",", ":")).encode()
        packed = zlib.compress(raw, 9)
        self._file.write(packed)
        length = self._file.tell()
        self._file.seek(0)
        digest = hashlib.sha256(packed).digest()
        self._file.write(
            HEADER.pack(MAGIC, VERSION, ZLIB, length, self._index_at, len(packed), len(raw), digest)
        )
        self._file.seek(length)
        self._file.flush()

    def more(self) -> None:
        """Go on after ``index``: what is added next takes its place."""
        self._file.seek(self._index_at)
        self._file.truncate()

    def finish(self, inputs: Sequence[str]) -> int:
        """Give it its name; bytes written.  Never over one of ``inputs``."""
        self.index()
        size = self._file.tell()
        self._file.close()
        for name in inputs:
            with suppress(OSError):
                if os.path.samefile(self.path, name):
                    self.abandon()
                    raise WchanError(f"cannot write {self.path}: it is what the capsule is made of")
        os.replace(self.part, self.path)
        return size

    def abandon(self) -> None:
        self._file.close()
        with suppress(OSError):
            os.unlink(self.part)


class Packer:
    """Packs blocks with what every Python can unpack: xz, or zlib where it has no lzma."""

    def __init__(self, strides: Sequence[int] = ()) -> None:
        self._lzma: Any = None
        with suppress(ImportError):
            self._lzma = importlib.import_module("lzma")
        # The filter subtracts what lies so many bytes before: of at most 256.
        self._strides = [0, *(stride for stride in strides if 0 < stride <= 256)]

    def pack(self, data: bytes) -> tuple[int, bytes]:
        """(codec, bytes), whichever is the smallest."""
        if not data.strip(b"\0"):
            return ZERO, b""
        if self._lzma is None:
            codec, packed = ZLIB, zlib.compress(data, 9)
        else:
            codec, packed = XZ, self._best(data)
        return (codec, packed) if len(packed) < len(data) else (RAW, data)

    def _best(self, data: bytes) -> bytes:
        strides = self._strides
        if len(strides) > 1 and len(data) > 4 * _SAMPLE:
            middle = len(data) // 2
            sample = data[middle : middle + _SAMPLE]
            strides = [min(strides, key=lambda stride: len(self._xz(sample, stride)))]
        return min((self._xz(data, stride) for stride in strides), key=len)

    def _xz(self, data: bytes, stride: int) -> bytes:
        lzma = self._lzma
        filters = [{"id": lzma.FILTER_DELTA, "dist": stride}] if stride else []
        filters.append({"id": lzma.FILTER_LZMA2, "preset": _PRESET, "dict_size": BLOCK})
        packed: bytes = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_NONE, filters=filters)
        return packed


def range_table(ranges: Sequence[Range]) -> bytes:
    """The member "ranges": start and end of each stretch, 64 bits each."""
    words = array("Q", (word for each in ranges for word in each))
    return words.tobytes()


def memory_blocks(
    ranges: Sequence[Range],
    read: Callable[[int, int], bytes],
    progress: Optional[Callable[[int, int], None]] = None,
) -> Iterator[bytes]:
    """The member "memory": the bytes of all ranges one after the other, in full blocks."""
    total = sum(end - start for start, end in ranges)
    pending = bytearray()
    done = 0
    for start, end in ranges:
        at = start
        while at < end:
            size = min(end - at, BLOCK - len(pending))
            pending += read(at, size)
            at += size
            done += size
            if len(pending) == BLOCK:
                yield bytes(pending)
                pending.clear()
                if progress is not None:
                    progress(done, total)
    if pending:
        yield bytes(pending)
