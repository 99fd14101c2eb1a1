"""GEOM's mesh: classes, geoms, providers and consumers.

Mirrors sys/geom/geom.h and geom_subr.c, 6.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel.devstat import Devstat, devstat
from plugin.kernel.queue import list_foreach, tailq_foreach
from plugin.session import Kernel, View

#: g_provider.flags and g_geom.flags that have one value in every version
G_PF_WITHER = 0x2
G_PF_ORPHAN = 0x4
G_GEOM_WITHER = 0x1
#: g_collectstats: statistics for providers (geom_int.h; a bare 1 before 10.x)
G_STATS_PROVIDERS = 1
#: the class of ZFS's volumes (zfs_zvol_class)
ZVOL_CLASS = "ZFS::ZVOL"


class Access(NamedTuple):
    """acr, acw, ace: opens for reading, for writing, and exclusive ones."""

    r: int
    w: int
    e: int

    def __str__(self) -> str:
        return f"r{self.r}w{self.w}e{self.e}"

    @property
    def open(self) -> bool:
        return any(self)


class Class:
    """One struct g_class and its geoms."""

    def __init__(self, address: int, name: str) -> None:
        self.address = address
        self.name = name
        self.geoms: List[Geom] = []

    def __repr__(self) -> str:
        return f"<class {self.name}>"


class Geom:
    """One struct g_geom: an instance of a class, its consumers below and providers above."""

    def __init__(self, view: View, name: str, g_class: Class) -> None:
        self.address = view.address
        self.name = name
        self.g_class = g_class
        self.rank: int = view.rank
        self.flags: int = view.flags
        self.softc: int = view.softc
        #: the function that takes its bios, and the one that describes it (0 for none)
        self.start: int = view.start
        self.dumpconf: int = view.dumpconf
        self.consumers: List[Consumer] = []
        self.providers: List[Provider] = []
        #: kept here in 11.x and 12.x, at the provider from 13.0 on
        self.aliases: List[str] = []

    @property
    def withering(self) -> bool:
        return bool(self.flags & G_GEOM_WITHER)

    def __repr__(self) -> str:
        return f"<geom {self.g_class.name} {self.name}>"


class Consumer:
    """One struct g_consumer: the point at which a geom uses a provider.

    ``flags`` is 0 before 9.x, which had none.
    """

    def __init__(self, view: View, geom: Geom) -> None:
        self.address = view.address
        self.geom = geom
        #: struct g_provider *, and the provider itself once the mesh is joined
        self.provider_address: int = view.provider
        self.provider: Optional[Provider] = None
        self.access = Access(view.acr, view.acw, view.ace)
        self.flags: int = view.get("flags", 0)
        self.stat: int = view.stat
        self.nstart: Optional[int] = view.get("nstart")
        self.nend: Optional[int] = view.get("nend")
        self.private: int = view.private
        self.index: int = view.index

    def __repr__(self) -> str:
        name = self.provider.name if self.provider else "nothing"
        return f"<consumer of {name} by {self.geom.name}>"


class Provider:
    """One struct g_provider: something that can be read and written.

    ``mediasize`` and ``sectorsize`` in bytes.  ``nstart`` and ``nend`` count
    bios, None from 13.0 on, which dropped them.
    """

    def __init__(self, kernel: Kernel, view: View, name: str, geom: Optional[Geom]) -> None:
        self._kernel = kernel
        self.address = view.address
        self.name = name
        self.geom = geom
        self.access = Access(view.acr, view.acw, view.ace)
        self.error: int = view.error
        self.mediasize: int = view.mediasize
        self.sectorsize: int = view.sectorsize
        self.stripesize: int = view.stripesize
        self.stripeoffset: int = view.stripeoffset
        self.flags: int = view.flags
        self.stat: int = view.stat
        self.nstart: Optional[int] = view.get("nstart")
        self.nend: Optional[int] = view.get("nend")
        self.private: int = view.private
        self.index: int = view.index
        #: the consumers attached, in the order of pp->consumers
        self.consumers: List[Consumer] = []
        self.consumer_addresses: List[int] = []
        self.aliases: List[str] = []
        #: on g_doorstep: orphaned, its consumers not told yet
        self.on_doorstep = False

    @property
    def class_name(self) -> str:
        return self.geom.g_class.name if self.geom else ""

    @property
    def is_device(self) -> bool:
        """True where nothing lies below: what it owes, nobody else owes.

        Below a volume of ZFS lies its pool, though not by consumers of GEOM.
        """
        return self.geom is not None and not self.geom.consumers and self.class_name != ZVOL_CLASS

    @property
    def flag_names(self) -> List[str]:
        return self._kernel.layouts.flags("g_provider_flags", self.flags)

    @property
    def devstat(self) -> Optional[Devstat]:
        return devstat(self._kernel, self.stat)

    def __repr__(self) -> str:
        return f"<provider {self.name}>"


class Mesh:
    """The whole topology.  The dictionaries go by address."""

    def __init__(self) -> None:
        self.classes: List[Class] = []
        self.geoms: Dict[int, Geom] = {}
        self.providers: Dict[int, Provider] = {}
        self.consumers: Dict[int, Consumer] = {}

    def find(self, name: str) -> List[Provider]:
        """Providers of that name or alias, /dev/ in front allowed."""
        name = name[5:] if name.startswith("/dev/") else name
        exact = [p for p in self.providers.values() if p.name == name]
        return exact or [
            p
            for p in self.providers.values()
            if name in p.aliases or (p.geom and name in p.geom.aliases)
        ]


@cached(MEMORY)
def mesh(kernel: Kernel) -> Mesh:
    """The topology, read once per session."""
    found = Mesh()
    names = _Names(kernel)
    head = kernel.address_of("g_classes")
    for address, (name,) in list_foreach(
        kernel, head, "g_class", "class", ["name"], what="g_classes"
    ):
        _add_class(kernel, found, Class(address, names[name]), names)
    _add_lost_geoms(kernel, found, names)
    _add_lost_ends(kernel, found, names)
    _join(kernel, found)
    return found


def _add_class(kernel: Kernel, found: Mesh, g_class: Class, names: _Names) -> None:
    found.classes.append(g_class)
    geoms = g_class.address + kernel.layouts.offsetof("g_class", "geom")
    for address, _ in list_foreach(
        kernel, geoms, "g_geom", "geom", what=f"geoms of class {g_class.name}"
    ):
        if address in found.geoms:
            kernel.warnings.add("g_geom", address, "is on two lists")
            continue
        view = _view(kernel, "g_geom", address)
        if view is None:
            continue
        _add_geom(kernel, found, view, g_class, names)
        _agree(kernel, "g_geom", view, "class", g_class.address, f"class {g_class.name}")


def _add_geom(kernel: Kernel, found: Mesh, view: View, g_class: Class, names: _Names) -> None:
    geom = Geom(view, names[view.name], g_class)
    g_class.geoms.append(geom)
    found.geoms[geom.address] = geom
    _fill(kernel, found, geom, view, names)


def _agree(kernel: Kernel, struct: str, view: View, member: str, owner: int, of: str) -> None:
    """What is on an owner's list says itself whose it is."""
    says = getattr(view, member)
    if says != owner:
        kernel.warnings.add(
            struct,
            view.address,
            f"says it belongs to {member} {says:#x}, is on the list of {of}",
        )


def _add_lost_geoms(kernel: Kernel, found: Mesh, names: _Names) -> None:
    """Geoms and classes that the class lists have lost, by the list of all (geom_subr.c)."""
    symbol = kernel.symbol("geoms")
    if symbol is None:
        return
    classes = {g_class.address: g_class for g_class in found.classes}
    for address, (owner,) in tailq_foreach(
        kernel, symbol.address, "g_geom", "geoms", ["class"], what="geoms"
    ):
        if address in found.geoms:
            continue
        if owner not in classes:
            lost = _view(kernel, "g_class", owner)
            if lost is None:
                continue
            kernel.warnings.add("g_classes", owner, "is cut short: its geoms have this class")
            classes[owner] = Class(owner, names[lost.name])
            _add_class(kernel, found, classes[owner], names)
            if address in found.geoms:
                continue
        view = _view(kernel, "g_geom", address)
        if view is not None:
            g_class = classes[owner]
            kernel.warnings.add(
                f"geoms of class {g_class.name}",
                address,
                f"the list is cut short: {names[view.name]} is on the list of all geoms alone",
            )
            _add_geom(kernel, found, view, g_class, names)


def _add_lost_ends(kernel: Kernel, found: Mesh, names: _Names) -> None:
    """Providers and consumers that their geom's list has lost, by who is joined to them."""
    refused: Set[int] = set()
    while not kernel.interrupted():
        providers = {c.provider_address for c in found.consumers.values()} - {0}
        consumers = {a for p in found.providers.values() for a in p.consumer_addresses}
        lost = sorted((providers - found.providers.keys()) - refused)
        lost_consumers = sorted((consumers - found.consumers.keys()) - refused)
        if not lost and not lost_consumers:
            return
        refused.update(lost, lost_consumers)
        for address in lost:
            view = _view(kernel, "g_provider", address)
            geom = found.geoms.get(view.geom) if view is not None else None
            if view is not None and geom is not None:
                _cut_short(kernel, f"providers of {geom.name}", address, "a consumer has it")
                _add_provider(kernel, found, geom, view, names)
        for address in lost_consumers:
            view = _view(kernel, "g_consumer", address)
            geom = found.geoms.get(view.geom) if view is not None else None
            if view is not None and geom is not None:
                _cut_short(kernel, f"consumers of {geom.name}", address, "its provider has it")
                _add_consumer(found, geom, view)


def _cut_short(kernel: Kernel, what: str, address: int, how: str) -> None:
    kernel.warnings.add(what, address, f"the list is cut short: {how}")


class _Names(Dict[int, str]):
    """The names of the mesh by address: many are shared, all are short."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def __missing__(self, address: int) -> str:
        try:
            name = self.kernel.cstring(address)
        except MemoryFault as fault:
            self.kernel.warnings.add("a name in GEOM", address, fault.reason)
            # A name outside the dump still must tell one thing from another.
            name = f"{address:#x}" if address else "?"
        self[address] = name
        return name


def _view(kernel: Kernel, struct: str, address: int) -> Optional[View]:
    try:
        return kernel.view(struct, address)
    except MemoryFault as fault:
        kernel.warnings.add(f"struct {struct}", fault.address, fault.reason)
        return None


def _fill(kernel: Kernel, found: Mesh, geom: Geom, view: View, names: _Names) -> None:
    for address, _ in list_foreach(
        kernel, view.at("consumer"), "g_consumer", "consumer", what=f"consumers of {geom.name}"
    ):
        end = _view(kernel, "g_consumer", address)
        if end is not None and address not in found.consumers:
            _add_consumer(found, geom, end)
            _agree(kernel, "g_consumer", end, "geom", geom.address, geom.name)
    for address, _ in list_foreach(
        kernel, view.at("provider"), "g_provider", "provider", what=f"providers of {geom.name}"
    ):
        end = _view(kernel, "g_provider", address)
        if end is not None and address not in found.providers:
            _add_provider(kernel, found, geom, end, names)
            _agree(kernel, "g_provider", end, "geom", geom.address, geom.name)
    if view.has("aliases"):
        geom.aliases = list(_aliases(kernel, view.at("aliases"), names))


def _add_consumer(found: Mesh, geom: Geom, view: View) -> None:
    consumer = Consumer(view, geom)
    geom.consumers.append(consumer)
    found.consumers[consumer.address] = consumer


def _add_provider(kernel: Kernel, found: Mesh, geom: Geom, view: View, names: _Names) -> None:
    provider = Provider(kernel, view, names[view.name], geom)
    geom.providers.append(provider)
    found.providers[provider.address] = provider
    provider.consumer_addresses = [
        consumer
        for consumer, _ in list_foreach(
            kernel,
            view.at("consumers"),
            "g_consumer",
            "consumers",
            what=f"consumers of {provider.name}",
        )
    ]
    if view.has("aliases"):
        provider.aliases = list(_aliases(kernel, view.at("aliases"), names))


def _aliases(kernel: Kernel, head: int, names: _Names) -> Iterator[str]:
    for _, (alias,) in list_foreach(
        kernel, head, "g_geom_alias", "ga_next", ["ga_alias"], what="GEOM aliases"
    ):
        yield names[alias]


def _join(kernel: Kernel, found: Mesh) -> None:
    """Consumers to their providers, both ways, and what contradicts itself."""
    for consumer in found.consumers.values():
        consumer.provider = found.providers.get(consumer.provider_address)
        if consumer.provider_address and consumer.provider is None:
            kernel.warnings.add(
                "g_consumer",
                consumer.address,
                f"of {consumer.geom.name} is attached to {consumer.provider_address:#x}, "
                "which no geom provides",
            )
    for provider in found.providers.values():
        for address in provider.consumer_addresses:
            user = found.consumers.get(address)
            if user is None:
                kernel.warnings.add(
                    "g_provider",
                    provider.address,
                    f"{provider.name} has a consumer {address:#x} of no geom",
                )
                continue
            if user.provider is not provider:
                kernel.warnings.add(
                    "g_consumer",
                    address,
                    f"says it is attached to {user.provider_address:#x}, "
                    f"is on the list of {provider.name}",
                )
                user.provider = user.provider or provider
            provider.consumers.append(user)
    for consumer in found.consumers.values():
        below = consumer.provider
        if below is not None and consumer not in below.consumers:
            _cut_short(
                kernel, f"consumers of {below.name}", consumer.address, f"{consumer.geom.name}'s"
            )
            below.consumers.append(consumer)
    for address in _doorstep(kernel):
        if address in found.providers:
            found.providers[address].on_doorstep = True


def _doorstep(kernel: Kernel) -> Iterator[int]:
    symbol = kernel.symbol("g_doorstep")
    if symbol is not None:
        for address, _ in tailq_foreach(
            kernel, symbol.address, "g_provider", "orphan", what="g_doorstep"
        ):
            yield address


@cached(MEMORY)
def provider_at(kernel: Kernel, address: int) -> Optional[Provider]:
    """The provider at ``address``, also one that is on no geom's list any more."""
    if not address:
        return None
    known = mesh(kernel).providers.get(address)
    if known is not None:
        return known
    try:
        view = kernel.view("g_provider", address)
    except MemoryFault as fault:
        kernel.warnings.add("g_provider", fault.address, fault.reason, partial=False)
        return None
    name = kernel.try_cstring(view.name, f"{address:#x}")
    return Provider(kernel, view, name, mesh(kernel).geoms.get(view.geom))


@cached(MEMORY)
def consumer_at(kernel: Kernel, address: int) -> Optional[Consumer]:
    """The consumer at ``address`` if a geom has it, or it says which one should."""
    known = mesh(kernel).consumers.get(address)
    if known is not None or not address:
        return known
    view = _view(kernel, "g_consumer", address)
    geom = mesh(kernel).geoms.get(view.geom) if view is not None else None
    if view is None or geom is None:
        return None
    _cut_short(kernel, f"consumers of {geom.name}", address, "who uses it has it alone")
    consumer = Consumer(view, geom)
    consumer.provider = provider_at(kernel, consumer.provider_address)
    return consumer


class InFlight(NamedTuple):
    """``bios`` requested of a provider and not delivered; ``source`` says by what."""

    bios: int
    source: str


def in_flight(kernel: Kernel, provider: Provider) -> Optional[InFlight]:
    """Bios given to a provider by g_io_request and not yet returned by g_io_deliver.

    From nstart and nend up to 12.x, from the provider's devstat since; None where
    neither is kept (kern.geom.collectstats is off, or the provider has no devstat).
    """
    if provider.nstart is not None and provider.nend is not None:
        return InFlight((provider.nstart - provider.nend) & 0xFFFFFFFF, "nstart - nend")
    if not collects(kernel):
        return None
    stat = provider.devstat
    if stat is None:
        return None
    return InFlight(stat.in_flight, "devstat")


def collects(kernel: Kernel) -> bool:
    """True while GEOM counts the bios of its providers (kern.geom.collectstats)."""
    try:
        return bool(kernel.global_value("g_collectstats", G_STATS_PROVIDERS) & G_STATS_PROVIDERS)
    except MemoryFault:
        return True


def select(kernel: Kernel, wanted: str) -> Tuple[List[Provider], Optional[str]]:
    """Providers by name, alias, class or address: (what was found, how it was told)."""
    found = mesh(kernel)
    providers = found.find(wanted)
    if providers:
        return providers, "name"
    try:
        address = int(wanted, 0)
    except ValueError:
        pass
    else:
        if address in found.providers:
            return [found.providers[address]], "provider"
        if address in found.geoms:
            return list(found.geoms[address].providers), "geom"
        if address in found.consumers:
            attached = found.consumers[address].provider
            return [attached] if attached else [], "consumer"
        for g_class in found.classes:
            if g_class.address == address:
                return [p for g in g_class.geoms for p in g.providers], "class"
        return [], None
    named = [g for g in found.geoms.values() if g.name == wanted]
    if named:
        return [p for g in named for p in g.providers], "geom"
    for g_class in found.classes:
        if g_class.name.lower() == wanted.lower():
            return [p for g in g_class.geoms for p in g.providers], "class"
    return [], None


class Active(NamedTuple):
    """What a consumer's own class counts: ``bios`` asked for and not done with."""

    bios: int
    #: bio_done of those bios, and the member that counts them
    done: str
    source: str


#: sc_active of a g_dev_softc has flags above its count from 12.0 on (geom_dev.c)
_SC_A_ACTIVE = (1 << 30) - 1


def consumer_active(kernel: Kernel, consumer: Consumer) -> Optional[Active]:
    """The requests a consumer's class says it has out; None for classes that do not count.

    File systems (geom_vfs.c, 9.x on), device nodes (geom_dev.c, 9.x on) and the
    swap pager (g_consumer.index less one, swap_pager.c, 10.x on) do.
    """
    name = consumer.geom.g_class.name
    try:
        if name == "VFS" and consumer.geom.softc and kernel.layouts.get("g_vfs_softc"):
            count = kernel.view("g_vfs_softc", consumer.geom.softc).sc_active
            return Active(count, "g_vfs_done", "g_vfs_softc.sc_active")
        if name == "DEV" and consumer.private and kernel.layouts.get("g_dev_softc"):
            count = kernel.view("g_dev_softc", consumer.private).sc_active & _SC_A_ACTIVE
            return Active(count, "g_dev_done", "g_dev_softc.sc_active")
    except MemoryFault as fault:
        kernel.warnings.add(f"softc of {consumer.geom.name}", fault.address, fault.reason)
        return None
    if name == "SWAP" and consumer.index > 0:
        return Active(consumer.index - 1, "swapgeom_done", "g_consumer.index - 1")
    return None


def around(chosen: Sequence[Provider]) -> Set[int]:
    """The geoms that the chosen providers belong to, stand on and carry."""
    geoms: Set[int] = set()

    def up(provider: Provider) -> None:
        for consumer in provider.consumers:
            if consumer.geom.address not in geoms:
                geoms.add(consumer.geom.address)
                for above in consumer.geom.providers:
                    up(above)

    def down(geom: Optional[Geom]) -> None:
        if geom is None or geom.address in geoms:
            return
        geoms.add(geom.address)
        for consumer in geom.consumers:
            if consumer.provider is not None:
                down(consumer.provider.geom)

    for provider in chosen:
        down(provider.geom)
    for provider in chosen:
        up(provider)
    return geoms
