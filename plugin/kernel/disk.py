"""struct disk: what a disk driver registers, the bottom of GEOM's DISK class.

Mirrors sys/geom/geom_disk.c and geom_disk.h, 6.x to 15.x: every bio for the
provider is cloned (bio_done g_disk_done, bio_disk the disk) and the clone given
to d_strategy; d_devstat counts the clones that the driver has.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.bio import Bio
from plugin.kernel.devstat import Devstat, devstat
from plugin.kernel.geom import Geom, Provider, mesh
from plugin.session import Kernel

DISK_CLASS = "DISK"


class Disk(NamedTuple):
    """``strategy`` is the driver's d_strategy by name; ``drv1`` its d_drv1, mostly its softc."""

    address: int
    name: str
    geom: int
    strategy: str
    drv1: int
    flags: int
    #: d_goneflag or d_destroyed: the driver has let go of it
    gone: bool
    maxsize: int
    devstat: Optional[Devstat]

    @property
    def driver(self) -> str:
        """The driver's name without its unit ("vtbd"), as d_name has it."""
        return self.name.rstrip("0123456789")

    @property
    def owes(self) -> Optional[int]:
        """Transactions the driver has started and not ended, None if not counted."""
        return self.devstat.in_flight if self.devstat else None


def disk_at(kernel: Kernel, address: int) -> Optional[Disk]:
    """The struct disk at ``address``; a warning and None where it cannot be read."""
    try:
        view = kernel.view("disk", address)
    except MemoryFault as fault:
        kernel.warnings.add("struct disk", fault.address, fault.reason)
        return None
    name = kernel.name_at(f"disk {address:#x}", view.d_name)
    stat = view.d_devstat
    return Disk(
        address,
        f"{name}{view.d_unit}",
        view.d_geom,
        kernel.symbolize(view.d_strategy),
        view.d_drv1,
        view.d_flags,
        bool(view.get("d_goneflag", 0) or view.d_destroyed),
        view.d_maxsize,
        devstat(kernel, stat) if stat else None,
    )


@cached(MEMORY)
def disks(kernel: Kernel) -> Dict[int, Disk]:
    """The disks of class DISK by the address of their geom."""
    found: Dict[int, Disk] = {}
    for g_class in mesh(kernel).classes:
        if g_class.name != DISK_CLASS:
            continue
        for geom in g_class.geoms:
            address = _of_geom(kernel, geom)
            disk = disk_at(kernel, address) if address else None
            if disk is not None:
                found[geom.address] = disk
    return found


def _of_geom(kernel: Kernel, geom: Geom) -> int:
    """struct disk of a geom: its softc before 9.x, the dp of a g_disk_softc since."""
    softc = geom.softc or next((p.private for p in geom.providers if p.private), 0)
    if not softc:
        return 0
    try:
        if kernel.layouts.get("g_disk_softc") is None:
            return softc
        value: int = kernel.view("g_disk_softc", softc).dp
        return value
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("g_disk_softc", softc, str(error))
        return 0


def disk_of(kernel: Kernel, provider: Provider) -> Optional[Disk]:
    """The disk behind a provider of class DISK, None for any other provider."""
    return disks(kernel).get(provider.geom.address) if provider.geom else None


def provider_of_disk(kernel: Kernel, address: int) -> Optional[Provider]:
    """The provider of the struct disk at ``address``."""
    for geom_address, disk in disks(kernel).items():
        if disk.address == address:
            providers = mesh(kernel).geoms[geom_address].providers
            return providers[0] if providers else None
    return None


def is_driver_clone(kernel: Kernel, bio: Bio) -> bool:
    """True for the clone that g_disk_start makes for the driver.

    Its bio_done is g_disk_done; without that symbol, what is left to go by is that
    it is for a disk and from nobody.
    """
    if not bio.disk or not bio.done:
        return False
    found = kernel.symbol("g_disk_done")
    return bio.done == found.address if found else bool(bio.parent and not bio.to)


#: d_rotation_rate: 0 unknown, 1 no rotating medium, else revolutions a minute (geom_disk.h)
_RR_NON_ROTATING, _RR_MIN, _RR_MAX = 1, 0x401, 0xFFFE


def config(kernel: Kernel, provider: Provider) -> Dict[str, str]:
    """What class DISK tells about a provider in kern.geom.confxml (g_disk_dumpconf()).

    {} for any other class; lunid and lunname only the driver could tell.
    """
    disk = disk_of(kernel, provider)
    if disk is None:
        return {}
    try:
        view = kernel.view("disk", disk.address)
    except MemoryFault:
        return {}
    found = {"fwheads": str(view.d_fwheads), "fwsectors": str(view.d_fwsectors)}
    if view.has("d_rotation_rate"):
        rate = view.d_rotation_rate
        if rate == 0:
            found["rotationrate"] = "unknown"
        elif rate == _RR_NON_ROTATING:
            found["rotationrate"] = "0"
        else:
            found["rotationrate"] = str(rate) if _RR_MIN <= rate <= _RR_MAX else "invalid"
    for member in ("ident", "descr"):
        if view.has(f"d_{member}"):
            found[member] = view.text(f"d_{member}")
    return found
