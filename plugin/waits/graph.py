"""The wait-for graph: nodes, edges with their proof, cycles, and where each chain ends.

Plain data and plain algorithms: nothing here knows a kernel.  An edge says
"cannot go on until", so a chain is a path and a deadlock a strongly connected
component from which no way leads out.
"""

from __future__ import annotations

from typing import (
    Any,
    Dict,
    Hashable,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
)

from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind

#: the surest first
CERTAINTIES = tuple(Certainty)

#: kinds of a cause, those that nothing but a repair can end first
CAUSES = tuple(CauseKind)

#: how likely an end goes away by itself: of several, the least likely decides
_HOPE = {
    CauseKind.UNKNOWN: 1,
    CauseKind.EXTERNAL: 1,
    CauseKind.RUNNABLE: 2,
    CauseKind.RUNNING: 3,
}

_N = TypeVar("_N", bound=Hashable)


class End(NamedTuple):
    """Why a node is where a chain ends: the kind of cause it is, and the words for it.

    ``since``: seconds for which it has been so, None where nothing tells.  Ends of
    one ``group`` are one cause: many requests to one server, one device, one pool.  An end
    that stands ``alone`` is a cause though no thread is known to wait for it.  ``certainty``
    is that of the claim itself, whatever the way to it rests on.
    """

    kind: CauseKind
    summary: str
    evidence: str = ""
    since: Optional[float] = None
    group: str = ""
    alone: bool = False
    certainty: Certainty = Certainty.PROVEN


class Edge(NamedTuple):
    """``source`` cannot go on until ``target`` does; ``kind`` as in the JSON contract.

    ``causal`` False for an edge that only says where a thing belongs.
    """

    source: str
    target: str
    kind: EdgeKind
    certainty: Certainty
    evidence: str
    causal: bool = True


class Node:
    """One thread or thing.  ``id`` is unique; ``address`` None for what has none.

    ``any`` True where one of its successors is enough (a pool needs one buffer
    back), False where all are needed (a writer needs every reader gone).
    """

    __slots__ = ("address", "any", "end", "facts", "id", "kind", "label", "tid")

    def __init__(
        self,
        id: str,
        kind: NodeKind,
        label: str,
        address: Optional[int] = None,
        tid: Optional[int] = None,
    ) -> None:
        self.id = id
        self.kind = kind
        self.label = label
        self.address = address
        self.tid = tid
        self.any = False
        self.end: Optional[End] = None
        #: short remarks shown behind the label: "held exclusive", "READ off 4096"
        self.facts: List[str] = []

    def __repr__(self) -> str:
        return f"<{self.kind} {self.label}>"


class Graph:
    """Nodes by id, edges in the order in which they were found, no edge twice."""

    def __init__(self) -> None:
        self.nodes: Dict[str, Node] = {}
        self.edges: List[Edge] = []
        self.out: Dict[str, List[Edge]] = {}
        self.into: Dict[str, List[Edge]] = {}
        self._seen: Set[Tuple[Any, ...]] = set()

    def add(self, node: Node) -> Node:
        """The node of that id: the one already there, else this one."""
        return self.nodes.setdefault(node.id, node)

    def join(self, edge: Edge) -> None:
        key = (edge.source, edge.target, edge.kind)
        if key in self._seen or edge.source not in self.nodes or edge.target not in self.nodes:
            return
        self._seen.add(key)
        self.edges.append(edge)
        self.out.setdefault(edge.source, []).append(edge)
        self.into.setdefault(edge.target, []).append(edge)

    def sever(self, edge: Edge) -> None:
        """Keep the edge as what it says, but as no reason to wait any more."""
        told = edge._replace(causal=False)
        for edges in (self.edges, self.out[edge.source], self.into[edge.target]):
            edges[edges.index(edge)] = told

    def successors(self, id: str) -> List[Edge]:
        """The causal edges that leave a node, the surest first."""
        causal = [edge for edge in self.out.get(id, ()) if edge.causal]
        if len(causal) > 1:
            causal.sort(key=lambda edge: CERTAINTIES.index(edge.certainty))
        return causal


def components(successors: Mapping[_N, Sequence[_N]], nodes: Iterable[_N]) -> List[List[_N]]:
    """Tarjan's strongly connected components, a component before those that reach it.

    Iterative: a chain of ten thousand threads does not meet Python's limit.
    """
    index: Dict[_N, int] = {}
    low: Dict[_N, int] = {}
    stack: List[_N] = []
    on_stack: Set[_N] = set()
    found: List[List[_N]] = []
    for root in nodes:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(successors.get(root, ())))]
        while work:
            node, following = work[-1]
            for target in following:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(successors.get(target, ()))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    component: List[_N] = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    found.append(component)
    return found


class Route(NamedTuple):
    """Where a node's wait ends.  ``cause`` is a key: a node id, or "cycle:N".

    ``next`` is the node to step to on the way there, None at the end itself.
    """

    cause: str
    next: Optional[str]
    certainty: Certainty


class Cycle(NamedTuple):
    """A component from which nothing leads out; ``nodes`` in the order of the cycle."""

    key: str
    nodes: List[str]
    edges: List[Edge]
    certainty: Certainty
    #: a member sleeps with a timeout and tries again: it is slow, not dead
    paced: bool


class Solution(NamedTuple):
    routes: Dict[str, Route]
    cycles: Dict[str, Cycle]


def weakest(certainties: Iterable[Certainty]) -> Certainty:
    return max(certainties, key=CERTAINTIES.index, default=Certainty.PROVEN)


def solve(graph: Graph) -> Solution:
    """For every node the way to the end of its chain, and every cycle that holds threads.

    A node that needs any one of several things is stuck in a cycle only if all
    of them are; a node that needs all of them is if one is.
    """
    edges = {id: graph.successors(id) for id in graph.nodes}
    targets = {id: [edge.target for edge in out] for id, out in edges.items()}
    parts = components(targets, graph.nodes)
    of: Dict[str, int] = {id: number for number, part in enumerate(parts) for id in part}
    free = _free(graph, targets, of, parts)
    routes: Dict[str, Route] = {}
    cycles: Dict[str, Cycle] = {}
    for number, part in enumerate(parts):
        loops = len(part) > 1 or part[0] in targets[part[0]]
        if not loops:
            routes[part[0]] = _way(graph, part[0], edges[part[0]], routes, free)
            continue
        paced = [id for id in part if _is_paced(graph.nodes[id])]
        ring = part if paced else _ring(part, targets, free)
        if ring:
            cycle = _cycle(graph, f"cycle:{len(cycles) + 1}", ring, edges, paced)
            cycles[cycle.key] = cycle
            for id in part:
                routes[id] = Route(cycle.key, None, cycle.certainty)
        else:
            _leave(graph, part, edges, of, number, routes, free)
    return Solution(routes, cycles)


def _is_paced(node: Node) -> bool:
    return node.end is not None and node.end.kind is CauseKind.PACING


def _free(
    graph: Graph,
    targets: Dict[str, List[str]],
    of: Dict[str, int],
    parts: List[List[str]],
) -> Dict[str, bool]:
    """Which nodes may go on once the ends of the chains do: the least fixed point."""
    free = dict.fromkeys(graph.nodes, False)
    missing: Dict[str, int] = {}
    sources: Dict[str, List[str]] = {}
    ready: List[str] = []
    for id, out in targets.items():
        distinct = set(out)
        for target in distinct:
            sources.setdefault(target, []).append(id)
        missing[id] = (1 if graph.nodes[id].any else len(distinct)) if distinct else 0
        if not missing[id]:
            free[id] = True
            ready.append(id)
    while ready:
        for source in sources.get(ready.pop(), ()):
            missing[source] -= 1
            if missing[source] <= 0 and not free[source]:
                free[source] = True
                ready.append(source)
    return free


def _weight(kind: CauseKind) -> int:
    return CAUSES.index(kind)


def _end_kind(graph: Graph, cause: str) -> CauseKind:
    node = graph.nodes.get(cause)
    if node is None:
        return CauseKind.DEADLOCK
    return node.end.kind if node.end is not None else CauseKind.UNKNOWN


def _way(
    graph: Graph, id: str, out: List[Edge], routes: Dict[str, Route], free: Dict[str, bool]
) -> Route:
    """Step to the successor that decides: a stuck one if all are needed, else the hopeful one."""
    best: Optional[Route] = None
    best_rank: Tuple[Any, ...] = ()
    any_one = graph.nodes[id].any
    if len(out) == 1:
        beyond = routes[out[0].target]
        best = Route(beyond.cause, out[0].target, weakest((out[0].certainty, beyond.certainty)))
    for order, edge in enumerate(out if best is None else ()):
        beyond = routes[edge.target]
        certainty = weakest((edge.certainty, beyond.certainty))
        stuck = not free[edge.target]
        kind = _end_kind(graph, beyond.cause)
        rank = (
            stuck if any_one else not stuck,
            # What waits decides, not the holder that goes on by itself.
            _HOPE.get(kind, 0),
            CERTAINTIES.index(certainty),
            _weight(kind),
            order,
        )
        if best is None or rank < best_rank:
            best, best_rank = Route(beyond.cause, edge.target, certainty), rank
    own = graph.nodes[id].end
    if best is None or (
        # What it does itself is known; what keeps it at that could not be followed.
        own is not None
        and own.kind is CauseKind.PACING
        and _end_kind(graph, best.cause) in (CauseKind.UNKNOWN, CauseKind.EXTERNAL)
    ):
        return Route(id, None, own.certainty if own is not None else Certainty.PROVEN)
    return best


def _leave(
    graph: Graph,
    part: List[str],
    edges: Dict[str, List[Edge]],
    of: Dict[str, int],
    number: int,
    routes: Dict[str, Route],
    free: Dict[str, bool],
) -> None:
    """A component with a way out: every member's way leads to the best exit."""
    exits = []
    for id in part:
        out = [edge for edge in edges[id] if of[edge.target] != number]
        if out:
            exits.append((id, _way(graph, id, out, routes, free)))
    start, way = min(exits, key=lambda item: _weight(_end_kind(graph, item[1].cause)))
    routes[start] = way
    members = set(part)
    pending = [start]
    for id in pending:
        for edge in graph.into.get(id, ()):
            if edge.causal and edge.source in members and edge.source not in routes:
                certainty = weakest((edge.certainty, routes[id].certainty))
                routes[edge.source] = Route(way.cause, id, certainty)
                pending.append(edge.source)


def _ring(part: List[str], targets: Dict[str, List[str]], free: Dict[str, bool]) -> List[str]:
    """Of a component, what is stuck for good by itself: [] where that lies beyond it.

    Where one of several things would be enough, a member may be free; where a member waits
    for a cycle elsewhere, those that are stuck need not go round here at all.
    """
    stuck = {id for id in part if not free[id]}
    inside = {id: [target for target in targets[id] if target in stuck] for id in stuck}
    for ring in components(inside, [id for id in part if id in stuck]):
        if len(ring) > 1 or ring[0] in inside[ring[0]]:
            return ring
    return []


def _cycle(
    graph: Graph,
    key: str,
    part: List[str],
    edges: Dict[str, List[Edge]],
    paced: List[str],
) -> Cycle:
    """The shortest cycle through the ring's key node, surest edges first."""
    members = set(part)
    threads = [id for id in part if graph.nodes[id].kind == NodeKind.THREAD]
    starts = paced or threads or part
    best: List[Edge] = []
    for start in starts[:8]:
        found = _shortest(start, edges, members)
        if found and (not best or _cost(found) < _cost(best)):
            best = found
    certainty = weakest(edge.certainty for edge in best)
    return Cycle(key, [edge.source for edge in best], best, certainty, bool(paced))


def _cost(path: List[Edge]) -> Tuple[Any, ...]:
    return (CERTAINTIES.index(weakest(edge.certainty for edge in path)), len(path))


def _shortest(start: str, edges: Dict[str, List[Edge]], members: Set[str]) -> List[Edge]:
    """The shortest way from ``start`` back to itself inside a component."""
    came: Dict[str, Edge] = {}
    pending = [start]
    for id in pending:
        for edge in edges[id]:
            if edge.target == start:
                path = [edge]
                while path[-1].source != start:
                    path.append(came[path[-1].source])
                return path[::-1]
            if edge.target in members and edge.target not in came:
                came[edge.target] = edge
                pending.append(edge.target)
    return []
