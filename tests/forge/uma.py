"""The zone allocator: kegs, zones, slabs and per-CPU buckets, as each version keeps them.

Mirrors sys/vm/uma_int.h and sys/vm/uma_core.c, 7.0-CURRENT of 2006 to 15.0.
What changed, all of it met by probing: the slab's header (a struct inside a
struct to 9.x, flat since) and its free items (an index chain to 9.x, a bit set
from 10.0); the slab lists (the keg's to 11.x, per domain from 12.0); kegs of a
zone (one, a list from 8.0, one again from 13.0); limits (pages of the keg to
12.x, items of the zone from 13.0); statistics (integers, counter(9) from 13.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set, Tuple

from plugin.errors import UsageError
from tests.forge.builder import Obj
from tests.forge.memory import PAGE_SIZE

if TYPE_CHECKING:
    from tests.forge.machine import Machine

# sys/vm/uma.h and uma_int.h
UMA_SLAB_KERNEL = 0x04
UMA_ZONE_SECONDARY = 0x0200
UMA_ZFLAG_LIMIT = 0x02000000
UMA_ZFLAG_FULL = 0x40000000
UZ_ITEMS_SLEEPER_SHIFT = 44


class Slab:
    def __init__(self, header: Obj, data: int, items: int) -> None:
        self.header = header
        self.data = data
        self.free = list(range(items))


class Zone:
    """A zone with its keg; ``alloc`` gives items out of slabs made on demand."""

    def __init__(
        self,
        uma: Uma,
        name: str,
        size: int,
        *,
        align: int = 0,
        limit: int = 0,
        of: Optional[Zone] = None,
    ) -> None:
        m = self.machine = uma.machine
        self.uma = uma
        self.name = name
        self.size = size
        #: most items, 0 for no limit
        self.limit = limit
        self.primary = of
        #: items given out through this very zone
        self.allocated = 0
        self.fails = self.sleeps = 0
        #: threads that sleep for the limit
        self.sleepers = 0
        self.slabs: List[Slab] = []
        self.rsize = self.ppera = self.ipers = self.pgoff = 0
        #: slabs that may have free items, the one to take from last
        self._open: List[Slab] = []
        self._kept: Set[int] = set()
        #: freed items that lie in per-CPU buckets
        self.cached: List[int] = []
        caches = 1 + m.cpus
        domain = m.sizeof("uma_zone_domain") if "uma_zone_domain" in m.layouts else 0
        self.obj = m.new(
            "uma_zone",
            arena="kva",
            align=128,
            size=m.sizeof("uma_zone") + m.sizeof("uma_cache") * caches + domain,
            uz_name=name,
        )
        self.obj.probe(uz_size=size)
        if of is not None:
            self.keg: Obj = of.keg
            self.rsize, self.ppera, self.ipers, self.pgoff = of.rsize, of.ppera, of.ipers, of.pgoff
            return
        self._layout(size, align or m.pointer_size)
        keg_size = m.sizeof("uma_keg")
        if m.has("uma_keg", "uk_domain"):
            keg_size += m.sizeof("uma_domain")
        self.keg = m.new("uma_keg", arena="kva", align=128, size=keg_size)
        self.keg.set(
            uk_size=size,
            uk_rsize=self.rsize,
            uk_ppera=self.ppera,
            uk_ipers=self.ipers,
            uk_pgoff=self.pgoff,
            uk_align=(align or m.pointer_size) - 1,
        )
        self.keg.probe(uk_name=name)
        self._keg_locks()

    def __index__(self) -> int:
        return self.obj.address

    def _keg_locks(self) -> None:
        m = self.machine
        if self.keg.has("uk_lock"):
            m.locks.initialize(self.keg.sub("uk_lock"), "sleep mutex", self.name)

    def _layout(self, size: int, align: int) -> None:
        """Items per slab with the header inside it, on as few pages as waste a tenth at most."""
        m = self.machine
        self.rsize = -(-size // align) * align
        for self.ppera in range(1, 9):
            room = self.ppera * PAGE_SIZE
            self.ipers = min(room // self.rsize, 255)
            while self.ipers and self.ipers * self.rsize + self._header(self.ipers) > room:
                self.ipers -= 1
            used = self.ipers * self.rsize + self._header(self.ipers)
            if self.ipers and (room - used) * 10 <= room:
                break
        self.pgoff = (self.ppera * PAGE_SIZE - self._header(self.ipers)) & ~(m.pointer_size - 1)

    def _header(self, items: int) -> int:
        """Bytes of a slab's header that describes ``items`` items."""
        m = self.machine
        size = m.sizeof("uma_slab")
        if m.has("uma_slab", "us_freelist"):
            return m.sizeof("uma_slab_head") + items
        member = m.locate("uma_slab", "us_free")
        if member.size == 0:
            # The bit set follows the struct, a long at a time.
            return size + -(-items // 64) * 8
        return size

    # Items

    def alloc(self, at: Optional[int] = None) -> int:
        """Address of a new item; ``at`` makes the slab that has one there and takes that."""
        self.allocated += 1
        home = self.primary or self
        if at is not None:
            return home._take_at(at)
        while home._open and not home._open[-1].free:
            home._open.pop()
        slab = home._open[-1] if home._open else home._grow()
        return slab.data + slab.free.pop(0) * home.rsize

    def keep(self, address: int) -> None:
        """Keep the item at an address for an ``alloc`` that asks for it."""
        self._kept.add(self._take_at(address))

    def _take_at(self, address: int) -> int:
        if address in self._kept:
            self._kept.remove(address)
            return address
        if self.ppera != 1:
            raise UsageError(f"zone {self.name} has slabs of several pages: no item at an address")
        page = address & -PAGE_SIZE
        index, rest = divmod(address - page, self.rsize)
        if rest or index >= self.ipers:
            raise UsageError(f"zone {self.name} has no item that begins at {address:#x}")
        slab = next((s for s in self.slabs if s.data == page), None) or self._grow(page)
        slab.free.remove(index)
        return address

    def _grow(self, page: Optional[int] = None) -> Slab:
        m = self.machine
        size = self.ppera * PAGE_SIZE
        if page is not None:
            m.arenas["kmem"].reserve(page, size)
            data = page
        elif self.ppera == 1 and m.map.dmap[1]:
            # uma_small_alloc(): a page of the direct map.
            data = m.space.direct(m.space.claim() * PAGE_SIZE)
        else:
            data = m.arenas["kmem"].take(size, PAGE_SIZE)
        m.space.touch(data, size)
        slab = Slab(m.view("uma_slab", data + self.pgoff), data, self.ipers)
        self.slabs.append(slab)
        self._open.append(slab)
        return slab

    def cache(self, count: int, cpu: int = 0) -> None:
        """``count`` items allocated and freed again: they lie in a CPU's bucket."""
        m = self.machine
        items = [self.alloc() for _ in range(count)]
        self.allocated -= count
        self.cached.extend(items)
        bucket = m.new(
            "uma_bucket",
            arena="kva",
            size=m.sizeof("uma_bucket") + m.pointer_size * max(count, 16),
        )
        bucket.set(ub_cnt=count, ub_entries=max(count, 16))
        base = bucket.address + m.locate("uma_bucket", "ub_bucket").offset
        for index, item in enumerate(items):
            m.write_pointer(base + index * m.pointer_size, item)
        path = f"uz_cpu[{cpu}].uc_allocbucket"
        if m.has("uma_cache", "uc_allocbucket.ucb_bucket"):
            self.obj[path + ".ucb_bucket"] = bucket
            self.obj[path + ".ucb_cnt"] = count
            self.obj[path + ".ucb_entries"] = max(count, 16)
        else:
            self.obj[path] = bucket

    # Limits

    @property
    def limit_channel(self) -> int:
        """What a thread that waits for the limit sleeps on."""
        m = self.machine
        if self.obj.has("uz_max_items"):
            return self.obj.at("uz_max_items")
        # The keg in 7.0-CURRENT, the zone from 8.0 to 12.x.
        return self.keg.address if m.osreldate < 800000 else self.obj.address

    def waited_by(self, thread: Any, **how: Any) -> Zone:
        """A thread asleep for an item."""
        self.sleepers += 1
        modern = self.machine.osreldate >= 1300000
        thread.call("zone_alloc_limit_hard" if modern else "uma_zalloc_arg")
        thread.sleeps(self.limit_channel, "zonelimit", **how)
        return self

    # Finishing

    def finish(self) -> None:
        m = self.machine
        self._statistics()
        if self.primary is not None:
            return
        lists: Dict[str, List[Obj]] = {"part": [], "free": [], "full": []}
        free = 0
        for slab in self.slabs:
            self._write_header(slab)
            kind = "full" if not slab.free else "free" if len(slab.free) == self.ipers else "part"
            lists[kind].append(slab.header)
            free += len(slab.free)
        link = "us_type._us_link" if m.has("uma_slab", "us_type._us_link") else "us_link"
        if m.has("uma_slab", "us_head"):
            link = "us_head.us_type._us_link"
        for kind, slabs in lists.items():
            if m.has("uma_keg", "uk_domain"):
                head = self.keg.at(f"uk_domain[0].ud_{kind}_slab")
            else:
                head = self.keg.at(f"uk_{kind}_slab")
            m.list(head, link, list(reversed(slabs)))
        pages = len(self.slabs) * self.ppera
        self.keg.probe(uk_pages=pages, uk_free=free)
        if m.has("uma_domain", "ud_pages"):
            self.keg["uk_domain[0].ud_pages"] = pages
            self.keg["uk_domain[0].ud_free_items"] = free
            if m.has("uma_domain", "ud_free_slabs"):
                self.keg["uk_domain[0].ud_free_slabs"] = len(lists["free"])
        if self.limit and self.keg.has("uk_maxpages"):
            self.keg["uk_maxpages"] = -(-self.limit // self.ipers) * self.ppera

    def _statistics(self) -> None:
        """uz_allocs less uz_frees is what is in use."""
        done = self.allocated * 3 + 1000
        for member, value in (
            ("uz_allocs", done + self.allocated),
            ("uz_frees", done),
            ("uz_fails", self.fails),
        ):
            if self.machine.locate("uma_zone", member).is_pointer:
                self.obj[member] = self.machine.counter(value)
            else:
                self.obj[member] = value
        self.obj.probe(uz_sleeps=self.sleeps)
        flags = 0
        if self.primary is not None:
            flags |= UMA_ZONE_SECONDARY
        if self.limit and self.obj.has("uz_max_items"):
            flags |= UMA_ZFLAG_LIMIT
            items = self.allocated + len(self.cached)
            self.obj.set(
                uz_max_items=self.limit,
                uz_items=items | self.sleepers << UZ_ITEMS_SLEEPER_SHIFT,
                uz_sleepers=self.sleepers,
            )
        elif self.limit and self.allocated >= self.limit:
            flags |= UMA_ZFLAG_FULL
        self.obj.probe(uz_flags=flags)

    def _write_header(self, slab: Slab) -> None:
        m = self.machine
        head = slab.header
        path = "us_head." if m.has("uma_slab", "us_head") else ""
        head[path + "us_flags"] = UMA_SLAB_KERNEL
        head[path + "us_freecount"] = len(slab.free)
        for member, value in (("us_keg", self.keg), ("us_data", slab.data)):
            if head.has(path + member):
                head[path + member] = value
        if m.has("uma_slab", "us_freelist"):
            base = head.at("us_freelist")
            # Every entry leads to the next free item; those of items in use keep what they held.
            for index in range(self.ipers):
                following = next((i for i in slab.free if i > index), self.ipers)
                m.write_int(base + index, min(following, 255), 1)
            head[path + "us_firstfree"] = slab.free[0] if slab.free else min(self.ipers, 255)
            return
        bits = sum(1 << index for index in slab.free)
        at = head.at("us_free")
        m.space.write(
            at,
            bits.to_bytes(
                max(m.locate("uma_slab", "us_free").size, -(-self.ipers // 64) * 8), "little"
            ),
        )


#: zones that every kernel makes, by the struct they hold
_ZONES: Tuple[Tuple[str, str], ...] = (
    ("g_bio", "bio"),
    ("PROC", "proc"),
    ("THREAD", "thread"),
    ("SLEEPQUEUE", "sleepqueue"),
    ("TURNSTILE", "turnstile"),
    ("VM OBJECT", "vm_object"),
    ("VNODE", "vnode"),
)


class Uma:
    """All zones of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.all: List[Zone] = []
        m = machine
        m.symbol("uma_kegs", size=m.pointer_size, static=True)
        if m.osreldate >= 1000000:
            m.symbol("uma_cachezones", size=m.pointer_size, static=True)
        for name, struct in _ZONES:
            # Sleep queues and turnstiles came from malloc before 8.0.
            if struct in ("sleepqueue", "turnstile") and m.osreldate < 800000:
                continue
            size = m.sizeof(struct)
            if struct == "thread" and "td_sched" in m.layouts:
                # The scheduler's part follows struct thread in its item.
                size += m.sizeof("td_sched")
            # The lock words keep flags in the low five bits of a thread's address.
            align = 32 if struct == "thread" else 0
            m.zones[struct] = self.zone(name, size, align=align)
        m.variable("biozone", m.zones["bio"], static=True)

    def zone(self, name: str, size: int, **how: Any) -> Zone:
        made = Zone(self, name, size, **how)
        self.all.append(made)
        return made

    def finish(self) -> None:
        m = self.machine
        primary = [z for z in self.all if z.primary is None]
        for zone in self.all:
            zone.finish()
            if zone.obj.has("uz_klink"):
                zone.obj["uz_klink.kl_keg"] = zone.keg
                link = m.view("uma_klink", zone.obj.at("uz_klink"))
                m.list(zone.obj.at("uz_kegs"), "kl_link", [link])
            else:
                zone.obj["uz_keg"] = zone.keg
            if zone.obj.has("uz_domain"):
                # The domain's buckets follow the per-CPU caches.
                caches = m.locate("uma_zone", "uz_cpu").offset + m.sizeof("uma_cache") * m.cpus
                zone.obj["uz_domain"] = zone.obj.address + caches
            if zone.obj.has("uz_lockptr"):
                zone.obj["uz_lockptr"] = zone.keg.at("uk_lock") if zone.keg.has("uk_lock") else 0
            elif zone.obj.has("uz_lock") and m.locate("uma_zone", "uz_lock").is_pointer:
                zone.obj["uz_lock"] = zone.keg.at("uk_lock")
        for zone in primary:
            zones = [zone.obj] + [z.obj for z in self.all if z.primary is zone]
            m.list(zone.keg.at("uk_zones"), "uz_link", zones)
        m.list(m.address_of("uma_kegs"), "uk_link", [z.keg for z in reversed(primary)])
