"""Known bugs are named where their evidence is seen, and nowhere else."""

from __future__ import annotations

import re
from typing import Dict, List, Optional, Sequence, Tuple

import pytest

from plugin.errors import WchanError
from plugin.hosts.known import main
from plugin.waits.known import (
    SHIPPED,
    Doing,
    Known,
    Seen,
    Stack,
    has_fix,
    matches,
    read,
    shipped,
    warnings,
)

ENTRIES = read(SHIPPED)
BY_VERSION = [e for e in ENTRIES if not e.decides]
BY_STACKS = [e for e in ENTRIES if e.decides and e.threads and not e.derived and not e.panic]
BY_PANIC = [e for e in ENTRIES if e.panic and e.grade != "C"]


def plain(pattern: str) -> str:
    """A function's name that a pattern fits."""
    return pattern.replace("*", "x") if pattern.strip("*") else "some_function"


def stacks_of(entry: Known) -> List[Tuple[int, List[str]]]:
    return [
        (100100 + number, ["mi_switch", *map(plain, stack.names), "fork_exit"])
        for number, stack in enumerate(entry.threads)
    ]


def doing_of(entry: Known) -> Dict[int, Doing]:
    return {
        100100 + number: Doing(
            plain(stack.wmesg[0]) if stack.wmesg else "",
            tuple(map(plain, stack.lock[:1])),
            tuple(map(plain, stack.holds)),
        )
        for number, stack in enumerate(entry.threads)
    }


def machine_of(entry: Known, release: str = "", osreldate: int = 0) -> Seen:
    """A machine that shows all that an entry's threads ask for."""
    return Seen(stacks_of(entry), None, osreldate, doing=doing_of(entry), release=release)


def panic_of(entry: Known) -> Optional[str]:
    if not entry.panic:
        return None
    return re.sub(r"\\(.)", r"\1", entry.panic[0].split("|")[0].replace(".*", "0xfffff80012345678"))


def named(
    stacks: Sequence[Tuple[int, Sequence[str]]],
    panic: Optional[str] = None,
    osreldate: int = 0,
    modules: Optional[Sequence[str]] = None,
    doing: Optional[Dict[int, Doing]] = None,
) -> List[str]:
    seen = Seen(
        stacks,
        panic,
        osreldate,
        None if modules is None else frozenset(modules),
        doing or {},
    )
    return [match.known.id for match in matches(seen, ENTRIES)]


def test_there_are_more_than_a_hundred_and_each_says_where_it_is_from() -> None:
    assert len(ENTRIES) > 100 and len({e.id for e in ENTRIES}) == len(ENTRIES)
    assert all(e.title and e.source and e.fixed and e.shape for e in ENTRIES)


@pytest.mark.parametrize("entry", BY_STACKS, ids=lambda e: e.id)
def test_the_stacks_of_a_known_bug_name_it(entry: Known) -> None:
    assert entry.id in named(stacks_of(entry), doing=doing_of(entry))


@pytest.mark.parametrize("entry", BY_STACKS, ids=lambda e: e.id)
def test_a_machine_without_one_of_its_functions_is_a_near_miss(entry: Known) -> None:
    for number, stack in enumerate(entry.threads):
        for name in stack.names:
            if not name.strip("*"):
                continue
            stacks = stacks_of(entry)
            tid, frames = stacks[number]
            stacks[number] = tid, [frame for frame in frames if frame != plain(name)]
            assert entry.id not in named(stacks, doing=doing_of(entry))


@pytest.mark.parametrize("entry", [e for e in BY_STACKS if len(e.threads) > 1], ids=lambda e: e.id)
def test_one_thread_cannot_be_both_of_a_pair(entry: Known) -> None:
    both = [frame for _, frames in stacks_of(entry) for frame in frames]
    assert entry.id not in named([(100100, both)])


@pytest.mark.parametrize("entry", BY_PANIC, ids=lambda e: e.id)
def test_a_panic_message_names_its_bug(entry: Known) -> None:
    assert entry.id in named([], panic_of(entry))
    assert entry.id not in named([], "page fault")


DOING = [e for e in BY_STACKS if any(s.wmesg or s.lock or s.holds for s in e.threads)]


@pytest.mark.parametrize("entry", DOING, ids=lambda e: e.id)
def test_the_same_stacks_behind_another_lock_or_message_are_a_near_miss(entry: Known) -> None:
    for number, stack in enumerate(entry.threads):
        doing = doing_of(entry)
        tid = 100100 + number
        if stack.wmesg:
            less = {**doing, tid: doing[tid]._replace(wmesg="another")}
            assert entry.id not in named(stacks_of(entry), doing=less)
        if stack.lock:
            less = {**doing, tid: doing[tid]._replace(waits_for=("another",))}
            assert entry.id not in named(stacks_of(entry), doing=less)


def test_of_the_locks_held_each_must_be_held_and_of_messages_one() -> None:
    entry = ENTRIES[0]._replace(
        panic=(),
        derived=False,
        threads=(Stack((), False, ("a*", "b"), (), ("one lock", "other lock")),),
    )
    seen = Seen([], None, 0, doing={7: Doing("b", (), ("other lock", "one lock"))})
    assert [match.seen for match in matches(seen, [entry])] == [
        ['7: in "a* or b"; holds one lock, other lock']
    ]
    for less in (Doing("c", (), ("other lock", "one lock")), Doing("b", (), ("one lock",))):
        assert not matches(seen._replace(doing={7: less}), [entry])


def test_the_names_in_one_deadlock_are_evidence_and_those_in_two_are_none() -> None:
    entry = next(e for e in ENTRIES if e.cycle)
    labels = [f'sx "{plain(name)}"' for name in entry.cycle]
    (match,) = matches(Seen([], None, 0, cycles=[labels]), [entry])
    assert match.seen == [f"a deadlock of {' and '.join(entry.cycle)}"]
    assert not matches(Seen([], None, 0, cycles=[[label] for label in labels]), [entry])


def test_every_entry_can_be_claimed_or_warned_of() -> None:
    assert len([e for e in ENTRIES if e.decides]) >= 57
    assert all(e.decides or (e.threads and e.releases) for e in ENTRIES)


@pytest.mark.parametrize("entry", BY_VERSION, ids=lambda e: e.id)
def test_what_does_not_decide_warns_by_version_and_is_never_claimed(entry: Known) -> None:
    major = entry.releases[-1]
    seen = machine_of(entry, f"{major}.0-CURRENT", major * 100000)
    assert entry in [match.known for match in warnings(seen, ENTRIES)]
    assert entry not in [match.known for match in matches(seen, ENTRIES)]


@pytest.mark.parametrize("entry", BY_VERSION, ids=lambda e: e.id)
def test_another_release_an_unknown_one_or_less_to_see_is_no_warning(entry: Known) -> None:
    major = entry.releases[-1]
    near = machine_of(entry, f"{major}.0-CURRENT", major * 100000)
    for seen in (
        near._replace(osreldate=6 * 100000, release="6.0-CURRENT"),
        near._replace(osreldate=0, release=""),
        near._replace(stacks=[], doing={}),
    ):
        assert entry not in [match.known for match in warnings(seen, [entry])]


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.fixed_in], ids=lambda e: e.id)
def test_a_release_that_has_the_fix_says_so_and_warns_of_nothing(entry: Known) -> None:
    first = entry.fixed_in[-1].split("-p")
    release = f"{first[0]}-RELEASE" + (f"-p{first[1]}" if len(first) > 1 else "")
    assert has_fix(release, entry) and not has_fix("6.0-RELEASE", entry)
    major = int(release.split(".")[0])
    seen = machine_of(entry, release, major * 100000)._replace(panic=panic_of(entry))
    assert not warnings(seen, [entry])
    for match in matches(seen, [entry]):
        assert match.caution.startswith(f"{release} has the fix")


@pytest.mark.parametrize(
    "release, has",
    [
        ("13.3-RELEASE-p2", False),
        ("13.3-RELEASE-p3", True),
        ("13.4-RELEASE", True),
        ("13.2-RELEASE-p9", False),
        ("14.0-CURRENT", False),
        ("14.0-RELEASE-p1", False),
        ("14.1-STABLE", True),
        ("15.0-CURRENT", True),
        ("12.4-RELEASE", False),
        ("unknown", False),
    ],
)
def test_a_fix_is_had_from_the_patch_level_of_each_branch_on(release: str, has: bool) -> None:
    entry = ENTRIES[0]._replace(fixed_in=("13.3-p3", "14.0-p2"))
    assert has_fix(release, entry) is has


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
    assert entry.id not in named(stacks_of(entry), panic_of(entry), doing=doing_of(entry))


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
