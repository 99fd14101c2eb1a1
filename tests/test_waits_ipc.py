"""Processes that wait for processes: as stuck as the other end is, and no more than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any, List

import pytest
from test_why_stuck import Answer, check_contract, explain, thread

from tests.forge.bufs import BIO_READ
from tests.forge.files import (
    Files,
    bound_to,
    connection,
    device,
    file_lock,
    of_domain,
    old_fifo,
    pipe,
    receive_channel,
    socketpair,
)
from tests.forge.machine import Machine
from tests.forge.procs import SLEEPQ_CONDVAR

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


class Disk:
    """A machine with a disk that does not answer, and a reader of it."""

    def __init__(self, osreldate: int = 1402000, arch: str = "amd64") -> None:
        self.m = Machine(osreldate, arch)
        disk = self.m.geom.disk("da", 0, mediasize=1 << 30)
        self.mount = self.m.vfs.ffs("/data", self.m.geom.vfs(disk.provider))
        self.vnode = self.m.vfs.vnode(self.mount)
        self.files = Files(self.m)

    def reads(self, reader: Any) -> None:
        buf = self.m.bufs.buf(self.vnode, 0, blkno=64, cmd=BIO_READ, owner=reader)
        assert self.m.bufs.start(buf, self.mount, seconds=120).to_device()
        buf.waited_by(reader, "biord", seconds=110)

    def device(self, tmp_path: Path, *tids: int) -> Answer:
        """The one cause is the device, and these threads are behind it."""
        answer = explain(self.m, tmp_path)
        check_contract(answer)
        (cause,) = answer.causes
        assert (cause["kind"], sorted(cause["tids"])) == ("device", sorted(tids))
        return answer


def kinds_of(answer: Answer, tid: int) -> List[str]:
    return [answer.nodes[id]["kind"] for id in answer.chain_of(tid)["path"]]


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_for_a_posix_lock_waits_for_the_process_that_holds_it(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    holder, waiter = thread(d.m, "holder"), thread(d.m, "waiter")
    d.reads(holder)
    file_lock(d.m, d.vnode, waiter, pid=holder.process.pid)
    answer = d.device(tmp_path, holder.tid, waiter.tid)
    assert kinds_of(answer, waiter.tid)[:3] == ["thread", "lock", "thread"]
    assert answer.chain_of(waiter.tid)["certainty"] == "proven"


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_waits_for_flock_waits_for_whoever_has_that_file_open(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    holder, waiter = thread(d.m, "holder"), thread(d.m, "waiter")
    d.reads(holder)
    file = d.files.open(holder.process, d.vnode)
    file_lock(d.m, d.vnode, waiter, file=file)
    d.device(tmp_path, holder.tid, waiter.tid)


def test_a_lock_whose_holder_is_well_is_nobodys_trouble(tmp_path: Path) -> None:
    d = Disk()
    holder, waiter = thread(d.m, "holder"), thread(d.m, "waiter")
    holder.sleeps(d.m.variable("nanowait"), "nanslp", seconds=100, interruptible=True)
    file_lock(d.m, d.vnode, waiter, pid=holder.process.pid)
    answer = explain(d.m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0


def test_a_lock_that_a_client_of_nfs_holds_is_said_to_be_so(tmp_path: Path) -> None:
    d = Disk()
    waiter = thread(d.m, "waiter")
    file_lock(d.m, d.vnode, waiter, pid=77, sysid=3)
    answer = explain(d.m, tmp_path)
    assert "held by a client of NFS" in answer.run(str(waiter.tid))


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_reader_of_a_pipe_is_as_stuck_as_its_writer(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    reader, writer = thread(d.m, "piperd"), thread(d.m, "pipewr")
    d.reads(writer)
    read_end, write_end = pipe(d.m)
    d.files.open(reader.process, read_end)
    d.files.open(writer.process, write_end)
    reader.sleeps(read_end, "piperd", seconds=100, interruptible=True)
    d.device(tmp_path, reader.tid, writer.tid)


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_client_of_a_local_socket_is_as_stuck_as_its_server(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    client, server = thread(d.m, "sockcl"), thread(d.m, "socksrv")
    d.reads(server)
    own, peer = socketpair(d.m)
    d.files.open(client.process, own)
    d.files.open(server.process, peer)
    client.sleeps(receive_channel(own), "sbwait", seconds=100, interruptible=True)
    d.device(tmp_path, client.tid, server.tid)


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_client_of_a_tcp_socket_of_this_machine_is_as_stuck_as_its_server(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    d = Disk(osreldate, arch)
    client, server = thread(d.m, "psql"), thread(d.m, "postgres")
    d.reads(server)
    own, peer = connection(d.m, 5432)
    d.files.open(client.process, own)
    d.files.open(server.process, peer)
    client.sleeps(receive_channel(own), "sbwait", seconds=100, interruptible=True)
    answer = d.device(tmp_path, client.tid, server.tid)
    assert "192.0.2.1:40000 - 192.0.2.1:5432" in answer.labels(client.tid)[1]


def test_a_client_of_another_machine_is_benign_and_its_peer_is_named(tmp_path: Path) -> None:
    d = Disk()
    client = thread(d.m, "ssh")
    own, _ = connection(d.m, 22)
    d.files.open(client.process, own)
    client.sleeps(receive_channel(own), "sbwait", seconds=100, interruptible=True)
    answer = explain(d.m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0
    assert "192.0.2.1:22" in answer.run(str(client.tid))


def test_a_writer_of_15_sleeps_on_its_peers_buffer(tmp_path: Path) -> None:
    d = Disk(1500068)
    writer, server = thread(d.m, "logger"), thread(d.m, "syslogd")
    d.reads(server)
    own, peer = socketpair(d.m)
    d.files.open(writer.process, own)
    d.files.open(server.process, peer)
    writer.sleeps(receive_channel(peer), "sbwait", seconds=100, interruptible=True)
    d.device(tmp_path, writer.tid, server.tid)


@pytest.mark.parametrize("osreldate", [1201000, 1402000])
def test_a_reader_of_a_fifo_is_as_stuck_as_who_else_has_it_open(
    osreldate: int, tmp_path: Path
) -> None:
    d = Disk(osreldate)
    reader, writer = thread(d.m, "reader"), thread(d.m, "writer")
    d.reads(writer)
    read_end, _ = pipe(d.m)
    for user in (reader, writer):
        d.files.open(user.process, read_end)
    reader.sleeps(read_end, "piperd", seconds=100, interruptible=True)
    d.device(tmp_path, reader.tid, writer.tid)


def test_a_reader_of_a_fifo_of_9_is_as_stuck_as_who_else_has_it_open(tmp_path: Path) -> None:
    d = Disk(903000)
    reader, writer = thread(d.m, "reader"), thread(d.m, "writer")
    d.reads(writer)
    fifo, socket = old_fifo(d.m)
    for user in (reader, writer):
        d.files.open(user.process, fifo, "FIFO")
    reader.sleeps(receive_channel(socket), "sbwait", seconds=100, interruptible=True)
    d.device(tmp_path, reader.tid, writer.tid)


@pytest.mark.enters("accept")
@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_who_accepts_says_what_it_listens_on(osreldate: int, arch: str, tmp_path: Path) -> None:
    d = Disk(osreldate, arch)
    server = thread(d.m, "syslogd")
    listens = of_domain(d.m, socketpair(d.m)[0], 1)
    listens["so_options"] = 2
    bound_to(d.m, listens, "/var/run/log")
    member = "sol_comp" if listens.has("sol_comp") else "so_timeo"
    server.sleeps(listens.at(member), "accept", seconds=100, interruptible=True)
    answer = explain(d.m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0
    assert "waits for somebody to connect to /var/run/log" in answer.run(str(server.tid))


@pytest.mark.enters("socket")
def test_who_connects_to_another_machine_is_benign_and_says_to_where(tmp_path: Path) -> None:
    d = Disk()
    client = thread(d.m, "ssh")
    own, _ = connection(d.m, 22)
    client.sleeps(own.at("so_timeo"), "connec", seconds=60, interruptible=True)
    answer = explain(d.m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0
    assert "waits for 192.0.2.1:22" in answer.run(str(client.tid))


def test_two_processes_that_only_wait_for_each_other_are_not_stuck(tmp_path: Path) -> None:
    """A client and its server between two requests: the kernel cannot tell it from a deadlock."""
    d = Disk()
    one, other = thread(d.m, "client"), thread(d.m, "server")
    ends = socketpair(d.m)
    for user, end in zip((one, other), ends):
        d.files.open(user.process, end)
        user.sleeps(receive_channel(end), "sbwait", seconds=100, interruptible=True)
    answer = explain(d.m, tmp_path)
    assert answer.data["threads"]["stuck"] == 0


@pytest.mark.parametrize("osreldate", [1201000, 1402000, 1500068])
def test_a_fuse_request_leads_to_the_process_that_has_its_session_open(
    osreldate: int, tmp_path: Path
) -> None:
    d = Disk(osreldate)
    m = d.m
    daemon, innocent, user = thread(m, "fused"), thread(m, "other"), thread(m, "ls")
    d.reads(daemon)
    innocent.sleeps(m.variable("nanowait"), "nanslp", seconds=100, interruptible=True)
    private = m.new("cdev_priv")
    device = private.address + m.locate("cdev_priv", "cdp_c").offset
    mount = m.vfs.mount("fusefs", "/mnt", "/dev/fuse")
    data, other = m.new("fuse_data", fdev=device, mp=mount), m.new("fuse_data", fdev=device)
    opened = [d.files.open(t.process, m.take(8)) for t in (daemon, innocent)]
    sessions = [
        m.new("cdev_privdata", cdpd_fp=file, cdpd_data=session)
        for file, session in zip(opened, (data, other))
    ]
    m.list(private.at("cdp_fdpriv"), "cdpd_list", sessions)
    header = m.new("fuse_in_header", opcode=17, unique=9, pid=user.process.pid)
    ticket = m.new("fuse_ticket", tk_data=data, tk_unique=9)
    m.write_pointer(ticket.at("tk_ms_fiov"), header)
    m.stailq(data.at("ms_head"), "tk_ms_link", [])
    user.sleeps(ticket, "fu_ans", seconds=70)
    answer = d.device(tmp_path, daemon.tid, user.tid)
    assert answer.labels(user.tid)[1] == "FUSE_STATFS on /mnt"
    assert answer.chain_of(user.tid)["certainty"] == "proven"


def test_init_is_not_stuck_because_its_child_is(tmp_path: Path) -> None:
    d = Disk()
    init = d.m.procs.find("init") or d.m.procs.process("init", pid=1)
    child = d.m.procs.process("fsck", parent=init).thread(calls=("sys_read",))
    waiting = init.threads[0] if init.threads else init.thread(calls=("kern_wait6",))
    if waiting.state != "sleeping":
        waiting.sleeps(init, "wait", seconds=500, interruptible=True)
    d.reads(child)
    d.device(tmp_path, child.tid)


@pytest.mark.parametrize("osreldate", [1201000, 1402000])
def test_a_request_to_ggate_is_as_stuck_as_the_process_that_serves_it(
    osreldate: int, tmp_path: Path
) -> None:
    d = Disk(osreldate)
    m = d.m
    server = thread(m, "ggatel")
    d.reads(server)
    d.files.open(server.process, device(m, "ggctl"))
    geom = m.geom.geom("GATE", "ggate0")
    provider = m.geom.new_provider(geom, "ggate0", 1 << 28, 512)
    reader = thread(m, "dd")
    bio = m.geom.request(m.geom.vfs(provider), BIO_READ, 0, 4096)
    reader.call("biowait")
    reader.sleeps(int(bio), "physrd", seconds=100)
    d.device(tmp_path, server.tid, reader.tid)


def test_a_request_to_a_character_device_in_userland_waits_for_its_process(
    tmp_path: Path,
) -> None:
    d = Disk()
    server, user = thread(d.m, "webcamd"), thread(d.m, "mplayer")
    d.reads(server)
    d.files.open(server.process, device(d.m, "cuse"))
    user.sleeps(d.m.take(64), "cuse-client-cv", kind=SLEEPQ_CONDVAR, seconds=100)
    d.device(tmp_path, server.tid, user.tid)


def test_automountd_at_rest_is_not_what_its_clients_are(tmp_path: Path) -> None:
    d = Disk()
    daemon, worker, user = thread(d.m, "automountd"), thread(d.m, "automountd"), thread(d.m, "ls")
    node = device(d.m, "autofs")
    for each in (daemon, worker):
        d.files.open(each.process, node)
    cv = d.m.take(64)
    daemon.sleeps(cv, "autofscv", kind=SLEEPQ_CONDVAR, seconds=900, interruptible=True)
    d.reads(worker)
    user.sleeps(cv, "autofscv", kind=SLEEPQ_CONDVAR, seconds=90)
    d.device(tmp_path, worker.tid, user.tid)
