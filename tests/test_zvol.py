"""Volumes of ZFS and pools on files: from whoever asked to the pool's device, or the file's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

import pytest
from test_why_stuck import explain
from test_zfs import KERNELS, Ground, kinds, only_cause

from plugin.hosts.runner import run_command
from plugin.opening import open_core
from tests.forge.tasks import TaskQueue
from tests.forge.zfs import Pool
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


# Pools on files


class OnFile:
    """A second pool, on a file of UFS on ada0, whose disk does not answer."""

    def __init__(self, osreldate: int) -> None:
        g = self.g = Ground(osreldate)
        m = g.m
        disk = m.geom.disk("ada", 0, mediasize=1 << 34)
        consumer = m.geom.vfs(disk.provider)
        consumer.open()
        self.mount = m.vfs.ffs("/img", consumer)
        vnode = m.vfs.vnode(self.mount)
        self.pool = Pool(m, "onfile")
        self.vdev = self.pool.file("/img/pool", vnode)
        self.has_tasks = osreldate >= 1300000
        if self.has_tasks:
            self.queue = TaskQueue(m, "z_vdev_file")

    def worker(self, zio: Any) -> Any:
        """Who does a zio's I/O: a task from 13.0 on, before whoever executes the zio."""
        if self.has_tasks:
            self.queue.run("vdev_file_io_strategy", 0, zio.dispatched())
            return self.queue.workers[0]
        calls = ("vdev_file_io_start", "zio_execute", "taskqueue_run_locked")
        worker = self.g.m.procs.kthread("zio_read_issue", "zfskern", calls)
        self.pool.holds(worker, "vdev_file_io_start", zio)
        return worker

    def zio(self) -> Any:
        return self.pool.zio("READ", self.vdev, size=4096, offset=8192).at_device()


@pytest.mark.parametrize("osreldate", [903000, 1201000, 1300139, 1402000, 1500068])
def test_a_pool_on_a_file_waits_for_the_disk_below_the_file(osreldate: int, tmp_path: Path) -> None:
    f = OnFile(osreldate)
    m = f.g.m
    zio = f.zio()
    user = f.g.thread("reader")
    f.pool.tree(zio).waited_by(user)
    worker = f.worker(zio)
    buf = m.bufs.buf(f.mount.vnodes[0], 1, owner=worker)
    m.bufs.start(buf, f.mount).to_device()
    buf.waited_by(worker, seconds=60)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert cause["summary"].startswith("ada0 (/img) has not returned 1 read")
    assert set(cause["tids"]) == {user.tid, worker.tid}
    if f.has_tasks:
        zio_id = f"zio:{int(zio):#x}"
        (edge,) = [e for e in answer.data["edges"] if e["from"] == zio_id]
        assert edge["certainty"] == "proven"
        assert "vdev_file_io_strategy() of ufs" in edge["evidence"]


@pytest.mark.parametrize("osreldate", [1300139, 1402000, 1500068])
def test_io_of_a_file_that_waits_for_a_worker_waits_for_those_at_work(
    osreldate: int, tmp_path: Path
) -> None:
    f = OnFile(osreldate)
    first, second = f.zio(), f.zio()
    worker = f.worker(first)
    f.queue.queued.append(second.dispatched())
    # The file lies in the other pool, whose disk is silent.
    f.g.pool.tree(f.g.leaf().at_device()).waited_by(worker)
    user = f.g.thread("reader")
    f.pool.tree(second).waited_by(user)
    answer = explain(f.g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["summary"] == "da0 has not returned 1 read"
    assert set(cause["tids"]) == {user.tid, worker.tid}
    assert "task queue z_vdev_file" in answer.labels(user.tid)


@pytest.mark.parametrize("osreldate", [1201000, 1402000])
def test_io_of_a_file_that_lies_in_another_pool_is_followed_into_that(
    osreldate: int, tmp_path: Path
) -> None:
    f = OnFile(osreldate)
    zio = f.zio()
    worker = f.worker(zio)
    f.g.pool.tree(f.g.leaf().at_device()).waited_by(worker)
    user = f.g.thread("reader")
    f.pool.tree(zio).waited_by(user)
    answer = explain(f.g.m, tmp_path)
    assert set(only_cause(answer)["tids"]) == {user.tid, worker.tid}


def test_zfs_says_in_which_file_system_a_pools_file_lies(tmp_path: Path) -> None:
    f = OnFile(1402000)
    (text,) = printed(f.g, tmp_path, "zfs onfile")
    assert "/img/pool (ufs /img)" in text
