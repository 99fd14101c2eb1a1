"""Draining: from whoever waits until others are out to those who are in, and on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
from test_why_stuck import Answer, check_contract, explain, thread

from tests.forge.files import device
from tests.forge.machine import Machine
from tests.forge.tasks import TaskQueue, callout_cpus, epoch

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1402000, "arm64"), (1402000, "i386")]


def kinds_of(answer: Answer, tid: int) -> List[str]:
    return [answer.nodes[id]["kind"] for id in answer.chain_of(tid)["path"]]


def the_cause(answer: Answer) -> Dict[str, Any]:
    check_contract(answer)
    cause: Dict[str, Any]
    (cause,) = answer.causes
    return cause


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_kldunload_drains_a_task_whose_thread_wants_the_drainers_sx(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    queue = TaskQueue(m, "mydrv taskq")
    lock = m.locks.sx("mydrv lock")
    unloader = thread(m, "kldunload")
    lock.owned_by(unloader)
    task = queue.run("mydrv_task")
    lock.slept_on_by(queue.workers[0])
    unloader.call("taskqueue_drain", "mydrv_detach")
    # Up to 12.x the sleep had no message of its own.
    unloader.sleeps(task, "tq_drain" if osreldate >= 1300000 else "-", seconds=300)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert (cause["kind"], cause["certainty"]) == ("deadlock", "proven")
    assert "kldunload" in cause["summary"] and "mydrv" in cause["summary"]
    assert set(cause["tids"]) == {unloader.tid, queue.workers[0].tid}


def test_a_barrier_behind_what_is_queued_waits_for_the_queues_worker(tmp_path: Path) -> None:
    m = Machine(1402000)
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    mount = m.vfs.ffs("/data", m.geom.vfs(disk.provider))
    queue = TaskQueue(m, "dp_sync_taskq")
    queue.run("sync_task")
    barrier = queue.queue("taskqueue_task_nop_fn")
    buf = m.bufs.buf(m.vfs.vnode(mount), 0, blkno=64, owner=queue.workers[0])
    assert m.bufs.start(buf, mount, seconds=120).to_device()
    buf.waited_by(queue.workers[0], "biord", seconds=110)
    drainer = thread(m, "drainer")
    drainer.sleeps(barrier, "tq_qdrain", seconds=100)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["kind"] == "device"
    assert kinds_of(answer, drainer.tid)[:4] == ["thread", "task", "taskqueue", "thread"]


def test_a_process_that_sleeps_without_a_message_is_not_a_service_without_work(
    tmp_path: Path,
) -> None:
    m = Machine(1201000)
    unloader = thread(m, "kldunload")
    unloader.call("taskqueue_drain", "mydrv_detach")
    unloader.sleeps(m.new("task"), "-", seconds=300)
    answer = explain(m, tmp_path)
    assert answer.data["residue"] == [unloader.tid]


def test_a_drained_task_whose_queue_is_found_nowhere_is_said_to_be_not_understood(
    tmp_path: Path,
) -> None:
    m = Machine(1402000)
    drainer = thread(m, "drainer")
    drainer.sleeps(m.new("task"), "tq_drain", seconds=100)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.causes == [] and answer.data["residue"] == [drainer.tid]


@pytest.mark.parametrize("osreldate, arch", [(1201000, "amd64"), (1402000, "amd64")])
def test_callout_drain_waits_for_the_cpus_callout_thread(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    cpu = callout_cpus(m)[1]
    lock = m.locks.sx("handler lock")
    clock: Optional[Any] = None
    for name in ("clock (1)",):
        clock = m.procs.process("intr", kernel=True).thread(name, calls=("softclock_call_cc",))
    assert clock is not None
    cpu["cc_exec_entity[0].cc_curr"] = m.take(64)
    cpu.probe(cc_thread=clock)
    drainer = thread(m, "ifconfig")
    lock.owned_by(drainer)
    lock.slept_on_by(clock)
    waiting = cpu.at("cc_exec_entity[0].cc_waiting")
    drainer.sleeps(waiting, "codrain", seconds=300)
    cause = the_cause(explain(m, tmp_path))
    assert cause["kind"] == "deadlock"
    assert set(cause["tids"]) == {drainer.tid, clock.tid}


def test_an_epochs_drain_waits_for_the_thread_inside_it(tmp_path: Path) -> None:
    m = Machine(1402000, "arm64")
    lock = m.locks.sx("if lock")
    inside = thread(m, "if_io_tqg")
    drained = epoch(m, "net_epoch", inside)
    drainer = thread(m, "ifconfig")
    lock.owned_by(drainer)
    lock.slept_on_by(inside)
    drainer.sleeps(drained, "EDRAIN", seconds=300)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert (cause["kind"], cause["certainty"]) == ("deadlock", "proven")


def test_a_handlers_removal_waits_for_its_interrupt_thread(tmp_path: Path) -> None:
    m = Machine(1402000)
    lock = m.locks.sx("driver lock")
    ithread = m.procs.process("intr", kernel=True).thread("irq16: xhci0", calls=("ithread_loop",))
    handle = m.take(4 * m.pointer_size)
    m.write_pointer(handle + m.pointer_size, ithread)
    event = m.new("intr_event", ie_thread=handle, ie_name="irq16:")
    handler = m.new("intr_handler", ih_event=event, ih_name="xhci0")
    remover = thread(m, "devctl")
    lock.owned_by(remover)
    lock.slept_on_by(ithread)
    remover.sleeps(handler, "iev_rmh", seconds=300)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], len(cause["tids"])) == ("deadlock", 2)


def test_an_idle_router_with_netgraph_balloon_xen_and_drm_has_nobody_stuck(
    tmp_path: Path,
) -> None:
    m = Machine(1402000)
    worklist = m.symbol("ng_worklist", size=2 * m.pointer_size)
    idle = [
        ("ng_queue", "ng_queue0", worklist, "sleep"),
        ("virtio_balloon", "virtio_balloon", m.take(256), "vtbslp"),
        ("xenstore_rcv", "xenstore_rcv", m.take(64), "xbread"),
        ("xenwatch", "xenwatch", m.take(64), "waitev"),
        ("balloon", "balloon", m.variable("balloon_process"), "balloon"),
        ("drm", "card0-crtc0", m.take(128), "wevent"),
    ]
    for comm, name, channel, wmesg in idle:
        service = m.procs.process(comm, kernel=True).thread(name, calls=("fork_exit",))
        service.sleeps(channel, wmesg, seconds=3000)
    answer = explain(m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0


def test_a_process_that_waits_for_its_graphics_device_is_not_idle(tmp_path: Path) -> None:
    m = Machine(1402000)
    user = thread(m, "Xorg")
    user.sleeps(m.take(128), "wevent", seconds=3000)
    answer = explain(m, tmp_path)
    assert answer.data["threads"]["stuck"] == 1


def test_destroy_dev_waits_for_the_thread_inside_the_driver(tmp_path: Path) -> None:
    m = Machine(1402000)
    node = device(m, "mydev0")
    node["si_threadcount"] = 1
    lock = m.locks.sx("mydev lock")
    destroyer, inside = thread(m, "kldunload"), thread(m, "reader")
    lock.owned_by(destroyer)
    inside.call("devfs_read_f")
    m.write_pointer(inside.local("devfs_read_f", 32), node)
    lock.slept_on_by(inside)
    destroyer.call("destroy_devl")
    m.write_pointer(destroyer.local("destroy_devl", 32), node)
    destroyer.sleeps(destroyer.local("destroy_devl", 48), "devdrn", seconds=0.05, timeout=0.1)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], cause["certainty"]) == ("deadlock", "guessed")
    assert "mydev0" in cause["summary"] or "mydev0" in cause["evidence"]


def test_a_module_that_is_being_loaded_is_waited_for(tmp_path: Path) -> None:
    m = Machine(1402000)
    loader, waiter = thread(m, "kldload"), thread(m, "kldstat")
    busy = m.variable("kld_busy", 1, size=4)
    m.variable("kld_busy_td", loader)
    loader.runs_on(0)
    waiter.sleeps(busy, "kldbusy", seconds=100)
    cause = the_cause(explain(m, tmp_path))
    assert (cause["kind"], cause["tids"]) == ("running", [waiter.tid])
    assert "kldload" in cause["summary"]


def test_a_kernel_thread_that_does_not_stop_is_who_shutdown_waits_for(tmp_path: Path) -> None:
    m = Machine(1402000)
    stubborn = m.procs.kthread("syncer", "syncer", ("sched_sync",))
    lock, holder, shutdown = m.locks.sx("vnode list"), thread(m, "holder"), thread(m, "reboot")
    lock.owned_by(holder)
    holder.runs_on(0)
    lock.slept_on_by(stubborn)
    shutdown.sleeps(stubborn.process.obj.at("p_sigqueue"), "suspkp", seconds=60)
    answer = explain(m, tmp_path)
    cause = answer.cause_of(shutdown.tid)
    assert cause is not None and cause["kind"] == "running"
    assert f"{stubborn.tid}" in " ".join(answer.labels(shutdown.tid))


def test_an_exec_that_wants_to_be_alone_waits_for_the_thread_that_does_not_stop(
    tmp_path: Path,
) -> None:
    m = Machine(1402000)
    process = m.procs.process("threads")
    leader = process.thread("leader", ("thread_single", "kern_execve"))
    stuck = process.thread("stuck", ("sys_read",))
    lock, holder = m.locks.sx("some lock"), thread(m, "holder")
    lock.owned_by(holder)
    holder.runs_on(0)
    lock.slept_on_by(stuck)
    leader.sleeps(process.obj.at("p_flag"), "thrsgl", seconds=60)
    cause = the_cause(explain(m, tmp_path))
    assert sorted(cause["tids"]) == sorted([leader.tid, stuck.tid])


@pytest.mark.parametrize("osreldate, arch", [(1201000, "amd64"), (1402000, "arm64")])
def test_a_work_of_linuxkpi_is_called_by_its_own_function(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    queue = TaskQueue(m, "linuxkpi_short_wq_0")
    lock = m.locks.sx("driver lock")
    drainer = thread(m, "ifconfig")
    lock.owned_by(drainer)
    work = m.new("work_struct", func="mlx5_cmd_work_handler")
    task = m.view("task", work.at("work_task"))
    task.set(ta_func="linux_work_fn", ta_context=work)
    queue.run("linux_work_fn", task=task)
    lock.slept_on_by(queue.workers[0], seconds=200)
    drainer.call("taskqueue_drain", "linux_flush_work")
    drainer.sleeps(task, "tq_drain" if osreldate >= 1300000 else "-", seconds=200)
    answer = explain(m, tmp_path)
    assert the_cause(answer)["kind"] == "deadlock"
    label = "task mlx5_cmd_work_handler of linuxkpi_short_wq_0"
    assert label in [node["label"] for node in answer.data["nodes"]]


@pytest.mark.parametrize("done", [0, 1])
def test_a_completion_is_awaited_of_whoever_has_it_on_its_stack_or_its_wakeup_was_lost(
    done: int, tmp_path: Path
) -> None:
    m = Machine(1402000)
    completion = m.take(64)
    m.write_int(completion, done)
    who = thread(m, "ifconfig")
    who.call("linux_wait_for_common", "mlx5_cmd_exec")
    who.sleeps(completion, "completion", seconds=90)
    worker = thread(m, "mlx5")
    worker.call("mlx5_cmd_work_handler")
    m.write_pointer(worker.local("mlx5_cmd_work_handler", 32), completion)
    lock = m.locks.sx("fw lock")
    holder = thread(m, "holder")
    holder.runs_on(0)
    lock.owned_by(holder)
    lock.slept_on_by(worker, seconds=80)
    answer = explain(m, tmp_path)
    found = answer.cause_of(who.tid)
    assert found is not None
    if done:
        assert found["kind"] == "lost-wakeup" and "is complete, yet" in found["summary"]
    else:
        said = f"its kernel stack holds {completion:#x}"
        (edge,) = [each for each in answer.data["edges"] if each["evidence"] == said]
        assert (found["kind"], edge["certainty"]) == ("running", "guessed")
        assert f"{holder.tid} holder runs on CPU 0" in found["summary"]
