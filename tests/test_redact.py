"""What is redacted has no trace of people and places, and says the same of the kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Set

import pytest
from hosts import wchan
from hypothesis import given
from hypothesis import strategies as st
from test_capsule import everything

from plugin.capsule.redact import Redactor
from plugin.hosts.capsule import main
from plugin.hosts.runner import run_command
from plugin.opening import open_core
from tests.forge.machine import Machine
from tests.forge.nfs import NfsMount
from tests.forge.scenarios import deadlocks, geom_tour

SECRETS = (
    "acmecorp", "payrolld", "ledgerbot", "wrk-accounting", "vault7", "salaries", "bigcustomer",
    "fileserv9", "192.0.2.17", "203.0.113.44", "alicewonder", "2001:db8:17:ffee::5", "qx",
)  # fmt: skip
LINES = (
    "Trying to mount root from ufs:/dev/da0p2 [rw]...",
    "pid 501 (payrolld), jid 0, uid 1001: exited on signal 11 (core dumped) /salaries/q3.core",
    "Nov 25 07:00:00 acmecorp sshd[77]: accepted alicewonder@203.0.113.44 port 22",
    "arp: 192.0.2.17 moved; nd6: 2001:db8:17:ffee::5 duplicate; pid 9 (qx), uid 0",
)
DDB = """\
db> ps
  pid  ppid  pgrp   uid  state   wmesg   wchan               cmd
   42     1     1     0  S       nanslp  0xffffffff810eb0e0  payrolld
   43     1     1     0  S       nanslp  0xffffffff810eb0e0  sleep
   20     1     1     0  D       ufs     0xfffff80002cf1af0  ledgerbot
   17     1     1     0  D       biord   0xfffffe0001213e60  ledgerbot
   16     0     0     0  RL      (threaded)                  [hangtest]
100075                   L      *ht mtx  0xfffff80002642180  [mtx-middle0]
100074                   Run     CPU 1                       [mtx-spinner0]
db> show allchains
chain 1:
 thread 100104 (pid 20, ledgerbot) is blocked on lockmgr ufsEXCL
 thread 100101 (pid 17, ledgerbot) is sleeping on 0xfffffe0001213e60 "biord"
chain 2:
 thread 100075 (pid 16, mtx-middle0) is blocked on lock 0xffffffff810acf20 (sleep mutex) "ht mtx A"
 thread 100074 (pid 16, mtx-spinner0) is running on CPU 1
db> show mount
0xfffff80002a00000 /dev/da0p3 on /salaries (ufs)
db> bt
mount of vault7.acmecorp.example:/export/bigcustomer from 192.0.2.17 for alicewonder@acmecorp
"""


def machine() -> Machine:
    m = Machine(1402000, hostname="acmecorp.example")
    calls = ("kern_example", "sys_example")
    users = [m.procs.process(name).thread(calls=calls)
             for name in ("payrolld", "ledgerbot", "qx", "waiter")]  # fmt: skip
    users[0].obj["td_name"] = "wrk-accounting"
    NfsMount(m, "/salaries", "fileserv9", "192.0.2.17").request(users[0])
    disk = m.geom.disk("da", 0, mediasize=1 << 40)
    m.vfs.ffs("/home/bigcustomer/vault7", m.geom.vfs(disk.provider))
    lock = m.locks.sx("example lock")
    lock.owned_by(users[1])
    users[1].sleeps(m.variable("example_channel", 0, size=4), "example")
    lock.slept_on_by(users[3])
    users[2].sleeps(m.variable("other_channel", 0, size=4), "select")
    for line in LINES:
        m.message(line)
    # Where nothing says what it is: a stack of the kernel's own reports.
    place = users[1].obj["td_kstack"] + 4096
    m.space.write(place, b"exec /home/alicewonder/bin/payrolld --customer bigcustomer\0")
    return m


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    vmcore, kernel = machine().write(tmp_path_factory.mktemp("machine"))
    return {"vmcore": str(vmcore), "kernel": str(kernel)}


@pytest.fixture(scope="module")
def capsule(dump: Dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("capsule") / "it.capsule"
    assert main([dump["vmcore"], "-o", str(path), "--redact"]) == 0
    return path


def traces(data: bytes) -> Set[str]:
    """Which of the secrets stand in it; the shortest as words alone."""
    text = data.decode("latin-1")
    return {
        secret for secret in SECRETS
        if (secret in text if len(secret) > 3 else re.search(rf"\b{secret}\b", text))
    }  # fmt: skip


def test_the_dump_has_all_that_is_looked_for(dump: Dict[str, str]) -> None:
    found = traces(Path(dump["vmcore"]).read_bytes())
    assert found == set(SECRETS)


def test_a_redacted_capsule_has_no_trace_of_people_and_places(capsule: Path) -> None:
    assert traces(everything(capsule)) == set()


def test_a_capsule_that_is_not_redacted_has(dump: Dict[str, str], tmp_path: Path) -> None:
    """Else the test above proves nothing."""
    path = tmp_path / "plain.capsule"
    assert main([dump["vmcore"], "-o", str(path)]) == 0
    assert {"payrolld", "wrk-accounting", "salaries", "fileserv9"} <= traces(everything(path))


def report(path: str, *words: str) -> Any:
    out: List[str] = []
    status = run_command(
        words[0], [*words[1:], "--json"], lambda: open_core(path), out.append, out.append
    )
    assert status in (0, 3), out
    return json.loads("".join(out))["data"]


def test_it_says_the_same_of_the_kernel(dump: Dict[str, str], capsule: Path) -> None:
    plain, redacted = (report(path, "why-stuck") for path in (dump["vmcore"], str(capsule)))
    assert [c["kind"] for c in plain["causes"]] == [c["kind"] for c in redacted["causes"]]
    assert plain["threads"] == redacted["threads"]
    assert [c["tids"] for c in plain["chains"]] == [c["tids"] for c in redacted["chains"]]
    kthreads = report(str(capsule), "kthreads")["threads"]
    own = {t["comm"] for t in kthreads}
    assert {"pagedaemon", "g_down"} & own or "geom" in own
    messages = {t["wmesg"] for t in kthreads}
    assert {"example", "select"} <= messages
    assert {p["name"] for p in report(str(capsule), "provider")["providers"]} >= {"da0"}
    assert {"example lock"} <= {lock["name"] for lock in report(str(capsule), "klocks")["locks"]}


def test_one_name_has_one_replacement_wherever_it_stands(capsule: Path) -> None:
    threads = report(str(capsule), "kthreads")["threads"]
    name = next(t["comm"] for t in threads if t["name"] != t["comm"] and t["comm"][0] == "x"
                and len(t["comm"]) == len("payrolld"))  # fmt: skip
    log = json.dumps(report(str(capsule), "kmsgbuf"))
    assert f"({name})" in log and "/dev/da0p2" in log
    on = {m["on"] for m in report(str(capsule), "mounts")["mounts"]}
    assert len([path for path in on if re.fullmatch(r"/x[a-z2-7]{7}", path)]) == 1
    (salaries,) = [path for path in on if re.fullmatch(r"/x[a-z2-7]{7}", path)]
    assert salaries + "/" in log


def test_two_runs_do_not_share_their_replacements(dump: Dict[str, str]) -> None:
    first, second = (wchan(dump["vmcore"], "kthreads", "--redact")[1] for _ in range(2))
    assert first != second and traces(first.encode()) == traces(second.encode()) == set()


@pytest.mark.parametrize(
    "words",
    [("why-stuck",), ("kthreads",), ("kmsgbuf",), ("mounts",), ("hang-report",)],
    ids=" ".join,
)
def test_a_redacted_report_has_no_trace(dump: Dict[str, str], words: Any) -> None:
    status, out, err = wchan(dump["vmcore"], *words, "--redact", "--json")
    assert status in (0, 3) and err == ""
    assert traces(out.encode()) == set()
    assert json.loads(out)["command"] == words[0]


def test_a_redacted_capture_has_no_trace_and_says_the_same(tmp_path: Path) -> None:
    log, sent = tmp_path / "ddb.log", tmp_path / "sent.log"
    log.write_text(DDB)
    assert main([str(log), "-o", str(sent), "--redact"]) == 0
    text = sent.read_text()
    assert traces(text.encode()) == set()
    for own in (
        "[mtx-middle0]",
        "(sleep mutex)",
        "/dev/da0p3",
        "lockmgr ufs",
        '"biord"',
        "hangtest",
    ):
        assert own in text
    # A process that is called as a word of the listing itself.
    assert not re.search(r"nanslp +0x[0-9a-f]+ +sleep$", text, re.M)
    plain, redacted = (wchan(str(path), "why-stuck", "--json") for path in (log, sent))
    of_plain, of_redacted = (json.loads(each[1])["data"] for each in (plain, redacted))
    assert of_plain["threads"] == of_redacted["threads"]
    kinds = [[c["kind"] for c in each["causes"]] for each in (of_plain, of_redacted)]
    assert kinds[0] == kinds[1] != []
    direct = wchan(str(log), "why-stuck", "--redact", "--all")[1]
    assert traces(direct.encode()) == set() and "why" not in direct.split("\n", 1)[0]


@pytest.mark.parametrize("make", [deadlocks.abba, geom_tour.geom_tour])
def test_redacting_leaves_every_verdict_as_it_is(make: Any, tmp_path: Path) -> None:
    vmcore, _ = make().write(tmp_path)
    plain = json.loads(wchan(str(vmcore), "why-stuck", "--json")[1])["data"]
    redacted = json.loads(wchan(str(vmcore), "why-stuck", "--json", "--redact")[1])["data"]
    for key in ("threads", "residue"):
        assert plain[key] == redacted[key]
    assert [c["kind"] for c in plain["causes"]] == [c["kind"] for c in redacted["causes"]]


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=200))
def test_a_replacement_is_as_long_as_what_it_replaces(text: str) -> None:
    redactor = Redactor(b"salt", ["reader", "nginx: worker", "sh"], own=["kernel"])
    assert len(redactor.text(text)) == len(text)
    data = text.encode()
    assert len(redactor.memory(b"\0" + data + b"\xff")) == len(data) + 2


@pytest.mark.parametrize(
    "own",
    ["/dev/da0p2", "/boot/kernel/zfs.ko", "127.0.0.1", "0.0.0.0", "08:41:13", "+0x15d/frame 0xfe",
     "I/O", "MB/s", "12.1-RELEASE", "kern_lock.c:1234", "lock::name"],
)  # fmt: skip
def test_what_tells_of_nobody_stays(own: str) -> None:
    assert Redactor(b"salt").text(f"see {own} there") == f"see {own} there"


def test_sources_keep_their_place_in_the_tree_only() -> None:
    text = Redactor(b"salt").text("held at /home/alice/src/sys/kern/vfs_subr.c:1234")
    assert "/sys/kern/vfs_subr.c:1234" in text and "alice" not in text and "home" not in text
