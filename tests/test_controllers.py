"""A controller's own memory says which request it has, for how long, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List, Optional, Tuple

import pytest
from answers import answer as ask
from conftest import RealDump
from test_why_stuck import check_contract, explain, thread

from plugin.judge import controllers, geom_io
from plugin.kernel.disk import disks
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.builder import Obj
from tests.forge.cam import CamDisk
from tests.forge.controllers import Ahci, Nvme, Sas, Umass, Vtblk, Vtscsi
from tests.forge.geom import Bio, Disk
from tests.forge.machine import Machine

VERSIONS = [
    (903000, "amd64"),
    (1004000, "amd64"),
    (1201000, "amd64"),
    (1402000, "arm64"),
    (1500068, "amd64"),
]


def machine(
    driver: str, osreldate: int = 1402000, arch: str = "amd64", reads: int = 3
) -> Tuple[Machine, Disk, List[Bio]]:
    """Readers of / on a disk, and the clones that its driver has been given."""
    m = Machine(osreldate, arch)
    disk = m.geom.disk(driver, 0, mediasize=1 << 30)
    root = m.vfs.ffs("/", m.geom.vfs(disk.provider))
    clones: List[Bio] = []
    for number in range(reads):
        reader = thread(m, f"reader{number}")
        buf = m.bufs.buf(None, number, size=4096, owner=reader)
        buf.waited_by(reader)
        clones += m.bufs.start(buf, root, seconds=70).to_device()
    return m, disk, clones


def on_cam(
    driver: str, sim: str, softc: Obj, m: Machine, disk: Disk, clones: List[Bio]
) -> List[Obj]:
    cam = CamDisk(m, disk, sim, periph=driver, softc=softc).given(*clones)
    return [cam.of_bio[clone.obj.address] for clone in clones]


def said(kernel: Kernel) -> str:
    (disk,) = disks(kernel).values()
    return " ".join(controllers.sentences(kernel, disk))


def summary(m: Machine, tmp_path: Path) -> Tuple[str, Kernel]:
    answer = explain(m, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "device"
    text: str = cause["summary"]
    return text, answer.kernel


def places(kernel: Kernel, clones: List[Bio]) -> List[Tuple[str, str, str]]:
    known = geom_io.outstanding_by_address(kernel)
    found = [known[clone.obj.address] for clone in clones]
    return [(each.state, each.certainty, each.why.partition(": ")[0]) for each in found]


@pytest.mark.parametrize("osreldate, arch", VERSIONS[2:])
def test_a_request_of_nda_is_at_its_queue_pair_since_the_tracker_was_sent(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, disk, clones = machine("nda", osreldate, arch)
    nvme = Nvme(m)
    ccbs = on_cam("nda", "nvme", nvme.sim_softc(), m, disk, clones)
    nvme.given(ccbs[0], pair=1, seconds=70).given(ccbs[1], seconds=10).given(ccbs[2], seconds=5)
    text, kernel = summary(m, tmp_path)
    # A tracker keeps its deadline from 13.0 on.
    timed = osreldate >= 1300000
    assert text.startswith("nda0 (/) has not returned 3 reads")
    assert text.endswith("1 command past its deadline") is timed
    age = " for 1 m 10 s, past its deadline" if timed else ""
    assert places(kernel, clones)[0] == ("at the device", "proven", f"at nvme0 qpair 2, cid 0{age}")
    since = ", the oldest for 1 m 10 s; 1 command past its deadline" if timed else ""
    assert said(kernel) == (
        "At nda0: 3 CCBs in nvme0, none frozen. "
        f"nvme0 has 3 commands of nda0 (qpair 1: 2, qpair 2: 1){since}."
    )


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_while_the_controller_resets_a_request_of_nvd_waits_for_a_tracker(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, disk, clones = machine("nvd", osreldate, arch)
    nvme = Nvme(m).nvd(disk).resetting()
    nvme.given(bio=clones[0], retries=2).queued(bio=clones[1]).given(bio=clones[2], submitted=False)
    text, kernel = summary(m, tmp_path)
    assert "nvd0 (/) has not returned 1 read; nvme0: resetting, 2 of 2 qpairs " in text
    (first, second, third) = places(kernel, clones)
    assert first == ("at the device", "proven", "at nvme0 qpair 1, cid 0, retried 2 times; nvme0")
    kept = "kept back by the driver of nvme0"
    assert second[:2] == third[:2] == ("queued", "proven")
    assert second[2].startswith(f"{kept} (qpair 1, queued_req)")
    assert third[2].startswith(f"{kept} (qpair 1, cid 1)")
    assert said(kernel).startswith(
        "nvme0 has 1 command of nvd0, its driver keeps 2 back; nvme0: resetting, 2 of 2 qpairs "
    )


def test_a_failed_controller_is_said_to_have_failed(tmp_path: Path) -> None:
    m, disk, clones = machine("nvd")
    Nvme(m).nvd(disk).failed().given(bio=clones[0]).given(bio=clones[1]).given(bio=clones[2])
    text, _ = summary(m, tmp_path)
    assert text == "nvd0 (/) has not returned 3 reads; nvme0: failed"


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_virtio_disk_has_what_is_in_its_virtqueue_and_not_the_dumps_own_write(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, disk, clones = machine("vtbd", osreldate, arch)
    Vtblk(m, disk).given(*clones[:2]).kept(clones[2]).dump_write()
    text, kernel = summary(m, tmp_path)
    assert text == "vtbd0 (/) has not returned 2 reads"
    at = ("at the device", "proven", "at vtblk0, in its virtqueue")
    kept = ("queued", "proven", "kept back by the driver of vtblk0 (vtblk_req_ready)")
    assert places(kernel, clones) == [at, at, kept]
    assert said(kernel) == "vtblk0 has 2 commands of vtbd0, its driver keeps 1 back."


def test_what_a_disk_returned_while_the_dump_was_begun_is_no_request_that_it_owes(
    tmp_path: Path,
) -> None:
    m, disk, clones = machine("vtbd")
    Vtblk(m, disk).given(*clones[:2]).returned_at_dump(clones[2])
    kernel = explain(m, tmp_path).kernel
    assert places(kernel, clones)[2] == (
        "completed, not delivered",
        "proven",
        "vtbd0 returned it while the dump was begun, to be delivered after the dump",
    )


def test_a_request_that_the_controller_has_no_command_for_is_at_the_device_by_inference(
    tmp_path: Path,
) -> None:
    m, disk, clones = machine("vtbd")
    Vtblk(m, disk).given(*clones[:2])
    kernel = explain(m, tmp_path).kernel
    assert places(kernel, clones)[2][:2] == ("at the device", "inferred")
    assert places(kernel, clones)[2][2].endswith("yet no command of vtblk0 is for it")


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_command_of_virtio_scsi_that_has_timed_out_is_named(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, disk, clones = machine("da", osreldate, arch)
    vtscsi = Vtscsi(m)
    ccbs = on_cam("da", "vtscsi", vtscsi.softc, m, disk, clones)
    vtscsi.given(*ccbs[:2]).given(ccbs[2], state=m.constant("VTSCSI_REQ_STATE_TIMEDOUT"))
    text, kernel = summary(m, tmp_path)
    assert text == "da0 (/) has not returned 3 reads; 1 command timed out"
    assert places(kernel, clones)[2][2] == "at vtscsi0, in its virtqueue, timed out"


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_an_ahci_channel_has_its_slots_and_says_that_it_resets(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, disk, clones = machine("ada", osreldate, arch)
    ahci = Ahci(m)
    ccbs = on_cam("ada", "ahcich", ahci.softc, m, disk, clones)
    ahci.given(ccbs[0], late=True).given(ccbs[1]).given(ccbs[2], running=False)
    ahci.softc["resetting"] = 1
    text, kernel = summary(m, tmp_path)
    assert text.startswith("ada0 (/) has not returned 2 reads; ahcich0: resetting, 1 of its slots")
    assert [each[0] for each in places(kernel, clones)] == ["at the device"] * 2 + ["queued"]
    assert places(kernel, clones)[0][2] == "at ahcich0 slot 0, timed out; ahcich0"


@pytest.mark.parametrize("kind", ["mps", "mpr"])
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_sas_controller_says_which_command_is_in_recovery(
    osreldate: int, arch: str, kind: str, tmp_path: Path
) -> None:
    m, disk, clones = machine("da", osreldate, arch)
    sas = Sas(m, kind)
    ccbs = on_cam("da", kind, sas.softc, m, disk, clones)
    sas.given(*ccbs[:2]).given(ccbs[2], late=True, recovering=True)
    text, kernel = summary(m, tmp_path)
    # Flags of their own say so from 12.0 on, before it a state.
    what = "timed out, in recovery" if osreldate >= 1200000 else "timed out"
    assert text == f"da0 (/) has not returned 3 reads; 1 command {what}"
    assert places(kernel, clones)[2][2] == f"at {kind}0 SMID 3, {what}"


def test_a_usb_stick_has_one_command_at_a_time_and_the_rest_is_held_back(tmp_path: Path) -> None:
    m, disk, clones = machine("da")
    umass = Umass(m)
    cam = CamDisk(m, disk, "umass-sim", softc=umass.softc).given(clones[0]).held(*clones[1:])
    umass.given(cam.of_bio[clones[0].obj.address])
    text, kernel = summary(m, tmp_path)
    assert text.startswith("da0 (/) has not returned 1 read")
    assert places(kernel, clones)[0][2] == "at umass0 on the bus"


def test_a_controller_whose_structs_are_in_no_layout_is_said_to_be_unknown(tmp_path: Path) -> None:
    m, disk, clones = machine("ada")
    on_cam("ada", "siisch", m.new("ahci_channel"), m, disk, clones)
    _, kernel = summary(m, tmp_path)
    assert said(kernel) == (
        "At ada0: 3 CCBs in siisch0, none frozen. "
        "Which commands siisch0 has is not known: its driver's structs are in no layout."
    )


@pytest.mark.parametrize("broken", ["name", "ring", "list", "pair"])
def test_where_a_drivers_memory_is_not_what_it_should_be_the_answer_says_so(
    broken: str, tmp_path: Path
) -> None:
    m, disk, clones = machine("nvd" if broken in ("list", "pair") else "vtbd")
    if broken in ("list", "pair"):
        nvme = Nvme(m).nvd(disk).given(bio=clones[0])
        if broken == "pair":
            nvme.pairs[1]["ctrlr"] = 0
        else:
            head = nvme.pairs[0].at("outstanding_tr")
            m.at_the_end(lambda: m.write_pointer(head + m.pointer_size, 0))
    else:
        vtblk = Vtblk(m, disk).given(*clones)
        if broken == "name":
            vtblk.softc["vtblk_dev"] = 0
        else:
            vtblk.queue.obj["vq_free_cnt"] = 64
    vmcore, image = m.write(tmp_path)
    kernel = open_core(str(vmcore), str(image))
    # Nobody says that the controller lacks what was not read.
    assert {each[0] for each in places(kernel, clones)} == {"at the device"}
    assert "no command of" not in str(places(kernel, clones))
    text = said(kernel)
    assert "is unknown" in text or "not all of it could be read" in text


def test_bioq_and_provider_name_the_command_and_the_controller(tmp_path: Path) -> None:
    m, disk, clones = machine("nvd")
    Nvme(m).nvd(disk).given(bio=clones[0], seconds=70).queued(bio=clones[1]).given(bio=clones[2])
    vmcore, kernel = m.write(tmp_path)
    dump = type("Dump", (), {"vmcore": vmcore, "kernel": kernel})
    _, text, _ = ask(dump, "bioq", width=1000)
    assert "nvme0 has 2 commands of nvd0, its driver keeps 1 back, the oldest for 1 m 10 s" in text
    _, text, _ = ask(dump, "provider", "nvd0", "--json")
    (provider,) = json.loads(text)["data"]["providers"]
    (first, *_) = [c for c in provider["controller"]["commands"] if c["age"] is not None]
    assert (first["where"], first["controller"]) == ("qpair 1, cid 0", "nvme0")
    assert first["age"] == pytest.approx(70, abs=0.1)
    _, text, _ = ask(dump, "bioq", "--json")
    named = [each["command"] for each in json.loads(text)["data"]["outstanding"]]
    assert sorted(each["place"] for each in named if each) == [
        *["given to the hardware"] * 2,
        "kept by the driver",
    ]


def found_of(kernel: Kernel, name: str) -> Optional[controllers.OfDisk]:
    (disk,) = [disk for disk in disks(kernel).values() if disk.name == name]
    found = controllers.of_disk(kernel, disk)
    return found if isinstance(found, controllers.OfDisk) else None


def test_a_real_virtqueue_has_a_request_for_every_bio_at_the_disk(every_dump: RealDump) -> None:
    kernel = open_core(str(every_dump.vmcore), str(every_dump.kernel))
    for disk in disks(kernel).values():
        found = found_of(kernel, disk.name)
        assert found is not None
        bios = {o.bio.address for o in geom_io.outstanding(kernel) if o.bio.disk == disk.address}
        assert set(found.by_bio) == bios
