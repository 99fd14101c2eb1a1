"""What CAM does with a disk's requests: at the device, held back, in recovery, overdue.

All of it rests on kernel/cam.py; where CAM's structs cannot be read every answer says so.
"""

from __future__ import annotations

from typing import Optional

from plugin.kernel.cam import AT_SIM, HELD, CamDevice, Unreadable, cam_of, ccbs_by_bio
from plugin.kernel.disk import Disk
from plugin.session import Kernel
from plugin.words import count


def frozen(device: CamDevice) -> str:
    """ "the device queue is frozen, count 1", "" where nothing is.

    The SIM's count is 1 for the moment that xpt_run_devq() runs, too.
    """
    words = [
        f"the {what} is frozen, count {number}"
        for what, number in (
            ("device queue", device.device_frozen),
            (f"queue of {device.sim}", device.sim_frozen),
        )
        if number
    ]
    return " and ".join(words)


def held_back(kernel: Kernel, disk: Disk, bio: int) -> Optional[str]:
    """Why the SIM has not been given the CCB of a bio; None for one that it has, or unknown."""
    device, ccb = cam_of(kernel, disk), ccbs_by_bio(kernel, disk).get(bio)
    if not isinstance(device, CamDevice) or ccb is None or ccb.place != HELD:
        return None
    why = frozen(device) or f"in the device queue, not given to {device.sim}"
    return f"held back by CAM: {why}"


def stopped(kernel: Kernel, disk: Disk) -> str:
    """ "held back by CAM: the device queue is frozen, count 1"; "" for a disk that is not."""
    device = cam_of(kernel, disk)
    if not isinstance(device, CamDevice) or not device.frozen:
        return ""
    return f"held back by CAM: {frozen(device)}"


def unknown(kernel: Kernel, disk: Disk) -> str:
    """Why it cannot be told whether CAM holds requests of this disk back; "" where it can."""
    device = cam_of(kernel, disk)
    return f"what CAM holds back is unknown: {device.why}" if isinstance(device, Unreadable) else ""


def unmatched(kernel: Kernel, disk: Disk, bio: int) -> bool:
    """True where da's own list of commands has none for this bio."""
    device = cam_of(kernel, disk)
    return isinstance(device, CamDevice) and device.listed and bio not in ccbs_by_bio(kernel, disk)


def sentence(kernel: Kernel, disk: Disk) -> Optional[str]:
    """ "At da0: 11 CCBs in vtscsi0, none frozen."; None for a disk that is not CAM's."""
    device = cam_of(kernel, disk)
    if device is None:
        return None
    if isinstance(device, Unreadable):
        return f"What CAM has of {disk.name} is unknown: {device.why}."
    own = [ccb for ccb in device.ccbs if ccb.place == AT_SIM]
    number = len(own) if device.listed else device.active
    text = f"At {device.name}: {count(number, 'CCB')} in {device.sim}"
    if device.waiting:
        text += f", {device.waiting} held back in the device queue"
    text += f"; {frozen(device)}." if device.frozen else ", none frozen."
    between = len(device.ccbs) - len(own) - device.waiting
    if between:
        text += f" {count(between, 'CCB')} more with CAM itself: neither queued nor given out."
    if device.frozen and not device.active:
        text += f" {device.sim} has nothing: nobody has released the queue."
    if device.recovering:
        flags = " ".join(f for f in device.periph_flags if "RECOVERY" in f)
        text += f" CAM is recovering from an error ({flags})."
    if device.listed and device.active > number:
        more = device.active - number
        text += (
            f" {count(more, 'command')} more there that da has not asked for: "
            "the dump's own write, or CAM's own commands."
        )
    return text
