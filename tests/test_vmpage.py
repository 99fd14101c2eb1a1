"""vmpage: pages of every encoding, the scan against the kernel's counters, the second report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Tuple

import pytest
from answers import answer as shell
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.errors import UsageError
from plugin.judge import pages as vm_pager
from plugin.judge.pages import check_array
from plugin.judge.panics import page_panic
from plugin.kernel.buf import b_pages, buf_at
from plugin.kernel.vm_object import object_at, page_addresses
from plugin.kernel.vm_page import page_at, verdict
from plugin.kernel.vm_page_columns import Members, Numpy, Plain
from plugin.kernel.vm_page_scan import (
    Predicates,
    busy_pages,
    checks,
    resident,
    resolve,
    scan,
)
from plugin.kernel.vm_phys import page_array
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.machine import Machine, shipped_layouts
from tests.forge.scenarios import memory
from tests.forge.scenarios.sendfile_panic import PAGE, sendfile_panic

#: a kernel of each way to write down that a page is busy
ENCODINGS = (
    (700014, "i386", ()),
    (903000, "amd64", ()),
    (1004000, "amd64", ()),
    (1100120, "i386", ()),
    (1201000, "amd64", ()),
    (1300139, "arm64", ()),
    (1402000, "i386", ()),
    (1402000, "amd64", ("INVARIANTS",)),
    (1500068, "amd64", ("INVARIANTS",)),
    (1500068, "arm64", ()),
)


@pytest.fixture
def forged(tmp_path: Path) -> Callable[[Machine], Any]:
    """Writes a machine's dump; ``.kernel``, ``.vmcore`` are its files, ``.open()`` opens it."""

    def write(machine: Machine) -> Any:
        vmcore, kernel = machine.write(tmp_path)
        return SimpleNamespace(
            vmcore=vmcore, kernel=kernel, open=lambda: open_core(str(vmcore), str(kernel))
        )

    return write


def answer(dump: Any, *arguments: str, status: int = 0) -> Dict[str, Any]:
    code, out, err = shell(dump, "vmpage", "--json", *arguments)
    assert code == status, err
    value: Dict[str, Any] = json.loads(out)["data"]
    return value


# The real machines


def test_queues_and_free_pages_are_those_that_ddb_printed(real_dump: Any) -> None:
    data = answer(real_dump, "--scan")
    pageq = real_dump.truth["pageq"]
    assert data["queues"]["active"] == pageq["act"]
    assert data["queues"].get("inactive", 0) == pageq["inact"]
    assert data["queues"]["laundry"] == pageq["laund"]
    assert data["queues"].get("unswappable", 0) == pageq["unsw"]
    (domain,) = [d for d in data["domains"] if d["index"] is not None]
    assert domain["free"] == pageq["free"]
    assert sum(data["counts"].values()) == data["scanned"]
    assert data["checks"]
    assert all(check["agrees"] for check in data["checks"])


def test_the_pages_of_every_locked_buffer_are_busy(real_dump: Any) -> None:
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    busy = {page.address for page in busy_pages(kernel)}
    for locked in real_dump.truth["lockedbufs"]:
        buf = buf_at(kernel, int(locked["address"], 16))
        pages = b_pages(kernel, buf)
        assert pages, locked
        assert set(pages) <= busy
        assert all(page_at(kernel, page).busy.state == "shared" for page in pages)


def test_the_pages_that_are_on_their_way_to_swap_are_busy_and_said_to_be(real_dump: Any) -> None:
    pages = answer(real_dump, "--scan")["pages"]
    swapping = [p for p in pages if "VPO_SWAPINPROG" in p["flags"]]
    assert swapping
    for page in swapping:
        assert page["busy"]["state"] == "shared"
        assert page["object_type"] == "swap"
        assert len(page["bufs"]) == 1


@pytest.mark.parametrize(
    "wanted",
    [
        Predicates(),
        Predicates(busy="any"),
        Predicates(busy="exclusive", wired=True),
        Predicates(queue="laundry", dirty=True),
        Predicates(queue="none", domain=0),
    ],
)
def test_with_and_without_numpy_the_result_is_the_same(real_dump: Any, wanted: Predicates) -> None:
    pytest.importorskip("numpy", reason="numpy is what the plain result is compared with")
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    plain = scan(kernel, wanted, numpy=False, keep=500)
    assert plain == scan(kernel, wanted, numpy=True, keep=500)
    assert plain.matched >= len(plain.pages)
    for page in plain.pages:
        assert not wanted.dirty or page.dirty
        assert not wanted.wired or page.wired
        assert wanted.queue is None or page.queue == wanted.queue


def test_a_page_is_found_by_its_struct_its_address_and_its_object(real_dump: Any) -> None:
    kernel = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    page = next(p for p in busy_pages(kernel, "shared") if p.object)
    assert resolve(kernel, hex(page.address)) == page.address
    assert resolve(kernel, hex(page.phys_addr + 0x123)) == page.address
    assert resolve(kernel, f"{page.object:#x}:{page.pindex:#x}") == page.address
    with pytest.raises(UsageError, match="is no vm_page"):
        resolve(kernel, hex(page.address + 8))
    with pytest.raises(UsageError, match="no resident page"):
        resolve(kernel, f"{page.object:#x}:{1 << 40}")


# Every encoding


def states(kernel: Kernel, expected: Dict[str, int]) -> Dict[str, Tuple[Any, ...]]:
    found = {}
    for name, at in expected.items():
        busy = page_at(kernel, at).busy
        found[name] = (busy.state, busy.sharers, busy.waiters, busy.owner)
    return found


@pytest.mark.parametrize(("osreldate", "arch", "variant"), ENCODINGS)
def test_a_busy_page_is_read_in_the_words_of_its_kernel(
    forged: Any, osreldate: int, arch: str, variant: Tuple[str, ...]
) -> None:
    machine = memory.page_states(osreldate=osreldate, arch=arch, variant=variant)
    kernel = forged(machine).open()
    owner = machine.cast["owner"].tid if "INVARIANTS" in variant else None
    assert states(kernel, machine.expected) == {
        "unbusied": ("unbusied", 0, False, None),
        "exclusive": ("exclusive", 0, False, owner),
        "waited": ("exclusive", 0, True, owner),
        "shared": ("shared", 1, False, None),
        "shared3": ("shared", 3, False, None),
        "dirty": ("unbusied", 0, False, None),
        "partly valid": ("unbusied", 0, False, None),
        "wired": ("unbusied", 0, False, None),
        "bogus": ("unbusied", 0, False, None),
    }
    assert page_at(kernel, machine.expected["dirty"]).dirty == 0xFF
    assert page_at(kernel, machine.expected["partly valid"]).valid == 0x0F
    assert page_at(kernel, machine.expected["wired"]).wire_count == 2
    assert page_at(kernel, machine.expected["bogus"]).is_bogus


@pytest.mark.parametrize(("osreldate", "arch", "variant"), ENCODINGS)
def test_the_scan_agrees_with_the_counters_of_every_kernel(
    forged: Any, osreldate: int, arch: str, variant: Tuple[str, ...]
) -> None:
    machine = memory.page_states(osreldate=osreldate, arch=arch, variant=variant)
    kernel = forged(machine).open()
    found = scan(kernel, Predicates(busy="any"), numpy=False)
    compared = checks(kernel, found)
    assert {check.what for check in compared} >= {"active", "inactive", "free"}
    assert [check for check in compared if not check.agrees] == []
    busy = {machine.expected[name] for name in ("exclusive", "waited", "shared", "shared3")}
    assert busy <= {page.address for page in found.pages}


def test_a_sleeper_and_its_page_are_joined(forged: Any) -> None:
    machine = memory.page_states(osreldate=1402000, variant=("INVARIANTS",))
    dump = forged(machine)
    (page,) = answer(dump)["pages"]
    assert int(page["address"], 16) == machine.expected["waited"]
    assert page["waiters"] == [machine.cast["waiter"].tid]
    assert page["busy"]["owner"] == machine.cast["owner"].tid
    owned = answer(dump, "--scan", "--owner", str(machine.cast["owner"].tid))["pages"]
    assert {int(p["address"], 16) for p in owned} == {
        machine.expected["exclusive"],
        machine.expected["waited"],
    }


def test_a_page_that_nothing_holds_and_a_thread_sleeps_on_is_a_lost_wakeup(forged: Any) -> None:
    machine = Machine(1402000, "amd64")
    page = machine.vm.object("swap", size=8).page(0)
    thread = machine.procs.process("sleeper").thread()
    thread.sleeps(page.__index__(), "vmpfw", seconds=20)
    kernel = forged(machine).open()
    from plugin.kernel.proc import thread_by_tid

    waiting = thread_by_tid(kernel, thread.tid)
    assert waiting is not None
    assert "a wakeup was lost" in verdict(kernel, page_at(kernel, page.__index__()), [waiting])


def test_the_pages_of_an_object_are_found_in_its_radix_tree(forged: Any) -> None:
    """From 15.0 there is no list of them any more."""
    machine = Machine(1500068, "amd64")
    zone = machine.uma.zone("RADIX NODE", 16 + 8 + 16 * 8)
    file = machine.vm.object("swap", size=64)
    pages = {index: file.page(index, queue=None, wired=1) for index in (0, 5, 17)}
    pindex = machine.locate("vm_page", "pindex").offset

    def node(owner: int, level: int, children: Dict[int, int]) -> int:
        at = zone.alloc()
        machine.write_int(at, owner, 8)
        machine.write_int(at + 8, sum(1 << slot for slot in children), 2)
        machine.write_int(at + 10, level, 1)
        for slot in range(16):
            # PCTRIE_NULL is the leaf bit alone.
            machine.write_pointer(at + 24 + 8 * slot, children.get(slot, 1))
        return at

    leaf = {index: page.__index__() + pindex | 1 for index, page in pages.items()}
    low = node(0, 0, {0: leaf[0], 5: leaf[5]})
    root = node(0, 4, {0: low, 1: leaf[17]})
    rtree = file.__index__() + machine.locate("vm_object", "rtree").offset
    machine.at_the_end(lambda: machine.write_pointer(rtree, root))
    kernel = forged(machine).open()
    found = page_addresses(kernel, object_at(kernel, file.__index__()))
    assert found is not None
    assert sorted(found) == sorted(page.__index__() for page in pages.values())
    assert [page.pindex for page in resident(kernel, file.__index__())] == [0, 5, 17]


def test_pages_of_devices_are_found_beside_the_array(forged: Any) -> None:
    machine = Machine(1402000, "amd64")
    zone = machine.uma.zone("fakepg", machine.sizeof("vm_page"))
    page = machine.view("vm_page", zone.alloc())
    page.set(phys_addr=0xFEE00000, busy_lock=2, flags=machine.constant("PG_FICTITIOUS"))
    page["a.queue"] = 0xFF
    dump = forged(machine)
    kernel = dump.open()
    assert resolve(kernel, "0xfee00123") == page.address
    data = answer(dump, "--scan", "--busy", "exclusive")
    assert data["fictitious"] == 1
    assert data["pages"][-1]["address"] == hex(page.address)
    assert data["pages"][-1]["fictitious"] is True


# The second report


def test_the_second_report_is_one_sentence_without_being_asked(forged: Any) -> None:
    machine = sendfile_panic()
    dump = forged(machine)
    data = answer(dump)
    at = machine.expected["array"]
    assert data["verdict"] == (
        f"The page that dmu_read_pages asserts to be exclusively busied, {PAGE:#x}, is bogus_page "
        "itself, busy_lock 0x01 (unbusied): sendfile_swapin() put it at indexes 2, 3 and 5 of the "
        f"8 pages at {at:#x} handed to VOP_GETPAGES, whose contract is that every page is "
        "exclusively busied."
    )
    assert data["pages"][0]["address"] == f"{PAGE:#x}"
    assert data["pages"][0]["is_bogus"] is True
    assert data["pages"][0]["busy"]["state"] == "unbusied"
    assert data["pages"][0]["busy"]["raw"] == 1
    assert data["thread"] == machine.cast["sendfile"].tid
    status, out, err = shell(dump, "vmpage")
    assert status == 0, err
    assert out.startswith("The page that dmu_read_pages asserts")
    assert max(len(line) for line in out.splitlines()) <= 80


def test_the_sendfile_array_shows_exactly_the_bogus_entries(forged: Any) -> None:
    machine = sendfile_panic()
    data = answer(forged(machine), "--array", hex(machine.expected["array"]), "8")
    array = data["array"]
    assert array["bogus"] == list(machine.expected["bogus"])
    assert [e["index"] for e in array["entries"] if e["problems"]] == array["bogus"]
    assert array["ok"] is False


def test_the_array_is_found_by_the_stacks_pointers_alone(
    forged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the compiler left no arguments of the VOP on the stack."""
    machine = sendfile_panic()
    kernel = forged(machine).open()
    monkeypatch.setattr(vm_pager, "_vop_arguments", lambda kernel, words: iter(()))
    panic = page_panic(kernel)
    assert panic is not None
    assert panic.found is not None
    assert panic.array is not None
    assert panic.found.address == machine.expected["array"]
    assert panic.found.caller == "sendfile"
    assert panic.array.bogus == list(machine.expected["bogus"])
    assert len(panic.array.entries) == machine.expected["count"]


def test_an_array_is_held_against_every_point_of_the_contract(forged: Any) -> None:
    machine = Machine(1402000, "amd64")
    file, other = machine.vm.object("swap", size=64), machine.vm.object("swap", size=64)
    good = [file.page(i, valid=0, queue=None).busied() for i in range(3)]
    pages = [
        *good,
        file.page(3, valid=0, queue=None),
        other.page(4, valid=0, queue=None).busied(),
        file.page(9, valid=0, queue=None).busied(),
        file.page(6, valid=0xFF, queue=None).busied(),
        file.page(7, valid=0, dirty=1, queue=None).busied(),
    ]
    at = machine.take(8 * (len(pages) + 1))
    for index, page in enumerate(pages):
        machine.write_pointer(at + 8 * index, page)
    kernel = forged(machine).open()
    found = check_array(kernel, at, len(pages) + 1)
    assert [entry.problems for entry in found.entries] == [
        (),
        (),
        (),
        ("not exclusively busied",),
        (f"of object {other.__index__():#x}",),
        ("index 0x9, should be 0x5",),
        ("valid already",),
        ("dirty",),
        ("NULL",),
    ]
    assert found.object == file.__index__()
    assert check_array(kernel, at, 3).broken == []


def test_a_panic_about_something_else_is_said_to_be(forged: Any) -> None:
    machine = Machine(1402000, "amd64")
    thread = machine.procs.process("dumper").thread(calls=("vpanic", "panic", "example"))
    machine.panics(thread, "ffs_blkfree_cg: freeing free block")
    dump = forged(machine)
    status, out, _ = shell(dump, "vmpage")
    assert status == 0
    assert "The panic is not about a page: ffs_blkfree_cg" in out


# What is missing, and what makes no sense


def test_a_truncated_dump_gives_counts_marked_partial(real_dump: Any, tmp_path: Path) -> None:
    kernel: Any = open_core(str(real_dump.vmcore), str(real_dump.kernel))
    whole = page_array(kernel)
    pieces = list(kernel.target.memory.runs(whole.address, whole.npages * whole.size))
    _, offset, length = pieces[len(pieces) // 2]
    cut = tmp_path / "vmcore"
    shutil.copyfile(real_dump.vmcore, cut)
    with cut.open("r+b") as file:
        file.truncate(offset + length // 2)
    dump = SimpleNamespace(vmcore=cut, kernel=real_dump.kernel)
    status, out, err = shell(dump, "vmpage", "--scan", "--json")
    assert status == 3, err
    report = json.loads(out)
    assert report["partial"] is True
    assert 0 < report["data"]["scanned"] < whole.npages
    assert report["data"]["missing"] > 0
    assert report["data"]["checks"] == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["0x1"], "is no vm_page"),
        (["garbage"], "neither an address"),
        (["--scan", "--queue", "garbage"], "no page queue 'garbage'"),
        (["--object", "0x1000"], "no vm_object"),
        (["--array", "0x1000", "0"], "COUNT must be positive"),
        (["--scan", "--owner", "7"], "no thread 7"),
        (["0x1000", "--scan"], "not several"),
    ],
)
def test_arguments_that_make_no_sense_are_one_line(
    real_dump: Any, arguments: List[str], complaint: str
) -> None:
    status, out, err = shell(real_dump, "vmpage", *arguments)
    assert status == 1
    assert out == ""
    assert complaint in err
    assert len(err.strip().splitlines()) <= 2


# Taking pages apart


def members(osreldate: int, arch: str) -> Tuple[Kernel, Members]:
    """The members of struct vm_page in a kernel of which there is no more than its layouts."""
    from memory import MemoryTarget

    from plugin.session import KernelFacts

    target = MemoryTarget(arch)
    facts = KernelFacts(
        release="",
        osreldate=osreldate,
        ident="",
        version="",
        variant=frozenset(),
        page_size=4096,
    )
    kernel = Kernel(target, shipped_layouts(osreldate, arch, frozenset()), facts)
    kernel.warnings.add("processes", None, "there are none")
    for at, head in ((0x1000, "allproc"), (0x1010, "zombproc")):
        target.symbol(head, at, bytes(8))
    return kernel, Members(kernel)


@pytest.mark.parametrize(
    ("osreldate", "arch"),
    [
        (700014, "i386"),
        (903000, "amd64"),
        (1201000, "amd64"),
        (1402000, "i386"),
        (1500068, "arm64"),
    ],
)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_bytes_are_taken_apart_alike_and_as_one_page_is(
    osreldate: int, arch: str, data: st.DataObject
) -> None:
    pytest.importorskip("numpy", reason="numpy is what the plain result is compared with")
    kernel, found = members(osreldate, arch)
    word = st.sampled_from((0, 1, 2, 5, 6, 9, 0x101, 0x2A000006, 0xFFFFFFFE, 0xFE, 0xFF00FF01))
    count = data.draw(st.integers(1, 20))
    image = bytearray(
        data.draw(st.binary(min_size=found.size * count, max_size=found.size * count))
    )
    if found.busy_lock:
        for index in range(count):
            value = data.draw(st.one_of(word, st.integers(0, 0xFFFFFFFF)))
            at = index * found.size + found.busy_lock[0]
            image[at : at + 4] = value.to_bytes(4, "little")
    plain, numeric = Plain(bytes(image), found), Numpy(bytes(image), found)
    assert plain.state_counts() == numeric.state_counts()
    for number in range(5):
        assert list(plain.indexes(plain.state(number))) == numeric.indexes(numeric.state(number))
    some = data.draw(st.integers(0, 0xFF))
    for member in (found.object, found.dirty, found.queue, found.wires, found.phys_addr):
        on_plain, on_numeric = plain.any_bits(member, some), numeric.any_bits(member, some)
        assert plain.indexes(on_plain) == numeric.indexes(on_numeric)
        assert dict(plain.counts(member, on_plain)) == numeric.counts(member, on_numeric)
        assert list(plain.values(member, on_plain)) == numeric.values(member, on_numeric)
    from plugin.kernel.vm_page import decoder

    for index in range(count):
        page = decoder(kernel).decode(0, bytes(image), index * found.size)
        for number, name in ((1, "exclusive"), (2, "shared")):
            inside = index in plain.indexes(plain.state(number))
            assert inside == (page.busy.state == name), (page, number)
