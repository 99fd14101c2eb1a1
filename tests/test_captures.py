"""Text instead of memory: what consoles, mails and reports say, read as the machine printed it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import List, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.captures import explain
from plugin.captures.lines import clean, looks_like_text
from plugin.captures.machine import TextKernel
from plugin.captures.model import Capture
from plugin.captures.reader import read, read_one
from plugin.catalogue import SleepClass, shipped
from plugin.errors import WchanError
from plugin.hosts.shell import main
from plugin.waits.analysis import Analysis
from plugin.waits.kinds import CauseKind, EdgeKind
from tests.contract import problems

DDB = """\
KDB: enter: Break to debugger
[ thread pid 11 tid 100003 ]
Stopped at      kdb_alt_break_internal+0x15d:   movq    $0,0xaf4f78(%rip)
db> ps
  pid  ppid  pgrp   uid  state   wmesg   wchan               cmd
   42     1     1     0  R+      (threaded)                  mthog
100126                   S       nanslp  0xffffffff810eb0e0  mthog
100127                   RunQ                                toucher
100128                   Run     CPU 0                       toucher
   20     1     1     0  D+      ufs     0xfffff80002cf1af0  reader
   17     1     1     0  D+      biord   0xfffffe0001213e60  reader
   16     0     0     0  RL      (threaded)                  [hangtest]
100068                   D       ht sx A 0xffffffff810acee0  [sx-middle0]
100075                   L      *ht mtx  0xfffff80002642180  [mtx-middle0]
100074                   Run     CPU 1                       [mtx-spinner0]
db> show allchains
chain 1:
 thread 100104 (pid 20, reader) is blocked on lockmgr ufsEXCL
 thread 100101 (pid 17, reader) is sleeping on 0xfffffe0001213e60 "biord"
chain 2:
 thread 100075 (pid 16, mtx-middle0) is blocked on lock 0xffffffff810acf20 (sleep mutex) "ht mtx A"
 thread 100074 (pid 16, mtx-spinner0) is running on CPU 1
db> alltrace
Tracing command reader pid 17 tid 100101 td 0xfffff80002dc3000
sched_switch() at sched_switch+0x88b/frame 0xfffffe0055200000
mi_switch() at mi_switch+0xbd/frame 0xfffffe0055200020
sleepq_wait() at sleepq_wait+0x2f/frame 0xfffffe0055200040
_sleep() at _sleep+0x1d3/frame 0xfffffe00552000a0
bufwait() at bufwait+0x69/frame 0xfffffe00552000f0
--- syscall (3, FreeBSD ELF64, read), rip = 0x8, rsp = 0x9, rbp = 0xa ---
db> show lockedvnods
Locked vnodes
vnode 0xfffff80002cf1a80: type VDIR state VSTATE_CONSTRUCTED op 0xffffffff80ea1e58
    lock type ufs: EXCL by thread 0xfffff80002dc3000 (pid 17, reader, tid 100101)
 with shared waiters pending
\tino 2, on dev vtbd1
db> show pageq
pq_free 416
dom 0 page_cnt 121668 free 416 pq_act 33981 pq_inact 1 pq_laund 42828 pq_unsw 0
db>
"""

PROCSTAT = """\
  PID    TID COMM                TDNAME              KSTACK
    0 100000 kernel              swapper             mi_switch+0xc2 _sleep+0x1d3 swapper+0x69
   12 100020 intr                swi4: clock (0)     mi_switch+0xc2 ithread_loop+0x1f0
 1034 100321 long name x         -                   mi_switch+0xc2 _cv_wait+0x2 txg_wait_synced+0x1
 1035 100322 smbd                smbd                <running>
"""

PS = """\
 UID   PID  PPID CPU PRI NI     VSZ     RSS MWCHAN  STAT TT         TIME COMMAND
   0     0     0   0 -16  0       0    1000 swapin  DLs   -      0:01.20 [kernel]
1001  2041     1   0  20  0   12345    2345 zio->io D     0      0:00.01 cp -R a b
   0  2042     1   0  20  0   12345    2345 ht mtx  D     0      0:00.01 /usr/bin/stat x
   0  2043     1   0  20  0   12345    2345 -       R     0      0:00.01 yes
"""


def of(text: str, tmp_path: Path, name: str = "log.txt") -> Capture:
    path = tmp_path / name
    path.write_text(text)
    return read_one([str(path)])


def same_as_plain(text: str, tmp_path: Path) -> None:
    plain, found = of(DDB, tmp_path, "plain.txt"), of(text, tmp_path)
    assert facts(found) == facts(plain)


def facts(capture: Capture) -> object:
    return (
        [
            (t.tid, t.pid, t.comm, t.name, t.state, t.wmesg, t.wchan, t.frames)
            for t in capture.everyone
        ],
        sorted((lock.key, lock.lc_name, sorted(lock.owners)) for lock in capture.locks.values()),
        sorted((b.tid, b.lock) for b in capture.blocked.values()),
    )


def test_threads_of_ps_have_state_message_and_channel(tmp_path: Path) -> None:
    capture = of(DDB, tmp_path)
    thread = capture.threads[100101]
    assert (thread.pid, thread.comm, thread.state) == (17, "reader", "sleeping")
    assert (thread.wmesg, thread.wmesg_cut, thread.wchan) == ("biord", False, 0xFFFFFE0001213E60)
    assert capture.threads[100128].cpu == 0 and capture.threads[100127].state == "runnable"
    assert capture.threads[100068].wmesg == "ht sx A"
    assert capture.threads[100075].lock_name == "ht mtx"


def test_a_process_of_one_thread_is_joined_with_its_number(tmp_path: Path) -> None:
    capture = of(DDB, tmp_path)
    assert not capture.processes
    assert capture.threads[100104].wmesg == "ufs"


def test_the_next_thread_of_a_chain_holds_what_the_last_one_waits_for(tmp_path: Path) -> None:
    capture = of(DDB, tmp_path)
    blocked = capture.blocked[100104]
    assert list(capture.locks[blocked.lock].owners) == [100101]
    assert str(blocked.source) == "log.txt:18"
    mutex = capture.locks["0xffffffff810acf20"]
    assert (mutex.lc_name, mutex.name, list(mutex.owners)) == ("sleep mutex", "ht mtx A", [100074])


def test_a_stack_is_functions_innermost_first(tmp_path: Path) -> None:
    assert of(DDB, tmp_path).threads[100101].frames == [
        "sched_switch", "mi_switch", "sleepq_wait", "_sleep", "bufwait",
    ]  # fmt: skip


def test_a_vnode_names_its_device_and_its_holder(tmp_path: Path) -> None:
    capture = of(DDB, tmp_path)
    vnode = capture.vnodes[0xFFFFF80002CF1A80]
    assert (vnode.type, vnode.tag, vnode.device) == ("VDIR", "ufs", "vtbd1")
    assert vnode.lock is not None and list(capture.locks[vnode.lock].owners) == [100101]
    assert capture.domains[0].counts["free"] == 416


@pytest.mark.parametrize(
    "carry",
    [
        lambda line: line + "\r",
        lambda line: "> " + line,
        lambda line: "| > " + line,
        lambda line: "\x1b[0m" + line + "\x1b[K",
        lambda line: "[2026-01-02 03:04:05] " + line,
        lambda line: "--More--\r        \r" + line,
        lambda line: "<118>" + line,
    ],
    ids=["CR LF", "quoted mail", "quoted twice", "terminal", "conserver", "pager", "syslog"],
)
def test_what_carried_the_lines_makes_no_difference(carry: object, tmp_path: Path) -> None:
    assert callable(carry)
    same_as_plain("\n".join(carry(line) for line in DDB.splitlines()) + "\n", tmp_path)


def test_prompts_may_be_missing(tmp_path: Path) -> None:
    kept = [line for line in DDB.splitlines() if not line.startswith("db>")]
    same_as_plain("\n".join(kept), tmp_path)


def test_a_second_entry_into_the_debugger_is_another_state(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(DDB + "db> c\n" + DDB.replace("biord", "wdrain"))
    found = read([str(path)])
    assert [c.threads[100101].wmesg for c in found] == ["biord", "wdrain"]


def test_procstat_gives_names_with_blanks_and_stacks(tmp_path: Path) -> None:
    capture = of(PROCSTAT, tmp_path)
    assert capture.kinds == ["procstat"]
    thread = capture.threads[100020]
    assert (thread.comm, thread.name) == ("intr", "swi4: clock (0)")
    assert capture.threads[100321].comm == "long name x"
    assert capture.threads[100321].frames == ["mi_switch", "_cv_wait", "txg_wait_synced"]
    assert capture.threads[100321].state == "sleeping"
    assert capture.threads[100322].state == "running"


def test_ps_gives_messages_even_with_a_blank_in_them(tmp_path: Path) -> None:
    capture = of(PS, tmp_path)
    by_pid = {thread.pid: thread for thread in capture.everyone}
    assert (by_pid[2041].comm, by_pid[2041].wmesg, by_pid[2041].wmesg_cut) == (
        "cp",
        "zio->io",
        True,
    )
    assert (by_pid[2042].wmesg, by_pid[2042].comm) == ("ht mtx", "stat")
    assert by_pid[2043].state == "runnable" and by_pid[0].comm == "kernel"


def test_files_of_one_machine_make_one_state(tmp_path: Path) -> None:
    (tmp_path / "ps").write_text(PS)
    (tmp_path / "stacks").write_text(PROCSTAT.replace(" 1034 100321", " 2041 100321"))
    capture = read_one([str(tmp_path / "ps"), str(tmp_path / "stacks")])
    thread = capture.threads[100321]
    assert thread.wmesg == "zio->io" and thread.frames is not None
    assert thread.frames[-1] == "txg_wait_synced"


def test_a_textdump_is_its_members(tmp_path: Path) -> None:
    path = tmp_path / "textdump.tar.0"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, text in (
            ("ddb.txt", DDB),
            ("panic.txt", "sleeping thread"),
            ("version.txt", "FreeBSD 9.3-RELEASE #0: x\n  root@h:/usr/obj/usr/src/sys/GENERIC"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    assert looks_like_text(str(path))
    capture = read_one([str(path)])
    assert (capture.panic, capture.release) == ("sleeping thread", "9.3-RELEASE")
    assert 100101 in capture.threads


def test_a_compressed_log_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(DDB.encode()))
    assert looks_like_text(str(path))
    assert 100101 in read_one([str(path)]).threads


def test_a_text_without_threads_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(WchanError, match="no text that tells of threads"):
        of("to be or not to be\n" * 9, tmp_path)


def test_a_dump_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"minidump FreeBSD/amd64\0" + bytes(4096))
    (tmp_path / "b").write_bytes(b"\x7fELF" + bytes(4096))
    assert not looks_like_text(str(tmp_path / "a")) and not looks_like_text(str(tmp_path / "b"))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_lines_lost_doubled_mangled_and_shuffled_raise_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lines: List[str] = (DDB + PROCSTAT + PS).splitlines()
    chosen = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=120))
    cut = data.draw(st.integers(0, 90))
    noise = data.draw(st.text(max_size=30))
    text = "\n".join(lines[i][: cut if i % 7 == 0 else None] for i in chosen) + noise
    path = tmp_path_factory.mktemp("mangled") / "log"
    path.write_text(text, errors="replace")
    for capture in read([str(path)]):
        assert len(capture.everyone) <= len(chosen) + 9


@given(st.text(max_size=200))
def test_a_cleaned_line_holds_nothing_that_moves_a_terminal(text: str) -> None:
    assert not any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in clean(text))


def test_real_logs_agree_with_what_was_parsed_of_them(shared: Path) -> None:
    for log in sorted(shared.glob("real*/*/ddb.log")):
        truth = json.loads((log.parent / "truth.json").read_text())
        capture = read_one([str(log)])
        for row in truth["threads"]:
            if row["tid"] is None:
                continue
            thread = capture.threads[row["tid"]]
            assert (thread.wmesg or "")[: len(row["wmesg"] or "")] == (row["wmesg"] or "") or (
                thread.wmesg or ""
            ).startswith((row["wmesg"] or "").lstrip("*")[:6])
        assert {int(p["address"], 16) for p in truth["providers"]} <= set(capture.providers)
        assert {int(b["address"], 16) for b in truth["lockedbufs"]} == set(capture.bufs)
        assert not capture.processes


def stuck_by(log: Path) -> Analysis:
    kernel = TextKernel(read_one([str(log)]))
    kernel.start_command()
    return explain.analyse(kernel, shipped())


def pairs(analysis: Analysis) -> Set[Tuple[int, int]]:
    """(who waits, who holds) for every lock."""
    graph = analysis.graph
    found = set()
    for edge in graph.edges:
        if edge.kind is EdgeKind.OWNED_BY:
            owner = graph.nodes[edge.target].tid
            for waiter in graph.into.get(edge.source, ()):
                tid = graph.nodes[waiter.source].tid
                if tid is not None and owner is not None:
                    found.add((tid, owner))
    return found


def test_a_chain_that_was_printed_is_walked_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(DDB)
    analysis = stuck_by(tmp_path / "log")
    assert {(100104, 100101), (100075, 100074)} <= pairs(analysis)
    device = next(cause for cause in analysis.causes if cause.kind is CauseKind.DEVICE)
    assert device.node.label == "vtbd1" and device.certainty == "guessed"
    running = next(cause for cause in analysis.causes if cause.kind is CauseKind.RUNNING)
    assert running.node.tid == 100074 and running.tids == [100075]


def test_a_stack_stands_in_for_a_message_and_is_a_guess(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(PROCSTAT)
    analysis = stuck_by(tmp_path / "log")
    (waiter,) = [t for t in analysis.stuck if t.tid == 100321]
    edge = analysis.graph.out[f"thread:{waiter.tid}"][0]
    assert edge.certainty == "guessed" and "txg_wait_synced" in edge.evidence
    assert "log:4" in edge.evidence


def test_real_logs_are_explained_as_their_chains_were_printed(shared: Path) -> None:
    for log in sorted(shared.glob("real*/*/ddb.log")):
        truth = json.loads((log.parent / "truth.json").read_text())
        analysis = stuck_by(log)
        assert not [c for c in analysis.causes if c.kind is CauseKind.DEADLOCK], log
        found = pairs(analysis)
        for chain in truth["chains"]:
            for waiter, owner in zip(chain, chain[1:]):
                if "blocked" in waiter["what"] and "tid" in owner:
                    assert (waiter["tid"], owner["tid"]) in found, (log, waiter, owner)


def test_a_memory_command_on_text_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text(DDB)
    assert main([str(tmp_path / "log"), "bioq"]) == 1
    assert capsys.readouterr().err == "bioq reads memory, and log is text\n"


@pytest.mark.parametrize(
    "words",
    [["why-stuck"], ["kthreads"], ["kthreads", "--stacks"], ["kmsgbuf"]],
    ids=" ".join,
)
def test_a_report_of_text_keeps_the_contract(
    words: List[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text(DDB + "db> show msgbuf\nmsgbufp = 0xfff\nhello\n")
    assert main([str(tmp_path / "log"), *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not list(problems(report, words[0]))
    assert report["kernel"]["layouts"] == "text: ddb"


def test_locks_pages_and_providers_have_what_was_printed(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = str(shared / "real" / "14.2-amd64-storage-hang" / "ddb.log")
    assert main([log, "klocks", "--json"]) == 0
    locks = json.loads(capsys.readouterr().out)["data"]["locks"]
    ufs = next(lock for lock in locks if lock["address"] == "0xfffff80002cf1af0")
    assert ufs["owners"] == [100101] and len(ufs["waiters"]) == 7
    assert main([log, "vmstate", "--json"]) == 0
    (domain,) = json.loads(capsys.readouterr().out)["data"]["domains"]
    assert (domain["free"], domain["laundry"], domain["free_min"]) == (416, 42828, None)
    assert main([log, "provider", "vtbd1", "--json"]) == 0
    (provider,) = json.loads(capsys.readouterr().out)["data"]["providers"]
    assert provider["access"] == [1, 1, 1] and provider["in_flight"] is None


KGDB = """\
(kgdb) info threads
  Id   Target Id                              Frame
* 1    Thread 100101 (PID=17: reader)         sched_switch (td=0xfffff80002dc3000) at /usr/src/x.c:1
  2    Thread 100104 (PID=20: stat/worker)    sched_switch (td=0xfffff80002dc4000) at /usr/src/x.c:1
(kgdb) thread apply all bt
Thread 2 (Thread 100104):
#0  sched_switch (td=0xfffff80002dc4000, flags=1)
    at /usr/src/sys/kern/sched_ule.c:2108
#1  0xffffffff80b94e3b in mi_switch (flags=260) at /usr/src/sys/kern/kern_synch.c:542
#2  0xffffffff80be7f4b in _cv_wait (cvp=0xfffff80002d4d540)
#3  0xffffffff8252b3b1 in txg_wait_synced_impl (dp=<optimized out>, txg=103)
Thread 1 (Thread 100101):
#0  sched_switch (td=0xfffff80002dc3000) at /usr/src/sys/kern/sched_ule.c:2108
#1  0xffffffff80b94e3b in mi_switch (flags=260) at /usr/src/sys/kern/kern_synch.c:542
#2  0xffffffff80be7f4b in sleepq_wait (wchan=0x1, pri=0)
"""

LLDB = """\
(lldb) bt all
* thread #1, name = '(pid 17) reader'
  * frame #0: 0xffffffff80b94e3b kernel`sched_switch + 1083
    frame #1: 0xffffffff80b70cc2 kernel`mi_switch(flags=260) at kern_synch.c:542
    frame #2: 0xffffffff80be7f4b kernel`sleepq_wait + 43
  thread #2, name = '(pid 20) stat'
    frame #0: 0xffffffff80b94e3b kernel`sched_switch + 1083
"""


def test_a_session_of_kgdb_gives_threads_and_stacks(tmp_path: Path) -> None:
    capture = of(KGDB, tmp_path)
    thread = capture.threads[100104]
    assert (thread.pid, thread.comm, thread.name) == (20, "stat", "worker")
    assert thread.frames == ["sched_switch", "mi_switch", "_cv_wait", "txg_wait_synced_impl"]
    assert thread.state == "sleeping" and capture.threads[100101].state == "sleeping"


def test_a_session_of_lldb_gives_stacks(tmp_path: Path) -> None:
    first, second = of(LLDB, tmp_path).everyone
    assert (first.pid, first.comm, first.frames) == (
        17, "reader", ["sched_switch", "mi_switch", "sleepq_wait"],
    )  # fmt: skip
    assert second.pid == 20


def test_a_deadlock_that_ddb_never_stops_printing_is_one_deadlock(tmp_path: Path) -> None:
    head = DDB[: DDB.index("db> show allchains")]
    ring = (
        " thread 100104 (pid 20, reader) is blocked on lockmgr ufsEXCL\n"
        " thread 100101 (pid 17, reader) is blocked on lockmgr ufsEXCL\n"
    )
    (tmp_path / "log").write_text(
        head.replace("biord   0xfffffe0001213e60", "ufs     0xfffffe0001213e60")
        + "db> show allchains\nchain 1:\n"
        + ring * 5000
    )
    analysis = stuck_by(tmp_path / "log")
    (deadlock,) = [c for c in analysis.causes if c.kind is CauseKind.DEADLOCK]
    assert sorted(deadlock.tids) == [100101, 100104] and deadlock.certainty == "proven"


def test_of_a_years_log_only_the_last_states_are_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(DDB * 40)
    assert len(read([str(tmp_path / "log")], keep=2)) == 2
    assert len(read([str(tmp_path / "log")])) == 40


def test_a_core_txt_is_its_listings(tmp_path: Path) -> None:
    rule = "-" * 72 + "\n"
    text = (
        "host.example dumped core - see /var/crash/vmcore.0\n\n"
        "FreeBSD host.example 14.2-RELEASE FreeBSD 14.2-RELEASE #0: GENERIC  amd64\n\n"
        f"panic: deadlres_td_sleep_q: possible deadlock detected\n\n{rule}ps -axlww\n\n{PS}\n{rule}"
        f"vmstat -s\n\n   123 cpu context switches\n{rule}"
    )
    capture = of(text, tmp_path)
    assert capture.panic == "deadlres_td_sleep_q: possible deadlock detected"
    assert {thread.pid for thread in capture.everyone} >= {2041, 2042}
    assert capture.release == "14.2-RELEASE" and capture.arch == "amd64"


def test_a_panic_without_a_listing_is_partial_and_no_all_clear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("panic: oops\n")
    assert main([str(tmp_path / "log"), "why-stuck"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("PARTIAL") and "No thread is stuck" not in out
    assert main([str(tmp_path / "log"), "kthreads"]) == 3


TRAP = """\
Fatal trap 12: page fault while in kernel mode
cpuid = 3; apic id = 03
fault virtual address   = 0x440
current process         = 0 (arc_prune)
panic: page fault
cpuid = 3
time = 1700828648
KDB: stack backtrace:
#0 0xffffffff805bf675 at kdb_backtrace+0x65
#1 0xffffffff8057b0d2 at vpanic+0x152
#2 0xffffffff8057af73 at panic+0x43
#3 0xffffffff80845519 at trap_fatal+0x389
#4 0xffffffff8084556f at trap_pfault+0x4f
#5 0xffffffff8081f30e at calltrap+0x8
#6 0xffffffff81a7274a at arc_prune_task+0x7a
#7 0xffffffff81a2865f at taskq_run+0x1f
Uptime: 1d23h34m0s
"""


def test_the_stack_printed_with_a_panic_says_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text(TRAP)
    assert main([str(tmp_path / "log"), "why-stuck"]) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "panic: page fault" in out
    assert "is not recorded; it was in arc_prune_task called by taskq_run." in out


SERVICES = """\
db> ps
  pid  ppid  pgrp   uid  state  wmesg   wchan               cmd
  901     1   901     0  D+      nfscl   0xfffff80003a1c000  cp
  902     1   902     0  D       aiordy  0xfffff80003a1d000  rsync
  905     1   905     0  S       rpcsvc  0xfffff80003a1e000  nfsd
   12     0     0     0  DL      nfscl   0xfffff80003a1c000  [nfscl]
   13     0     0     0  DL      aiordy  0xfffff80003a1d000  [aiod1]
"""


def test_a_process_in_state_d_is_no_idle_service_whatever_its_message(tmp_path: Path) -> None:
    kernel = TextKernel(of(SERVICES, tmp_path))
    found = explain.analyse(kernel, shipped())
    assert sorted(thread.pid for thread in found.stuck) == [901, 902]
    assert len(found.not_understood) == 2


def test_a_lone_retry_is_no_progress_and_no_all_clear(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = next(
        row
        for row in shipped().rows
        if row.sleep_class is SleepClass.RETRY and not row.server and len(row.wmesg[0]) < 6
    )
    head = DDB[DDB.index("  pid  ppid") : DDB.index("   42 ")]
    line = f"   20     1     1     0  D+      {row.wmesg[0]:7} 0xfffff80002cf1af0  reader\n"
    (tmp_path / "log").write_text("db> ps\n" + head + line)
    main([str(tmp_path / "log"), "why-stuck"])
    out = " ".join(capsys.readouterr().out.split())
    assert "1 not understood" in out and "No thread is stuck" not in out
    assert "No deadlock." not in out and "pacing" not in out


def test_a_report_is_never_written_over_the_text_it_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "console.log"
    log.write_text(DDB)
    assert main([str(log), "why-stuck", "-o", str(log)]) == 1
    assert "it is what the report is made of" in capsys.readouterr().err
    assert main([str(log), "why-stuck", "--html", str(log)]) == 1
    assert log.read_text() == DDB
