"""A capsule: the bytes of one dump that the reports read, and what names them.

docs/capsule.md describes the file.  Nothing in it is trusted: every size is bounded before
anything is unpacked, every block has its checksum, and no name in it becomes a path.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import struct
import tempfile
import zlib
from bisect import bisect_right
from contextlib import suppress
from itertools import islice
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from plugin.arch import BY_NAME
from plugin.cachedir import cache_path, ours, writable
from plugin.errors import DumpError, MemoryFault
from plugin.vmcore.file import DumpFile
from plugin.vmcore.memory import MOST, CarriedModule

#: neither text nor safe to send as text: a transfer that changes line ends breaks it at once
MAGIC = b"wchan capsule\r\n\x1a"
VERSION = 1
#: magic, version, codec of the index; length of the file, where the index lies, its size
#: packed and unpacked; SHA-256 of the packed index
HEADER = struct.Struct("<16sIIQQII32s")
#: bytes of a member in one block, and at most in one that is read
BLOCK = 1 << 20
RAW, ZLIB, XZ, ZERO = range(4)

_MOST_INDEX = 64 << 20
_MOST_RANGES = 1 << 24
#: the largest member that is taken out whole
_MOST_MEMBER = 256 << 20
#: the largest file whose every checksum is looked at when it is opened
_CHECKED = 64 << 20
_KEPT = 64
#: what xz may allocate: its dictionary is no larger than a block
_XZ_MEMORY = 64 << 20


class Block(NamedTuple):
    """``size`` bytes of a member, ``packed`` of them in the file, at ``offset``."""

    offset: int
    packed: int
    size: int
    crc: int
    codec: int


class Capsule:
    """The file: its facts, and its members taken out whole or block by block."""

    def __init__(self, file: DumpFile, path: str) -> None:
        self.path = path
        self._file = file
        head = file.read(0, HEADER.size)
        if len(head) < HEADER.size:
            raise DumpError(f"{path} is a capsule cut off in its first bytes: copy it again")
        _, self.version, codec, length, at, packed, size, digest = HEADER.unpack(head)
        if self.version != VERSION:
            raise DumpError(
                f"{path} is a capsule of version {self.version}; this wchan reads version "
                f"{VERSION}: update it"
            )
        if length != len(file):
            raise DumpError(
                f"{path} is a capsule of {length} bytes, {len(file)} are there: "
                + ("copy it again" if len(file) < length else "something was added to it")
            )
        if packed > _MOST_INDEX or size > _MOST_INDEX or at + packed > length:
            raise self._damaged("its index is larger than any")
        raw = file.read(at, packed)
        if len(raw) != packed or hashlib.sha256(raw).digest() != digest:
            raise self._damaged("the checksum of its index is wrong")
        try:
            index = json.loads(unpack(raw, codec, size))
            self.facts: Dict[str, Any] = dict(index["facts"])
            self._members = {
                str(name): [self._block(each) for each in blocks]
                for name, blocks in index["members"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise self._damaged("its index says what cannot be") from None
        if length <= _CHECKED:
            for name in self._members:
                for block in self._members[name]:
                    self.packed(block)

    def _damaged(self, why: str) -> DumpError:
        return DumpError(f"{self.path} is a damaged capsule: {why}")

    def _block(self, told: Any) -> Block:
        block = Block(*map(int, told))
        if not (
            0 <= block.offset <= block.offset + block.packed <= len(self._file)
            and block.packed >= 0
            and 0 <= block.size <= BLOCK
        ):
            raise ValueError
        return block

    @property
    def names(self) -> Sequence[str]:
        """The members there are."""
        return list(self._members)

    def blocks(self, name: str) -> Sequence[Block]:
        return self._members.get(name, ())

    def size(self, name: str) -> int:
        """Bytes of a member, 0 where there is none of that name."""
        return sum(block.size for block in self.blocks(name))

    def packed(self, block: Block) -> bytes:
        """A block as the file has it; DumpError where its checksum is wrong."""
        raw = self._file.read(block.offset, block.packed)
        if len(raw) != block.packed or zlib.crc32(raw) != block.crc:
            raise self._damaged(f"the checksum at {block.offset} is wrong")
        return raw

    def block(self, block: Block) -> bytes:
        """The bytes of a block; DumpError where it is damaged."""
        try:
            return unpack(self.packed(block), block.codec, block.size)
        except ValueError as error:
            raise self._damaged(f"at {block.offset}: {error}") from None

    def member(self, name: str, most: int = _MOST_MEMBER) -> bytes:
        """The whole of a member, b"" where there is none; DumpError where it is damaged."""
        if self.size(name) > most:
            raise self._damaged(f"{name!r} is larger than any")
        return b"".join(map(self.block, self.blocks(name)))

    def read_json(self, name: str) -> Any:
        """A member that is JSON, None where there is none; DumpError where it is none."""
        data = self.member(name)
        try:
            return json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise self._damaged(f"{name!r} is no JSON") from None

    def plain_file(self, name: str, called: str) -> str:
        """The path of a file with a member's bytes, in the cache under their own digest."""
        data = self.member(name)
        digest = hashlib.sha256(data).hexdigest()
        folder = writable(writable(cache_path()) / f"capsule-{digest[:40]}")
        path = folder / called
        with suppress(OSError):
            if ours(path) and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
                return str(path)
        handle, part = tempfile.mkstemp(suffix=".part", dir=str(folder))
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(part)
            raise DumpError(f"{self.path}: no room in {folder}: {error.strerror}") from None
        return str(path)


def unpack(raw: bytes, codec: int, size: int) -> bytes:
    """Exactly ``size`` bytes; ValueError where ``raw`` holds more, fewer, or nonsense.

    Never more than ``size`` bytes are made of it, whatever it claims to be.
    """
    if codec == ZERO:
        return bytes(size)
    if codec == RAW:
        data, ended = raw, True
    elif codec == ZLIB:
        inflating = zlib.decompressobj()
        try:
            # One byte more than there may be, which also lets it come to its end.
            data = inflating.decompress(raw, size + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from None
        ended = inflating.eof
    elif codec == XZ:
        data, ended = _unxz(raw, size)
    else:
        raise ValueError(f"packed in a way ({codec}) that is not known")
    if not ended or len(data) != size:
        raise ValueError("a block is not as long as it says")
    return data


def _unxz(raw: bytes, size: int) -> Tuple[bytes, bool]:
    try:
        lzma = importlib.import_module("lzma")
    except ImportError:
        raise ValueError("packed with xz, and this Python was built without lzma") from None
    expanding = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    try:
        data = expanding.decompress(raw, size + 1)
        while not expanding.eof and len(data) <= size:
            more = expanding.decompress(b"", size + 1 - len(data))
            if not more and expanding.needs_input:
                break
            data += more
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(str(error)) from None
    return data, expanding.eof


class CapsuleMemory:
    """The memory in a capsule, read by virtual address as a dump is.

    What the dump itself lacked fails here as it failed there; what was left out is
    "not in the capsule".  ``kernel_file`` is the kernel to open it with, ``carried``
    what is known of the files of its modules, ``notes`` what every report must say.
    """

    version: Optional[str] = None
    #: of a page only those words are there that were read
    in_pages = False

    def __init__(self, file: DumpFile, path: str, file_path: str) -> None:
        capsule = Capsule(file, path)
        self.capsule = capsule
        self._file = file
        self.path = path
        self.file_path = file_path
        facts = capsule.facts
        try:
            self.arch = str(facts["arch"])
            self.page_size = int(facts["page_size"])
            self.truncated = facts["truncated"] is True
            self.format = f"capsule of a {facts['format']}"
            self.notes = [str(note) for note in facts["notes"]]
            self._set_ranges(capsule.member("ranges"), capsule.size("memory"))
            self._set_faults(capsule.read_json("faults") or {"reasons": [], "at": []})
            self._modules = [dict(told) for told in facts["modules"]]
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DumpError(f"{path} is a damaged capsule: its facts are not whole") from None
        if self.arch not in BY_NAME or self.page_size not in (4096, 8192, 16384, 65536):
            raise DumpError(f"{path} is a capsule of a {self.arch} machine, which is not known")
        self._blocks = capsule.blocks("memory")
        self._kept: Dict[int, bytes] = {}
        self._carried: Optional[Dict[str, CarriedModule]] = None
        # From here on a failing disk is a gap in memory.
        file.lenient = True

    def __repr__(self) -> str:
        return f"<CapsuleMemory {self.path}: {self.arch} {self.format}>"

    def _set_ranges(self, raw: bytes, total: int) -> None:
        """[start, end) of each stretch that was kept, and where it begins in the member."""
        if len(raw) % 16 or len(raw) // 16 > _MOST_RANGES:
            raise ValueError
        words = memoryview(raw).cast("Q").tolist()
        self._starts: List[int] = words[0::2]
        self._ends: List[int] = words[1::2]
        self._places: List[int] = []
        place = before = 0
        for start, end in zip(self._starts, self._ends):
            if not before <= start < end:
                raise ValueError
            self._places.append(place)
            place += end - start
            before = end
        if place != total:
            raise ValueError
        # All blocks but the last are full: a place says which one it is in.
        if any(block.size != BLOCK for block in self.capsule.blocks("memory")[:-1]):
            raise ValueError

    def _set_faults(self, told: Any) -> None:
        reasons = [str(reason) for reason in told["reasons"]]
        at = sorted((int(start), int(end), reasons[int(why)]) for start, end, why in told["at"])
        self._fault_starts = [start for start, _, _ in at]
        self._faults = at

    def close(self) -> None:
        self._kept.clear()
        self._file.close()

    @property
    def message_buffer(self) -> bytes:
        """The copy of the message buffer that the dump began with, where a report read it."""
        return self.capsule.member("message buffer")

    @property
    def kernel_file(self) -> str:
        """The path of the kernel's symbols and types as an ELF file; DumpError if damaged."""
        if not self.capsule.size("kernel"):
            raise DumpError(f"{self.path} is a damaged capsule: no kernel is in it")
        return self.capsule.plain_file("kernel", "kernel")

    @property
    def carried(self) -> Mapping[str, CarriedModule]:
        """What was known of each module's file when the capsule was made, by file name."""
        if self._carried is None:
            self._carried = {}
            for told in self._modules:
                member = str(told.get("member") or "")
                there = self.capsule.size(member) > 0
                refused = [(str(path), str(why)) for path, why in told.get("refused", ())]
                self._carried[str(told.get("name"))] = CarriedModule(
                    self.capsule.plain_file(member, "module") if there else None,
                    str(told.get("path") or ""),
                    str(told.get("why") or ""),
                    refused,
                )
        return self._carried

    # Reading

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes, or MemoryFault with the first address not there."""
        at = bisect_right(self._starts, address) - 1
        if at >= 0 and size >= 0 and address + size <= self._ends[at]:
            return self._bytes(address, self._places[at] + address - self._starts[at], size)
        if address < 0 or size < 0 or size > MOST:
            raise MemoryFault(address, f"a read of {size} bytes is refused")
        if not size:
            return b""
        missing = self._ends[at] if at >= 0 and address < self._ends[at] else address
        raise MemoryFault(missing, self._why(missing))

    def _bytes(self, address: int, place: int, size: int) -> bytes:
        number, inside = divmod(place, BLOCK)
        pieces: List[bytes] = []
        while True:
            block = self._kept.get(number)
            if block is None:
                block = self._load(number, address)
            piece = block[inside : inside + size]
            if len(piece) == size and not pieces:
                return piece
            pieces.append(piece)
            size -= len(piece)
            if not size:
                return b"".join(pieces)
            number, inside = number + 1, 0

    def _load(self, number: int, address: int) -> bytes:
        if len(self._kept) >= _KEPT:
            for old in list(islice(self._kept, _KEPT // 4)):
                del self._kept[old]
        try:
            block = self.capsule.block(self._blocks[number])
        except DumpError as error:
            raise MemoryFault(address, str(error)) from None
        self._kept[number] = block
        return block

    def _why(self, address: int) -> str:
        at = bisect_right(self._fault_starts, address) - 1
        if at >= 0 and address < self._faults[at][1]:
            return self._faults[at][2]
        return "not in the capsule"
