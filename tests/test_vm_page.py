"""struct vm_page, member by member, as each version writes it; and the sentence about one."""

from __future__ import annotations

from typing import Any, List, Tuple

import pytest
from memory import MemoryTarget, kernel, lay

from plugin.kernel import vm_page
from plugin.kernel.proc import Thread
from plugin.kernel.vm_phys import segments
from plugin.opening import open_core
from plugin.session import Kernel
from tests.forge.machine import Machine

AT = 0xFFFFF80000200000
OBJECT = 0xFFFFF80000300000


def small(osreldate: int) -> Tuple[Kernel, MemoryTarget]:
    k, target = kernel(f"{osreldate // 100000}.{osreldate // 1000 % 100}-RELEASE", osreldate)
    # no thread: whose low bits a busy word holds is asked of the list
    for name in ("allproc", "zombproc"):
        target.symbol(name, 0xFFFFFFFF81000000 + len(name) * 64, bytes(8))
    return k, target


def page(k: Kernel, target: MemoryTarget, **members: int) -> vm_page.Page:
    target.put(AT, bytes(k.layouts.sizeof("vm_page")))
    return vm_page.page_at(k, lay(k, target, "vm_page", AT, **members))


@pytest.mark.parametrize(
    "osreldate, members, state, sharers, waiters",
    [
        (903000, {"oflags": 0}, "unbusied", 0, False),
        (903000, {"oflags": 1}, "exclusive", 0, False),
        (903000, {"oflags": 1 | 2}, "exclusive", 0, True),
        (903000, {"busy": 3}, "shared", 3, False),
        (903000, {"busy": 3, "oflags": 2}, "shared", 3, True),
        (1201000, {"busy_lock": 1}, "unbusied", 0, False),
        (1201000, {"busy_lock": 0}, "freed", 0, False),
        (1201000, {"busy_lock": 2}, "exclusive", 0, False),
        (1201000, {"busy_lock": 2 | 4}, "exclusive", 0, True),
        (1201000, {"busy_lock": 1 | 3 << 3}, "shared", 3, False),
        (1201000, {"busy_lock": 1 | 1 << 3 | 4}, "shared", 1, True),
        (1402000, {"busy_lock": 0xFFFFFFFE}, "freed", 0, False),
        (1402000, {"busy_lock": 0}, "freed", 0, False),
        (1402000, {"busy_lock": 1}, "unbusied", 0, False),
    ],
)
def test_the_busy_word_is_read_as_its_version_writes_it(
    osreldate: int, members: Any, state: str, sharers: int, waiters: bool
) -> None:
    k, target = small(osreldate)
    busy = page(k, target, **members).busy
    assert (busy.state, busy.sharers, busy.waiters) == (state, sharers, waiters)
    assert busy.raw == members.get("busy_lock", members.get("oflags", 0))
    assert (busy.owner, busy.owner_bits) == (None, None)


def test_a_word_of_freed_is_one_of_many_sharers_before_13() -> None:
    k, target = small(1201000)
    assert page(k, target, busy_lock=0xFFFFFFFE).busy.state == "exclusive"


def test_who_busied_a_page_is_in_the_word_from_13_on() -> None:
    k, target = small(1402000)
    busy = page(k, target, busy_lock=0x2C3000 | 2).busy
    assert (busy.state, busy.owner, busy.owner_bits) == ("exclusive", None, 0x2C3000)
    busy = page(k, target, busy_lock=2).busy
    assert (busy.state, busy.owner_bits) == ("exclusive", None)
    k, target = small(1201000)
    assert page(k, target, busy_lock=0x2C3000 | 2).busy.owner_bits is None


@pytest.mark.parametrize("osreldate", [903000, 1201000, 1402000])
def test_members_come_out_as_they_went_in(osreldate: int) -> None:
    k, target = small(osreldate)
    astate = osreldate >= 1300000
    more = {"a__act_count": 5} if astate else {"act_count": 5}
    more.update({"ref_count": 3 | 1 << 30} if astate else {"wire_count": 3, "hold_count": 2})
    found = page(
        k, target, object=OBJECT, pindex=77, phys_addr=0x123000, valid=0xFF, dirty=0xF0, **more
    )
    assert (found.address, found.object, found.pindex, found.phys_addr) == (
        AT,
        OBJECT,
        77,
        0x123000,
    )
    assert (found.valid, found.dirty, found.act_count, found.wire_count) == (0xFF, 0xF0, 5, 3)
    assert found.hold_count == (0 if astate else 2)
    assert found.ref_count == (3 | 1 << 30 if astate else None)
    assert found.wired
    assert not page(k, target, **({"ref_count": 1 << 30} if astate else {"wire_count": 0})).wired
    one = page(k, target, **({"ref_count": 1} if astate else {"wire_count": 1}))
    assert one.wired and one.wire_count == 1
    assert not found.is_bogus and not found.fictitious and found.slab == 0


def test_a_page_of_a_zone_points_to_its_slab_to_9() -> None:
    k, target = small(903000)
    slab = k.layouts.constant("PG_SLAB")
    found = page(k, target, flags=slab, object=OBJECT)
    assert (found.object, found.slab) == (0, OBJECT)
    assert any("SLAB" in name for name in found.flags)


def test_a_page_that_is_no_memory_of_the_machine_says_so() -> None:
    k, target = small(1402000)
    assert page(k, target, flags=k.layouts.constant("PG_FICTITIOUS")).fictitious


def test_bogus_page_is_known_by_its_address() -> None:
    k, target = small(1402000)
    target.symbol("bogus_page", 0xFFFFFFFF81200000, AT.to_bytes(8, "little"))
    assert page(k, target, busy_lock=1).is_bogus
    assert not vm_page.page_at(k, lay(k, target, "vm_page", AT + 0x1000)).is_bogus


def test_a_bogus_page_that_cannot_be_read_is_a_finding() -> None:
    k, target = small(1402000)
    target.symbol("bogus_page", 0xFFFFFFFFDEAD0000)
    assert vm_page.bogus_page(k) == 0
    assert [finding.what for finding in k.warnings] == ["bogus_page"]
    assert vm_page.bogus_page(small(1402000)[0]) == 0


@pytest.mark.parametrize(
    "osreldate, queue, aflags, name, enqueued",
    [
        (903000, 1, 0, "active", True),
        (903000, 0xFF, 0, "none", False),
        (1100120, 1, 0, "active", True),
        (1100120, 0xFF, 0, "none", False),
        (1201000, 0, 0, "inactive", False),
        (1201000, 1, "ENQUEUED", "active", True),
        (1402000, 0, "ENQUEUED", "inactive", True),
        (1402000, 1, 0, "active", False),
        (1402000, 77, 0, "77", False),
    ],
)
def test_whether_a_page_is_on_its_queue_is_told_by_a_flag_from_12_on(
    osreldate: int, queue: int, aflags: Any, name: str, enqueued: bool
) -> None:
    k, target = small(osreldate)
    astate = k.layouts.has("vm_page", "a.queue")
    value = k.layouts.constant("PGA_ENQUEUED") if aflags else 0
    members = (
        {"a__queue": queue, "a__flags": value} if astate else {"queue": queue, "aflags": value}
    )
    found = page(k, target, **members)
    assert (found.queue, found.enqueued) == (name, enqueued)
    assert bool(found.flags) == bool(aflags)


def test_a_free_block_is_headed_by_a_page_of_the_machine() -> None:
    k, target = small(1402000)
    most = vm_page.decoder(k).nfree
    assert page(k, target, order=3, phys_addr=0x1000).order == 3
    assert page(k, target, order=3, busy_lock=1).order == 3
    assert page(k, target, order=3).order is None
    assert page(k, target, order=most, phys_addr=0x1000).order is None
    assert page(k, target, order=most - 1, phys_addr=0x1000).order == most - 1


def test_a_page_that_cannot_be_read_is_a_finding_and_none() -> None:
    k, _ = small(1402000)
    assert vm_page.try_page_at(k, AT) is None
    assert [finding.what for finding in k.warnings] == [f"vm_page {AT:#x}"]


def coloring(k: Kernel, target: MemoryTarget, *values: int) -> vm_page.Queues:
    data = b"".join(value.to_bytes(4, "little", signed=True) for value in values)
    target.symbol("page_queue_coloring", 0xFFFFFFFF81300000, data)
    return vm_page.Queues(k)


def test_in_7_0_current_free_and_cache_queues_are_numbered_by_colour_at_boot() -> None:
    k, target = small(903000)
    queues = coloring(k, target, 16, 15, 5, 3, 17, 18, 19, 35, 36)
    assert [queues.name(n) for n in (0, 17, 18, 35)] == ["none", "inactive", "active", "hold"]
    assert [queues.name(n) for n in (1, 16, 19, 34)] == ["free", "free", "cache", "cache"]
    assert [queues.name(n) for n in (36, -1, 400)] == ["36", "-1", "400"]


@pytest.mark.parametrize(
    "colors, name",
    [(0, "5"), (1, "5"), (4, "5"), (5, "free"), (1024, "free"), (1025, "5"), (-1, "5")],
)
def test_more_colours_than_there_can_be_are_none(colors: int, name: str) -> None:
    k, target = small(903000)
    assert coloring(k, target, colors, 15, 5, 3, 17000, 18000, 19000, 35000, 36).name(5) == name


def test_one_colour_is_one_queue() -> None:
    k, target = small(903000)
    queues = coloring(k, target, 1, 0, 5, 3, 2, 3, 4, 5, 6)
    assert [queues.name(n) for n in (1, 2, 4)] == ["free", "inactive", "cache"]


def test_a_table_of_colours_that_cannot_be_read_is_a_finding() -> None:
    k, target = small(903000)
    target.symbol("page_queue_coloring", 0xFFFFFFFFDEAD0000)
    assert vm_page.Queues(k).name(1) == "active"
    assert [finding.what for finding in k.warnings] == ["page_queue_coloring"]


def test_a_page_has_a_bit_for_each_512_bytes() -> None:
    assert vm_page.valid_all(small(1402000)[0]) == 0xFF


def sleeper(tid: int) -> Thread:
    return Thread(
        0, tid, 1, "a", "a", 0, "sleeping", None, None, None, None, None, 0, 0, 0, 0, 0, 0, 0, 0, 0
    )  # fmt: skip


@pytest.mark.parametrize(
    "members, asleep, said",
    [
        ({"busy_lock": 1}, 0, "not busied"),
        ({"busy_lock": 1 | 4}, 0, "not busied; its waiters bit is set, no thread sleeps on it"),
        ({"busy_lock": 1 | 2 << 3}, 0, "busied shared by 2"),
        ({"busy_lock": 0xFFFFFFFE}, 0, "free"),
        ({"busy_lock": 0}, 0, "not initialised"),
        ({"busy_lock": 2}, 0, "exclusively busied, owner not recorded"),
        (
            {"busy_lock": 0x2C3000 | 2},
            0,
            "exclusively busied by a thread at ...002c3000 that is none of the threads now",
        ),
        ({"busy_lock": 1, "order": 3}, 0, "heads a free block of 8 pages"),
        (
            {"busy_lock": 1},
            1,
            "not busied; 100 sleeps for it, yet nothing holds it: a wakeup was lost",
        ),
        (
            {"busy_lock": 0xFFFFFFFE},
            2,
            "free; 100, 101 sleep for it, yet nothing holds it: a wakeup was lost",
        ),
        (
            {"busy_lock": 2 | 4},
            4,
            "exclusively busied, owner not recorded; 100, 101, 102, 103 sleep for it",
        ),
        (
            {"busy_lock": 1 | 1 << 3},
            5,
            "busied shared by 1; 100, 101, 102, 103 and 1 more sleep for it",
        ),
        (
            {"busy_lock": 1 | 1 << 3},
            6,
            "busied shared by 1; 100, 101, 102, 103 and 2 more sleep for it",
        ),
    ],
)
def test_one_sentence_says_who_has_a_page_and_who_waits(
    members: Any, asleep: int, said: str
) -> None:
    k, target = small(1402000)
    members.setdefault("order", 13)
    waiting: List[Thread] = [sleeper(100 + n) for n in range(asleep)]
    assert vm_page.verdict(k, page(k, target, **members), waiting) == said


@pytest.mark.parametrize(
    "word, said",
    [(1, "bogus_page, the stand-in for valid pages in an I/O, never busied"),
     (2, "bogus_page, the stand-in for valid pages in an I/O")],
)  # fmt: skip
def test_bogus_page_is_said_to_be_it(word: int, said: str) -> None:
    k, target = small(1402000)
    target.symbol("bogus_page", 0xFFFFFFFF81200000, AT.to_bytes(8, "little"))
    assert vm_page.verdict(k, page(k, target, busy_lock=word)) == said


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Machine, Kernel]:
    """A page that a thread has busied."""
    m = Machine(1402000, "amd64", ("INVARIANTS",))
    owner = m.procs.process("owner").thread()
    memory = m.vm.object("vnode", size=16)
    held = memory.page(0)
    m.cast["owner"] = owner
    sleeper_ = m.procs.process("sleeper").thread()
    held.busied(owner).slept_on_by(sleeper_)
    m.cast["sleeper"] = sleeper_
    m.expected["page"] = held.__index__()
    vmcore, file = m.write(tmp_path_factory.mktemp("pages"))
    return m, open_core(str(vmcore), str(file))


def test_the_thread_that_busied_a_page_is_named_by_the_low_bits_of_its_address(
    forged: Tuple[Machine, Kernel],
) -> None:
    m, k = forged
    found = vm_page.page_at(k, m.expected["page"])
    assert (found.busy.state, found.busy.owner) == ("exclusive", m.cast["owner"].tid)
    said = vm_page.verdict(k, found)
    assert said.startswith(f"exclusively busied by thread {m.cast['owner'].tid};")


def test_who_sleeps_on_a_page_is_known_by_its_address(forged: Tuple[Machine, Kernel]) -> None:
    m, k = forged
    asleep = vm_page.page_sleepers(k)
    assert [thread.tid for thread in asleep.pop(m.expected["page"])] == [m.cast["sleeper"].tid]
    assert not asleep


def test_two_threads_of_the_same_low_bits_are_none(forged: Tuple[Machine, Kernel]) -> None:
    m, k = forged
    bits = vm_page.owners_by_bits(k)
    mine = next(each for each, tids in bits.items() if m.cast["owner"].tid in tids)
    bits[mine] = (*bits[mine], 7)
    try:
        assert vm_page.encoding(k).decode(mine | 2).owner is None
    finally:
        bits[mine] = bits[mine][:-1]


def test_a_page_lies_in_the_domain_of_its_segment(forged: Tuple[Machine, Kernel]) -> None:
    _, k = forged
    first = segments(k)[0]
    page_ = vm_page.page_at(k, forged[0].expected["page"])
    for at, domain in (
        (first.start, first.domain),
        (first.end - 1, first.domain),
        (max(each.end for each in segments(k)), None),
        (first.start - 1, None),
    ):
        assert vm_page.domain_of(k, page_._replace(phys_addr=at)) == domain
