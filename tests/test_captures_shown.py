"""What DDB's show commands print of one object, and how older releases print ps and locks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plugin.captures import explain
from plugin.captures.machine import TextKernel
from plugin.captures.model import Capture
from plugin.captures.reader import read_one
from plugin.catalogue import shipped
from plugin.errors import WchanError
from plugin.hosts.shell import main
from plugin.waits.analysis import Analysis
from plugin.waits.graph import Edge
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind

PS = """\
db> ps
  pid  ppid  pgrp   uid  state   wmesg   wchan               cmd
   42     1     1     0  D       ufs     0xfffff80002cf1af0  cat
   20     1     1     0  L      *Giant   0xfffff80002642180  dog
"""
TURNSTILE = """\
db> show turnstile 0xffffffff81000000
Lock: 0xffffffff81000000 - (sleep mutex) Giant
Lock Owner: 0xfffff80002dc3000 (tid 100101, pid 17, "holder")
Shared Waiters:
\tempty
Exclusive Waiters:
\t0xfffff80002dc4000 (tid 100104, pid 20, "dog")
Pending Threads:
\t0xfffff80002dc5000 (tid 100105, pid 21, "woken")
db>
"""
OWNER = '0xfffff80002dc3000 (tid 100101, pid 17, "holder")'


def of(text: str, tmp_path: Path) -> Capture:
    path = tmp_path / "log.txt"
    path.write_text(text)
    return read_one([str(path)])


def explained(capture: Capture) -> Analysis:
    return explain.analyse(TextKernel(capture), shipped())


def owned(analysis: Analysis) -> list[Edge]:
    return [
        edge
        for edges in analysis.graph.out.values()
        for edge in edges
        if edge.kind is EdgeKind.OWNED_BY
    ]


def test_a_turnstile_names_its_lock_its_holder_and_its_waiters(tmp_path: Path) -> None:
    capture = of(PS + TURNSTILE, tmp_path)
    lock = capture.locks["0xffffffff81000000"]
    assert (lock.lc_name, lock.name, list(lock.owners)) == ("sleep mutex", "Giant", [100101])
    assert capture.blocked[100104].lock == lock.key
    # A pending thread was given the lock: it waits for nobody.
    assert 100105 not in capture.blocked
    (edge,) = owned(explained(capture))
    assert edge.target == "thread:100101" and edge.certainty is Certainty.PROVEN


@pytest.mark.parametrize(
    "lc_name, state, owners, shared, mode, kernproc",
    [
        ("sleep mutex", f" state: {{OWNED, CONTESTED}}\n owner: {OWNER}", [100101], None, "", 0),
        ("sleep mutex", " state: {UNOWNED}", [], None, "UNLOCKED", 0),
        ("sx", f" state: XLOCK: {OWNER}\n waiters: exclusive", [100101], None, "", 0),
        ("sx", " state: SLOCK: 3\n waiters: none", [], 3, "SHARED", 0),
        ("rw", f" state: WLOCK: {OWNER}\n waiters: readers", [100101], None, "", 0),
        ("rw", " state: RLOCK: 2 locks\n waiters: none", [], 2, "SHARED", 0),
        ("lockmgr", " state: XLOCK: LK_KERNPROC\n spinners: none", [], None, "", 1),
        ("lockmgr", " state: UNLOCKED", [], None, "UNLOCKED", 0),
    ],
)
def test_show_lock_tells_who_holds_a_lock_of_each_class(
    lc_name: str,
    state: str,
    owners: list[int],
    shared: int | None,
    mode: str,
    kernproc: int,
    tmp_path: Path,
) -> None:
    text = f"db> show lock 0xc0a1b044\n class: {lc_name}\n name: a lock\n{state}\ndb>\n"
    lock = of(PS + text, tmp_path).locks["0xc0a1b044"]
    assert (lock.lc_name, lock.name, list(lock.owners)) == (lc_name, "a lock", owners)
    assert (lock.shared, lock.mode, bool(lock.kernproc)) == (shared, mode, bool(kernproc))


def test_a_lock_asked_for_by_a_variables_name_has_no_address(tmp_path: Path) -> None:
    text = f"db> show lock Giant\n class: sleep mutex\n name: Giant\n owner: {OWNER}\ndb>\n"
    (lock,) = of(PS + text, tmp_path).locks.values()
    assert lock.address is None and list(lock.owners) == [100101]


def test_show_thread_gives_the_whole_message_that_ps_cuts(tmp_path: Path) -> None:
    text = (
        "db> show thread 100110\nThread 100110 at 0xfffff80002dc6000:\n proc (pid 42): 0xfff1\n"
        " name: cat\n flags: 0x4  pflags: 0\n state: INHIBITED: {SLEEPING, SWAPPED}\n"
        " wmesg: a long message  wchan: 0xfffff80002cf1af0 sleeptimo 0. 0 (curr 5d. 1)\n"
        " priority: 96\n container lock: sleepq chain (0xffffffff81a0)\ndb>\n"
    )
    ps = PS.replace("ufs     ", "a long m")
    thread = of(ps + text, tmp_path).threads[100110]
    assert (thread.pid, thread.wmesg, thread.wmesg_cut) == (42, "a long message", False)
    assert (thread.wchan, thread.address) == (0xFFFFF80002CF1AF0, 0xFFFFF80002DC6000)


def test_a_sleep_queue_gives_its_sleepers_their_channel(tmp_path: Path) -> None:
    text = (
        "db> show sleepq 0xfffff80002cf1af0\nWait channel: 0xfffff80002cf1af0\nQueue type: 0\n"
        "Blocked threads:\n\nQueue[0]:\n"
        '\t0xfffff80002dc6000 (tid 100110, pid 42, "cat")\n(expected: 1)\n\nQueue[1]:\n\tempty\n'
        "(expected: 0)\ndb>\n"
    )
    capture = of(text, tmp_path)
    thread = capture.threads[100110]
    assert (thread.state, thread.wchan, capture.unread) == ("sleeping", 0xFFFFF80002CF1AF0, 0)


def test_the_threads_of_show_proc_are_its_own(tmp_path: Path) -> None:
    text = (
        "db> show proc 42\nProcess 42 (cat) at 0xfffff80002cf0000:\n state: NORMAL\n uid: 0\n"
        " parent: pid 1 at 0xfff\n ABI: FreeBSD ELF64\n threads: 1\n"
        "100110                   D       ufs     0xfffff80002cf1af0  cat\ndb>\n"
    )
    thread = of(text, tmp_path).threads[100110]
    assert (thread.pid, thread.comm, thread.wmesg) == (42, "cat", "ufs")


def test_commands_that_are_not_read_are_named_with_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "db> show registers\ncs  0x20\nds  0x3b  ll+0x1a\ndb> show callout 0xc1\n&c_func = 0xc2\n"
        "db> show malloc\n  Type  InUse  MemUse  Requests\nacpica  1  2  3\ndb>\n"
    )
    capture = of(PS + text, tmp_path)
    assert capture.kept == {"show registers": 2, "show callout": 1, "show malloc": 2}
    assert capture.unread == 0
    main([str(tmp_path / "log.txt"), "why-stuck"])
    said = " ".join(capsys.readouterr().out.split())
    assert "recognised, not read further: show registers (2 lines)" in said


def test_a_text_that_ends_within_a_listing_is_said_to_be_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([_written(tmp_path, PS), "why-stuck"]) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "the text ends within ps, no prompt follows: it may be cut" in said
    assert not of(PS + "db> \n", tmp_path).damage


def test_a_text_without_a_version_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([_written(tmp_path, PS + "db>\n"), "why-stuck"])
    assert "FreeBSD, version unknown, machine unknown" in capsys.readouterr().out


def _written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "log.txt"
    path.write_text(text)
    return str(path)


def test_a_buf_of_12_is_of_the_vnode_its_bufobj_lies_in(tmp_path: Path) -> None:
    text = (
        "db> ps\n  pid  ppid  pgrp   uid  state   wmesg   wchan               cmd\n"
        "   17     1     1     0  D       biord   0xfffffe0000823a38  reader\n"
        "db> show lockedbufs\nbuf at 0xfffffe0000823a38\nb_flags = 0x20000000<vmio>\n"
        "b_error = 0, b_bufsize = 8192, b_bcount = 8192, b_resid = 0\n"
        "b_bufobj = (0xfffff80002539850), b_data = 0xfff, b_blkno = 16720, b_lblkno = 0\n"
        "db> show lockedvnods\nvnode 0xfffff80002539790: tag ufs, type VREG\n"
        "\tino 2, on dev vtbd1\ndb>\n"
    )
    (cause,) = explained(of(text, tmp_path)).causes
    assert cause.kind is CauseKind.DEVICE and cause.node.label == "vtbd1"


@pytest.mark.parametrize("blanks", [3, 5])
def test_zones_are_read_as_12_and_as_13_print_them(blanks: int, tmp_path: Path) -> None:
    text = f"db> show uma\n   Zone{' ' * blanks}Size  Used  Free  Requests  Sleeps\n"
    row = "  g_bio      376       19       61          379        7       29\ndb>\n"
    (zone,) = of(PS + text + row, tmp_path).zones
    assert (zone.name, zone.size, zone.used, zone.sleeps) == ("g_bio", 376, 19, 7)


FIVE = """\
db> ps
  pid   proc     uarea   uid  ppid  pgrp  flag   stat  wmesg    wchan  cmd
  553 c2c4e830 e4f91000    0     1   553 0000100 [SLPQ ufs 0xc2dbf058][SLP] cat
  552 c2c4ea24 e4f93000    0     1   552 0004002 [SLPQ biord 0xd8a3c0e0][SLP] dog
   12 c1e330f8 e4ed5000    0     0     0 000020c [CPU 0] idle
   31 c1e331f8 e4ed9000    0     0     0 000020c [LOCK  Giant c1e2a5c0] irq14: ata0
   11 c1e332f8 e4edb000    0     0     0 000020c [RUNQ] swi1: net
db> trace 552
sched_switch(c2c50d80,0,1) at sched_switch+0x143
mi_switch(1) at mi_switch+0x1ba
db> show lockedvnods
Locked vnodes
vnode 0xc2dbf000: tag ufs, type VREG, usecount 2, writecount 0, refcount 3,
 flags (VV_OBJBUF)
 lock type ufs: EXCL (count 1) by thread 0xc2c50d80 (pid 552) with 1 pending
\tino 25, on dev ad4s1f (4, 16)
db>
"""


def test_processes_of_5_and_6_have_what_their_brackets_say(tmp_path: Path) -> None:
    capture = of(FIVE, tmp_path)
    by_pid = {t.pid: t for t in capture.everyone}
    assert (by_pid[553].state, by_pid[553].wmesg) == ("sleeping", "ufs")
    assert by_pid[553].wchan == 0xC2DBF058 and by_pid[553].comm == "cat"
    assert (by_pid[12].state, by_pid[12].cpu) == ("running", 0)
    assert (by_pid[31].state, by_pid[31].lock_name) == ("locked", "Giant")
    assert by_pid[11].state == "runnable"


def test_a_holder_printed_by_address_and_pid_is_that_process(tmp_path: Path) -> None:
    """As up to 9.x lockmgr_printinfo() prints it; before 8.x with a count of recursion."""
    capture = of(FIVE, tmp_path)
    lock = capture.locks["vnode 0xc2dbf000"]
    assert lock.shared is None and [text.pid for text, _ in lock.holders] == [552]
    analysis = explained(capture)
    (edge,) = owned(analysis)
    assert "dog" in analysis.graph.nodes[edge.target].label


def test_a_holder_whose_address_belongs_to_another_process_is_nobody(tmp_path: Path) -> None:
    wrong = FIVE + ("db> trace 553\nTracing pid 553 tid 100053 td 0xc2c50d80\nf() at f+0x1\ndb>\n")
    lock = of(wrong, tmp_path).locks["vnode 0xc2dbf000"]
    assert not lock.holders and not lock.owners


def test_a_part_of_6_closes_the_bracket_before_the_message(tmp_path: Path) -> None:
    text = (
        "db> ps\n  pid   proc     uid  ppid  pgrp  flag   stat  wmesg    wchan  cmd\n"
        "  553 c2c4e830    0     1   553 0000100 [SLP]select 0xc0a1b044] sshd\n"
        "  560 c2c4e930    0     1   553 0000100 (threaded)  mysqld\n"
        "   thread 0xc2d0b180 ksegrp 0xc2a7b380 [SLPQ kserel 0xc2a7b3d8][SLP]\n"
        "   thread 0xc2d0b300 ksegrp 0xc2a7b380 [CPU 1]\ndb>\n"
    )
    capture = of(text, tmp_path)
    told = sorted((t.pid, t.state, t.wmesg) for t in capture.everyone)
    assert told[0] == (553, "sleeping", "select")
    assert sorted((s, w or "") for p, s, w in told if p == 560) == [
        ("running", ""),
        ("sleeping", "kserel"),
    ]


def test_chains_and_stacks_of_9_on_i386_are_read(tmp_path: Path) -> None:
    text = (
        "FreeBSD 9.3-RELEASE #0 r268512: Thu Jul 10 21:44:27 UTC 2014\n"
        "    root@snap.freebsd.org:/usr/obj/usr/src/sys/GENERIC i386\n"
        "db> ps\n  pid  ppid  pgrp   uid   state   wmesg     wchan    cmd\n"
        " 1034  1000  1034  1001  D+      ufs      0xc6a1b044 cat\n"
        " 1033  1000  1033  1001  D+      biord    0xd8a3c0e0 dog\n"
        "db> show lockchain 100104\n"
        "thread 100104 (pid 1034, cat) blocked on lockmgr ufsEXCL\n"
        'thread 100103 (pid 1033, dog) sleeping on 0xd8a3c0e0 "biord"\n'
        "db> trace 1033\nTracing pid 1033 tid 100103 td 0xc5c5f2f0\n"
        "sched_switch(c5c5f2f0,0,104,18c,5dc) at sched_switch+0x2a2\n"
        "bwait(d8a3c0e0,44,c0f1b2ad,c5c5f2f0) at bwait+0x51/frame 0xe4f91b2c\ndb>\n"
    )
    capture = of(text, tmp_path)
    assert capture.release == "9.3-RELEASE" and capture.blocked[100104]
    assert capture.threads[100103].frames == ["sched_switch", "bwait"]
    (edge,) = owned(explained(capture))
    assert edge.target == "thread:100103"


OBJTRM = """\
FreeBSD 11.0-CURRENT #0: Thu Mar 20 10:00:00 UTC 2014
db> ps
  pid  ppid  pgrp   uid   state   wmesg         wchan        cmd
 1034  1000  1034  1001  D+      objtrm   0xfffff80002cf1af0 cat
db>
"""


def test_a_warning_by_version_is_on_the_screen_in_json_and_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _written(tmp_path, OBJTRM.replace("11.0-CURRENT", "10.0-RELEASE"))
    main([path, "why-stuck"])
    said = " ".join(capsys.readouterr().out.split())
    assert "This release also had, which its version alone says: vm-objtrm:" in said
    main([path, "why-stuck", "--json"])
    data = json.loads(capsys.readouterr().out)["data"]
    assert [each["id"] for each in data["warned"]] == ["vm-objtrm"] and not data["known"]
    page = tmp_path / "page.html"
    main([path, "why-stuck", "--html", str(page)])
    assert '<section id="known">' in page.read_text() and "vm-objtrm" in page.read_text()
    main([_written(tmp_path, OBJTRM.replace("11.0-CURRENT", "12.1-RELEASE")), "why-stuck"])
    assert "vm-objtrm" not in capsys.readouterr().out


def _claims(text: str, tmp_path: Path) -> tuple[set[tuple[str, str]], set[str]]:
    """What a text proves: who holds what, and the releases' bugs it names."""
    try:
        analysis = explained(of(text, tmp_path))
    except WchanError:
        return set(), set()
    names = {id: node.label for id, node in analysis.graph.nodes.items()}
    held = {(names[edge.source], names[edge.target]) for edge in owned(analysis)}
    return held, {cause.kind.value for cause in analysis.causes if cause.cycle is not None}


@pytest.mark.parametrize("text", [FIVE, PS + TURNSTILE], ids=["5.x", "turnstile"])
def test_a_text_cut_anywhere_proves_nothing_that_the_whole_does_not(
    text: str, tmp_path: Path
) -> None:
    whole, cycles = _claims(text, tmp_path)
    assert whole and not cycles
    for end in range(0, len(text), 11):
        held, found = _claims(text[:end], tmp_path)
        assert held <= whole and not found, text[:end][-80:]


def test_the_commands_of_a_session_in_another_order_say_the_same(tmp_path: Path) -> None:
    commands = [f"db> {part}" for part in (PS + TURNSTILE).split("db> ") if part]
    assert _claims("".join(reversed(commands)) + "db>\n", tmp_path) == _claims(
        "".join(commands) + "db>\n", tmp_path
    )
