"""A vendor's kernel whose drivers' structs are like no other's: its own types tell, CTF or DWARF.

Each struct that a chain to the device leads through has 16 bytes of the vendor's own inside, so
that structs.yaml reads what lies behind them wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import pytest
from test_controllers import machine as with_disk
from test_controllers import on_cam
from test_geom_class import below, reader, stuck_in_crypto
from test_vendor_kernel import _Structs, with_section
from test_waits_bufs import machine as with_mount
from test_waits_bufs import softdeps, write
from test_why_stuck import Answer, thread

import tests.forge.machine
from plugin.opening import open_core
from plugin.structs import Layouts
from plugin.structs.choose import choose_yaml
from plugin.structs.layout import Layout
from plugin.structs.yamlfile import StructsFile
from tests.forge.controllers import Ahci, Nvme, Sas, Umass, Vtblk, Vtscsi
from tests.forge.geomclass import ClassGeom
from tests.forge.machine import Machine
from tests.structs_typegraph import Graph, ctf, dwarf, elf

_MOVED = 16


def moved(old: Layout, before: str) -> Layout:
    """A struct with the vendor's own members before that one; what lies behind has moved."""
    at = old.members[before].offset
    members = {
        name: member._replace(offset=member.offset + _MOVED) if member.offset >= at else member
        for name, member in old.members.items()
    }
    return Layout(old.name, old.size + _MOVED, members, old.kind, old.file)


def nvme() -> Any:
    m, disk, clones = with_disk("nvd")
    made = Nvme(m).nvd(disk)
    for clone in clones:
        made.given(bio=clone, seconds=70)
    return m


def virtio() -> Any:
    m, disk, clones = with_disk("vtbd")
    Vtblk(m, disk).given(*clones[:2]).kept(clones[2])
    return m


def virtio_scsi() -> Any:
    m, disk, clones = with_disk("da")
    made = Vtscsi(m)
    ccbs = on_cam("da", "vtscsi", made.softc, m, disk, clones)
    made.given(*ccbs[:2]).given(ccbs[2], state=m.constant("VTSCSI_REQ_STATE_TIMEDOUT"))
    return m


def ahci() -> Any:
    m, disk, clones = with_disk("ada")
    made = Ahci(m)
    made.given(*on_cam("ada", "ahcich", made.softc, m, disk, clones), late=True)
    return m


def sas() -> Any:
    m, disk, clones = with_disk("da")
    made = Sas(m, "mps")
    made.given(*on_cam("da", "mps", made.softc, m, disk, clones), late=True)
    return m


def usb() -> Any:
    m, disk, clones = with_disk("da", reads=1)
    made = Umass(m)
    made.given(on_cam("da", "umass-sim", made.softc, m, disk, clones)[0])
    return m


def mirror() -> Any:
    m = Machine(1402000)
    made = ClassGeom(m, "MIRROR", "mirror/gm0", *below(m, 0, 1))
    _, bio = reader(m, made)
    made.keeps("sc_queue", bio)
    stuck_in_crypto(m, made.worker("a name that tells nothing"))
    return m


def soft_updates() -> Any:
    m, mount = with_mount(1402000, "amd64")
    flusher = m.procs.kthread("a name that tells nothing", calls=("softdep_flush",))
    made = softdeps(m, mount, flusher)
    write(m, mount, owner=flusher).waited_by(flusher, "biowr", seconds=65)
    thread(m, "rm").sleeps(made.at("sd_deps"), "softdeps", seconds=60)
    return m


class Vendor(NamedTuple):
    make: Callable[[], Any]
    #: {struct: the member before which the vendor put its own}
    changed: Dict[str, str]
    #: what only who reads them right can say
    said: str


VENDORS = [
    Vendor(nvme, {"nvme_tracker": "req", "nvme_qpair": "outstanding_tr"}, "at nvme0 qpair 1"),
    Vendor(virtio, {"vtblk_request": "vbr_bp"}, "at vtblk0, in its virtqueue"),
    Vendor(virtio_scsi, {"vtscsi_request": "vsr_state"}, "1 command timed out"),
    Vendor(ahci, {"ahci_slot": "ccb"}, "at ahcich0 slot 0, timed out"),
    Vendor(sas, {"mps_command": "cm_ccb"}, "at mps0 SMID 1, timed out"),
    Vendor(usb, {"umass_softc": "sc_transfer"}, "at umass0 on the bus"),
    Vendor(mirror, {"g_mirror_softc": "sc_worker"}, "told by its softc"),
    Vendor(soft_updates, {"mount_softdeps": "sd_on_journal"}, "sd_flushtd: the flusher"),
]


@pytest.mark.parametrize("section", [".SUNW_ctf", "dwarf"])
@pytest.mark.parametrize("vendor", VENDORS, ids=[each.make.__name__ for each in VENDORS])
def test_a_vendors_own_structs_are_read_by_its_own_types(
    vendor: Vendor, section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choose_yaml(1402000, "amd64", frozenset())
    structs = dict(choice.source.structs)
    for name, member in vendor.changed.items():
        structs[name] = moved(structs[name], member)
    for embedder in ("nvme_controller",) if "nvme_qpair" in vendor.changed else ():
        structs[embedder] = moved(structs[embedder], "ioq")
    layouts = Layouts([_Structs(structs)], choice.tables)
    monkeypatch.setattr(tests.forge.machine, "shipped_layouts", lambda *_: layouts)
    vmcore, kernel = vendor.make().write(tmp_path)
    graph = Graph(8, StructsFile().strings("typedefs", choice.row))
    graph.add_layouts(structs.values())
    if section == "dwarf":
        pytest.importorskip("elftools")
        (kernel.parent / "kernel.debug").write_bytes(elf(dwarf(graph)))
    else:
        with_section(kernel, section, ctf(graph))
    opened = open_core(str(vmcore), str(kernel))
    assert opened.layouts.name == ("dwarf" if section == "dwarf" else "ctf")
    answer = Answer(opened)
    words: List[str] = [edge["evidence"] for edge in answer.data["edges"]]
    words += [cause["summary"] for cause in answer.causes]
    assert any(vendor.said in each for each in words), words
