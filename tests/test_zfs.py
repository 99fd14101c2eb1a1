"""ZFS: from whoever waits to the request at the device, the thread or the pool behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from test_why_stuck import Answer, check_contract, explain

from plugin.hosts.runner import run_command
from plugin.kernel.avl import avl_foreach
from plugin.kernel.list import list_t_foreach
from plugin.opening import open_core
from plugin.structs.ctf import Ctf
from plugin.structs.yamlfile import SHIPPED
from tests.conftest import SHARED, RealDump, decompress
from tests.forge.machine import Machine, shipped_layouts
from tests.forge.scenarios.rmslocks import wants
from tests.forge.tasks import TaskQueue
from tests.forge.zfs import Pool, Vdev

#: the illumos era, OpenZFS 2.0, 2.2, 2.4; an INVARIANTS kernel's refcounts are 112 bytes
KERNELS = [
    (903000, "amd64", ()),
    (1004000, "amd64", ()),
    (1201000, "amd64", ()),
    (1300139, "amd64", ()),
    (1402000, "amd64", ()),
    (1402000, "amd64", ("INVARIANTS", "WITNESS")),
    (1402000, "arm64", ()),
    (1402000, "i386", ()),
    (1500068, "amd64", ()),
]
_IDS = [f"{rel}-{arch}{'-debug' if variant else ''}" for rel, arch, variant in KERNELS]
every_kernel = pytest.mark.parametrize("osreldate, arch, variant", KERNELS, ids=_IDS)


#: how the names begin that a zfs.ko has, where ZFS is none of the kernel's own
_IN_ZFS = ("zfs_", "zio_", "zil_", "dmu_", "dbuf_", "txg_", "spa_", "vdev_geom_", "avl_", "rrw_")


class Ground:
    """A machine with one pool on one disk, da0."""

    def __init__(
        self,
        osreldate: int = 1402000,
        arch: str = "amd64",
        variant: Any = (),
        *,
        module: bool = False,
        **how: Any,
    ) -> None:
        if "zio" not in shipped_layouts(osreldate, arch, frozenset(variant)):
            pytest.skip("structs.yaml has no struct zio")
        self.m = Machine(osreldate, arch, variant)
        if module:
            self.m.modules.load("zfs.ko", *_IN_ZFS)
        self.disk = self.m.geom.disk("da", 0, mediasize=1 << 34)
        self.pool = Pool(self.m, "tank", **how)
        self.vdev: Vdev = self.pool.disk(self.disk)

    def thread(self, comm: str, *calls: str) -> Any:
        return self.m.procs.process(comm).thread(calls=calls or ("zfs_read", "kern_read"))

    def leaf(self, kind: str = "READ", **how: Any) -> Any:
        return self.pool.zio(kind, self.vdev, size=131072, offset=1 << 20, **how)

    def report(self, folder: Path, *words: str) -> Dict[str, Any]:
        vmcore, kernel = self.m.write(folder)
        opened = open_core(str(vmcore), str(kernel))
        printed: List[str] = []
        run_command("zfs", [*words, "--json"], lambda: opened, printed.append, printed.append)
        pool: Dict[str, Any]
        (pool,) = json.loads("".join(printed))["data"]["pools"]
        return pool


def kinds(answer: Answer, tid: int) -> List[str]:
    return [answer.nodes[id]["kind"] for id in answer.chain_of(tid)["path"]]


def only_cause(answer: Answer) -> Dict[str, Any]:
    check_contract(answer)
    cause: Dict[str, Any]
    (cause,) = answer.causes
    return cause


# I/O


@every_kernel
def test_a_reader_waits_for_its_zio_and_that_for_the_disk_that_has_the_bio(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    reader = g.thread("reader")
    g.pool.tree(g.leaf().at_device(110)).waited_by(reader, 110)
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["certainty"]) == ("device", "proven")
    assert cause["summary"] == "da0 has not returned 1 read"
    assert kinds(answer, reader.tid) == ["thread", "zio", "zio", "bio", "provider"]


@every_kernel
def test_a_reader_of_a_block_being_read_waits_for_the_zio_of_that_block(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    g.pool.zio("READ").about(54, 17, 26).over(g.leaf().about(54, 17, 26).at_device())
    other = g.leaf().about(54, 18, 0).at_device()
    reader = g.thread("reader")
    dbuf = g.pool.dbuf(17, 26)
    g.pool.sleeps(reader, dbuf.at("db_changed"), "db->db_changed")
    answer = explain(g.m, tmp_path)
    assert only_cause(answer)["kind"] == "device"
    assert kinds(answer, reader.tid) == ["thread", "dbuf", "zio", "zio", "bio", "provider"]
    assert answer.labels(reader.tid)[1] == "dbuf object 17 block 26 of tank"
    assert f"{int(other):#x}" not in " ".join(answer.labels(reader.tid))


@every_kernel
def test_a_zio_in_the_vdevs_queue_waits_for_those_that_the_disk_has(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    for priority in (0, 3):
        g.leaf("WRITE", priority=priority).queued()
    g.leaf("WRITE").at_device()
    waiting = g.leaf("READ", priority=2).queued()
    reader = g.thread("reader")
    g.pool.tree(waiting).waited_by(reader)
    answer = explain(g.m, tmp_path)
    assert only_cause(answer)["summary"] == "da0 has not returned 1 write"
    path = kinds(answer, reader.tid)
    assert path == ["thread", "zio", "zio", "queue", "zio", "bio", "provider"]


def test_a_zio_that_is_nowhere_is_said_to_be_with_its_stage(tmp_path: Path) -> None:
    g = Ground()
    reader = g.thread("reader")
    g.pool.tree(g.pool.zio("READ", g.vdev, size=512)).waited_by(reader)
    answer = explain(g.m, tmp_path)
    assert "nowhere to be found" in answer.text
    assert "no request under way" not in answer.text


def test_a_pool_without_any_symbol_of_zfs_is_found_by_its_mount(tmp_path: Path) -> None:
    g = Ground(symbols=False)
    g.pool.mounted("/tank")
    reader = g.thread("reader")
    g.pool.tree(g.leaf().at_device()).waited_by(reader)
    assert only_cause(explain(g.m, tmp_path))["kind"] == "device"


@pytest.mark.parametrize("osreldate", [1201000, 1402000])
def test_a_zio_in_a_task_queue_waits_for_its_workers_all_of_which_are_stuck(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    queue = TaskQueue(g.m, "zio_write_issue", workers=2)
    for number, worker in enumerate(queue.workers):
        queue.run("zio_execute", number)
        g.pool.tree(g.leaf("WRITE").at_device()).waited_by(worker)
    waiting = g.pool.zio("WRITE", size=4096)
    task = g.m.view("task", waiting.obj.at("io_tqent"))
    task["ta_func"] = "taskq_run_ent"
    queue.queued.append(task)
    user = g.thread("user")
    g.pool.tree(waiting).waited_by(user)
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device" and len(cause["tids"]) == 3
    assert kinds(answer, user.tid)[:5] == ["thread", "zio", "zio", "taskqueue", "thread"]
    assert "task queue zio_write_issue" in answer.labels(user.tid)


@pytest.mark.parametrize("osreldate", [1201000, 1300139, 1402000, 1500068])
def test_who_asks_for_a_block_that_is_being_read_waits_for_that_read(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    m = g.m
    read = g.pool.zio("READ", size=4096).over(g.leaf().at_device())
    dummy = g.pool.zio()
    hdr = m.new("arc_buf_hdr", arena="kva")
    hdr["b_l1hdr.b_acb"] = m.new("arc_callback", acb_zio_dummy=dummy, acb_zio_head=read)
    read.obj["io_private"] = hdr
    second = g.thread("second")
    g.pool.zio().over(dummy).waited_by(second)
    answer = explain(m, tmp_path)
    assert only_cause(answer)["certainty"] == "proven"
    labels = " ".join(answer.labels(second.tid))
    assert f"{int(dummy):#x}" in labels and f"{int(read):#x}" in labels


# Transaction groups


@every_kernel
def test_a_sync_waits_for_the_sync_thread_its_zio_and_the_disk(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    threads = g.pool.threads()
    g.pool.idle(threads["quiesce"], "quiesce")
    g.pool.tree(g.leaf("WRITE").at_device()).waited_by(threads["sync"])
    user = g.thread("sync", "txg_wait_synced", "zfs_sync")
    g.pool.synced_by(user)
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["certainty"]) == ("device", "proven")
    assert answer.labels(user.tid)[1] == "txg 103 of pool tank"
    assert kinds(answer, user.tid)[1:4] == ["txg", "thread", "zio"]


@every_kernel
def test_a_txg_held_open_waits_for_the_thread_that_holds_the_transaction(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    pool = g.pool
    new = g.m.has("tx_state", "tx_quiescing_txg")
    pool.txgs(open=105, quiescing=104 if new else 0, synced=103)
    threads = pool.threads()
    pool.idle(threads["sync"], "sync")
    pool.quiesces(threads["quiesce"], 104)
    holder = g.thread("holder", "example_wait", "zfs_write", "zfs_freebsd_write")
    pool.transaction(holder, "zfs_write", 104)
    bystander = g.thread("bystander", "example_wait", "zfs_write", "zfs_freebsd_write")
    pool.holds(bystander, "zfs_write", pool.dsl_pool)
    lock = g.m.locks.sx("elsewhere")
    owner = g.thread("owner", "example", "sys_example")
    lock.owned_by(owner)
    lock.slept_on_by(holder)
    owner.runs_on(0)
    bystander.sleeps(g.m.take(8), "nanslp", seconds=1, timeout=2.0)
    user = g.thread("sync", "txg_wait_synced", "zfs_sync")
    pool.synced_by(user)
    answer = explain(g.m, tmp_path)
    cause = answer.cause_of(user.tid)
    assert cause is not None and cause["kind"] == "running"
    assert {holder.tid, threads["quiesce"].tid, user.tid} <= set(cause["tids"])
    assert f"{holder.tid} holder" in answer.labels(user.tid)


def test_a_transaction_already_committed_holds_nothing_and_a_holder_not_found_is_said(
    tmp_path: Path,
) -> None:
    g = Ground()
    g.pool.txgs(open=105, quiescing=104, synced=103)
    threads = g.pool.threads()
    g.pool.idle(threads["sync"], "sync")
    g.pool.quiesces(threads["quiesce"], 104)
    past = g.thread("past", "zio_wait", "zfs_write", "vn_write")
    tx = g.pool.transaction(past, "zfs_write", 104)
    tx["tx_txgh.th_cpu"] = 0
    g.pool.tree(g.leaf().at_device()).waited_by(past)
    answer = explain(g.m, tmp_path)
    quiesce = threads["quiesce"].tid
    assert past.tid not in answer.chain_of(quiesce)["tids"]
    assert "thread:" + str(past.tid) not in answer.chain_of(quiesce)["path"]
    assert "held open by 1 transaction; no thread has one on its stack" in " ".join(
        answer.text.split()
    )


def test_writers_throttled_by_dirty_data_wait_for_the_sync_thread(tmp_path: Path) -> None:
    g = Ground()
    threads = g.pool.threads()
    g.pool.idle(threads["quiesce"], "quiesce")
    g.pool.tree(g.leaf("WRITE").at_device()).waited_by(threads["sync"])
    g.pool.dsl_pool["dp_dirty_total"] = 4 << 30
    writers = [g.thread("writer", "dmu_tx_wait", "zfs_write") for _ in range(3)]
    cv = g.pool.dsl_pool.at("dp_spaceavail_cv")
    for writer in writers:
        g.pool.sleeps(writer, cv, "dp->dp_spaceavail_cv")
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device"
    assert {writer.tid for writer in writers} <= set(cause["tids"])
    assert answer.labels(writers[0].tid)[1] == "dirty data of pool tank"


def test_a_writer_made_slow_while_the_sync_does_not_go_on_is_stuck_behind_it(
    tmp_path: Path,
) -> None:
    g = Ground()
    threads = g.pool.threads()
    g.pool.idle(threads["quiesce"], "quiesce")
    g.pool.tree(g.leaf("WRITE").at_device()).waited_by(threads["sync"])
    writer = g.thread("writer", "dmu_tx_delay", "dmu_tx_assign", "zfs_write")
    g.pool.holds(writer, "zfs_write", g.m.new("dmu_tx", tx_pool=g.pool.dsl_pool))
    g.m.symbol("pause_wchan", size=1024, static=True)
    writer.pauses("usleep_range", 0.1, seconds=60)
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device" and writer.tid in cause["tids"]


def test_who_waits_for_the_arc_waits_for_the_thread_that_evicts(tmp_path: Path) -> None:
    g = Ground()
    m = g.m
    evictor = m.procs.kthread("arc_evict", "zfskern", ("arc_evict_cb", "zthr_procedure"))
    zthr = m.new("zthr", zthr_thread=evictor, zthr_name=m.string("arc_evict"))
    m.variable("arc_evict_zthr", zthr, static=True)
    g.pool.tree(g.leaf("WRITE").at_device()).waited_by(evictor)
    user = g.thread("user", "arc_wait_for_eviction", "zfs_write")
    g.pool.sleeps(user, m.new("arc_evict_waiter").at("aew_cv"), "aw.aew_cv")
    answer = explain(m, tmp_path)
    assert only_cause(answer)["certainty"] == "proven"
    assert answer.labels(user.tid)[1] == "memory of the ARC"


# The log, dmu_sync


@pytest.mark.parametrize("osreldate", [1201000, 1300139, 1402000, 1500068])
def test_fsync_waits_for_the_block_of_the_log_and_its_writes(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    lwb = g.pool.log_block(g.pool.tree(g.leaf("WRITE").at_device()))
    user = g.thread("fsync", "zil_commit", "zfs_fsync")
    g.pool.commits(user, lwb)
    answer = explain(g.m, tmp_path)
    assert only_cause(answer)["kind"] == "device"
    assert kinds(answer, user.tid)[:3] == ["thread", "lwb", "zio"]
    assert answer.labels(user.tid)[1].endswith("of tank")


def test_a_buffer_that_dmu_sync_writes_waits_for_that_write(tmp_path: Path) -> None:
    g = Ground()
    g.pool.zio("WRITE").about(54, 17, 26).over(g.leaf("WRITE").at_device())
    dbuf = g.pool.dbuf(17, 26, "CACHED")
    g.pool.in_dmu_sync(dbuf, 103)
    worker = g.m.procs.kthread("dp_sync_taskq", "zfskern", ("dbuf_sync_leaf",))
    g.pool.sleeps(worker, dbuf.at("db_changed"), "db->db_changed")
    answer = explain(g.m, tmp_path)
    assert only_cause(answer)["kind"] == "device"
    assert kinds(answer, worker.tid) == ["thread", "dbuf", "zio", "zio", "bio", "provider"]


# Locks


@every_kernel
def test_a_range_of_a_file_is_held_by_the_thread_that_has_it_on_its_stack(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    locked = g.pool.locked_range(0, 4096, object=7)
    holder = g.thread("holder", "zfs_write", "zfs_freebsd_write")
    g.pool.holds(holder, "zfs_write", locked)
    g.pool.tree(g.leaf("READ").at_device()).waited_by(holder)
    user = g.thread("second", "zfs_write", "zfs_freebsd_write")
    g.pool.waits_for_range(user, locked)
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device" and user.tid in cause["tids"]
    assert answer.labels(user.tid)[1] == "range of object 7"
    assert answer.labels(user.tid)[2] == f"{holder.tid} holder"


@every_kernel
def test_a_config_lock_is_held_by_the_writer_it_records(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    lock = g.pool.config_lock(4)
    holder = g.thread("holder", "vdev_open", "spa_example")
    lock["scl_writer"] = holder
    g.pool.tree(g.leaf().at_device()).waited_by(holder)
    user = g.thread("user", "spa_config_enter", "zio_vdev_io_start")
    g.pool.sleeps(user, lock.at("scl_cv"), "scl->scl_cv")
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["certainty"]) == ("device", "proven")
    assert answer.labels(user.tid)[1] == "SCL_ZIO of pool tank"


@pytest.mark.parametrize("variant", [(), ("INVARIANTS", "WITNESS")])
def test_the_config_lock_of_a_pool_is_held_by_the_writer_it_records(
    variant: Any, tmp_path: Path
) -> None:
    g = Ground(variant=variant)
    lock = g.pool.dsl_pool.sub("dp_config_rwlock")
    holder = g.thread("holder", "dsl_sync_task_common")
    lock["rr_writer"] = holder
    g.pool.tree(g.leaf().at_device()).waited_by(holder)
    user = g.thread("user", "rrw_enter_read", "dsl_pool_hold")
    g.pool.sleeps(user, lock.at("rr_cv"), "rrl->rr_cv")
    answer = explain(g.m, tmp_path)
    assert only_cause(answer)["certainty"] == "proven"
    assert answer.labels(user.tid)[1] == "dp_config_rwlock of pool tank"


@pytest.mark.parametrize("osreldate", [903000, 1004000, 1201000])
def test_an_unmount_waits_for_those_inside_the_file_system_by_its_teardown_lock(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    zfsvfs = g.pool.mounted("/tank")
    reader = g.thread("reader", "zio_wait", "zfs_read", "vn_read")
    g.pool.holds(reader, "zfs_read", zfsvfs)
    g.pool.tree(g.leaf().at_device()).waited_by(reader)
    lock = g.m.view("rrwlock", zfsvfs.at("z_teardown_lock"))
    lock["rr_anon_rcount.rc_count"] = 1
    user = g.thread("umount", "rrm_enter_write", "zfsvfs_teardown", "zfs_umount")
    g.pool.sleeps(user, lock.at("rr_cv"), "rrl->rr_cv")
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device" and user.tid in cause["tids"]
    assert answer.labels(user.tid)[1:3] == ["z_teardown_lock of /tank", f"{reader.tid} reader"]


# Pools that do not go on


@every_kernel
def test_what_waits_for_a_suspended_pool_ends_there_and_is_told_what_resumes_it(
    osreldate: int, arch: str, variant: Any, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch, variant)
    failed = g.pool.zio("WRITE", size=4096)
    reader = g.thread("reader")
    failed.waited_by(reader)
    g.pool.suspend(failed)
    sleeper = g.thread("sleeper", "zio_wait", "zfs_example")
    g.pool.sleeps(sleeper, g.pool.spa.at("spa_suspend_cv"), "spa->spa_suspend_cv")
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "external"
    assert "pool tank is suspended after I/O failures of da0" in cause["summary"]
    assert "zpool clear resumes it" in cause["summary"]
    assert set(cause["tids"]) == {reader.tid, sleeper.tid}


def test_a_suspended_pool_with_threads_spinning_in_it_is_the_first_cause(tmp_path: Path) -> None:
    g = Ground()
    g.pool.suspend(g.pool.zio("WRITE", size=4096))
    lock = g.m.locks.sx("zilog->zl_issuer_lock")
    for cpu in range(2):
        spinner = g.thread("spinner", "lock_delay", "_sx_xlock_hard", "zil_commit", "zfs_fsync")
        g.pool.holds(spinner, "zil_commit", g.pool.spa)
        spinner.runs_on(cpu)
        g.m.cast[f"spinner {cpu}"] = spinner
    lock.owned_by(g.m.cast["spinner 0"])
    waiting = [g.thread("looper", "zil_commit", "zfs_fsync") for _ in range(3)]
    for each in waiting:
        g.pool.holds(each, "zil_commit", g.pool.dsl_pool)
        each.runnable()
    elsewhere = g.thread("elsewhere", "example_loop", "sys_example")
    elsewhere.runnable()
    answer = explain(g.m, tmp_path)
    check_contract(answer)
    first = answer.causes[0]
    assert first["summary"].startswith("ZFS pool tank is suspended")
    assert {each.tid for each in waiting} | {g.m.cast["spinner 1"].tid} <= set(first["tids"])
    assert elsewhere.tid not in first["tids"]
    assert "ZFS pool tank is suspended" in answer.verdict.split(". ")[0]


def test_a_suspended_pool_is_a_cause_though_nobody_waits_for_it(tmp_path: Path) -> None:
    g = Ground()
    g.pool.suspend(g.pool.zio("WRITE", size=4096))
    answer = explain(g.m, tmp_path)
    assert [cause["tids"] for cause in answer.causes] == [[]]
    assert "No thread is stuck" not in answer.verdict
    assert "pool tank is suspended after I/O failures of da0" in answer.verdict


def test_a_pool_suspended_a_moment_ago_is_told_of_already(tmp_path: Path) -> None:
    g = Ground()
    failed = g.pool.zio("WRITE", size=4096)
    failed.waited_by(g.thread("reader"), 0.2)
    g.pool.suspend(failed)
    assert "pool tank is suspended" in explain(g.m, tmp_path).verdict


def test_provider_does_not_call_the_disk_of_a_suspended_pool_innocent(tmp_path: Path) -> None:
    g = Ground()
    g.pool.suspend(g.pool.zio("WRITE", size=4096))
    vmcore, kernel = g.m.write(tmp_path)
    opened = open_core(str(vmcore), str(kernel))
    printed: List[str] = []
    run_command("provider", ["da0"], lambda: opened, printed.append, printed.append)
    assert "pool tank is suspended" in " ".join("".join(printed).split())


# Modules


def _reader(g: Ground) -> Any:
    reader = g.thread("reader")
    g.pool.tree(g.leaf().at_device()).waited_by(reader)
    return reader


def _txg_holder(g: Ground) -> Any:
    new = g.m.has("tx_state", "tx_quiescing_txg")
    g.pool.txgs(open=105, quiescing=104 if new else 0, synced=103)
    threads = g.pool.threads()
    g.pool.idle(threads["sync"], "sync")
    g.pool.quiesces(threads["quiesce"], 104)
    holder = g.thread("holder", "zio_wait", "zfs_write", "vn_write")
    g.pool.transaction(holder, "zfs_write", 104)
    g.pool.tree(g.leaf().at_device()).waited_by(holder)
    user = g.thread("sync", "txg_wait_synced", "zfs_sync")
    g.pool.synced_by(user)
    return user


def _suspended(g: Ground) -> Any:
    g.pool.suspend(g.pool.zio("WRITE", size=4096))
    spinner = g.thread("spinner", "zil_commit", "zfs_fsync")
    g.pool.holds(spinner, "zil_commit", g.pool.spa)
    spinner.runnable()
    return spinner


@pytest.mark.parametrize("scenario", [_reader, _txg_holder, _suspended])
@pytest.mark.parametrize("osreldate", [1201000, 1402000, 1500068])
def test_zfs_in_a_module_known_from_memory_alone_gives_the_verdicts_of_one_built_in(
    osreldate: int, scenario: Any, tmp_path: Path
) -> None:
    told = []
    for module in (False, True):
        g = Ground(osreldate, module=module)
        thread = scenario(g)
        answer = explain(g.m, tmp_path / str(module))
        cause = answer.cause_of(thread.tid)
        assert cause is not None
        told.append(
            (answer.verdict, cause["summary"], cause["certainty"], kinds(answer, thread.tid))
        )
    assert told[0] == told[1]


# A real machine


@pytest.mark.parametrize("types", ["the kernel's CTF", "that and zfs.ko's", "structs.yaml"])
def test_on_a_real_machine_every_stuck_thread_ends_at_the_disk_that_has_eleven_requests(
    types: str, zfs_dump: RealDump, tmp_path: Path
) -> None:
    root = None
    if types == "that and zfs.ko's":
        packed = SHARED / "real2" / zfs_dump.name / "zfs.ko.zst"
        (tmp_path / "boot" / "kernel").mkdir(parents=True)
        decompress(packed, tmp_path / "boot" / "kernel" / "zfs.ko")
        root = str(tmp_path)
    # A file that lists kernels is used in place of all debug information.
    own = SHIPPED if types == "structs.yaml" else None
    kernel = open_core(str(zfs_dump.vmcore), str(zfs_dump.kernel), sysroot=root, structs=own)
    assert kernel.layouts.name.startswith("yaml" if own else "ctf"), kernel.layouts.name
    assert not own or not any(isinstance(source, Ctf) for source in kernel.layouts.sources)
    answer = Answer(kernel)
    cause = only_cause(answer)
    assert cause["summary"] == "da0 has not returned 6 writes and 5 reads"
    assert len(cause["tids"]) == 27 and answer.data["residue"] == []
    # zrename: the txg, its sync thread, the task queue's worker, the buffer, the log's write
    path = kinds(answer, 100171)
    assert [kind for kind in path if kind not in ("thread", "task", "queue", "taskqueue")] == [
        *("txg", "dbuf", "zio", "zio", "bio", "provider")
    ]
    printed: List[str] = []
    run_command("zfs", ["--json"], lambda: kernel, printed.append, printed.append)
    (pool,) = json.loads("".join(printed))["data"]["pools"]
    active = [zio for zio in pool["zios"] if zio["active"]]
    assert len(active) == len({zio["bio"] for zio in active}) == 11
    assert (pool["txg"]["open"], pool["txg"]["syncing"], pool["txg"]["synced"]) == (104, 103, 102)


# Lists and trees


@pytest.mark.parametrize(
    "osreldate, arch", [(903000, "amd64"), (1402000, "i386"), (1500068, "amd64")]
)
def test_a_tree_and_a_list_are_walked_whole_in_order_and_a_wrong_count_or_link_is_a_finding(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    g = Ground(osreldate, arch)
    m, pool = g.m, g.pool
    links = [m.new("zio_link") for _ in range(21)]
    zio = pool.zio()
    for link in links:
        pool.append(zio.obj.at("io_child_list"), "zio_link", "zl_child_node", link)
    nodes = [m.new("avl_node") for _ in range(21)]
    trees = [m.new("avl_tree", arena="kva") for _ in range(2)]
    pool.avl(int(trees[0]), "avl_node", "avl_child", nodes)
    pool.avl(int(trees[1]), "avl_node", "avl_child", [m.new("avl_node") for _ in range(5)])
    trees[1]["avl_numnodes"] = 6
    broken = pool.zio()
    cut = [m.new("zio_link") for _ in range(3)]
    for link in cut:
        pool.append(broken.obj.at("io_child_list"), "zio_link", "zl_child_node", link)
    m.at_the_end(lambda: m.write_pointer(cut[-1].at("zl_child_node"), 0))
    vmcore, kernel = m.write(tmp_path)
    k = open_core(str(vmcore), str(kernel))
    with k.noting() as found:
        assert list(avl_foreach(k, int(trees[0]))) == [int(node) for node in nodes]
        walked = list(list_t_foreach(k, zio.obj.at("io_child_list")))
        assert walked == [int(link) for link in links]
    assert not found.partial and not len(found)
    with k.noting() as found:
        assert len(list(avl_foreach(k, int(trees[1])))) == 5
    assert found.partial and "avl_numnodes is 6, 5 are in it" in [f.detail for f in found]
    with k.noting() as found:
        assert len(list(list_t_foreach(k, broken.obj.at("io_child_list")))) == 3
    assert found.partial


# The command


def test_zfs_shows_each_request_once_as_zio_and_as_bio(tmp_path: Path) -> None:
    g = Ground()
    threads = g.pool.threads()
    g.pool.idle(threads["quiesce"], "quiesce")
    g.pool.tree(g.leaf("WRITE").at_device(100)).waited_by(threads["sync"], 100)
    for _ in range(2):
        g.leaf().at_device(50)
    g.leaf("WRITE", priority=3).queued(20)
    pool = g.report(tmp_path, "tank")
    assert pool["suspended"] is None and pool["failmode"] == "wait"
    assert (pool["txg"]["open"], pool["txg"]["syncing"]) == (104, 103)
    assert pool["txg"]["sync_thread"] == threads["sync"].tid
    active = [zio for zio in pool["zios"] if zio["active"]]
    assert len(active) == len({zio["bio"] for zio in active}) == 3 and None not in active
    assert [round(zio["age"]) for zio in pool["zios"]] == [100, 50, 50, 20]
    (leaf,) = [vdev for vdev in pool["vdevs"] if vdev["leaf"]]
    assert (leaf["provider"], leaf["active"]) == ("da0", 3)
    assert leaf["queued"] == {"ASYNC_WRITE": 1}


def test_a_tree_of_pools_with_a_wild_pointer_is_partial_and_loops_nowhere(tmp_path: Path) -> None:
    g = Ground()
    reader = g.thread("reader")
    root = g.pool.tree(g.leaf().at_device()).waited_by(reader)
    head = root.obj.at("io_child_list") + g.m.locate("list", "list_head").offset
    g.m.at_the_end(lambda: g.m.write_pointer(head, 0xFFFFF80000000000 | 0x123458))
    vmcore, kernel = g.m.write(tmp_path)
    answer = Answer(open_core(str(vmcore), str(kernel)), partial=True)
    assert "io_child_list" in answer.text


def test_a_machine_without_zfs_is_said_to_have_none(tmp_path: Path) -> None:
    vmcore, kernel = Machine(1402000, "amd64").write(tmp_path)
    opened = open_core(str(vmcore), str(kernel))
    printed: List[str] = []
    assert run_command("zfs", [], lambda: opened, printed.append, printed.append) == 0
    assert "This kernel has no ZFS" in "".join(printed)


# A forced unmount, and signals that kill nobody


@pytest.mark.parametrize("osreldate", [1300139, 1402000, 1500068])
@pytest.mark.parametrize("where", ["teardown", "sync", "vflush"])
def test_after_a_forced_unmount_and_sigkills_all_still_end_at_the_device(
    osreldate: int, where: str, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    m, pool = g.m, g.pool
    mount = m.vfs.mount("zfs", "/tank", "tank")
    zfsvfs = m.new("zfsvfs", arena="kva", z_os=pool.objset)
    mount.obj["mnt_data"] = zfsvfs
    mount.obj["mnt_kern_flag"] = m.constant("MNTK_UNMOUNT") | m.constant("MNTK_UNMOUNTF")
    directory = m.vfs.vnode(mount, "dir")
    threads = pool.threads()
    pool.idle(threads["quiesce"], "quiesce")
    pool.tree(g.leaf("WRITE").at_device(240)).waited_by(threads["sync"], 240)
    # Killed, and asleep all the same: a writer that has the directory, a reader.
    writer = g.thread("zrename", "txg_wait_synced", "zfs_rename", "VOP_RENAME_APV", "sys_rename")
    pool.synced_by(writer, 240)
    directory.lock.owned_by(writer)
    reader = g.thread("zread", "zio_wait", "zfs_read", "VOP_READ_APV", "sys_read")
    pool.tree(g.leaf().at_device(240)).waited_by(reader, 240)
    inside = [(writer, "zfs_rename"), (reader, "zfs_read")]
    for thread, function in inside:
        pool.holds(thread, function, zfsvfs, 4)
        m.view("proc", thread.obj["td_proc"])["p_flag"] |= m.constant("P_WKILLED")
        thread.obj["td_flags"] |= m.constant("TDF_ASTPENDING", 0x800)
    umount = m.procs.process("umount").thread(calls=("dounmount", "kern_unmount", "sys_unmount"))
    lock = m.view("rmslock", zfsvfs.at("z_teardown_lock"))
    m.locks.initialize(lock.sub("mtx"), "sleep mutex", "zfs teardown")
    m.write_pointer(lock.at("owner"), 1)
    lock.set(readers=2)
    if where == "teardown":
        lock["writers"] = 1
        wants(umount, lock, "writers", 180)
    elif where == "sync":
        block = pool.log_block(pool.tree(g.leaf("WRITE").at_device(240)))
        pool.commits(umount, block)
    else:
        directory.lock.slept_on_by(umount)
    busy = m.procs.process("ls").thread(calls=("vfs_busy", "lookup", "namei", "sys_fstatat"))
    m.write_pointer(umount.local("dounmount", 32), mount)
    busy.sleeps(mount, "vfs_busy", seconds=170)
    late = m.procs.process("stat").thread(calls=("zfs_getattr", "VOP_GETATTR_APV"))
    if where == "teardown":
        wants(late, lock, "readers", 160)
    else:
        directory.lock.slept_on_by(late)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device" and cause["summary"].startswith("da0 has not returned")
    stuck = {t.tid for t in (writer, reader, umount, busy, late, threads["sync"])}
    assert set(cause["tids"]) == stuck and answer.data["residue"] == []


# The allocation throttle, and who issues the log


@pytest.mark.parametrize("osreldate", [1004000, 1201000, 1300139, 1402000, 1500068])
def test_a_write_without_a_slot_waits_for_those_that_have_allocated(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    m, pool = g.m, g.pool
    done = m.constant("ZIO_STAGE_DVA_ALLOCATE") << 1
    held = pool.zio("WRITE", size=4096).over(g.leaf("WRITE").at_device())
    held.obj["io_stage"] = done
    waiting = pool.zio("WRITE", size=4096)
    pool.throttled(waiting)
    user = g.thread("syncer")
    pool.zio().over(waiting).waited_by(user)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert cause["summary"] == "da0 has not returned 1 write" and user.tid in cause["tids"]
    assert "allocation throttle of pool tank" in answer.labels(user.tid)


@pytest.mark.parametrize("osreldate", [1201000, 1300139, 1402000, 1500068])
@pytest.mark.parametrize("block", [True, False])
def test_a_commit_whose_block_is_not_issued_waits_for_who_has_the_issuers_lock(
    osreldate: int, block: bool, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    m, pool = g.m, g.pool
    issuer = g.thread("first", "zil_lwb_write_issue", "zil_commit", "zfs_fsync")
    pool.tree(g.leaf().at_device()).waited_by(issuer)
    lwb = pool.log_block(pool.zio(), "OPENED")
    lwb.set(lwb_root_zio=0, lwb_write_zio=0)
    zilog = m.view("zilog", lwb["lwb_zilog"])
    pool.objset["os_zil"] = zilog
    lock = m.locks.sx("zilog->zl_issuer_lock", at=zilog.at("zl_issuer_lock"))
    lock.owned_by(issuer)
    user = g.thread("second", "zil_commit_waiter", "zil_commit", "zfs_fsync")
    pool.holds(user, "zil_commit", zilog)
    pool.commits(user, lwb if block else None)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["certainty"]) == ("device", "proven")
    assert f"{issuer.tid} first" in answer.labels(user.tid)


# The rest of ZFS's condition variables


@pytest.mark.parametrize("osreldate", [1201000, 1300139, 1402000, 1500068])
def test_a_synchronous_read_of_a_block_being_read_waits_for_that_read(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    m = g.m
    read = g.pool.zio("READ", size=4096).over(g.leaf().at_device())
    callback = m.new("arc_callback", arena="kva", acb_zio_head=read)
    cv, wmesg = 0, "acb->acb_wait_cv"
    if callback.has("acb_wait_cv"):
        cv = callback.at("acb_wait_cv")
    else:
        hdr = m.new("arc_buf_hdr", arena="kva")
        hdr["b_l1hdr.b_acb"] = callback
        cv, wmesg = hdr.at("b_l1hdr.b_cv"), "hdr->b_l1hdr.b_cv"
    user = g.thread("second", "arc_read", "dbuf_read", "zfs_read")
    g.pool.sleeps(user, cv, wmesg)
    answer = explain(m, tmp_path)
    assert only_cause(answer)["certainty"] == "proven"
    assert kinds(answer, user.tid) == ["thread", "zio", "zio", "bio", "provider"]


@pytest.mark.parametrize("osreldate", [903000, 1004000, 1402000, 1500068])
def test_a_wait_for_a_whole_log_waits_for_its_blocks_under_way(
    osreldate: int, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    m = g.m
    new = m.has("zilog", "zl_lwb_io_cv")
    root = g.pool.tree(g.leaf("WRITE").at_device())
    lwb = g.pool.log_block(root) if new else g.pool.old_log_block(root)
    zilog = m.view("zilog", lwb["lwb_zilog"])
    member = "zl_lwb_io_cv" if new else "zl_cv_batch[1]"
    wmesg = "zilog->zl_lwb_io_cv" if new else "zilog->zl_cv_batch[mybatch & 1]"
    user = g.thread("fsync", "zil_commit", "zfs_fsync")
    g.pool.sleeps(user, zilog.at(member), wmesg)
    answer = explain(m, tmp_path)
    assert only_cause(answer)["kind"] == "device"
    assert answer.labels(user.tid)[1] == "log of tank"


@pytest.mark.parametrize("osreldate", [903000, 1201000, 1402000, 1500068])
@pytest.mark.parametrize("wait", ["quiesced", "holds"])
def test_who_waits_for_the_next_group_waits_for_the_one_that_syncs(
    osreldate: int, wait: str, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    threads = g.pool.threads()
    g.pool.idle(threads["quiesce"], "quiesce")
    g.pool.tree(g.leaf("WRITE").at_device()).waited_by(threads["sync"])
    user = g.thread("user", "txg_wait_open", "dmu_tx_wait", "zfs_write")
    if wait == "quiesced":
        g.pool.sleeps(user, g.pool.tx.at("tx_quiesce_done_cv"), "tx->tx_quiesce_done_cv")
    else:
        dnode = g.m.new("dnode", arena="kva", dn_objset=g.pool.objset)
        g.pool.sleeps(user, dnode.at("dn_notxholds"), "dn->dn_notxholds")
    answer = explain(g.m, tmp_path)
    assert set(only_cause(answer)["tids"]) == {user.tid, threads["sync"].tid}


@pytest.mark.parametrize("osreldate", [1201000, 1300139, 1402000, 1500068])
@pytest.mark.parametrize("work", ["scrub", "initialize", "trim"])
def test_work_on_a_vdev_waits_for_its_io_under_way(
    osreldate: int, work: str, tmp_path: Path
) -> None:
    g = Ground(osreldate)
    if work == "trim" and not g.m.has("vdev", "vdev_trim_io_cv"):
        pytest.skip("no TRIM thread yet")
    g.leaf().at_device()
    thing, member = g.vdev.obj, f"vdev_{work}_io_cv"
    if work == "scrub":
        thing, member = g.pool.spa, "spa_scrub_io_cv"
    worker = g.m.procs.kthread("work", "zfskern", ("zfs_example", "fork_exit"))
    prefix = "spa" if work == "scrub" else "vd"
    g.pool.sleeps(worker, thing.at(member), f"{prefix}->{member}")
    answer = explain(g.m, tmp_path)
    cause = only_cause(answer)
    assert cause["summary"] == "da0 has not returned 1 read" and cause["tids"] == [worker.tid]
    assert "queue of vdev da0" in answer.labels(worker.tid)


# In a module, without debug information: each of them


def _in_module(g: Ground, name: str) -> Any:
    pool, m = g.pool, g.m
    user = g.thread("user", "zil_commit", "zfs_fsync")
    if name == "log":
        pool.commits(user, pool.log_block(pool.tree(g.leaf("WRITE").at_device())))
    elif name == "buffer":
        pool.zio("READ").about(54, 17, 26).over(g.leaf().about(54, 17, 26).at_device())
        pool.sleeps(user, pool.dbuf(17, 26).at("db_changed"), "db->db_changed")
    elif name == "throttle":
        held = pool.zio("WRITE", size=4096).over(g.leaf("WRITE").at_device())
        held.obj["io_stage"] = m.constant("ZIO_STAGE_DVA_ALLOCATE") << 1
        waiting = pool.zio("WRITE", size=4096)
        pool.throttled(waiting)
        pool.zio().over(waiting).waited_by(user)
    else:
        holder = g.thread("holder", "zio_wait", "zfs_write", "vn_write")
        pool.tree(g.leaf().at_device()).waited_by(holder)
        if name == "range":
            locked = pool.locked_range(0, 4096)
            pool.holds(holder, "zfs_write", locked, 4)
            pool.waits_for_range(user, locked)
        elif name == "config lock":
            lock = pool.config_lock(4)
            lock["scl_writer"] = holder
            pool.sleeps(user, lock.at("scl_cv"), "scl->scl_cv")
        else:
            lock = pool.dsl_pool.sub("dp_config_rwlock")
            lock["rr_writer"] = holder
            pool.sleeps(user, lock.at("rr_cv"), "rrl->rr_cv")
    return user


@pytest.mark.parametrize(
    "name", ["log", "buffer", "throttle", "range", "config lock", "reader-writer lock"]
)
@pytest.mark.parametrize("osreldate", [1201000, 1402000])
def test_each_wait_in_a_module_known_from_memory_alone_ends_as_in_a_kernel_with_zfs(
    osreldate: int, name: str, tmp_path: Path
) -> None:
    told = []
    for module in (False, True):
        g = Ground(osreldate, module=module)
        user = _in_module(g, name)
        answer = explain(g.m, tmp_path / str(module))
        cause = answer.cause_of(user.tid)
        assert cause is not None and cause["kind"] == "device"
        told.append((answer.verdict, cause["certainty"], kinds(answer, user.tid)))
    assert told[0] == told[1]
