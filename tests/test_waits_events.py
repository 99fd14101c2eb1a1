"""Events, semaphores, queues, asynchronous I/O, stopped processes: as stuck as the other end is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_waits_ipc import VERSIONS, Disk
from test_why_stuck import Answer, check_contract, explain, thread

from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.bufs import BIO_READ
from tests.forge.events import (
    EVFILT_PROC,
    EVFILT_READ,
    EVFILT_TIMER,
    aio_job,
    cuse_request,
    kqueue,
    message_queue,
    posix_queue,
    selects,
    semaphore_set,
)
from tests.forge.files import bound_to, of_domain, pipe, socketpair
from tests.forge.machine import Machine
from tests.forge.nfs import NfsMount
from tests.forge.procs import SLEEPQ_CONDVAR

AIO = [(1201000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


def opened(machine: Machine, folder: Path) -> Kernel:
    vmcore, kernel = machine.write(folder)
    return open_core(str(vmcore), str(kernel))


def piped(d: Disk, reader: Any, writer: Any) -> Any:
    """The reader's struct file on a pipe whose other end the writer has."""
    read_end, write_end = pipe(d.m)
    d.files.open(writer.process, write_end)
    return d.files.open(reader.process, read_end)


@pytest.mark.enters("kqueue")
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_for_events_of_a_pipe_is_as_stuck_as_its_writer(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    loop, writer = thread(d.m, "loop"), thread(d.m, "writer")
    d.reads(writer)
    queue = kqueue(d.m, (EVFILT_READ, 0, piped(d, loop, writer)))
    loop.sleeps(queue, "kqread", seconds=100, interruptible=True)
    answer = d.device(tmp_path, loop.tid, writer.tid)
    assert '"kqread" for read of pipe' in answer.labels(loop.tid)[1]


@pytest.mark.enters("kqueue")
@pytest.mark.parametrize("filter_", [EVFILT_TIMER, EVFILT_READ])
def test_who_also_waits_for_what_may_come_from_outside_is_not_stuck(
    filter_: int, tmp_path: Path
) -> None:
    """A timer, or a socket that listens."""
    d = Disk()
    loop, writer = thread(d.m, "loop"), thread(d.m, "writer")
    d.reads(writer)
    listens = of_domain(d.m, socketpair(d.m)[0], 1)
    listens["so_options"] = 2
    bound_to(d.m, listens, "/var/run/loop.sock")
    outside = d.files.open(loop.process, listens) if filter_ == EVFILT_READ else 0
    queue = kqueue(d.m, (EVFILT_READ, 1, piped(d, loop, writer)), (filter_, 2, outside))
    loop.sleeps(queue, "kqread", seconds=100, interruptible=True)
    answer = d.device(tmp_path, writer.tid)
    said = " ".join(answer.run(str(loop.tid)).split())
    assert ("timer 2" if filter_ == EVFILT_TIMER else "/var/run/loop.sock (listening)") in said


@pytest.mark.enters("kqueue")
def test_who_waits_for_the_end_of_a_process_is_as_stuck_as_that(tmp_path: Path) -> None:
    d = Disk()
    loop, job = thread(d.m, "supervise"), thread(d.m, "job")
    d.reads(job)
    queue = kqueue(d.m, (EVFILT_PROC, job.process.pid, job.process))
    loop.sleeps(queue, "kqread", seconds=100, interruptible=True)
    d.device(tmp_path, loop.tid, job.tid)


@pytest.mark.enters("select")
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_selects_on_a_socket_is_as_stuck_as_its_peer(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    client, server = thread(d.m, "client"), thread(d.m, "server")
    d.reads(server)
    own, peer = socketpair(d.m)
    d.files.open(client.process, of_domain(d.m, own, 1))
    d.files.open(server.process, of_domain(d.m, peer, 1))
    path = next(p for p in ("so_rdsel", "so_rcv.sb_sel") if own.has(p))
    selects(d.m, client, [own.at(path)])
    answer = d.device(tmp_path, client.tid, server.tid)
    assert "fd 0, unix stream" in answer.labels(client.tid)[1]


@pytest.mark.enters("select")
def test_who_selects_with_a_timeout_goes_on_by_itself(tmp_path: Path) -> None:
    d = Disk()
    client, server = thread(d.m, "client"), thread(d.m, "server")
    d.reads(server)
    own, peer = socketpair(d.m)
    d.files.open(client.process, of_domain(d.m, own, 1))
    d.files.open(server.process, of_domain(d.m, peer, 1))
    selects(d.m, client, [own.at("so_rdsel")], timeout=5.0)
    d.device(tmp_path, server.tid)


@pytest.mark.enters("semaphores")
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_for_a_semaphore_waits_for_who_took_it_with_undo(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    waiter, taker, last = (thread(d.m, n) for n in ("postgres", "taker", "last"))
    d.reads(taker)
    last.sleeps(d.m.variable("nanowait"), "nanslp", seconds=100, interruptible=True)
    made = semaphore_set(d.m, last.process.pid, (taker.process, 1), (last.process, 0))
    waiter.sleeps(made, "semwait", seconds=90, interruptible=True)
    answer = d.device(tmp_path, waiter.tid, taker.tid)
    assert answer.labels(waiter.tid)[1].startswith("semaphore set 131073 (key 0x5eed, values 0)")
    assert answer.chain_of(waiter.tid)["certainty"] == "catalogued"


@pytest.mark.enters("semaphores")
def test_where_nobody_promised_to_give_back_the_last_user_is_a_guess(tmp_path: Path) -> None:
    d = Disk()
    waiter, last = thread(d.m, "waiter"), thread(d.m, "last")
    d.reads(last)
    waiter.sleeps(semaphore_set(d.m, last.process.pid), "semwait", seconds=90, interruptible=True)
    answer = d.device(tmp_path, waiter.tid, last.tid)
    assert answer.chain_of(waiter.tid)["certainty"] == "guessed"


@pytest.mark.enters("messages")
@pytest.mark.parametrize("wmesg", ["msgrcv", "msgsnd"])
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_at_a_message_queue_waits_for_who_used_it_last(
    wmesg: str, osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    waiter, sender, receiver = (thread(d.m, n) for n in ("waiter", "sender", "receiver"))
    other = sender if wmesg == "msgrcv" else receiver
    d.reads(other)
    queue = message_queue(d.m, sender.process.pid, receiver.process.pid)
    waiter.sleeps(queue, wmesg, seconds=90, interruptible=True)
    d.device(tmp_path, waiter.tid, other.tid)


@pytest.mark.enters("posix_semaphore")
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_for_a_posix_semaphore_waits_for_who_else_has_it_open(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    waiter, poster = thread(d.m, "waiter"), thread(d.m, "poster")
    d.reads(poster)
    made = d.m.new("ksem", ks_waiters=1, ks_path=d.m.string("/ready"))
    for user in (waiter, poster):
        d.files.open(user.process, made)
    waiter.sleeps(made.at("ks_cv"), "ksem", kind=SLEEPQ_CONDVAR, seconds=90, interruptible=True)
    answer = d.device(tmp_path, waiter.tid, poster.tid)
    assert answer.labels(waiter.tid)[1].startswith("semaphore /ready (value 0, 1 waiting)")


@pytest.mark.enters("mqueue")
@pytest.mark.parametrize("wmesg, member", [("mqrecv", "mq_receivers"), ("mqsend", "mq_senders")])
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_at_a_posix_queue_waits_for_who_else_has_it_open(
    osreldate: int, arch: str, wmesg: str, member: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    waiter, other = thread(d.m, "waiter"), thread(d.m, "other")
    d.reads(other)
    queue, node = posix_queue(d.m, "jobs")
    for user in (waiter, other):
        d.files.open(user.process, node, "MQUEUE")
    waiter.sleeps(queue.at(member), wmesg, seconds=90, interruptible=True)
    answer = d.device(tmp_path, waiter.tid, other.tid)
    assert answer.labels(waiter.tid)[1].startswith("message queue jobs (0 of 10 messages)")


@pytest.mark.enters("eventfd")
@pytest.mark.parametrize("osreldate", [1300139, 1402000, 1500068])
def test_who_reads_an_eventfd_waits_for_who_else_has_it(osreldate: int, tmp_path: Path) -> None:
    d = Disk(osreldate)
    waiter, other = thread(d.m, "waiter"), thread(d.m, "other")
    d.reads(other)
    made = d.m.new("eventfd")
    for user in (waiter, other):
        d.files.open(user.process, made)
    waiter.sleeps(made.at("efd_count"), "efdrd", seconds=90, interruptible=True)
    d.device(tmp_path, waiter.tid, other.tid)


# Asynchronous I/O


@pytest.mark.enters("aio")
@pytest.mark.parametrize("wmesg", ["aiospn", "aiowc"])
@pytest.mark.parametrize("osreldate, arch", AIO)
def test_who_waits_for_asynchronous_i_o_waits_for_the_aiod_that_does_it(
    osreldate: int, arch: str, wmesg: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    m = d.m
    waiter = thread(m, "db")
    aiod = m.procs.process("aiod1").thread(calls=("aio_process_rw", "aio_daemon"))
    resting = m.procs.process("aiod2").thread(calls=("aio_daemon",))
    resting.sleeps(m.take(8), "aiordy", seconds=500)
    job = aio_job(m, waiter.process, d.files.open(waiter.process, d.vnode))
    m.write_pointer(aiod.local("aio_daemon", 24), job)
    d.reads(aiod)
    waiter.sleeps(waiter.process.obj.at("p_aioinfo"), wmesg, seconds=90, interruptible=True)
    answer = d.device(tmp_path, waiter.tid, aiod.tid)
    assert answer.labels(waiter.tid)[2].startswith("aio read of ufs")


@pytest.mark.enters("aio")
@pytest.mark.parametrize("osreldate, arch", AIO)
def test_asynchronous_i_o_on_a_raw_disk_ends_at_the_device(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    m = d.m
    waiter = thread(m, "db")
    job = aio_job(m, waiter.process, d.files.open(waiter.process, d.vnode))
    done = "aio_physwakeup" if osreldate < 1300000 else "aio_biowakeup"
    bio = m.geom.request(d.mount.consumer, BIO_READ, 0, 4096, done=done, caller1=job)
    bio.to_device()
    waiter.sleeps(waiter.process.obj.at("p_aioinfo"), "aiospn", seconds=90, interruptible=True)
    d.device(tmp_path, waiter.tid)


@pytest.mark.enters("aio")
def test_asynchronous_i_o_on_a_socket_is_as_stuck_as_its_peer(tmp_path: Path) -> None:
    d = Disk()
    client, server = thread(d.m, "client"), thread(d.m, "server")
    d.reads(server)
    own, peer = socketpair(d.m)
    d.files.open(server.process, of_domain(d.m, peer, 1))
    aio_job(d.m, client.process, d.files.open(client.process, of_domain(d.m, own, 1)))
    client.sleeps(client.process.obj.at("p_aioinfo"), "aiowc", seconds=90, interruptible=True)
    d.device(tmp_path, client.tid, server.tid)


# Stopped, served, locked elsewhere


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_traced_process_is_as_stuck_as_its_debugger(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    debugger = thread(d.m, "lldb")
    traced = d.m.procs.process("a.out", parent=debugger.process).thread(calls=("sys_read",))
    traced.suspended()
    flags = traced.process.obj["p_flag"]
    traced.process.obj["p_flag"] = (
        flags | d.m.constant("P_TRACED") | d.m.constant("P_STOPPED_TRACE")
    )
    d.reads(debugger)
    d.device(tmp_path, traced.tid, debugger.tid)


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_process_stopped_by_a_signal_says_by_which(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    stopped = thread(d.m, "vi")
    stopped.suspended()
    stopped.process.obj["p_flag"] |= d.m.constant("P_STOPPED_SIG")
    stopped.process.obj.probe(p_xsig=18, p_xstat=18)
    answer = explain(d.m, tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == 0
    assert "stopped by signal 18" in answer.run(str(stopped.tid))


@pytest.mark.enters("cuse")
@pytest.mark.parametrize("osreldate", [1201000, 1402000, 1500068])
def test_a_request_to_a_device_in_userland_leads_to_its_own_server_of_several(
    osreldate: int, tmp_path: Path
) -> None:
    d = Disk(osreldate)
    server, other, user = (thread(d.m, n) for n in ("webcamd", "virtual_oss", "mplayer"))
    d.reads(server)
    other.sleeps(d.m.variable("nanowait"), "nanslp", seconds=100, interruptible=True)
    request = cuse_request(d.m, server.process)
    user.sleeps(request.at("cv"), "cuse-client-cv", kind=SLEEPQ_CONDVAR, seconds=100)
    answer = d.device(tmp_path, server.tid, user.tid)
    assert answer.labels(user.tid)[1] == f"cuse ioctl to pid {server.process.pid}"
    assert answer.chain_of(user.tid)["certainty"] == "proven"


@pytest.mark.enters("daemon")
def test_who_wants_a_security_context_waits_for_gssd(tmp_path: Path) -> None:
    d = Disk()
    gssd, user = thread(d.m, "gssd"), thread(d.m, "ls")
    d.reads(gssd)
    user.sleeps(d.m.take(64), "gssstate", seconds=100)
    d.device(tmp_path, gssd.tid, user.tid)


@pytest.mark.enters("nlm")
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_lock_that_an_nfs_server_has_not_granted_is_benign_and_names_file_and_server(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    mount = NfsMount(d.m, "/home", "filer", "192.0.2.17")
    vnode = d.m.vfs.vnode(mount.mount)
    waiter = thread(d.m, "mutt")
    waiter.sleeps(d.m.new("nlm_waiting_lock", nw_vp=vnode), "nlmlock", seconds=300)
    answer = explain(d.m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0
    said = " ".join(answer.run(str(waiter.tid)).split())
    assert "NFS lock on nfs VREG on /home is not granted, NFS server filer" in said


@pytest.mark.enters("smb_request")
@pytest.mark.parametrize("osreldate", [1201000, 1402000])
def test_a_request_to_an_smb_server_names_it(osreldate: int, tmp_path: Path) -> None:
    d = Disk(osreldate)
    user = thread(d.m, "ls")
    circuit = d.m.new("smb_vc", vc_srvname=d.m.string("WINSRV"))
    request = d.m.new("smb_rq", sr_vc=circuit)
    user.sleeps(request.at("sr_state"), "90wrq", seconds=100)
    (cause,) = explain(d.m, tmp_path).causes
    assert (cause["kind"], cause["summary"]) == ("external", "SMB server WINSRV has not answered")


@pytest.mark.enters("nfsd")
def test_an_nfsd_that_waits_for_anothers_entry_in_the_request_cache_waits_for_that_nfsd(
    tmp_path: Path,
) -> None:
    d = Disk()
    process = d.m.procs.process("nfsd")
    server, waiter, resting = (
        process.thread("nfsd: service", calls=("nfsrvd_write", "svc_run")) for _ in range(3)
    )
    resting.sleeps(d.m.take(64), "rpcsvc", seconds=300)
    entry = d.m.new("nfsrvcache")
    d.m.write_pointer(server.local("nfsrvd_write", 24), entry)
    d.reads(server)
    waiter.sleeps(entry, "nfsrc", seconds=90)
    d.device(tmp_path, server.tid, waiter.tid)


def test_a_channel_on_another_threads_stack_says_whose_stack_that_is(tmp_path: Path) -> None:
    d = Disk()
    owner, waiter = thread(d.m, "owner"), thread(d.m, "waiter")
    owner.sleeps(d.m.variable("nanowait"), "nanslp", seconds=100, interruptible=True)
    waiter.sleeps(owner.local("kern_example", 16), "example", seconds=100)
    answer = explain(d.m, tmp_path)
    assert f"on the stack of {owner.tid} owner" in " ".join(answer.run(str(waiter.tid)).split())


@pytest.mark.enters("kqueue")
def test_knotes_that_cannot_be_read_prove_nothing_of_who_waits_for_them(tmp_path: Path) -> None:
    """One that was lost may be a timer: the wait is not stuck because the pipe's writer is."""
    d = Disk()
    loop, writer = thread(d.m, "loop"), thread(d.m, "writer")
    d.reads(writer)
    queue = kqueue(d.m, (EVFILT_READ, 0, piped(d, loop, writer)))
    loop.sleeps(queue, "kqread", seconds=100, interruptible=True)
    note = int.from_bytes(d.m.space.read(queue["kq_knlist"], d.m.pointer_size), "little")
    d.m.write_pointer(d.m.view("knote", note).at("kn_link"), 0xFFFFF80123450000)
    answer = Answer(opened(d.m, tmp_path), partial=True)
    assert loop.tid not in (tid for cause in answer.causes for tid in cause["tids"])
    assert "knotes that could not be read" in answer.run(str(loop.tid), status=3)
