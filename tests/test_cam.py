"""CAM: a request is at the device only if the controller has its CCB, else CAM holds it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from answers import answer as ask
from conftest import RealDump
from test_why_stuck import Answer, check_contract, explain, thread

from plugin.judge import cam as judge
from plugin.judge import geom_io
from plugin.kernel.cam import CamDevice, cam_of
from plugin.kernel.disk import disks
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.cam import CamDisk, CamPeriph
from tests.forge.geom import Bio
from tests.forge.machine import Machine

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


def machine(
    osreldate: int, arch: str, reads: int = 3, seconds: float = 50.0
) -> Tuple[Machine, CamDisk, List[Bio]]:
    """Readers of / on da0, and the clones that its driver has been given."""
    m = Machine(osreldate, arch)
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    root = m.vfs.ffs("/", m.geom.vfs(disk.provider))
    clones: List[Bio] = []
    for number in range(reads):
        reader = thread(m, f"reader{number}")
        buf = m.bufs.buf(None, number, size=4096, owner=reader)
        buf.waited_by(reader)
        clones += m.bufs.start(buf, root, seconds=seconds).to_device()
    return m, CamDisk(m, disk), clones


def the_cause(answer: Answer) -> Dict[str, Any]:
    check_contract(answer)
    cause: Dict[str, Any]
    (cause,) = answer.causes
    return cause


def said(kernel: Kernel) -> str:
    (disk,) = [disk for disk in disks(kernel).values() if disk.name == "da0"]
    return judge.sentence(kernel, disk) or ""


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_commands_that_the_controller_has_are_at_the_device(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, cam, clones = machine(osreldate, arch)
    cam.given(*clones)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["summary"] == "da0 (/) has not returned 3 reads"
    assert (cause["kind"], cause["certainty"], len(cause["tids"])) == ("device", "proven", 3)
    assert said(answer.kernel) == "At da0: 3 CCBs in vtscsi0, none frozen."


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
@pytest.mark.parametrize(
    "freeze, what",
    [
        (CamDisk.freeze_device, "the device queue is frozen, count 1"),
        (CamDisk.freeze_sim, "the queue of vtscsi0 is frozen, count 1"),
    ],
)
def test_commands_behind_a_frozen_queue_are_held_back_and_not_at_the_device(
    freeze: Callable[[CamDisk], CamDisk], what: str, osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, cam, clones = machine(osreldate, arch)
    freeze(cam.held(*clones))
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["summary"] == f"da0 (/) is not given 3 requests, held back by CAM: {what}"
    assert (cause["kind"], len(cause["tids"])) == ("device", 3)
    assert {each.state for each in geom_io.outstanding(answer.kernel)} == {"queued"}
    assert said(answer.kernel) == (
        f"At da0: 0 CCBs in vtscsi0, 3 held back in the device queue; {what}. "
        "vtscsi0 has nothing: nobody has released the queue."
    )


def test_a_disk_behind_a_frozen_queue_is_never_said_to_owe_nothing(tmp_path: Path) -> None:
    m, cam, clones = machine(1402000, "amd64")
    cam.held(*clones).freeze_device()
    vmcore, kernel = m.write(tmp_path)
    dump = type("Dump", (), {"vmcore": vmcore, "kernel": kernel})
    for named in ((), ("da0",)):
        status, text, _ = ask(dump, "provider", *named, width=1000)
        assert status == 0 and "owes nothing" not in text
        assert "held back by CAM: the device queue is frozen, count 1" in text


def test_bioq_names_the_command_of_a_request_and_that_its_timeout_has_passed(
    tmp_path: Path,
) -> None:
    m, cam, clones = machine(1402000, "amd64", seconds=100.0)
    cam.given(clones[0]).held(*clones[1:]).freeze_device()
    vmcore, kernel = m.write(tmp_path)
    dump = type("Dump", (), {"vmcore": vmcore, "kernel": kernel})
    _, text, _ = ask(dump, "bioq", width=1000)
    assert "At da0: 1 CCB in vtscsi0, 2 held back in the device queue; the device" in text
    assert "1 of them asked for longer ago than their timeout of 1 m 00 s." in text
    _, text, _ = ask(dump, "bioq", f"{clones[0].obj.address:#x}", width=1000)
    assert "with the SIM, status 0x200, timeout 1 m 00 s, asked for longer ago than that" in text
    _, text, _ = ask(dump, "bioq", f"{clones[1].obj.address:#x}", width=1000)
    assert "queued: held back by CAM: the device queue is frozen, count 1 [proven]" in text
    _, text, _ = ask(dump, "bioq", "--json")
    places = [
        each["ccb"]["place"] for each in json.loads(text)["data"]["outstanding"] if each["ccb"]
    ]
    assert sorted(places) == [*["in the device's queue"] * 2, "with the SIM"]


def test_of_a_frozen_queue_what_the_device_has_and_what_is_held_back_are_told_apart(
    tmp_path: Path,
) -> None:
    m, cam, clones = machine(1402000, "amd64")
    cam.given(clones[0]).held(*clones[1:]).freeze_device(2)
    cause = the_cause(explain(m, tmp_path))
    assert cause["summary"] == (
        "da0 (/) has not returned 1 read; what follows is held back by CAM: "
        "the device queue is frozen, count 2"
    )


def test_the_dumps_own_write_is_not_a_request_in_flight(tmp_path: Path) -> None:
    m, cam, clones = machine(1402000, "amd64")
    cam.given(*clones).dump_write()
    answer = explain(m, tmp_path)
    assert the_cause(answer)["summary"] == "da0 (/) has not returned 3 reads"
    assert said(answer.kernel) == (
        "At da0: 3 CCBs in vtscsi0, none frozen. 1 command more there that da has not asked for: "
        "the dump's own write, or CAM's own commands."
    )


def test_a_request_without_a_command_is_at_the_device_only_by_inference(tmp_path: Path) -> None:
    m, cam, clones = machine(1402000, "amd64")
    cam.given(*clones[1:])
    kernel = explain(m, tmp_path).kernel
    each = geom_io.outstanding_by_address(kernel)[clones[0].obj.address]
    assert (each.state, each.certainty) == ("at the device", "inferred")
    assert each.why.endswith("none of its CCBs is for it")


@pytest.mark.parametrize("broken", ["path", "queue", "list"])
def test_where_cam_cannot_be_read_the_cause_says_so(broken: str, tmp_path: Path) -> None:
    m, cam, clones = machine(1402000, "amd64")
    cam.given(*clones)
    if broken == "path":
        cam.periph["path"] = 0xFFFFF7FFFFFF0000
    elif broken == "queue":
        m.at_the_end(lambda: cam.device.set(**{"ccbq.queue.entries": 1 << 20}))
    else:
        m.at_the_end(lambda: m.write_pointer(cam.pending[1].at("periph_links") + 8, 0))
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert "what CAM holds back is unknown" in cause["evidence"]
    assert said(answer.kernel).startswith("What CAM has of da0 is unknown: ")


def test_a_command_that_the_controller_is_through_with_waits_for_cams_own_thread(
    tmp_path: Path,
) -> None:
    m, cam, clones = machine(1402000, "amd64")
    cam.given(*clones[1:]).done(clones[0])
    answer = explain(m, tmp_path)
    each = geom_io.outstanding_by_address(answer.kernel)[clones[0].obj.address]
    assert (each.state, each.certainty) == ("completed, not delivered", "proven")
    assert said(answer.kernel) == (
        "At da0: 2 CCBs in vtscsi0, none frozen. "
        "1 CCB done, which CAM's own thread has not come to."
    )


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_froze_a_queue_and_who_is_to_release_it_is_said(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, cam, clones = machine(osreldate, arch)
    cam.failed(clones[0]).held(*clones[1:]).freeze_device()
    cam.periph["flags"] = m.constant("CAM_PERIPH_RECOVERY_INPROG")
    cam.device["flags"] = m.constant("CAM_DEV_REL_TIMEOUT_PENDING")
    text = said(explain(m, tmp_path).kernel)
    ccb = cam.of_bio[clones[0].obj.address].address
    assert (
        "the device queue is frozen, count 1 (by 1 CCB that came back with an error, "
        f"ccb {ccb:#x}; CAM handles an error of it; a timeout is to release it)"
    ) in text


def tape(osreldate: int, arch: str) -> Tuple[Machine, CamPeriph]:
    m = Machine(osreldate, arch)
    return m, CamPeriph(m, "sa", sim="mps")


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_sends_a_command_to_a_tape_waits_for_the_tape(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, sa = tape(osreldate, arch)
    mt = m.procs.process("mt").thread(calls=("cam_periph_ccbwait", "cam_periph_runccb", "saioctl"))
    mt.sleeps(sa.sent().at("cbfcnp"), "cbwait", seconds=90)
    cause = the_cause(explain(m, tmp_path))
    assert cause["summary"] == "sa0 behind mps0 has not answered 1 command"
    assert (cause["kind"], cause["certainty"], cause["tids"]) == ("device", "proven", [mt.tid])


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_for_a_ccb_of_a_frozen_device_waits_for_its_queue(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, sa = tape(osreldate, arch)
    sa.freeze_device(2)
    mt = m.procs.process("mt").thread(calls=("cam_periph_getccb", "saioctl"))
    mt.sleeps(sa.periph.at("ccb_list"), "cgticb", seconds=90)
    cause = the_cause(explain(m, tmp_path))
    assert cause["summary"] == (
        "sa0 behind mps0 is not given its commands: its queue in CAM is frozen, count 2"
    )
    assert (cause["kind"], cause["certainty"]) == ("device", "proven")


def test_a_command_that_is_done_and_still_slept_for_is_a_lost_wakeup(tmp_path: Path) -> None:
    m, sa = tape(1402000, "amd64")
    mt = m.procs.process("mt").thread(calls=("cam_periph_ccbwait", "saioctl"))
    mt.sleeps(sa.ccb(status=1).at("cbfcnp"), "cbwait", seconds=90)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], "is done, yet" in cause["summary"]) == ("lost-wakeup", True)


@pytest.mark.parametrize(
    "wmesg, channel",
    [
        ("caplck", lambda cam: cam.periph),
        ("daclose", lambda cam: cam.softc.at("refcount")),
        ("simfree", lambda cam: cam.sim),
        ("encstat", lambda cam: 0),
    ],
)
def test_a_disks_periph_is_found_by_what_is_slept_on_and_ends_at_the_disk(
    wmesg: str, channel: Callable[[CamDisk], Any], tmp_path: Path
) -> None:
    m, cam, clones = machine(1402000, "amd64")
    cam.given(*clones)
    closer = m.procs.process("closer").thread(calls=("cam_periph_hold", "daclose"))
    at = channel(cam)
    if not at:
        # Nothing but the stack tells.
        at = m.take(64, "kmem", 64)
        m.at_the_end(lambda: m.write_pointer(closer.obj["td_kstack"] + 0x3F00, cam.periph))
    closer.sleeps(at, wmesg, seconds=80)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["summary"] == "da0 (/) has not returned 3 reads"
    assert closer.tid in cause["tids"]
    served = [
        edge
        for edge in answer.data["edges"]
        if edge["kind"] == "served-by" and "periph" in edge["evidence"]
    ]
    assert {edge["certainty"] for edge in served} <= {"guessed" if wmesg == "encstat" else "proven"}


def test_a_real_virtio_scsi_disk_has_the_eleven_commands_of_its_eleven_bios(
    zfs_dump: RealDump,
) -> None:
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel))
    (disk,) = [disk for disk in disks(kernel).values() if disk.name == "da0"]
    device = cam_of(kernel, disk)
    assert isinstance(device, CamDevice)
    bios = {o.bio.address for o in geom_io.outstanding(kernel) if o.bio.disk == disk.address}
    assert len(bios) == 11 and {ccb.bio for ccb in device.ccbs} == bios
    assert judge.sentence(kernel, disk) == "At da0: 11 CCBs in vtscsi0, none frozen."
