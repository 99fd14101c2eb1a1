"""Swap: its devices, how full they are, and what is on its way to and from them.

Mirrors sys/vm/swap_pager.c and swap_pager.h, 6.x to 15.x.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel import pbuf
from plugin.kernel.geom import Provider, consumer_at
from plugin.kernel.pbuf import Pbuf
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.vnode import vnode_at
from plugin.session import Kernel

#: nswapdev is a handful; ends a walk over garbage
_MAX_DEVICES = 1024


class SwapDevice(NamedTuple):
    """One swap device; ``nblks`` and ``used`` in pages, ``total`` in bytes.

    ``in_flight`` counts its pages' requests: ``reads`` and ``writes`` are the
    pbufs found for it, by address.  ``counted`` is what the kernel itself counts
    in flight (g_consumer.index less one), None where it does not.
    """

    address: int
    name: str
    flags: Tuple[str, ...]
    nblks: int
    used: int
    page_size: int
    vnode: int
    provider: Optional[Provider]
    reads: Tuple[int, ...]
    writes: Tuple[int, ...]
    counted: Optional[int]

    @property
    def total(self) -> int:
        return self.nblks * self.page_size

    @property
    def used_bytes(self) -> int:
        return self.used * self.page_size

    @property
    def in_flight(self) -> int:
        return len(self.reads) + len(self.writes)


class SwapSpace(NamedTuple):
    """``avail`` pages free on all devices (swap_pager_avail), and the pager's own flags."""

    avail: Optional[int]
    full: bool
    almost_full: bool


def devices(kernel: Kernel) -> List[SwapDevice]:
    """Every device on swtailq."""
    return kernel.once("swap devices", lambda: list(_devices(kernel)))


def _devices(kernel: Kernel) -> Iterator[SwapDevice]:
    symbol = kernel.symbol("swtailq")
    if symbol is None:
        return
    flying = [pager for pager in pbuf.bufs(kernel) if is_swap(kernel, pager)]
    strays = list(flying)
    found = []
    for address, values in tailq_foreach(
        kernel,
        symbol.address,
        "swdevt",
        "sw_list",
        ["sw_flags", "sw_nblks", "sw_used", "sw_vp", "sw_id"],
        what="swtailq",
        bound=_MAX_DEVICES,
    ):
        flags, nblks, used, vnode, ident = values
        provider, counted = _consumer(kernel, ident)
        mine = [pager for pager in flying if _is_for(pager, address, provider)]
        strays = [pager for pager in strays if pager not in mine]
        found.append((address, flags, nblks, used, vnode, provider, counted, mine))
    for address, flags, nblks, used, vnode, provider, counted, mine in found:
        if len(found) == 1:
            # A file, or a bio that was not found: with one device there is no doubt.
            mine = mine + strays
        yield SwapDevice(
            address,
            _name(kernel, provider, vnode, address),
            tuple(kernel.layouts.flags("sw_flags", flags)),
            nblks,
            used,
            kernel.page_size,
            vnode,
            provider,
            tuple(p.address for p in mine if p.buf.iocmd == "BIO_READ"),
            tuple(p.address for p in mine if p.buf.iocmd != "BIO_READ"),
            counted,
        )


def is_swap(kernel: Kernel, pager: Pbuf) -> bool:
    """True for a pbuf that the swap pager uses."""
    return pager.pool in (
        "swap reads",
        "sync swap writes",
        "async swap writes",
        "swrbuf",
        "swwbuf",
    )


def writes(kernel: Kernel) -> List[Pbuf]:
    """The swap pager's writes in flight."""
    return [p for p in pbuf.bufs(kernel) if is_swap(kernel, p) and p.buf.iocmd == "BIO_WRITE"]


def _consumer(kernel: Kernel, ident: int) -> Tuple[Optional[Provider], Optional[int]]:
    """The provider behind sw_id, a g_consumer for a disk, and its requests in flight.

    The consumer's index counts them from 9.x on, and one for being open.
    """
    consumer = consumer_at(kernel, ident) if ident else None
    if consumer is None:
        return None, None
    counted: Optional[int] = None
    try:
        value = kernel.view("g_consumer", ident).index
        # Bit 31 says that the device is to be closed (swapgeom_orphan(), 10.x on).
        counted = (value & 0x7FFFFFFF) - 1 if value & 0x7FFFFFFF else None
    except (MemoryFault, LayoutError):
        counted = None
    return consumer.provider, counted


def _is_for(pager: Pbuf, device: int, provider: Optional[Provider]) -> bool:
    if pager.io is None:
        return False
    bio = pager.io.bio
    # bio_caller1 is the swdevt from 10.x on.
    return bio.caller1 == device or (provider is not None and bio.to == provider.address)


def _name(kernel: Kernel, provider: Optional[Provider], vnode: int, address: int) -> str:
    if provider is not None:
        return provider.name
    found = vnode_at(kernel, vnode) if vnode else None
    if found is not None:
        return found.path or found.label
    return f"swdevt {address:#x}"


def space(kernel: Kernel) -> SwapSpace:
    """The pager's own view of how much swap is left."""
    values = {}
    for name in ("swap_pager_avail", "swap_pager_full", "swap_pager_almost_full"):
        symbol = kernel.symbol(name)
        if symbol is None:
            continue
        try:
            values[name] = kernel.signed(symbol.address, symbol.size or 4)
        except MemoryFault as fault:
            kernel.warnings.add(name, fault.address, fault.reason)
    return SwapSpace(
        values.get("swap_pager_avail"),
        bool(values.get("swap_pager_full", 0)),
        bool(values.get("swap_pager_almost_full", 0)),
    )
