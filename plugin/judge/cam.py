"""What CAM does with a disk's requests: at the device, held back, in recovery, overdue.

All of it rests on kernel/cam.py; where CAM's structs cannot be read every answer says so.
"""

from __future__ import annotations

from typing import Iterator, List, Optional

from plugin.kernel.bio import try_bio_at
from plugin.kernel.cam import AT_SIM, DONE, HELD, CamDevice, Ccb, Unreadable, cam_of, ccbs_by_bio
from plugin.kernel.disk import Disk
from plugin.kernel.tc import uptime
from plugin.session import Kernel
from plugin.words import count, seconds

#: the name of the queues of CCBs that are done, for CAM's threads doneq0, doneq1, ...
DONE_QUEUE = "CAM's done queue"


def is_done(kernel: Kernel, disk: Disk, bio: int) -> bool:
    """True where the SIM has completed the CCB of a bio, and CAM's thread has not come to it."""
    ccb = ccbs_by_bio(kernel, disk).get(bio)
    return ccb is not None and ccb.place == DONE


#: cam_ccb.h: no timeout at all
_CAM_TIME_INFINITY = 0xFFFFFFFF

#: by what a device's frozen queue is to be released (xpt_release_devq() is called for it)
_RELEASED_BY = {
    "CAM_DEV_REL_TIMEOUT_PENDING": "a timeout is to release it",
    "CAM_DEV_REL_ON_COMPLETE": "the next command that ends well is to release it",
    "CAM_DEV_REL_ON_QUEUE_EMPTY": "it is to be released once the device has no command left",
}


def frozen(device: CamDevice) -> str:
    """ "the device queue is frozen, count 1: a timeout is to release it", "" where nothing is.

    The SIM's count is 1 for the moment that xpt_run_devq() runs, too.
    """
    words = []
    if device.device_frozen:
        why = "; ".join(_reasons(device))
        said = f"the device queue is frozen, count {device.device_frozen}"
        words.append(f"{said} ({why})" if why else said)
    if device.sim_frozen:
        words.append(f"the queue of {device.sim} is frozen, count {device.sim_frozen}")
    return " and ".join(words)


def _reasons(device: CamDevice) -> Iterator[str]:
    """Who froze a device's queue and who is to release it, as far as CAM keeps that."""
    by = [ccb for ccb in device.ccbs if ccb.froze_device]
    if by:
        yield f"by {count(len(by), 'CCB')} that came back with an error, ccb {by[0].address:#x}"
    if device.recovering:
        yield "CAM handles an error of it"
    if "CAM_PERIPH_INVALID" in device.periph_flags:
        yield "the periph is invalid: its device has gone"
    for flag in device.device_flags:
        if flag in _RELEASED_BY:
            yield _RELEASED_BY[flag]


def overdue(kernel: Kernel, device: CamDevice) -> List[Ccb]:
    """The CCBs with the SIM whose bio was asked for longer ago than the SIM may take."""
    now = uptime(kernel)
    found = []
    for ccb in device.ccbs if now is not None else ():
        if ccb.place != AT_SIM or not ccb.bio or ccb.timeout in (0, _CAM_TIME_INFINITY):
            continue
        asked = _asked(kernel, ccb.bio)
        if asked is not None and now is not None and now - asked > ccb.timeout / 1000:
            found.append(ccb)
    return found


def _asked(kernel: Kernel, address: int) -> Optional[float]:
    """bio_t0 of a driver's clone, or of the request it is a clone of: not every clone has one."""
    for _ in range(2):
        bio = try_bio_at(kernel, address, "bio of a ccb") if address else None
        if bio is None or bio.t0:
            return bio.t0 if bio is not None else None
        address = bio.parent
    return None


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


def sentence(kernel: Kernel, disk: Disk, given: Optional[int] = None) -> Optional[str]:
    """ "At da0: 11 CCBs in vtscsi0, none frozen."; None for a disk that is not CAM's.

    ``given``: the commands that the controller's own memory has for it, where that was read.
    """
    device = cam_of(kernel, disk)
    if device is None:
        return None
    if isinstance(device, Unreadable):
        return f"What CAM has of {disk.name} is unknown: {device.why}."
    own = [ccb for ccb in device.ccbs if ccb.place == AT_SIM]
    number = len(own) if device.listed else device.active if given is None else given
    text = f"At {device.name}: {count(number, 'CCB')} in {device.sim}"
    if device.waiting:
        text += f", {device.waiting} held back in the device queue"
    text += f"; {frozen(device)}." if device.frozen else ", none frozen."
    late = overdue(kernel, device)
    if late:
        allowed = seconds(max(ccb.timeout for ccb in late) / 1000)
        text += f" {len(late)} of them asked for longer ago than their timeout of {allowed}."
    done = sum(ccb.place == DONE for ccb in device.ccbs)
    if done:
        text += f" {count(done, 'CCB')} done, which CAM's own thread has not come to."
    between = len(device.ccbs) - len(own) - device.waiting - done
    if between:
        text += f" {count(between, 'CCB')} more with CAM itself: neither queued nor given out."
    if device.frozen and not device.active:
        text += f" {device.sim} has nothing: nobody has released the queue."
    if device.recovering:
        flags = " ".join(f for f in device.periph_flags if "RECOVERY" in f)
        text += f" CAM is recovering from an error ({flags})."
    if (device.listed or given is not None) and device.active > number:
        more = device.active - number
        text += (
            f" {count(more, 'command')} more there that {disk.driver} has not asked for: "
            "the dump's own write, or CAM's own commands."
        )
    return text
