"""Pager buffers: every pool of them, who waits for one, and what each one in use does.

Mirrors sys/vm/vm_pager.c, in its two eras.  To 12.x there is one array, swbuf, a
free list, and a counter per user from which getpbuf() takes ("wswbuf0": the
counter is 0, "wswbuf1": the list is empty).  From 13.0 each user has a zone of
its own on the keg of pbuf_zone, with a limit of its own ("zonelimit").  In both
the asynchronous writes of the swap pager are counted besides ("swbufa").
"""

from __future__ import annotations

from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel.buf import Buf, b_pages, iodone_name, locked_bufs, try_buf_at
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.sleepqueue import sleepers
from plugin.kernel.uma import Zone, items, zone_at, zones_of_keg
from plugin.kernel.vm_object import try_object_at
from plugin.kernel.vm_page import try_page_at
from plugin.session import Kernel

#: more pbufs than any kernel makes
_MAX_PBUFS = 1 << 14


class Pool(NamedTuple):
    """A pool.  ``limit`` None where it is unlimited; ``free`` then None too.

    ``name`` says whose it is, ``symbol`` is the kernel's variable for it, ``wchan``
    where threads that find it exhausted sleep, ``waiters`` those threads.
    """

    name: str
    symbol: str
    address: int
    limit: Optional[int]
    in_use: int
    free: Optional[int]
    wchan: int
    waiters: Tuple[int, ...]
    #: "counter" (to 12.x), "list" (bswlist) or "zone" (from 13.0)
    kind: str

    @property
    def exhausted(self) -> bool:
        return self.limit is not None and self.free is not None and self.free <= 0


class Pbuf(NamedTuple):
    """A pbuf in use: ``pool`` it was taken from, "" where nothing tells.

    ``why`` is how that is told; ``object`` and ``vnode`` what its pages belong to, 0 if
    unknown; ``waiters`` the threads asleep on it.  Where its request is, judge/pbufs.py says.
    """

    buf: Buf
    pool: str
    why: str
    pages: Tuple[int, ...]
    object: int
    vnode: int
    waiters: Tuple[int, ...]

    @property
    def address(self) -> int:
        return self.buf.address


def _half(nswbuf: int) -> int:
    return nswbuf // 2


def _half_and_one(nswbuf: int) -> int:
    return nswbuf // 2 + 1


#: counters of the first era: (symbol, whose, how many it starts with)
_COUNTERS: Tuple[Tuple[str, str, Callable[[int], int]], ...] = (
    ("nsw_rcount", "swap reads", lambda n: (n + 1) // 2),
    ("nsw_wcount_sync", "sync swap writes", lambda n: (n + 3) // 4),
    ("cluster_pbuf_freecnt", "clusters", _half),
    ("vnode_pbuf_freecnt", "vnode pager", _half_and_one),
    ("vnode_async_pbuf_freecnt", "async vnode pager", _half),
    ("nfs_pbuf_freecnt", "NFS", _half_and_one),
    ("ncl_pbuf_freecnt", "NFS", _half_and_one),
    ("smbfs_pbuf_freecnt", "smbfs", _half_and_one),
    ("nwfs_pbuf_freecnt", "nwfs", _half_and_one),
    ("fuse_pbuf_freecnt", "fuse", _half_and_one),
    ("md_vnode_pbuf_freecnt", "md vnode disks", lambda n: n // 10),
    ("ffsrawbufcnt", "FFS raw reads", lambda n: n - (n >> 4) if n > 100 else n - 8),
)
#: variables that hold a zone of the second era
_ZONE_SYMBOLS = (
    "pbuf_zone",
    "swrbuf_zone",
    "swwbuf_zone",
    "vnode_pbuf_zone",
    "cluster_pbuf_zone",
    "ncl_pbuf_zone",
    "smbfs_pbuf_zone",
    "fuse_pbuf_zone",
    "md_pbuf_zone",
    "ffsraw_pbuf_zone",
    "p9fs_pbuf_zone",
)
_ASYNC = "nsw_wcount_async"


def has_zones(kernel: Kernel) -> bool:
    """True for the second era (from 13.0-CURRENT of 2019)."""
    return kernel.has_symbol("pbuf_zone")


def _tids(kernel: Kernel, wchan: int) -> Tuple[int, ...]:
    return tuple(thread.tid for thread in sleepers(kernel).get(wchan, ()))


@cached(MEMORY)
def pools(kernel: Kernel) -> List[Pool]:
    """Every pool that this kernel has, the one of all pbufs first."""
    return list(_pools(kernel))


def pool_of_channel(kernel: Kernel, wchan: int) -> Optional[Pool]:
    """The pool that a thread asleep on ``wchan`` ("wswbuf0", "wswbuf1", "swbufa",
    "zonelimit") waits for, None where that is none."""
    return next((pool for pool in pools(kernel) if pool.wchan == wchan), None)


def _pools(kernel: Kernel) -> Iterator[Pool]:
    if has_zones(kernel):
        yield from _zone_pools(kernel)
    else:
        yield from _counter_pools(kernel)
    limit = _int(kernel, _ASYNC + "_max")
    free = _int(kernel, _ASYNC)
    if limit is not None and free is not None:
        wchan = kernel.address_of(_ASYNC)
        tids = _tids(kernel, wchan)
        kind = "counter"
        yield Pool("async swap writes", _ASYNC, wchan, limit, limit - free, free, wchan, tids, kind)


def _int(kernel: Kernel, name: str) -> Optional[int]:
    """A global int, None where the kernel has none or it cannot be read."""
    symbol = kernel.symbol(name)
    if symbol is None:
        return None
    try:
        return kernel.signed(symbol.address, symbol.size or 4)
    except MemoryFault as fault:
        kernel.warnings.add(name, fault.address, fault.reason)
        return None


def _counter_pools(kernel: Kernel) -> Iterator[Pool]:
    total = _int(kernel, "nswbuf")
    if total is None:
        return
    if kernel.has_symbol("bswlist"):
        free = len(_free_list(kernel))
        head = kernel.address_of("bswlist")
        needed = kernel.symbol("bswneeded")
        wchan = needed.address if needed else 0
        tids = _tids(kernel, wchan)
        yield Pool("all pbufs", "bswlist", head, total, total - free, free, wchan, tids, "list")
    for symbol, name, initial in _COUNTERS:
        value = _int(kernel, symbol)
        if value is None:
            continue
        address = kernel.address_of(symbol)
        tids = _tids(kernel, address)
        if value < 0:
            # -1 is where a user that has not set its limit yet starts from.
            yield Pool(name, symbol, address, None, -1 - value, None, address, tids, "counter")
            continue
        limit = initial(total)
        yield Pool(name, symbol, address, limit, limit - value, value, address, tids, "counter")


def _zone_pools(kernel: Kernel) -> Iterator[Pool]:
    symbols = {}
    for symbol in _ZONE_SYMBOLS:
        symbols[kernel.global_value(symbol, 0)] = symbol
    for zone in pbuf_zones(kernel):
        free = None if zone.limit is None else max(0, zone.limit - zone.used)
        yield Pool(
            zone.name,
            symbols.get(zone.address, ""),
            zone.address,
            zone.limit,
            zone.used,
            free,
            zone.channels[0],
            zone.waiters,
            "zone",
        )


def pbuf_zones(kernel: Kernel) -> List[Zone]:
    """The zones on the keg of pbuf_zone, that one first; [] in the first era."""
    address = kernel.global_value("pbuf_zone", 0)
    primary = zone_at(kernel, address) if address else None
    if primary is None:
        return []
    others = [z for z in zones_of_keg(kernel, primary.keg) if z.address != address]
    return [primary, *others]


# The pbufs


def _total(kernel: Kernel) -> int:
    """How many pbufs the array of the first era has."""
    return max(0, min(_int(kernel, "nswbuf") or 0, _MAX_PBUFS))


@cached(MEMORY)
def _free_list(kernel: Kernel) -> Set[int]:
    """The pbufs on bswlist."""
    head = kernel.address_of("bswlist")
    total = _total(kernel)
    walk = tailq_foreach(kernel, head, "buf", "b_freelist", what="bswlist", bound=total + 1)
    return {address for address, _ in walk}


@cached(MEMORY)
def addresses(kernel: Kernel) -> List[int]:
    """The pbufs in use, by address."""
    if has_zones(kernel):
        found = pbuf_zones(kernel)
        return sorted(items(kernel, found[0])) if found else []
    total = _total(kernel)
    base = kernel.global_value("swbuf", 0)
    stride = kernel.layouts.sizeof("buf")
    if not base or not kernel.has_symbol("bswlist"):
        return []
    free = _free_list(kernel)
    return [base + i * stride for i in range(total) if base + i * stride not in free]


@cached(MEMORY)
def bufs(kernel: Kernel) -> List[Pbuf]:
    """Every pbuf in use."""
    return list(_bufs(kernel))


def _bufs(kernel: Kernel) -> Iterator[Pbuf]:
    for address in addresses(kernel):
        buf = try_buf_at(kernel, address)
        if buf is None:
            continue
        pages = tuple(b_pages(kernel, buf))
        owner, vnode = _behind(kernel, buf, pages)
        pool, why = _pool(kernel, buf)
        yield Pbuf(
            buf,
            pool,
            why,
            pages,
            owner,
            vnode,
            _tids(kernel, address),
        )


def _behind(kernel: Kernel, buf: Buf, pages: Tuple[int, ...]) -> Tuple[int, int]:
    """(vm_object, vnode) that the pages of a pbuf belong to."""
    for address in pages:
        page = try_page_at(kernel, address)
        if page is not None and page.object and not page.is_bogus:
            owner = try_object_at(kernel, page.object)
            return page.object, owner.vnode if owner else 0
    return 0, buf.vp


def _pool(kernel: Kernel, buf: Buf) -> Tuple[str, str]:
    """(name of the pool a pbuf was taken from, how that is told).

    A pbuf does not say; b_iodone and the command do.
    """
    zoned = has_zones(kernel)
    done = iodone_name(kernel, buf)
    name = done.split("+")[0]
    write = buf.iocmd == "BIO_WRITE"
    why = f"b_iodone is {done}" if done else "b_iodone is NULL"
    if name == "swp_pager_async_iodone":
        if not write:
            return ("swrbuf" if zoned else "swap reads"), why
        return ("swwbuf" if zoned else "async swap writes"), why
    if name.startswith("cluster_callback"):
        return ("clpbuf" if zoned else "clusters"), why
    if name.startswith("vnode_pager_generic_getpages_done_async"):
        has_own = kernel.has_symbol("vnode_async_pbuf_freecnt")
        return ("vnpbuf" if zoned else "async vnode pager" if has_own else "vnode pager"), why
    if name.startswith("vnode_pager"):
        return ("vnpbuf" if zoned else "vnode pager"), why
    if name in ("bdone", ""):
        if write and not buf.vp and not buf.bufobj and buf.npages:
            return (
                "swwbuf" if zoned else "sync swap writes"
            ), why + ", a write of pages to no file"
        if not write and buf.bufobj and buf.npages:
            return ("vnpbuf" if zoned else "vnode pager"), why + ", a read of a file's pages"
    return "", why


@cached(MEMORY)
def holders(kernel: Kernel) -> Dict[int, List[int]]:
    """Locked bufs and pbufs in use by the pages in them, {vm_page: [struct buf]}.

    They are what holds a page busy for an I/O.
    """
    found: Dict[int, List[int]] = {}
    for pbuf in bufs(kernel):
        for page in pbuf.pages:
            found.setdefault(page, []).append(pbuf.address)
    for buf, _ in locked_bufs(kernel):
        for page in b_pages(kernel, buf):
            found.setdefault(page, []).append(buf.address)
    return found
