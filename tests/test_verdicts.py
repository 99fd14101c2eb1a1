"""What why-stuck may call calm, and what it may not: states in which a wrong verdict is easy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

import pytest
from test_waits_resolvers import Storage, only_cause
from test_why_stuck import Answer, check_contract, explain, thread

from plugin.hosts.runner import run_command
from plugin.opening import open_core
from tests.forge.bufs import BIO_READ
from tests.forge.machine import Machine
from tests.forge.procs import SLEEPQ_CONDVAR, TDS_RUNQ
from tests.forge.scenarios import rmslocks


@pytest.fixture
def m() -> Machine:
    return Machine(1402000, "amd64")


# What nobody understands is not calm


def test_one_sleeper_that_tries_again_in_an_unknown_message_makes_nothing_calm(
    m: Machine, tmp_path: Path
) -> None:
    thread(m).sleeps(m.take(8), "exretry", seconds=0.5, timeout=1.0)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == 0
    assert answer.data["threads"]["not_understood"] == 1
    assert "No thread is stuck" not in answer.verdict
    assert '1 thread waits for what is not understood: 1 in "exretry"' in answer.verdict


@pytest.mark.parametrize("wmesg", ["exretry", "vendorlk"])
def test_thirty_processes_that_retry_in_one_unknown_message_are_stuck_timeout_or_not(
    wmesg: str, m: Machine, tmp_path: Path
) -> None:
    channel = m.take(8)
    sleepers = [thread(m, f"nfsd{n}") for n in range(30)]
    for n, sleeper in enumerate(sleepers):
        sleeper.sleeps(channel, wmesg, seconds=0.9 * n / 30, timeout=1.0)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == 30
    assert sorted(answer.data["residue"]) == sorted(sleeper.tid for sleeper in sleepers)
    assert f'30 in "{wmesg}"' in answer.verdict
    assert "No deadlock." not in answer.verdict
    assert "whether there is a deadlock cannot be told" in answer.verdict


@pytest.mark.parametrize("wmesg", ["nfscl", "aiordy", "mdwait", "vtbslp"])
def test_thirty_processes_in_the_message_of_an_idle_service_are_no_idle_service(
    wmesg: str, m: Machine, tmp_path: Path
) -> None:
    channel = m.take(64)
    service = m.procs.kthread("service")
    service.sleeps(channel, wmesg, seconds=0.5, timeout=1.0)
    retrying = [thread(m, f"user{n}") for n in range(30)]
    for each in retrying:
        each.sleeps(channel, wmesg, seconds=0.5, timeout=1.0)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert sorted(answer.data["residue"]) == sorted(each.tid for each in retrying)
    assert f'30 in "{wmesg}"' in answer.verdict
    assert "No thread is stuck" not in answer.verdict and "No deadlock." not in answer.verdict


def test_a_servers_process_that_a_signal_wakes_may_rest(m: Machine, tmp_path: Path) -> None:
    thread(m, "nfsd").sleeps(m.take(64), "rpcsvc", seconds=500, interruptible=True)
    assert explain(m, tmp_path).verdict == "No thread is stuck."


def test_signals_and_kernel_threads_with_a_timeout_make_no_crowd(
    m: Machine, tmp_path: Path
) -> None:
    channel = m.take(8)
    for n in range(4):
        thread(m).sleeps(channel, "expoll", seconds=0.5, timeout=1.0, interruptible=True)
        m.procs.kthread(f"worker{n}").sleeps(m.take(8), "exwork", seconds=0.5, timeout=1.0)
    assert explain(m, tmp_path).data["threads"]["stuck"] == 0


def test_who_holds_a_contended_lock_while_it_sleeps_with_a_timeout_is_stuck(
    m: Machine, tmp_path: Path
) -> None:
    holder, waiter = thread(m, "holder"), thread(m, "waiter")
    lock = m.locks.sx("state")
    lock.owned_by(holder)
    lock.slept_on_by(waiter, seconds=90)
    holder.sleeps(m.take(8), "exretry", seconds=0.2, timeout=1.0)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == 2
    cause = answer.cause_of(waiter.tid)
    assert cause is not None and cause["kind"] == "unknown"
    assert 'holder in "exretry" holds sx "state"' in cause["summary"]


@pytest.mark.parametrize("wmesg", ["ffsrca", "ffsvina"])
def test_a_cleanup_that_is_waited_for_again_and_again_is_stuck_however_short_each_sleep(
    wmesg: str, m: Machine, tmp_path: Path
) -> None:
    user = thread(m, "cp")
    user.sleeps(m.take(8), wmesg, seconds=0.01, timeout=0.1)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["residue"] == [user.tid]
    assert "No deadlock." not in answer.verdict and "No thread is stuck" not in answer.verdict


@pytest.mark.parametrize("wmesg", ["ffsupd", "e1000_delay"])
def test_one_thread_that_looks_again_on_a_busy_machine_is_not_stuck_and_not_called_fine(
    wmesg: str, m: Machine, tmp_path: Path
) -> None:
    m.symbol("pause_wchan", size=64, static=True)
    user = thread(m, "cp")
    user.pauses(wmesg, 0.1, seconds=0.01)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == 0
    assert answer.data["threads"]["not_understood"] == 1
    assert f'1 thread retries: 1 in "{wmesg}", since when is not known.' in answer.verdict
    assert "No thread is stuck" not in answer.verdict and "No deadlock" not in answer.verdict


def test_who_retries_while_another_waits_for_its_lock_is_stuck(m: Machine, tmp_path: Path) -> None:
    m.symbol("pause_wchan", size=64, static=True)
    holder, waiter = thread(m, "cp"), thread(m, "ls")
    lock = m.locks.lockmgr("ufs")
    lock.owned_by(holder)
    lock.slept_on_by(waiter, seconds=90)
    holder.pauses("ffsupd", 0.1, seconds=0.01)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == 2


def test_a_crowd_that_retries_is_stuck_however_short_each_sleep(m: Machine, tmp_path: Path) -> None:
    channel = m.take(8)
    for n in range(3):
        thread(m, f"user{n}").sleeps(channel, "nlmgrace", seconds=0.1, timeout=1.0)
    assert explain(m, tmp_path).data["threads"]["stuck"] == 3


def test_who_looks_again_after_a_single_long_sleep_is_stuck(m: Machine, tmp_path: Path) -> None:
    thread(m, "nfsd").sleeps(m.take(8), "nfsdclp", seconds=300)
    assert explain(m, tmp_path).data["threads"]["stuck"] == 1


def test_a_deadlock_is_told_among_what_is_understood_and_the_rest_is_counted(
    m: Machine, tmp_path: Path
) -> None:
    runner, waiter = thread(m, "runner"), thread(m, "waiter")
    lock = m.locks.sx("held")
    lock.owned_by(runner)
    runner.runs_on(0)
    lock.slept_on_by(waiter, seconds=60)
    thread(m).sleeps(m.take(8), "exwait", seconds=60)
    answer = explain(m, tmp_path)
    threads = answer.data["threads"]
    assert (threads["stuck"], threads["understood"], threads["not_understood"]) == (2, 1, 1)
    assert answer.verdict.endswith("No deadlock among the 1 wait understood; 1 is not.")


def test_what_could_not_be_read_is_part_of_the_calm_sentence(m: Machine, tmp_path: Path) -> None:
    victim = thread(m).process.obj
    m.at_the_end(lambda: victim.set(**{"p_threads.tqh_first": 0xDEAD00000000BEE0}))
    vmcore, kernel = m.write(tmp_path)
    answer = Answer(open_core(str(vmcore), str(kernel)), partial=True)
    assert "No thread is stuck" not in answer.verdict
    assert "not everything could be read" in answer.verdict


# Busy is not stuck


def test_a_healthy_busy_machine_has_nobody_stuck(tmp_path: Path) -> None:
    s = Storage()
    m = s.m
    for n in range(6):
        reader = s.thread(f"reader{n}")
        buf = s.buf(owner=reader)
        m.bufs.start(buf, s.mount, seconds=0.02 * n).to_device()
        buf.waited_by(reader, "biord", seconds=0.02 * n)
    runner = s.thread("runner")
    lock = m.locks.sx("busy")
    lock.owned_by(runner)
    runner.runs_on(0)
    for n in range(8):
        lock.slept_on_by(s.thread(f"waiter{n}"), seconds=0.2)
    s.thread("ready").runnable(1)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert (answer.data["threads"]["stuck"], answer.causes) == (0, [])
    assert answer.data["threads"]["waiting"] == 14
    assert "14 threads wait, the longest for 0.2 s: nothing looks stuck yet." in answer.verdict


def test_a_wait_of_two_seconds_is_no_matter_of_a_moment(m: Machine, tmp_path: Path) -> None:
    runner, first, second = thread(m, "runner"), thread(m), thread(m)
    lock = m.locks.sx("slow")
    lock.owned_by(runner)
    runner.runs_on(0)
    lock.slept_on_by(first, seconds=2.0)
    lock.slept_on_by(second, seconds=0.1)
    assert sorted(only_cause(explain(m, tmp_path))["tids"]) == sorted([first.tid, second.tid])


def test_a_deadlock_is_one_from_its_first_moment(m: Machine, tmp_path: Path) -> None:
    first, second = thread(m, "first"), thread(m, "second")
    a, b = m.locks.sx("lock A"), m.locks.sx("lock B")
    a.owned_by(first)
    b.owned_by(second)
    b.slept_on_by(first, seconds=0.1)
    a.slept_on_by(second, seconds=0.1)
    assert only_cause(explain(m, tmp_path))["kind"] == "deadlock"


# Spinning and runnable are not idle


def test_a_thread_that_spins_for_a_lock_is_counted_and_not_called_idle(
    m: Machine, tmp_path: Path
) -> None:
    spinner = m.procs.process("spinner").thread(
        calls=("lock_delay", "_sx_xlock_hard", "kern_example")
    )
    spinner.runs_on(0)
    answer = explain(m, tmp_path)
    assert answer.data["threads"]["spinning"] == 1
    assert "1 thread spins on a CPU" in answer.verdict


def _behind_a_spinner(m: Machine, *, pinned: bool, seconds: float) -> List[Any]:
    """A thread preempted ``seconds`` ago, with a spinner on every CPU since."""
    spinners = []
    for cpu in range(m.cpus):
        spinner = m.procs.process(f"spinner{cpu}").thread(calls=("kern_example", "sys_example"))
        spinner.runs_on(cpu)
        m.pcpus[cpu].set(pc_switchticks=m.ticks - int(seconds * m.hz))
        spinners.append(spinner)
    starved = m.procs.process("starved").thread(calls=("kern_example", "sys_example"))
    starved.runnable(1)
    tick = m.ticks - int(seconds * m.hz)
    starved.obj.set(td_swinvoltick=tick, td_swvoltick=tick - 100, td_pinned=int(pinned))
    return [starved, *spinners]


@pytest.mark.parametrize("osreldate", [1201000, 1402000, 1500068])
def test_a_pinned_thread_behind_a_spinner_on_its_cpu_waits_for_the_spinner(
    osreldate: int, tmp_path: Path
) -> None:
    m = Machine(osreldate, "amd64")
    starved, _, hog = _behind_a_spinner(m, pinned=True, seconds=40)
    waiter = thread(m, "waiter")
    lock = m.locks.sx("held")
    lock.owned_by(starved)
    lock.slept_on_by(waiter, seconds=39)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "running"
    assert sorted(cause["tids"]) == sorted([starved.tid, waiter.tid])
    assert f"{hog.tid} spinner1 runs on CPU 1" in cause["summary"]


def test_a_thread_that_bound_itself_to_the_other_cpu_waits_for_what_spins_there(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "amd64", cpus=2)
    spinner = m.procs.process("spinner").thread(calls=("kern_example", "sys_example"))
    spinner.runs_on(1)
    m.pcpus[1].set(pc_switchticks=m.ticks - 70 * m.hz)
    drains = m.procs.kthread("uma", calls=("uma_reclaim_locked", "uma_reclaim"))
    drains._state("runnable", TDS_RUNQ)
    drains.call("sched_switch", "mi_switch")
    tick = m.ticks - 23 * m.hz
    drains.obj.set(td_lastcpu=0, td_pinned=1, td_swvoltick=tick, td_swinvoltick=tick - 9)
    drains._save()
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["tids"]) == ("running", [drains.tid])
    assert cause["summary"] == f"{spinner.tid} spinner runs on CPU 1"
    assert "1 thread waits behind it." in answer.verdict


@pytest.mark.parametrize("osreldate", [903000, 1201000, 1402000])
def test_with_ule_the_cpu_that_a_bound_thread_waits_for_is_its_schedulers_own_word(
    osreldate: int, tmp_path: Path
) -> None:
    m = Machine(osreldate, "amd64", cpus=4)
    hogs = []
    for cpu in range(4):
        hog = m.procs.process(f"hog{cpu}").thread(calls=("kern_example", "sys_example"))
        hog.runs_on(cpu)
        m.pcpus[cpu].set(pc_switchticks=m.ticks - 70 * m.hz)
        hogs.append(hog)
    m.variable("tdq_cpu" if osreldate < 1200000 else "pcpu_entry_tdq", size=64)
    place = m.take(m.sizeof("thread") + 128, "kmem", 64)
    drains = m.procs.kthread("uma", calls=("uma_reclaim_locked", "uma_reclaim"), at=place)
    drains._state("runnable", TDS_RUNQ)
    drains.call("sched_switch", "mi_switch")
    tick = m.ticks - 23 * m.hz
    drains.obj.set(td_lastcpu=0, td_pinned=1)
    drains.obj.probe(td_swvoltick=tick, td_swinvoltick=tick - 9)
    if drains.obj.has("td_sched"):
        # Up to 10.x a pointer leads there.
        drains.obj["td_sched"] = m.new("td_sched", ts_cpu=2)
    else:
        m.view("td_sched", place + m.sizeof("thread"))["ts_cpu"] = 2
    drains._save()
    answer = explain(m, tmp_path)
    (on,) = [e for e in answer.data["edges"] if "ts_cpu 2" in e["evidence"]] or [None]
    if osreldate >= 1000000:
        # 9.3 does not keep since when.
        assert on is not None and on["certainty"] == "proven"
        assert only_cause(answer)["summary"] == f"{hogs[2].tid} hog2 runs on CPU 2"
    printed: List[str] = []
    run_command("kthreads", ["--cpus"], lambda: answer.kernel, printed.append, printed.append)
    text = " ".join("".join(printed).split("cpuid = ")[3].split())
    assert f"on its run queue: {drains.tid} uma" in text and "pinned to CPU 2" in text
    assert 'hog2", for 1 m 10 s' in text


@pytest.mark.parametrize("osreldate, arch", [(1402000, "i386"), (1201000, "amd64")])
def test_with_4bsd_the_queue_of_its_own_tells_which_cpu_a_bound_thread_waits_for(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch, cpus=4)
    hogs = []
    for cpu in range(4):
        hogs.append(m.procs.process(f"hog{cpu}").thread(calls=("kern_example", "sys_example")))
        hogs[cpu].runs_on(cpu)
        m.pcpus[cpu].set(pc_switchticks=m.ticks - 70 * m.hz)
    size = m.sizeof("thread")
    place = m.take(size + 80, align=16)
    drains = m.procs.kthread("uma", calls=("uma_reclaim_locked", "uma_reclaim"), at=place)
    drains._state("runnable", TDS_RUNQ)
    drains.call("sched_switch", "mi_switch", "sched_bind")
    tick = m.ticks - 23 * m.hz
    drains.obj.set(td_lastcpu=0, td_pinned=1, td_swvoltick=tick, td_swinvoltick=tick - 9)
    drains._save()
    queues = m.symbol("runq_pcpu", "runq", count=m.constant("MAXCPU"), static=True)
    m.write_pointer(place + size + 24, queues.address + 2 * m.sizeof("runq"))
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert (cause["certainty"], cause["tids"]) == ("proven", [drains.tid])
    assert cause["summary"] == f"{hogs[2].tid} hog2 runs on CPU 2"
    assert any("&runq_pcpu[2]" in edge["evidence"] for edge in answer.data["edges"])


def test_a_herd_that_fights_for_two_cpus_is_counted_and_nothing_calm_is_said_of_it(
    tmp_path: Path,
) -> None:
    """killpg(2) against fork(2): each tries the other's lock, gives way and tries again."""
    m = Machine(1402000, "amd64", cpus=2)
    for n in range(21):
        calls = ("lock_delay", "_sx_xlock_hard", "killpg1") if n % 2 else ("kern_yield", "sys_fork")
        each = m.procs.process(f"fights{n}").thread(calls=calls)
        if n < 2:
            each.runs_on(n)
        else:
            each.runnable(n % 2)
    for pcpu in m.pcpus:
        pcpu.set(pc_switchticks=m.ticks - 2)
    answer = explain(m, tmp_path)
    check_contract(answer)
    threads = answer.data["threads"]
    assert (threads["spinning"], threads["runnable"], threads["stuck"]) == (1, 19, 0)
    assert "all of them in a loop that yields or spins" in answer.verdict
    assert "No thread is stuck" not in answer.verdict
    assert "whether those in loops get on, one look cannot tell" in answer.verdict


def test_a_thread_that_any_cpu_could_run_is_stuck_only_after_a_minute(tmp_path: Path) -> None:
    for seconds, stuck in ((20.0, 0), (90.0, 1)):
        m = Machine(1402000, "amd64")
        _behind_a_spinner(m, pinned=False, seconds=seconds)
        folder = tmp_path / str(stuck)
        folder.mkdir()
        answer = explain(m, folder)
        assert answer.data["threads"]["stuck"] == stuck
        assert answer.data["threads"]["runnable"] == 1 - stuck
        assert "runnable" in answer.verdict


def test_a_lock_that_a_starved_thread_holds_and_the_spinner_wants_is_a_deadlock(
    tmp_path: Path,
) -> None:
    m = Machine(1500068, "amd64", cpus=2)
    starved, _, hog = _behind_a_spinner(m, pinned=True, seconds=40)
    lock = m.locks.mutex("spun for", spin=True)
    lock.owned_by(starved)
    hog.obj["td_wantedlock"] = lock
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "deadlock"
    assert sorted(cause["tids"]) == sorted([starved.tid, hog.tid])


# A wait for another process is as stuck as that process


def test_a_shell_whose_only_child_is_stuck_is_stuck(m: Machine, tmp_path: Path) -> None:
    shell, command = m.procs.process("sh"), m.procs.process("dd")
    command.parent = shell
    waits, works = shell.thread(calls=("kern_wait6",)), command.thread(calls=("sys_read",))
    waits.sleeps(shell, "wait", seconds=500, interruptible=True)
    works.sleeps(m.take(8), "exwait", seconds=400)
    answer = explain(m, tmp_path)
    cause = answer.cause_of(waits.tid)
    assert cause is not None and answer.data["residue"] == [works.tid]


def test_two_idle_processes_that_wait_for_each_other_are_not_stuck(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    parent, child = m.procs.process("parent"), m.procs.process("child")
    child.parent = parent
    above, below = parent.thread(), child.thread()
    above.sleeps(parent, "wait", seconds=500, interruptible=True)
    below.sleeps(m.take(64), "kqread", seconds=500, interruptible=True)
    answer = explain(m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0
    assert answer.verdict == "No thread is stuck."


def test_three_generations_that_wait_are_stuck_with_the_youngest(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    old, middle, young = (m.procs.process(name) for name in ("old", "middle", "young"))
    middle.parent, young.parent = old, middle
    threads = [process.thread() for process in (old, middle, young)]
    for process, waits in zip((old, middle), threads):
        waits.sleeps(process, "wait", seconds=500, interruptible=True)
    m.locks.sx("free").slept_on_by(threads[2], seconds=400)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "lost-wakeup"
    assert sorted(cause["tids"]) == sorted(each.tid for each in threads)


# Things whose owner is gone


def test_a_suspension_left_by_a_dead_process_is_called_that(tmp_path: Path) -> None:
    s = Storage()
    m, writers = s.m, [s.thread(f"writer{n}") for n in range(3)]
    s.mount.obj["mnt_kern_flag"] = m.constant("MNTK_SUSPEND", 0x08000000)
    m.write_pointer(s.mount.obj.at("mnt_susp_owner"), m.take(2048))
    for writer in writers:
        writer.sleeps(s.mount.obj.at("mnt_flag"), "suspfs", seconds=30)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "leak"
    assert len(cause["tids"]) == 3
    assert "was suspended by a thread that no longer exists" in cause["summary"]


def test_a_thread_that_waits_for_what_it_holds_itself_is_a_deadlock(
    m: Machine, tmp_path: Path
) -> None:
    fool = thread(m, "fool")
    lock = m.locks.lockmgr("own")
    lock.owned_by(fool)
    lock.slept_on_by(fool, seconds=0.1)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "deadlock"
    assert "which it holds itself" in cause["summary"]


# One cause, one line; as sure as it is


def test_forty_requests_to_one_server_are_one_cause(m: Machine, tmp_path: Path) -> None:
    m.vfs.mount("nfs", "/home", "server:/home")
    users = [thread(m, f"user{n}") for n in range(40)]
    for user in users:
        user.sleeps(m.take(64), "nfsreq", seconds=70)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert len(cause["tids"]) == 40
    assert "server:/home on /home has not answered: 40 threads wait behind it." in answer.verdict


def test_a_verdict_that_rests_on_a_guess_says_probably(tmp_path: Path) -> None:
    s = Storage()
    umount = s.thread("umount", "dounmount", "kern_unmount", "sys_unmount")
    s.m.write_pointer(umount.local("dounmount", 24), s.mount)
    umount.runs_on(0)
    s.thread("df").sleeps(s.mount, "vfs_busy", seconds=30)
    answer = explain(s.m, tmp_path)
    assert answer.verdict.startswith(f"Probably {umount.tid} umount runs on CPU 0")


def test_a_device_is_called_by_its_own_name_at_the_head_of_a_sentence(tmp_path: Path) -> None:
    s = Storage()
    reader = s.thread("reader")
    buf = s.buf(owner=reader)
    s.at_device(buf)
    buf.waited_by(reader, "biord", seconds=110)
    answer = explain(s.m, tmp_path)
    assert answer.verdict.startswith("da0 owes I/O. The one stuck thread ends at it.")


@pytest.mark.parametrize("kind", ["lost", "many"])
def test_the_cause_with_the_most_threads_comes_first_and_of_equals_the_worse(
    kind: str, m: Machine, tmp_path: Path
) -> None:
    runner, waiter = thread(m, "runner"), thread(m, "waiter")
    held, free = m.locks.sx("held"), m.locks.sx("free")
    held.owned_by(runner)
    runner.runs_on(0)
    held.slept_on_by(waiter, seconds=100)
    free.slept_on_by(thread(m), seconds=60)
    if kind == "many":
        held.slept_on_by(thread(m), seconds=50)
    answer = explain(m, tmp_path)
    check_contract(answer)
    first = "running" if kind == "many" else "lost-wakeup"
    assert answer.causes[0]["kind"] == first


def test_zfs_condvars_that_time_out_are_no_crowd(m: Machine, tmp_path: Path) -> None:
    for _ in range(2):
        thread(m).sleeps(m.take(8), "excv", kind=SLEEPQ_CONDVAR, seconds=3, timeout=10.0)
    assert explain(m, tmp_path).data["threads"]["stuck"] == 0


# References that nobody holds


@pytest.mark.enters("mount_writers")
@pytest.mark.parametrize("osreldate", [1201000, 1402000])
def test_a_suspension_that_waits_for_a_write_nobody_makes_has_met_a_leak(
    osreldate: int, tmp_path: Path
) -> None:
    s = Storage(osreldate)
    s.mount.obj["mnt_writeopcount"] = 2
    s.mount.obj.probe(mnt_vfs_ops=1)
    snapshot = s.thread("mksnap")
    snapshot.sleeps(s.mount.obj.at("mnt_writeopcount"), "suspwt", seconds=400)
    cause = only_cause(explain(s.m, tmp_path))
    assert cause["kind"] == "leak"
    assert cause["summary"] == "2 writes on /data, no thread inside: leaked"


@pytest.mark.enters("mount_writers")
def test_a_suspension_that_waits_for_a_writer_waits_for_what_that_waits_for(
    tmp_path: Path,
) -> None:
    s = Storage()
    s.mount.obj["mnt_writeopcount"] = 1
    s.mount.obj.probe(mnt_vfs_ops=1)
    snapshot, writer = s.thread("mksnap"), s.thread("writer", "vn_write", "sys_write")
    s.m.write_pointer(writer.local("vn_write", 24), s.mount)
    snapshot.sleeps(s.mount.obj.at("mnt_writeopcount"), "suspwt", seconds=400)
    buf = s.buf(owner=writer)
    s.at_device(buf)
    buf.waited_by(writer, "biord", seconds=500)
    cause = only_cause(explain(s.m, tmp_path))
    assert (cause["kind"], len(cause["tids"])) == ("device", 2)


@pytest.mark.enters("mount_busy")
def test_an_unmount_that_waits_for_references_nobody_holds_has_met_a_leak(
    tmp_path: Path,
) -> None:
    s = Storage()
    s.mount.obj.set(mnt_ref=3)
    s.mount.obj.probe(mnt_vfs_ops=1)
    s.thread("umount", "vfs_mount_destroy", "dounmount").sleeps(s.mount, "mntref", seconds=400)
    cause = only_cause(explain(s.m, tmp_path))
    assert cause["kind"] == "leak"
    assert "3 references to mount /data (ufs), no thread inside" in cause["summary"]


@pytest.mark.enters("object_dead")
@pytest.mark.parametrize("wmesg", ["vodead", "vadead"])
def test_who_waits_for_the_end_of_a_dying_object_waits_for_the_device_its_end_waits_for(
    wmesg: str, tmp_path: Path
) -> None:
    s = Storage()
    m = s.m
    dying = s.vnode.object(16).paging(1)
    page = dying.page(0, valid=0, queue=None).busied()
    s.at_device(m.bufs.pbuf("vnpbuf", cmd=BIO_READ, pages=[page]))
    ends = s.thread("unlink", "vm_object_terminate", "vnode_destroy_vobject", "vgonel")
    m.write_pointer(ends.local("vm_object_terminate", 24), dying.obj)
    ends.sleeps(dying.obj.at("paging_in_progress"), "objtrm", seconds=100)
    opens = s.thread("open")
    opens.sleeps(dying.obj, wmesg, seconds=90)
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "device" and set(cause["tids"]) == {ends.tid, opens.tid}


# Resources of the kernel


@pytest.mark.enters("pagedaemon_wait")
def test_a_page_daemon_that_pauses_over_a_laundry_without_work_has_nothing_to_free(
    tmp_path: Path,
) -> None:
    m = Machine(1402000, "amd64", uptime=7200.0)
    m.vm.set_counts(free=0, inactive=2000)
    fault = thread(m, "fault")
    m.symbol("pause_wchan", size=64, static=True)
    m.services["pagedaemon"].pauses("pwait", 0.1, seconds=0.05)
    m.vm.waited_by(fault, "pfault", seconds=300)
    cause = only_cause(explain(m, tmp_path))
    assert cause["kind"] == "memory"
    assert "the page daemon finds nothing to free" in cause["summary"]


@pytest.mark.enters("g_transient")
def test_g_down_without_room_to_map_a_bio_is_slow_and_said_to_be(tmp_path: Path) -> None:
    s = Storage()
    s.m.symbol("pause_wchan", size=64, static=True)
    s.m.services["g_down"].pauses("g_d_tra", 0.1, seconds=5)
    answer = explain(s.m, tmp_path)
    assert only_cause(answer)["kind"] == "pacing"
    assert "g_down waits for address space to map a bio" in answer.verdict


@pytest.mark.enters("vnlru")
def test_who_waits_for_a_vnode_waits_for_vnlru_and_what_that_waits_for(tmp_path: Path) -> None:
    s = Storage()
    m = s.m
    user = s.thread("find")
    reclaims = m.services["vnlru"]
    buf = s.buf(owner=reclaims)
    s.at_device(buf)
    buf.waited_by(reclaims, "biowr", seconds=100)
    user.sleeps(m.address_of("vnlruproc_sig"), "vlruwk", seconds=90)
    cause = only_cause(explain(m, tmp_path))
    assert (cause["kind"], set(cause["tids"])) == ("device", {user.tid, reclaims.tid})


@pytest.mark.enters("uma_limit")
def test_a_zone_at_its_limit_with_room_again_is_a_lost_wakeup(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    zone = m.uma.zone("example", 256, limit=16)
    zone.alloc()
    zone.waited_by(thread(m, "waiter"), seconds=20)
    assert only_cause(explain(m, tmp_path))["kind"] == "lost-wakeup"


# Sleepable read-mostly locks


@pytest.mark.parametrize(
    "osreldate, arch",
    [(1300139, "amd64"), (1402000, "amd64"), (1402000, "arm64"), (1402000, "i386")],
)
@pytest.mark.parametrize("name, prefix", [("zfs teardown", "zfs"), ("example rms", "example")])
def test_a_reader_that_asks_again_behind_a_writer_is_a_deadlock_through_one_lock(
    osreldate: int, arch: str, name: str, prefix: str, tmp_path: Path
) -> None:
    m = rmslocks.reader_asks_again(
        name, osreldate=osreldate, arch=arch, prefix=prefix, behind=("nfsd", "nfsd2")
    )
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert cause["kind"] == "deadlock"
    assert len(cause["tids"]) == 4
    inside = {id for id in cause["cycle"] if id.startswith("thread:")}
    assert inside == {f"thread:{m.cast[each].tid}" for each in ("rsync", "mountd")}
    assert answer.verdict.startswith("Probably a deadlock") and f'"{name}"' in answer.verdict
    assert "2 threads in it, 2 more behind it." in answer.verdict


def test_readers_and_writers_wait_for_the_writer_that_has_the_lock(tmp_path: Path) -> None:
    m = rmslocks.writer_works()
    answer = explain(m, tmp_path)
    cause = only_cause(answer)
    assert (cause["kind"], cause["certainty"], len(cause["tids"])) == ("running", "proven", 2)
    assert answer.nodes[cause["node"]]["tid"] == m.cast["writer"].tid


def test_a_writer_waits_for_the_reader_that_its_stack_shows(tmp_path: Path) -> None:
    m = rmslocks.lone_reader()
    cause = only_cause(explain(m, tmp_path))
    assert (cause["kind"], cause["certainty"]) == ("running", "guessed")


def test_a_reader_without_a_trace_is_not_made_up(tmp_path: Path) -> None:
    m = rmslocks.lone_reader(at_work=False)
    answer = explain(m, tmp_path)
    assert answer.data["residue"] == [m.cast["writer"].tid]
    assert "is held by 1 reader; by whom is not recorded" in answer.text.replace("\n    ", "")
    assert "No deadlock." not in answer.verdict
