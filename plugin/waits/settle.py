"""A second look at the sleepers once the graph is whole.

What a thread is taken for can hang on others: a sleep with a timeout is no
progress while somebody waits behind the sleeper, and a wait for another process
is as stuck as that process is.
"""

from __future__ import annotations

from collections import Counter
from typing import Dict, List, Set

from plugin.catalogue import SleepClass
from plugin.kernel.proc import Thread
from plugin.waits.builder import GraphBuilder
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.words import count

#: so many processes asleep in one place, uninterruptibly, do not all wait for a timeout
MANY = 3
#: seconds; a shorter wait is one that a machine at work has all the time
FRESH = 1.0
#: more nodes than what one thread retries for leads to
_MAX_BEYOND = 10_000


def settle(builder: GraphBuilder) -> None:
    """Correct the verdicts that hang on other threads; the graph is not changed but for ends."""
    _retrying(builder)
    _crowded(builder)
    _held_up(builder)
    _kept_back(builder)
    _behind_the_stuck(builder)


def _retrying(builder: GraphBuilder) -> None:
    """Of those who retry for what others bring about, who is not seen to be stuck.

    The kernel keeps no start of the retrying: a short sleep may be the first or the
    thousandth.  It counts as stuck in a crowd, where somebody waits behind it, and where
    what it retries for has kept anybody waiting for long.
    """
    retries = [
        thread
        for thread in builder.threads
        if thread.address in builder.verdicts and retries_since_when(builder, thread)
    ]
    if not retries:
        return
    crowds = Counter((builder.place(thread), thread.wmesg) for thread in retries)
    old = {
        f"thread:{thread.tid}"
        for thread in builder.threads
        if thread.address in builder.verdicts
        and builder.verdicts[thread.address].status is Status.STUCK
        and thread.age is not None
        and thread.age >= FRESH
    }
    for thread in retries:
        known = builder.verdicts[thread.address]
        id = f"thread:{thread.tid}"
        if (
            known.status is Status.STUCK
            and crowds[builder.place(thread), thread.wmesg] < MANY
            and not any(edge.causal for edge in builder.graph.into.get(id, ()))
            and _somebody_brings_it_about(builder, id)
            and not _leads_to(builder, id, old)
        ):
            builder.verdicts[thread.address] = known._replace(
                status=Status.TIMED,
                why=f'retries in "{thread.wmesg}", since when is not known',
                understood=False,
            )


def retries_since_when(builder: GraphBuilder, thread: Thread) -> bool:
    """True for a sleep that looks again and again, and whose own age says nothing."""
    verdict = builder.verdicts.get(thread.address)
    row = verdict.row if verdict is not None else None
    if row is None or row.sleep_class is not SleepClass.RETRY:
        return False
    return thread.age is not None and thread.age < FRESH


def _somebody_brings_it_about(builder: GraphBuilder, id: str) -> bool:
    """False where a resolver has looked for who ends the wait and found nobody."""
    for edge in builder.graph.successors(id):
        end = builder.graph.nodes[edge.target].end
        if end is not None and end.kind in (CauseKind.UNKNOWN, CauseKind.LEAK):
            return False
    return True


def _leads_to(builder: GraphBuilder, start: str, wanted: Set[str]) -> bool:
    """Whether what ``start`` waits for keeps one of the threads ``wanted`` waiting too."""
    pending, seen = [start], {start}
    while pending and len(seen) < _MAX_BEYOND:
        node = builder.graph.nodes[pending.pop()]
        if node.id in wanted or (node.id != start and _reached_by(builder, node.id) & wanted):
            return True
        # Of several that serve, another than the one that is stuck may.
        for edge in () if node.any else builder.graph.successors(node.id):
            if edge.target not in seen:
                seen.add(edge.target)
                pending.append(edge.target)
    return False


def _unknown_timed(builder: GraphBuilder) -> List[Thread]:
    found = []
    for thread in builder.threads:
        verdict = builder.verdicts.get(thread.address)
        if verdict is not None and verdict.status is Status.TIMED and not verdict.understood:
            found.append(thread)
    return found


def _make_stuck(builder: GraphBuilder, thread: Thread, why: str) -> None:
    known = builder.verdicts[thread.address]
    builder.verdicts[thread.address] = known._replace(status=Status.STUCK, why=why)
    for edge in builder.graph.successors(f"thread:{thread.tid}"):
        node = builder.graph.nodes[edge.target]
        if node.end is not None and node.end.kind is CauseKind.EXTERNAL:
            said = f"{node.label}: no known server; a timeout wakes it, which is no progress"
            node.end = End(CauseKind.UNKNOWN, said, f"{why}; {node.end.evidence}".strip("; "))


def _crowded(builder: GraphBuilder) -> None:
    """Many processes in one unknown place, each with a timeout: they retry."""
    places: Dict[object, List[Thread]] = {}
    for thread in _unknown_timed(builder):
        if not builder.is_kernel_thread(thread) and not builder.interruptible(thread):
            places.setdefault((builder.place(thread), thread.wmesg), []).append(thread)
    for members in places.values():
        if len(members) >= MANY:
            for thread in members:
                where = f'{count(len(members), "thread")} retry in "{thread.wmesg}"'
                _make_stuck(builder, thread, where)


def _held_up(builder: GraphBuilder) -> None:
    """A sleeper that others wait behind is stuck, timed or not."""
    for thread in _unknown_timed(builder):
        id = f"thread:{thread.tid}"
        held = [edge.source for edge in builder.graph.into.get(id, ()) if edge.causal]
        if held:
            label = builder.graph.nodes[held[0]].label
            _make_stuck(builder, thread, f"sleeps with a timeout while others need it for {label}")


def _kept_back(builder: GraphBuilder) -> None:
    """Who rests, or waits for the world, with a lock that others wait for is stuck too.

    A page's busy state ends with the work on it: where its owner rests it was forgotten.
    """
    graph = builder.graph
    for thread in builder.threads:
        known = builder.verdicts.get(thread.address)
        if known is None or known.status not in (Status.BENIGN, Status.IDLE):
            continue
        for edge in list(graph.into.get(f"thread:{thread.tid}", ())):
            node = graph.nodes[edge.source]
            if not edge.causal or edge.kind is not EdgeKind.OWNED_BY or node.id not in graph.into:
                continue
            if node.kind is NodeKind.PAGE:
                graph.sever(edge)
                said = (
                    f"{node.label} was left busy by {thread.tid} {thread.label}, which {known.why}"
                )
                guessed = Certainty.GUESSED
                node.end = End(CauseKind.LEAK, said, edge.evidence, thread.age, certainty=guessed)
            elif node.kind is NodeKind.LOCK:
                why = f"{known.why}, and holds {node.label}, which others wait for"
                builder.verdicts[thread.address] = known._replace(status=Status.STUCK, why=why)


def _behind_the_stuck(builder: GraphBuilder) -> None:
    """A benign wait whose other end is stuck is stuck: the least fixed point of that."""
    waiting: Set[str] = set()
    by_id: Dict[str, Thread] = {}
    stuck: Set[str] = set()
    for thread in builder.threads:
        verdict = builder.verdicts.get(thread.address)
        if verdict is None:
            continue
        id = f"thread:{thread.tid}"
        by_id[id] = thread
        if verdict.status is Status.STUCK:
            stuck.add(id)
        elif verdict.status in (Status.BENIGN, Status.OTHER):
            waiting.add(id)
    pending = list(stuck)
    while pending:
        for id in _reached_by(builder, pending.pop()) & waiting:
            if id not in stuck and _is_stuck(builder, builder.graph.nodes[id], stuck):
                stuck.add(id)
                pending.append(id)
                known = builder.verdicts[by_id[id].address]
                builder.verdicts[by_id[id].address] = known._replace(
                    status=Status.STUCK, why=f"{known.why}; the other end is stuck"
                )


def _reached_by(builder: GraphBuilder, id: str) -> Set[str]:
    """The threads whose waits lead to ``id`` with no other thread between."""
    found: Set[str] = set()
    pending, seen = [id], {id}
    while pending:
        for edge in builder.graph.into.get(pending.pop(), ()):
            if edge.causal and edge.source not in seen:
                seen.add(edge.source)
                if builder.graph.nodes[edge.source].kind is NodeKind.THREAD:
                    found.add(edge.source)
                else:
                    pending.append(edge.source)
    return found


def _is_stuck(builder: GraphBuilder, start: Node, stuck: Set[str]) -> bool:
    """Whether the wait of ``start`` can only go on through threads that are stuck."""
    seen: Set[str] = set()

    def one(node: Node) -> bool:
        seen.add(node.id)
        answers = [
            edge.target in stuck
            if builder.graph.nodes[edge.target].kind is NodeKind.THREAD
            else edge.target not in seen and one(builder.graph.nodes[edge.target])
            for edge in builder.graph.successors(node.id)
        ]
        return bool(answers) and (all(answers) if node.any else any(answers))

    return one(start)
