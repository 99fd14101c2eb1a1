"""A thread woken while its kernel stack was on swap wants to run: why it cannot is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
from test_why_stuck import Answer, check_contract, explain, thread

from tests.forge.machine import Machine
from tests.forge.procs import Thread
from tests.forge.vm import Counts, SwapDevice

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1300139, "arm64"), (1402000, "arm64")]


def machine(osreldate: int, arch: str, hogs: int = 3) -> Tuple[Machine, SwapDevice, List[Thread]]:
    """Hogs whose stacks are on vtbd1, the swap disk."""
    m = Machine(osreldate, arch)
    disk = m.geom.disk("vtbd", 1, mediasize=1 << 30)
    device = m.vm.swap_device(m.geom.swap(disk.provider), used=1000)
    out = [thread(m, f"hog{number}") for number in range(hogs)]
    for each in out:
        each.process.obj["p_swtick"] = m.ticks - 120 * m.hz
        each.swapped_out()
    return m, device, out


def silent(m: Machine, device: SwapDevice) -> None:
    """The swap disk has a write that it does not return."""
    write = m.bufs.swap_write(device, device.first + 5, [m.vm.claim()], seconds=90)
    assert write.bio is not None
    write.bio.to_device()


def cause_of(answer: Answer, tid: int) -> Dict[str, Any]:
    check_contract(answer)
    found: Optional[Dict[str, Any]] = answer.cause_of(tid)
    assert found is not None
    return found


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_swapped_out_hogs_end_at_the_silent_swap_disk(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, device, hogs = machine(osreldate, arch)
    silent(m, device)
    answer = explain(m, tmp_path)
    cause = cause_of(answer, hogs[0].tid)
    assert (cause["kind"], cause["certainty"]) == ("device", "catalogued")
    assert cause["summary"] == "vtbd1 (swap) has not returned 1 write"
    assert set(cause["tids"]) >= {each.tid for each in hogs}
    assert "kernel stacks on swap" in answer.labels(hogs[0].tid)
    assert "3 threads of 3 processes" in answer.text
    said = " ".join(answer.run(str(hogs[0].tid)).split())
    assert "has been swapped out for 2 m 00 s and wants to run" in said


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_the_swapper_at_work_is_who_they_wait_for(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, _, hogs = machine(osreldate, arch)
    swapper = m.services["swapper"]
    swapper.call("vm_thread_swapin", "faultin", "swapper")
    lock = m.locks.sx("a lock")
    holder = thread(m, "holder")
    lock.owned_by(holder)
    holder.sleeps(m.take(8), "biord", seconds=40)
    lock.slept_on_by(swapper, seconds=40)
    answer = explain(m, tmp_path)
    cause = cause_of(answer, hogs[0].tid)
    assert swapper.tid in cause["tids"] and set(cause["tids"]) >= {each.tid for each in hogs}
    edges = [each for each in answer.data["edges"] if "faultin()" in each["evidence"]]
    assert [each["certainty"] for each in edges] == ["proven"]


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_while_pages_are_short_the_swapper_brings_nobody_in(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m, _, hogs = machine(osreldate, arch)
    m.vm.counts = Counts(free=10)
    answer = explain(m, tmp_path)
    assert "free pages" in answer.labels(hogs[0].tid)
    assert m.services["swapper"].tid not in (tid for c in answer.causes for tid in c["tids"])


def test_a_swapper_that_takes_its_time_is_pacing_and_one_that_oversleeps_has_lost_a_wakeup(
    tmp_path: Path,
) -> None:
    for age, kind in ((4.0, "pacing"), (400.0, "lost-wakeup")):
        m, _, hogs = machine(1402000, "amd64")
        swapper = m.services["swapper"]
        swapper.call("swapper")
        swapper.sleeps(m.procs.proc0, "swapin", seconds=age, timeout=10.0)
        folder = tmp_path / kind
        folder.mkdir()
        assert cause_of(explain(m, folder), hogs[0].tid)["kind"] == kind


def test_a_swapper_with_nobody_to_bring_in_is_idle(tmp_path: Path) -> None:
    m = Machine(1402000)
    answer = explain(m, tmp_path)
    assert answer.causes == [] and answer.data["threads"]["stuck"] == 0
