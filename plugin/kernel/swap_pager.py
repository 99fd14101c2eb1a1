"""Swap: its devices, how full they are, and what is on its way to and from them.

Mirrors sys/vm/swap_pager.c and swap_pager.h, 6.x to 15.x.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel import pbuf, pctrie
from plugin.kernel.geom import Provider, consumer_at
from plugin.kernel.pbuf import Pbuf
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.vnode import vnode_at
from plugin.session import Kernel

#: nswapdev is a handful; ends a walk over garbage
_MAX_DEVICES = 1024
#: the pools that its pbufs are from, in both eras
_POOLS = ("swap reads", "sync swap writes", "async swap writes", "swrbuf", "swwbuf")


class SwapDevice(NamedTuple):
    """One swap device; ``nblks`` and ``used`` in pages, ``total`` in bytes.

    ``counted`` is how many requests the kernel itself counts in flight
    (g_consumer.index less one), None where it does not; judge/pbufs.py finds them.
    """

    address: int
    name: str
    flags: Tuple[str, ...]
    nblks: int
    used: int
    #: its blocks: sw_first to sw_end, in pages
    first: int
    end: int
    page_size: int
    vnode: int
    provider: Optional[Provider]
    counted: Optional[int]

    @property
    def total(self) -> int:
        return self.nblks * self.page_size

    @property
    def used_bytes(self) -> int:
        return self.used * self.page_size


class SwapSpace(NamedTuple):
    """``avail`` pages free on all devices (swap_pager_avail), and the pager's own flags."""

    avail: Optional[int]
    full: bool
    almost_full: bool


@cached(MEMORY)
def devices(kernel: Kernel) -> List[SwapDevice]:
    """Every device on swtailq."""
    return list(_devices(kernel))


def _devices(kernel: Kernel) -> Iterator[SwapDevice]:
    symbol = kernel.symbol("swtailq")
    if symbol is None:
        return
    for address, values in tailq_foreach(
        kernel,
        symbol.address,
        "swdevt",
        "sw_list",
        ["sw_flags", "sw_nblks", "sw_used", "sw_vp", "sw_id", "sw_first", "sw_end"],
        what="swtailq",
        bound=_MAX_DEVICES,
    ):
        flags, nblks, used, vnode, ident, first, end = values
        provider, counted = _consumer(kernel, ident)
        yield SwapDevice(
            address,
            _name(kernel, provider, vnode, address),
            tuple(kernel.layouts.flags("sw_flags", flags)),
            nblks,
            used,
            first,
            end,
            kernel.page_size,
            vnode,
            provider,
            counted,
        )


def pbufs(kernel: Kernel) -> List[Pbuf]:
    """The pbufs that the swap pager uses, each a request on its way."""
    return [each for each in pbuf.bufs(kernel) if each.pool in _POOLS]


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


SWAPBLK_NONE = -1
#: swblocks on one hash chain, to 11.x
_MAX_CHAIN = 1 << 16


def swap_block(kernel: Kernel, owner: int, pindex: int) -> Optional[int]:
    """The swap block, in pages, of page ``pindex`` of the object at ``owner``; None if it
    has none or that cannot be told.

    swp_pager_meta_lookup(): a tree for each object from 12.0, one hash table before.
    """
    try:
        if kernel.layouts.has("vm_object", "un_pager.swp.swp_blks"):
            block = _in_tree(kernel, owner, pindex)
        elif kernel.has_symbol("swhash"):
            block = _in_hash(kernel, owner, pindex)
        else:
            return None
    except MemoryFault as fault:
        kernel.warnings.add(f"swap blocks of object {owner:#x}", fault.address, fault.reason)
        return None
    except LayoutError as error:
        kernel.warnings.add(f"swap blocks of object {owner:#x}", owner, str(error))
        return None
    return None if block == SWAPBLK_NONE else block


def _in_tree(kernel: Kernel, owner: int, pindex: int) -> int:
    layouts = kernel.layouts
    slots = layouts.resolve("swblk", "d").size // 8
    trie = owner + layouts.offsetof("vm_object", "un_pager.swp.swp_blks")
    root = kernel.pointer(trie)
    key = pctrie.lookup(kernel, root, "swpctrie", pindex - pindex % slots)
    if key is None:
        return SWAPBLK_NONE
    first = key - layouts.offsetof("swblk", "p") + layouts.offsetof("swblk", "d")
    return kernel.signed(first + pindex % slots * 8, 8)


def _in_hash(kernel: Kernel, owner: int, pindex: int) -> int:
    layouts = kernel.layouts
    pages = layouts.resolve("swblock", "swb_pages")
    slots = layouts.constant("SWAP_META_PAGES", 32)
    width = pages.size // slots
    index = pindex - pindex % slots
    mask = kernel.global_value("swhash_mask")
    bucket = (index ^ owner) & mask
    at = kernel.pointer(kernel.global_value("swhash") + bucket * kernel.pointer_size)
    fields = layouts.fields("swblock", "swb_hnext", "swb_object", "swb_index")
    for _ in range(_MAX_CHAIN):
        if not at:
            break
        following, of, first = kernel.values(fields, at)
        if of == owner and first == index:
            return kernel.signed(at + pages.offset + pindex % slots * width, width)
        at = following
    return SWAPBLK_NONE


def device_of_block(kernel: Kernel, block: int) -> Optional[SwapDevice]:
    """The device that a swap block lies on."""
    for device in devices(kernel):
        if device.first <= block < device.end:
            return device
    return None
