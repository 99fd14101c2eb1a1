"""A second look at the sleepers once the graph is whole.

What a thread is taken for can hang on others: a sleep with a timeout is no
progress while somebody waits behind the sleeper, and a wait for another process
is as stuck as that process is.
"""

from __future__ import annotations

from typing import Dict, List, Set

from plugin.kernel.proc import Thread
from plugin.waits.builder import GraphBuilder
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, NodeKind, Status
from plugin.words import count

#: so many processes asleep in one place, uninterruptibly, do not all wait for a timeout
MANY = 3


def settle(builder: GraphBuilder) -> None:
    """Correct the verdicts that hang on other threads; the graph is not changed but for ends."""
    _crowded(builder)
    _held_up(builder)
    _behind_the_stuck(builder)


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
