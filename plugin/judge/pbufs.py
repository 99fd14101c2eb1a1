"""Where the request of a pbuf is, and which of them swap waits for.

The pbufs themselves are kernel/pbuf.py's, the swap devices kernel/swap_pager.py's; here they
are joined to what GEOM has outstanding.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.judge.geom_io import OutstandingBio, buf_io, buf_of, top_requests
from plugin.kernel import swap_pager
from plugin.kernel.buf import Buf, iodone_name
from plugin.kernel.pbuf import Pbuf
from plugin.kernel.swap_pager import SwapDevice
from plugin.session import Kernel


class SwapRequests(NamedTuple):
    """The pbufs found on their way from (``reads``) and to (``writes``) a swap device."""

    device: SwapDevice
    reads: Tuple[Pbuf, ...]
    writes: Tuple[Pbuf, ...]

    @property
    def in_flight(self) -> int:
        return len(self.reads) + len(self.writes)


def request(kernel: Kernel, pbuf: Pbuf) -> Optional[OutstandingBio]:
    """The outstanding request of a pbuf, None where GEOM has none."""
    found = buf_io(kernel, pbuf.address)
    return found[0] if found else None


def age(kernel: Kernel, pbuf: Pbuf) -> Optional[float]:
    """Seconds since the oldest request of a pbuf, None where that is not kept."""
    ages = [each.age for each in buf_io(kernel, pbuf.address) if each.age is not None]
    return max(ages, default=None)


@cached(MEMORY)
def swap_requests(kernel: Kernel) -> List[SwapRequests]:
    """Every swap device with its requests, in the order of swtailq."""
    devices = swap_pager.devices(kernel)
    flying = swap_pager.pbufs(kernel)
    if len(devices) == 1:
        # A file, or a bio that was not found: with one device there is no doubt.
        return [_split(devices[0], flying)]
    return [_split(one, [p for p in flying if _is_for(kernel, p, one)]) for one in devices]


def _split(device: SwapDevice, found: List[Pbuf]) -> SwapRequests:
    reads = [each for each in found if each.buf.iocmd == "BIO_READ"]
    writes = [each for each in found if each.buf.iocmd != "BIO_READ"]
    return SwapRequests(device, tuple(reads), tuple(writes))


def _is_for(kernel: Kernel, pbuf: Pbuf, device: SwapDevice) -> bool:
    found = request(kernel, pbuf)
    if found is None:
        return False
    # bio_caller1 is the swdevt from 10.x on.
    by_name = device.provider is not None and found.bio.to == device.provider.address
    return found.bio.caller1 == device.address or by_name


def swap_write_bufs(kernel: Kernel) -> List[Tuple[Buf, str]]:
    """The bufs of asynchronous writes to swap, each with what says so.

    By the zones of pbufs, and by the bios: those find one whose slab cannot be read.
    """
    found = {each.address: (each.buf, each.why) for each in swap_pager.pbufs(kernel)}
    for request in top_requests(kernel):
        buf = buf_of(kernel, request.bio) if request.bio.cmd == "BIO_WRITE" else None
        if buf is not None and buf.address not in found:
            found[buf.address] = buf, f"bio {request.bio.address:#x} has it in bio_caller2"
    return [
        (buf, why)
        for buf, why in found.values()
        if buf.iocmd == "BIO_WRITE"
        and iodone_name(kernel, buf).startswith("swp_pager_async_iodone")
    ]


def swap_writes(kernel: Kernel) -> List[OutstandingBio]:
    """The swap pager's writes that GEOM has outstanding."""
    writes = [each for each in swap_pager.pbufs(kernel) if each.buf.iocmd == "BIO_WRITE"]
    return [found for found in (request(kernel, each) for each in writes) if found]
