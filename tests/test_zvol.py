"""Volumes of ZFS and pools on files: from whoever asked to the pool's device, or the file's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

import pytest
from test_why_stuck import explain
from test_zfs import KERNELS, Ground, kinds, only_cause

from plugin.hosts.runner import run_command
from plugin.opening import open_core
from tests.forge.zvol import Zvol

#: the illumos era, OpenZFS 2.0 and 2.2 with a thread of the volume's own, 2.4 with task queues
_IDS = [f"{rel}-{arch}{'-debug' if variant else ''}" for rel, arch, variant in KERNELS]
every_kernel = pytest.mark.parametrize("osreldate, arch, variant", KERNELS, ids=_IDS)
with_a_thread = pytest.mark.parametrize("osreldate", [903000, 1201000, 1300139, 1402000])


def reader(g: Ground, volume: Zvol) -> Any:
    """A thread that waits for a read of the volume."""
    user = g.m.procs.process("dd").thread(calls=("biowait", "physio", "devfs_read_f"))
    bio = volume.asked(100)
    user.sleeps(bio, "physrd", seconds=100)
    return user, bio


def printed(g: Ground, folder: Path, *lines: str) -> List[str]:
    vmcore, kernel = g.m.write(folder)
    opened = open_core(str(vmcore), str(kernel))
    found = []
    for line in lines:
        pieces: List[str] = []
        name, *words = line.split()
        run_command(name, words, lambda: opened, pieces.append, pieces.append)
        found.append(" ".join("".join(pieces).split()))
    return found


@every_kernel
def test_a_read_of_a_volume_is_followed_through_its_thread_to_the_pools_disk(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    volume = Zvol(g.pool)
    user, bio = reader(g, volume)
    worker = volume.done_by(bio)
    g.pool.tree(g.leaf().at_device(100)).waited_by(worker, 100)
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["summary"] == "da0 has not returned 1 read"
    assert set(cause["tids"]) == {user.tid, worker.tid}
    path = kinds(answer, user.tid)
    assert path == ["thread", "bio", "thread", "zio", "zio", "bio", "provider"]


@every_kernel
def test_a_request_that_waits_at_a_volume_waits_for_those_who_do_its_io(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    volume = Zvol(g.pool)
    first, second = volume.asked(100), reader(g, volume)
    volume.waits(second[1])
    worker = volume.done_by(first)
    g.pool.tree(g.leaf().at_device(100)).waited_by(worker, 100)
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["summary"] == "da0 has not returned 1 read"
    assert set(cause["tids"]) == {second[0].tid, worker.tid}
    path = answer.labels(second[0].tid)
    assert f"{worker.tid} " in " ".join(path)
    assert ("queue of zvol tank/vol" if volume.thread else "task queue zvol_tq-0") in path


@every_kernel
def test_provider_says_who_serves_a_volume_and_calls_it_no_device_that_owes(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    volume = Zvol(g.pool)
    worker = volume.done_by(reader(g, volume)[1])
    g.pool.tree(g.leaf().at_device(100)).waited_by(worker, 100)
    text, every = printed(g, tmp_path, "provider zvol/tank/vol", "provider")
    assert f"Served by {worker.tid}" in text and 'asleep in "zio->io_cv"' in text
    assert "zvol/tank/vol owes" not in text
    assert "1 device owes I/O: da0 1" in every


def test_a_process_that_asks_directly_does_a_volumes_io_itself(tmp_path: Path) -> None:
    g = Ground()
    volume = Zvol(g.pool)
    volume.rests()
    calls = ("zio_wait", "dmu_read", "zvol_geom_bio_strategy", "g_io_request", "physio")
    user = g.m.procs.process("dd").thread(calls=calls)
    g.pool.holds(user, "zvol_geom_bio_strategy", volume.asked(100))
    other, bio = reader(g, volume)
    g.pool.holds(user, "zvol_geom_bio_strategy", bio, 3)
    g.pool.tree(g.leaf().at_device(100)).waited_by(user, 100)
    answer = explain(g.m, tmp_path)
    assert set(only_cause(answer)["tids"]) == {user.tid, other.tid}


@with_a_thread
def test_a_volumes_thread_rests_only_while_its_queue_is_empty(
    osreldate: int, tmp_path: Path
) -> None:
    for waiting in (False, True):
        g = Ground(osreldate)
        volume = Zvol(g.pool)
        volume.rests()
        if waiting:
            volume.waits(reader(g, volume)[1])
        answer = explain(g.m, tmp_path / str(waiting))
        assert volume.thread is not None
        found = answer.cause_of(volume.thread.tid)
        assert (found is not None) == waiting
        if found is not None:
            assert found["kind"] == "lost-wakeup"
            assert "zvol tank/vol: 1 request waits on its queue" in found["summary"]


@with_a_thread
def test_a_volume_that_goes_away_waits_for_its_thread(osreldate: int, tmp_path: Path) -> None:
    g = Ground(osreldate)
    volume = Zvol(g.pool)
    worker = volume.done_by(volume.asked())
    g.pool.tree(g.leaf().at_device()).waited_by(worker)
    user = g.thread("zfs", "zvol_geom_destroy", "zvol_remove_minor")
    user.sleeps(volume.at("state"), "zvol:w")
    answer = explain(g.m, tmp_path)
    assert set(only_cause(answer)["tids"]) == {user.tid, worker.tid}
    assert answer.labels(user.tid)[1] == "zvol tank/vol"


@pytest.mark.parametrize("osreldate", [1300139, 1402000, 1500068])
def test_a_volume_that_is_to_be_removed_waits_for_those_who_have_it_open(
    osreldate: int, tmp_path: Path
) -> None:
    for busy in (True, False):
        g = Ground(osreldate)
        volume = Zvol(g.pool)
        volume.obj["zv_open_count"] = 1
        user = g.thread("zfs", "zvol_wait_close", "zvol_remove_minors_impl")
        user.sleeps(volume, "zvol:dying")
        if busy:
            worker = volume.done_by(volume.asked())
            g.pool.tree(g.leaf().at_device()).waited_by(worker)
        cause = only_cause(explain(g.m, tmp_path / str(busy)))
        assert user.tid in cause["tids"]
        assert cause["kind"] == ("device" if busy else "external")
        assert busy or "zvol tank/vol is open 1 times" in cause["summary"]


@pytest.mark.parametrize("osreldate", [1300139, 1402000, 1500068])
def test_suspending_a_volume_waits_for_the_requests_inside_it(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    volume = Zvol(g.pool)
    worker = volume.done_by(volume.asked())
    does = "zvol_strategy_task" if volume.tasks else "zvol_geom_bio_strategy"
    g.pool.holds(worker, does, volume, 4)
    g.pool.tree(g.leaf().at_device()).waited_by(worker)
    lock = g.m.locks.sx("zv->zv_suspend_lock", at=volume.obj.at("zv_suspend_lock"))
    lock.shared_by(worker)
    user = g.thread("zfs", "_sx_xlock_hard", "zvol_suspend", "zfs_ioc_rollback")
    lock.slept_on_by(user)
    answer = explain(g.m, tmp_path)
    assert set(only_cause(answer)["tids"]) == {user.tid, worker.tid}
    assert answer.labels(user.tid)[1] == '"zv->zv_suspend_lock" of zvol tank/vol'


def test_a_range_of_a_volume_is_called_by_the_volume(tmp_path: Path) -> None:
    g = Ground()
    volume = Zvol(g.pool)
    locked = g.pool.locked_range(0, 4096)
    lock = volume.obj.sub("zv_rangelock")
    locked["lr_rangelock"] = lock
    g.pool.avl(lock.at("rl_tree"), "zfs_locked_range", "lr_node", [locked])
    worker = volume.done_by(volume.asked())
    g.pool.holds(worker, "zvol_geom_bio_strategy", locked, 4)
    g.pool.tree(g.leaf().at_device()).waited_by(worker)
    user = g.thread("second", "zfs_rangelock_enter", "zvol_geom_bio_strategy")
    g.pool.waits_for_range(user, locked)
    answer = explain(g.m, tmp_path)
    assert user.tid in only_cause(answer)["tids"]
    assert answer.labels(user.tid)[1] == "range of zvol tank/vol"


@pytest.mark.parametrize("osreldate", [1201000, 1402000, 1500068])
def test_zfs_lists_a_pools_volumes_with_their_requests_and_who_serves_them(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    volume = Zvol(g.pool)
    worker = volume.done_by(volume.asked())
    volume.waits(volume.asked())
    g.pool.tree(g.leaf().at_device()).waited_by(worker)
    Zvol(g.pool, "raw", mode="dev")
    first, second = g.report(tmp_path)["volumes"]
    assert (first["name"], first["mode"], first["requests"]) == ("tank/vol", "geom", 2)
    assert first["threads"] == [worker.tid]
    assert first["queued"] == (None if volume.tasks else 1)
    assert (second["name"], second["mode"], second["provider"]) == ("tank/raw", "dev", None)
