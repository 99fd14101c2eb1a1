"""The kinds of wait on machines nobody planned: other messages, locks, versions, architectures.

Each state was diagnosed in public and is rebuilt from what its report or its fix says (most have
a name in plugin/waits/known.yaml); the reports' own dumps are not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Sequence

import pytest
from test_why_stuck import Answer, check_contract, explain

from tests.forge.bufs import BIO_WRITE
from tests.forge.files import device
from tests.forge.machine import Machine
from tests.forge.nfs import NfsMount
from tests.forge.procs import Thread
from tests.forge.tasks import TaskQueue, epoch
from tests.forge.zfs import Pool

MNTK_SUSPEND = 0x08000000


def thread(m: Machine, comm: str, *calls: str) -> Thread:
    made: Thread = m.procs.process(comm).thread(calls=calls or ("kern_example", "sys_example"))
    return made


def points(m: Machine, who: Thread, function: str, thing: Any) -> None:
    """A local variable of that function points at the thing, as an argument's copy does."""
    m.write_pointer(who.local(function, 24), thing)


def the_cause(answer: Answer) -> Dict[str, Any]:
    check_contract(answer)
    cause: Dict[str, Any]
    (cause,) = answer.causes
    assert answer.data["residue"] == []
    return cause


def a_deadlock_of(answer: Answer, *threads: Thread, sure: bool = True) -> Dict[str, Any]:
    cause = the_cause(answer)
    assert cause["kind"] == "deadlock"
    assert set(cause["tids"]) >= {each.tid for each in threads}
    assert (cause["certainty"] != "guessed") == sure
    assert answer.verdict.startswith("Deadlock" if sure else "Probably a deadlock")
    return cause


# Pages, ranges, memory


@pytest.mark.parametrize("variant", [(), ("INVARIANTS",)])
def test_a_rollback_that_purges_pages_meets_the_fault_that_wants_its_teardown_lock(
    variant: Sequence[str], tmp_path: Path
) -> None:
    """INVARIANTS kernels record who busied a page; elsewhere its stack has to tell."""
    m = Machine(1402000, "amd64", variant)
    teardown = m.locks.rmslock("zfs teardown")
    pages = m.vfs.vnode(m.vfs.mount("zfs", "/tank", "tank")).object(16)
    rollback = thread(m, "zfs", "vn_pages_remove", "zfs_rezget", "zfs_resume_fs")
    fault = thread(m, "mmapper", "zfs_freebsd_getpages", "vnode_pager_getpages", "vm_fault")
    teardown.owned_by(rollback)
    page = pages.page(3, valid=0).busied(fault)
    points(m, fault, "vm_fault", page)
    teardown.slept_on_by(fault, shared=True, seconds=300)
    page.slept_on_by(rollback, "vmopar", seconds=299)
    a_deadlock_of(explain(m, tmp_path), rollback, fault, sure=bool(variant))


def test_a_write_and_a_fault_take_range_lock_and_busy_page_in_two_orders(tmp_path: Path) -> None:
    m = Machine(1201000, "amd64")
    pages = m.vfs.vnode(m.vfs.mount("zfs", "/tank", "tank")).object(16)
    pool = Pool(m, "tank")
    fault = thread(m, "mmap", "zfs_rangelock_enter_reader", "zfs_getpages", "vm_fault")
    writer = thread(m, "dd", "page_busy", "update_pages", "zfs_write")
    page = pages.page(2, valid=0).busied()
    points(m, fault, "vm_fault", page)
    held = pool.locked_range(0, 131072)
    pool.holds(writer, "zfs_write", held)
    pool.waits_for_range(fault, held)
    page.slept_on_by(writer, "zfsmwb", seconds=50)
    a_deadlock_of(explain(m, tmp_path), fault, writer, sure=False)


def test_a_page_that_its_owner_left_busy_is_a_leak_not_a_wait_for_the_world(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "amd64", ("INVARIANTS",))
    pages = m.vfs.vnode(m.vfs.mount("ufs", "/data", "/dev/da0p1")).object(16)
    gone, waiter = thread(m, "gone"), thread(m, "cp", "vm_fault")
    page = pages.page(2, valid=0).busied(gone)
    gone.sleeps(m.take(8), "select", interruptible=True, seconds=10)
    page.slept_on_by(waiter, "vmpfw", seconds=800)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert (cause["kind"], cause["certainty"], cause["tids"]) == ("leak", "guessed", [waiter.tid])
    assert f"was left busy by {gone.tid} gone" in cause["summary"]
    assert "No deadlock." not in answer.verdict


# File systems


def test_a_snapshot_and_a_suspension_wait_for_each_other(tmp_path: Path) -> None:
    m = Machine(1500068, "amd64")
    mount = m.vfs.ffs("/home", m.geom.vfs(m.geom.disk("nda", 0, mediasize=1 << 30).provider))
    snapshot = thread(m, "mksnap_ffs", "vn_start_write", "ffs_snapshot")
    grower = thread(m, "growfs", "ffs_copyonwrite", "bufwrite", "ffs_sync", "vfs_write_suspend")
    lock = m.locks.lockmgr("snaplk")
    lock.owned_by(snapshot)
    lock.slept_on_by(grower, seconds=400)
    mount.obj.set(mnt_susp_owner=grower, mnt_kern_flag=MNTK_SUSPEND)
    snapshot.sleeps(mount.obj.at("mnt_flag"), "suspfs", seconds=410)
    a_deadlock_of(explain(m, tmp_path), snapshot, grower)


def test_growfs_that_writes_to_what_it_has_suspended_waits_for_itself(tmp_path: Path) -> None:
    m = Machine(1402000, "i386")
    mount = m.vfs.ffs("/var", m.geom.vfs(m.geom.disk("ada", 0, mediasize=1 << 30).provider))
    grower = thread(m, "growfs", "vn_start_write", "vn_write", "dofilewrite")
    mount.obj.set(mnt_susp_owner=grower, mnt_kern_flag=MNTK_SUSPEND)
    writers = [thread(m, f"logger{n}", "vn_start_write", "vn_write") for n in range(3)]
    for each in (grower, *writers):
        each.sleeps(mount.obj.at("mnt_flag"), "suspfs", seconds=410)
    answer = explain(m, tmp_path)
    assert len(a_deadlock_of(answer, grower)["tids"]) == 4
    assert "1 thread in it, 3 more behind it" in answer.verdict


def test_a_rename_that_waits_for_the_unmount_holds_the_vnode_that_the_unmount_wants(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "arm64")
    mount = m.vfs.mount("tmpfs", "/tmp", "tmpfs")
    vnode = m.vfs.vnode(mount)
    rename = thread(m, "mv", "vfs_busy", "tmpfs_rename", "VOP_RENAME_APV")
    unmount = thread(m, "umount", "vflush", "tmpfs_unmount", "dounmount", "kern_unmount")
    points(m, unmount, "dounmount", mount)
    vnode.lock.owned_by(rename)
    vnode.lock.slept_on_by(unmount, seconds=200)
    rename.sleeps(mount, "vfs_busy", seconds=210)
    a_deadlock_of(explain(m, tmp_path), rename, unmount, sure=False)


def test_soft_updates_wait_for_the_flusher_that_wants_the_vnode(tmp_path: Path) -> None:
    m = Machine(1201000, "amd64")
    mount = m.vfs.ffs("/usr", m.geom.vfs(m.geom.disk("ada", 0, mediasize=1 << 30).provider))
    vnode = m.vfs.vnode(mount)
    user = thread(m, "rm", "request_cleanup", "softdep_request_cleanup", "ffs_truncate")
    flusher = m.procs.kthread("/usr worker", "bufdaemon", ("ffs_vgetf", "softdep_flush"))
    vnode.lock.owned_by(user)
    user.sleeps(m.symbol("proc_waiting", size=4, static=True).address, "softupdate", seconds=120)
    vnode.lock.slept_on_by(flusher, seconds=110)
    a_deadlock_of(explain(m, tmp_path), user, flusher)


def test_an_md_worker_that_waits_for_running_space_is_who_would_free_it(tmp_path: Path) -> None:
    m = Machine(1500068, "amd64")
    provider = m.geom.new_provider(m.geom.geom("MD", "md0"), "md0", 1 << 28, 512)
    mount = m.vfs.ffs("/mnt", m.geom.vfs(provider))
    vnode = m.vfs.vnode(mount)
    worker = m.procs.kthread("md0", calls=("bufwrite", "ffs_write", "mdstart_vnode", "md_kthread"))
    writers = [thread(m, f"writer{n}", "bufwrite", "ffs_write") for n in range(3)]
    for n in range(3):
        m.bufs.start(m.bufs.buf(vnode, n, blkno=64 * n, cmd=BIO_WRITE), mount, seconds=100)
    m.assign("lorunningspace", 16384)
    for each in (worker, *writers):
        each.sleeps(m.address_of("runningbufreq"), "wdrain", seconds=90)
    a_deadlock_of(explain(m, tmp_path), worker, *writers, sure=False)


# Requests


def test_requests_that_a_mirror_keeps_while_its_thread_rests_are_one_lost_wakeup(
    tmp_path: Path,
) -> None:
    m = Machine(1201000, "amd64")
    disks = [m.geom.disk("ada", n, mediasize=1 << 30) for n in range(2)]
    mirror = m.geom.mirror("gm0", disks)
    mount = m.vfs.ffs("/data", m.geom.vfs(mirror.provider("mirror/gm0")))
    worker = m.procs.process("g_mirror gm0", kernel=True).thread(calls=("g_mirror_worker",))
    worker.sleeps(m.take(64), "m:w1", seconds=500)
    vnode = m.vfs.vnode(mount)
    for n in range(3):
        reader = thread(m, f"reader{n}", "bread", "ffs_read")
        buf = m.bufs.buf(vnode, n, blkno=64 * n, owner=reader)
        m.bufs.start(buf, mount, seconds=500).down_to("mirror/gm0")
        buf.waited_by(reader, "biord", seconds=500)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], cause["certainty"], len(cause["tids"])) == ("lost-wakeup", "guessed", 3)
    assert "mirror/gm0 (/data): MIRROR holds 3 requests" in cause["summary"]
    assert f"its thread rests ({worker.tid} g_mirror gm0)" in cause["summary"]


def test_a_forced_unmount_behind_a_reader_of_a_dead_server_waits_for_the_server(
    tmp_path: Path,
) -> None:
    m = Machine(1201000, "amd64")
    nfs = NfsMount(m, "/net", "filer", "10.0.0.7")
    reader = thread(m, "ls", "nfs_statfs", "vfs_statfs", "kern_statfs")
    points(m, reader, "kern_statfs", nfs.mount)
    nfs.request(reader, seconds=900)
    unmount = thread(m, "umount", "dounmount", "sys_unmount")
    points(m, unmount, "dounmount", nfs.mount)
    nfs.mount.obj.probe(mnt_lockref=1)
    unmount.sleeps(nfs.mount.obj.at("mnt_lockref"), "mount drain", seconds=800)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], len(cause["tids"])) == ("external", 2)
    assert "filer:/net on /net (10.0.0.7:2049)" in cause["summary"]


def test_nfsd_threads_behind_a_client_to_be_confirmed_wait_for_the_long_copy(
    tmp_path: Path,
) -> None:
    """Not a deadlock: who wants the lock alone keeps all others out until the copy is done."""
    m = Machine(1500068, "arm64")
    root = m.symbol("nfsv4rootfs_lock", "nfsv4lock")
    root.set(nfslock_lock=2, nfslock_usecnt=1)
    nfsd = m.procs.process("nfsd")
    copy = nfsd.thread("nfsd: service", calls=("vn_generic_copy_file_range", "nfsrvd_dorpc"))
    copy.runs_on(0)
    waiting = [nfsd.thread("nfsd: service", calls=("nfsrvd_exchangeid", "nfsrvd_dorpc"))]
    waiting[0].sleeps(root.at("nfslock_lock"), "nfsv4lck", seconds=80)
    for _ in range(6):
        waiting.append(nfsd.thread("nfsd: service", calls=("nfsrvd_compound", "nfsrvd_dorpc")))
        waiting[-1].sleeps(root.at("nfslock_lock"), "nfsv4gr", seconds=79)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], len(cause["tids"])) == ("running", 7)
    assert f"{copy.tid} nfsd" in cause["summary"]


def test_a_reference_to_the_state_lock_that_only_its_waiters_can_have_is_no_calm_end(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "amd64")
    lock = NfsMount(m, "/net", "filer", "10.0.0.7").state_lock()
    lock.set(nfslock_lock=2, nfslock_usecnt=1)
    first = thread(m, "make", "nfsv4_getref", "nfscl_open", "nfs_open")
    second = thread(m, "rm", "nfsv4_lock", "nfscl_delegreturn", "nfs_remove")
    first.sleeps(lock.at("nfslock_lock"), "nfsv4gr", seconds=700)
    second.sleeps(lock.at("nfslock_lock"), "nfsv4lck", seconds=690)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert (cause["kind"], cause["certainty"], len(cause["tids"])) == ("leak", "guessed", 2)
    assert "has 1 reference" in cause["summary"]
    assert answer.verdict.startswith("Probably") and "No deadlock." not in answer.verdict


# Draining


@pytest.mark.parametrize("osreldate, wmesg", [(1201000, "-"), (1500068, "tq_drain")])
def test_a_task_that_drains_its_own_queue_waits_for_itself(
    osreldate: int, wmesg: str, tmp_path: Path
) -> None:
    """Up to 12.x a drain sleeps in "-", as a worker without a task does."""
    m = Machine(osreldate, "amd64")
    queue = TaskQueue(m, "thread taskq")
    queue.run("prison_complete")
    behind = queue.queue("vlan_task")
    worker = queue.workers[0]
    worker.call("taskqueue_drain", "vlan_clone_destroy", "vnet_destroy", "prison_deref")
    worker.sleeps(behind, wmesg, seconds=500)
    a_deadlock_of(explain(m, tmp_path), worker)


def test_destroy_dev_called_from_the_devices_own_close_waits_for_itself(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    dev = device(m, "mydev0")
    dev["si_threadcount"] = 1
    closer = thread(m, "cat", "destroy_devl", "destroy_dev", "mydrv_close", "devfs_close")
    points(m, closer, "devfs_close", dev)
    closer.sleeps(m.take(8), "devdrn", seconds=300, timeout=0.1)
    a_deadlock_of(explain(m, tmp_path), closer, sure=False)


def test_a_detach_waits_for_the_ioctl_that_wants_the_detachers_sx(tmp_path: Path) -> None:
    m = Machine(1200086, "i386")
    dev = device(m, "usb/1.2.0")
    dev["si_threadcount"] = 1
    lock = m.locks.sx("USB config SX lock")
    explorer = m.procs.kthread("usbus0", "usb", ("destroy_devl", "usb_unconfigure"))
    points(m, explorer, "destroy_devl", dev)
    lock.owned_by(explorer)
    user = thread(m, "usbconfig", "usbd_enum_lock", "usb_ioctl", "devfs_ioctl_f")
    points(m, user, "devfs_ioctl_f", dev)
    lock.slept_on_by(user, seconds=290)
    explorer.sleeps(m.take(8), "devdrn", seconds=300, timeout=0.1)
    a_deadlock_of(explain(m, tmp_path), explorer, user, sure=False)


def test_who_waits_for_an_epoch_without_sleeping_waits_for_the_sleeper_inside(
    tmp_path: Path,
) -> None:
    m = Machine(1201000, "amd64")
    lock = m.locks.sx("in6_multi_sx")
    inside = thread(m, "ifconfig", "in6_leavegroup", "in6_purgeaddr", "if_detach_internal")
    net = epoch(m, "Net preemptible", inside)
    waiter = thread(m, "dhclient", "epoch_wait_preempt", "vlan_setmulti", "vlan_ioctl")
    points(m, waiter, "epoch_wait_preempt", net)
    lock.owned_by(waiter)
    lock.slept_on_by(inside, seconds=60)
    waiter.runnable(0)
    a_deadlock_of(explain(m, tmp_path), waiter, inside)


def test_an_epoch_whose_threads_all_run_keeps_nobody_stuck(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    inside = thread(m, "if_io_tqg_0", "ether_input")
    net = epoch(m, "net_epoch", inside)
    waiter = thread(m, "dhclient", "epoch_wait_preempt", "vlan_ioctl")
    points(m, waiter, "epoch_wait_preempt", net)
    inside.runs_on(1)
    waiter.runnable(0)
    assert explain(m, tmp_path).data["threads"]["stuck"] == 0


def test_an_exit_that_waits_for_a_hold_that_nobody_has_has_met_a_leak(tmp_path: Path) -> None:
    m = Machine(1500068, "amd64")
    victim = m.procs.process("victim")
    victim.obj["p_lock"] = 1
    exiting = victim.thread(calls=("exit1", "sys_exit"))
    exiting.sleeps(victim.obj.at("p_lock"), "exithold", seconds=500)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], cause["certainty"], cause["tids"]) == ("leak", "guessed", [exiting.tid])
    assert "1 hold of process" in cause["summary"] and "no thread inside" in cause["summary"]


def test_an_exec_without_room_for_its_arguments_is_who_the_other_exec_waits_for(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "arm64")
    process = m.procs.process("java")
    asking = process.thread(calls=("exec_alloc_args_kva", "exec_alloc_args", "kern_execve"))
    alone = process.thread(calls=("thread_single", "kern_execve", "sys_execve"))
    room = m.symbol("exec_args_kva_freelist", size=8, static=True).address
    asking.sleeps(room, "execkva", seconds=600)
    process.obj["p_singlethread"] = alone
    alone.suspended()
    a_deadlock_of(explain(m, tmp_path), asking, alone, sure=False)


@pytest.mark.parametrize("osreldate, timeout", [(1201000, None), (1402000, 1.0)])
def test_a_rendezvous_of_virtual_cpus_that_does_not_come_about_is_not_calm(
    osreldate: int, timeout: Any, tmp_path: Path
) -> None:
    m = Machine(osreldate, "amd64")
    guest, vcpu = m.procs.process("bhyve"), m.take(4096)
    first = guest.thread("vcpu 0", calls=("vm_handle_rendezvous", "vioapic_mmio_write", "vm_run"))
    points(m, first, "vm_run", vcpu)
    other = guest.thread("vcpu 1", calls=("vcpu_lock_one", "vcpu_lock_all", "vmmdev_ioctl"))
    first.sleeps(m.take(64), "vmrndv", seconds=0.5 if timeout else 120, timeout=timeout)
    other.sleeps(vcpu + 512, "vmstat", seconds=0.5, timeout=1.0)
    a_deadlock_of(explain(m, tmp_path), first, other, sure=False)


# What looks idle


def test_a_service_that_sleeps_deep_in_its_work_is_not_without_work(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    calls = ("vnops_wait", "helper_three", "helper_two", "helper_one", "audit_worker")
    worker = m.procs.kthread("audit", calls=calls)
    worker.sleeps(m.take(8), "audit_worker_cv", seconds=600)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["residue"] == [worker.tid]
    assert "it is at work in vnops_wait()" in answer.text


@pytest.mark.parametrize("wmesg, member", [("select", "td_lk_slocks"), ("rpcsvc", "td_sx_slocks")])
def test_who_waits_for_the_world_with_a_lock_held_is_not_calm(
    wmesg: str, member: str, tmp_path: Path
) -> None:
    m = Machine(1402000, "amd64")
    holder = thread(m, "daemon")
    holder.sleeps(m.take(8), wmesg, seconds=600, interruptible=True)
    holder.obj[member] = 1
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["residue"] == [holder.tid]
    assert f"it holds a lock meanwhile ({member} 1)" in answer.text
    assert "No thread is stuck" not in answer.verdict


@pytest.mark.parametrize("interruptible, residue", [(True, 0), (False, 1)])
def test_a_process_that_no_signal_ends_does_not_wait_for_the_world(
    interruptible: bool, residue: int, tmp_path: Path
) -> None:
    m = Machine(1402000, "amd64")
    user = thread(m, "daemon")
    user.sleeps(m.take(8), "bpf", seconds=600, interruptible=interruptible)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert len(answer.data["residue"]) == residue
    assert ("No thread is stuck." in answer.verdict) == interruptible
