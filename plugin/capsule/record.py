"""A target that remembers what was read of it, and what could not be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from plugin.errors import MemoryFault
from plugin.symbol import Symbol
from plugin.targets import Target
from plugin.vmcore.memory import MOST

if TYPE_CHECKING:
    from plugin.structs import LayoutSource
    from plugin.vmcore.memory import CarriedModule

#: reads kept one by one before they are merged
_PENDING = 1 << 18
#: what lies before the first bad byte of a read is kept up to this; a walk reads it once more
_MOST_BEFORE_FAULT = 1 << 20

#: [start, end) of memory
Range = Tuple[int, int]


class Recorder:
    """``target``, watched: everything that crosses the port passes unchanged."""

    def __init__(self, target: Target, page_size: int) -> None:
        self._target = target
        self._page = page_size
        self._reads: Dict[int, int] = {}
        self._ranges: List[Range] = []
        #: what the target said of its own debug information
        self.type_notes: List[str] = []
        #: the layouts in it, None where it has none
        self.source: Optional[LayoutSource] = None
        #: the copy of the message buffer, where it was asked for
        self.copy = b""
        self._faults: Dict[int, Tuple[int, str]] = {}
        self.arch = target.arch
        self.page_size = target.page_size
        self.stable = target.stable
        # Word by word: what else lies in a page is nobody's business.
        self.in_pages = False
        self.wire = None
        self.truncated = target.truncated
        self.description = target.description

    def read(self, address: int, size: int) -> bytes:
        try:
            data = self._target.read(address, size)
        except MemoryFault as fault:
            self._fault(address, size, fault)
            raise
        reads = self._reads
        if size > reads.get(address, 0):
            reads[address] = size
            if len(reads) > _PENDING:
                self._merge()
        return data

    def _fault(self, address: int, size: int, fault: MemoryFault) -> None:
        at = fault.address
        if not 0 <= size <= MOST or not 0 <= address <= at < address + size:
            return
        page_end = (at // self._page + 1) * self._page
        self._faults.setdefault(at, (page_end, fault.reason))
        if 0 < at - address <= _MOST_BEFORE_FAULT:
            self._reads[address] = max(self._reads.get(address, 0), at - address)

    def _merge(self) -> None:
        read = [(start, start + size) for start, size in self._reads.items()]
        self._reads = {}
        self._ranges = list(merged([*self._ranges, *read]))

    def ranges(self) -> List[Range]:
        """What was read, in order, none touching the next."""
        self._merge()
        return self._ranges

    def faults(self) -> List[Tuple[int, int, str]]:
        """(start, end, reason) of what the target lacks, as far as it was asked for."""
        return [(start, end, why) for start, (end, why) in sorted(self._faults.items())]

    # The rest of the port

    @property
    def files(self) -> Sequence[str]:
        return self._target.files

    @property
    def carried(self) -> Mapping[str, CarriedModule]:
        return self._target.carried

    @property
    def message_buffer(self) -> bytes:
        self.copy = self._target.message_buffer
        return self.copy

    def symbols(self, name: str) -> Sequence[Symbol]:
        return self._target.symbols(name)

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        return self._target.symbolize(address)

    def types(self, notes: List[str]) -> Optional[LayoutSource]:
        before = len(notes)
        self.source = self._target.types(notes)
        self.type_notes = notes[before:]
        return self.source

    def interrupted(self) -> bool:
        return self._target.interrupted()


def merged(ranges: Sequence[Range]) -> Iterator[Range]:
    """The same memory in order, what touches made one."""
    start = end = -1
    for first, last in sorted(ranges):
        if first > end:
            if end > start:
                yield start, end
            start, end = first, last
        elif last > end:
            end = last
    if end > start:
        yield start, end
