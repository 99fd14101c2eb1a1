"""Which command of which controller a request is: at the hardware, kept back, timed out, reset.

Each driver's own memory is read by a module in kernel/; which one reads what stands in a table
here.  A driver that is in no table is said to be unknown, and nothing is guessed of it.
"""

from __future__ import annotations

from collections import Counter
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge import cam
from plugin.kernel import ahci, mps, nvme, umass, virtio
from plugin.kernel.cam import CamDevice, Unreadable, cam_of, device_of_ccb
from plugin.kernel.controller import GIVEN, KEPT, Command, Controller
from plugin.kernel.disk import Disk
from plugin.session import Kernel
from plugin.words import count, seconds

Reader = Callable[[Kernel, int], Controller]

#: by sim_name of a cam_sim: who reads its softc
_OF_SIM: Dict[str, Reader] = {
    "nvme": nvme.of_sim,
    "vtscsi": virtio.scsi,
    "ahcich": ahci.channel,
    "mps": mps.mps,
    "mpr": mps.mpr,
    "umass-sim": umass.controller,
}
#: by the name of a disk's driver: who reads its d_drv1; (driver, d_strategy)
_OF_DISK: Dict[Tuple[str, str], Reader] = {
    ("vtbd", "vtblk_strategy"): virtio.block,
    ("nvd", "nvd_strategy"): nvme.of_nvd,
}

#: what a driver's own queue is called, before the controller's name
DRIVER_QUEUE = "the queue of driver"


class OfDisk(NamedTuple):
    """A disk's controller and those of its commands that are this disk's, by bio and in all."""

    controller: Controller
    commands: Tuple[Command, ...]
    by_bio: Mapping[int, Command]


@cached(MEMORY)
def of_disk(kernel: Kernel, disk: Disk) -> Union[OfDisk, Unreadable, None]:
    """The controller behind a disk; None for a driver that no table knows.

    Unreadable where its memory is not what it should be.
    """
    device = cam_of(kernel, disk)
    if isinstance(device, Unreadable):
        return device
    reader = (
        _OF_SIM.get(device.sim.rstrip("0123456789"))
        if device is not None
        else _OF_DISK.get((disk.driver, disk.strategy))
    )
    if reader is None:
        return None
    try:
        if device is None:
            controller = reader(kernel, disk.drv1)
            own = tuple(command for command in controller.commands if _is_of(kernel, command, disk))
        else:
            controller = reader(kernel, device.sim_softc)
            own = tuple(
                command
                for command in controller.commands
                if command.ccb and device_of_ccb(kernel, command.ccb) == device.device
            )
    except (MemoryFault, LayoutError) as error:
        return Unreadable(str(error))
    return OfDisk(controller, own, {command.bio: command for command in own if command.bio})


def _is_of(kernel: Kernel, command: Command, disk: Disk) -> bool:
    """A command is a disk's if its bio is: a controller may have several namespaces."""
    at = kernel.layouts.offsetof("bio", "bio_disk")
    return bool(command.bio) and kernel.pointer(command.bio + at) == disk.address


def lacks(kernel: Kernel, disk: Disk, bio: int) -> bool:
    """True where the controller's commands were all read, and none is for this bio."""
    found = of_disk(kernel, disk)
    return isinstance(found, OfDisk) and found.controller.whole and bio not in found.by_bio


def dump_queue(kernel: Kernel, disk: Disk) -> int:
    """Address of the queue of what a disk returned while a dump to it was begun, 0 for none."""
    if _OF_DISK.get((disk.driver, disk.strategy)) is not virtio.block:
        return 0
    return virtio.dump_queue(kernel, disk.drv1)


def place(controller: Controller, command: Command) -> str:
    """ "at nvme0 qpair 3, cid 7 for 1 m 10 s, past its deadline; nvme0 is resetting"."""
    text = f"at {controller.name} {command.where}"
    if command.where.startswith("in "):
        text = f"at {controller.name}, {command.where}"
    if command.place == KEPT:
        text = f"kept back by the driver of {controller.name} ({command.where})"
    if command.seconds is not None:
        text += f" for {seconds(command.seconds)}"
    if command.trouble:
        text += f", {command.trouble}"
    if command.retries:
        text += f", retried {count(command.retries, 'time')}"
    trouble = states(controller)
    return f"{text}; {trouble}" if trouble else text


def states(controller: Controller) -> str:
    """ "nvme0 is resetting", "" for a controller that nothing is wrong with."""
    if not controller.trouble:
        return ""
    return f"{controller.name}: {', '.join(controller.trouble)}"


def trouble(kernel: Kernel, disk: Disk) -> str:
    """What is wrong with a disk's controller or its commands, "" for nothing or unknown."""
    found = of_disk(kernel, disk)
    if not isinstance(found, OfDisk):
        return ""
    words: List[str] = []
    state = states(found.controller)
    if state:
        words.append(state)
    late = Counter(command.trouble for command in found.commands if command.trouble)
    words += [f"{count(number, 'command')} {what}" for what, number in late.items()]
    return ", ".join(words)


def sentences(kernel: Kernel, disk: Disk) -> List[str]:
    """What CAM and the controller's driver have of a disk, in a sentence each; [] for neither."""
    found = of_disk(kernel, disk)
    given = None
    if isinstance(found, OfDisk) and found.controller.whole:
        given = sum(command.place == GIVEN for command in found.commands)
    said = (cam.sentence(kernel, disk, given), _sentence(kernel, disk))
    return [each for each in said if each is not None]


def _sentence(kernel: Kernel, disk: Disk) -> Optional[str]:
    """ "nvme0 has 4 commands of nda0 (qpair 1: 3, qpair 2: 1) and keeps 2 back; resetting.".

    None for a disk without a controller that wchan knows and CAM has nothing to say of.
    """
    found = of_disk(kernel, disk)
    if found is None:
        return _no_reader(kernel, disk)
    if isinstance(found, Unreadable):
        if cam_of(kernel, disk) is found:
            return None
        return f"What the driver of {disk.name} has is unknown: {found.why}."
    controller = found.controller
    given = [command for command in found.commands if command.place == GIVEN]
    kept = len(found.commands) - len(given)
    text = f"{controller.name} has {count(len(given), 'command')} of {disk.name}"
    places = Counter(command.where.partition(",")[0] for command in given)
    if len(places) > 1 and len(places) < len(given):
        text += f" ({', '.join(f'{name}: {number}' for name, number in sorted(places.items()))})"
    if kept:
        text += f", its driver keeps {kept} back"
    ages = [command.seconds for command in given if command.seconds is not None]
    if ages:
        text += f", the oldest for {seconds(max(ages))}"
    wrong = trouble(kernel, disk)
    if wrong:
        text += f"; {wrong}"
    if not controller.whole:
        text += "; not all of it could be read"
    if text.count(" ") == 5 and cam_of(kernel, disk) is not None:
        # CAM's own sentence has said as much.
        return None
    return f"{text}."


def _no_reader(kernel: Kernel, disk: Disk) -> Optional[str]:
    device = cam_of(kernel, disk)
    if not isinstance(device, CamDevice) or device.listed:
        return None
    return f"Which commands {device.sim} has is not known: its driver's structs are in no layout."
