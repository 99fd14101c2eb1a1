"""klocks: every kind of lock, decoded as each version of FreeBSD keeps it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest

from plugin.catalogue import shipped
from plugin.hosts.runner import run_command
from plugin.judge.locks import contended, lock_waits
from plugin.kernel import locks
from plugin.kernel.lock_object import CLASS_SYMBOLS, LockObject, lock_object
from plugin.kernel.proc import threads
from plugin.opening import open_core
from plugin.session import Kernel
from plugin.waits.analysis import analyse
from plugin.waits.kinds import Certainty, EdgeKind
from tests.damage import damaged
from tests.forge import locks as forge
from tests.forge.machine import Machine
from tests.forge.scenarios import deadlocks

#: (__FreeBSD_version, architecture, options): each has lock words of its own
KERNELS = [
    (700014, "i386", ()),
    (800068, "i386", ()),
    (903000, "amd64", ()),
    (1004000, "amd64", ()),
    (1100120, "amd64", ()),
    (1201000, "amd64", ()),
    (1300139, "amd64", ()),
    (1402000, "amd64", ()),
    (1402000, "amd64", ("INVARIANTS", "WITNESS")),
    (1402000, "i386", ()),
    (1402000, "arm64", ()),
    (1500068, "amd64", ()),
]
kernels = pytest.mark.parametrize(
    "osreldate, arch, variant", KERNELS, ids=lambda value: str(value) if value else "release"
)


def opened(machine: Machine, folder: Path) -> Kernel:
    vmcore, kernel = machine.write(folder)
    return open_core(str(vmcore), str(kernel))


def klocks(kernel: Kernel, *words: str) -> Tuple[str, Dict[str, Any]]:
    """What the command prints, and its data."""
    printed: List[str] = []
    status = run_command("klocks", words, lambda: kernel, printed.append, printed.append)
    assert status == 0, printed
    as_json: List[str] = []
    run_command("klocks", [*words, "--json"], lambda: kernel, as_json.append, as_json.append)
    return "".join(printed), json.loads("".join(as_json))["data"]


@kernels
def test_each_kind_of_lock_has_the_owner_and_the_waiters_it_was_made_with(
    osreldate: int, arch: str, variant: Tuple[str, ...], tmp_path: Path
) -> None:
    machine = deadlocks.every_lock(osreldate=osreldate, arch=arch, variant=variant)
    kernel = opened(machine, tmp_path)
    _, data = klocks(kernel)
    found = {int(lock["address"], 16): lock for lock in data["locks"]}
    assert len(found) == len(machine.expected)
    for kind, (address, lc_name, owner, waiters) in machine.expected.items():
        lock = found[address]
        assert lock["class"] == lc_name, kind
        assert lock["state"] == "exclusive", kind
        assert lock["owners"] == [owner], kind
        assert sorted(waiter["tid"] for waiter in lock["waiters"]) == waiters, kind
        assert [holder["certainty"] for holder in lock["holders"]] == ["proven"], kind


@kernels
def test_a_waiter_says_how_it_wants_the_lock_where_the_kernel_keeps_that(
    osreldate: int, arch: str, variant: Tuple[str, ...], tmp_path: Path
) -> None:
    machine = Machine(osreldate, arch, variant)
    held = machine.locks.sx("map")
    owner, writer, reader = (machine.procs.process(n).thread() for n in ("own", "write", "read"))
    held.owned_by(owner)
    held.slept_on_by(writer)
    held.slept_on_by(reader, shared=True)
    owner.runs_on(0)
    _, data = klocks(opened(machine, tmp_path))
    modes = {waiter["tid"]: waiter["mode"] for waiter in data["locks"][0]["waiters"]}
    assert modes == {writer.tid: "exclusive", reader.tid: "shared"}


@pytest.mark.parametrize("kind", ["rwlock", "sx", "lockmgr"])
@pytest.mark.parametrize("osreldate", [903000, 1201000, 1402000, 1500068])
def test_a_shared_lock_counts_its_sharers_and_its_holder_is_a_guess(
    kind: str, osreldate: int, tmp_path: Path
) -> None:
    machine = deadlocks.reader_writer_starvation(kind, osreldate=osreldate)
    _, data = klocks(opened(machine, tmp_path))
    (lock,) = data["locks"]
    assert lock["state"] == "shared" and lock["sharers"] == 1
    assert len(lock["waiters"]) == 6
    keeps_count = osreldate >= 1200000 or kind != "sx"
    assert [holder["certainty"] for holder in lock["holders"]] == ["guessed"] * keeps_count


@pytest.mark.parametrize(
    "osreldate, arch", [(700014, "i386"), (1402000, "amd64"), (1500068, "amd64")]
)
def test_witness_proves_who_holds_a_lock_shared_and_where_it_was_taken(
    osreldate: int, arch: str, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch, ("INVARIANTS", "WITNESS"))
    if not m.lookup("w_data"):
        m.variable("w_data", 0, size=8)
    lock = m.locks.sx("allproc")
    reader, writer = (m.procs.process(name).thread() for name in ("read", "write"))
    lock.shared_by(reader)
    lock.slept_on_by(writer)
    entries = m.new("lock_list_entry", ll_count=1)
    entries.set(
        **{
            "ll_children[0].li_lock": lock.object,
            "ll_children[0].li_file": m.string("kern/kern_fork.c"),
            "ll_children[0].li_line": 431,
        }
    )
    reader.obj["td_sleeplocks"] = entries
    _, data = klocks(opened(m, tmp_path))
    (found,) = (each for each in data["locks"] if each["name"] == "allproc")
    (holder,) = found["holders"]
    assert (holder["tid"], holder["certainty"]) == (reader.tid, "proven")
    assert "kern/kern_fork.c:431" in holder["evidence"]


def test_a_buffer_handed_to_the_io_is_owned_by_no_thread(tmp_path: Path) -> None:
    for osreldate, arch in ((700014, "i386"), (1402000, "amd64")):
        machine = Machine(osreldate, arch)
        lock = machine.locks.lockmgr("bufwait")
        waiter = machine.procs.process("getblk").thread()
        lock.slept_on_by(waiter)
        lock.owned_by_io()
        _, data = klocks(opened(machine, tmp_path / str(osreldate)))
        (found,) = data["locks"]
        assert (found["state"], found["owners"]) == ("disowned", [])


def test_one_lock_is_shown_whole_by_its_address(tmp_path: Path) -> None:
    machine = deadlocks.every_lock()
    address, _, owner, waiters = machine.expected["sx"]
    text, _ = klocks(opened(machine, tmp_path), f"{address:#x}")
    assert text.startswith(f"sx 'a sx' at {address:#x}: exclusive, word ")
    assert f"held by {owner} sx-owner" in text
    assert all(str(tid) in text for tid in waiters)


def test_an_address_without_a_lock_is_said_to_have_none(tmp_path: Path) -> None:
    kernel = opened(deadlocks.every_lock(), tmp_path)
    errors: List[str] = []
    status = run_command("klocks", ["0x1000"], lambda: kernel, errors.append, errors.append)
    assert status == 1
    assert errors == ["klocks: there is no lock at 0x1000 (no initialized lock_object)"]


def test_a_machine_without_waiters_says_so(tmp_path: Path) -> None:
    text, data = klocks(opened(Machine(1402000, "amd64"), tmp_path))
    assert text == "No thread waits for a lock.\n"
    assert data == {"locks": []}


def test_an_owner_that_is_no_thread_is_a_finding_and_no_crash(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    lock = machine.locks.mutex("lost")
    waiter = machine.procs.process("waiter").thread()
    waiter.blocks_on(lock)
    vmcore, kernel_file = machine.write(tmp_path)
    kernel = open_core(str(vmcore), str(kernel_file))
    (entry,) = contended(kernel)
    broken = entry.lock._replace(state="exclusive", owners=(0xFFFFF80012345000,))
    from plugin.judge.locks import holders

    assert holders(kernel, broken, []) == []
    assert any("is no thread" in finding.detail for finding in kernel.warnings)


def _spinner(machine: Machine) -> Any:
    held = machine.locks.mutex("sched lock", spin=True)
    owner, spinner = (machine.procs.process(name).thread() for name in ("owner", "spinner"))
    held.owned_by(owner)
    owner.runs_on(1)
    return held, owner, spinner


def test_who_spins_is_known_by_td_wantedlock_from_15_0(tmp_path: Path) -> None:
    machine = Machine(1500068, "amd64", cpus=4)
    held, _, spinner = _spinner(machine)
    held.spun_on_by(spinner, 2)
    spinner.obj["td_wantedlock"] = held
    kernel = opened(machine, tmp_path)
    wait = lock_waits(kernel)[spinner.obj.address]
    assert (wait.lock.name, wait.lock.lc_name) == ("sched lock", locks.SPIN)


def test_before_15_0_a_spinners_own_frame_points_at_the_lock(tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64", cpus=4)
    held, _, spinner = _spinner(machine)
    held.spun_on_by(spinner, 2)
    below = spinner.local("_mtx_lock_spin_cookie", 24)
    machine.write_pointer(below, held)
    kernel = opened(machine, tmp_path)
    assert lock_waits(kernel)[spinner.obj.address].lock.address == held.obj.address


@pytest.mark.parametrize(
    "word, state, owner",
    [
        (0, "unlocked", None),
        (4, "destroyed", None),
        (0xFFFFF80002DF2742, "exclusive", 0xFFFFF80002DF2740),
    ],
)
def test_a_mutex_word_of_14_2(word: int, state: str, owner: Optional[int], tmp_path: Path) -> None:
    machine = Machine(1402000, "amd64")
    lock = machine.locks.mutex("example")
    vmcore, kernel_file = machine.write(tmp_path)
    kernel = open_core(str(vmcore), str(kernel_file))
    read = kernel.read
    at = lock.obj.address + kernel.layouts.offsetof("mtx", "mtx_lock")

    def patched(address: int, size: int) -> bytes:
        return word.to_bytes(8, "little") if (address, size) == (at, 8) else read(address, size)

    kernel.read = patched
    found = locks.lock_at(kernel, lock.obj.address)
    assert found is not None
    assert (found.state, found.owners) == (state, (owner,) if owner else ())


def test_the_real_machines_locks_are_those_that_ddb_shows(real_dump: Any) -> None:
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    _, data = klocks(kernel)
    pairs = {
        (waiter["tid"], owner)
        for lock in data["locks"]
        for waiter in lock["waiters"]
        for owner in lock["owners"]
    }
    told = [
        (first["tid"], second["tid"])
        for chain in real_dump.truth["chains"]
        for first, second in zip(chain, chain[1:])
    ]
    assert len(told) > 40
    assert set(told) <= pairs


# struct rmslock: a lock without a lock class of its own


def test_a_reader_that_asks_again_behind_a_writer_is_a_deadlock_through_one_rmslock(
    tmp_path: Path,
) -> None:
    """The reader's stack names the lock further up than the call that waits for it."""
    m = Machine(1402000, "amd64")
    held = m.locks.rmslock("zfs teardown")
    reader, writer, later = (m.procs.process(n).thread() for n in ("rsync", "mountd", "nfsd"))
    held.shared_by(reader)
    held.slept_on_by(writer, seconds=100)
    reader.call("example_fault", "example_read")
    m.write_pointer(reader.frames[-2].fp - 8, int(held))
    held.slept_on_by(reader, shared=True, seconds=90)
    held.slept_on_by(later, shared=True, seconds=80)
    kernel = opened(m, tmp_path)
    (entry,) = contended(kernel)
    (holder,) = entry.holders
    assert (holder.thread.comm, holder.certainty) == ("rsync", "guessed")
    assert (entry.lock.lc_name, entry.lock.state, entry.lock.sharers) == (locks.RMS, "shared", 1)
    assert [(t.comm, mode) for t, mode in entry.waiters] == [
        ("mountd", "exclusive"),
        ("rsync", "shared"),
        ("nfsd", "shared"),
    ]


@pytest.mark.parametrize("arch", ["amd64", "i386", "arm64"])
@pytest.mark.parametrize("osreldate", [1300139, 1402000])
def test_readers_of_an_rmslock_are_counted_on_every_cpu(
    arch: str, osreldate: int, tmp_path: Path
) -> None:
    m = Machine(osreldate, arch, cpus=2)
    held = m.locks.rmslock("zfs teardown")
    held.shared_by(m.procs.process("a").thread(), m.procs.process("b").thread())
    kernel = opened(m, tmp_path)
    mutex = lock_object(kernel, int(held))
    assert mutex is not None
    as_rms = locks.decode(kernel, mutex._replace(lc_name=locks.RMS))
    assert (as_rms.state, as_rms.sharers) == ("shared", 2)


def test_a_lock_of_an_unknown_class_is_a_finding_not_silence(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    held = m.locks.sx("strange")
    held.slept_on_by(m.procs.process("waiter").thread())
    held.owned_by(m.procs.process("owner").thread())
    kernel = opened(m, tmp_path)
    kernel.start_command()
    found = lock_object(kernel, int(held))
    assert found is not None
    assert locks.decode(kernel, found._replace(lc_name="futurelock")).state == "unreadable"
    assert any("unknown class, 'futurelock'" in f.detail for f in kernel.warnings)
    assert kernel.warnings.partial


@pytest.fixture
def ticketed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    """A kernel with a kind of lock that wchan does not have: rwlocks that are called "ticket"."""
    monkeypatch.setitem(forge._CLASSES, "rw", ("lock_class_ticket", 1, 0))
    m = Machine(1402000, "amd64")
    m.locks._classes["rw"].set(lc_name="ticket")
    lock = m.locks.rwlock("turn")
    lock.owned_by(m.procs.process("owner").thread())
    m.procs.process("waiter").thread().blocks_on(lock)
    # what a registration leaves behind goes with the test
    monkeypatch.setattr(locks, "_CLASSES", dict(locks._CLASSES))
    monkeypatch.setitem(CLASS_SYMBOLS, "lock_class_ticket", "ticket")
    return opened(m, tmp_path)


def test_a_thread_at_a_lock_of_an_unknown_kind_makes_the_report_partial(ticketed: Kernel) -> None:
    ticketed.start_command()
    (found,) = contended(ticketed)
    assert (found.lock.name, found.lock.state) == ("turn", "unreadable")
    assert ticketed.warnings.partial
    assert "is of an unknown class, 'ticket'" in [f.detail for f in ticketed.warnings]


def test_a_kind_of_lock_is_one_class(ticketed: Kernel) -> None:
    @locks.lock_class
    class Ticket(locks.LockClass):
        name, word, symbol = "ticket", "ticket lock", "lock_class_ticket"

        def decode(self, kernel: Kernel, lock: LockObject) -> locks.Lock:
            word = kernel.pointer(lock.address + kernel.layouts.offsetof("rwlock", "rw_lock"))
            return locks.Lock(lock.address, lock.name, self.name, "exclusive", (word & ~0x1F,))

    shown, data = klocks(ticketed)
    (entry,) = data["locks"]
    assert entry["class"] == "ticket" and 'ticket lock "turn"' in shown
    named = {thread.tid: thread.name for thread in threads(ticketed)}
    assert [named[tid] for tid in entry["owners"]] == ["owner"]
    assert [named[waiter["tid"]] for waiter in entry["waiters"]] == ["waiter"]
    at_lock = {
        (edge.kind, edge.certainty)
        for edge in analyse(ticketed, shipped()).graph.edges
        if entry["address"] in edge.source + edge.target
    }
    assert at_lock == {
        (EdgeKind.WAITS_FOR, Certainty.PROVEN),
        (EdgeKind.OWNED_BY, Certainty.PROVEN),
    }


def test_two_lock_names_that_cannot_be_read_are_not_the_same(tmp_path: Path) -> None:
    m = Machine(1402000, "amd64")
    held = m.locks.sx("map")
    waiter = m.procs.process("waiter").thread()
    held.slept_on_by(waiter)
    held.owned_by(m.procs.process("owner").thread())
    kernel = opened(m, tmp_path)
    assert lock_waits(kernel)
    nowhere = (0xFFFFF80000000008).to_bytes(8, "little")
    name = int(held) + kernel.layouts.offsetof("lock_object", "lo_name")
    wmesg = waiter.obj.address + kernel.layouts.offsetof("thread", "td_wmesg")
    broken = damaged(kernel, words={name: nowhere, wmesg: nowhere})
    # The kind of its sleep queue says that it is an sx; without that nothing does.
    assert [wait.lock.name for wait in lock_waits(broken).values()] == [None]
    for kind, found in (("sx", True), (None, False), ("sleep", False)):
        channel = locks.LockChannel(int(held), kind, 0xFFFFF80000000008, None)
        assert (locks.lock_of_channel(broken, channel) is not None) == found
    assert broken.warnings.partial
