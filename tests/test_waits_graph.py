"""The wait-for graph by itself: components, cycles, and where a chain ends."""

from __future__ import annotations

from typing import Dict, Iterable, List, Set, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.waits.graph import Edge, End, Graph, Node, components, solve
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind

networkx = pytest.importorskip("networkx", reason="networkx checks the components")

Pairs = List[Tuple[int, int]]
pairs = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=40)


def successors(edges: Pairs) -> Dict[int, List[int]]:
    found: Dict[int, List[int]] = {}
    for source, target in edges:
        found.setdefault(source, []).append(target)
    return found


def graph_of(
    edges: Iterable[Tuple[str, str]], ends: Dict[str, str], any_of: Iterable[str] = ()
) -> Graph:
    """Nodes by name, threads where the name begins with t; ``ends`` are {name: kind of end}."""
    graph = Graph()
    edges = list(edges)
    for name in dict.fromkeys([n for edge in edges for n in edge] + list(ends)):
        node = graph.add(
            Node(name, NodeKind.THREAD if name.startswith("t") else NodeKind.LOCK, name)
        )
        node.any = name in any_of
        if name in ends:
            node.end = End(CauseKind(ends[name]), f"{name} {ends[name]}")
    for source, target in edges:
        graph.join(Edge(source, target, EdgeKind.WAITS_FOR, Certainty.PROVEN, "by the test"))
    return graph


@given(pairs)
def test_any_graph_has_the_components_that_networkx_finds(edges: Pairs) -> None:
    nodes = sorted({n for edge in edges for n in edge})
    ours = {frozenset(part) for part in components(successors(edges), nodes)}
    theirs = networkx.DiGraph()
    theirs.add_nodes_from(nodes)
    theirs.add_edges_from(edges)
    assert ours == {frozenset(part) for part in networkx.strongly_connected_components(theirs)}


@given(pairs)
def test_a_component_comes_before_those_that_reach_it(edges: Pairs) -> None:
    place = {}
    for number, part in enumerate(components(successors(edges), range(15))):
        for node in part:
            place[node] = number
    assert all(place[target] <= place[source] for source, target in edges)


def test_a_chain_of_a_hundred_thousand_needs_no_recursion() -> None:
    length = 100_000
    found = components({n: [n + 1] for n in range(length)}, range(length + 1))
    assert len(found) == length + 1


@given(pairs)
@settings(max_examples=200)
def test_who_needs_all_is_stuck_for_good_exactly_if_a_cycle_can_be_reached(edges: Pairs) -> None:
    named = [(f"t{a}", f"t{b}") for a, b in edges]
    graph = graph_of(named, {})
    theirs = networkx.DiGraph(named)
    in_cycle: Set[str] = set()
    for part in networkx.strongly_connected_components(theirs):
        if len(part) > 1 or any(theirs.has_edge(n, n) for n in part):
            in_cycle |= part
    solution = solve(graph)
    for node in graph.nodes:
        doomed = node in in_cycle or bool(networkx.descendants(theirs, node) & in_cycle)
        assert (solution.routes[node].cause in solution.cycles) == doomed


@given(pairs, st.sets(st.integers(0, 14)))
@settings(max_examples=200)
def test_every_way_leads_to_its_end_and_every_cycle_is_one(edges: Pairs, any_of: Set[int]) -> None:
    graph = graph_of([(f"t{a}", f"t{b}") for a, b in edges], {}, {f"t{n}" for n in any_of})
    solution = solve(graph)
    for start in graph.nodes:
        at, seen = start, 0
        while solution.routes[at].next is not None and seen <= len(graph.nodes):
            assert solution.routes[at].cause == solution.routes[start].cause
            at, seen = str(solution.routes[at].next), seen + 1
        assert seen <= len(graph.nodes), "the way goes round"
        assert solution.routes[start].cause in (at, solution.routes[at].cause)
    for cycle in solution.cycles.values():
        assert cycle.nodes and len(cycle.nodes) == len(cycle.edges)
        for edge, following in zip(cycle.edges, [*cycle.edges[1:], cycle.edges[0]]):
            assert edge.target == following.source


def test_two_threads_that_wait_for_each_other_are_a_cycle() -> None:
    solution = solve(graph_of([("t1", "A"), ("A", "t2"), ("t2", "B"), ("B", "t1")], {}))
    (cycle,) = solution.cycles.values()
    assert set(cycle.nodes) == {"t1", "A", "t2", "B"}


def test_a_tail_is_behind_the_cycle_and_not_in_it() -> None:
    edges = [("t1", "A"), ("A", "t2"), ("t2", "B"), ("B", "t1"), ("t3", "C"), ("C", "t1")]
    solution = solve(graph_of(edges, {}))
    (cycle,) = solution.cycles.values()
    assert "t3" not in cycle.nodes
    assert solution.routes["t3"].cause == cycle.key


def test_a_diamond_is_no_cycle() -> None:
    edges = [("t1", "A"), ("A", "t2"), ("A", "t3"), ("t2", "B"), ("t3", "B"), ("B", "t4")]
    solution = solve(graph_of(edges, {"t4": "running"}))
    assert not solution.cycles
    assert solution.routes["t1"].cause == "t4"


def test_a_pool_is_stuck_only_if_all_that_could_refill_it_is() -> None:
    round_ = [("t1", "pool"), ("pool", "buf1"), ("buf1", "t1")]
    stuck = solve(graph_of(round_, {}, any_of=["pool"]))
    assert stuck.routes["t1"].cause in stuck.cycles
    way_out = solve(
        graph_of([*round_, ("pool", "buf2"), ("buf2", "disk")], {"disk": "device"}, ["pool"])
    )
    assert not way_out.cycles
    assert way_out.routes["t1"].cause == "disk"


def test_a_cycle_with_a_sleeper_that_tries_again_is_slow_not_dead() -> None:
    edges = [("t1", "memory"), ("memory", "t2"), ("t2", "queue"), ("queue", "t1")]
    solution = solve(graph_of(edges, {"t1": "pacing"}))
    (cycle,) = solution.cycles.values()
    assert cycle.paced


def test_of_several_holders_the_one_that_waits_decides_not_the_one_that_runs() -> None:
    edges = [("t0", "A"), ("A", "t1"), ("A", "t2"), ("t2", "disk")]
    solution = solve(graph_of(edges, {"t1": "running", "disk": "device"}))
    assert solution.routes["t0"].cause == "disk"


def test_an_edge_is_as_sure_as_the_weakest_on_its_way() -> None:
    graph = graph_of([("t1", "A"), ("A", "t2")], {"t2": "running"})
    graph.add(Node("t0", NodeKind.THREAD, "t0"))
    graph.join(Edge("t0", "t1", EdgeKind.OWNED_BY, Certainty.GUESSED, "a stack"))
    solution = solve(graph)
    assert solution.routes["t1"].certainty == "proven"
    assert solution.routes["t0"].certainty == "guessed"


def test_an_edge_that_only_says_where_a_thing_belongs_is_no_reason_to_wait() -> None:
    graph = graph_of([("t1", "A")], {"A": "unknown", "vnode": "unknown"})
    graph.join(Edge("A", "vnode", EdgeKind.CONTAINED_IN, Certainty.PROVEN, "v_lock", causal=False))
    assert solve(graph).routes["t1"].cause == "A"
