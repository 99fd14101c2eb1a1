"""struct devstat: the transactions a device or a GEOM provider has started and ended.

Mirrors sys/sys/devicestat.h and sys/kern/subr_devstat.c, 6.x to 15.x.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.errors import MemoryFault
from plugin.kernel.tc import bintime
from plugin.session import Kernel


class Devstat(NamedTuple):
    """``busy_from``: seconds since boot at which the device last stopped being idle,
    or at which its last transaction ended while others were under way; None if never.
    """

    address: int
    name: str
    start_count: int
    end_count: int
    busy_from: Optional[float]
    #: transactions ended, reads and writes
    reads: int
    writes: int

    @property
    def in_flight(self) -> int:
        """Transactions started and not ended; the counters are 32 bits wide and wrap."""
        return (self.start_count - self.end_count) & 0xFFFFFFFF


_DEVSTAT_READ, _DEVSTAT_WRITE = 1, 2


def devstat(kernel: Kernel, address: int) -> Optional[Devstat]:
    """The devstat at ``address``; None for NULL, a warning and None where unreadable."""
    if not address:
        return None
    try:
        view = kernel.view("devstat", address)
    except MemoryFault as fault:
        kernel.warnings.add("devstat", fault.address, fault.reason)
        return None
    busy = view.bytes("busy_from")
    unit = view.unit_number
    operations = view.bytes("operations")
    width = len(operations) // 4
    count = [
        int.from_bytes(operations[i * width : (i + 1) * width], "little")
        for i in (_DEVSTAT_READ, _DEVSTAT_WRITE)
    ]
    # A provider's devstat is made without a name, with unit -1 (geom_subr.c).
    name = view.text("device_name")
    return Devstat(
        address,
        f"{name}{unit}" if name and unit >= 0 else name,
        view.start_count,
        view.end_count,
        bintime(busy) if any(busy) else None,
        *count,
    )
