"""why-stuck: each state of a machine, and the sentence that explains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

import pytest

from plugin.hosts.runner import run_command
from plugin.opening import open_core
from plugin.session import Kernel
from plugin.waits.kinds import NodeKind
from tests.forge.machine import Machine
from tests.forge.scenarios import deadlocks, memory, pbufs
from tests.forge.scenarios.sendfile_panic import sendfile_panic
from tests.forge.scenarios.storage_deadlock import storage_deadlock


class Answer:
    """What why-stuck prints of a machine, and its data."""

    def __init__(self, kernel: Kernel, partial: bool = False) -> None:
        self.kernel = kernel
        status = 3 if partial else 0
        self.text = self.run(status=status)
        self.data: Dict[str, Any] = json.loads(self.run("--json", status=status))["data"]
        self.verdict: str = self.data["verdict"]
        self.causes: List[Dict[str, Any]] = self.data["causes"]
        self.nodes = {node["id"]: node for node in self.data["nodes"]}

    def run(self, *words: str, status: int = 0) -> str:
        printed: List[str] = []
        got = run_command("why-stuck", words, lambda: self.kernel, printed.append, printed.append)
        assert got == status, printed
        return "".join(printed)

    def cause_of(self, tid: int) -> Optional[Dict[str, Any]]:
        return next((cause for cause in self.causes if tid in cause["tids"]), None)

    def chain_of(self, tid: int) -> Dict[str, Any]:
        return next(chain for chain in self.data["chains"] if tid in chain["tids"])

    def labels(self, tid: int) -> List[str]:
        return [self.nodes[id]["label"] for id in self.chain_of(tid)["path"]]


def explain(machine: Machine, folder: Path) -> Answer:
    vmcore, kernel = machine.write(folder)
    return Answer(open_core(str(vmcore), str(kernel)))


def thread(machine: Machine, comm: str = "user") -> Any:
    return machine.procs.process(comm).thread(calls=("kern_example", "sys_example"))


def check_contract(answer: Answer) -> None:
    """What holds of every answer: the JSON contract, and each stuck thread counted once."""
    data = answer.data
    assert data["threads"]["total"] == data["threads"]["idle"] + data["threads"]["stuck"]
    assert {node["kind"] for node in data["nodes"]} <= {str(kind) for kind in NodeKind}
    assert all(("tid" in node) == (node["kind"] == "thread") for node in data["nodes"])
    links = {"waits-for", "owned-by", "served-by", "needs", "contained-in"}
    joined: Set[Tuple[str, str]] = set()
    for edge in data["edges"]:
        assert edge["kind"] in links and edge["evidence"]
        assert edge["certainty"] in ("proven", "catalogued", "guessed")
        assert edge["from"] in answer.nodes and edge["to"] in answer.nodes
        joined.add((edge["from"], edge["to"]))
    for chain in data["chains"]:
        assert chain["end"] == chain["path"][-1]
        assert set(zip(chain["path"], chain["path"][1:])) <= joined
        assert answer.nodes[chain["path"][0]]["tid"] == chain["tids"][0]
    counted = [tid for cause in data["causes"] for tid in cause["tids"]] + data["residue"]
    assert len(counted) == len(set(counted)) == data["threads"]["stuck"]
    assert [cause["rank"] for cause in data["causes"]] == list(range(1, len(answer.causes) + 1))
    sizes = [len(cause["tids"]) for cause in data["causes"]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(cause["node"] in answer.nodes for cause in answer.causes)


# Deadlocks


@pytest.mark.parametrize("kind", [k for k in deadlocks.KINDS if k != "spin"])
def test_two_threads_that_take_two_locks_in_two_orders_are_a_deadlock(
    kind: str, tmp_path: Path
) -> None:
    machine = deadlocks.abba(kind, kind)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert (cause["kind"], cause["certainty"]) == ("deadlock", "proven")
    assert set(cause["tids"]) == {machine.cast["alpha"].tid, machine.cast["beta"].tid}
    assert answer.verdict.startswith("Deadlock: ")
    assert "alpha waits for " in answer.verdict and "beta waits for " in answer.verdict


@pytest.mark.parametrize(
    "osreldate, arch",
    [
        (700014, "i386"),
        (903000, "amd64"),
        (1201000, "amd64"),
        (1402000, "arm64"),
        (1402000, "i386"),
        (1500068, "amd64"),
    ],
)
@pytest.mark.parametrize("kinds", [("mutex", "sx"), ("lockmgr", "rwlock")])
def test_locks_of_two_kinds_deadlock_in_every_version(
    osreldate: int, arch: str, kinds: Tuple[str, str], tmp_path: Path
) -> None:
    answer = explain(deadlocks.abba(*kinds, osreldate=osreldate, arch=arch), tmp_path)
    check_contract(answer)
    assert [cause["kind"] for cause in answer.causes] == ["deadlock"]


def test_two_spinning_cpus_are_a_deadlock_where_the_kernel_says_what_they_spin_for(
    tmp_path: Path,
) -> None:
    machine = deadlocks.abba("spin", "spin", osreldate=1500068)
    first, second = (lock for lock in machine.locks.all if lock.name.startswith("lock "))
    machine.cast["alpha"].obj["td_wantedlock"] = second
    machine.cast["beta"].obj["td_wantedlock"] = first
    answer = explain(machine, tmp_path)
    (cause,) = answer.causes
    assert (cause["kind"], len(cause["tids"])) == ("deadlock", 2)


def test_a_three_party_cycle_through_three_kinds_of_lock_is_one_deadlock(tmp_path: Path) -> None:
    answer = explain(deadlocks.ring(("sx", "lockmgr", "mutex")), tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "deadlock"
    assert len([id for id in cause["cycle"] if id.startswith("thread:")]) == 3
    assert "3 threads in it." in answer.verdict


def test_a_tail_stands_behind_the_cycle_and_is_not_called_part_of_it(tmp_path: Path) -> None:
    machine = deadlocks.ring(("sx", "lockmgr", "mutex"), tail=3)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert len(cause["tids"]) == 6
    tails = {f"thread:{machine.cast[f'tail{n}'].tid}" for n in range(3)}
    assert not tails & set(cause["cycle"])
    assert "3 threads in it, 3 more behind it." in answer.verdict


@pytest.mark.parametrize("kind", ["sx", "lockmgr", "rwlock"])
def test_a_diamond_is_no_cycle(kind: str, tmp_path: Path) -> None:
    machine = deadlocks.diamond(kind)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert (cause["kind"], len(cause["tids"])) == ("running", 3)
    assert answer.nodes[cause["node"]]["tid"] == machine.cast["bottom"].tid
    assert "runs on CPU 1" in answer.verdict and answer.verdict.endswith("No deadlock.")


@pytest.mark.parametrize("kind", ["sx", "lockmgr", "rwlock"])
def test_of_several_owners_the_one_that_sleeps_is_the_cause(kind: str, tmp_path: Path) -> None:
    machine = deadlocks.shared_owners(kind)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    cause = answer.cause_of(machine.cast["writer"].tid)
    assert cause is not None
    assert answer.nodes[cause["node"]]["tid"] == machine.cast["reader0"].tid
    assert cause["certainty"] == "guessed"
    assert answer.data["residue"] == [machine.cast["reader0"].tid]


@pytest.mark.parametrize("kind", ["sx", "lockmgr", "rwlock"])
def test_starved_readers_wait_behind_the_reader_that_runs_not_behind_the_writer(
    kind: str, tmp_path: Path
) -> None:
    machine = deadlocks.reader_writer_starvation(kind)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "running" and len(cause["tids"]) == 6
    assert answer.nodes[cause["node"]]["tid"] == machine.cast["reader"].tid


def test_a_row_of_locks_of_all_kinds_ends_at_the_thread_that_runs(tmp_path: Path) -> None:
    machine = deadlocks.chain(6)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    path = answer.chain_of(machine.cast["link0"].tid)["path"]
    walked = [answer.nodes[id]["tid"] for id in path if answer.nodes[id]["kind"] == "thread"]
    assert walked == [machine.cast[f"link{n}"].tid for n in range(6)]


# The first report and its family


@pytest.fixture(scope="module")
def first_report(tmp_path_factory: pytest.TempPathFactory) -> Answer:
    return explain(storage_deadlock(), tmp_path_factory.mktemp("first report"))


def test_the_first_report_is_pacing_in_a_cycle_through_resources(first_report: Answer) -> None:
    check_contract(first_report)
    (cause,) = first_report.causes
    assert cause["kind"] == "pacing"
    assert len(cause["tids"]) == first_report.data["threads"]["stuck"]
    kinds = [first_report.nodes[id]["kind"] for id in cause["cycle"]]
    assert sorted(kinds) == sorted(["thread", "memory", "thread", "pool", "buf", "bio", "queue"])
    assert "lock" not in kinds


def test_the_first_reports_verdict_says_what_its_author_could_not_see(
    first_report: Answer,
) -> None:
    verdict = first_report.verdict
    assert "GEOM is pacing, not blocked: at most 10 bios a second, 559 bios queued." in verdict
    assert "a cycle through resources, with no lock in it" in verdict
    assert "All 4 pbufs in use of that pool are attached to bios in g_bio_run_down." in verdict
    assert "The free pages that would end it are what the page daemon cannot make." in verdict
    assert verdict.endswith("No deadlock.")


def test_in_the_first_report_the_disk_owes_nothing(first_report: Answer) -> None:
    assert "The disk da0 owes nothing: 396 bios are queued for it" in first_report.verdict
    assert not [cause for cause in first_report.causes if cause["kind"] == "device"]


def test_the_first_report_fits_a_terminal(first_report: Answer) -> None:
    assert max(map(len, first_report.text.splitlines())) <= 80
    assert len(first_report.text.splitlines()) < 60


@pytest.mark.parametrize(
    "osreldate, arch",
    [(700014, "i386"), (1004000, "amd64"), (1201000, "amd64"), (1402000, "amd64")],
)
def test_the_sibling_a_page_daemon_that_waits_for_the_pages_it_has_to_make(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    machine = memory.sibling(osreldate=osreldate, arch=arch)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "deadlock"
    assert len(cause["tids"]) == 1 + sum(machine.expected.values())
    assert "free pages -> pagedaemon" in answer.verdict
    assert not [node for node in answer.data["nodes"] if node["kind"] == "lock"]


@pytest.mark.parametrize(
    "osreldate, arch",
    [(700014, "i386"), (1004000, "amd64"), (1201000, "amd64"), (1402000, "amd64")],
)
def test_pages_are_free_again_and_nobody_was_woken(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    machine = memory.lost_wakeup(osreldate=osreldate, arch=arch)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "lost-wakeup"
    assert len(cause["tids"]) == sum(machine.expected.values())
    assert "idle" in cause["evidence"]
    assert answer.verdict.startswith("Lost wakeup: pages are free again")


def test_memory_and_swap_are_full_and_the_page_daemon_finds_nothing(tmp_path: Path) -> None:
    answer = explain(memory.exhausted(), tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "memory"
    assert "20 free pages, the minimum is" in cause["summary"]


def test_a_page_that_invariants_kernels_know_the_owner_of_leads_to_it(tmp_path: Path) -> None:
    machine = memory.page_states(variant=("INVARIANTS",))
    answer = explain(machine, tmp_path)
    check_contract(answer)
    waiter, owner = machine.cast["waiter"].tid, machine.cast["owner"].tid
    assert answer.labels(waiter)[2].startswith(f"{owner} ")
    assert answer.chain_of(waiter)["certainty"] == "proven"


def test_without_invariants_the_owner_of_a_page_is_not_made_up(tmp_path: Path) -> None:
    machine = memory.page_states()
    answer = explain(machine, tmp_path)
    assert machine.cast["waiter"].tid in answer.data["residue"]
    assert "its holder is not recorded" in answer.text


def test_a_full_pool_of_pbufs_leads_to_the_device_of_its_writes(tmp_path: Path) -> None:
    answer = explain(pbufs.exhaustion(), tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "device"
    assert any(
        answer.nodes[id]["kind"] == "pool" for c in answer.data["chains"] for id in c["path"]
    )


# Panics


def test_the_second_report_is_explained_by_the_page_itself(tmp_path: Path) -> None:
    answer = explain(sendfile_panic(), tmp_path)
    said = " ".join(answer.text.split())
    assert "is bogus_page itself, busy_lock 0x01 (unbusied)" in said
    assert answer.data["panic"]["kind"] == "page"
    assert "sendfile_swapin() put it" in answer.data["panic"]["verdict"]


def test_deadlkres_names_the_thread_and_why_stuck_its_cause(tmp_path: Path) -> None:
    machine = deadlocks.abba("sx", "sx")
    resolver = machine.procs.kthread("deadlkres", calls=("deadlkres",))
    victim = machine.cast["alpha"]
    message = (
        f"deadlkres: possible deadlock detected for {int(victim.obj.address):#x} (alpha), "
        "blocked for 1800000 ticks"
    )
    machine.panics(resolver, message, 0)
    answer = explain(machine, tmp_path)
    assert answer.data["panic"]["kind"] == "deadlkres"
    assert answer.data["panic"]["about"] == victim.tid
    assert f"because thread {victim.tid} alpha had waited" in answer.text
    assert "It is behind cause 1: " in answer.text


def test_any_other_panic_names_its_thread_and_where_it_happened(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    culprit = machine.procs.process("culprit").thread(calls=("panic", "example_fn", "sys_example"))
    machine.panics(culprit, "example: something is wrong", 0)
    answer = explain(machine, tmp_path)
    assert "panic: example: something is wrong" in answer.text
    assert f"Thread {culprit.tid} culprit" in answer.text and "in example_fn" in answer.text


# Idle, timed, unknown


def test_an_idle_machine_has_no_stuck_thread(tmp_path: Path) -> None:
    answer = explain(Machine(1402000, "amd64"), tmp_path)
    check_contract(answer)
    assert answer.data["threads"]["stuck"] == 0
    assert answer.verdict == "No thread is stuck."


def test_an_unknown_wait_is_residue_and_says_that_no_server_is_known(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    channel = machine.variable("example_channel", 0, size=4)
    sleepers = [thread(machine) for _ in range(3)]
    for sleeper in sleepers:
        sleeper.sleeps(channel, "exwait", seconds=30)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    assert sorted(answer.data["residue"]) == [sleeper.tid for sleeper in sleepers]
    assert '3 threads in "exwait" at example_channel: no known server' in answer.text


def test_an_unknown_sleep_with_a_timeout_wakes_by_itself_and_is_not_stuck(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    sleeper = thread(machine)
    sleeper.sleeps(machine.take(8), "exwait", seconds=30, timeout=60.0)
    answer = explain(machine, tmp_path)
    assert answer.data["threads"]["stuck"] == 0
    assert f"{sleeper.tid}" in answer.run("--all")


def test_a_timeout_of_ten_hours_is_none(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    sleeper = thread(machine)
    sleeper.sleeps(machine.take(8), "exwait", seconds=30, timeout=36000.0)
    answer = explain(machine, tmp_path)
    assert answer.data["residue"] == [sleeper.tid]
    assert "its timeout ends it in 9 h 59 m" in answer.run("--json")


@pytest.mark.parametrize("wmesg", ["select", "kqread", "nanslp", "piperd", "wait", "uwait"])
def test_a_user_process_that_waits_for_the_world_is_not_stuck(wmesg: str, tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    thread(machine).sleeps(machine.take(64), wmesg, seconds=900, interruptible=True)
    assert explain(machine, tmp_path).data["threads"]["stuck"] == 0


def test_who_holds_a_lock_while_it_waits_for_the_world_is_the_cause(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    holder, waiter = thread(machine, "holder"), thread(machine, "waiter")
    lock = machine.locks.sx("held")
    lock.owned_by(holder)
    lock.slept_on_by(waiter)
    holder.sleeps(machine.take(64), "kqread", seconds=900, interruptible=True)
    answer = explain(machine, tmp_path)
    check_contract(answer)
    (cause,) = answer.causes
    assert cause["kind"] == "external"
    assert sorted(cause["tids"]) == sorted([waiter.tid, holder.tid])
    assert 'holder in "kqread" holds sx "held"' in cause["summary"]


def test_a_lock_that_is_free_with_sleepers_on_it_is_a_lost_wakeup(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    waiter = thread(machine)
    machine.locks.sx("free").slept_on_by(waiter)
    answer = explain(machine, tmp_path)
    (cause,) = answer.causes
    assert (cause["kind"], cause["tids"]) == ("lost-wakeup", [waiter.tid])


def test_two_waits_on_one_channel_are_told_apart_by_their_messages(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    channel = machine.variable("softc", 0, size=64)
    for wmesg in ("exone", "extwo"):
        thread(machine).sleeps(channel, wmesg, seconds=30)
    answer = explain(machine, tmp_path)
    channels = [node for node in answer.data["nodes"] if node["kind"] == "channel"]
    labels = {node["label"] for node in channels}
    assert {'"exone" at softc', '"extwo" at softc'} <= labels


def test_a_wait_of_half_an_hour_is_marked_long(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64", uptime=9000.0)
    owner, waiter = thread(machine), thread(machine)
    lock = machine.locks.mutex("slow")
    lock.owned_by(owner)
    owner.runs_on(0)
    waiter.blocks_on(lock, seconds=1000)
    assert "for 16 m 40 s (long)" in explain(machine, tmp_path).text


# One thread, and what a person asks next


def test_a_thread_is_named_by_tid_pid_or_name_and_shown_to_its_end(tmp_path: Path) -> None:
    machine = deadlocks.chain(4)
    answer = explain(machine, tmp_path)
    first = machine.cast["link0"]
    by_tid = answer.run(str(first.tid))
    assert by_tid == answer.run(str(first.process.pid)) == answer.run("link0")
    assert by_tid == answer.run("--tid", str(first.tid))
    assert by_tid.count("[proven: ") == 6
    assert "end        running: " in by_tid


def test_a_name_that_nobody_has_is_refused(tmp_path: Path) -> None:
    answer = explain(Machine(1402000, "amd64"), tmp_path)
    assert "no thread, process or name 'nobody'" in answer.run("nobody", status=1)


def test_all_shows_who_is_not_stuck_and_what_it_was_taken_for(tmp_path: Path) -> None:
    text = explain(memory.sibling(), tmp_path).run("--all")
    assert "not stuck" in text
    assert "idle" in text


def test_a_users_catalogue_explains_what_the_shipped_one_does_not_know(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    worker = machine.procs.kthread("exworker", calls=("example_main",))
    worker.runs_on(0)
    sleeper = thread(machine)
    sleeper.sleeps(machine.take(8), "exwait", seconds=30)
    answer = explain(machine, tmp_path)
    assert answer.data["residue"] == [sleeper.tid]
    rows = tmp_path / "rows.yaml"
    rows.write_text("- wmesg: exwait\n  woken_by: the example worker\n  server: [exworker]\n")
    data = json.loads(answer.run("--catalogue", str(rows), "--json"))["data"]
    assert data["residue"] == []
    (cause,) = data["causes"]
    assert (cause["kind"], cause["certainty"]) == ("running", "catalogued")


def test_the_graph_is_given_to_graphviz_with_nothing_unquoted(tmp_path: Path) -> None:
    machine = deadlocks.abba("sx", "mutex")
    dot = explain(machine, tmp_path).run("--dot")
    assert dot.startswith("digraph waits {") and dot.rstrip().endswith("}")
    assert dot.count("->") == 4
    assert "lock A" in dot


# The real machines


@pytest.fixture(scope="module")
def real(real_dump: Any) -> Tuple[Answer, Dict[str, Any]]:
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    return Answer(kernel), real_dump.truth


def test_the_real_machines_answer_keeps_the_contract(real: Tuple[Answer, Any]) -> None:
    check_contract(real[0])


def test_every_chain_that_ddb_shows_is_in_the_graph(real: Tuple[Answer, Any]) -> None:
    answer, truth = real
    tids = {node.get("tid"): node["id"] for node in answer.nodes.values()}
    out: Dict[str, Set[str]] = {}
    for edge in answer.data["edges"]:
        out.setdefault(edge["from"], set()).add(edge["to"])
    locks = {id for id, node in answer.nodes.items() if node["kind"] == "lock"}
    for chain in truth["chains"]:
        assert all(link["tid"] in tids for link in chain)
        for first, second in zip(chain, chain[1:]):
            through = out[tids[first["tid"]]] & locks
            assert any(tids[second["tid"]] in out[lock] for lock in through)


def test_no_cycle_is_claimed_where_there_is_none(real: Tuple[Answer, Any]) -> None:
    answer, _ = real
    assert not [cause for cause in answer.causes if cause["kind"] == "deadlock"]
    threads = answer.data["threads"]
    understood, not_understood = threads["understood"], threads["not_understood"]
    assert understood and not_understood
    assert answer.verdict.endswith(
        f"No deadlock among the {understood} waits understood; {not_understood} are not."
    )


def _devices(answer: Answer) -> Dict[str, Dict[str, Any]]:
    return {
        answer.nodes[cause["node"]]["label"]: cause
        for cause in answer.causes
        if cause["kind"] == "device"
    }


def _named(truth: Dict[str, Any], wmesgs: Sequence[str]) -> Set[int]:
    """tids of the chains in DDB's output that end in one of these messages, all their threads."""
    found = set()
    for chain in truth["chains"]:
        if any(f'"{wmesg}"' in chain[-1]["what"] for wmesg in wmesgs):
            found |= {link["tid"] for link in chain}
    return found


def test_the_three_disks_that_never_answer_are_named_and_no_other(
    real: Tuple[Answer, Any],
) -> None:
    answer, truth = real
    devices = _devices(answer)
    assert set(devices) == {"vtbd1", "vtbd2", "vtbd4"}
    behind_disks = {tid for cause in devices.values() for tid in cause["tids"]}
    assert _named(truth, ["biord", "physrd"]) <= behind_disks
    assert _named(truth, ["biord", "physrd"]).isdisjoint(devices["vtbd2"]["tids"])


def test_memory_waits_for_the_swap_disk_through_the_laundry(real: Tuple[Answer, Any]) -> None:
    answer, truth = real
    swap = _devices(answer)["vtbd2"]
    starved = _named(truth, ["pfault", "vmwait"])
    assert starved and starved <= set(swap["tids"])
    labels = answer.labels(min(starved))
    assert labels[1] == "free pages"
    assert any("laundry" in label for label in labels)
    assert any("nsw_wcount_async" in label for label in labels)
    assert labels[-1] == "vtbd2"
    assert "the swap disk vtbd2" in answer.verdict and "laundry thread" in answer.verdict


def test_the_thread_that_spins_on_a_cpu_is_a_cause_with_its_waiters(
    real: Tuple[Answer, Any],
) -> None:
    answer, truth = real
    chains = [
        c for c in truth["chains"] if "is running" in c[-1]["what"] or "running on" in c[-1]["what"]
    ]
    spinner = {chain[-1]["tid"] for chain in chains}
    assert len(spinner) == 1
    waiters = {link["tid"] for chain in chains for link in chain[:-1]}
    cause = next(c for c in answer.causes if c["kind"] == "running")
    assert answer.nodes[cause["node"]]["tid"] in spinner
    assert waiters <= set(cause["tids"])
    assert "mtx-spinner0 runs on CPU 1" in cause["summary"]


def test_timed_sleepers_idle_threads_and_user_sleeps_are_not_stuck(
    real: Tuple[Answer, Any],
) -> None:
    answer, truth = real
    counted = {tid for cause in answer.causes for tid in cause["tids"]}
    counted |= set(answer.data["residue"])
    innocent = _named(truth, ["httmo", "nanslp", "piperd", "uwait", "-", "syncer", "swapin"])
    assert len(innocent) > 20
    assert innocent.isdisjoint(counted)


def test_the_test_modules_own_channel_is_residue(real: Tuple[Answer, Any]) -> None:
    answer, truth = real
    unknown = {
        link[0]["tid"]
        for link in truth["chains"]
        if len(link) == 1 and any(f'"{w}"' in link[0]["what"] for w in ("htstuck", "ht cv"))
    }
    assert len(unknown) == 4
    assert set(answer.data["residue"]) == unknown
    assert "no known server" in answer.text


def test_the_real_machines_first_screen_fits_a_terminal(real: Tuple[Answer, Any]) -> None:
    assert max(map(len, real[0].text.splitlines())) <= 80
