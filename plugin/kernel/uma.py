"""UMA zones: what they hold, their limits, who waits for them, and every item in use.

Mirrors sys/vm/uma_core.c and uma_int.h, 6.x to 15.x.  ``used`` and ``free`` are
the columns of DDB's ``show uma`` (db_show_uma(), uma_zone_sumstat()); where an
era keeps things elsewhere the member is probed for:

* the keg's slab lists: in struct uma_keg to 11.x, per domain (uk_domain) from 12.0;
* the slab's free list: linked indexes to 9.x, a bitmap from 10.0, one of variable
  length from 13.0;
* the zone's buckets: uz_full_bucket to 9.x, uz_buckets to 11.x, per domain from 12.0;
* the limit: uk_maxpages of the keg to 12.x, uz_max_items of the zone from 13.0.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.counter import mp_maxid, stat
from plugin.kernel.proc import threads
from plugin.kernel.queue import list_foreach, stailq_foreach
from plugin.session import Kernel, View

#: more zones than any kernel makes
_MAX_ZONES = 100_000
#: more buckets than one list of a real kernel holds
_MAX_BUCKETS = 4_000_000
#: no bucket is larger (BUCKET_MAX is 256 or less), a corrupt count may be
_MAX_BUCKET_ITEMS = 4096
_MAX_DOMAINS = 64
_MAX_PAGES = 1 << 36
_LIMIT_WMESG = ("zonelimit", "keglimit")


class Zone(NamedTuple):
    """One zone.  ``size`` is what was asked for, ``rsize`` what an item takes, in bytes."""

    address: int
    name: str
    #: struct uma_keg, 0 for a cache zone (uma_zcache_create)
    keg: int
    size: int
    rsize: int
    #: items and pages of a slab
    ipers: int
    ppera: int
    #: uz_flags, uk_flags where a zone has none of its own (before 8.0)
    flags: int
    #: True for a zone that takes its items from another zone's keg
    secondary: bool
    #: most items at a time, None where there is no limit
    limit: Optional[int]
    #: items charged against the limit: UZ_ITEMS_COUNT from 13.0; all items of the
    #: keg's slabs, free ones too, before (its limit is one of pages)
    items: int
    #: the columns of ``show uma``: allocations less frees; free in caches and slabs
    used: int
    free: int
    #: since boot
    allocs: int
    frees: int
    fails: int
    sleeps: int
    #: threads asleep at the limit: uz_sleepers from 13.0, counted before
    sleepers: int
    #: their tids
    waiters: Tuple[int, ...]
    #: addresses a thread at the limit may sleep on, this kernel's own first
    channels: Tuple[int, ...]

    @property
    def full(self) -> bool:
        """True where the next allocation meets the limit."""
        if self.limit is None:
            return False
        return self.items >= self.limit and (self.free == 0 or self.sleepers > 0)


class _Keg(NamedTuple):
    address: int
    size: int
    rsize: int
    ipers: int
    ppera: int
    pgoff: int
    flags: int
    #: pages of all its slabs, free items in them
    pages: int
    free: int
    maxpages: int
    #: addresses of the heads of the partial and full slab lists
    lists: Tuple[int, ...]


@cached(MEMORY)
def zones(kernel: Kernel) -> List[Zone]:
    """Every zone, in the order of the kernel's lists, cache zones last."""
    return list(_zones(kernel))


def zone_named(kernel: Kernel, name: str) -> Optional[Zone]:
    """The first zone called ``name``, or None."""
    return next((zone for zone in zones(kernel) if zone.name == name), None)


def zone_at(kernel: Kernel, address: int) -> Optional[Zone]:
    """The zone whose struct uma_zone is at ``address``, or None."""
    if kernel.chosen:
        return _alone(kernel, address)
    return _by_address(kernel).get(address)


@cached(MEMORY)
def _alone(kernel: Kernel, address: int) -> Optional[Zone]:
    """The zone at ``address``, read without the others: its keg has it on the list of its zones."""
    layouts = kernel.layouts
    keg_of = layouts.first_of("uma_zone", "uz_keg", "uz_klink.kl_keg")
    try:
        if keg_of is None:
            return _by_address(kernel).get(address)
        keg = kernel.pointer(address + layouts.offsetof("uma_zone", keg_of))
        of_keg = _of_keg(kernel, keg) if keg and kernel.is_kernel_address(keg) else []
        if address not in of_keg:
            return None
        first = address == of_keg[0]
        return _zone(kernel, address, _keg(kernel, keg), first, _sleepers(kernel))
    except MemoryFault:
        return None


def _of_keg(kernel: Kernel, keg: int) -> List[int]:
    """The zones on uk_zones, by address; what is no keg gives no findings."""
    with kernel.noting() as found:
        head = keg + kernel.layouts.offsetof("uma_keg", "uk_zones")
        walk = list_foreach(kernel, head, "uma_zone", "uz_link", bound=_MAX_ZONES)
        zones = [address for address, _ in walk]
        whole = not found.partial
    return zones if whole else []


def zones_of_keg(kernel: Kernel, keg: int) -> List[Zone]:
    """The zones whose items come from the struct uma_keg at ``keg``."""
    if kernel.chosen:
        alone = (zone_at(kernel, address) for address in _of_keg(kernel, keg))
        return [zone for zone in alone if zone is not None]
    return [zone for zone in zones(kernel) if zone.keg == keg]


@cached(MEMORY)
def _by_address(kernel: Kernel) -> Dict[int, Zone]:
    return {zone.address: zone for zone in zones(kernel)}


def zone_of_channel(kernel: Kernel, wchan: int) -> Optional[Zone]:
    """The zone that a thread asleep in "zonelimit" or "keglimit" on ``wchan`` waits for."""
    found = [zone for zone in _near(kernel, wchan) if wchan in zone.channels]
    return next((zone for zone in found if not zone.secondary), found[0] if found else None)


def _near(kernel: Kernel, channel: int) -> List[Zone]:
    """The zones that ``channel`` may be one of: over a wire those that it would lie in or be."""
    if not kernel.chosen:
        return zones(kernel)
    inside = 0
    if kernel.layouts.has("uma_zone", "uz_max_items"):
        inside = kernel.layouts.offsetof("uma_zone", "uz_max_items")
    alone = (zone_at(kernel, address) for address in {channel - inside, channel})
    return [zone for zone in alone if zone is not None] or zones_of_keg(kernel, channel)


def zone_of_page(kernel: Kernel, page: int) -> Optional[Zone]:
    """The zone that the memory of a vm_page serves, where the page says so.

    vtozoneslab(), vtoslab(): the page points to its zone from 13.0, to its slab and by
    that to the keg before.  Pages of zones that find a slab by arithmetic say nothing.
    """
    layouts = kernel.layouts
    try:
        if layouts.has("vm_page", "plinks.uma.zone"):
            return zone_at(
                kernel, kernel.pointer(page + layouts.offsetof("vm_page", "plinks.uma.zone"))
            )
        link = layouts.first_of("vm_page", "plinks.s.pv", "object")
        owner = layouts.first_of("uma_slab", "us_keg", "us_head.us_keg")
        if link is None or owner is None:
            return None
        slab = kernel.pointer(page + layouts.offsetof("vm_page", link))
        keg = kernel.pointer(slab + layouts.offsetof("uma_slab", owner)) if slab else 0
    except (MemoryFault, LayoutError):
        return None
    return next((zone for zone in zones(kernel) if keg and zone.keg == keg), None)


def _zones(kernel: Kernel) -> Iterator[Zone]:
    sleeping = _sleepers(kernel)
    for keg_address, _ in list_foreach(
        kernel,
        kernel.address_of("uma_kegs"),
        "uma_keg",
        "uk_link",
        what="uma_kegs",
        bound=_MAX_ZONES,
    ):
        try:
            keg = _keg(kernel, keg_address)
        except MemoryFault as fault:
            kernel.warnings.add(f"keg {keg_address:#x}", fault.address, fault.reason)
            continue
        head = keg_address + kernel.layouts.offsetof("uma_keg", "uk_zones")
        first = True
        for zone_address, _ in list_foreach(
            kernel,
            head,
            "uma_zone",
            "uz_link",
            what=f"zones of keg {keg_address:#x}",
            bound=_MAX_ZONES,
        ):
            try:
                yield _zone(kernel, zone_address, keg, first, sleeping)
            except MemoryFault as fault:
                kernel.warnings.add(f"zone {zone_address:#x}", fault.address, fault.reason)
            first = False
    if kernel.has_symbol("uma_cachezones"):
        for zone_address, _ in list_foreach(
            kernel,
            kernel.address_of("uma_cachezones"),
            "uma_zone",
            "uz_link",
            what="uma_cachezones",
            bound=_MAX_ZONES,
        ):
            try:
                yield _zone(kernel, zone_address, None, True, sleeping)
            except MemoryFault as fault:
                kernel.warnings.add(f"zone {zone_address:#x}", fault.address, fault.reason)


def _sleepers(kernel: Kernel) -> Dict[int, List[int]]:
    """Threads asleep at some limit, by wait channel."""
    found: Dict[int, List[int]] = {}
    for thread in threads(kernel):
        if thread.wmesg in _LIMIT_WMESG and thread.wchan:
            found.setdefault(thread.wchan, []).append(thread.tid)
    return found


def _domains(kernel: Kernel) -> int:
    return max(1, min(kernel.global_value("vm_ndomains", 1), _MAX_DOMAINS))


def _keg(kernel: Kernel, address: int) -> _Keg:
    keg = kernel.view("uma_keg", address)
    layouts = kernel.layouts
    if layouts.has("uma_keg", "uk_domain"):
        base = keg.at("uk_domain")
        stride = layouts.sizeof("uma_domain")
        domains = [base + stride * i for i in range(_domains(kernel))]
        part, full = (
            layouts.offsetof("uma_domain", name) for name in ("ud_part_slab", "ud_full_slab")
        )
        lists = tuple(domain + offset for domain in domains for offset in (part, full))
        if layouts.has("uma_domain", "ud_pages"):
            fields = layouts.fields("uma_domain", "ud_pages", "ud_free_items")
            counts = [kernel.values(fields, domain) for domain in domains]
            pages, free = (sum(column) for column in zip(*counts))
        else:
            pages, free = keg.uk_pages, keg.uk_free
    else:
        lists = (keg.at("uk_part_slab"), keg.at("uk_full_slab"))
        pages, free = keg.uk_pages, keg.uk_free
    return _Keg(
        address,
        keg.uk_size,
        keg.uk_rsize,
        keg.uk_ipers,
        keg.uk_ppera,
        keg.uk_pgoff,
        keg.uk_flags,
        pages,
        free,
        keg.get("uk_maxpages", 0),
        lists,
    )


def _zone(
    kernel: Kernel,
    address: int,
    keg: Optional[_Keg],
    first: bool,
    sleeping: Dict[int, List[int]],
) -> Zone:
    layouts = kernel.layouts
    zone = kernel.view("uma_zone", address)
    flags = zone.get("uz_flags", keg.flags if keg else 0)
    secondary = bool(flags & layouts.constant("UMA_ZONE_SECONDARY", 0x200)) and not first
    allocs = stat(kernel, "uma_zone", address, "uz_allocs")
    frees = stat(kernel, "uma_zone", address, "uz_frees")
    fails = stat(kernel, "uma_zone", address, "uz_fails")
    cached = 0
    internal = layouts.constant("UMA_ZFLAG_INTERNAL", 0x20000000)
    if not (keg and keg.flags & internal):
        for cache in _caches(kernel, address):
            allocs += cache.allocs
            frees += cache.frees
            cached += cache.items
    cached += sum(_bucket_items(kernel, zone))
    if keg and not secondary:
        cached += keg.free
    limit, items = _limit(zone, keg)
    channels = [address]
    if zone.has("uz_max_items"):
        channels.insert(0, zone.at("uz_max_items"))
    if keg:
        channels.append(keg.address)
    waiters = tuple(
        tid
        for channel in (channels if not secondary else channels[:-1])
        for tid in sleeping.get(channel, ())
    )
    return Zone(
        address,
        kernel.name_at(f"zone {zone.address:#x}", zone.uz_name, 64) or "?",
        keg.address if keg else 0,
        keg.size if keg else zone.uz_size,
        keg.rsize if keg else zone.uz_size,
        keg.ipers if keg else 0,
        keg.ppera if keg else 0,
        flags,
        secondary,
        limit,
        items,
        _signed64(allocs - frees),
        cached,
        allocs & _MASK64,
        frees & _MASK64,
        fails,
        zone.get("uz_sleeps", 0),
        zone.uz_sleepers if zone.has("uz_sleepers") else len(waiters),
        waiters,
        tuple(channels),
    )


_MASK64 = (1 << 64) - 1


def _signed64(value: int) -> int:
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _limit(zone: View, keg: Optional[_Keg]) -> Tuple[Optional[int], int]:
    """(most items, items that count against it)."""
    if zone.has("uz_max_items"):
        # uz_items holds the count alone in 13.0-CURRENT of 2019, sleepers above it since.
        return zone.uz_max_items or None, zone.uz_items & ((1 << 44) - 1)
    if keg is None or not keg.ppera:
        return None, 0
    items = keg.pages // keg.ppera * keg.ipers
    return (keg.maxpages // keg.ppera * keg.ipers if keg.maxpages else None), items


class _Cache(NamedTuple):
    """One CPU's cache of a zone; ``buckets`` are struct uma_bucket with their counts."""

    allocs: int
    frees: int
    items: int
    buckets: Tuple[Tuple[int, int], ...]


def _caches(kernel: Kernel, zone: int) -> Iterator[_Cache]:
    """Per CPU; an absent CPU's cache is all zero."""
    layouts = kernel.layouts
    base = zone + layouts.offsetof("uma_zone", "uz_cpu")
    stride = layouts.sizeof("uma_cache")
    names = ["uc_allocbucket", "uc_freebucket"]
    if layouts.has("uma_cache", "uc_crossbucket"):
        names.append("uc_crossbucket")
    inline = layouts.has("uma_cache", "uc_allocbucket.ucb_cnt")
    paths = ["uc_allocs", "uc_frees"]
    for name in names:
        paths += [f"{name}.ucb_bucket", f"{name}.ucb_cnt"] if inline else [name]
    fields = layouts.fields("uma_cache", *paths)
    data = kernel.read(base, stride * mp_maxid(kernel) + fields.span)
    for cpu in range(mp_maxid(kernel) + 1):
        allocs, frees, *rest = fields.unpack_from(data, stride * cpu)
        if inline:
            # The count of a bucket in use lives here; the bucket's own is stale.
            buckets = tuple(zip(rest[0::2], rest[1::2]))
        else:
            buckets = tuple((b, _bucket_count(kernel, b)) for b in rest)
        buckets = tuple((bucket, count) for bucket, count in buckets if bucket)
        yield _Cache(allocs, frees, sum(count for _, count in buckets), buckets)


def _bucket_count(kernel: Kernel, bucket: int) -> int:
    if not bucket:
        return 0
    return kernel.signed(bucket + kernel.layouts.offsetof("uma_bucket", "ub_cnt"), 2)


def _zone_domains(kernel: Kernel, zone: View) -> List[int]:
    """Addresses of the zone's struct uma_zone_domain; none before 12.0."""
    layouts = kernel.layouts
    if "uma_zone_domain" not in layouts:
        return []
    if zone.has("uz_domain"):
        base = zone.uz_domain
    else:
        base = zone.at("uz_cpu") + layouts.sizeof("uma_cache") * (mp_maxid(kernel) + 1)
    stride = layouts.sizeof("uma_zone_domain")
    return [base + stride * i for i in range(_domains(kernel))] if base else []


def _bucket_items(kernel: Kernel, zone: View) -> Iterator[int]:
    """Items in the zone's full buckets, a number per domain or bucket."""
    domains = _zone_domains(kernel, zone)
    if domains and kernel.layouts.has("uma_zone_domain", "uzd_nitems"):
        member = kernel.layouts.resolve("uma_zone_domain", "uzd_nitems")
        for domain in domains:
            yield kernel.unsigned(domain + member.offset, member.size)
        return
    for _, count in _buckets(kernel, zone):
        yield count


def _buckets(kernel: Kernel, zone: View) -> Iterator[Tuple[int, int]]:
    """The zone's buckets that are in no CPU's cache: (struct uma_bucket, items)."""
    layouts = kernel.layouts
    domains = _zone_domains(kernel, zone)
    heads: List[int] = []
    if domains:
        offset = layouts.offsetof("uma_zone_domain", "uzd_buckets")
        heads = [domain + offset for domain in domains]
        if layouts.has("uma_zone_domain", "uzd_cross"):
            cross = layouts.offsetof("uma_zone_domain", "uzd_cross")
            for domain in domains:
                bucket = kernel.pointer(domain + cross)
                if bucket:
                    yield bucket, _bucket_count(kernel, bucket)
    else:
        # uz_free_bucket, to 9.x, holds empty buckets only.
        heads = [zone.at(name) for name in ("uz_full_bucket", "uz_buckets") if zone.has(name)]
    walk = stailq_foreach if layouts.has("uma_bucket", "ub_link.stqe_next") else list_foreach
    for head in heads:
        for bucket, (count,) in walk(
            kernel,
            head,
            "uma_bucket",
            "ub_link",
            ["ub_cnt"],
            what=f"buckets of zone {zone.address:#x}",
            bound=_MAX_BUCKETS,
        ):
            yield bucket, count


# Items


def items(kernel: Kernel, zone: Zone) -> Iterator[int]:
    """Addresses of the items of ``zone`` that are in use, in no particular order.

    In use is what its slab says is taken and no bucket of a zone on that keg
    holds free.  Zones that share a keg (secondary zones) share its slabs, which
    do not tell whose an item is: all of the keg's items in use are yielded.
    Nothing for a cache zone.
    """
    if not zone.keg:
        return
    try:
        keg = _keg(kernel, zone.keg)
        idle = _idle(kernel, keg)
    except MemoryFault as fault:
        kernel.warnings.add(f"zone {zone.name}", fault.address, fault.reason)
        return
    for data, free in _slabs(kernel, keg, zone.name):
        for index in range(keg.ipers):
            if index in free:
                continue
            address = data + index * keg.rsize
            if address not in idle:
                yield address


def _idle(kernel: Kernel, keg: _Keg) -> Set[int]:
    """Items that lie free in a bucket of any zone on this keg."""
    found: Set[int] = set()
    internal = kernel.layouts.constant("UMA_ZFLAG_INTERNAL", 0x20000000)
    head = keg.address + kernel.layouts.offsetof("uma_keg", "uk_zones")
    for address, _ in list_foreach(
        kernel, head, "uma_zone", "uz_link", what=f"zones of keg {keg.address:#x}", bound=_MAX_ZONES
    ):
        buckets = list(_buckets(kernel, kernel.view("uma_zone", address)))
        if not keg.flags & internal:
            for cache in _caches(kernel, address):
                buckets.extend(cache.buckets)
        for bucket, count in buckets:
            found.update(_bucket_contents(kernel, bucket, count))
    return found


def _bucket_contents(kernel: Kernel, bucket: int, count: int) -> Tuple[int, ...]:
    if not 0 <= count <= _MAX_BUCKET_ITEMS:
        kernel.warnings.add("uma bucket", bucket, f"ub_cnt is {count}")
        return ()
    size = kernel.pointer_size
    try:
        data = kernel.read(
            bucket + kernel.layouts.offsetof("uma_bucket", "ub_bucket"), count * size
        )
    except MemoryFault as fault:
        kernel.warnings.add("uma bucket", fault.address, fault.reason)
        return ()
    return tuple(memoryview(data).cast("Q" if size == 8 else "I"))


_NONE_FREE: Set[int] = set()


def _slabs(kernel: Kernel, keg: _Keg, name: str) -> Iterator[Tuple[int, Set[int]]]:
    """(address of the first item, indexes of the free items) of every slab in use."""
    layouts = kernel.layouts
    link = layouts.first_of(
        "uma_slab",
        "us_link.le_next",
        "us_type._us_link.le_next",
        "us_head.us_type._us_link.le_next",
    )
    if link is None:
        raise LayoutError("struct uma_slab has no list link in this kernel")
    link = link[: -len(".le_next")]
    count = layouts.first_of("uma_slab", "us_freecount", "us_head.us_freecount") or "us_freecount"
    data = layouts.first_of("uma_slab", "us_data", "us_head.us_data")
    paths = [count] + ([data] if data else [])
    if not (0 < keg.ipers < 1 << 16 and keg.rsize and keg.ppera and keg.pages < _MAX_PAGES):
        if keg.pages:
            kernel.warnings.add(f"keg of zone {name}", keg.address, "impossible slab layout")
        return
    # A slab allocated this moment is not in uk_pages yet.
    bound = keg.pages // keg.ppera + 2
    offpage = bool(
        keg.flags
        & (layouts.constant("UMA_ZFLAG_OFFPAGE", 0) or layouts.constant("UMA_ZONE_OFFPAGE", 8))
    )
    for head in keg.lists:
        for slab, (freecount, *rest) in list_foreach(
            kernel, head, "uma_slab", link, paths, what=f"slabs of zone {name}", bound=bound
        ):
            try:
                if rest:
                    first = rest[0]
                elif offpage:
                    # uhs_data lies right before uhs_slab in struct uma_hash_slab.
                    first = kernel.pointer(slab - kernel.pointer_size)
                else:
                    first = slab - keg.pgoff
                free = _free_indexes(kernel, keg, slab, freecount) if freecount else _NONE_FREE
            except MemoryFault as fault:
                kernel.warnings.add(f"slabs of zone {name}", fault.address, fault.reason)
                continue
            if len(free) != freecount:
                kernel.warnings.add(
                    f"slabs of zone {name}",
                    slab,
                    f"us_freecount is {freecount}, its free list has {len(free)}",
                    partial=False,
                )
            yield first, free


def _free_indexes(kernel: Kernel, keg: _Keg, slab: int, freecount: int) -> Set[int]:
    layouts = kernel.layouts
    if layouts.has("uma_slab", "us_free"):
        bits = int.from_bytes(
            kernel.read(slab + layouts.offsetof("uma_slab", "us_free"), (keg.ipers + 7) // 8),
            "little",
        )
        return {index for index in range(keg.ipers) if bits >> index & 1}
    # To 9.x: us_firstfree, then each free item's byte names the next one.  A zone
    # with reference counts has them in between (struct uma_slab_refcnt).
    refcnt = keg.flags & layouts.constant("UMA_ZONE_REFCNT", 0x400)
    stride = 8 if refcnt else 1
    start = slab + layouts.offsetof("uma_slab", "us_freelist")
    table = kernel.read(start, stride * (keg.ipers - 1) + 1)
    index = kernel.unsigned(
        slab + layouts.offsetof("uma_slab", "us_head.us_firstfree"),
        1,
    )
    found: Set[int] = set()
    while len(found) < freecount and index < keg.ipers and index not in found:
        found.add(index)
        index = table[index * stride]
    return found
