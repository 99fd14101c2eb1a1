"""Known bugs: diagnosed hangs and panics (known.yaml) held against what a machine shows.

Nothing is claimed without its evidence: an entry matches by its panic message, by a thread
for each that it describes (stack, wait message, locks), or by the names in a deadlock.  What
is merely concluded never decides: where all of it is seen on a release that had the bug, the
entry is a warning by version, and no more.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from plugin.errors import WchanError
from plugin.waits.analysis import Analysis
from plugin.waits.graph import Graph
from plugin.waits.kinds import CauseKind, EdgeKind, NodeKind, Status
from plugin.yamldata import load

SHIPPED = os.path.join(os.path.dirname(__file__), "known.yaml")
_KEYS = frozenset(
    (
        *("id", "title", "source", "grade", "releases", "fixed", "panic", "threads", "modules"),
        *("derived", "waits", "shape", "not_this", "workaround", "cycle", "fixed_in"),
    )
)


#: what a thread of an entry may ask for
_CLAUSES = frozenset(("frames", "functions", "wmesg", "lock", "holds"))


class Stack(NamedTuple):
    """What one thread must show: functions ``names`` in order, innermost first, or in any;
    one of the messages ``wmesg``; a lock it waits for, and each of the locks it holds."""

    names: Tuple[str, ...]
    ordered: bool
    wmesg: Tuple[str, ...] = ()
    lock: Tuple[str, ...] = ()
    holds: Tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [(" <- " if self.ordered else ", ").join(self.names)] if self.names else []
        said += [f'in "{" or ".join(self.wmesg)}"'] if self.wmesg else []
        said += [f"waits for {' or '.join(self.lock)}"] if self.lock else []
        said += [f"holds {', '.join(self.holds)}"] if self.holds else []
        return "; ".join(said)


class Doing(NamedTuple):
    """What is known of a thread beside its stack; names of locks as their kernel has them."""

    wmesg: str = ""
    waits_for: Tuple[str, ...] = ()
    holds: Tuple[str, ...] = ()


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
    #: names that one deadlock must have in it, patterns
    cycle: Tuple[str, ...] = ()
    #: releases from which each branch has the fix: "12.0", "13.3-p2"
    fixed_in: Tuple[str, ...] = ()

    @property
    def decides(self) -> bool:
        """Whether what is seen alone can name it; else its version only warns."""
        by_threads = bool(self.threads) and not self.derived
        return self.grade != "C" and (by_threads or bool(self.panic) or bool(self.cycle))


class Seen(NamedTuple):
    """What a machine shows: every thread's stack by tid, its panic message, its release.

    ``osreldate`` 0 where it is not known; ``modules`` None where no list of them was seen.
    ``doing`` by tid; ``cycles``: the labels of each deadlock's nodes; ``release`` as its
    banner has it, "" where unknown.
    """

    stacks: Sequence[Tuple[int, Sequence[str]]]
    panic: Optional[str]
    osreldate: int
    modules: Optional[FrozenSet[str]] = None
    doing: Mapping[int, Doing] = {}
    cycles: Sequence[Sequence[str]] = ()
    release: str = ""


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
    cycles = [
        [analysis.graph.nodes[id].label for id in cause.cycle.nodes]
        for cause in analysis.causes
        if cause.cycle is not None and cause.kind is CauseKind.DEADLOCK
    ]
    doing = _doing(analysis, [tid for tid, _ in stacks])
    return Seen(stacks, kernel.panicstr, kernel.osreldate, None, doing, cycles, kernel.release)


def _doing(analysis: Analysis, tids: Sequence[int]) -> Dict[int, Doing]:
    """Messages and locks of these threads, as the graph has them."""
    graph = analysis.graph
    waits: Dict[str, List[str]] = {}
    holds: Dict[str, List[str]] = {}
    for edges in graph.out.values():
        for edge in edges:
            if edge.kind is EdgeKind.OWNED_BY:
                holds.setdefault(edge.target, []).append(_lock_name(graph, edge.source))
            elif edge.kind is EdgeKind.WAITS_FOR:
                waits.setdefault(edge.source, []).append(_lock_name(graph, edge.target))
    wmesg = {thread.tid: thread.wmesg or "" for thread in analysis.threads}
    return {
        tid: Doing(
            wmesg.get(tid, ""),
            tuple(filter(None, waits.get(f"thread:{tid}", ()))),
            tuple(filter(None, holds.get(f"thread:{tid}", ()))),
        )
        for tid in tids
    }


def _lock_name(graph: Graph, id: str) -> str:
    """The name in a lock's label, "" where the node is none."""
    node = graph.nodes[id]
    if node.kind is not NodeKind.LOCK:
        return ""
    named = re.search(r'"(.*)"', node.label)
    return named[1] if named is not None else node.label


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
    wanted = ("threads", "panic", "releases", "modules", "cycle", "fixed_in")
    lists = {key: entry.get(key) or [] for key in wanted}
    for key, value in lists.items():
        if not isinstance(value, list):
            raise bad(f"{key} is no list")
    stacks = []
    for thread in lists["threads"]:
        if not isinstance(thread, dict) or not thread or set(thread) - _CLAUSES:
            raise bad(f"a thread has some of {', '.join(sorted(_CLAUSES))}")
        if {"frames", "functions"} <= set(thread):
            raise bad("a thread has either frames or functions")
        if not all(isinstance(names, list) for names in thread.values()):
            raise bad("the frames or functions of a thread are no list")
        said = {key: tuple(map(str, names)) for key, names in thread.items()}
        names = said.get("frames") or said.get("functions") or ()
        more = (said.get(key, ()) for key in ("wmesg", "lock", "holds"))
        stacks.append(Stack(names, "frames" in thread, *more))
    for name in lists["fixed_in"]:
        if _numbers(str(name)) is None:
            raise bad(f"fixed_in {name!r} is no release")
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
        tuple(map(str, lists["cycle"])),
        tuple(map(str, lists["fixed_in"])),
    )


def matches(seen: Seen, entries: Iterable[Known]) -> List[Match]:
    """The entries that look like what is seen, those without a caution first."""
    index = _Index(seen)
    found = [match for match in (_match(index, entry) for entry in entries) if match is not None]
    return sorted(found, key=lambda match: (bool(match.caution), len(match.not_seen)))


def warnings(seen: Seen, entries: Iterable[Known]) -> List[Match]:
    """The entries that this release had and whose picture, too common to decide, is seen.

    None where the release is unknown or has the fix: a version is all they rest on.
    """
    index = _Index(seen)
    found = []
    for entry in entries:
        if entry.decides or not entry.threads or not _had(seen, entry) or _missing(seen, entry):
            continue
        places = _distinct([index.threads(stack) for stack in entry.threads])
        if all(tid is not None for tid in places):
            said = [f"{tid}: {stack}" for stack, tid in zip(entry.threads, places)]
            found.append(Match(entry, said, [], "its version and what many hangs show, no more"))
    return sorted(found, key=lambda match: (-len(match.seen), match.known.grade))


def _had(seen: Seen, entry: Known) -> bool:
    """The running release is one that is known to have had it, and not known to have the fix."""
    major = seen.osreldate // 100000
    return bool(seen.osreldate) and major in entry.releases and not has_fix(seen.release, entry)


def has_fix(release: str, entry: Known) -> bool:
    """Whether a release ("14.2-RELEASE-p1") is known to have an entry's fix."""
    running = _numbers(release)
    fixed = [each for each in map(_numbers, entry.fixed_in) if each is not None]
    if running is None or not fixed:
        return False
    if running[0] > max(fixed)[0]:
        return True
    if "CURRENT" in release:
        # Which day of a branch's making it is from is not in its name.
        return False
    return any(each[0] == running[0] and each <= running for each in fixed)


def _numbers(release: str) -> Optional[Tuple[int, int, int]]:
    """Major, minor and patch level of a release; None where it is no release's name."""
    match = re.match(r"^(\d{1,2})\.(\d{1,2})(?:-[A-Z]\w*)?(?:-p(\d{1,3}))?", release)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match is not None else None


def _missing(seen: Seen, entry: Known) -> bool:
    return seen.modules is not None and any(name not in seen.modules for name in entry.modules)


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
        if not stack.names:
            candidates = {*self.stacks, *self.seen.doing}
        found = [tid for tid in sorted(candidates or ()) if self._does(stack, tid)]
        return [t for t in found if not stack.ordered or _in_order(stack.names, self.stacks[t])]

    def _does(self, stack: Stack, tid: int) -> bool:
        """The thread has the message and the locks that a Stack names besides."""
        doing = self.seen.doing.get(tid, Doing())
        if stack.wmesg and not _one_of(stack.wmesg, (doing.wmesg,)):
            return False
        # An sx or lockmgr lock is slept for, and its name is the message.
        if stack.lock and not _one_of(stack.lock, (*doing.waits_for, doing.wmesg)):
            return False
        return all(_one_of((name,), doing.holds) for name in stack.holds)


def _one_of(patterns: Sequence[str], names: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _in_order(names: Sequence[str], frames: Sequence[str]) -> bool:
    rest = iter(frames)
    return all(any(fnmatchcase(frame, name) for frame in rest) for name in names)


def _match(index: _Index, entry: Known) -> Optional[Match]:
    if not entry.decides:
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
        words = str(stack)
        (not_seen if tid is None else seen).append(words if tid is None else f"{tid}: {words}")
    by_stacks = bool(entry.threads) and not entry.derived and all(t is not None for t in found)
    by_cycle = bool(entry.cycle) and any(
        all(_one_of((name,), cycle) for name in entry.cycle) for cycle in index.seen.cycles
    )
    if entry.cycle:
        words = f"a deadlock of {' and '.join(entry.cycle)}"
        (seen if by_cycle else not_seen).append(words)
    if not by_panic and not by_cycle and not (by_stacks and not entry.panic):
        return None
    if _missing(index.seen, entry):
        return None
    return Match(entry, seen, not_seen, _caution(index.seen, entry))


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


def _caution(seen: Seen, entry: Known) -> str:
    """Why the release speaks against it, "" where it does not."""
    osreldate = seen.osreldate
    if has_fix(seen.release, entry):
        return f"{seen.release} has the fix ({', '.join(entry.fixed_in)}): another bug looks alike"
    if not osreldate or not entry.releases:
        return ""
    major = osreldate // 100000
    if major in entry.releases:
        return ""
    if major > max(entry.releases):
        return f"seen up to {max(entry.releases)}.x; this {major}.x should have the fix"
    return f"seen in {', '.join(f'{each}.x' for each in entry.releases)}, this is {major}.x"
