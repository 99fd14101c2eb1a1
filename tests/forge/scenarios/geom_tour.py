"""One machine with every GEOM class, I/O in every place it can be, under any version.

Six disks: da0 and da1 mirrored, partitioned, with a file system on a label and
swap encrypted; da2 and da3 striped; da4 idle; da5 dead.  ``m.expected`` says
for each provider what is in flight, what of that stands on g_bio_run_down for
this very provider, and for disks what the driver has on its own queue and what
the hardware has.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List

from tests.forge.bufs import BIO_READ, BIO_WRITE
from tests.forge.geom import Bio, Disk
from tests.forge.machine import Machine

GIGABYTE = 1 << 30
EIO = 5


def geom_tour(*, osreldate: int = 1402000, arch: str = "amd64") -> Machine:
    """The machine; see ``m.expected["providers"]``."""
    m = Machine(osreldate, arch, ram=64 << 20, uptime=5000.0)
    disks = [m.geom.disk("da", unit, mediasize=(8 + unit) * GIGABYTE) for unit in range(6)]
    for number, disk in enumerate(disks):
        disk.finished = disk.provider.finished = 10_000 * (number + 1)
    mirror = m.geom.mirror("gm0", disks[:2])
    parts = m.geom.slice(
        "PART" if osreldate >= 800000 else "BSD",
        mirror.providers[0],
        {"mirror/gm0a": (65536, 2 * GIGABYTE), "mirror/gm0b": (2 * GIGABYTE + 65536, GIGABYTE)},
    )
    label = m.geom.slice(
        "LABEL", parts.providers[0], {"ufs/root": (0, parts.providers[0].mediasize - 512)}
    )
    root = m.vfs.ffs("/", m.geom.vfs(label.providers[0]))
    eli = m.geom.eli(parts.providers[1])
    swap = m.vm.swap_device(m.geom.swap(eli.providers[0]), used=2000)
    stripe = m.geom.stripe("st0", disks[2:4])
    data = m.vfs.ffs("/data", m.geom.vfs(stripe.providers[0]))
    m.vfs.ffs("/dead", m.geom.vfs(disks[5].provider))
    _io(m, root, data, swap)
    _dead(m, disks[5])
    _events(m)
    _expect(m)
    return m


def _read(m: Machine, mount: Any, number: int, *, who: str = "") -> Bio:
    """A buffer read; with ``who`` a process of that name waits for it in biord."""
    vnode = m.vfs.vnode(mount)
    owner = m.procs.process(who).thread(calls=("bread", "ffs_read", "sys_read")) if who else None
    buf = m.bufs.buf(vnode, 0, blkno=4096 + number * 64, cmd=BIO_READ, owner=owner)
    bio = m.bufs.start(buf, mount, seconds=300 - number)
    if owner is not None:
        vnode.lock.owned_by(owner)
        buf.waited_by(owner, "biord", seconds=300 - number)
    return bio


def _io(m: Machine, root: Any, data: Any, swap: Any) -> None:
    # Queued at the top, in the middle and at the bottom.
    for number in range(3):
        _read(m, root, number, who=f"top{number}").queued_down()
    for number in range(2):
        _read(m, root, 10 + number, who=f"mid{number}").down_to("mirror/gm0").queued_down()
    bottom = _read(m, data, 20, who="bottom")
    for piece in bottom.passed():
        piece.queued_down()
    # With the disks: two reads outstanding, one still on the driver's own queue.
    for number in range(2):
        _read(m, root, 30 + number, who=f"disk{number}").to_device()
    _read(m, data, 40, who="driver").to_device(queued=True)
    # A write of two blocks' width on the stripe, and a swap write through geli to both mirrors.
    vnode = m.vfs.vnode(data)
    write = m.bufs.buf(vnode, 0, blkno=256 - 32, size=65536, cmd=BIO_WRITE)
    m.bufs.start(write, data, seconds=120).to_device()
    memory = m.vm.object("swap", size=64)
    pages = [memory.page(n, dirty=0xFF, queue="inactive") for n in range(4)]
    out = m.bufs.swap_write(swap, 100, pages, seconds=90)
    if out.bio is not None:
        out.bio.to_device()
    # Done below and waiting for g_up, one with an error.
    _read(m, root, 50, who="up0").queued_up()
    _read(m, root, 51, who="up1").queued_up(EIO)
    # Neither queued nor with a device: lost on the way.
    m.cast["lost"] = m.procs.process("lost").thread(calls=("bread", "ffs_read", "sys_read"))
    buf = m.bufs.buf(m.vfs.vnode(root), 0, blkno=9000, cmd=BIO_READ, owner=m.cast["lost"])
    m.expected["lost"] = m.bufs.start(buf, root, seconds=1000).obj.address
    buf.waited_by(m.cast["lost"], "biord", seconds=1000)
    # Freed bios in a CPU's bucket look like those in use, and are not.
    m.zones["bio"].cache(4)


def _dead(m: Machine, disk: Disk) -> None:
    """A disk that errs: g_io_check() refuses every request with ENXIO."""
    disk.provider.fails(6)
    disk.obj.probe(d_goneflag=1)


def _events(m: Machine) -> None:
    """An event that waits for the topology lock, which geom(8) holds."""
    geom = m.procs.process("geom").thread(calls=("g_ctl_req", "g_ctl_ioctl", "sys_ioctl"))
    m.geom.topology_lock.owned_by(geom)
    geom.sleeps(m.take(8), "example", seconds=40)
    m.cast["geom"] = geom
    m.geom.event("g_new_provider_event", m.geom.disks[4].provider)
    m.geom.event("g_orphan_register", m.geom.disks[5].provider)
    event = m.services["g_event"]
    event.call("one_event")
    m.geom.topology_lock.slept_on_by(event, seconds=35)
    m.cast["g_event"] = event


def _expect(m: Machine) -> None:
    found: Dict[str, Dict[str, int]] = {}
    for geom in m.geom.geoms:
        for provider in geom.providers:
            found[provider.name] = {
                "in_flight": provider.requests,
                "on_queue": sum(1 for b in m.geom.down if b.provider is provider),
                "driver_queue": 0,
                "outstanding": 0,
            }
    for disk in m.geom.disks:
        found[disk.provider.name]["driver_queue"] = len(disk.queued)
        found[disk.provider.name]["outstanding"] = len(disk.outstanding)
    m.expected.update(
        providers=found, down=len(m.geom.down), up=len(m.geom.up), events=len(m.geom.events)
    )


#: what can be wrong with a tail queue, and how it is made so
def _loop(m: Machine, bios: List[Bio]) -> int:
    at = bios[-3].obj.at("bio_queue.tqe_next")
    m.write_pointer(at, bios[2])
    return at


def _dangling(m: Machine, bios: List[Bio]) -> int:
    at = bios[len(bios) // 2].obj.at("bio_queue.tqe_next")
    m.write_pointer(at, m.arenas["kmem"].end - 4096)
    return at


def _wrong_prev(m: Machine, bios: List[Bio]) -> int:
    at = bios[4].obj.at("bio_queue.tqe_prev")
    m.write_pointer(at, bios[1].obj.at("bio_queue.tqe_next"))
    return at


def _wrong_length(m: Machine, bios: List[Bio]) -> int:
    m.geom.g_bio_run_down["bio_queue_length"] = len(bios) + 7
    return m.geom.g_bio_run_down.at("bio_queue_length")


CORRUPTIONS: Dict[str, Callable[[Machine, List[Bio]], int]] = {
    "loop": _loop,
    "dangling": _dangling,
    "wrong prev": _wrong_prev,
    "wrong length": _wrong_length,
}


def corrupted_queue(
    how: str = "loop", *, bios: int = 12, osreldate: int = 1402000, arch: str = "amd64"
) -> Machine:
    """g_bio_run_down with one thing wrong; ``m.expected``: the bios, where it is wrong."""
    m = Machine(osreldate, arch, ram=64 << 20)
    disk = m.geom.disk("da", 0, mediasize=GIGABYTE)
    consumer = m.geom.vfs(disk.provider)
    made = [
        m.geom.request(
            consumer, BIO_READ, n * 4096, 4096, done="g_vfs_done", seconds=10 - n / 10
        ).queued_down()
        for n in range(bios)
    ]

    def damage() -> None:
        m.expected["address"] = CORRUPTIONS[how](m, made)

    m.at_the_end(damage)
    m.expected["bios"] = [bio.obj.address for bio in made]
    return m
