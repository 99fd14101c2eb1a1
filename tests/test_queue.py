"""The guarded walks over sys/queue.h lists: a corrupt list ends with one finding, never a loop."""

from __future__ import annotations

import pytest
from memory import MemoryTarget, kernel

from plugin.kernel.queue import list_foreach, slist_foreach, stailq_foreach, tailq_foreach
from plugin.session import Kernel

HEAD = 0xFFFFF80000001000
BASE = 0xFFFFF80000100000
STRIDE = 0x400


def bio_queue(count: int) -> tuple[Kernel, MemoryTarget, list[int]]:
    """A TAILQ of ``count`` bios at HEAD, every pointer right; bio_cmd numbers them."""
    k, target = kernel()
    link = k.layouts.offsetof("bio", "bio_queue.tqe_next")
    bios = [BASE + i * STRIDE for i in range(count)]
    target.put(HEAD, bytes(16))
    target.put(BASE, bytes(STRIDE * max(count, 1)))
    previous = HEAD
    for i, bio in enumerate(bios):
        target.word(bio + link, bios[i + 1] if i + 1 < count else 0)
        target.word(bio + link + 8, previous)
        target.put(bio + k.layouts.offsetof("bio", "bio_cmd"), (i & 0xFFFF).to_bytes(2, "little"))
        previous = bio + link
    target.word(HEAD, bios[0] if bios else 0)
    target.word(HEAD + 8, previous)
    return k, target, bios


def walk(k: Kernel, **options: int) -> list[tuple[int, tuple[int, ...]]]:
    return list(tailq_foreach(k, HEAD, "bio", "bio_queue", ["bio_cmd"], what="queue", **options))


def test_a_whole_queue_is_walked_in_order_without_a_finding() -> None:
    k, _, bios = bio_queue(5)
    assert walk(k) == [(bio, (i,)) for i, bio in enumerate(bios)]
    assert not list(k.warnings)
    assert not k.warnings.partial


def test_an_empty_queue_yields_nothing_and_is_no_finding() -> None:
    k, target, _ = bio_queue(0)
    target.word(HEAD + 8, HEAD)
    assert walk(k) == []
    assert not list(k.warnings)


def test_a_loop_is_reported_where_it_closes_and_each_element_is_seen_once() -> None:
    k, target, bios = bio_queue(5)
    link = k.layouts.offsetof("bio", "bio_queue.tqe_next")
    target.word(bios[4] + link, bios[1])
    assert [address for address, _ in walk(k)] == bios
    (finding,) = k.warnings
    assert finding.address == bios[4] + link
    assert f"loops back to {bios[1]:#x} after 5 elements" in finding.detail
    assert k.warnings.partial


def test_a_dangling_pointer_ends_the_walk_with_what_was_read_before() -> None:
    k, target, bios = bio_queue(5)
    link = k.layouts.offsetof("bio", "bio_queue.tqe_next")
    target.word(bios[2] + link, 0xDEADC0DEDEADC0DE)
    assert [address for address, _ in walk(k)] == bios[:3]
    (finding,) = k.warnings
    assert finding.address == bios[2] + link
    assert "0xdeadc0dedeadc0de" in finding.detail
    assert k.warnings.partial


def test_a_wrong_back_pointer_is_reported_and_the_walk_goes_on() -> None:
    k, target, bios = bio_queue(5)
    link = k.layouts.offsetof("bio", "bio_queue.tqe_next")
    target.word(bios[3] + link + 8, 0x1234)
    assert [address for address, _ in walk(k)] == bios
    (finding,) = k.warnings
    assert finding.address == bios[3]
    assert "back pointer is 0x1234" in finding.detail
    assert k.warnings.partial, "what lies between may have been skipped"


def test_a_wrong_tail_is_reported() -> None:
    k, target, bios = bio_queue(2)
    target.word(HEAD + 8, HEAD)
    assert [address for address, _ in walk(k)] == bios
    (finding,) = k.warnings
    assert finding.address == HEAD + 8
    assert "tqh_last" in finding.detail
    assert k.warnings.partial


def test_one_zero_word_cuts_a_tail_queue_and_the_tail_pointer_tells() -> None:
    k, target, bios = bio_queue(5)
    target.word(bios[1] + k.layouts.offsetof("bio", "bio_queue.tqe_next"), 0)
    assert [address for address, _ in walk(k)] == bios[:2]
    (finding,) = k.warnings
    assert "tqh_last" in finding.detail
    assert k.warnings.partial


def test_an_empty_first_pointer_over_a_tail_is_a_cut_queue() -> None:
    k, target, _ = bio_queue(3)
    target.word(HEAD, 0)
    assert walk(k) == []
    assert k.warnings.partial


def test_a_tail_pointer_that_cannot_be_read_proves_no_end() -> None:
    k, target, bios = bio_queue(1)
    target.pieces[HEAD] = target.pieces[HEAD][:8]
    assert [address for address, _ in walk(k)] == bios
    (finding,) = k.warnings
    assert finding.address == HEAD + 8
    assert k.warnings.partial


def test_a_head_that_was_never_initialised_is_an_empty_queue() -> None:
    k, target, _ = bio_queue(0)
    target.word(HEAD + 8, 0)
    assert walk(k) == []
    assert not list(k.warnings)


@pytest.mark.parametrize("bound", [1, 10, 899])
def test_a_bound_binds_at_every_value(bound: int) -> None:
    k, _, bios = bio_queue(900)
    assert [address for address, _ in walk(k, bound=bound)] == bios[:bound]
    (finding,) = k.warnings
    assert finding.detail == f"given up after {bound} elements"
    assert k.warnings.partial


def test_a_list_as_long_as_its_bound_is_whole() -> None:
    k, _, bios = bio_queue(900)
    assert [address for address, _ in walk(k, bound=900)] == bios
    assert not list(k.warnings)


def test_a_wrong_stqh_last_is_reported() -> None:
    k, target = kernel()
    offset = k.layouts.offsetof("pcpu", "pc_allcpu.stqe_next")
    target.put(BASE, bytes(k.layouts.sizeof("pcpu")))
    target.put(HEAD, bytes(16))
    target.word(HEAD, BASE)
    target.word(HEAD + 8, BASE + offset)
    assert len(list(stailq_foreach(k, HEAD, "pcpu", "pc_allcpu"))) == 1
    assert not list(k.warnings)
    target.word(HEAD + 8, HEAD)
    assert len(list(stailq_foreach(k, HEAD, "pcpu", "pc_allcpu"))) == 1
    (finding,) = k.warnings
    assert "stqh_last" in finding.detail
    assert k.warnings.partial


def test_a_bound_ends_a_walk_that_is_too_long_to_be_true() -> None:
    k, _, _ = bio_queue(3000)
    assert len(walk(k, bound=2000)) == 2000
    assert k.warnings.partial
    assert "given up" in next(iter(k.warnings)).detail


def test_an_interrupted_walk_gives_what_it_has() -> None:
    k, target, _ = bio_queue(3000)
    target.stop = True
    assert 0 < len(walk(k)) < 3000
    (finding,) = k.warnings
    assert "interrupted" in finding.detail


def test_a_walk_asks_for_an_interruption_once_in_1024_elements() -> None:
    k, target, bios = bio_queue(3000)
    asked = []
    target.interrupted = lambda: bool(asked.append(1))  # type: ignore[func-returns-value]
    assert len(walk(k)) == len(bios)
    assert len(asked) == 2


def test_a_loop_says_nothing_of_a_tail_that_it_did_not_reach() -> None:
    k, target, bios = bio_queue(5)
    target.word(bios[2] + k.layouts.offsetof("bio", "bio_queue.tqe_next"), bios[1])
    assert [address for address, _ in walk(k)] == bios[:3]
    (finding,) = k.warnings
    assert "loops back" in finding.detail


@pytest.mark.parametrize(
    ("foreach", "name"),
    [
        (tailq_foreach, f"tail queue of struct proc at {HEAD:#x}"),
        (list_foreach, f"list of struct proc at {HEAD:#x}"),
        (stailq_foreach, f"list of struct proc at {HEAD:#x}"),
        (slist_foreach, f"list of struct proc at {HEAD:#x}"),
    ],
)
def test_an_unreadable_head_is_one_finding_by_the_name_given_or_that_of_the_head(  # type: ignore[no-untyped-def]
    foreach, name
) -> None:
    for given in ("allproc", ""):
        k, _ = kernel()
        assert not list(foreach(k, HEAD, "proc", "p_list", what=given))
        (finding,) = k.warnings
        assert finding.address == HEAD
        assert finding.what == (given or name)
        assert finding.detail.startswith("list head")


@pytest.mark.parametrize(
    ("foreach", "struct", "link", "entry"),
    [
        (list_foreach, "proc", "p_list", "p_list.le_next"),
        (slist_foreach, "callout", "c_links.sle", "c_links.sle.sle_next"),
        (stailq_foreach, "pcpu", "pc_allcpu", "pc_allcpu.stqe_next"),
    ],
)
def test_the_other_lists_end_at_a_loop_too(foreach, struct, link, entry) -> None:  # type: ignore[no-untyped-def]
    k, target = kernel()
    offset = k.layouts.offsetof(struct, entry)
    size = k.layouts.sizeof(struct)
    a, b = BASE, BASE + size
    target.put(BASE, bytes(2 * size))
    target.put(HEAD, bytes(16))
    target.word(HEAD, a)
    target.word(a + offset, b)
    target.word(b + offset, a)
    assert [address for address, _ in foreach(k, HEAD, struct, link)] == [a, b]
    assert any("loops back" in finding.detail for finding in k.warnings)


@pytest.mark.parametrize(
    ("foreach", "struct", "link", "member"),
    [
        (list_foreach, "proc", "p_list", "p_pid"),
        (slist_foreach, "callout", "c_links.sle", "c_arg"),
        (stailq_foreach, "pcpu", "pc_allcpu", "pc_cpuid"),
    ],
)
def test_the_other_lists_give_the_members_asked_for(foreach, struct, link, member) -> None:  # type: ignore[no-untyped-def]
    k, target = kernel()
    found = k.layouts.resolve(struct, member)
    target.put(BASE, bytes(k.layouts.sizeof(struct)))
    target.put(HEAD, bytes(16))
    target.word(HEAD, BASE)
    target.word(BASE + found.offset, 77, found.size)
    assert list(foreach(k, HEAD, struct, link, [member])) == [(BASE, (77,))]


@pytest.mark.parametrize("stride", [0x1F8, 0x400, 0xFF8])
def test_a_list_is_the_same_by_pages_and_by_elements(stride: int) -> None:
    """Elements begin anywhere in a page, and some lie across the end of one."""
    k, target = kernel()
    link = k.layouts.offsetof("bio", "bio_queue.tqe_next")
    bios = [BASE + n * stride for n in range(40)]
    target.put(BASE, bytes(40 * 4096))
    target.put(HEAD, bytes(16))
    previous = HEAD
    for number, at in enumerate(bios):
        target.word(previous, at)
        target.word(at + link + 8, previous)
        target.word(at + k.layouts.offsetof("bio", "bio_cmd"), number, 2)
        previous = at + link
    target.word(HEAD + 8, previous)
    reads: dict[bool, int] = {}
    plain = target.read
    for by_pages in (False, True):
        target.in_pages = by_pages
        asked: list[int] = []
        k.read = lambda at, size, asked=asked: (asked.append(at), plain(at, size))[1]
        assert walk(k) == [(at, (number,)) for number, at in enumerate(bios)]
        assert not list(k.warnings)
        reads[by_pages] = len(asked)
    assert reads[False] >= len(bios)
    if stride < 0x400:
        assert reads[True] < len(bios) // 2
