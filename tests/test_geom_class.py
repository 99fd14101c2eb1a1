"""A request that a GEOM class keeps is followed to the thread, process or request that ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
from answers import answer as ask
from test_why_stuck import Answer, check_contract, explain, thread

from tests.forge.geom import Bio, Provider
from tests.forge.geomclass import ClassGeom, set_flags
from tests.forge.machine import Machine
from tests.forge.procs import Thread

VERSIONS = [(700014, "i386"), (903000, "amd64"), (1201000, "amd64"), (1402000, "arm64")]
NEW = [(903000, "amd64"), (1201000, "amd64"), (1500068, "amd64")]


def below(m: Machine, *units: int) -> List[Provider]:
    return [m.geom.disk("vtbd", unit, mediasize=1 << 30).provider for unit in units]


def reader(m: Machine, on: ClassGeom, name: str = "reader") -> Tuple[Thread, Bio]:
    """A reader of a file system on a class's provider, and its bio as the class was given it."""
    mount = m.vfs.ffs("/data", m.geom.vfs(on.provider))
    who = thread(m, name)
    buf = m.bufs.buf(None, 0, size=4096, owner=who)
    buf.waited_by(who)
    return who, m.bufs.start(buf, mount, seconds=60)


def cause_of(answer: Answer, who: Thread) -> Dict[str, Any]:
    check_contract(answer)
    found: Optional[Dict[str, Any]] = answer.cause_of(who.tid)
    assert found is not None, answer.text
    return found


def stuck_in_crypto(m: Machine, worker: Thread) -> Thread:
    """The worker waits for a lock that a running thread holds."""
    lock = m.locks.sx("crypto lock")
    holder: Thread = thread(m, "holder")
    holder.runs_on(0)
    lock.owned_by(holder)
    lock.slept_on_by(worker, seconds=50)
    return holder


CLASSES = [
    ("ELI", "da.eli", "g_eli[0] vtbd0", "sc_queue", "waits for an encryption thread"),
    ("MIRROR", "mirror/gm0", "g_mirror gm0", "sc_queue", "its thread has not come to it"),
    ("MD", "md0", "md0", "bio_queue", "its thread has not come to it"),
]


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
@pytest.mark.parametrize("g_class, name, worker, queue, why", CLASSES)
def test_a_request_on_a_classs_queue_waits_for_the_thread_that_its_softc_names(
    g_class: str,
    name: str,
    worker: str,
    queue: str,
    why: str,
    osreldate: int,
    arch: str,
    tmp_path: Path,
) -> None:
    m = Machine(osreldate, arch)
    made = ClassGeom(m, g_class, name, *(below(m, 0) if g_class != "MD" else ()))
    who, bio = reader(m, made)
    made.keeps(queue, bio)
    # Another's thread of a like name is not taken for it.
    m.procs.kthread(worker + "1").sleeps(m.take(8), "-", seconds=1)
    serving = made.worker(worker)
    holder = stuck_in_crypto(m, serving)
    answer = explain(m, tmp_path)
    cause = cause_of(answer, who)
    assert cause["kind"] == "running" and str(holder.tid) in cause["summary"]
    assert cause["certainty"] == "proven"
    assert {who.tid, serving.tid} <= set(cause["tids"])
    assert f"{queue} of {g_class} {name}" in answer.labels(who.tid)
    assert why in answer.text


@pytest.mark.parametrize("osreldate, arch", NEW)
@pytest.mark.parametrize(
    "g_class, queue", [("RAID", "sc_queue"), ("JOURNAL", "sc_back_queue"), ("RAID3", "sc_queue")]
)
def test_raid_and_journal_likewise(
    g_class: str, queue: str, osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    made = ClassGeom(m, g_class, "r0", *below(m, 0, 1))
    if g_class == "RAID":
        m.tailq(made.softc.at("sc_volumes"), "v_next", [])
    who, bio = reader(m, made)
    made.keeps(queue, bio)
    holder = stuck_in_crypto(m, made.worker("worker of a name that tells nothing"))
    cause = cause_of(explain(m, tmp_path), who)
    assert (cause["kind"], cause["certainty"]) == ("running", "proven")
    assert str(holder.tid) in cause["summary"]


def test_a_worker_without_work_while_its_queue_has_some_is_a_lost_wakeup(tmp_path: Path) -> None:
    m = Machine(1402000)
    made = ClassGeom(m, "MIRROR", "mirror/gm0", *below(m, 0, 1))
    who, bio = reader(m, made)
    made.keeps("sc_queue", bio)
    made.worker("g_mirror gm0", "g_mirror_worker").sleeps(made.softc, "m:w1", seconds=55)
    cause = cause_of(explain(m, tmp_path), who)
    assert cause["kind"] == "lost-wakeup"
    assert "sc_queue of MIRROR mirror/gm0 has requests, yet g_mirror gm0 sleeps" in cause["summary"]


@pytest.mark.parametrize("osreldate, arch", NEW)
def test_a_write_delayed_by_a_synchronization_ends_at_the_disk_that_is_silent(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    made = ClassGeom(m, "MIRROR", "mirror/gm0", *below(m, 0, 1))
    made.synchronizes(1, 0.25)
    # The synchronization's own write, which the second disk does not return.
    m.geom.request(
        made.consumers[1], 2, 1 << 20, 131072, done="g_mirror_sync_done", seconds=90
    ).to_device()
    who, bio = reader(m, made)
    made.keeps("sc_regular_delayed", bio)
    made.worker("g_mirror gm0", "g_mirror_worker").sleeps(made.softc, "m:w1", seconds=55)
    answer = explain(m, tmp_path)
    cause = cause_of(answer, who)
    assert (cause["kind"], cause["summary"]) == ("device", "vtbd1 (/data) has not returned 1 write")
    said = " ".join(answer.text.split())
    assert "its range is being synchronized" in said
    assert "synchronizing vtbd1: 25 % done" in said


def test_provider_says_what_a_class_keeps_and_how_far_it_is(tmp_path: Path) -> None:
    m = Machine(1402000)
    made = ClassGeom(m, "MIRROR", "mirror/gm0", *below(m, 0, 1))
    made.synchronizes(1, 0.25)
    set_flags(made.softc, "sc_flags", m, "G_MIRROR_DEVICE_FLAG_DESTROY")
    made.softc["sc_state"] = 1
    _, bio = reader(m, made)
    made.keeps("sc_queue", bio)
    worker = made.worker("g_mirror gm0")
    stuck_in_crypto(m, worker)
    vmcore, kernel = m.write(tmp_path)
    dump = type("Dump", (), {"vmcore": vmcore, "kernel": kernel})
    _, text, _ = ask(dump, "provider", "mirror/gm0", width=1000)
    assert "MIRROR mirror/gm0: being destroyed." in text
    assert "MIRROR mirror/gm0: synchronizing vtbd1: 25 % done, 1 of its requests under way." in text
    assert "1 bio on sc_queue of MIRROR mirror/gm0: its thread has not come to it." in text
    assert f"Served by {worker.tid} g_mirror gm0" in text


def test_a_suspended_geli_device_waits_for_geli_resume(tmp_path: Path) -> None:
    m = Machine(1402000)
    made = ClassGeom(m, "ELI", "da.eli", *below(m, 0))
    set_flags(made.softc, "sc_flags", m, "G_ELI_FLAG_SUSPEND")
    who, bio = reader(m, made)
    made.keeps("sc_queue", bio)
    worker = made.worker("g_eli[0] vtbd0", "g_eli_worker")
    worker.sleeps(made.softc, "geli:suspend", seconds=55)
    answer = explain(m, tmp_path)
    cause = cause_of(answer, who)
    assert "geli resume" in answer.text and f"{worker.tid} g_eli[0] vtbd0" in cause["summary"]


def test_a_softc_that_does_not_lead_back_to_its_geom_is_not_believed(tmp_path: Path) -> None:
    m = Machine(1402000)
    made = ClassGeom(m, "MIRROR", "mirror/gm0", *below(m, 0, 1))
    made.softc["sc_geom"] = 0
    who, bio = reader(m, made)
    made.keeps("sc_queue", bio)
    stuck_in_crypto(m, made.worker("another name"))
    answer = explain(m, tmp_path)
    assert "sc_queue of MIRROR" not in answer.text
    check_contract(answer)
    assert answer.data["residue"] == [who.tid]


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_vnode_backed_md_goes_on_into_the_file_system_below(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    (disk,) = below(m, 1)
    lower = m.vfs.ffs("/images", m.geom.vfs(disk))
    made = ClassGeom(m, "MD", "md0")
    who, _ = reader(m, made)
    worker = made.worker("md0", "mdstart_vnode", "md_kthread")
    buf = m.bufs.buf(m.vfs.vnode(lower), 0, blkno=64, owner=worker)
    assert m.bufs.start(buf, lower, seconds=50).to_device()
    buf.waited_by(worker, "biord", seconds=50)
    cause = cause_of(explain(m, tmp_path), who)
    assert (cause["kind"], cause["summary"]) == (
        "device",
        "vtbd1 (/images) has not returned 1 read",
    )
    assert {who.tid, worker.tid} <= set(cause["tids"])
