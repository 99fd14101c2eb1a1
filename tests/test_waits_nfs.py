"""NFS: one silent server is one cause, whatever its clients sleep on; a server may be oneself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import pytest
from test_why_stuck import Answer, check_contract, explain, thread

from tests.forge.bufs import BIO_WRITE
from tests.forge.machine import Machine
from tests.forge.nfs import NfsMount

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


def the_cause(answer: Answer) -> Dict[str, Any]:
    check_contract(answer)
    cause: Dict[str, Any]
    (cause,) = answer.causes
    return cause


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_forty_requests_to_one_silent_server_are_one_cause_that_names_it(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    users = [thread(m, f"ls{n}") for n in range(40)]
    for user in users:
        mount.request(user, seconds=130)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert (cause["kind"], cause["certainty"], len(cause["tids"])) == ("external", "proven", 40)
    assert "filer:/home on /home (192.0.2.17:2049) has not answered" in cause["summary"]
    assert "40 requests pending" in cause["evidence"]


def test_two_mounts_of_one_server_are_one_cause(tmp_path: Path) -> None:
    m = Machine(1402000)
    for number, on in enumerate(("/home", "/src")):
        NfsMount(m, on, "filer", "192.0.2.17").request(thread(m, f"ls{number}"))
    cause = the_cause(explain(m, tmp_path))
    assert len(cause["tids"]) == 2
    assert "filer for /home, /src" in cause["summary"]


def test_two_mounts_of_two_servers_are_two_causes(tmp_path: Path) -> None:
    m = Machine(1402000)
    first = NfsMount(m, "/home", "filer", "192.0.2.17")
    second = NfsMount(m, "/src", "build", "192.0.2.18")
    for number in range(3):
        first.request(thread(m, f"a{number}"))
    second.request(thread(m, "b"))
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert [len(cause["tids"]) for cause in answer.causes] == [3, 1]
    assert "filer" in answer.causes[0]["summary"] and "build" in answer.causes[1]["summary"]


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_thirty_processes_that_retry_for_a_state_lock_are_stuck_behind_the_server(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    lock = mount.state_lock()
    holder = thread(m, "holder")
    mount.request(holder, seconds=200)
    waiters = [thread(m, f"user{n}") for n in range(30)]
    for waiter in waiters:
        waiter.sleeps(lock.at("nfslock_lock"), "nfsv4lck", seconds=0.5, timeout=1.0)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert len(cause["tids"]) == 31
    assert "filer" in cause["summary"] and cause["kind"] == "external"


@pytest.mark.parametrize("request_age, stuck", [(0.1, 0), (200, 2)])
def test_one_who_retries_for_a_state_lock_is_as_stuck_as_its_holder(
    request_age: float, stuck: int, tmp_path: Path
) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    lock = mount.state_lock()
    mount.request(thread(m, "holder"), seconds=request_age)
    thread(m, "user").sleeps(lock.at("nfslock_lock"), "nfsv4lck", seconds=0.5, timeout=1.0)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == stuck
    said = '1 thread retries: 1 in "nfsv4lck", since when is not known.'
    assert (said in answer.verdict) == (stuck == 0)


def test_a_state_lock_that_nobody_is_seen_to_hold_is_said_to_be_so(tmp_path: Path) -> None:
    m = Machine(1402000)
    lock = NfsMount(m, "/home", "filer", "192.0.2.17").state_lock()
    waiter = thread(m, "user")
    waiter.sleeps(lock.at("nfslock_lock"), "nfsv4lck", seconds=0.5, timeout=1.0)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert (cause["kind"], cause["certainty"], cause["tids"]) == ("leak", "guessed", [waiter.tid])
    assert "is locked, and all who were found to use it wait for it" in cause["summary"]


def test_nfs_mounted_from_oneself_whose_nfsd_wants_pages_that_nfs_writes_would_free_is_a_cycle(
    tmp_path: Path,
) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/export", "localhost", "127.0.0.1")
    nfsd = m.procs.process("nfsd").thread("nfsd: service", calls=("nfsrvd_write", "svc_run"))
    m.vm.set_counts(free=0, inactive=2000)
    m.vm.waited_by(nfsd, seconds=300)
    daemon = m.services["pagedaemon"]
    daemon.call("ncl_putpages", "vnode_pager_putpages", "vm_pageout_flush")
    mount.request(daemon, seconds=290)
    answer = explain(m, tmp_path)
    check_contract(answer)
    assert answer.causes[0]["kind"] == "deadlock"
    assert "nfsd" in answer.causes[0]["summary"]


def test_a_loopback_mount_whose_nfsd_all_rest_has_no_cycle(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/export", "localhost", "127.0.0.1")
    nfsd = m.procs.process("nfsd").thread("nfsd: service", calls=("svc_run",))
    nfsd.sleeps(m.take(64), "rpcsvc", seconds=300)
    mount.request(thread(m, "ls"))
    cause = the_cause(explain(m, tmp_path))
    assert cause["kind"] == "external"


def test_who_waits_for_an_nfs_write_waits_for_the_server_with_everybody_else(
    tmp_path: Path,
) -> None:
    """fsync(2) in bo_wwait, its write at an nfsiod; a reader in biord; a lock on the vnode."""
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    vnode = m.vfs.vnode(mount.mount)
    iod = m.procs.kthread("nfsiod 0", "nfsiod", ("nfssvc_iod",))
    written = m.bufs.buf(vnode, 0, cmd=BIO_WRITE)
    vnode.bufobj["bo_numoutput"] = 1
    iod.call("ncl_doio")
    m.write_pointer(iod.local("ncl_doio", 32), written.obj)
    mount.request(iod)
    fsync, reader, looker = (thread(m, name) for name in ("fsync", "cat", "ls"))
    vnode.lock.owned_by(fsync)
    fsync.sleeps(vnode.bufobj.at("bo_numoutput"), "bo_wwait", seconds=110)
    read = m.bufs.buf(vnode, 1, owner=reader)
    read.waited_by(reader, "biord", seconds=100)
    vnode.lock.slept_on_by(looker)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert sorted(cause["tids"]) == sorted(t.tid for t in (iod, fsync, reader, looker))
    assert "filer" in cause["summary"]


def test_a_forced_unmount_and_all_who_use_the_mount_are_one_cause(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    vnode = m.vfs.vnode(mount.mount)
    holder, umount, second, sender = (thread(m, n) for n in ("ls", "umount", "umount", "cp"))
    vnode.lock.owned_by(holder)
    mount.request(holder)
    vnode.lock.slept_on_by(umount)
    second.sleeps(mount.obj, "nfsfdism", seconds=100)
    sender.sleeps(mount.obj.at("nm_sockreq.nr_lock"), "nfsndlck", seconds=0.4, timeout=1.0)
    cause = the_cause(explain(m, tmp_path))
    assert len(cause["tids"]) == 4 and "filer" in cause["summary"]


def test_an_nfsnode_that_another_thread_works_on_leads_to_its_server(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    vnode = m.vfs.vnode(mount.mount)
    node = m.new("nfsnode", n_vnode=vnode)
    vnode.obj["v_data"] = node
    mount.request(thread(m, "ls"))
    waiter = thread(m, "find")
    waiter.sleeps(node.at("n_flag"), "nfsdirlk", seconds=60)
    cause = the_cause(explain(m, tmp_path))
    assert len(cause["tids"]) == 2 and "filer" in cause["summary"]


def test_who_wants_a_slot_of_a_session_waits_for_those_who_have_them(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    for number in range(3):
        mount.request(thread(m, f"ls{number}"))
    waiter = thread(m, "cp")
    waiter.sleeps(m.new("nfsclsession").at("nfsess_slots"), "nfsclseq", seconds=60)
    cause = the_cause(explain(m, tmp_path))
    assert waiter.tid in cause["tids"] and len(cause["tids"]) == 4


def test_recovery_waits_for_the_renew_thread_and_that_for_the_server(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    renew = m.procs.process("nfscl", kernel=True).thread("nfscl", calls=("nfscl_renewthread",))
    mount.request(renew)
    waiter = thread(m, "umount")
    waiter.sleeps(m.take(64), "nfsclumnt", seconds=60)
    cause = the_cause(explain(m, tmp_path))
    assert sorted(cause["tids"]) == sorted([renew.tid, waiter.tid])


def test_a_renew_thread_at_rest_is_idle(tmp_path: Path) -> None:
    m = Machine(1402000)
    renew = m.procs.process("nfscl", kernel=True).thread("nfscl", calls=("nfscl_renewthread",))
    renew.sleeps(m.take(64), "nfscl", seconds=0.5, timeout=1.0)
    assert explain(m, tmp_path).data["threads"]["stuck"] == 0


def test_a_full_queue_of_buffers_waits_for_the_nfsiods(tmp_path: Path) -> None:
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    iod = m.procs.kthread("nfsiod 0", "nfsiod", ("nfssvc_iod",))
    mount.request(iod)
    writer = thread(m, "cp")
    writer.sleeps(mount.obj.at("nm_bufq"), "nfsaio", seconds=60)
    cause = the_cause(explain(m, tmp_path))
    assert sorted(cause["tids"]) == sorted([iod.tid, writer.tid])


STATES = [(1300139, "amd64"), (1402000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


@pytest.mark.parametrize("version, transport", [("3", "tcp"), ("3", "udp"), ("4.1", "tcp")])
@pytest.mark.parametrize("osreldate, arch", STATES)
def test_a_server_silent_for_two_minutes_and_an_unmount_by_force_are_one_cause(
    osreldate: int, arch: str, version: str, transport: str, tmp_path: Path
) -> None:
    """Readers, a writer with its nfsiod, who wants a lock of theirs, and umount -f.

    The unmount has closed the client and taken it from the mount: only the requests' own way
    back leads to the server.
    """
    m = Machine(osreldate, arch)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17", transport=transport, version=version)
    vnode = m.vfs.vnode(mount.mount)
    names = ("ls", "cat", "find", "cp", "stat", "fsync", "umount")
    ls, cat, find, cp, stat, fsync, umount = threads = [thread(m, name) for name in names]
    iod = m.procs.kthread("nfsiod 0", "nfsiod", ("nfssvc_iod",))
    for asker in (ls, cat, find, iod):
        mount.request(asker, seconds=120)
    vnode.lock.owned_by(ls)
    vnode.lock.slept_on_by(stat)
    written = m.bufs.buf(vnode, 0, cmd=BIO_WRITE)
    vnode.bufobj["bo_numoutput"] = 1
    iod.call("ncl_doio")
    m.write_pointer(iod.local("ncl_doio", 32), written.obj)
    fsync.sleeps(vnode.bufobj.at("bo_numoutput"), "bo_wwait", seconds=110)
    cp.sleeps(mount.obj.at("nm_bufq"), "nfsaio", seconds=100)
    if version == "4.1":
        slots, state = thread(m, "grep"), thread(m, "vi")
        slots.sleeps(m.new("nfsclsession").at("nfsess_slots"), "nfsclseq", seconds=90)
        lock = mount.state_lock()
        state.sleeps(lock.at("nfslock_lock"), "nfsv4lck", seconds=0.5, timeout=1.0)
        renew = m.procs.process("nfscl", kernel=True).thread("nfscl", calls=("nfscl_renewthread",))
        mount.request(renew)
        threads += [slots, state, renew]
    mount.unmounted_by_force(umount)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["kind"] == "external" and answer.data["residue"] == []
    assert sorted(cause["tids"]) == sorted(t.tid for t in [*threads, iod])
    assert "filer:/home on /home (192.0.2.17:2049) has not answered" in cause["summary"]
    number = len(mount.requests)
    said = f"{number} requests pending; being unmounted by force; its client is closed"
    assert cause["evidence"] == said


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_requests_of_a_mount_whose_unmount_has_taken_its_data_are_one_cause(
    transport: str, tmp_path: Path
) -> None:
    """nfs_unmount() clears mnt_data before it disconnects: the mount names no server any more."""
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17", transport=transport)
    ls, umount = thread(m, "ls"), thread(m, "umount")
    mount.request(ls)
    mount.unmounted_by_force(umount)
    mount.mount.obj["mnt_data"] = 0
    cause = the_cause(explain(m, tmp_path))
    assert sorted(cause["tids"]) == sorted([ls.tid, umount.tid])
    assert "filer:/home on /home (192.0.2.17:2049) has not answered" in cause["summary"]


def test_who_cannot_even_send_to_a_silent_server_is_stuck_behind_it(tmp_path: Path) -> None:
    """sosend() of a request sleeps in sbwait once the server has stopped to acknowledge."""
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    iod, ls = thread(m, "nfsiod"), thread(m, "ls")
    mount.request(ls)
    iod.call("sosend_generic", "clnt_vc_call", "clnt_reconnect_call", "newnfs_request")
    iod.sleeps(mount.socket.at("so_snd.sb_acc"), "sbwait", seconds=100)
    cause = the_cause(explain(m, tmp_path))
    assert sorted(cause["tids"]) == sorted([ls.tid, iod.tid]) and "filer" in cause["summary"]


@pytest.mark.parametrize("place", ["mount drain", "newndm", "nfsfdism", "vnode", "nfsclumnt"])
@pytest.mark.parametrize("osreldate", [1300139, 1402000, 1500068])
def test_wherever_an_unmount_by_force_has_got_to_it_is_one_cause_with_the_silent_server(
    osreldate: int, place: str, tmp_path: Path
) -> None:
    """df in statfs, ls with a vnode locked, another df that waits for the unmount to end."""
    m = Machine(osreldate)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17", version="4.1")
    vnode = m.vfs.vnode(mount.mount)
    df, ls, late, umount = (thread(m, name) for name in ("df", "ls", "df", "umount"))
    for asker in (df, ls):
        mount.request(asker)
    vnode.lock.owned_by(ls)
    renew = m.procs.process("nfscl", kernel=True).thread("nfscl", calls=("nfscl_renewthread",))
    mount.request(renew)
    flags = m.constant("MNTK_UNMOUNT") | m.constant("MNTK_UNMOUNTF")
    mount.mount.obj.set(mnt_kern_flag=flags, mnt_lockref=1)
    mount.mount.obj.probe(mnt_vfs_ops=1)
    umount.call("nfs_unmount", "dounmount")
    m.write_pointer(umount.local("dounmount", 24), mount.mount)
    sleeps = {
        "mount drain": (mount.mount.obj.at("mnt_lockref"), "mount drain"),
        "nfsfdism": (mount.obj, "nfsfdism"),
        "nfsclumnt": (m.take(64), "nfsclumnt"),
    }
    if place == "vnode":
        vnode.lock.slept_on_by(umount)
    elif place == "newndm":
        channel = m.variable("non_event", static=True)
        umount.sleeps(channel, "newndm", seconds=0.3, timeout=1.0)
    else:
        umount.sleeps(*sleeps[place], seconds=60)
    late.sleeps(mount.mount.obj, "vfs_busy", seconds=50)
    answer = explain(m, tmp_path)
    cause = the_cause(answer)
    assert cause["kind"] == "external" and answer.data["residue"] == []
    assert sorted(cause["tids"]) == sorted(t.tid for t in (df, ls, late, umount, renew))
    assert "filer:/home on /home" in cause["summary"]


def test_who_upgrades_an_nfsnodes_lock_waits_for_who_has_it(tmp_path: Path) -> None:
    """nfsupg is the name of the lock n_excl (12.0 on): one of the kernel's own, with an owner."""
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    holder, waiter = thread(m, "cp"), thread(m, "mv")
    lock = m.locks.lockmgr("nfsupg")
    lock.owned_by(holder)
    mount.request(holder)
    lock.slept_on_by(waiter)
    cause = the_cause(explain(m, tmp_path))
    assert len(cause["tids"]) == 2 and "filer" in cause["summary"]


@pytest.mark.parametrize(
    "wmesg, struct, member",
    [("rpccwnd", "cu_data", "cu_cwnd_wait"), ("rpcrcvst", "ct_data", "ct_rcvstate")],
)
def test_who_waits_inside_a_client_of_rpc_waits_for_its_server(
    wmesg: str, struct: str, member: str, tmp_path: Path
) -> None:
    m = Machine(1402000)
    transport = "tcp" if struct == "ct_data" else "udp"
    mount = NfsMount(m, "/home", "filer", "192.0.2.17", transport=transport)
    NfsMount(m, "/src", "other", "192.0.2.18", transport=transport)
    ls, cat = thread(m, "ls"), thread(m, "cat")
    mount.request(ls)
    cat.sleeps(mount.client.at(member), wmesg, seconds=100)
    cause = the_cause(explain(m, tmp_path))
    assert len(cause["tids"]) == 2 and "filer" in cause["summary"]


def test_who_tries_to_connect_again_is_told_by_its_clients_on_its_stack(tmp_path: Path) -> None:
    """rpccon sleeps on a variable: of two mounts the stack says which is meant."""
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    NfsMount(m, "/src", "other", "192.0.2.18")
    ls = thread(m, "ls")
    ls.call("clnt_reconnect_connect", "clnt_reconnect_call", "newnfs_request")
    m.write_pointer(ls.local("clnt_reconnect_call", 24), mount.reconnect)
    ls.sleeps(m.variable("fake_wchan", static=True), "rpccon", seconds=0.4, timeout=1.0)
    # A retry is as long as nobody knows: what it waits for is known all the same.
    answer = explain(m, tmp_path)
    assert "filer" in answer.run(str(ls.tid))


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("version", ["3", "4.1"])
@pytest.mark.parametrize("osreldate, arch", STATES)
def test_two_minutes_into_a_silence_one_connects_anew_and_all_are_behind_the_server(
    osreldate: int, arch: str, version: str, forced: bool, tmp_path: Path
) -> None:
    """By a socket that no client has yet; some still wait on the old connection.

    umount -f closes a client that has no connection, and goes on to a vnode that is locked.
    """
    m = Machine(osreldate, arch)
    mount = NfsMount(m, "/home", "filer", "192.0.2.1", version=version)
    vnode = m.vfs.vnode(mount.mount)
    ls, cat, cp, umount = (thread(m, name) for name in ("ls", "cat", "cp", "umount"))
    mount.request(cp, seconds=55)
    mount.connects_anew(ls, cat)
    vnode.lock.owned_by(cat)
    threads = [ls, cat, cp]
    if forced:
        mount.reconnect["rc_closed"] = 1
        flags = m.constant("MNTK_UNMOUNT") | m.constant("MNTK_UNMOUNTF")
        mount.mount.obj["mnt_kern_flag"] = flags
        umount.call("vflush", "nfs_unmount", "dounmount")
        vnode.lock.slept_on_by(umount)
        threads.append(umount)
    else:
        umount.sleeps(m.variable("nanowait"), "nanslp", seconds=9, interruptible=True)
    cause = the_cause(explain(m, tmp_path))
    assert cause["kind"] == "external"
    assert sorted(cause["tids"]) == sorted(t.tid for t in threads)
    assert "filer:/home on /home (192.0.2.1:2049)" in cause["summary"]
    assert cause["evidence"].startswith("1 request pending") and "connecting" in cause["evidence"]


def test_requests_on_a_connection_that_was_given_up_are_still_the_mounts(tmp_path: Path) -> None:
    """The mount is connected again, and silent again: two requests are pending, not one."""
    m = Machine(1402000)
    mount = NfsMount(m, "/home", "filer", "192.0.2.17")
    before, after = thread(m, "before"), thread(m, "after")
    mount.request(before, seconds=200)
    again = NfsMount(m, "/gone", "filer", "192.0.2.17")
    mount.reconnect["rc_client"] = again.inner
    again.request(after, seconds=100)
    again.mount.obj["mnt_data"] = 0
    cause = the_cause(explain(m, tmp_path))
    assert sorted(cause["tids"]) == sorted([before.tid, after.tid])
    assert "2 requests pending" in cause["evidence"]
