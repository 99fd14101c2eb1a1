"""vmstate: domains, thresholds, waiters, daemons, swap, the buffer cache, zones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict

import pytest
from answers import answer as shell

from plugin.kernel.vm_domain import memory_shortage
from plugin.opening import open_core
from tests.forge.machine import Machine
from tests.forge.scenarios import memory
from tests.forge.scenarios.storage_deadlock import storage_deadlock

#: global counters, queues per domain, everything per domain
KERNELS = (
    (700014, "i386"),
    (903000, "amd64"),
    (1004000, "amd64"),
    (1100120, "amd64"),
    (1201000, "amd64"),
    (1300139, "arm64"),
    (1402000, "i386"),
    (1500068, "amd64"),
)


@pytest.fixture
def forged(tmp_path: Path) -> Callable[[Machine], Any]:
    def write(machine: Machine) -> Any:
        vmcore, kernel = machine.write(tmp_path)
        return SimpleNamespace(vmcore=vmcore, kernel=kernel)

    return write


def answer(dump: Any) -> Dict[str, Any]:
    status, out, err = shell(dump, "vmstate", "--json")
    assert status == 0, err
    value: Dict[str, Any] = json.loads(out)["data"]
    return value


def first_lines(dump: Any) -> str:
    status, out, err = shell(dump, "vmstate")
    assert status == 0, err
    assert max(len(line) for line in out.splitlines()) <= 80
    return " ".join(out.split("\n\n")[0].split())


def test_the_domain_is_as_ddb_printed_it(real_dump: Any) -> None:
    (domain,) = answer(real_dump)["domains"]
    pageq = real_dump.truth["pageq"]
    printed = {
        "index": "dom",
        "page_count": "page_cnt",
        "free": "free",
        "active": "act",
        "inactive": "inact",
        "laundry": "laund",
        "unswappable": "unsw",
    }
    assert {ours: domain[ours] for ours in printed} == {
        ours: pageq[theirs] for ours, theirs in printed.items()
    }
    assert domain["free"] < domain["free_severe"] < domain["free_min"] < domain["free_target"]
    assert (domain["minset"], domain["severeset"]) == (True, True)


def test_the_waiters_for_pages_are_those_that_ps_shows(real_dump: Any) -> None:
    data = answer(real_dump)
    _, out, _ = shell(real_dump, "kthreads", "--json")
    waiting = {
        t["tid"]
        for t in json.loads(out)["data"]["threads"]
        if t["wmesg"] in ("vmwait", "pfault") and t["state"] == "sleeping"
    }
    assert waiting
    assert set(data["domains"][0]["waiters"]) == waiting
    assert not any(channel["satisfied"] for channel in data["waits"] if channel["waiters"])


def test_why_nothing_is_cleaned_is_on_the_first_screen(real_dump: Any) -> None:
    said = first_lines(real_dump)
    assert said.startswith("Memory is short: ")
    assert "4 threads wait for pages" in said
    assert "all 4 swap writes are at vtbd2" in said


def test_the_swap_device_has_its_four_writes_in_flight(real_dump: Any) -> None:
    (device,) = answer(real_dump)["swap"]
    assert device["name"] == "vtbd2"
    assert device["total"] == 1 << 30
    assert 0 < device["used"] < device["total"]
    assert device["in_flight"] == len(device["writes"]) == device["counted"] == 4


def test_every_daemon_is_explained(real_dump: Any) -> None:
    daemons = {d["role"]: d for d in answer(real_dump)["daemons"]}
    assert {"pagedaemon", "laundry", "uma", "vmdaemon", "bufdaemon"} <= set(daemons)
    assert daemons["laundry"]["trouble"]
    assert daemons["bufspacedaemon"]["doing"] == "idle"


def test_arenas_and_buffer_spaces_make_sense(real_dump: Any) -> None:
    data = answer(real_dump)
    arenas = {arena["name"]: arena for arena in data["arenas"]}
    assert {"kernel arena", "buffer arena", "transient arena"} <= set(arenas)
    for arena in arenas.values():
        assert 0 <= arena["inuse"] <= arena["size"]
    # Every mapped buffer has its address space from the buffer arena.
    assert arenas["buffer arena"]["inuse"] == data["buffers"]["bufkvaspace"]
    spaces = {space["name"]: space for space in data["buffers"]["spaces"]}
    assert {"runningbufspace", "dirty buffers", "bufspace", "free buffers"} == set(spaces)
    for space in spaces.values():
        assert space["low"] <= space["high"]
    assert spaces["free buffers"]["value"] < data["buffers"]["nbuf"]


@pytest.mark.parametrize(("osreldate", "arch"), KERNELS)
def test_sleepers_whose_condition_holds_have_lost_their_wakeup(
    forged: Any, osreldate: int, arch: str
) -> None:
    machine = memory.lost_wakeup(osreldate=osreldate, arch=arch, faulters=3, waiters=2)
    dump = forged(machine)
    shortage = memory_shortage(open_core(str(dump.vmcore), str(dump.kernel)))
    assert not shortage.short
    (channel,) = shortage.lost
    assert len(channel.tids) == 5
    assert "a wakeup was lost" in first_lines(dump)


@pytest.mark.parametrize(("osreldate", "arch"), KERNELS)
def test_a_page_daemon_without_pages_is_said_to_be(forged: Any, osreldate: int, arch: str) -> None:
    machine = memory.sibling(osreldate=osreldate, arch=arch, faulters=3, waiters=2)
    dump = forged(machine)
    data = answer(dump)
    assert data["domains"][0]["pages_needed"]
    assert len(data["domains"][0]["waiters"]) == 6
    (trouble,) = [d for d in data["daemons"] if d["wmesg"] == "VMWait"]
    assert trouble["doing"] == "is itself out of pages"
    assert "is itself out of pages" in first_lines(dump)


def test_the_first_report_is_short_of_pages_behind_a_queue(forged: Any) -> None:
    said = first_lines(forged(storage_deadlock()))
    assert "180 threads wait for pages" in said
    assert "all 4 swap writes are queued for da0s1b" in said


def test_a_zone_at_its_limit_is_shown_with_who_waits(forged: Any) -> None:
    machine = Machine(1402000, "amd64")
    zone = machine.uma.zone("scarce", 512, limit=4)
    for _ in range(4):
        zone.alloc()
    thread = machine.procs.process("wants").thread()
    zone.waited_by(thread, seconds=9)
    dump = forged(machine)
    (found,) = [z for z in answer(dump)["zones"] if z["name"] == "scarce"]
    assert (found["limit"], found["used"], found["sleepers"]) == (4, 4, 1)
    assert found["waiters"] == [thread.tid]
    assert "Threads wait at the limit of scarce." in first_lines(dump)
