"""Known bugs: diagnosed hangs and panics (known.yaml) held against what a machine shows.

Nothing is claimed without its evidence: an entry matches by its panic message, or by a
thread for each stack it names; stacks that are merely concluded never decide.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from typing import Any, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

from plugin.errors import WchanError
from plugin.waits.analysis import Analysis
from plugin.waits.kinds import Status
from plugin.yamldata import load

SHIPPED = os.path.join(os.path.dirname(__file__), "known.yaml")
_KEYS = frozenset(
    (
        *("id", "title", "source", "grade", "releases", "fixed", "panic", "threads", "modules"),
        *("derived", "waits", "shape", "not_this", "workaround"),
    )
)


class Stack(NamedTuple):
    """What one thread's stack must show: ``names`` in order, innermost first, or in any."""

    names: Tuple[str, ...]
    ordered: bool


class Known(NamedTuple):
    """One diagnosed bug; fields as known.yaml describes them."""

    id: str
    title: str
    source: str
    grade: str
    releases: Tuple[int, ...]
    fixed: str
    panic: Tuple[str, ...]
    threads: Tuple[Stack, ...]
    modules: Tuple[str, ...]
    derived: bool
    waits: str
    shape: str
    not_this: str
    workaround: str


class Seen(NamedTuple):
    """What a machine shows: every thread's stack by tid, its panic message, its release.

    ``osreldate`` 0 where it is not known; ``modules`` None where no list of them was seen.
    """

    stacks: Sequence[Tuple[int, Sequence[str]]]
    panic: Optional[str]
    osreldate: int
    modules: Optional[FrozenSet[str]] = None


#: stacks looked at of threads that share name and wait message
#: bytes that a stack's frames come to, roughly
_STACK = 512
_ALIKE = 4


def seen_in(analysis: Analysis, panicked: Sequence[str] = ()) -> Seen:
    """What an analysed machine shows; of threads that wait alike a few stand for all.

    ``panicked``: the stack printed with a panic, where its thread is not known.
    """
    counts: Dict[Tuple[str, str], int] = {}
    stacks: List[Tuple[int, Sequence[str]]] = []
    ends = {cause.node.tid for cause in analysis.causes}
    most = 1 if analysis.kernel.chosen else _ALIKE
    for thread in analysis.threads:
        if thread.state not in ("sleeping", "locked", "running", "runnable"):
            continue
        key = thread.name.rstrip("0123456789"), thread.wmesg or ""
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > most and thread.tid not in ends:
            continue
        verdict = analysis.verdicts.get(thread.address)
        if verdict is not None and verdict.status in (Status.IDLE, Status.BENIGN):
            continue
        if not analysis.kernel.affords("stacks, for known bugs", _STACK, partial=False):
            break
        stacks.append((thread.tid, analysis.stack(thread)))
    kernel = analysis.kernel
    if panicked:
        stacks.append((0, panicked))
    return Seen(stacks, kernel.panicstr, kernel.osreldate)


class Match(NamedTuple):
    """``seen``: what was found of it; ``not_seen``: what the entry also names.

    ``caution``: why it may be another bug after all, "" where nothing speaks against it.
    """

    known: Known
    seen: List[str]
    not_seen: List[str]
    caution: str


def shipped(extra: Optional[str] = None) -> List[Known]:
    """The entries wchan has, those of the user's file before them."""
    return [*(read(extra) if extra else []), *read(SHIPPED)]


def read(path: str) -> List[Known]:
    """The entries of a file; WchanError naming the one that makes no sense."""
    loaded = load(path, "the known bugs")
    if loaded is None:
        return []
    if not isinstance(loaded, list):
        raise WchanError(f"{path} must be a list of known bugs")
    return [_entry(path, number, each) for number, each in enumerate(loaded, 1)]


def _entry(path: str, number: int, entry: Any) -> Known:
    def bad(why: str) -> WchanError:
        return WchanError(f"{path}, entry {number}: {why}")

    if not isinstance(entry, dict) or not entry.get("id"):
        raise bad("has no id")
    unknown = sorted(map(str, set(entry) - _KEYS))
    if unknown:
        raise bad(f"unknown key {unknown[0]!r}; there are: {', '.join(sorted(_KEYS))}")
    lists = {key: entry.get(key) or [] for key in ("threads", "panic", "releases", "modules")}
    for key, value in lists.items():
        if not isinstance(value, list):
            raise bad(f"{key} is no list")
    stacks = []
    for thread in lists["threads"]:
        if not isinstance(thread, dict) or len(set(thread) & {"frames", "functions"}) != 1:
            raise bad("a thread has either frames or functions")
        ordered = "frames" in thread
        names = thread["frames" if ordered else "functions"]
        if not isinstance(names, list):
            raise bad("the frames or functions of a thread are no list")
        stacks.append(Stack(tuple(map(str, names)), ordered))
    panics = tuple(map(str, lists["panic"]))
    for pattern in panics:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise bad(f"panic {pattern!r}: {error}") from None
    if not all(type(each) is int for each in lists["releases"]):
        raise bad("releases are no numbers")
    text = {key: str(entry.get(key, "")) for key in _KEYS}
    return Known(
        text["id"],
        text["title"],
        text["source"],
        text["grade"] or "B",
        tuple(lists["releases"]),
        text["fixed"],
        panics,
        tuple(stacks),
        tuple(map(str, lists["modules"])),
        bool(entry.get("derived", False)),
        text["waits"],
        text["shape"],
        text["not_this"],
        text["workaround"],
    )


def matches(seen: Seen, entries: Iterable[Known]) -> List[Match]:
    """The entries that look like what is seen, those without a caution first."""
    index = _Index(seen)
    found = [match for match in (_match(index, entry) for entry in entries) if match is not None]
    return sorted(found, key=lambda match: (bool(match.caution), len(match.not_seen)))


class _Index:
    """The stacks by the functions on them, for a hundred entries to be asked of."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.stacks = dict(seen.stacks)
        self._by_function: Dict[str, Set[int]] = {}
        for tid, frames in self.stacks.items():
            for name in frames:
                self._by_function.setdefault(name, set()).add(tid)
        self._by_pattern: Dict[str, Set[int]] = {}

    def with_function(self, pattern: str) -> Set[int]:
        if "*" not in pattern:
            return self._by_function.get(pattern, set())
        known = self._by_pattern.get(pattern)
        if known is None:
            known = set()
            for name, tids in self._by_function.items():
                if fnmatchcase(name, pattern):
                    known |= tids
            self._by_pattern[pattern] = known
        return known

    def threads(self, stack: Stack) -> List[int]:
        """The threads that a Stack fits."""
        candidates: Optional[Set[int]] = None
        for name in stack.names:
            having = self.with_function(name)
            candidates = having if candidates is None else candidates & having
            if not candidates:
                return []
        found = sorted(candidates or ())
        return [t for t in found if not stack.ordered or _in_order(stack.names, self.stacks[t])]


def _in_order(names: Sequence[str], frames: Sequence[str]) -> bool:
    rest = iter(frames)
    return all(any(fnmatchcase(frame, name) for frame in rest) for name in names)


def _match(index: _Index, entry: Known) -> Optional[Match]:
    if entry.grade == "C":
        return None
    seen: List[str] = []
    not_seen: List[str] = []
    by_panic = False
    if entry.panic:
        message = index.seen.panic or ""
        by_panic = any(re.search(pattern, message) for pattern in entry.panic)
        (seen if by_panic else not_seen).append("the panic message")
    found = _distinct([index.threads(stack) for stack in entry.threads])
    for stack, tid in zip(entry.threads, found):
        words = " <- ".join(stack.names)
        (not_seen if tid is None else seen).append(words if tid is None else f"{tid}: {words}")
    by_stacks = bool(entry.threads) and not entry.derived and all(t is not None for t in found)
    if not by_panic and not (by_stacks and not entry.panic):
        return None
    modules = index.seen.modules
    if modules is not None and any(name not in modules for name in entry.modules):
        return None
    return Match(entry, seen, not_seen, _caution(index.seen.osreldate, entry))


def _distinct(choices: Sequence[Sequence[int]]) -> List[Optional[int]]:
    """One thread for each stack, none for two: augmenting paths, for there are two or three."""
    owner: Dict[int, int] = {}

    def place(which: int, tried: Set[int]) -> bool:
        for tid in choices[which][:64]:
            if tid in tried:
                continue
            tried.add(tid)
            if tid not in owner or place(owner[tid], tried):
                owner[tid] = which
                return True
        return False

    for which in range(len(choices)):
        place(which, set())
    taken = {which: tid for tid, which in owner.items()}
    return [taken.get(which) for which in range(len(choices))]


def _caution(osreldate: int, entry: Known) -> str:
    """Why the release speaks against it, "" where it does not."""
    if not osreldate or not entry.releases:
        return ""
    major = osreldate // 100000
    if major in entry.releases:
        return ""
    if major > max(entry.releases):
        return f"seen up to {max(entry.releases)}.x; this {major}.x should have the fix"
    return f"seen in {', '.join(f'{each}.x' for each in entry.releases)}, this is {major}.x"
