"""CAM: from a disk to its peripheral, device and controller, and to the CCBs that it has out.

Mirrors sys/cam (cam_xpt.c, cam_queue.h, cam_periph.h, cam_ccb.h, scsi/scsi_da.c), 7.0-CURRENT to
15.x.  d_drv1 of a CAM disk is its cam_periph.  A CCB is in the device's queue (cam_ed.ccbq)
until xpt_run_devq() hands it to the SIM; a frozen queue (qfrozen_cnt above 0, of the device or of
the SIM's cam_devq) hands nothing on.
"""

from __future__ import annotations

from typing import Dict, Iterator, NamedTuple, Optional, Tuple, Union

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.bio import Bio
from plugin.kernel.disk import Disk, disks
from plugin.kernel.queue import slist_foreach, tailq_foreach
from plugin.session import Kernel, View

#: d_strategy of the disks that are CAM's, and the periph_name that goes with it
_STRATEGIES = {"dastrategy": "da", "adastrategy": "ada", "ndastrategy": "nda", "cdstrategy": "cd"}
#: CAM_SIM_QUEUED: xpt_run_devq() has given it to the SIM, which has not returned it (cam.h)
_CAM_SIM_QUEUED = 0x200
#: CAM_DEV_QFRZN: this CCB has frozen its device's queue, once
_CAM_DEV_QFRZN = 0x40
#: cam_pinfo.index of a CCB that is done and waits for xpt_done_process() (cam.h, 10.0 on)
_CAM_DONEQ_INDEX = -3
_MAX_CCBS = 1 << 16
#: more busses, targets of one, devices, periphs than any machine has
_MAX = 1 << 16

HELD = "in the device's queue"
AT_SIM = "with the SIM"
DONE = "done, in CAM's done queue"
ELSEWHERE = "with CAM"


class Ccb(NamedTuple):
    """A union ccb.  ``bio`` is its ppriv_ptr1, ``timeout`` milliseconds; ``place`` as above."""

    address: int
    bio: int
    status: int
    timeout: int
    place: str

    @property
    def froze_device(self) -> bool:
        """CAM_DEV_QFRZN: the SIM froze the device's queue when it returned this one."""
        return bool(self.status & _CAM_DEV_QFRZN)


class CamDevice(NamedTuple):
    """What CAM has of a disk; addresses of its cam_periph, cam_ed, cam_sim and cam_devq.

    ``sim`` is the controller by name ("vtscsi0").  ``device_frozen`` and ``sim_frozen`` are
    qfrozen_cnt of the device's and of the SIM's queue.  ``active`` counts what the SIM has for this
    device, the dump's own write too; ``waiting`` what is in the device's queue.  ``ccbs`` has every
    CCB in that queue and, of da, every one that the SIM has (da alone keeps a list of those).
    """

    name: str
    periph: int
    device: int
    sim_address: int
    devq: int
    sim: str
    periph_flags: Tuple[str, ...]
    device_frozen: int
    sim_frozen: int
    active: int
    waiting: int
    ccbs: Tuple[Ccb, ...]
    #: flags of the cam_ed: by what the device's queue is to be released (CAM_DEV_REL_*)
    device_flags: Tuple[str, ...]
    #: the softc of the cam_sim: the controller's driver's own struct
    sim_softc: int
    #: openings of the device that are free, and CCBs of it given to anybody
    openings: int
    allocated: Optional[int]
    #: True where pending_ccbs told which CCBs the SIM has
    listed: bool

    @property
    def frozen(self) -> bool:
        return bool(self.device_frozen or self.sim_frozen)

    @property
    def recovering(self) -> bool:
        """CAM handles an error of this device (cam_periph_error())."""
        return any(flag.startswith("CAM_PERIPH_RECOVERY") for flag in self.periph_flags)


class Unreadable(NamedTuple):
    """A CAM disk of which CAM's own structs cannot be read."""

    why: str


@cached(MEMORY)
def cam_of(kernel: Kernel, disk: Disk) -> Union[CamDevice, Unreadable, None]:
    """CAM's side of a disk: None for one that is not CAM's, Unreadable where it cannot be told."""
    driver = _STRATEGIES.get(disk.strategy)
    if driver is None:
        return None
    try:
        return _read(kernel, disk, driver)
    except (MemoryFault, LayoutError) as error:
        return Unreadable(str(error))


def _read(kernel: Kernel, disk: Disk, driver: str) -> Union[CamDevice, Unreadable]:
    periph = kernel.view("cam_periph", disk.drv1)
    name = f"{kernel.name_at('a CAM periph', periph.periph_name)}{periph.unit_number}"
    if name != disk.name or disk.driver != driver:
        return Unreadable(f"d_drv1 {disk.drv1:#x} is no periph of {disk.name}")
    path = kernel.view("cam_path", periph.path)
    device = kernel.view("cam_ed", path.device)
    sim = kernel.view("cam_sim", kernel.view("cam_eb", path.bus).sim)
    devq = kernel.view("cam_devq", sim.devq)
    ccbs = {ccb.address: ccb for ccb in _waiting(kernel, device)}
    waiting = len(ccbs)
    listed = driver == "da"
    if listed:
        softc = kernel.view("da_softc", periph.softc)
        for ccb in _linked(kernel, softc.at("pending_ccbs"), "periph_links", ""):
            ccbs.setdefault(ccb.address, ccb)
    return CamDevice(
        disk.name,
        periph.address,
        device.address,
        sim.address,
        devq.address,
        f"{kernel.name_at('a CAM SIM', sim.sim_name)}{sim.unit_number}",
        tuple(kernel.layouts.flags("cam_periph_flags", periph.flags)),
        # 7.x and 8.x count at the device, 9.0-CURRENT for each run level.
        _total(device.get("qfrozen_cnt", device["ccbq.queue.qfrozen_cnt"])),
        _total(devq["send_queue.qfrozen_cnt"]),
        device["ccbq.dev_active"],
        waiting,
        tuple(ccbs.values()),
        tuple(kernel.layouts.flags("cam_ed_flags", device.flags)),
        sim.softc,
        device.get("ccbq.dev_openings", device.get("ccbq.devq_openings", 0)),
        device.get("ccbq.allocated"),
        listed,
    )


def _total(count: Union[int, Tuple[int, ...]]) -> int:
    return count if isinstance(count, int) else sum(count)


def _waiting(kernel: Kernel, device: View) -> Iterator[Ccb]:
    """The CCBs in a device's queue: a heap that begins at index 1, and what it had no room for."""
    entries, array = device["ccbq.queue.entries"], device["ccbq.queue.queue_array"]
    if not 0 <= entries <= _MAX_CCBS:
        raise LayoutError(f"cam_ed {device.address:#x}: {entries} entries in its queue")
    for index in range(1, entries + 1):
        yield _ccb(kernel, kernel.pointer(array + index * kernel.pointer_size), HELD)
    if device.has("ccbq.queue_extra_head"):
        yield from _linked(kernel, device.at("ccbq.queue_extra_head"), "xpt_links", HELD)


def _linked(kernel: Kernel, head: int, link: str, place: str) -> Iterator[Ccb]:
    """The CCBs on a list, proven by their back pointers.

    A camq_entry is a union of every kind of list entry: the next, then (of LIST and TAILQ) the
    place of the pointer to this one.
    """
    offset = kernel.layouts.offsetof("ccb_hdr", link)
    came_from, address = head, kernel.pointer(head)
    for _ in range(_MAX_CCBS):
        if not address:
            return
        back = kernel.pointer(address + offset + kernel.pointer_size)
        if back != came_from:
            raise LayoutError(f"{link} of ccb {address:#x} points back to {back:#x}")
        yield _ccb(kernel, address, place)
        came_from = address + offset
        address = kernel.pointer(came_from)
    raise LayoutError(f"more than {_MAX_CCBS} CCBs on the list at {head:#x}")


def _ccb(kernel: Kernel, address: int, place: str) -> Ccb:
    header = kernel.view("ccb_hdr", address)
    # ppriv_ptr1 is the second of two words.
    bio = kernel.pointer(header.at("periph_priv") + kernel.pointer_size)
    place = place or _place(kernel, header)
    return Ccb(address, bio, header.status, header.timeout, place)


def _place(kernel: Kernel, header: View) -> str:
    if header.status & _CAM_SIM_QUEUED:
        return AT_SIM
    return DONE if header.get("pinfo.index") == _CAM_DONEQ_INDEX else ELSEWHERE


def device_of_ccb(kernel: Kernel, address: int) -> int:
    """The struct cam_ed * that a union ccb * is for."""
    header = kernel.view("ccb_hdr", address)
    device: int = kernel.view("cam_path", header.path).device
    return device


def ccb_of(kernel: Kernel, bio: Bio) -> Optional[Ccb]:
    """The CCB of a clone that a CAM disk's driver has; None for any other bio, or unknown."""
    disk = next((d for d in disks(kernel).values() if d.address == bio.disk), None)
    return ccbs_by_bio(kernel, disk).get(bio.address) if bio.disk and disk else None


@cached(MEMORY)
def ccbs_by_bio(kernel: Kernel, disk: Disk) -> Dict[int, Ccb]:
    """The CCBs of a disk by the bio each is for; {} where CAM's structs cannot be read."""
    device = cam_of(kernel, disk)
    if not isinstance(device, CamDevice):
        return {}
    return {ccb.bio: ccb for ccb in device.ccbs if ccb.bio}


class Periph(NamedTuple):
    """A struct cam_periph *: "da0", "sa0", "pass3", and the device and controller below it."""

    address: int
    name: str
    softc: int
    device: int
    sim: str
    sim_address: int
    flags: Tuple[str, ...]


@cached(MEMORY)
def periphs(kernel: Kernel) -> Dict[int, Periph]:
    """Every cam_periph of the machine by its address: xsoftc's busses, targets, devices.

    {} where there is no CAM.  What cannot be read is a finding, the rest is kept.
    """
    found: Dict[int, Periph] = {}
    symbol = kernel.symbol("xsoftc")
    if symbol is None or "xpt_softc" not in kernel.layouts:
        return found
    head = symbol.address + kernel.layouts.offsetof("xpt_softc", "xpt_busses")
    for bus, _ in tailq_foreach(kernel, head, "cam_eb", "links", what="xpt_busses", bound=_MAX):
        targets = bus + kernel.layouts.offsetof("cam_eb", "et_entries")
        for target, _ in tailq_foreach(kernel, targets, "cam_et", "links", bound=_MAX):
            devices = target + kernel.layouts.offsetof("cam_et", "ed_entries")
            for device, _ in tailq_foreach(kernel, devices, "cam_ed", "links", bound=_MAX):
                _of_device(kernel, bus, device, found)
    return found


def _of_device(kernel: Kernel, bus: int, device: int, found: Dict[int, Periph]) -> None:
    head = device + kernel.layouts.offsetof("cam_ed", "periphs")
    for address, _ in slist_foreach(kernel, head, "cam_periph", "periph_links", bound=_MAX):
        try:
            found[address] = periph_at(kernel, address)
        except (MemoryFault, LayoutError) as error:
            kernel.warnings.add("cam_periph", address, str(error))


def periph_at(kernel: Kernel, address: int) -> Periph:
    """The struct cam_periph * at ``address``; raises where its path cannot be read."""
    view = kernel.view("cam_periph", address)
    path = kernel.view("cam_path", view.path)
    sim = kernel.view("cam_sim", kernel.view("cam_eb", path.bus).sim)
    return Periph(
        address,
        f"{kernel.name_at('a CAM periph', view.periph_name)}{view.unit_number}",
        view.softc,
        path.device,
        f"{kernel.name_at('a CAM SIM', sim.sim_name)}{sim.unit_number}",
        sim.address,
        tuple(kernel.layouts.flags("cam_periph_flags", view.flags)),
    )


class Awaited(NamedTuple):
    """A union ccb * that a thread waits for: for which periph (0 for none), and how it stands.

    ``timeout`` in milliseconds, 0 for none; ``retries`` left.
    """

    address: int
    periph: int
    device: int
    function: str
    place: str
    done: bool
    timeout: int
    retries: int


def awaited(kernel: Kernel, address: int) -> Awaited:
    """The union ccb * at ``address``; raises MemoryFault or LayoutError where there is none."""
    header = kernel.view("ccb_hdr", address)
    path = kernel.view("cam_path", header.path)
    place = _place(kernel, header)
    if place == ELSEWHERE and header["pinfo.index"] >= 0:
        place = HELD
    return Awaited(
        address,
        path.periph,
        path.device,
        kernel.layouts.enum("ccb_func_code", header.func_code),
        place,
        # CAM_STATUS_MASK, CAM_REQ_INPROG; CAM_UNQUEUED_INDEX
        bool(header.status & 0x3F) and header["pinfo.index"] == -1,
        header.timeout,
        header.retry_count,
    )


def counts(kernel: Kernel, device: int) -> Tuple[int, int, int]:
    """Of a struct cam_ed *: commands with the SIM, CCBs in its queue, how often it is frozen."""
    view = kernel.view("cam_ed", device)
    return (
        view["ccbq.dev_active"],
        view["ccbq.queue.entries"],
        _total(view.get("qfrozen_cnt", view["ccbq.queue.qfrozen_cnt"])),
    )
