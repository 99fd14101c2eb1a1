"""GEOM classes that keep requests: a geom with the softc of its class, its queues and threads.

Mirrors sys/geom/{eli,mirror,raid3,raid,journal,gate,vinum} and sys/dev/md, 7.0 to 15.x.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from tests.forge.builder import Obj
from tests.forge.geom import Bio, Provider
from tests.forge.machine import Machine
from tests.forge.procs import Thread

#: class: its softc, the member that leads back to the geom, its one worker's struct proc *
_SOFTCS = {
    "ELI": ("g_eli_softc", "sc_geom", ""),
    "MIRROR": ("g_mirror_softc", "sc_geom", "sc_worker"),
    "RAID3": ("g_raid3_softc", "sc_geom", "sc_worker"),
    "RAID": ("g_raid_softc", "sc_geom", "sc_worker"),
    "JOURNAL": ("g_journal_softc", "sc_geom", "sc_worker"),
    "GATE": ("g_gate_softc", "", ""),
    "VINUM": ("gv_softc", "", "worker"),
    "MD": ("md_s", "gp", "procp"),
}


class ClassGeom:
    """A geom of a class, on the providers ``below``, with a provider ``name`` of its own."""

    def __init__(self, machine: Machine, g_class: str, name: str, *below: Provider) -> None:
        m = self.machine = machine
        self.struct, back, self.worker_member = _SOFTCS[g_class]
        self.geom = m.geom.geom(g_class, name)
        self.consumers = [m.geom.attach(self.geom, each).open() for each in below]
        self.provider = m.geom.new_provider(self.geom, name, 1 << 30, 512)
        self.softc = m.new(self.struct)
        if back:
            self.softc.probe(**{back: self.geom})
        self.geom.obj["softc"] = self.softc
        self.workers: List[Obj] = []
        self.queued: Dict[int, List[Bio]] = {}
        m.at_the_end(self._finish)

    def worker(self, name: str, *calls: str, active: bool = True) -> Thread:
        """The class's own kernel thread."""
        m = self.machine
        thread = m.procs.kthread(name, calls=calls)
        if self.worker_member:
            self.softc[self.worker_member] = thread.process
        else:
            made = m.new("g_eli_worker", w_softc=self.softc, w_proc=thread.process)
            made.probe(w_active=int(active))
            self.workers.append(made)
        return thread

    def keeps(self, member: str, *bios: Bio, softc: Optional[Obj] = None) -> ClassGeom:
        """Put bios on the queue ``member`` of its softc (or of ``softc``)."""
        of = softc or self.softc
        path = f"{member}.queue"
        head = of.at(path if self.machine.has(of.struct, path) else member)
        self.queued.setdefault(head, []).extend(bios)
        return self

    def synchronizes(self, disk: int, done: float, inflight: int = 1) -> Obj:
        """g_mirror: its disk of that index is being synchronized, that part of it is done."""
        m = self.machine
        made = m.new(
            "g_mirror_disk",
            d_consumer=self.consumers[disk],
            d_softc=self.softc,
            d_state=m.constant("G_MIRROR_DISK_STATE_SYNCHRONIZING", 4),
        )
        self.softc["sc_mediasize"] = 1 << 30
        made["d_sync.ds_offset_done"] = int((1 << 30) * done)
        made.probe(**{"d_sync.ds_inflight": inflight})
        m.list(self.softc.at("sc_disks"), "d_next", [made])
        return made

    def _finish(self) -> None:
        m = self.machine
        kind = "bio_queue"
        for head, bios in self.queued.items():
            m.tailq(head, kind, [bio.obj for bio in bios])
        if self.workers:
            m.list(self.softc.at("sc_workers"), "w_next", self.workers)


def set_flags(softc: Obj, member: str, m: Machine, *names: str) -> None:
    """Set flags of the class by the names of their macros."""
    value: Any = softc[member]
    for name in names:
        value |= m.constant(name)
    softc[member] = value
