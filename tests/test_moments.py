"""Two moments of one machine: who has moved between them; slow is told from stuck."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, Tuple

import debuggers
import pytest
from answers import Dump
from contract import problems, undescribed
from hosts import ROOT, wchan

from plugin.hosts.capsule import main as capsule
from plugin.hosts.inferior import KernelInferior
from plugin.hosts.rsp import Connection, Framer, Server, frame
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.bufs import BIO_READ
from tests.forge.machine import Machine

#: the machine hung at this second of its uptime, and booted at that second of the epoch
HUNG, BOOTED = 100.0, 1_700_000_000
DDB = """\
db> ps
  pid  ppid  pgrp   uid  state   wmesg   wchan               cmd
   42     1     1     0  R+      (threaded)                  mthog
100126                   S       nanslp  0xffffffff810eb0e0  mthog
100128                   Run     CPU 0                       toucher
   20     1     1     0  D+      ufs     0xfffff80002cf1af0  reader
   17     1     1     0  D+      biord   0xfffffe0001213e60  reader
   16     0     0     0  RL      (threaded)                  [hangtest]
100075                   L      *ht mtx  0xfffff80002642180  [mtx-middle0]
100074                   Run     CPU 1                       [mtx-spinner0]
db> show allchains
chain 1:
 thread 100104 (pid 20, reader) is blocked on lockmgr ufsEXCL
 thread 100101 (pid 17, reader) is sleeping on 0xfffffe0001213e60 "biord"
"""


def hung(
    uptime: float,
    *,
    booted: int = BOOTED,
    ended: int = 0,
    slow_since: float = HUNG,
    elsewhere: bool = False,
    late: bool = False,
) -> Machine:
    """Readers of a disk that returns nothing, and a lock's holder that sleeps, since HUNG.

    ``ended``: I/O that the disk has ended; ``slow_since``: since when one of the readers
    sleeps; ``elsewhere``: it sleeps for another thing; ``late``: one more reader came.
    """
    m = Machine(1402000, uptime=uptime, time=booted + int(uptime), nbuf=64)
    disk = m.geom.disk("da", 0, mediasize=1 << 40)
    mount = m.vfs.ffs("/", m.geom.vfs(disk.provider))
    lock = m.locks.sx("example lock")
    calls = ("kern_example", "sys_example")
    holder, waiter, first, second, third = (
        m.procs.process(name).thread(calls=calls)
        for name in ("holder", "waiter", "first", "second", "third")
    )
    lock.owned_by(holder)
    holder.sleeps(m.variable("example_channel", 0, size=4), "example", seconds=uptime - HUNG)
    lock.slept_on_by(waiter, seconds=uptime - HUNG)
    for number, (thread, since) in enumerate(((first, HUNG), (second, slow_since))):
        buf = m.bufs.buf(None, 0, blkno=number * 32, cmd=BIO_READ, owner=thread)
        m.bufs.start(buf, mount, seconds=uptime - HUNG).to_device()
        if not (elsewhere and thread is second):
            buf.waited_by(thread, "biord", seconds=uptime - since)
    if elsewhere:
        m.vm.waited_by(second, "pfault", seconds=1.0)
    if late:
        buf = m.bufs.buf(None, 0, blkno=96, cmd=BIO_READ, owner=third)
        m.bufs.start(buf, mount, seconds=1.0).to_device()
        buf.waited_by(third, "biord", seconds=1.0)
    else:
        # As select(2) sleeps: a signal ends it, so it is stuck behind nothing.
        channel = m.variable("other_channel", 0, size=4)
        third.sleeps(channel, "select", seconds=uptime - HUNG, interruptible=True)

    def count() -> None:
        stat = disk.devstat
        for member in ("start_count", "end_count"):
            stat[member] = stat[member] + ended

    m.at_the_end(count)
    return m


def written(folder: Path, machine: Machine) -> Tuple[str, str]:
    folder.mkdir()
    vmcore, kernel = machine.write(folder)
    return str(vmcore), str(kernel)


@pytest.fixture(scope="module")
def then(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("then") / "it", hung(200.0))[0]


def since(now: str, other: str, *words: str) -> Tuple[int, Dict[str, Any], str]:
    """(status, report, error) of why-stuck with --since."""
    status, out, err = wchan(now, "why-stuck", "--since", other, "--json", *words)
    report = json.loads(out) if out else {}
    if "data" in report:
        assert list(problems(report, "why-stuck")) == []
        assert undescribed(report, "why-stuck") == []
    return status, report, err


def names(report: Dict[str, Any], kind: str) -> Dict[str, int]:
    by_tid = {row["tid"]: row["name"] for row in report["data"]["moment"]["threads"]}
    return {by_tid[tid]: tid for tid in report["data"]["progress"]["threads"][kind]}


def test_a_machine_where_nothing_moved_is_stuck_for_that_long(then: str, tmp_path: Path) -> None:
    now, _ = written(tmp_path / "now", hung(260.0))
    _, report, err = since(now, then)
    assert err == ""
    progress = report["data"]["progress"]
    assert progress["since"]["seconds"] == pytest.approx(60, abs=1)
    assert set(names(report, "still")) == {"holder", "waiter", "first", "second"}
    assert not progress["threads"]["ran"] and not progress["threads"]["moved"]
    assert {cause["verdict"] for cause in progress["causes"]} == {"still"}
    assert "4 have not run" in report["data"]["verdict"]
    assert "Nothing has come back from da0 since." in report["data"]["verdict"]


def test_a_slow_disk_is_told_from_a_silent_one(then: str, tmp_path: Path) -> None:
    now, _ = written(tmp_path / "now", hung(260.0, ended=120, slow_since=255.0))
    _, report, _ = since(now, then)
    assert set(names(report, "ran")) == {"second"}
    (disk,) = [c for c in report["data"]["progress"]["causes"] if "da0" in c["evidence"]]
    assert disk["verdict"] == "moves" and "120 I/O" in disk["evidence"]
    assert "slow, not silent" in report["data"]["verdict"]
    device = next(d for d in report["data"]["progress"]["devices"] if d["name"] == "da0")
    assert (device["ended"], device["owed"]) == (120, 2)


def test_a_thread_that_waits_elsewhere_has_moved_on(then: str, tmp_path: Path) -> None:
    now, _ = written(tmp_path / "now", hung(260.0, elsewhere=True, late=True))
    _, report, _ = since(now, then)
    assert "second" in names(report, "moved")
    assert {"holder", "waiter", "first"} <= set(names(report, "still"))


def test_a_cause_all_of_whose_threads_ran_is_not_stuck_for_that_long(
    then: str, tmp_path: Path
) -> None:
    m = hung(260.0, elsewhere=True)
    now, _ = written(tmp_path / "now", m)
    _, report, _ = since(now, then)
    moves = [c for c in report["data"]["progress"]["causes"] if c["verdict"] == "moves"]
    assert moves and "Moved on since, and not stuck for that long" in report["data"]["verdict"]
    text = wchan(now, "why-stuck", "--since", then)[1]
    assert text.index("Moved on since") < text.index("#  cause")


def test_core_capsule_and_report_of_a_moment_tell_the_same(then: str, tmp_path: Path) -> None:
    now, _ = written(tmp_path / "now", hung(260.0, elsewhere=True))
    status, out, _ = wchan(then, "why-stuck", "--json")
    assert status == 0
    (tmp_path / "then.json").write_text(out)
    assert capsule([then, "-o", str(tmp_path / "then.capsule")]) == 0
    told = []
    for other in (then, str(tmp_path / "then.capsule"), str(tmp_path / "then.json")):
        _, report, err = since(now, other)
        assert err == ""
        progress = report["data"]["progress"]
        del progress["since"]["source"]
        told.append(progress)
    assert told[0] == told[1] == told[2]


def refused(now: str, other: str) -> str:
    status, report, err = since(now, other)
    assert status == 1 and "error" in report and err.count("\n") == 1
    return err


def test_another_boot_is_refused_with_the_evidence(then: str, tmp_path: Path) -> None:
    now, _ = written(tmp_path / "now", hung(260.0, booted=BOOTED + 7200))
    assert "another boot" in (err := refused(now, then)) and "2 h" in err


def test_another_kernel_is_refused(then: str, tmp_path: Path) -> None:
    m = Machine(1300139, uptime=900.0, time=BOOTED + 900)
    m.procs.process("other").thread(calls=("kern_example",)).sleeps(m.take(8), "example")
    now, _ = written(tmp_path / "now", m)
    (tmp_path / "then.json").write_text(wchan(then, "why-stuck", "--json")[1])
    assert "its release is 14.2" in refused(now, str(tmp_path / "then.json"))


def test_the_later_of_two_and_the_same_moment_are_refused(then: str, tmp_path: Path) -> None:
    later, _ = written(tmp_path / "later", hung(260.0))
    assert "is the later of the two" in refused(then, later)
    assert "same moment" in refused(then, then)


@pytest.mark.parametrize(
    "content", ["{}", '{"data": {"moment": {"threads": 5}}}', "{", '{"data": []}'], ids=str
)
def test_a_file_that_is_no_report_is_one_clear_line(
    then: str, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    assert "report" in refused(then, str(path)) or "JSON" in refused(then, str(path))


def test_of_text_the_same_place_is_not_taken_for_standing_still(tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    first.write_text(DDB)
    moved = DDB.replace("biord   0xfffffe0001213e60", "wdrain  0xfffffe00aaaaaa60")
    second.write_text(moved.split("db> show")[0])
    _, report, err = since(str(second), str(first))
    assert err == "", err
    threads = report["data"]["progress"]["threads"]
    assert threads["still"] == [] and threads["unknown"] != []
    assert "whether they ran in between is not told" in report["data"]["verdict"]
    other = tmp_path / "other.log"
    other.write_text(
        "db> ps\n  pid  ppid  pgrp   uid  state   wmesg   wchan     cmd\n"
        " 9999     1     1     0  D+      ufs     0xfffff80002cf1af0  another\n"
    )
    assert "another boot or machine" in refused(str(other), str(first))


def test_what_does_not_move_cannot_be_sampled(then: str, tmp_path: Path) -> None:
    status, _, err = wchan(then, "why-stuck", "--sample", "1")
    assert status == 1 and "does not move" in err and "--since" in err
    log = tmp_path / "ddb.log"
    log.write_text(DDB)
    assert "is text and does not move" in wchan(str(log), "why-stuck", "--sample", "1")[2]


# A remote that runs


class Moving(Server):
    """A stub that is no dump: it shows one moment until it is let run, then the next."""

    def __init__(self, *moments: Kernel) -> None:
        self.moments = [KernelInferior(kernel, {}) for kernel in moments]
        super().__init__(self.moments[0], log=lambda text: None)

    def converse(self, client: socket.socket) -> None:
        connection, framer = Connection(self.moments[0], lambda text: None), Framer()
        running = False
        while data := client.recv(1 << 16):
            for kind, payload, _ in framer.feed(data):
                if kind == "interrupt" and running:
                    running = False
                    connection._inferior = self.moments[-1]
                    client.sendall(frame(connection.handle(b"?") or b""))
                elif kind == "packet":
                    if not connection.no_ack:
                        client.sendall(b"+")
                    running = payload[:1] in (b"c", b"C") or payload.startswith(b"vCont;c")
                    answer = None if running else connection.handle(payload)
                    if payload == b"vCont?":
                        answer = b"vCont;c;C;s;S;t"
                    if answer is not None:
                        client.sendall(frame(answer))


@pytest.mark.parametrize("host", ["lldb", "gdb"])
def test_a_remote_is_let_run_and_looked_at_again(
    host: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    program = request.getfixturevalue(f"venv_{host}")
    files = [
        written(tmp_path / "then", hung(200.0)),
        written(tmp_path / "now", hung(201.0, slow_since=200.5)),
    ]
    server = Moving(*(open_core(*each) for each in files))
    server.start()
    kernel, line = files[0][1], "why-stuck --sample 1"
    if host == "gdb":
        words = ["-nx", "-batch", "-iex", "set osabi none", kernel,
                 "-ex", f"target remote {server.address}",
                 "-x", str(ROOT / "plugin" / "kernel-gdb.py"), "-ex", line]  # fmt: skip
    else:
        words = ["--no-lldbinit", "-b", kernel, "-o", f'command script import "{ROOT / "plugin"}"',
                 "-o", f"process connect --plugin gdb-remote unix-connect://{server.address}",
                 "-o", line]  # fmt: skip
    try:
        done = subprocess.run(
            [str(program), *words], capture_output=True, text=True, timeout=120, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        server.close()
    out = " ".join(done.stdout.split())
    said = "Since the sample began, 1.0 s before: of 4 stuck threads 3 have not run and 1 has run"
    assert said in out, done.stdout + done.stderr


@pytest.mark.parametrize("host", ["lldb", "gdb"])
def test_a_dump_in_a_debugger_does_not_move_either(
    then: str, host: str, request: pytest.FixtureRequest
) -> None:
    program = request.getfixturevalue(f"venv_{host}")
    dump = Dump(Path(then), Path(then).parent / "kernel")
    done = getattr(debuggers, host)(program, dump, "why-stuck --sample 1")
    assert "is a dump and does not move" in done.out + done.err
