"""Pipes and FIFOs: the two ends of one, and what lies between them.

Mirrors sys/kern/sys_pipe.c and sys/fs/fifofs, 7.x to 15.x.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel


class Pipe(NamedTuple):
    """One end, a struct pipe *: ``peer`` the other, ``held`` the bytes in its buffer.

    ``closed`` True where this end is (pipe_present), ``eof`` where the other is (PIPE_EOF).
    """

    address: int
    peer: int
    held: int
    closed: bool
    eof: bool


#: pipe_present of an end that is open, from 8.0 on (an int, then an enum of the same values)
_ACTIVE = 1


def pipe_at(kernel: Kernel, address: int) -> Optional[Pipe]:
    """The struct pipe at ``address``, None where it cannot be read."""
    try:
        view = kernel.view("pipe", address)
        closed = view.get("pipe_present", _ACTIVE) != _ACTIVE
        eof = bool(view.pipe_state & kernel.layouts.constant("PIPE_EOF", 0x80))
        return Pipe(address, view.pipe_peer, view["pipe_buffer.cnt"], closed, eof)
    except (MemoryFault, LayoutError):
        return None
