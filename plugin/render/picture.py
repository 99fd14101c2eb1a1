"""The wait-for graph made ready to be drawn: waiters of one thing folded into one box.

Boxes and lines only; ``plugin.render.dot`` and ``plugin.render.html`` draw them.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from plugin.render.chains import named, who
from plugin.waits.analysis import Analysis
from plugin.waits.graph import Edge, Node
from plugin.words import count, seconds

#: more boxes than this are no picture any more
MAX_BOXES = 600
#: ways that look alike are folded from so many on
_ALIKE = 3
#: members of a folded box that are named on a second look
_TIPS = 64


class Box(NamedTuple):
    """``lines`` are its text, ``tip`` what is said on a second look; ``cause`` is the kind
    of the cause that ends here, "" for a box on the way.  ``tids`` of the threads in it."""

    id: str
    kind: str
    lines: List[str]
    tip: str
    cause: str
    tids: List[int]


class Line(NamedTuple):
    """``main``: the way that the chains go; other lines are drawn thinner."""

    source: str
    target: str
    kind: str
    certainty: str
    evidence: str
    main: bool


class Picture(NamedTuple):
    """``left_out``: boxes beyond the limit, which are in the tables only."""

    boxes: List[Box]
    lines: List[Line]
    left_out: int


def picture(analysis: Analysis, limit: int = MAX_BOXES) -> Picture:
    """What the stuck threads wait for, from the ends backwards, at most ``limit`` boxes."""
    shown = _shown(analysis)
    steps = {id: step(analysis, id) for id in shown}
    folded = _fold(analysis, shown, steps)
    ends: Dict[str, str] = {cause.node.id: cause.kind for cause in analysis.causes}
    boxes: List[Box] = []
    where: Dict[str, str] = {}
    for members in folded:
        box = _box(analysis, members, ends)
        boxes.append(box)
        for node in members:
            where[node.id] = box.id
    kept = {box.id for box in boxes[:limit]}
    lines: Dict[Tuple[Any, ...], Line] = {}
    for edge in analysis.graph.edges:
        source, target = where.get(edge.source), where.get(edge.target)
        if source in kept and target in kept and edge.causal and source != target:
            line = _line(edge, str(source), str(target), steps.get(edge.source) == edge.target)
            key = (line.source, line.target)
            if key not in lines or (line.main and not lines[key].main):
                lines[key] = line
    return Picture(boxes[:limit], list(lines.values()), max(0, len(boxes) - limit))


def step(analysis: Analysis, id: str) -> Optional[str]:
    """The node that the chain goes to from ``id``, round its cycle if it is in one."""
    way = analysis.solution.routes.get(id)
    if way is None:
        return None
    cycle = analysis.solution.cycles.get(way.cause)
    if way.next is not None or cycle is None:
        return way.next
    if id in cycle.nodes:
        place = cycle.nodes.index(id)
        return cycle.nodes[(place + 1) % len(cycle.nodes)]
    members = {each for each, other in analysis.solution.routes.items() if other.cause == way.cause}
    following = [edge.target for edge in analysis.graph.successors(id) if edge.target in members]
    return next((t for t in following if t in cycle.nodes), following[0] if following else None)


def _shown(analysis: Analysis) -> Dict[str, Node]:
    """The nodes reached from stuck threads, ends and long chains first."""
    graph = analysis.graph
    pending = [
        f"thread:{thread.tid}" for thread in analysis.stuck if analysis.node_of(thread) is not None
    ]
    seen: Set[str] = set(pending)
    for id in pending:
        for edge in graph.successors(id):
            if edge.target not in seen:
                seen.add(edge.target)
                pending.append(edge.target)
    return {id: graph.nodes[id] for id in reversed(pending)}


def _fold(
    analysis: Analysis, shown: Dict[str, Node], steps: Dict[str, Optional[str]]
) -> List[List[Node]]:
    """What is drawn as one box: threads that nobody waits for, by what they step to.

    Where many such threads go ways of their own that look alike (a thread, its
    buffer, its bio) and then meet, those ways are folded into one, step by step.
    """
    awaited: Dict[str, int] = {}
    for id in shown:
        for edge in analysis.graph.successors(id):
            awaited[edge.target] = awaited.get(edge.target, 0) + 1
    crowds: Dict[Optional[str], List[Node]] = {}
    for id, node in shown.items():
        if node.kind == "thread" and id not in awaited:
            crowds.setdefault(steps[id], []).append(node)
    ways: Dict[Tuple[Any, ...], List[List[List[Node]]]] = {}
    for to, members in crowds.items():
        private, at = [members], to
        while at is not None and awaited.get(at) == len(members) == 1 and at in shown:
            private.append([shown[at]])
            at = steps[at]
        kinds = tuple(nodes[0].kind for nodes in private)
        ways.setdefault((kinds, at, len(members) > 1), []).append(private)
    folded: List[List[Node]] = []
    for alike in ways.values():
        if len(alike) < _ALIKE or len(alike[0]) < 2:
            folded.extend(nodes for way in alike for nodes in way)
        else:
            folded.extend([node for nodes in level for node in nodes] for level in zip(*alike))
    taken = {node.id for nodes in folded for node in nodes}
    single = [[node] for id, node in shown.items() if id not in taken]
    return single + sorted(folded, key=lambda members: -len(members))


def _box(analysis: Analysis, members: List[Node], ends: Dict[str, str]) -> Box:
    node = members[0]
    by_tid = {thread.tid: thread for thread in analysis.threads}
    threads = [by_tid[each.tid] for each in members if each.tid in by_tid]
    ages = [thread.age for thread in threads if thread.age is not None]
    since = f"for {seconds(max(ages))}" if ages else ""
    tids = [each.tid for each in members if each.tid is not None]
    if len(members) > 1 and threads:
        lines = [count(len(members), "thread"), who(threads, 3)]
        tip = "\n".join(f"{t.tid} {t.label} (pid {t.pid}) {t.wmesg or t.state}" for t in threads)
    elif len(members) > 1:
        lines = [count(len(members), node.kind), f"such as {node.label}"]
        tip = "\n".join(named(each) for each in members[:_TIPS])
    elif threads:
        wait = f'"{threads[0].wmesg}"' if threads[0].wmesg else threads[0].state
        lines = [node.label, wait]
        tip = f"{node.label} (pid {threads[0].pid})"
    else:
        lines = [named(node) if node.kind in ("bio", "lock") else node.label, *node.facts[:2]]
        tip = "\n".join([named(node), *node.facts])
    if since:
        lines.append(since)
    cause = ends.get(node.id, "") if len(members) == 1 else ""
    if node.end is not None and (cause or not analysis.graph.successors(node.id)):
        cause = cause or node.end.kind
        tip += f"\n{node.end.summary}\n{node.end.evidence}"
    return Box(node.id, node.kind, [line for line in lines if line], tip.strip(), cause, tids)


def _line(edge: Edge, source: str, target: str, main: bool) -> Line:
    return Line(source, target, edge.kind, edge.certainty, edge.evidence, main)
