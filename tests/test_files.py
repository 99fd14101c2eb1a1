"""files: what a process has open, who has a thing open, and what each is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, NamedTuple

import pytest
from answers import answer
from conftest import RealDump
from test_why_stuck import thread

from tests.forge.files import (
    Files,
    bound_to,
    connection,
    file_lock,
    in_jail,
    of_domain,
    pipe,
    run_as,
    socketpair,
)
from tests.forge.machine import Machine

VERSIONS = [(903000, "amd64"), (1201000, "amd64"), (1402000, "arm64"), (1500068, "amd64")]


class Dump(NamedTuple):
    vmcore: Path
    kernel: Path


def asked(dump: Any, *words: str) -> Dict[str, Any]:
    status, out, err = answer(dump, "files", *words, "--json")
    assert (status, err) == (0, "")
    data: Dict[str, Any] = json.loads(out)["data"]
    return data


def written(machine: Machine, folder: Path) -> Dump:
    return Dump(*machine.write(folder))


def by_fd(dump: Any, *words: str) -> Dict[str, Dict[str, Any]]:
    return {each["fd"]: each for each in asked(dump, *words)["files"]}


# Real machines


def test_every_process_of_a_real_machine_has_its_three_first_files_on_a_terminal(
    every_dump: RealDump,
) -> None:
    for process in asked(every_dump)["processes"]:
        files = by_fd(every_dump, str(process["pid"]))
        assert {"cwd", "root", "text"} <= set(files), process
        for fd in "012":
            assert files[fd]["what"] == "devfs /dev/console"
        assert files["text"]["what"].startswith("ufs /"), process


def test_a_real_process_is_shown_with_what_it_was_run_as(every_dump: RealDump) -> None:
    """The machines' programs were started under the name that DDB shows, with their argument."""
    named = {process["comm"]: process["arguments"] for process in asked(every_dump)["processes"]}
    assert named["init"][0] == "/sbin/init"
    assert all(words and words[0].endswith(comm) for comm, words in named.items())


def test_the_other_ends_on_the_machine_behind_zfs_are_those_that_ran_there(
    zfs_dump: RealDump,
) -> None:
    """Its programs, by name: piperd reads what pipewr writes, sockcl asks socksrv."""
    for comm, other in (("piperd", "pipewr"), ("sockcl", "socksrv")):
        files = asked(zfs_dump, comm)["files"]
        peers = {peer["comm"] for each in files for peer in each["peers"]}
        assert peers == {other}
    (lock,) = [lock for each in asked(zfs_dump, "flocker")["files"] for lock in each["locks"]]
    assert (lock["kind"], lock["type"], lock["held"]) == ("flock", "write", True)
    (lock,) = [lock for each in asked(zfs_dump, "flwait")["files"] for lock in each["locks"]]
    assert (lock["kind"], lock["held"]) == ("flock", False)
    assert {each["comm"] for each in asked(zfs_dump, "/tmp")["files"]} == {"flocker", "flwait"}


# Forged machines


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_process_shows_its_files_with_mode_offset_path_and_locks(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    files = Files(m)
    mount = m.vfs.mount("ufs", "/data", "/dev/da0")
    root = m.vfs.root(mount)
    folder = m.vfs.named(m.vfs.vnode(mount, "dir"), root, "logs")
    log = m.vfs.named(m.vfs.vnode(mount), folder, "today")
    writer, waiter = thread(m, "syslogd"), thread(m, "tail")
    files.open(writer.process, log, flag=2, offset=4096)
    files.works_in(writer.process, folder)
    held = file_lock(m, log, waiter, pid=writer.process.pid)
    state = m.new("lockf")
    m.list(state.at("ls_active"), "lf_link", [held])
    log.obj["v_lockf"] = state
    dump = written(m, tmp_path)
    opened = by_fd(dump, str(writer.process.pid))
    assert opened["cwd"]["what"] == "ufs /data/logs"
    log_file = opened["0"]
    assert (log_file["what"], log_file["mode"], log_file["offset"]) == (
        "ufs /data/logs/today",
        "w",
        4096,
    )
    (lock,) = log_file["locks"]
    assert (lock["kind"], lock["type"], lock["held"]) == ("fcntl", "write", True)
    for path in ("/data/logs/today", f"{log.obj.address:#x}"):
        assert [each["comm"] for each in asked(dump, path)["files"]] == ["syslogd"]
    assert {each["fd"] for each in asked(dump, "/data")["files"]} == {"0", "cwd"}


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_the_ends_of_pipes_and_sockets_name_each_others_processes(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    files = Files(m)
    one, other = thread(m, "client"), thread(m, "server")
    ends, sockets, tcp = pipe(m), socketpair(m), connection(m, 5432)
    for user, number in ((one, 0), (other, 1)):
        files.open(user.process, ends[number])
        files.open(user.process, of_domain(m, sockets[number], 1))
        files.open(user.process, of_domain(m, tcp[number], 2))
    bound_to(m, sockets[1], "/var/run/log")
    dump = written(m, tmp_path)
    opened = by_fd(dump, "client")
    for fd in "012":
        assert [peer["comm"] for peer in opened[fd]["peers"]] == ["server"]
    local, internet = opened["1"]["socket"], opened["2"]["socket"]
    assert (local["family"], local["type"], local["peer"]) == ("unix", "stream", "/var/run/log")
    assert (internet["name"], internet["peer"]) == ("192.0.2.1:40000", "192.0.2.1:5432")
    assert by_fd(dump, "server")["1"]["socket"]["name"] == "/var/run/log"


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_process_shows_its_jail_and_its_arguments(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    files = Files(m)
    web = thread(m, "nginx")
    files.open(web.process, pipe(m)[0])
    in_jail(m, web.process, 3, "www", "/jails/www")
    run_as(m, web.process, "nginx:", "master process", "/usr/sbin/nginx")
    dump = written(m, tmp_path)
    (found,) = asked(dump, "nginx")["processes"]
    assert found["jail"] == {"id": 3, "name": "www", "path": "/jails/www"}
    assert found["arguments"] == ["nginx:", "master process", "/usr/sbin/nginx"]
    _, text, _ = answer(dump, "files", "nginx")
    assert "jail 3 www" in text


@pytest.mark.parametrize("osreldate, arch", VERSIONS)
def test_a_name_is_found_behind_the_dotdots_that_the_name_cache_has_of_it(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch)
    files = Files(m)
    mount = m.vfs.mount("ufs", "/", "/dev/da0")
    root = m.vfs.root(mount)
    folder, child = m.vfs.vnode(mount, "dir"), m.vfs.vnode(mount, "dir")
    m.vfs.named(folder, root, "home", child)
    user = thread(m, "sh")
    files.open(user.process, folder)
    assert by_fd(written(m, tmp_path), "sh")["0"]["what"] == "ufs /home"


def test_a_file_over_another_file_system_is_named_by_both(tmp_path: Path) -> None:
    m = Machine(1402000)
    files = Files(m)
    below = m.vfs.mount("ufs", "/tank", "/dev/da0")
    above = m.vfs.mount("nullfs", "/jails/www/tank", "/tank/www")
    root = m.vfs.root(below)
    www = m.vfs.named(m.vfs.vnode(below, "dir"), root, "www")
    page = m.vfs.named(m.vfs.vnode(below), www, "index.html")
    upper = m.vfs.vnode(above)
    upper.obj["v_data"] = m.new("null_node", null_lowervp=page, null_vnode=upper)
    files.open(thread(m, "nginx").process, upper)
    found = by_fd(written(m, tmp_path), "nginx")["0"]["what"]
    assert found == "nullfs /jails/www/tank/index.html over ufs /tank/www/index.html"


def test_what_nobody_has_open_is_said_and_what_cannot_be_asked_refused(tmp_path: Path) -> None:
    m = Machine(1402000)
    Files(m).open(thread(m, "sh").process, pipe(m)[0])
    dump = written(m, tmp_path)
    _, text, _ = answer(dump, "files", "/nowhere")
    assert text.startswith("No process has /nowhere")
    for words in (("99999",), ("bash",)):
        status, _, err = answer(dump, "files", *words)
        assert status == 1 and "no process" in err


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_tables_fit_the_terminal(width: int, zfs_dump: RealDump) -> None:
    for words in ((), ("sockcl",), ("flwait",), ("/tmp",)):
        _, out, _ = answer(zfs_dump, "files", *words, width=width)
        assert max(map(len, out.splitlines())) <= width
