"""Memory that comes over a wire: read once while the machine stands still, and counted.

A kernel's own stub sends a byte as two digits, hundreds of bytes a packet, over a serial
line at times: what is asked has to be little.  ``Wire`` keeps what came, and ``gather`` asks
for the members wanted of a struct and not for what lies between them.
"""

from __future__ import annotations

import re
import time
from typing import Callable, Dict, Optional, Sequence, Set, Tuple

from plugin.errors import MemoryFault

#: bytes that are kept as one
WORD = 8
#: words that a read alone is widened to: what lies beside is asked for next, most often
_AROUND = 4
#: characters of a packet and its answer beside the digits: "$m,10#00" "+" "$#00" "+", an address
PACKET = 31
#: words between two that are wanted and are read with them, for less than another packet
_GAP = PACKET // 2 // WORD
#: a longer read is no struct: it goes through and is not kept
_BULK = 1 << 16
#: no stub maps less: one that refuses a stretch is asked again, page by page
_PAGE = 4096
#: characters that one command may cost before what is not needed is left out
BUDGET = 125_000

#: what run-length encoding makes three characters of (sys/gdb/gdb_packet.c, gdb_tx_end)
_RUN = re.compile(rb"(.)\1{3,96}")

#: (start, end) within a struct
Span = Tuple[int, int]


class Wire:
    """A cache above ``fetch(address, size)``, which raises MemoryFault where nothing is.

    ``constant(address, size)`` gives what never changes and need not be asked for (the
    read-only part of the kernel's file), None where it has it not; it is asked once
    ``trusted`` is set.  ``asked`` counts reads,
    ``received`` bytes of memory, ``spent`` the characters that both came to, two a byte but
    for runs, which the kernel's stub counts instead of repeating them.  ``tell`` is called
    with progress before each read.
    """

    def __init__(
        self,
        fetch: Callable[[int, int], bytes],
        constant: Callable[[int, int], Optional[bytes]] = lambda address, size: None,
    ) -> None:
        self._fetch = fetch
        self._constant = constant
        self.asked = self.received = self.spent = 0
        #: True once memory has shown that it is the file's kernel that runs there
        self.trusted = False
        self.tell: Callable[[str, int, int], None] = lambda what, done, total: None
        self._words: Dict[int, bytes] = {}
        self._absent: Set[int] = set()
        self._since: Optional[float] = None

    def read(self, address: int, size: int) -> bytes:
        """Exactly ``size`` bytes, or MemoryFault with the first word that is not there."""
        if size <= 0:
            return b""
        if address < 0:
            raise MemoryFault(address, "no address")
        if size > _BULK:
            return self._ask(address, size)
        known = self._constant(address, size) if self.trusted else None
        if known is not None:
            return known
        first, last = address // WORD, (address + size - 1) // WORD
        if any(n not in self._words for n in range(first, last + 1)):
            self._want(range(first - first % _AROUND, last - last % _AROUND + _AROUND))
        return self._known(address, size)

    def forget(self) -> None:
        """What is behind the wire has run: nothing that came over it holds any more."""
        self._words.clear()
        self._absent.clear()

    def gather(self, address: int, spans: Sequence[Span], size: int) -> bytes:
        """``size`` bytes of which those in ``spans`` are memory's; MemoryFault as of ``read``."""
        wanted: Set[int] = set()
        for start, end in spans:
            wanted.update(range((address + start) // WORD, (address + end - 1) // WORD + 1))
        self._want(sorted(wanted))
        data = bytearray(size)
        for start, end in spans:
            data[start:end] = self._known(address + start, end - start)
        return bytes(data)

    def _known(self, address: int, size: int) -> bytes:
        first, last = address // WORD, (address + size - 1) // WORD
        for number in range(first, last + 1):
            if number not in self._words:
                raise MemoryFault(max(address, number * WORD), "the stub cannot read it")
        data = b"".join(self._words[number] for number in range(first, last + 1))
        return data[address - first * WORD :][:size]

    def _want(self, words: Sequence[int]) -> None:
        """Fetch those of these words that are not known, neighbours together."""
        missing = [n for n in words if n not in self._words and n not in self._absent]
        at = 0
        while at < len(missing):
            end = at + 1
            while end < len(missing) and missing[end] <= missing[end - 1] + 1 + _GAP:
                end += 1
            self._load(missing[at], missing[end - 1] + 1)
            at = end

    def _load(self, first: int, end: int) -> None:
        start = first * WORD
        try:
            data = self._ask(start, (end - first) * WORD)
        except MemoryFault:
            border = (start // _PAGE + 1) * _PAGE // WORD
            if end <= border:
                self._absent.update(range(first, end))
                return
            self._load(first, border)
            self._load(border, end)
            return
        for place, number in enumerate(range(first, end)):
            self._words[number] = data[place * WORD : (place + 1) * WORD]

    def _ask(self, address: int, size: int) -> bytes:
        now = time.monotonic()
        if self._since is None:
            self._since = now
        rate = self.received / 1024 / max(now - self._since, 0.001)
        what = f"over the wire, {self.asked} packets, {rate:.1f} KB/s, bytes"
        self.tell(what, self.received, 0)
        self.asked += 1
        self.spent += PACKET
        data = self._fetch(address, size)
        self.received += len(data)
        self.spent += len(_RUN.sub(b"0* ", data.hex().encode()))
        return data
