"""The time since boot that the kernel itself goes by.

Mirrors sys/kern/kern_tc.c, 6.x to 15.x: ``time_uptime`` counts seconds, and
``timehands->th_offset`` holds the same moment as a bintime.
"""

from __future__ import annotations

import struct
from typing import Optional

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.session import Kernel

_FRACTION = float(1 << 64)
_BINTIME = struct.Struct("<qQ")
_BINTIME32 = struct.Struct("<iQ")
#: seconds of a hundred years
_TOO_OLD = 100 * 366 * 86400
#: bytes of struct timehands in which th_offset lies in every version
_TIMEHANDS_HEAD = 96


def bintime(data: bytes) -> float:
    """A struct bintime as seconds: a time_t of 4 or 8 bytes, then 64 bits of fraction."""
    sec, fraction = (_BINTIME if len(data) == 16 else _BINTIME32).unpack(data)
    return float(sec + fraction / _FRACTION)


@cached(MEMORY)
def uptime(kernel: Kernel) -> Optional[float]:
    """Seconds since boot when the machine stopped; None where the kernel does not say.

    To a clock tick where th_offset can be told from the rest of struct
    timehands (its seconds are those of time_uptime), else to a second.
    """
    found = kernel.symbol("time_uptime")
    if found is None:
        return None
    # time_t: 4 bytes on i386, 8 elsewhere.
    width = found.size if found.size in (4, 8) else kernel.pointer_size
    try:
        seconds = kernel.unsigned(found.address, width)
    except MemoryFault as fault:
        kernel.warnings.add("uptime", fault.address, fault.reason)
        return None
    # It counts from 1 (tc_windup() runs before anything else does), and no machine is so old.
    if not 0 < seconds < _TOO_OLD:
        kernel.warnings.add(
            "uptime", found.address, f"time_uptime is {seconds}, which it cannot be"
        )
        return None
    return _th_offset(kernel, seconds, width) or float(seconds)


def _th_offset(kernel: Kernel, seconds: int, width: int) -> Optional[float]:
    """th_offset of the current timehands, whose layout no table here knows."""
    if not seconds or not kernel.has_symbol("timehands"):
        return None
    try:
        head = kernel.read(kernel.global_value("timehands"), _TIMEHANDS_HEAD)
    except MemoryFault:
        return None
    word = struct.Struct("<q" if width == 8 else "<i")
    places = [
        at
        for at in range(0, len(head) - width - 8, kernel.pointer_size)
        if word.unpack_from(head, at)[0] == seconds
    ]
    # th_bintime, which 12.0 added, holds the time of day, so one place only is th_offset's.
    return bintime(head[places[0] : places[0] + width + 8]) if len(places) == 1 else None
