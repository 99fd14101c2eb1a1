"""From the graph to an answer: which threads are stuck, behind what, and why.

``analyse`` gives the whole answer as data: chains, ranked causes with every
stuck thread counted once, the residue, and the verdict in a sentence.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

from plugin.caching import MEMORY, cached
from plugin.catalogue import Catalogue, SleepClass
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.waits.builder import GraphBuilder, Verdict
from plugin.waits.explain import builder as new_builder
from plugin.waits.graph import CAUSES, CERTAINTIES, Cycle, Edge, End, Graph, Node, Solution, solve
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.settle import FRESH, settle

#: DEADLKRES (sys/kern/kern_clock.c): a thread blocked on a lock, and one asleep, this long
LONG_BLOCKED, LONG_ASLEEP = 900.0, 1800.0
#: what no time ends
_FOR_GOOD = (CauseKind.DEADLOCK, CauseKind.LEAK)
#: more steps than a chain has nodes that differ
_MAX_PATH = 100_000
#: frames of a holder's stack that are evidence enough
_FRAMES = 8
#: of so many causes the thread they end at is shown with its stack
_WITH_STACK = 50


class Chain(NamedTuple):
    """One way from the threads ``tids`` to its end; all of them join it at ``path[1]``.

    ``path`` starts with the node of the first of them.  ``cause`` is a key of
    the causes, ``certainty`` the weakest of its edges'.
    """

    tids: List[int]
    path: List[Node]
    verdict: CauseKind
    cause: str
    certainty: Certainty

    @property
    def end(self) -> Node:
        return self.path[-1]


class Cause(NamedTuple):
    """One root cause; ``node`` is where its chains end, or the first of its cycle.

    ``since`` in seconds: how long its oldest victim has waited, or it itself.
    """

    rank: int
    kind: CauseKind
    node: Node
    tids: List[int]
    summary: str
    evidence: str
    since: Optional[float]
    certainty: Certainty
    key: str
    cycle: Optional[Cycle]


class Group(NamedTuple):
    """Threads that wait in the same place, for what is not known."""

    wmesg: str
    where: str
    why: str
    stack: Tuple[str, ...]
    threads: List[Thread]


class Analysis(NamedTuple):
    kernel: Kernel
    graph: Graph
    solution: Solution
    threads: List[Thread]
    verdicts: Dict[int, Verdict]
    stuck: List[Thread]
    chains: List[Chain]
    causes: List[Cause]
    residue: List[Group]
    #: threads that are not stuck
    idle: int
    #: how many threads are taken for what
    statuses: Dict[Status, int]
    #: waits whose chain is understood to its end, and waits of which that is not so
    understood: int
    not_understood: List[Thread]
    #: the longest of the waits that do not look stuck yet, in seconds
    waiting_for: Optional[float]
    #: a thread's functions, innermost first
    stack: Callable[[Thread], Sequence[str]]

    def status(self, thread: Thread) -> Status:
        """What a thread is taken for; one that nothing led to runs or rests by itself."""
        verdict = self.verdicts.get(thread.address)
        return verdict.status if verdict is not None else Status.RUNNING

    def node_of(self, thread: Thread) -> Optional[Node]:
        return self.graph.nodes.get(f"thread:{thread.tid}")


def is_long(thread: Thread) -> bool:
    """True where DEADLKRES would have panicked by now."""
    limit = LONG_BLOCKED if thread.state == "locked" else LONG_ASLEEP
    return thread.age is not None and thread.age >= limit


@cached(MEMORY)
def analyse(kernel: Kernel, catalogue: Catalogue, everything: bool = False) -> Analysis:
    """The whole answer.  ``everything``: chains of idle and benign sleepers too."""
    return conclude(new_builder(kernel, catalogue), everything=everything)


def conclude(builder: GraphBuilder, *, everything: bool = False) -> Analysis:
    """The answer out of a builder's threads and graph."""
    graph = builder.build()
    settle(builder)
    solution = _joined(graph, solve(graph))
    shown = (
        {Status.STUCK, Status.IDLE, Status.BENIGN, Status.TIMED} if everything else {Status.STUCK}
    )
    stuck = [t for t in builder.threads if _status(builder, t) == Status.STUCK]
    wanted = [t for t in builder.threads if _status(builder, t) in shown]
    causes, residue = _causes(builder, graph, solution, stuck)
    causes, residue, waiting_for = _without_fresh(builder, causes, residue)
    stuck = [t for t in stuck if _status(builder, t) is Status.STUCK]
    wanted = [t for t in wanted if _status(builder, t) in shown]
    chains = _chains(graph, solution, wanted)
    not_understood = _not_understood(builder, causes, residue)
    blind = {thread.tid for thread in not_understood}
    return Analysis(
        builder.kernel,
        graph,
        solution,
        builder.threads,
        builder.verdicts,
        stuck,
        chains,
        causes,
        residue,
        len(builder.threads) - len(stuck),
        Counter(_status(builder, thread) for thread in builder.threads),
        sum(thread.tid not in blind for thread in stuck),
        not_understood,
        waiting_for,
        builder.stack,
    )


def _joined(graph: Graph, solution: Solution) -> Solution:
    """The routes of ends that are one cause (``End.group``) all lead to the first of them."""
    first: Dict[str, str] = {}
    for id, node in graph.nodes.items():
        if node.end is not None and node.end.group:
            first.setdefault(node.end.group, id)
    routes = dict(solution.routes)
    for id, route in solution.routes.items():
        node_of = graph.nodes.get(route.cause)
        group = node_of.end.group if node_of is not None and node_of.end is not None else ""
        if group:
            routes[id] = route._replace(cause=first[group])
    return solution._replace(routes=routes)


def _without_fresh(
    builder: GraphBuilder, causes: List[Cause], residue: List[Group]
) -> Tuple[List[Cause], List[Group], Optional[float]]:
    """What has waited for a moment only is not stuck: its threads become WAITING.

    A cycle, a leak, a sleep that retries and a wait whose age is not kept are never
    taken for that.  The third value is the longest such wait in seconds.
    """
    ages: List[float] = []

    def fresh(threads: List[Thread], kind: CauseKind, since: Optional[float]) -> bool:
        aged = bool(threads) and kind not in _FOR_GOOD
        oldest = _oldest(builder, threads, kind) if aged else None
        if oldest is None or max(oldest, since or 0.0) >= FRESH:
            return False
        ages.append(oldest)
        for thread in threads:
            known = builder.verdicts[thread.address]
            builder.verdicts[thread.address] = known._replace(status=Status.WAITING)
        return True

    by_tid = {thread.tid: thread for thread in builder.threads}
    kept = [
        cause
        for cause in causes
        if _alone(cause) or not fresh([by_tid[tid] for tid in cause.tids], cause.kind, cause.since)
    ]
    kept = [cause._replace(rank=rank) for rank, cause in enumerate(kept, 1)]
    left = [group for group in residue if not fresh(group.threads, CauseKind.UNKNOWN, None)]
    return kept, left, max(ages, default=None)


def _alone(cause: Cause) -> bool:
    """True for what is a cause though nobody waits for it, or has only just begun to."""
    return cause.node.end is not None and cause.node.end.alone


def _oldest(builder: GraphBuilder, threads: List[Thread], kind: CauseKind) -> Optional[float]:
    """The longest wait of ``threads``; None where one's is not kept or says nothing.

    A timeout starts it anew: where nobody is known to bring the end about, a short
    wait with a timeout may be the thousandth.
    """
    blind = kind in (CauseKind.UNKNOWN, CauseKind.EXTERNAL)
    found = 0.0
    for thread in threads:
        verdict = builder.verdicts[thread.address]
        retries = verdict.row is not None and verdict.row.sleep_class is SleepClass.RETRY
        again = blind and verdict.row is not None and verdict.row.timed
        if retries or again or not verdict.understood:
            return None
        age = thread.age
        if age is None and thread.state in ("running", "runnable"):
            age = builder.unswitched(thread)
        if age is None:
            return None
        found = max(found, age)
    return found


def _not_understood(
    builder: GraphBuilder, causes: List[Cause], residue: List[Group]
) -> List[Thread]:
    """Threads whose wait nobody can follow to its end: stuck, with a timeout, swapped out."""
    blind = {tid for cause in causes if cause.kind is CauseKind.UNKNOWN for tid in cause.tids}
    blind |= {thread.tid for group in residue for thread in group.threads}
    for thread in builder.threads:
        verdict = builder.verdicts.get(thread.address)
        if verdict is not None and not verdict.understood:
            blind.add(thread.tid)
    return [thread for thread in builder.threads if thread.tid in blind]


def _status(builder: GraphBuilder, thread: Thread) -> Status:
    verdict = builder.verdicts.get(thread.address)
    return verdict.status if verdict is not None else Status.OTHER


# Chains


def path_of(graph: Graph, solution: Solution, start: str) -> List[Node]:
    """The nodes from ``start`` to the end of its chain; a cycle is gone round once."""
    path: List[Node] = []
    at: Optional[str] = start
    seen = set()
    while at is not None and at not in seen and len(path) < _MAX_PATH:
        seen.add(at)
        path.append(graph.nodes[at])
        way = solution.routes[at]
        if way.next is None and way.cause in solution.cycles:
            path.extend(_round(graph, solution.cycles[way.cause], at))
            break
        at = way.next
    return path


def _round(graph: Graph, cycle: Cycle, start: str) -> List[Node]:
    """The rest of a cycle from a node of its component, back to where it closes."""
    if start in cycle.nodes:
        place = cycle.nodes.index(start)
        order = cycle.nodes[place + 1 :] + cycle.nodes[: place + 1]
        return [graph.nodes[id] for id in order]
    # A member of the component that is not on the cycle itself: first the way there.
    came: Dict[str, Edge] = {}
    pending = [start]
    for id in pending:
        if id in cycle.nodes:
            way = [id]
            while way[-1] != start:
                way.append(came[way[-1]].source)
            return [graph.nodes[each] for each in way[-2::-1]] + _round(graph, cycle, id)
        for edge in graph.successors(id):
            if edge.target != start and edge.target not in came:
                came[edge.target] = edge
                pending.append(edge.target)
    return []


def _chains(graph: Graph, solution: Solution, threads: List[Thread]) -> List[Chain]:
    """One chain for all threads that step to the same node, the largest first."""
    groups: Dict[Tuple[str, Optional[str]], List[Thread]] = {}
    for thread in threads:
        id = f"thread:{thread.tid}"
        if id in solution.routes:
            way = solution.routes[id]
            step = way.next if way.next is not None else id
            groups.setdefault((way.cause, step), []).append(thread)
    found = []
    for (cause, _), members in groups.items():
        path = path_of(graph, solution, f"thread:{members[0].tid}")
        ways = [solution.routes[f"thread:{thread.tid}"] for thread in members]
        found.append(
            Chain(
                [thread.tid for thread in members],
                path,
                kind_of(graph, solution, cause),
                cause,
                ways[0].certainty,
            )
        )
    return sorted(found, key=lambda chain: (-len(chain.tids), -len(chain.path)))


def kind_of(graph: Graph, solution: Solution, cause: str) -> CauseKind:
    """The kind of cause that a key stands for."""
    cycle = solution.cycles.get(cause)
    if cycle is not None:
        return CauseKind.PACING if cycle.paced else CauseKind.DEADLOCK
    end = graph.nodes[cause].end
    return end.kind if end is not None else CauseKind.UNKNOWN


# Causes


def _causes(
    builder: GraphBuilder, graph: Graph, solution: Solution, stuck: List[Thread]
) -> Tuple[List[Cause], List[Group]]:
    """Every stuck thread once: behind a cause, or in the residue.

    A thread that itself sleeps where nobody knows a server is residue; those
    behind it, held up by what it holds, make a cause of kind "unknown".
    """
    behind: Dict[str, List[Thread]] = {}
    residue: List[Thread] = []
    for thread in stuck:
        id = f"thread:{thread.tid}"
        way = solution.routes[id]
        kind = kind_of(graph, solution, way.cause)
        if kind is CauseKind.UNKNOWN and _is_last_thread(graph, solution, id):
            residue.append(thread)
        else:
            behind.setdefault(_cause_key(graph, solution, id, kind), []).append(thread)
    found = []
    for id, node in graph.nodes.items():
        if node.end is not None and node.end.alone and not graph.successors(id):
            behind.setdefault(id, [])
    for key, threads in behind.items():
        found.append(_cause(builder, graph, solution, key, threads))
    found.sort(key=lambda c: (-len(c.tids), CAUSES.index(c.kind), -(c.since or 0.0)))
    first = [_with_stack(builder, cause) for cause in found[:_WITH_STACK]]
    causes = [
        cause._replace(rank=rank) for rank, cause in enumerate(first + found[_WITH_STACK:], 1)
    ]
    return causes, _groups(builder, graph, solution, residue)


def _is_last_thread(graph: Graph, solution: Solution, id: str) -> bool:
    """True where no other thread lies between this one and the end of its chain."""
    return all(node.kind != NodeKind.THREAD for node in path_of(graph, solution, id)[1:])


def _cause_key(graph: Graph, solution: Solution, id: str, kind: CauseKind) -> str:
    """What the chain is counted under: its end, but the last thread where the end is unknown."""
    cause = solution.routes[id].cause
    end = graph.nodes[cause].end if cause in graph.nodes else None
    if end is not None and end.group:
        return cause
    if kind not in (CauseKind.UNKNOWN, CauseKind.EXTERNAL):
        return cause
    threads = [node.id for node in path_of(graph, solution, id)[1:] if node.kind == NodeKind.THREAD]
    if threads:
        return threads[-1]
    # Who is waited for himself is the cause that the others are counted under.
    owned = any(edge.causal and edge.kind is EdgeKind.OWNED_BY for edge in graph.into.get(id, ()))
    return id if owned else cause


def _cause(
    builder: GraphBuilder, graph: Graph, solution: Solution, key: str, threads: List[Thread]
) -> Cause:
    ways = [solution.routes[f"thread:{thread.tid}"] for thread in threads]
    cycle = solution.cycles.get(key)
    ages = [thread.age for thread in threads if thread.age is not None]
    since = max(ages) if ages else None
    surest = min((way.certainty for way in ways), key=CERTAINTIES.index, default=Certainty.PROVEN)
    tids = [thread.tid for thread in threads]
    if cycle is not None:
        return _cycle_cause(graph, key, cycle, tids, since)
    node = graph.nodes[key]
    end = node.end or End(CauseKind.UNKNOWN, f"{node.label}: nothing more is known")
    if node.kind == NodeKind.THREAD:
        end = _holder_end(builder, graph, solution, node, end)
    return Cause(
        0, end.kind, node, tids, end.summary, end.evidence, end.since or since, surest, key, None
    )


def _with_stack(builder: GraphBuilder, cause: Cause) -> Cause:
    """The stack of a thread that others wait for says what it is at."""
    thread = builder.by_tid(cause.node.tid)
    if thread is None or cause.cycle is not None:
        return cause
    stack = builder.stack(thread)[:_FRAMES]
    if not stack:
        return cause
    said = f"{cause.evidence}; " if cause.evidence else ""
    return cause._replace(evidence=f"{said}stack {' <- '.join(stack)}")


def _holder_end(
    builder: GraphBuilder, graph: Graph, solution: Solution, node: Node, end: End
) -> End:
    """A thread others wait for: what it does, and what it holds meanwhile."""
    held = [
        graph.nodes[edge.source]
        for edge in graph.into.get(node.id, ())
        if edge.kind == EdgeKind.OWNED_BY
        and edge.causal
        and graph.nodes[edge.source].kind is not NodeKind.CPU
    ]
    what = ", ".join(_called(each) for each in held[:2])
    if len(held) > 2:
        what += f" and {len(held) - 2} more"
    holds = f" holds {what}" if what else ""
    if node.end is not None:
        return end._replace(summary=f"{end.summary}{' and' if holds else ''}{holds}")
    beyond = path_of(graph, solution, node.id)[1:]
    if not beyond:
        return end
    last = beyond[-1]
    found = last.end or End(CauseKind.UNKNOWN, last.label)
    thread = builder.by_tid(node.tid)
    inside = f' in "{thread.wmesg}"' if thread is not None and thread.wmesg else ""
    return End(
        found.kind,
        f"{node.label}{inside}{holds}" if holds else f"{node.label}: {found.summary}",
        "; ".join(text for text in (found.summary, found.evidence) if text),
        found.since,
    )


def _called(node: Node) -> str:
    return (
        f"{node.facts[0]} {node.label}" if node.kind == NodeKind.LOCK and node.facts else node.label
    )


def _cycle_cause(
    graph: Graph, key: str, cycle: Cycle, tids: List[int], since: Optional[float]
) -> Cause:
    nodes = [graph.nodes[id] for id in cycle.nodes]
    threads = [node for node in nodes if node.kind == NodeKind.THREAD]
    resources = [node for node in nodes if node.kind not in (NodeKind.THREAD, NodeKind.LOCK)]
    evidence = "; ".join(
        f"{graph.nodes[edge.source].label} -> {graph.nodes[edge.target].label} "
        f"[{edge.certainty}: {edge.evidence}]"
        for edge in cycle.edges
    )
    first = threads[0] if threads else nodes[0]
    if cycle.paced:
        pacer = next(n for n in nodes if n.end is not None and n.end.kind is CauseKind.PACING)
        end = pacer.end or End(CauseKind.PACING, pacer.label)
        evidence = f"{end.evidence}; cycle: {evidence}"
        return Cause(
            0,
            CauseKind.PACING,
            pacer,
            tids,
            end.summary,
            evidence,
            since,
            cycle.certainty,
            key,
            cycle,
        )
    if resources:
        summary = f"a cycle through resources: {around(nodes)}"
    elif len(threads) == 1:
        summary = f"{first.label} waits for {_called(nodes[-1])}, which it holds itself"
    else:
        summary = ", ".join(
            f"{node.label} waits for {_called(following)}"
            for node, following in zip(nodes, [*nodes[1:], nodes[0]])
            if node.kind == NodeKind.THREAD and following.kind != NodeKind.THREAD
        )
    return Cause(
        0, CauseKind.DEADLOCK, first, tids, summary, evidence, since, cycle.certainty, key, cycle
    )


def around(nodes: Sequence[Node]) -> str:
    """A cycle in one line: threads without their tids, no buffers."""
    shown = [node for node in nodes if node.kind != NodeKind.BUF]
    words = [
        re.sub(r"^\d+ ", "", node.label) if node.kind == NodeKind.THREAD else node.label
        for node in shown
    ]
    words = [re.sub(r" off \d+ len \d+$", "", word) for word in words]
    return " -> ".join([*words, words[0]]) if words else ""


def _groups(
    builder: GraphBuilder, graph: Graph, solution: Solution, residue: List[Thread]
) -> List[Group]:
    """The residue by message, channel and stack, the largest group first."""
    found: Dict[Tuple[Any, ...], List[Thread]] = {}
    for thread in residue:
        node = graph.nodes[solution.routes[f"thread:{thread.tid}"].cause]
        stack = tuple(builder.stack(thread))
        why = node.end.summary if node.end is not None else "nothing is known of it"
        where = builder.place(thread)
        found.setdefault((thread.wmesg or thread.state, where, why, stack), []).append(thread)
    groups = [
        Group(wmesg, where, why, stack, members)
        for (wmesg, where, why, stack), members in found.items()
    ]
    return sorted(groups, key=lambda group: -len(group.threads))
