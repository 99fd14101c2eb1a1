"""Storage controllers as their drivers leave them in memory: NVMe, virtio, AHCI, mps, mpr, umass.

Mirrors sys/dev/nvme, dev/nvd, dev/virtio, dev/ahci, dev/mps, dev/mpr and dev/usb/storage, 9.3 to
15.x.  Each is made of its driver's own structs and given CCBs (``CamDisk.of_bio``) or bios.
"""

from __future__ import annotations

from typing import List, Optional

from tests.forge.builder import Obj
from tests.forge.geom import Bio, Disk
from tests.forge.machine import Machine

SBT_MAX = (1 << 63) - 1
#: MD and AHCI keep states in enums: enum ahci_slot_states
AHCI_SLOT_LOADING, AHCI_SLOT_RUNNING = 1, 2


def device(m: Machine, name: str) -> Obj:
    """A device_t that has that nameunit."""
    struct = "_device" if "_device" in m.layouts else "device"
    return m.new(struct, nameunit=m.string(name))


class Nvme:
    """An NVMe controller with two I/O queue pairs; nda's sim softc, or nvd's disk, leads to it."""

    def __init__(self, machine: Machine, name: str = "nvme0", qpairs: int = 2) -> None:
        m = self.machine = machine
        self.controller = m.new("nvme_controller", dev=device(m, name))
        self.pairs = m.array("nvme_qpair", qpairs)
        self.controller.set(
            num_io_queues=qpairs, ioq=self.pairs[0], is_initialized=1, timeout_period=30
        )
        self.outstanding: List[List[Obj]] = [[] for _ in self.pairs]
        self.waiting: List[List[Obj]] = [[] for _ in self.pairs]
        for index, pair in enumerate(self.pairs):
            pair.set(ctrlr=self.controller, id=index + 1, num_entries=64, num_trackers=64)
            pair["act_tr"] = m.take(64 * m.pointer_size, "kmem", 16)
            pair.probe(is_enabled=1)
        m.at_the_end(self._finish)

    def sim_softc(self) -> Obj:
        return self.machine.new("nvme_sim_softc", s_ctrlr=self.controller)

    def nvd(self, disk: Disk) -> Nvme:
        """``disk`` is an nvd disk of this controller."""
        m = self.machine
        namespace = m.new("nvme_namespace", ctrlr=self.controller)
        disk.obj["d_drv1"] = m.new("nvd_disk", ns=namespace, disk=disk)
        return self

    def _request(self, ccb: Optional[Obj], bio: Optional[Bio], retries: int) -> Obj:
        request = self.machine.new("nvme_request", retries=retries)
        if ccb is not None:
            request.set(cb_fn="nvme_sim_nvmeio_done", cb_arg=ccb)
        elif bio is not None:
            request.set(cb_fn="nvme_ns_bio_done", cb_arg=bio)
        return request

    def given(
        self,
        ccb: Optional[Obj] = None,
        bio: Optional[Bio] = None,
        *,
        pair: int = 0,
        seconds: Optional[float] = None,
        retries: int = 0,
        submitted: bool = True,
    ) -> Nvme:
        """A tracker carries it; ``submitted``: nvme_qpair_submit_tracker() has been called."""
        m, on = self.machine, self.pairs[pair]
        cid = len(self.outstanding[pair])
        tracker = m.new("nvme_tracker", req=self._request(ccb, bio, retries), qpair=on, cid=cid)
        if tracker.has("deadline"):
            left = SBT_MAX
            if seconds is not None:
                left = int((m.uptime - seconds + 30) * (1 << 32))
            tracker["deadline"] = left
        if submitted:
            m.write_pointer(on["act_tr"] + cid * m.pointer_size, tracker)
        self.outstanding[pair].append(tracker)
        return self

    def queued(self, ccb: Optional[Obj] = None, bio: Optional[Bio] = None, pair: int = 0) -> Nvme:
        """On queued_req: no tracker is free, or the controller is being reset."""
        self.waiting[pair].append(self._request(ccb, bio, 0))
        return self

    def resetting(self) -> Nvme:
        self.controller["is_resetting"] = 1
        for pair in self.pairs:
            pair.probe(recovery_state=self.machine.constant("RECOVERY_WAITING", 1), is_enabled=0)
        return self

    def failed(self) -> Nvme:
        self.controller["is_failed"] = 1
        return self

    def _finish(self) -> None:
        m = self.machine
        for pair, trackers, requests in zip(self.pairs, self.outstanding, self.waiting):
            m.tailq(pair.at("outstanding_tr"), "tailq", trackers)
            m.stailq(pair.at("queued_req"), "stailq", requests)


class Virtqueue:
    """A struct virtqueue with the array of its cookies behind it."""

    def __init__(self, machine: Machine, entries: int = 64) -> None:
        m = self.machine = machine
        size = m.sizeof("vq_desc_extra")
        at = m.take(m.sizeof("virtqueue") + entries * size, "kmem", 64)
        self.obj = m.view("virtqueue", at)
        self.obj.set(vq_nentries=entries, vq_free_cnt=entries)
        self._next = 0

    def put(self, cookie: Obj, descriptors: int = 3) -> None:
        m = self.machine
        extra = m.view(
            "vq_desc_extra",
            self.obj.address + m.sizeof("virtqueue") + self._next * m.sizeof("vq_desc_extra"),
        )
        extra.set(cookie=cookie, ndescs=descriptors)
        self._next += descriptors
        self.obj["vq_free_cnt"] = self.obj["vq_free_cnt"] - descriptors


class Vtblk:
    """A virtio disk: vtblk0 behind vtbd0."""

    def __init__(self, machine: Machine, disk: Disk, name: str = "vtblk0") -> None:
        m = self.machine = machine
        self.queue = Virtqueue(m)
        self.softc = m.new("vtblk_softc", vtblk_dev=device(m, name), vtblk_vq=self.queue.obj)
        disk.obj["d_drv1"] = self.softc
        self.ready: List[Obj] = []
        self.dumped: List[Bio] = []
        m.at_the_end(self._finish)

    def given(self, *bios: Bio) -> Vtblk:
        for bio in bios:
            self.queue.put(self.machine.new("vtblk_request", vbr_bp=bio))
        return self

    def kept(self, *bios: Bio) -> Vtblk:
        """On vtblk_req_ready: no room in the virtqueue."""
        self.ready += [self.machine.new("vtblk_request", vbr_bp=bio) for bio in bios]
        return self

    def dump_write(self) -> Vtblk:
        """vtblk_dump_write(): its own request, whose bio lies on the stack."""
        self.queue.put(self.softc.sub("vtblk_dump_request"))
        return self

    def returned_at_dump(self, *bios: Bio) -> Vtblk:
        """vtblk_dump_quiesce(): done, to be delivered after the dump."""
        self.dumped += bios
        return self

    def _finish(self) -> None:
        m = self.machine
        m.tailq(self.softc.at("vtblk_req_ready"), "vbr_link", self.ready)
        if self.softc.has("vtblk_dump_queue"):
            head = self.softc.at("vtblk_dump_queue")
            m.tailq(head, "bio_queue", [bio.obj for bio in self.dumped])


class Vtscsi:
    """A virtio SCSI controller."""

    def __init__(self, machine: Machine, name: str = "vtscsi0") -> None:
        m = self.machine = machine
        self.queue = Virtqueue(m)
        self.softc = m.new(
            "vtscsi_softc", vtscsi_dev=device(m, name), vtscsi_request_vq=self.queue.obj
        )

    def given(self, *ccbs: Obj, state: int = 1) -> Vtscsi:
        for ccb in ccbs:
            request = self.machine.new(
                "vtscsi_request", vsr_softc=self.softc, vsr_ccb=ccb, vsr_state=state
            )
            self.queue.put(request)
        return self


class Ahci:
    """One channel of an AHCI controller."""

    def __init__(self, machine: Machine, name: str = "ahcich0") -> None:
        m = self.machine = machine
        self.softc = m.new("ahci_channel", dev=device(m, name), unit=0)
        self._used = 0

    def given(self, *ccbs: Obj, running: bool = True, late: bool = False) -> Ahci:
        for ccb in ccbs:
            index, self._used = self._used, self._used + 1
            slot = self.machine.view(
                "ahci_slot",
                self.softc.at("slot") + index * self.machine.sizeof("ahci_slot"),
            )
            slot["state"] = AHCI_SLOT_RUNNING if running else AHCI_SLOT_LOADING
            slot["ccb"] = ccb
            for member, holds in (("rslots", running), ("toslots", late)):
                if holds:
                    self.softc[member] = self.softc[member] | 1 << index
        return self


class Sas:
    """An mps(4) or mpr(4) controller."""

    def __init__(self, machine: Machine, kind: str = "mps", commands: int = 16) -> None:
        m = self.machine = machine
        self.kind = kind
        self.softc = m.new(f"{kind}sas_softc")
        self.commands = m.array(f"{kind}_command", commands)
        self.controller = m.new(
            f"{kind}_softc", sassc=self.softc, commands=self.commands[0], num_reqs=commands
        )
        self.controller[f"{kind}_dev"] = device(m, f"{kind}0")
        self.softc["sc"] = self.controller
        self._used = 1

    def given(self, *ccbs: Obj, late: bool = False, recovering: bool = False) -> Sas:
        m, upper = self.machine, self.kind.upper()
        for ccb in ccbs:
            command = self.commands[self._used]
            self._used += 1
            state = m.constant(f"{upper}_CM_STATE_INQUEUE", 1)
            flags = 0
            if late:
                state = m.constant(f"{upper}_CM_STATE_TIMEDOUT", state)
                flags |= m.constant(f"{upper}_CM_FLAGS_TIMEDOUT", 0)
            if recovering:
                flags |= m.constant(f"{upper}_CM_FLAGS_ON_RECOVERY", 0)
            command.set(cm_ccb=ccb, cm_state=state, cm_flags=flags)
        return self


class Umass:
    """A USB stick."""

    def __init__(self, machine: Machine) -> None:
        self.softc = machine.new("umass_softc")
        machine.space.write(self.softc.at("sc_name"), b"umass0\0")

    def given(self, ccb: Obj) -> Umass:
        self.softc["sc_transfer.ccb"] = ccb
        return self
