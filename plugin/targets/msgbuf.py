"""The kernel message buffer, read without any layout.

struct msgbuf began with msg_ptr, msg_magic, msg_size and msg_wseq in every version
from 5.x on (sys/sys/msgbuf.h), which is all that is used: it tells which kernel this
is before layouts are chosen, and can be shown where none fit.
"""

from __future__ import annotations

from typing import List, NamedTuple

from plugin.arch import architecture
from plugin.errors import MemoryFault, WchanError
from plugin.targets import Target

MSG_MAGIC = 0x063062
_MOST = 1 << 26


class Ring(NamedTuple):
    """The characters, oldest first; ``faults`` where the dump lacks some of them."""

    data: bytes
    faults: List[MemoryFault]


def ring(target: Target) -> Ring:
    """The ring of characters that ``msgbufp`` leads to, unrolled.

    MemoryFault where its header cannot be read, WchanError where it is none or no
    character of it is there.
    """
    symbols = target.symbols("msgbufp")
    if not symbols:
        raise WchanError("the kernel has no symbol msgbufp")
    width = architecture(target.arch).pointer_size
    address = int.from_bytes(target.read(symbols[0].address, width), "little")
    header = target.read(address, width + 12)
    start = int.from_bytes(header[:width], "little")
    magic, size, written = (
        int.from_bytes(header[at : at + 4], "little") for at in range(width, width + 12, 4)
    )
    if magic != MSG_MAGIC or not 0 < size <= _MOST:
        raise WchanError(
            f"no message buffer at {address:#x} (magic {magic:#x}, should be {MSG_MAGIC:#x})"
        )
    # msg_wseq counts characters modulo a multiple of the size (MSGBUF_SEQNORM); once
    # it has wrapped the oldest character is at the write position.
    position = written % size
    data, faults = b"", []
    for at, length in ((start + position, size - position), (start, position)):
        try:
            data += target.read(at, length) if length else b""
        except MemoryFault as fault:
            faults.append(fault)
            if fault.address > at:
                data += target.read(at, fault.address - at)
    if not data:
        raise WchanError(f"the message buffer at {start:#x} is not in the dump")
    return Ring(data, faults)
