"""Known bugs are named where their evidence is seen, and nowhere else."""

from __future__ import annotations

import re
from typing import List, Optional, Sequence, Tuple

import pytest

from plugin.errors import WchanError
from plugin.hosts.known import main
from plugin.waits.known import SHIPPED, Known, Seen, matches, read, shipped

ENTRIES = read(SHIPPED)
BY_STACKS = [e for e in ENTRIES if e.threads and not e.derived and not e.panic]
BY_PANIC = [e for e in ENTRIES if e.panic and e.grade != "C"]


def plain(pattern: str) -> str:
    """A function's name that a pattern fits."""
    return pattern.replace("*", "x") if pattern.strip("*") else "some_function"


def stacks_of(entry: Known) -> List[Tuple[int, List[str]]]:
    return [
        (100100 + number, ["mi_switch", *map(plain, stack.names), "fork_exit"])
        for number, stack in enumerate(entry.threads)
    ]


def panic_of(entry: Known) -> Optional[str]:
    if not entry.panic:
        return None
    return re.sub(r"\\(.)", r"\1", entry.panic[0].split("|")[0].replace(".*", "0xfffff80012345678"))


def named(
    stacks: Sequence[Tuple[int, Sequence[str]]],
    panic: Optional[str] = None,
    osreldate: int = 0,
    modules: Optional[Sequence[str]] = None,
) -> List[str]:
    seen = Seen(stacks, panic, osreldate, None if modules is None else frozenset(modules))
    return [match.known.id for match in matches(seen, ENTRIES)]


def test_there_are_more_than_a_hundred_and_each_says_where_it_is_from() -> None:
    assert len(ENTRIES) > 100 and len({e.id for e in ENTRIES}) == len(ENTRIES)
    assert all(e.title and e.source and e.fixed and e.shape for e in ENTRIES)


@pytest.mark.parametrize("entry", BY_STACKS, ids=lambda e: e.id)
def test_the_stacks_of_a_known_bug_name_it(entry: Known) -> None:
    assert entry.id in named(stacks_of(entry))


@pytest.mark.parametrize("entry", BY_STACKS, ids=lambda e: e.id)
def test_a_machine_without_one_of_its_functions_is_a_near_miss(entry: Known) -> None:
    for number, stack in enumerate(entry.threads):
        for name in stack.names:
            if not name.strip("*"):
                continue
            stacks = stacks_of(entry)
            tid, frames = stacks[number]
            stacks[number] = tid, [frame for frame in frames if frame != plain(name)]
            assert entry.id not in named(stacks)


@pytest.mark.parametrize("entry", [e for e in BY_STACKS if len(e.threads) > 1], ids=lambda e: e.id)
def test_one_thread_cannot_be_both_of_a_pair(entry: Known) -> None:
    both = [frame for _, frames in stacks_of(entry) for frame in frames]
    assert entry.id not in named([(100100, both)])


@pytest.mark.parametrize("entry", BY_PANIC, ids=lambda e: e.id)
def test_a_panic_message_names_its_bug(entry: Known) -> None:
    assert entry.id in named([], panic_of(entry))
    assert entry.id not in named([], "page fault")


def test_functions_in_another_order_are_another_stack() -> None:
    entry = next(e for e in BY_STACKS if e.id == "ufs-reboot-suj-init")
    (tid, frames), *_ = stacks_of(entry)
    assert entry.id not in named([(tid, frames[::-1])])


def test_a_kernel_without_the_module_cannot_have_its_bug() -> None:
    entry = next(e for e in BY_STACKS if e.modules == ("zfs",))
    assert entry.id in named(stacks_of(entry), modules=["kernel", "zfs"])
    assert entry.id not in named(stacks_of(entry), modules=["kernel"])


def test_a_later_release_should_have_the_fix_and_that_is_said() -> None:
    entry = next(e for e in BY_STACKS if e.id == "zfs-arc-evict-pagedaemon")
    (match,) = matches(Seen(stacks_of(entry), None, 1500000), [entry])
    assert match.caution == "seen up to 13.x; this 15.x should have the fix"
    (match,) = matches(Seen(stacks_of(entry), None, 1301000), [entry])
    assert match.caution == ""


def test_what_names_a_test_and_a_fix_alone_is_never_claimed() -> None:
    entry = next(e for e in ENTRIES if e.grade == "C" and e.panic)
    assert entry.id not in named(stacks_of(entry), panic_of(entry))


def test_a_users_own_entries_come_first_and_nonsense_is_named(tmp_path: object) -> None:
    path = f"{tmp_path}/known.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write("- {id: mine, title: t, threads: [{frames: [a_b, c_d]}]}\n")
    assert shipped(path)[0].id == "mine"
    with open(path, "w", encoding="utf-8") as file:
        file.write("- {id: mine, colour: red}\n")
    with pytest.raises(WchanError, match="entry 1: unknown key 'colour'"):
        shipped(path)


def test_the_shell_lists_shows_and_searches_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "rangelock", "getpages"]) == 0
    assert capsys.readouterr().out.startswith("zfs-getpages-rangelock")
    assert main(["show", "zfs-getpages-rangelock"]) == 0
    assert "zfs_rangelock_enter*" in capsys.readouterr().out
    assert main(["show", "nothing"]) == 1
    assert main(["list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ENTRIES)
