"""CAM below a disk: its periph, device and controller, and a CCB for every bio it has been given.

Mirrors sys/cam (cam_xpt.c, cam_queue.h, cam_periph.h, scsi/scsi_da.c), 9.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from tests.forge.builder import Obj
from tests.forge.geom import Bio, Disk
from tests.forge.machine import Machine

CAM_SIM_QUEUED = 0x200


class CamDisk:
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
        m = self.machine = machine
        self.devq = m.new("cam_devq")
        self.sim = m.new("cam_sim", devq=self.devq, sim_name=m.string(sim), unit_number=unit)
        self.device = m.new("cam_ed")
        bus = m.new("cam_eb", sim=self.sim)
        self.path = path = m.new("cam_path", bus=bus, device=self.device)
        if softc is not None:
            self.sim["softc"] = softc
        self.softc = m.new(f"{periph}_softc")
        number = disk.obj["d_unit"]
        self.periph = m.new(
            "cam_periph",
            periph_name=m.string(periph),
            unit_number=number,
            path=path,
            softc=self.softc,
        )
        disk.obj["d_drv1"] = self.periph
        self.pending: List[Obj] = []
        #: the CCBs by the address of the bio that each is for
        self.of_bio: Dict[int, Obj] = {}
        self.waiting: List[Obj] = []
        self.array = m.take(64 * m.pointer_size, "kmem", 16)
        m.at_the_end(self._finish)

    def _ccb(self, bio: Bio, status: int = 0) -> Obj:
        m = self.machine
        made = m.new("ccb_hdr", func_code=0x901, timeout=60000, status=status)
        made["path"] = self.path
        m.write_pointer(made.at("periph_priv") + m.pointer_size, bio.obj)
        self.pending.append(made)
        self.of_bio[bio.obj.address] = made
        return made

    def given(self, *bios: Bio) -> CamDisk:
        """xpt_run_devq(): the SIM has them."""
        for bio in bios:
            self._ccb(bio, status=CAM_SIM_QUEUED)
            self.device["ccbq.dev_active"] = self.device["ccbq.dev_active"] + 1
        return self

    def held(self, *bios: Bio) -> CamDisk:
        """In the device's queue: xpt_run_devq() has not come to them."""
        self.waiting += [self._ccb(bio) for bio in bios]
        return self

    def dump_write(self) -> CamDisk:
        """dadump(): a CCB on its stack that is on no list of da's, counted as every other."""
        self.device["ccbq.dev_active"] = self.device["ccbq.dev_active"] + 1
        return self

    def freeze_device(self, number: int = 1) -> CamDisk:
        self.device["ccbq.queue.qfrozen_cnt"] = number
        return self
        return self

    def freeze_sim(self, number: int = 1) -> CamDisk:
        self.devq["send_queue.qfrozen_cnt"] = number
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
