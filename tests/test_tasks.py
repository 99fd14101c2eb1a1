"""tasks: which task runs on which thread, what waits its turn, and who waits for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import pytest
from answers import answer
from conftest import RealDump
from test_why_stuck import thread

from tests.forge.machine import Machine
from tests.forge.tasks import TaskQueue

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


class Dump(NamedTuple):
    vmcore: Path
    kernel: Path


def asked(dump: Any, *words: str) -> Dict[str, Dict[str, Any]]:
    status, out, err = answer(dump, "tasks", *words, "--json")
    assert (status, err) == (0, "")
    return {each["name"]: each for each in json.loads(out)["data"]["queues"]}


def test_the_workers_of_a_real_queue_without_work_rest(every_dump: RealDump) -> None:
    """DDB's ps shows each of them in "-"; a fast queue is served by an interrupt thread."""
    resting = {t["tid"] for t in every_dump.truth["threads"] if t["wmesg"] == "-"}
    found = [each for each in asked(every_dump, "--all").values() if not each["tasks"]]
    workers = [tid for each in found for tid in each["workers"]]
    assert len(workers) >= 8 and set(workers) <= resting


def test_zfs_s_sync_task_is_on_its_worker_and_the_txg_thread_drains_it(zfs_dump: RealDump) -> None:
    queue = asked(zfs_dump, "dp_sync_taskq")["dp_sync_taskq"]
    running, *queued = queue["tasks"]
    assert (running["state"], running["worker"]) == ("running", 100129)
    assert running["function"] == "sync_dnodes_task"
    assert running["wmesg"] == "db->db_changed" and running["age"] > 100
    assert [each["state"] for each in queued] == ["queued"] * 3
    assert queued[-1]["drained_by"] == [100152]


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_running_task_names_its_thread_and_what_that_waits_for(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    queue = TaskQueue(m, "ahci_taskq", workers=2)
    idle = TaskQueue(m, "idle taskq")
    running = queue.run("ahci_reset_task", worker=1)
    queue.workers[1].sleeps(m.take(8), "ahcirst", seconds=65)
    queued = queue.queue("ahci_next_task")
    drainer, other = thread(m, "detach"), thread(m, "kldunload")
    drainer.sleeps(running, "tq_drain", seconds=60)
    other.sleeps(queued, "tq_drain", seconds=50)
    dump = Dump(*m.write(tmp_path))
    # To 10.x a queue has no name but that of its threads.
    (found,) = (each for name, each in asked(dump).items() if name.startswith("ahci_taskq"))
    now, later = found["tasks"]
    assert (now["function"], now["worker"]) == ("ahci_reset_task", queue.workers[1].tid)
    assert now["wmesg"] == "ahcirst" and 64 < now["age"] < 66
    assert (later["function"], later["state"], later["worker"]) == (
        "ahci_next_task",
        "queued",
        None,
    )
    assert (now["drained_by"], later["drained_by"]) == ([drainer.tid], [other.tid])
    _, text, _ = answer(dump, "tasks", width=200)
    assert "ahcirst for 1 m 05 s" in text and idle.name not in text
    _, text, _ = answer(dump, "tasks", "--all")
    assert idle.name in text


def test_who_ends_a_queue_is_shown_to_wait_for_its_threads(tmp_path: Path) -> None:
    m = Machine(1402000)
    queue = TaskQueue(m, "gone taskq")
    queue.run("example_task")
    ender = thread(m, "kldunload")
    ender.sleeps(queue.obj["tq_threads"], "tq_destroy", seconds=30)
    assert asked(Dump(*m.write(tmp_path)))["gone taskq"]["drained_by"] == [ender.tid]


def test_queues_that_all_rest_are_said_to_rest(tmp_path: Path) -> None:
    m = Machine(1402000)
    TaskQueue(m, "one taskq")
    dump = Dump(*m.write(tmp_path))
    _, text, _ = answer(dump, "tasks")
    assert text.startswith("Nothing runs and nothing is queued on the 1 task queue found.")
    status, _, err = answer(dump, "tasks", "one task")
    assert status == 1 and "did you mean one taskq" in err


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_tables_fit_the_terminal(width: int, zfs_dump: RealDump) -> None:
    words: List[str]
    for words in ([], ["--all"], ["dp_sync_taskq"]):
        _, out, _ = answer(zfs_dump, "tasks", *words, width=width)
        lines = [line for line in out.splitlines() if not line.startswith("warning: ")]
        assert max(map(len, lines)) <= width
