"""struct bio, one by one: what is decoded, which queue it is, what stands behind it."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import pytest
from memory import MemoryTarget, kernel, lay

from plugin.kernel import bio
from plugin.session import Kernel

BASE = 0xFFFFF80000100000
STRIDE = 0x400
HEAD = 0xFFFFF80000001000
CODE = 0xFFFFFFFF80400000


def place(number: int) -> int:
    return BASE + number * STRIDE


def machine(osreldate: int = 1402000) -> Tuple[Kernel, MemoryTarget]:
    k, target = kernel(f"{osreldate // 100000}.2-RELEASE", osreldate)
    return k, target


def made(k: Kernel, target: MemoryTarget, number: int = 0, **members: int) -> bio.Bio:
    return bio.bio_at(k, lay(k, target, "bio", place(number), **members))


def queued(k: Kernel, target: MemoryTarget, count: int, head: int = HEAD) -> List[int]:
    """Bios on the tail queue whose head, there already, is at ``head``."""
    link = k.layouts.offsetof("bio", "bio_queue.tqe_next")
    previous = head
    for number in range(count):
        at = lay(k, target, "bio", place(number), bio_cmd=1, bio_queue__tqe_prev=previous)
        target.word(previous, at)
        previous = at + link
    target.word(previous, 0)
    target.word(head + 8, previous)
    return [place(number) for number in range(count)]


def said(k: Kernel) -> List[str]:
    return [finding.detail for finding in k.warnings]


# One bio


def test_a_command_is_named_and_one_that_no_version_has_is_its_number() -> None:
    k, target = machine()
    assert made(k, target, bio_cmd=1).cmd == "BIO_READ"
    assert made(k, target, bio_cmd=0xEE).cmd == str(0xEE)
    assert made(k, target, bio_cmd=2, bio_offset=4096, bio_length=512).offset == 4096


def test_the_commands_of_a_queue_are_named_the_same_way() -> None:
    k, target = machine()
    target.put(HEAD, bytes(16))
    first, second = queued(k, target, 2)
    lay(k, target, "bio", second, bio_cmd=0xEE, bio_offset=7)
    one, other = bio.bios_of_tailq(k, HEAD)
    assert (one.address, one.cmd, other.cmd, other.offset) == (first, "BIO_READ", "238", 7)
    assert [one, other] == [bio.bio_at(k, first), bio.bio_at(k, second)]


@pytest.mark.parametrize(
    "flags, on_queue, is_done",
    [(0, False, False), (4, True, False), (2, False, True), (6, True, True)],
)
def test_a_bio_says_whether_it_is_queued_or_done(flags: int, on_queue: bool, is_done: bool) -> None:
    k, target = machine(1201000)
    found = made(k, target, bio_flags=flags)
    assert (found.on_queue, found.is_done) == (on_queue, is_done)
    assert bool(bio.flag_names(k, found)) == bool(flags)


def test_a_bio_that_no_request_was_made_of_has_no_time() -> None:
    k, target = machine()
    assert made(k, target).t0 is None
    assert made(k, target, bio_t0__sec=7).t0 == 7.0


def test_a_bio_that_cannot_be_read_is_a_finding_and_none() -> None:
    k, _ = machine()
    assert bio.try_bio_at(k, BASE, "what") is None
    (finding,) = k.warnings
    assert (finding.what, finding.address) == ("what", BASE)
    assert f"bio {BASE:#x}" in finding.detail


# Queues


def g_bioq(k: Kernel, target: MemoryTarget, count: int, length: int) -> int:
    head = k.layouts.offsetof("g_bioq", "bio_queue")
    at = HEAD - head
    lay(k, target, "g_bioq", at, bio_queue_length=length)
    queued(k, target, count)
    return at


@pytest.mark.parametrize("length, finding", [(3, False), (4, True), (2, True)])
def test_a_count_that_is_not_that_of_the_bios_is_said(length: int, finding: bool) -> None:
    k, target = machine()
    at = g_bioq(k, target, 3, length)
    target.symbol("g_bio_run_down", at)
    (queue,) = bio.g_bioqs(k)
    assert (queue.name, queue.address, queue.length) == ("g_bio_run_down", at, length)
    assert (queue.kind, [each.address for each in queue.bios]) == (
        "g_bioq",
        [place(n) for n in range(3)],
    )
    assert any(f"its count says {length} bios, 3 are on it" in each for each in said(k)) == finding


def test_a_queue_that_is_cut_is_said_once_and_not_counted_besides() -> None:
    k, target = machine()
    at = g_bioq(k, target, 3, 3)
    target.symbol("g_bio_run_up", at)
    lay(k, target, "bio", place(1), bio_queue__tqe_next=0)
    (queue,) = bio.g_bioqs(k)
    assert len(queue.bios) == 2
    (detail,) = said(k)
    assert "tqh_last" in detail


def test_a_queue_whose_count_cannot_be_read_has_none() -> None:
    k, target = machine()
    size, head = k.layouts.sizeof("g_bioq"), k.layouts.offsetof("g_bioq", "bio_queue")
    assert head < k.layouts.offsetof("g_bioq", "bio_queue_length") < size
    target.symbol("g_bio_run_down", HEAD - head)
    target.put(HEAD, bytes(16))
    queued(k, target, 1)
    (queue,) = bio.g_bioqs(k)
    assert (queue.length, len(queue.bios)) == (None, 1)
    (finding,) = k.warnings
    assert finding.what == "g_bio_run_down"


def with_lock(k: Kernel, target: MemoryTarget, at: int) -> None:
    """A mutex where a g_bioq has its own, as witness to what lies there."""
    name, lock_class, table = HEAD + 0x8000, HEAD + 0x8100, HEAD + 0x8200
    target.put(name, b"bio queue".ljust(64, b"\0") + b"sleep mutex".ljust(64, b"\0"))
    target.put(lock_class, bytes(64))
    target.word(lock_class, name + 0x40)
    target.symbol("lock_classes", table, lock_class.to_bytes(8, "little") * 2)
    lay(k, target, "g_bioq", at, bio_queue_lock__lock_object__lo_name=name,
        bio_queue_lock__lock_object__lo_flags=1 << 16 | 1 << 24)  # fmt: skip


def test_a_queue_with_a_lock_in_it_is_geoms_own() -> None:
    k, target = machine()
    at = g_bioq(k, target, 2, 2)
    with_lock(k, target, at)
    queue = bio.queue_at(k, at)
    assert (queue.kind, queue.name, queue.length, len(queue.bios)) == ("g_bioq", f"{at:#x}", 2, 2)
    target.symbol("example", at, bytes(0))
    assert bio.queue_at(k, at).name == "example"


def bio_queue_head(k: Kernel, target: MemoryTarget, count: int, total: int) -> int:
    lay(k, target, "bio_queue_head", HEAD, total=total)
    queued(k, target, count)
    return HEAD


@pytest.mark.parametrize(
    "count, total, kind",
    [
        (2, 2, "bio_queue_head"),
        (0, 0, "bio_queue_head"),
        (2, 3, "tailq"),
        (2, 1, "tailq"),
        (0, 1, "tailq"),
    ],
)
def test_a_driver_s_queue_is_told_by_its_count(count: int, total: int, kind: str) -> None:
    k, target = machine()
    queue = bio.queue_at(k, bio_queue_head(k, target, count, total))
    assert (queue.kind, len(queue.bios)) == (kind, count)
    assert queue.length == (total if kind == "bio_queue_head" else None)


def test_a_bare_list_is_a_tail_queue_without_a_count() -> None:
    k, target = machine()
    target.put(HEAD, bytes(16))
    queued(k, target, 1)
    queue = bio.queue_at(k, HEAD)
    assert (queue.kind, queue.length, len(queue.bios)) == ("tailq", None, 1)


def test_zeros_are_no_queue_of_a_driver() -> None:
    k, target = machine()
    lay(k, target, "bio_queue_head", HEAD)
    assert bio.queue_at(k, HEAD).kind == "tailq"


def test_a_head_is_told_by_what_points_back_at_it() -> None:
    k, target = machine()
    assert not bio.is_queue_head(k, HEAD)
    target.put(HEAD, bytes(16))
    assert not bio.is_queue_head(k, HEAD), "all zero"
    target.word(HEAD + 8, HEAD)
    assert bio.is_queue_head(k, HEAD), "an empty one that was initialised"
    (first,) = queued(k, target, 1)
    assert bio.is_queue_head(k, HEAD)
    lay(k, target, "bio", first, bio_queue__tqe_prev=HEAD + 8)
    assert not bio.is_queue_head(k, HEAD)
    target.word(HEAD, HEAD)
    assert not bio.is_queue_head(k, HEAD)


def test_what_ends_after_its_first_word_is_no_empty_head() -> None:
    k, target = machine()
    target.put(HEAD, bytes(8))
    assert not bio.is_queue_head(k, HEAD)


# The chain and its top


def test_a_chain_goes_up_to_the_request_that_nobody_cloned() -> None:
    k, target = machine()
    for number in range(3):
        made(k, target, number, bio_parent=place(number + 1) if number < 2 else 0)
    chain = bio.bio_chain(k, bio.bio_at(k, place(0)))
    assert [each.address for each in chain] == [place(0), place(1), place(2)]
    assert not said(k)


def test_a_parent_that_is_known_is_not_read_again() -> None:
    k, target = machine()
    parent = made(k, target, 1, bio_error=5)
    child = made(k, target, 0, bio_parent=place(1))
    lay(k, target, "bio", place(1), bio_error=6)
    assert bio.bio_chain(k, child, {parent.address: parent})[1].error == 5
    assert bio.bio_chain(k, child)[1].error == 6


def test_a_chain_that_loops_ends_with_one_finding_that_hides_nothing() -> None:
    k, target = machine()
    first = made(k, target, 0, bio_parent=place(1))
    made(k, target, 1, bio_parent=place(2))
    made(k, target, 2, bio_parent=place(1))
    assert len(bio.bio_chain(k, first)) == 3
    (finding,) = k.warnings
    assert (finding.address, finding.detail) == (place(2), f"loops back to {place(1):#x}")
    assert not k.warnings.partial


@pytest.mark.parametrize("length, whole", [(bio.MAX_CHAIN, True), (bio.MAX_CHAIN + 1, False)])
def test_a_chain_longer_than_any_stack_of_classes_is_given_up(length: int, whole: bool) -> None:
    k, target = machine()
    for number in range(length):
        made(k, target, number, bio_parent=place(number + 1) if number + 1 < length else 0)
    assert len(bio.bio_chain(k, bio.bio_at(k, place(0)))) == bio.MAX_CHAIN
    assert bool(said(k)) != whole


def test_a_chain_ends_at_a_parent_that_cannot_be_read() -> None:
    k, target = machine()
    first = made(k, target, 0, bio_parent=place(9))
    assert bio.bio_chain(k, first) == [first]
    (finding,) = k.warnings
    assert finding.what == "bio_parent"
    assert k.warnings.partial


@pytest.mark.parametrize(
    "done, members, kind, where",
    [
        ("g_vfs_done", {"bio_caller1": 7, "bio_caller2": 9}, "buf", (9, 7)),
        ("g_vfs_done", {}, "buf", (None, None)),
        ("swapgeom_done", {"bio_caller1": 7, "bio_caller2": 9}, "swap", (9, 7)),
        ("aio_biowakeup", {"bio_caller1": 7, "bio_caller2": 9}, "aio", (7, 9)),
        ("vdev_geom_io_intr", {}, "zfs", (None, None)),
        ("g_std_done", {"bio_caller1": 7}, "class", (place(1), None)),
        ("biodone", {"bio_caller1": 7}, "class", (place(1), None)),
        ("somebody_done", {"bio_caller1": 7}, "unknown", (None, None)),
        ("", {}, "thread", (place(1), None)),
        ("", {"bio_dev": 0x77}, "physio", (place(1), 0x77)),
        ("biodone", {"bio_dev": 0x77}, "class", (place(1), None)),
    ],
)
def test_what_is_behind_a_bio_is_told_by_who_is_called_when_it_is_done(
    done: str, members: Any, kind: str, where: Tuple[Optional[int], Optional[int]]
) -> None:
    k, target = machine()
    if done:
        target.symbol(done, CODE, bytes(32), kind="function")
    made(k, target, 1, bio_done=CODE if done else 0, **members)
    for first in (bio.bio_at(k, place(1)), made(k, target, 0, bio_parent=place(1), bio_done=CODE)):
        origin = bio.bio_origin(k, first)
        assert (origin.kind, (origin.address, origin.detail)) == (kind, where)
        assert origin.top.address == place(1)
        assert bio.done_name(k, origin.top) == done
        assert (done or "bio_d") in origin.evidence


def test_a_completion_that_nothing_names_is_shown_by_its_address() -> None:
    k, target = machine()
    origin = bio.bio_origin(k, made(k, target, bio_done=CODE))
    assert (origin.kind, origin.evidence) == (
        "unknown",
        f"bio_done is {CODE:#x}, no known function",
    )
    assert bio.done_name(k, made(k, target)) == ""
