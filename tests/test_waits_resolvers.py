"""What each kind of wait is followed to: buffers, pages, mounts, GEOM, ZFS, daemons, peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from test_why_stuck import Answer, check_contract, explain, thread

from plugin.opening import open_core
from tests.forge.bufs import BIO_READ, BIO_WRITE
from tests.forge.machine import Machine
from tests.forge.procs import SLEEPQ_CONDVAR


class Storage:
    """A machine with one disk, da0, and a file system on it at /data."""

    def __init__(self, osreldate: int = 1402000, arch: str = "amd64", **how: Any) -> None:
        self.m = Machine(osreldate, arch, **how)
        self.disk = self.m.geom.disk("da", 0, mediasize=1 << 30)
        self.mount = self.m.vfs.ffs("/data", self.m.geom.vfs(self.disk.provider))
        self.vnode = self.m.vfs.vnode(self.mount)

    def thread(self, comm: str = "user", *calls: str) -> Any:
        return self.m.procs.process(comm).thread(calls=calls or ("kern_example", "sys_example"))

    def buf(self, cmd: int = BIO_READ, owner: Any = None) -> Any:
        return self.m.bufs.buf(self.vnode, 0, blkno=64, cmd=cmd, owner=owner)

    def at_device(self, buf: Any) -> None:
        for bio in self.m.bufs.start(buf, self.mount, seconds=120).to_device():
            assert bio is not None


@pytest.fixture
def storage() -> Storage:
    return Storage()


def only_cause(answer: Answer) -> Dict[str, Any]:
    check_contract(answer)
    cause: Dict[str, Any]
    (cause,) = answer.causes
    return cause


# Buffers and their I/O


@pytest.mark.parametrize(
    "osreldate, arch",
    [(700014, "i386"), (1004000, "amd64"), (1201000, "amd64"), (1500068, "amd64")],
)
def test_a_reader_in_biord_waits_for_the_disk_that_has_its_bio(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    s = Storage(osreldate, arch)
    reader = s.thread("reader")
    buf = s.buf(owner=reader)
    s.at_device(buf)
    buf.waited_by(reader, "biord", seconds=110)
    answer = explain(s.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device"
    assert cause["summary"] == "da0 (/data) has not returned 1 read"
    kinds = [answer.nodes[id]["kind"] for id in answer.chain_of(reader.tid)["path"]]
    assert kinds == ["thread", "buf", "bio", "provider"]


@pytest.mark.parametrize(
    "osreldate, arch",
    [(700014, "i386"), (1004000, "amd64"), (1201000, "amd64"), (1402000, "arm64")],
)
def test_a_reader_whose_buffer_is_part_of_a_cluster_waits_for_the_clusters_io(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    s = Storage(osreldate, arch)
    first, second = s.thread("first"), s.thread("second")
    bufs = [
        s.m.bufs.buf(s.vnode, number, blkno=64 + number * 32, owner=owner)
        for number, owner in enumerate((first, second))
    ]
    s.at_device(s.m.bufs.cluster(bufs))
    for buf, reader in zip(bufs, (first, second)):
        buf.waited_by(reader, "biord", seconds=110)
    answer = explain(s.m, tmp_path)
    cause = only_cause(answer)
    assert cause["summary"] == "da0 (/data) has not returned 1 read"
    assert (len(cause["tids"]), cause["certainty"]) == (2, "proven")
    kinds = [answer.nodes[id]["kind"] for id in answer.chain_of(second.tid)["path"]]
    assert kinds == ["thread", "buf", "buf", "bio", "provider"]


def test_links_that_an_earlier_cluster_left_in_a_buffer_lead_nowhere(
    storage: Storage, tmp_path: Path
) -> None:
    reader = storage.thread("reader")
    buf, other = storage.buf(owner=reader), storage.buf()
    cluster = storage.m.bufs.cluster([other])
    storage.at_device(cluster)
    # b_cluster still points at the pbuf, whose list begins with another buffer by now.
    at = buf.obj.at("b_cluster") + storage.m.pointer_size
    storage.m.write_pointer(at, cluster.obj.at("b_cluster"))
    buf.waited_by(reader, "biord", seconds=110)
    answer = explain(storage.m, tmp_path)
    check_contract(answer)
    assert (answer.causes, answer.data["residue"]) == ([], [reader.tid])
    assert "no bio for it was found" in answer.text


def test_a_buffer_that_is_done_with_a_sleeper_on_it_is_a_lost_wakeup(
    storage: Storage, tmp_path: Path
) -> None:
    reader = storage.thread("reader")
    buf = storage.buf(owner=reader)
    buf.obj["b_flags"] = buf.obj["b_flags"] | 0x200
    buf.waited_by(reader, "biord", seconds=110)
    cause = only_cause(explain(storage.m, tmp_path))
    assert cause["kind"] == "lost-wakeup"
    assert "B_DONE" in cause["evidence"]


def test_a_buffer_lock_that_the_io_holds_leads_to_the_io(storage: Storage, tmp_path: Path) -> None:
    buf = storage.buf(BIO_WRITE)
    storage.at_device(buf)
    buf.lock.owned_by_io()
    waiter = storage.thread("getblk")
    buf.lock.slept_on_by(waiter, wmesg="getblk", seconds=90)
    answer = explain(storage.m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["tids"]) == ("device", [waiter.tid])
    kinds = [answer.nodes[id]["kind"] for id in answer.chain_of(waiter.tid)["path"]]
    assert kinds == ["thread", "lock", "buf", "bio", "provider"]


def test_writers_in_wdrain_wait_for_the_writes_under_way(storage: Storage, tmp_path: Path) -> None:
    m = storage.m
    for _ in range(3):
        storage.at_device(storage.buf(BIO_WRITE))
    m.assign("lorunningspace", 16384)
    writer = storage.thread("writer")
    writer.sleeps(m.address_of("runningbufreq"), "wdrain", seconds=60)
    answer = explain(m, tmp_path)
    assert only_cause(answer)["kind"] == "device"
    assert "runningbufspace" in answer.labels(writer.tid)


def test_writes_that_have_drained_while_writers_sleep_are_a_lost_wakeup(
    storage: Storage, tmp_path: Path
) -> None:
    m = storage.m
    m.assign("lorunningspace", 1 << 20)
    storage.thread("writer").sleeps(m.address_of("runningbufreq"), "wdrain", seconds=60)
    assert only_cause(explain(m, tmp_path))["kind"] == "lost-wakeup"


def memory_disk(m: Machine) -> Any:
    """md0: a GEOM class of its own at the bottom, with a thread that does its work."""
    geom = m.geom.geom("MD", "md0")
    provider = m.geom.new_provider(geom, "md0", 1 << 28, 512)
    return m.geom.request(m.geom.vfs(provider), BIO_WRITE, 0, 16384)


def test_a_request_of_a_memory_disk_leads_to_its_thread_and_what_that_waits_for(
    tmp_path: Path,
) -> None:
    m = Machine(1402000)
    bio = memory_disk(m)
    worker = m.procs.kthread("md0")
    lock = m.locks.sx("backing file")
    holder = m.procs.process("holder").thread(calls=("kern_example", "sys_example"))
    lock.owned_by(holder)
    holder.runs_on(0)
    lock.slept_on_by(worker)
    waiter = m.procs.process("waiter").thread(calls=("biowait", "sys_example"))
    waiter.sleeps(int(bio), "biowr", seconds=60)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "running"
    assert sorted(cause["tids"]) == sorted([waiter.tid, worker.tid])


def test_a_memory_disk_whose_thread_waits_for_work_is_named_as_what_has_the_request(
    tmp_path: Path,
) -> None:
    m = Machine(1402000)
    bio = memory_disk(m)
    worker = m.procs.kthread("md0")
    worker.sleeps(m.take(8), "mdwait", seconds=60)
    waiter = m.procs.process("waiter").thread(calls=("biowait", "sys_example"))
    waiter.sleeps(int(bio), "biowr", seconds=60)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "device"
    assert "md0" in cause["summary"]


def test_a_request_that_geli_has_leads_to_gelis_thread(storage: Storage, tmp_path: Path) -> None:
    m = storage.m
    eli = m.geom.eli(m.geom.disk("da", 1, mediasize=1 << 30))
    bio = m.geom.request(m.geom.vfs(eli.providers[0]), BIO_WRITE, 0, 16384)
    worker = m.procs.kthread("g_eli[0] da1")
    lock = m.locks.mutex("crypto")
    holder = storage.thread("holder")
    lock.owned_by(holder)
    holder.runs_on(0)
    worker.blocks_on(lock)
    waiter = storage.thread("waiter", "biowait")
    waiter.sleeps(int(bio), "biowr", seconds=60)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "running"
    assert sorted(cause["tids"]) == sorted([waiter.tid, worker.tid])


# Pages and objects


def test_a_page_being_read_leads_to_its_buffer_and_the_disk(
    storage: Storage, tmp_path: Path
) -> None:
    m = storage.m
    page = storage.vnode.object(16).page(0, valid=0, queue=None).busied()
    storage.at_device(m.bufs.pbuf("vnpbuf", cmd=BIO_READ, pages=[page]))
    faulter = storage.thread("faulter", "vm_fault", "trap_pfault")
    page.slept_on_by(faulter, "vmpfw", seconds=45)
    answer = explain(m, tmp_path)
    assert only_cause(answer)["kind"] == "device"
    kinds = [answer.nodes[id]["kind"] for id in answer.chain_of(faulter.tid)["path"]]
    assert kinds == ["thread", "page", "buf", "bio", "provider"]
    assert answer.chain_of(faulter.tid)["certainty"] == "proven"


def test_the_end_of_a_mapping_waits_for_the_reads_of_its_object(
    storage: Storage, tmp_path: Path
) -> None:
    m = storage.m
    found = storage.vnode.object(16).paging(1)
    page = found.page(0, valid=0, queue=None).busied()
    storage.at_device(m.bufs.pbuf("vnpbuf", cmd=BIO_READ, pages=[page]))
    waiter = storage.thread("unlink")
    waiter.sleeps(found.obj.at("paging_in_progress"), "objtrm", seconds=45)
    answer = explain(m, tmp_path)
    assert only_cause(answer)["kind"] == "device"
    assert answer.nodes[answer.chain_of(waiter.tid)["path"][1]]["kind"] == "object"


def test_an_object_with_no_paging_left_is_a_lost_wakeup(storage: Storage, tmp_path: Path) -> None:
    m = storage.m
    found = storage.vnode.object(16)
    waiter = storage.thread("unlink")
    waiter.sleeps(found.obj.at("paging_in_progress"), "objtrm", seconds=45)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "lost-wakeup"
    assert "no paging is in progress" in cause["summary"]


@pytest.mark.parametrize("osreldate, arch", [(1201000, "amd64"), (1402000, "arm64")])
def test_who_meets_a_dead_object_waits_for_who_ends_it_and_that_for_the_disk(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    s = Storage(osreldate, arch)
    found = s.vnode.object(16)
    ender, opener = s.thread("rm"), s.thread("open")
    buf = s.buf(BIO_WRITE, owner=ender)
    s.at_device(buf)
    ender.call("vm_object_terminate")
    s.m.write_pointer(ender.local("vm_object_terminate", 32), found.obj)
    buf.waited_by(ender, "biowr", seconds=100)
    opener.call("vnode_create_vobject", "ufs_open")
    opener.sleeps(found.obj, "vodead", seconds=90)
    answer = explain(s.m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], len(cause["tids"])) == ("device", 2)
    assert "da0" in cause["summary"]


def test_a_dead_object_that_nobody_ends_is_no_lost_wakeup(storage: Storage, tmp_path: Path) -> None:
    opener = storage.thread("open")
    opener.sleeps(storage.vnode.object(16).obj, "vadead", seconds=90)
    answer = explain(storage.m, tmp_path)
    assert (answer.causes, answer.data["residue"]) == ([], [opener.tid])
    assert "no thread that ends it was found" in answer.text


def test_ffsrca_that_retries_for_ever_waits_for_the_thread_that_cleans_up(
    storage: Storage, tmp_path: Path
) -> None:
    m = storage.m
    softdeps = m.new("mount_softdeps", sd_ump=m.take(512))
    cleaner = storage.thread("cleaner")
    cleaner.call("softdep_request_cleanup")
    m.write_pointer(cleaner.local("softdep_request_cleanup", 32), softdeps)
    buf = storage.buf(owner=cleaner)
    storage.at_device(buf)
    buf.waited_by(cleaner, "biord", seconds=300)
    writers = [storage.thread(f"writer{n}") for n in range(4)]
    for writer in writers:
        writer.call("softdep_request_cleanup", "ffs_alloc")
        writer.sleeps(softdeps.at("sd_flags"), "ffsrca", seconds=0.3, timeout=1.0)
    cause = only_cause(explain(m, tmp_path))
    assert (cause["kind"], len(cause["tids"])) == ("device", 5)


def test_ffsrca_without_anybody_who_cleans_up_is_stuck_all_the_same(
    storage: Storage, tmp_path: Path
) -> None:
    softdeps = storage.m.new("mount_softdeps")
    writer = storage.thread("writer")
    writer.call("softdep_request_cleanup", "ffs_alloc")
    writer.sleeps(softdeps.at("sd_flags"), "ffsrca", seconds=0.3, timeout=1.0)
    answer = explain(storage.m, tmp_path)
    assert answer.data["threads"]["stuck"] == 1
    assert "no thread does it" in answer.text


# Mounts


def test_a_suspended_file_system_waits_for_whoever_suspended_it(
    storage: Storage, tmp_path: Path
) -> None:
    m = storage.m
    snapshot, writer = storage.thread("mksnap"), storage.thread("writer")
    storage.mount.obj["mnt_kern_flag"] = m.constant("MNTK_SUSPEND", 0x08000000)
    storage.mount.obj["mnt_susp_owner"] = snapshot
    snapshot.runs_on(0)
    writer.sleeps(storage.mount.obj.at("mnt_flag"), "suspfs", seconds=30)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["tids"]) == ("running", [writer.tid])
    assert answer.labels(writer.tid)[1] == "mount /data (ufs)"
    assert answer.chain_of(writer.tid)["certainty"] == "proven"


def test_an_unmount_that_holds_up_vfs_busy_is_guessed_by_its_stack(
    storage: Storage, tmp_path: Path
) -> None:
    m = storage.m
    umount = storage.thread("umount", "dounmount", "kern_unmount", "sys_unmount")
    m.write_pointer(umount.local("dounmount", 24), storage.mount)
    umount.runs_on(0)
    df = storage.thread("df")
    df.sleeps(storage.mount, "vfs_busy", seconds=30)
    cause = only_cause(explain(m, tmp_path))
    assert (cause["kind"], cause["certainty"], cause["tids"]) == ("running", "guessed", [df.tid])


# GEOM


def test_g_down_asleep_on_a_full_queue_has_lost_its_wakeup(
    storage: Storage, tmp_path: Path
) -> None:
    reader = storage.thread("reader")
    buf = storage.buf(owner=reader)
    storage.m.bufs.start(buf, storage.mount, seconds=100).queued_down()
    buf.waited_by(reader, "biord", seconds=99)
    answer = explain(storage.m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "lost-wakeup"
    assert cause["summary"].startswith("g_down sleeps although ")
    assert "g_bio_run_down" in answer.labels(reader.tid)


def test_who_waits_for_a_geom_event_waits_for_g_event(storage: Storage, tmp_path: Path) -> None:
    m = storage.m
    event = m.geom.event("g_new_provider_event", storage.disk.provider)
    mount = storage.thread("mount")
    mount.sleeps(event, "g_waitfor_event", seconds=30)
    answer = explain(m, tmp_path)
    labels = answer.labels(mount.tid)
    assert labels[1] == "g_events"
    assert "g_event" in labels[2]
    # The g_event thread sleeps for work although there is some.
    assert only_cause(answer)["kind"] == "lost-wakeup"


# Limits


@pytest.mark.parametrize(
    "osreldate, arch",
    [(700014, "i386"), (1004000, "amd64"), (1201000, "amd64"), (1402000, "amd64")],
)
def test_a_zone_at_its_limit_is_named(osreldate: int, arch: str, tmp_path: Path) -> None:
    m = Machine(osreldate, arch)
    zone = m.uma.zone("example", 256, limit=16)
    for _ in range(16):
        zone.alloc()
    waiter = thread(m, "waiter")
    zone.waited_by(waiter, seconds=20)
    answer = explain(m, tmp_path)
    assert answer.labels(waiter.tid)[1] == 'zone "example"'


# Processes


def test_a_parent_that_waits_for_its_child_is_followed_but_not_stuck(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    parent, child = m.procs.process("sh"), m.procs.process("dd")
    child.parent = parent
    waiting, working = parent.thread(calls=("kern_wait6",)), child.thread(calls=("sys_read",))
    waiting.sleeps(parent, "wait", seconds=500, interruptible=True)
    working.sleeps(m.take(8), "exwait", seconds=400)
    answer = explain(m, tmp_path)
    assert answer.data["residue"] == [working.tid]
    shown = answer.run(str(waiting.tid))
    assert f"served by  {working.tid} dd" in shown


def test_a_process_that_wants_to_be_single_threaded_waits_for_its_stuck_thread(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "amd64")
    process = m.procs.process("exiting")
    leaving = process.thread("main", ("thread_single", "exit1", "sys_exit"))
    stuck = process.thread("worker", ("sys_read",))
    process.obj["p_singlethread"] = leaving
    leaving.suspended()
    stuck.sleeps(m.take(8), "exwait", seconds=400)
    answer = explain(m, tmp_path)
    (cause,) = answer.causes
    assert cause["tids"] == [leaving.tid]
    assert answer.data["residue"] == [stuck.tid]


def test_a_priority_inheritance_mutex_is_followed_to_the_owner_the_kernel_knows(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "amd64")
    owner, waiter = thread(m, "owner"), thread(m, "waiter")
    queue, pi = m.new("umtx_q"), m.new("umtx_pi")
    pi["pi_owner"] = owner
    queue["uq_pi_blocked"] = pi
    waiter.obj["td_umtxq"] = queue
    waiter.sleeps(queue, "umtxpi", seconds=60, interruptible=True)
    owner.sleeps(m.take(8), "exwait", seconds=90)
    answer = explain(m, tmp_path)
    (cause,) = answer.causes
    assert cause["tids"] == [waiter.tid]
    assert answer.chain_of(waiter.tid)["certainty"] == "proven"
    assert answer.labels(waiter.tid)[2] == f"{owner.tid} owner"


# Daemons and servers


def test_a_fuse_request_waits_for_the_daemon_whose_mount_it_is(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    data, other, ticket = m.take(512), m.take(512), m.take(512)
    m.write_pointer(ticket + 64, data)
    daemon, innocent = m.procs.process("sshfs"), m.procs.process("ntfs-3g")
    daemon.thread("reader", ("fuse_device_read",)).sleeps(data, "fu_msg", interruptible=True)
    worker = daemon.thread("worker", ("sys_write",))
    innocent.thread("", ("fuse_device_read",)).sleeps(other, "fu_msg", interruptible=True)
    worker.sleeps(m.take(8), "exwait", seconds=80)
    user = thread(m, "ls")
    user.sleeps(ticket, "fu_ans", seconds=70)
    answer = explain(m, tmp_path)
    assert answer.labels(user.tid)[2] == f"{worker.tid} sshfs/worker"
    assert answer.chain_of(user.tid)["certainty"] == "proven"


def test_an_nfs_request_ends_at_its_server(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    m.vfs.mount("nfs", "/home", "server:/home")
    user = thread(m, "ls")
    user.sleeps(m.take(64), "nfsreq", seconds=70)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "external"
    assert "the NFS server of server:/home on /home has not answered" in cause["summary"]


def _zfs(tmp_path: Path) -> Tuple[Machine, List[Any]]:
    m = Machine(1402000, "amd64")
    sync = m.procs.kthread("txg_thread_enter", "zfskern", ("zio_wait", "txg_sync_thread"))
    writer = m.procs.process("writer").thread(calls=("txg_wait_synced", "zfs_freebsd_fsync"))
    tx = m.take(512)
    writer.sleeps(tx, "tx->tx_sync_done_cv", kind=SLEEPQ_CONDVAR, seconds=50)
    sync.sleeps(m.take(512), "zio->io_cv", kind=SLEEPQ_CONDVAR, seconds=60)
    return m, [writer, sync]


def test_a_zfs_sync_waits_for_the_sync_thread_and_that_for_its_io(tmp_path: Path) -> None:
    m, (writer, sync) = _zfs(tmp_path)
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    bio = m.geom.request(
        m.geom.vfs(disk.provider, "zfs"), BIO_WRITE, 0, 8192, done="vdev_geom_io_intr", seconds=60
    )
    bio.to_device()
    answer = explain(m, tmp_path)
    (cause,) = answer.causes
    assert (cause["kind"], cause["certainty"]) == ("device", "guessed")
    assert set(cause["tids"]) == {writer.tid, sync.tid}


def test_a_suspended_pool_says_what_resumes_it(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    user = thread(m, "zfs")
    user.sleeps(m.take(512), "spa->spa_suspend_cv", kind=SLEEPQ_CONDVAR, seconds=60)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "external"
    assert "zpool clear resumes it" in cause["summary"]


def test_a_corrupt_lock_owner_and_a_wild_channel_crash_nothing(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    for wmesg in (
        "biord",
        "vmpfw",
        "suspfs",
        "zonelimit",
        "ufs",
        "physrd",
        "objtrm",
        "wswbuf0",
        "piperd",
        "fu_ans",
        "vmmaps",
        "bo_wwait",
        "rangelk",
        "vofflock",
        "wait",
    ):
        thread(m, wmesg).sleeps(0xDEAD00000000BEE0, wmesg, seconds=5)
    vmcore, kernel = m.write(tmp_path)
    answer = Answer(open_core(str(vmcore), str(kernel)), partial=True)
    assert answer.data["threads"]["stuck"] >= 10
    counted = [tid for cause in answer.causes for tid in cause["tids"]] + answer.data["residue"]
    assert len(counted) == len(set(counted)) == answer.data["threads"]["stuck"]
