"""GEOM: classes, geoms, providers, consumers, disks, and every bio on its way.

Mirrors sys/geom/geom.h, geom_io.c, geom_subr.c, geom_disk.c, geom_slice.c and the
classes beside them, sys/sys/bio.h and sys/sys/devicestat.h, 7.0-CURRENT of
2006 to 15.0.

A request made here does what g_io_request() does: it is counted in the
consumer's and the provider's nstart (provider: up to 12.x; consumer: only
with INVARIANTS from 13.0) and in the provider's devstat, and its clones hang
on bio_parent as g_clone_bio() leaves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple, Union

from plugin.errors import UsageError
from tests.forge.builder import Obj

if TYPE_CHECKING:
    from tests.forge.machine import Machine

BIO_READ, BIO_WRITE = 1, 2
G_VERSION_01 = 0x19950323
DEVSTAT_READ, DEVSTAT_WRITE = 1, 2

#: class: (symbol of its struct g_class, start method, bio_done of the clones it makes)
_CLASSES: Dict[str, Tuple[str, str, str]] = {
    "DISK": ("g_disk_class", "g_disk_start", "g_disk_done"),
    "DEV": ("g_dev_class", "", ""),
    "VFS": ("g_vfs_class", "", ""),
    "SWAP": ("g_swap_class", "", ""),
    "MBR": ("g_mbr_class", "g_slice_start", "g_std_done"),
    "BSD": ("g_bsd_class", "g_slice_start", "g_std_done"),
    "PART": ("g_part_class", "g_part_start", "g_std_done"),
    "LABEL": ("g_label_class", "g_slice_start", "g_std_done"),
    "MIRROR": ("g_mirror_class", "g_mirror_start", "g_mirror_done"),
    "STRIPE": ("g_stripe_class", "g_stripe_start", "g_stripe_done"),
    "MD": ("g_md_class", "g_md_start", ""),
    "ZFS::VDEV": ("zfs_vdev_class", "", ""),
    "ZFS::ZVOL": ("zfs_zvol_class", "zvol_geom_bio_start", ""),
    "ELI": ("g_eli_class", "g_eli_start", "g_eli_write_done"),
    "GATE": ("g_gate_class", "g_gate_start", "g_gate_done"),
    "RAID3": ("g_raid3_class", "g_raid3_start", "g_raid3_done"),
    "RAID": ("g_raid_class", "g_raid_start", "g_raid_tr_done"),
    "JOURNAL": ("g_journal_class", "g_journal_start", "g_journal_done"),
    "VINUM": ("g_vinum_class", "gv_start", "gv_done"),
}
_SLICERS = ("MBR", "BSD", "PART", "LABEL")


class Provider:
    """A provider; ``requests`` counts those under way."""

    def __init__(self, obj: Obj, geom: GGeom, name: str, mediasize: int, sectorsize: int) -> None:
        self.obj = obj
        self.geom = geom
        self.name = name
        self.mediasize = mediasize
        self.sectorsize = sectorsize
        self.consumers: List[Consumer] = []
        #: where this provider begins on the one its geom consumes
        self.start = 0
        #: requests that ended before the dump, and those under way
        self.finished = 0
        self.requests = 0

    def __index__(self) -> int:
        return self.obj.address

    def fails(self, error: int) -> Provider:
        """Every request is refused with this error."""
        self.obj["error"] = error
        return self


class Consumer:
    """A consumer, attached to ``provider``."""

    def __init__(self, obj: Obj, geom: GGeom, provider: Provider) -> None:
        self.obj = obj
        self.geom = geom
        self.provider = provider
        self.finished = 0
        self.requests = 0
        self.access = [0, 0, 0]

    def __index__(self) -> int:
        return self.obj.address

    def open(self, read: int = 1, write: int = 1, exclusive: int = 1) -> Consumer:
        """g_access(): the counts go up here, at the provider and as its class passes them on."""
        for index, delta in enumerate((read, write, exclusive)):
            self.access[index] += delta
        for name, value in zip(("acr", "acw", "ace"), self.access):
            self.obj[name] = value
        pp = self.provider
        for name, delta in zip(("acr", "acw", "ace"), (read, write, exclusive)):
            pp.obj[name] = pp.obj[name] + delta
        pp.geom.pass_access(read, write, exclusive)
        return self


class GGeom:
    """A geom: an instance of a class."""

    def __init__(self, obj: Obj, class_name: str, name: str) -> None:
        self.obj = obj
        self.class_name = class_name
        self.name = name
        self.providers: List[Provider] = []
        self.consumers: List[Consumer] = []
        self.disk: Optional[Disk] = None
        self.stripesize = 0

    def __index__(self) -> int:
        return self.obj.address

    def provider(self, name: str) -> Provider:
        for found in self.providers:
            if found.name == name:
                return found
        raise UsageError(f"geom {self.name} has no provider {name}")

    def pass_access(self, read: int, write: int, exclusive: int) -> None:
        """What the class's access method asks of the providers below.

        Slicers and STRIPE take one exclusive count more at the first open
        (g_slice_access(), g_part_access(), g_stripe_access()); MIRROR and ELI
        keep theirs open all the time.
        """
        if self.class_name in (*_SLICERS, "STRIPE"):
            for consumer in self.consumers:
                extra = 0 if any(consumer.access) else 1
                consumer.open(read, write, exclusive + extra)


class Disk:
    """A disk: struct disk, its geom and provider, and what its driver has been given."""

    def __init__(self, obj: Obj, provider: Provider, devstat: Obj, queue: Obj) -> None:
        self.obj = obj
        self.provider = provider
        self.devstat = devstat
        #: the driver's own struct bio_queue_head, first thing in its softc (d_drv1)
        self.queue = queue
        self.finished = 0
        #: bios given to the driver, those on its own queue and those with the hardware
        self.queued: List[Bio] = []
        self.outstanding: List[Bio] = []

    def __index__(self) -> int:
        return self.obj.address


class Bio:
    """A struct bio under way."""

    def __init__(self, geom: Geom, obj: Obj, cmd: int, offset: int, length: int) -> None:
        self.geom = geom
        self.obj = obj
        self.cmd = cmd
        self.offset = offset
        self.length = length
        self.consumer: Optional[Consumer] = None
        self.provider: Optional[Provider] = None
        self.children: List[Bio] = []
        self.age = 0.0
        self.disk: Optional[Disk] = None

    def __index__(self) -> int:
        return self.obj.address

    # Where it goes

    def queued_down(self) -> Bio:
        """On g_bio_run_down, waiting for g_down."""
        self.geom.down.append(self)
        return self

    def queued_up(self, error: int = 0) -> Bio:
        """Done below, on g_bio_run_up, waiting for g_up; the counts say ended.

        nend counts in g_io_deliver(), before the queue.
        """
        self.ended()
        self.obj["bio_error"] = error
        if not error:
            self.obj["bio_completed"] = self.length
        self.geom.up.append(self)
        return self

    def ended(self) -> Bio:
        """Delivered: no longer in flight at its provider."""
        for end in (self.provider, self.consumer):
            if end is not None:
                end.requests -= 1
                end.finished += 1
        return self

    def passed(self, at: Optional[int] = None) -> List[Bio]:
        """Through its provider's start method: the clones that makes, each requested below.

        ``at`` puts the only clone at an address.
        """
        return self.geom.pass_down(self, at)

    def down_to(self, name: str, at: Optional[int] = None) -> Bio:
        """Pass it down until the clone that is to provider ``name``."""
        bio = self
        while bio.provider is None or bio.provider.name != name:
            below = bio.provider.geom.consumers if bio.provider else []
            last = len(below) == 1 and below[0].provider.name == name
            children = bio.passed(at if last else None)
            if not children or children[0].disk is not None:
                raise UsageError(f"the bio never comes to {name}")
            bio = children[0]
        return bio

    def to_device(self, *, queued: bool = False) -> List[Bio]:
        """All the way to the drivers: the bios they hold.

        ``queued`` leaves them on the driver's own queue.
        """
        if self.disk is not None:
            (self.disk.queued if queued else self.disk.outstanding).append(self)
            return [self]
        return [at for child in self.passed() for at in child.to_device(queued=queued)]


class Geom:
    """The topology and its I/O."""

    def __init__(self, machine: Machine) -> None:
        self.machine = m = machine
        self.classes: Dict[str, Obj] = {}
        self._class_order: List[str] = []
        self.geoms: List[GGeom] = []
        self.disks: List[Disk] = []
        self.devstats: List[Obj] = []
        self.down: List[Bio] = []
        self.up: List[Bio] = []
        self.task: List[Bio] = []
        self.all: List[Bio] = []
        self._bcount = m.has("bio", "bio_bcount")
        self.events: List[Obj] = []
        #: failures since g_down last came through: it paces itself while this is not 0
        self.pace = 0
        #: the bio that g_down has taken off its queue and not passed on yet
        self.in_hand: Optional[Bio] = None
        self.g_bio_run_down = self._bioq("g_bio_run_down")
        self.g_bio_run_up = self._bioq("g_bio_run_up")
        # Gone with 12.0 (sys/geom/geom_io.c).
        self.g_bio_run_task = self._bioq("g_bio_run_task") if m.osreldate < 1200000 else None
        for name in ("g_wait_down", "g_wait_up", "g_wait_event"):
            m.variable(name, static=name == "g_wait_event")
        self.topology_lock = m.locks.sx("GEOM topology", symbol="topology_lock")
        m.symbol("g_classes", size=m.pointer_size)
        m.symbol("geoms", size=2 * m.pointer_size, static=True)
        m.symbol("g_events", size=2 * m.pointer_size, static=True)
        m.symbol("g_doorstep", size=2 * m.pointer_size, static=True)
        m.symbol("device_statq", size=2 * m.pointer_size, static=True)
        m.variable("g_collectstats", 1, size=4)
        m.locks.mutex("GEOM orphanage", symbol="g_eventlock", static=True)

    def _bioq(self, name: str) -> Obj:
        m = self.machine
        made = m.symbol(name, "g_bioq", static=True)
        m.locks.initialize(made.sub("bio_queue_lock"), "sleep mutex", "bio queue")
        return made

    # Topology

    def g_class(self, name: str) -> Obj:
        """The class of that name, registered when first used."""
        if name not in self.classes:
            m = self.machine
            symbol, start, _ = _CLASSES[name]
            made = m.symbol(symbol, "g_class", static=True)
            made.set(name=name, version=G_VERSION_01)
            if start:
                made.probe(start=start)
            self.classes[name] = made
            self._class_order.append(name)
        return self.classes[name]

    def geom(self, class_name: str, name: str, *, at: Optional[int] = None) -> GGeom:
        m = self.machine
        obj = m.allocate("g_geom", at=at)
        obj["class"] = self.g_class(class_name)
        # g_new_geomf() copies the name, so it lies in malloc'ed memory.
        obj["name"] = self._copied(name)
        start = _CLASSES[class_name][1]
        if start:
            obj["start"] = start
        made = GGeom(obj, class_name, name)
        self.geoms.append(made)
        return made

    def _copied(self, name: str) -> int:
        raw = name.encode() + b"\0"
        at = self.machine.take(len(raw), "kmem", 16)
        self.machine.space.write(at, raw)
        return at

    def new_provider(
        self,
        geom: GGeom,
        name: str,
        mediasize: int,
        sectorsize: int,
        *,
        at: Optional[int] = None,
        stat: Optional[int] = None,
        dev: bool = True,
    ) -> Provider:
        """A provider of ``geom``; its DEV consumer too, as every provider has one."""
        m = self.machine
        size = m.sizeof("g_provider")
        raw = name.encode() + b"\0"
        # The name follows the struct in the same allocation (g_new_providerf()).
        if at is None:
            at = m.take(size + len(raw), "kmem", 16)
        else:
            m.arenas["kmem"].reserve(at, size + len(raw))
        obj = m.new("g_provider", at=at)
        m.space.write(at + size, raw)
        obj.set(
            name=at + size,
            geom=geom,
            mediasize=mediasize,
            sectorsize=sectorsize,
            index=len(geom.providers),
        )
        obj["stat"] = self._devstat(obj, "", -1, at=stat)
        made = Provider(obj, geom, name, mediasize, sectorsize)
        geom.providers.append(made)
        if dev:
            self.dev(made)
        return made

    def attach(self, geom: GGeom, provider: Provider, *, at: Optional[int] = None) -> Consumer:
        """A consumer of ``geom`` on ``provider``, closed."""
        obj = self.machine.allocate("g_consumer", at=at)
        obj.set(geom=geom, provider=provider)
        obj["stat"] = self._devstat(obj, "", -1)
        made = Consumer(obj, geom, provider)
        geom.consumers.append(made)
        provider.consumers.append(made)
        return made

    def _devstat(self, who: Obj, name: str, unit: int, at: Optional[int] = None) -> Obj:
        made = self.machine.allocate("devstat", at=at)
        made.set(
            allocated=1,
            device_number=len(self.devstats),
            device_name=name,
            unit_number=unit,
            id=who,
            sequence0=1,
            sequence1=1,
        )
        self.devstats.append(made)
        return made

    def disk(
        self,
        driver: str,
        unit: int,
        *,
        mediasize: int,
        sectorsize: int = 512,
        maxsize: int = 131072,
        geom_at: Optional[int] = None,
        provider_at: Optional[int] = None,
        stat_at: Optional[int] = None,
    ) -> Disk:
        """disk_create(): a DISK geom with one provider, and the driver's struct disk."""
        m = self.machine
        name = f"{driver}{unit}"
        geom = self.geom("DISK", name, at=geom_at)
        provider = self.new_provider(
            geom, name, mediasize, sectorsize, at=provider_at, stat=stat_at, dev=False
        )
        dp = m.new("disk")
        softc = m.take(4096, "kmem", 64)
        queue = m.view("bio_queue_head", softc)
        devstat = self._devstat(provider.obj, driver, unit)
        strategy = {
            "da": "dastrategy",
            "ada": "adastrategy",
            "vtbd": "vtblk_strategy",
            "md": "mdstrategy",
            "nda": "ndastrategy",
            "nvd": "nvd_strategy",
            "ad": "ad_strategy",
        }
        dp.set(
            d_geom=geom,
            d_devstat=devstat,
            d_name=driver,
            d_unit=unit,
            d_sectorsize=sectorsize,
            d_mediasize=mediasize,
            d_maxsize=maxsize,
            d_drv1=softc,
            d_strategy=strategy.get(driver, f"{driver}strategy"),
        )
        if m.osreldate >= 1000000:
            # g_disk_create() drops the provider's own devstat: pp->stat is NULL from then on.
            self.devstats.remove(m.view("devstat", provider.obj["stat"]))
            provider.obj["stat"] = 0
            devstat["id"] = provider
        if "g_disk_softc" in m.layouts:
            sc = m.new("g_disk_softc", dp=dp)
            sc.probe(d_devstat=devstat)
            geom.obj["softc"] = sc
            provider.obj["private"] = sc
        else:
            geom.obj["softc"] = dp
        made = Disk(dp, provider, devstat, queue)
        geom.disk = made
        self.disks.append(made)
        self.dev(provider)
        return made

    def slice(
        self,
        class_name: str,
        below: Union[Provider, Disk],
        parts: Dict[str, Tuple[int, int]],
        *,
        consumer_at: Optional[int] = None,
        index: int = 0,
    ) -> GGeom:
        """A slicer (MBR, BSD, PART, LABEL): ``parts`` are (start, bytes) by provider name."""
        pp = below.provider if isinstance(below, Disk) else below
        geom = self.geom(class_name, pp.name)
        self.attach(geom, pp, at=consumer_at)
        for number, (name, (start, size)) in enumerate(parts.items()):
            provider = self.new_provider(geom, name, size, pp.sectorsize)
            provider.start = start
            provider.obj["index"] = index + number
        return geom

    def mirror(self, name: str, below: Sequence[Union[Provider, Disk]]) -> GGeom:
        """gmirror: reads from one component, writes to all; components stay open."""
        providers = [b.provider if isinstance(b, Disk) else b for b in below]
        geom = self.geom("MIRROR", name)
        for pp in providers:
            self.attach(geom, pp).open(1, 1, 1)
        smallest = min(pp.mediasize for pp in providers)
        self.new_provider(geom, f"mirror/{name}", smallest - 512, 512)
        return geom

    def stripe(
        self, name: str, below: Sequence[Union[Provider, Disk]], stripesize: int = 65536
    ) -> GGeom:
        """gstripe: blocks of ``stripesize`` go round the components."""
        providers = [b.provider if isinstance(b, Disk) else b for b in below]
        geom = self.geom("STRIPE", name)
        geom.stripesize = stripesize
        for pp in providers:
            self.attach(geom, pp)
        size = min(pp.mediasize for pp in providers) // stripesize * stripesize
        made = self.new_provider(geom, f"stripe/{name}", size * len(providers), 512)
        made.obj["stripesize"] = stripesize
        return geom

    def eli(self, below: Union[Provider, Disk]) -> GGeom:
        """geli: its consumer stays open; offsets are kept."""
        pp = below.provider if isinstance(below, Disk) else below
        geom = self.geom("ELI", f"{pp.name}.eli")
        self.attach(geom, pp).open(1, 1, 1)
        self.new_provider(geom, f"{pp.name}.eli", pp.mediasize - 512, pp.sectorsize)
        return geom

    def dev(self, provider: Provider) -> Consumer:
        """The DEV geom that gives the provider its node in /dev."""
        geom = self.geom("DEV", provider.name)
        return self.attach(geom, provider)

    def vfs(self, provider: Provider, fs: str = "ffs") -> Consumer:
        """A mounted file system's consumer (g_vfs_open(): r1 w1 e1)."""
        geom = self.geom("VFS", f"{fs}.{provider.name}")
        return self.attach(geom, provider).open(1, 1, 1)

    def swap(self, provider: Provider) -> Consumer:
        """A swap device's consumer (swapongeom(): r1 w1 e0, so that savecore can read)."""
        geom = next((g for g in self.geoms if g.class_name == "SWAP"), None)
        return self.attach(geom or self.geom("SWAP", "swap"), provider).open(1, 1, 0)

    # Requests

    def bio(
        self, cmd: int, offset: int, length: int, *, at: Optional[int] = None, **members: Any
    ) -> Bio:
        """A struct bio out of the g_bio zone, sent nowhere yet."""
        m = self.machine
        if self._bcount:
            members["bio_bcount"] = length
        obj = m.new(
            "bio",
            at=m.zones["bio"].alloc(at),
            bio_cmd=cmd,
            bio_offset=offset,
            bio_length=length,
            **members,
        )
        made = Bio(self, obj, cmd, offset, length)
        self.all.append(made)
        return made

    def request(
        self,
        consumer: Consumer,
        cmd: int,
        offset: int,
        length: int,
        *,
        done: str = "",
        caller1: Any = None,
        caller2: Any = None,
        data: Any = None,
        seconds: float = 60.0,
        parent: Optional[Bio] = None,
        at: Optional[int] = None,
    ) -> Bio:
        """g_io_request(): a bio from ``consumer`` to its provider, ``seconds`` ago.

        It is in flight and nowhere yet: say where with ``queued_down()``,
        ``passed()`` or ``to_device()``.
        """
        made = self.bio(
            cmd,
            offset,
            length,
            at=at,
            bio_from=consumer,
            bio_to=consumer.provider,
            bio_done=done or None,
            bio_caller1=caller1,
            bio_caller2=caller2,
            bio_data=data,
            **self._since(seconds),
        )
        made.consumer, made.provider, made.age = consumer, consumer.provider, seconds
        if parent is not None:
            self._child(parent, made)
        consumer.requests += 1
        consumer.provider.requests += 1
        return made

    def _since(self, seconds: float) -> Dict[str, int]:
        since = self.machine.uptime - seconds
        whole = int(since)
        return {
            "bio_t0.sec": whole,
            "bio_t0.frac": int((since - whole) * (1 << 64)) & 0xFFFFFFFFFFFFFFFF,
        }

    def stamp(self, bio: Bio, seconds: float) -> None:
        """bio_t0: when it was last requested."""
        bio.age = seconds
        for member, value in self._since(seconds).items():
            bio.obj[member] = value

    def _child(self, parent: Bio, child: Bio) -> None:
        parent.children.append(child)
        child.obj["bio_parent"] = parent
        parent.obj["bio_children"] = len(parent.children)
        child.obj["bio_data"] = parent.obj["bio_data"]

    def pass_down(self, bio: Bio, at: Optional[int] = None) -> List[Bio]:
        """The start method of the bio's provider, as the class does it."""
        if bio.provider is None:
            raise UsageError("a bio given to a driver goes no further")
        geom = bio.provider.geom
        done = _CLASSES[geom.class_name][2]
        if geom.disk is not None:
            return [self._to_driver(bio, geom.disk)]
        pieces: List[Tuple[Consumer, int, int]] = []
        if geom.class_name == "MIRROR" and bio.cmd == BIO_READ:
            pieces.append((geom.consumers[0], bio.offset, bio.length))
        elif geom.class_name == "MIRROR":
            pieces.extend((consumer, bio.offset, bio.length) for consumer in geom.consumers)
        elif geom.class_name == "STRIPE":
            pieces.extend(_striped(geom, bio))
        else:
            pieces.append((geom.consumers[0], bio.offset + bio.provider.start, bio.length))
        if geom.class_name == "ELI" and bio.cmd == BIO_READ:
            done = "g_eli_read_done"
        if geom.class_name == "STRIPE" and self.machine.osreldate < 900000:
            done = "g_std_done"
        return [
            self.request(
                consumer, bio.cmd, offset, length, done=done, seconds=bio.age, parent=bio, at=at
            )
            for consumer, offset, length in pieces
        ]

    def _to_driver(self, bio: Bio, disk: Disk) -> Bio:
        """g_disk_start(): a clone with bio_disk set, from and to no one, for d_strategy()."""
        made = self.bio(bio.cmd, bio.offset, bio.length)
        made.disk = disk
        made.obj.set(
            bio_disk=disk,
            bio_done="g_disk_done",
            bio_pblkno=bio.offset // disk.provider.sectorsize,
        )
        self._child(bio, made)
        self.stamp(made, bio.age)
        return made

    # Events

    def event(self, function: str, argument: Any = 0) -> Obj:
        """An event for the g_event thread that it has not run."""
        made = self.machine.new("g_event", func=function, arg=argument)
        self.events.append(made)
        return made

    # Finishing

    def finish(self) -> None:
        m = self.machine
        m.variable("pace", self.pace, size=4, static=True)
        m.variable("g_pending_events", len(self.events), size=4, static=True)
        m.tailq(m.address_of("g_events"), "events", self.events)
        m.tailq(m.address_of("g_doorstep"), "events", [])
        m.stailq(m.address_of("device_statq"), "dev_links", self.devstats)
        self._lists()
        self._counts()
        self._queue(self.g_bio_run_down, self.down)
        self._queue(self.g_bio_run_up, self.up)
        if self.g_bio_run_task is not None:
            self._queue(self.g_bio_run_task, self.task)
        for disk in self.disks:
            self._driver_queue(disk)

    def _lists(self) -> None:
        m = self.machine
        classes = [self.classes[name] for name in reversed(self._class_order)]
        m.list(m.address_of("g_classes"), "class", classes)
        m.tailq(m.address_of("geoms"), "geoms", [g.obj for g in self.geoms])
        for name, g_class in self.classes.items():
            own = [g.obj for g in reversed(self.geoms) if g.class_name == name]
            m.list(g_class.at("geom"), "geom", own)
        for geom in self.geoms:
            m.list(geom.obj.at("consumer"), "consumer", [c.obj for c in reversed(geom.consumers)])
            m.list(geom.obj.at("provider"), "provider", [p.obj for p in reversed(geom.providers)])
            for provider in geom.providers:
                m.list(
                    provider.obj.at("consumers"),
                    "consumers",
                    [c.obj for c in reversed(provider.consumers)],
                )
            rank = 1
            if geom.consumers:
                rank = 1 + max(c.provider.geom.obj["rank"] for c in geom.consumers)
            geom.obj["rank"] = rank

    def _counts(self) -> None:
        """nstart and nend, and the devstats, from what is under way and what has ended."""
        m = self.machine
        invariants = "INVARIANTS" in m.variant
        for geom in self.geoms:
            for provider in geom.providers:
                started = provider.finished + provider.requests
                provider.obj.probe(nstart=started, nend=provider.finished)
                if provider.obj["stat"]:
                    self._transactions(
                        m.view("devstat", provider.obj["stat"]), started, provider.finished
                    )
            for consumer in geom.consumers:
                if m.osreldate < 1300000 or invariants:
                    consumer.obj.set(
                        nstart=consumer.finished + consumer.requests, nend=consumer.finished
                    )
        for disk in self.disks:
            given = len(disk.queued) + len(disk.outstanding)
            self._transactions(disk.devstat, disk.finished + given, disk.finished)

    def _transactions(self, devstat: Obj, started: int, ended: int) -> None:
        devstat.set(start_count=started, end_count=ended)
        devstat[f"operations[{DEVSTAT_READ}]"] = ended // 3
        devstat[f"operations[{DEVSTAT_WRITE}]"] = ended - ended // 3

    def _queue(self, queue: Obj, bios: List[Bio]) -> None:
        m = self.machine
        m.tailq(queue.at("bio_queue"), "bio_queue", [b.obj for b in bios])
        queue["bio_queue_length"] = len(bios)
        onqueue = m.constant("BIO_ONQUEUE", 4)
        for bio in bios:
            bio.obj["bio_flags"] = bio.obj["bio_flags"] | onqueue

    def _driver_queue(self, disk: Disk) -> None:
        m = self.machine
        m.tailq(disk.queue.at("queue"), "bio_queue", [b.obj for b in disk.queued])
        disk.queue.probe(total=len(disk.queued))
        if disk.queue.has("insert_point"):
            disk.queue["insert_point"] = 0


def _striped(geom: GGeom, bio: Bio) -> List[Tuple[Consumer, int, int]]:
    pieces = []
    size, count = geom.stripesize, len(geom.consumers)
    offset, left = bio.offset, bio.length
    while left:
        number, within = divmod(offset, size)
        take = min(size - within, left)
        pieces.append((geom.consumers[number % count], number // count * size + within, take))
        offset += take
        left -= take
    return pieces
