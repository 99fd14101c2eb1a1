"""KernelMemory: an opened dump, read by virtual address."""

from __future__ import annotations

from itertools import islice
from types import MappingProxyType
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Tuple

from plugin.arch.space import AddressSpace
from plugin.errors import MemoryFault
from plugin.vmcore.file import DumpFile
from plugin.vmcore.physical import Physical

#: bytes of pages kept in memory
_CACHE = 64 << 20
#: the longest read answered from kept pages; longer ones go straight to the file
_SMALL = 16 << 10
#: the longest read answered at all: a length out of a corrupt struct must not fill memory
MOST = 1 << 30


class CarriedModule(NamedTuple):
    """What a capsule tells of the file of one module.

    ``file`` is a file with its symbols and types, None where none was found when the
    capsule was made; ``path`` is where it lay then, ``why`` what proved it, ``refused`` the
    (path, evidence) of files of another build.
    """

    file: Optional[str]
    path: str
    why: str
    refused: List[Tuple[str, str]]


class Memory(Protocol):
    """What is opened of a dump, whatever its format: memory by virtual address."""

    arch: str
    format: str
    page_size: int
    truncated: bool
    path: str
    file_path: str
    #: as of a target: whole pages are there
    in_pages: bool
    #: out of the header of a dump device
    version: Optional[str]

    @property
    def message_buffer(self) -> bytes: ...

    @property
    def carried(self) -> Mapping[str, CarriedModule]:
        """What the dump itself tells of its modules' files, by file name; {} but of a capsule."""
        ...

    def read(self, address: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class KernelMemory:
    """One opened dump.

    ``arch`` is uname's name of the machine, ``format`` says what the file is
    ("minidump v3", "full ELF dump"), ``path`` the name given and ``file_path``
    the file that is read (another where the dump was compressed).
    ``physical_bytes`` are present in the file; ``truncated`` says that the
    dump announces more.  ``panicstring``, ``version`` and ``hostname`` come
    from the header of a dump device and are None elsewhere.
    """

    panicstring: Optional[str] = None
    version: Optional[str] = None
    hostname: Optional[str] = None
    in_pages = True
    #: only a capsule tells of its modules' files
    carried: Mapping[str, CarriedModule] = MappingProxyType({})

    def __init__(
        self,
        file: DumpFile,
        *,
        path: str,
        file_path: str,
        arch: str,
        format: str,
        page_size: int,
        physical: Physical,
        space: AddressSpace,
        truncated: bool,
        msgbuf: Tuple[int, int] = (0, 0),
    ) -> None:
        self._file = file
        file.lenient = True
        file.at_random()
        self.path = path
        self.file_path = file_path
        self.arch = arch
        self.format = format
        self.page_size = page_size
        self.physical = physical
        self.space = space
        self.truncated = truncated
        self._msgbuf = msgbuf
        self._mask = page_size - 1
        self._pages: Dict[int, bytes] = {}
        self._most_pages = _CACHE // page_size

    def __repr__(self) -> str:
        return f"<KernelMemory {self.path}: {self.arch} {self.format}>"

    def __enter__(self) -> KernelMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pages.clear()
        self._file.close()

    @property
    def physical_bytes(self) -> int:
        return self.physical.present

    @property
    def message_buffer(self) -> bytes:
        """The copy of the kernel's message buffer that a minidump begins with, raw."""
        offset, size = self._msgbuf
        return self._file.read(offset, size) if size else b""

    # Reading

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes, or MemoryFault with the first address not there."""
        inside = address & self._mask
        page = self._pages.get(address - inside)
        # A size out of a corrupt struct may be negative: refused, whatever was read before.
        if page is not None and inside <= inside + size <= len(page):
            return page[inside : inside + size]
        return self._read(address, size)

    def _read(self, address: int, size: int) -> bytes:
        if address < 0 or size < 0 or size > MOST:
            raise MemoryFault(address, f"a read of {size} bytes is refused")
        if size > _SMALL:
            return self._read_long(address, size)
        pieces: List[bytes] = []
        at, end = address, address + size
        while at < end:
            inside = at & self._mask
            page = self._pages.get(at - inside)
            if page is None:
                page = self._load(at - inside, at)
            piece = page[inside : inside + end - at]
            if not piece:
                # Only the page that a truncated file ends in is short.
                raise self._fault(at)
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _load(self, base: int, address: int) -> bytes:
        """The page at ``base``, short where the file ends in it; ``address`` is to blame."""
        pa = self.space.translate(base)
        offset = self.physical.offset(pa) if pa >= 0 else -1
        if offset < 0:
            raise self._fault(address)
        data = self._file.read(offset, min(self.page_size, self._file.end - offset))
        if not data:
            raise self._fault(address)
        pages = self._pages
        if len(pages) >= self._most_pages:
            for old in list(islice(pages, self._most_pages // 4)):
                del pages[old]
        pages[base] = data
        return data

    def _read_long(self, address: int, size: int) -> bytes:
        pieces: List[bytes] = []
        at = address
        for start, offset, length in self.runs(address, size):
            if start != at:
                break
            data = self._file.read(offset, length)
            pieces.append(data)
            at += len(data)
            if len(data) != length:
                break
        if at != address + size:
            raise self._fault(at)
        return b"".join(pieces)

    def _fault(self, address: int) -> MemoryFault:
        pa = self.space.translate(address)
        if pa < 0:
            return MemoryFault(address, "not mapped, or its page tables are not in the dump")
        if self._file.trouble:
            return MemoryFault(address, f"the file cannot be read: {self._file.trouble}")
        if self.truncated:
            return MemoryFault(address, "not in the dump, which is truncated")
        return MemoryFault(address)

    # Where things are

    def translate(self, address: int) -> int:
        """The physical address, in the dump or not; MemoryFault where nothing is mapped."""
        pa = self.space.translate(address) if address >= 0 else -1
        if pa < 0:
            raise MemoryFault(address, "not mapped, or its page tables are not in the dump")
        return pa

    def present(self, address: int) -> bool:
        """True where the byte at ``address`` can be read."""
        pa = self.space.translate(address) if address >= 0 else -1
        return pa >= 0 and self.physical.offset(pa) >= 0

    def read_physical(self, pa: int, size: int) -> bytes:
        """Exactly ``size`` bytes of physical memory, or MemoryFault with its address."""
        if pa < 0 or size < 0 or size > MOST:
            raise MemoryFault(pa, f"a read of {size} bytes of physical memory is refused")
        pieces: List[bytes] = []
        at = pa
        while at < pa + size:
            offset, length = self.physical.extent(at, pa + size - at)
            data = self._file.read(offset, length) if offset >= 0 else b""
            if len(data) != length:
                raise MemoryFault(at + len(data), "this physical memory is not in the dump")
            pieces.append(data)
            at += length
        return b"".join(pieces)

    def runs(self, address: int, size: int) -> Iterator[Tuple[int, int, int]]:
        """(address, file offset, length) of each contiguous piece of the range in the file.

        What is not in the dump is left out: a gap shows in the addresses.
        """
        at, end = address, address + size
        first = last = offset = -1
        while at < end:
            pa, span = self.space.extent(at, end - at)
            stop = at + span
            while at < stop:
                place, length = self.physical.extent(pa, stop - at) if pa >= 0 else (-1, stop - at)
                if place >= 0:
                    if last != at or place != offset + (at - first):
                        if last >= 0:
                            yield first, offset, last - first
                        first, offset = at, place
                    last = at + length
                at += length
                pa += length
        if last >= 0:
            yield first, offset, last - first

    def chunks(self, address: int, size: int, most: int = 1 << 20) -> Iterator[Tuple[int, bytes]]:
        """(address, bytes) of all of the range that is in the dump, ``most`` bytes at a time."""
        for start, offset, length in self.runs(address, size):
            for at in range(0, length, most):
                data = self._file.read(offset + at, min(most, length - at))
                if data:
                    yield start + at, data
