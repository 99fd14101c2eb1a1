"""CAM below a disk or a tape: its periph, device and controller, and a CCB for each command.

Mirrors sys/cam (cam_xpt.c, cam_queue.h, cam_periph.h, scsi/scsi_da.c), 9.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from tests.forge.builder import Obj
from tests.forge.geom import Bio, Disk
from tests.forge.machine import Machine

CAM_DEV_QFRZN, CAM_SIM_QUEUED = 0x40, 0x200
XPT_SCSI_IO = 0x901
#: cam_pinfo.index: in no queue, with the SIM, in the done queue
UNQUEUED, ACTIVE, DONEQ = -1, -2, -3


class CamPeriph:
    """A periph ("sa", 0) with its device, alone on the bus of a controller of its own.

    All of them hang on xsoftc, as xpt_busses has them.
    """

    def __init__(
        self,
        machine: Machine,
        name: str,
        number: int = 0,
        sim: str = "vtscsi",
        unit: int = 0,
        softc: Optional[Obj] = None,
    ) -> None:
        m = self.machine = machine
        self.devq = m.new("cam_devq")
        self.sim = m.new("cam_sim", devq=self.devq, sim_name=m.string(sim), unit_number=unit)
        if softc is not None:
            self.sim["softc"] = softc
        self.device = m.new("cam_ed")
        self.target = m.new("cam_et")
        self.bus = m.new("cam_eb", sim=self.sim)
        self.path = m.new("cam_path", bus=self.bus, device=self.device)
        struct = f"{name}_softc"
        self.softc = m.new(struct if struct in m.layouts else "da_softc")
        self.periph = m.new(
            "cam_periph",
            periph_name=m.string(name),
            unit_number=number,
            path=self.path,
            softc=self.softc,
        )
        self.path["periph"] = self.periph
        self.pending: List[Obj] = []
        self.waiting: List[Obj] = []
        #: the CCBs by the address of the bio that each is for
        self.of_bio: Dict[int, Obj] = {}
        self.array = m.take(64 * m.pointer_size, "kmem", 16)
        self._hang_on()
        m.at_the_end(self._finish)

    def _hang_on(self) -> None:
        m = self.machine
        xsoftc = m.lookup("xsoftc")
        busses: List[Obj] = m.__dict__.setdefault("cam_busses", [])
        if xsoftc is None:
            made = m.symbol("xsoftc", "xpt_softc", static=True)
            m.at_the_end(lambda: m.tailq(made.at("xpt_busses"), "links", busses))
        busses.append(self.bus)

    def ccb(self, status: int = 0, index: int = UNQUEUED) -> Obj:
        """A CCB of this device: cam_periph_getccb(), xpt_action()."""
        made = self.machine.new(
            "ccb_hdr", func_code=XPT_SCSI_IO, timeout=60000, status=status, path=self.path
        )
        made["pinfo.index"] = index
        return made

    def sent(self) -> Obj:
        """A CCB without a bio that the SIM has: cam_periph_runccb()."""
        self.device["ccbq.dev_active"] = self.device["ccbq.dev_active"] + 1
        return self.ccb(CAM_SIM_QUEUED, ACTIVE)

    def _ccb(self, bio: Bio, status: int = 0, index: int = UNQUEUED) -> Obj:
        m = self.machine
        made = self.ccb(status, index)
        m.write_pointer(made.at("periph_priv") + m.pointer_size, bio.obj)
        self.pending.append(made)
        self.of_bio[bio.obj.address] = made
        return made

    def freeze_device(self, number: int = 1) -> CamPeriph:
        """xpt_freeze_devq(): 7.x and 8.x count at the device, 9.x for each run level."""
        self.device["ccbq.queue.qfrozen_cnt"] = number
        return self

    def _finish(self) -> None:
        m = self.machine
        if self.softc.has("pending_ccbs"):
            m.list(self.softc.at("pending_ccbs"), "periph_links", self.pending)
        # The heap begins at index 1 of the array (cam_queue.c).
        for index, ccb in enumerate(self.waiting, 1):
            m.write_pointer(self.array + index * m.pointer_size, ccb)
        self.device["ccbq.queue.queue_array"] = self.array
        self.device["ccbq.queue.entries"] = len(self.waiting)
        m.slist(self.device.at("periphs"), "periph_links", [self.periph])
        m.tailq(self.target.at("ed_entries"), "links", [self.device])
        m.tailq(self.bus.at("et_entries"), "links", [self.target])


class CamDisk(CamPeriph):
    """A disk of the controller ``sim``; its softc is no longer d_drv1, the periph is.

    ``periph``: "da", which keeps its commands on a list, or "ada", "nda", which count them.
    """

    def __init__(
        self,
        machine: Machine,
        disk: Disk,
        sim: str = "vtscsi",
        unit: int = 0,
        *,
        periph: str = "da",
        softc: Optional[Obj] = None,
    ) -> None:
        super().__init__(machine, periph, disk.obj["d_unit"], sim, unit, softc)
        disk.obj["d_drv1"] = self.periph

    def given(self, *bios: Bio) -> CamDisk:
        """xpt_run_devq(): the SIM has them."""
        for bio in bios:
            self._ccb(bio, CAM_SIM_QUEUED, ACTIVE)
            self.device["ccbq.dev_active"] = self.device["ccbq.dev_active"] + 1
        return self

    def held(self, *bios: Bio) -> CamDisk:
        """In the device's queue: xpt_run_devq() has not come to them."""
        self.waiting += [self._ccb(bio, index=1) for bio in bios]
        return self

    def done(self, *bios: Bio) -> CamDisk:
        """xpt_done(): the SIM is through with them, xpt_done_process() has not come to them."""
        for bio in bios:
            self._ccb(bio, status=1, index=DONEQ)
        return self

    def failed(self, bio: Bio) -> CamDisk:
        """Back with an error; the SIM has frozen the device's queue, daerror() is at it."""
        self._ccb(bio, status=4 | CAM_DEV_QFRZN)
        return self

    def dump_write(self) -> CamDisk:
        """dadump(): a CCB on its stack that is on no list of da's, counted as every other."""
        self.device["ccbq.dev_active"] = self.device["ccbq.dev_active"] + 1
        return self

    def freeze_device(self, number: int = 1) -> CamDisk:
        super().freeze_device(number)
        return self

    def freeze_sim(self, number: int = 1) -> CamDisk:
        self.devq["send_queue.qfrozen_cnt"] = number
        return self
