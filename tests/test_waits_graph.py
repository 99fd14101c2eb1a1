"""The wait-for graph by itself: components, cycles, and where a chain ends."""

from __future__ import annotations

from typing import Dict, Iterable, List, Set, Tuple

import pytest
from hypothesis import example, given, settings
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
@example([(0, 2), (0, 3), (1, 1), (2, 0), (2, 1)], {0})
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


def joined(graph: Graph, source: str, target: str, certainty: Certainty) -> None:
    graph.join(Edge(source, target, EdgeKind.WAITS_FOR, certainty, "by the test"))


@pytest.mark.parametrize(
    "first, second, decides",
    [
        ("running", "runnable", "runnable"),
        ("runnable", "external", "external"),
        ("external", "device", "device"),
        ("unknown", "memory", "memory"),
        ("memory", "device", "device"),
        ("device", "lost-wakeup", "lost-wakeup"),
        ("lost-wakeup", "leak", "lost-wakeup"),
    ],
)
def test_of_two_ends_that_both_have_to_come_the_less_hopeful_decides_in_either_order(
    first: str, second: str, decides: str
) -> None:
    for kinds in ((first, second), (second, first)):
        ends = {f"e{kind}": kind for kind in kinds}
        graph = graph_of([("t0", end) for end in ends], ends)
        assert solve(graph).routes["t0"].cause == f"e{decides}"


def test_of_two_ends_of_one_kind_the_surer_one_is_told() -> None:
    graph = graph_of([], {"near": "device", "sure": "device"})
    graph.add(Node("t0", NodeKind.THREAD, "t0"))
    joined(graph, "t0", "near", Certainty.GUESSED)
    joined(graph, "t0", "sure", Certainty.CATALOGUED)
    route = solve(graph).routes["t0"]
    assert (route.cause, route.next, route.certainty) == ("sure", "sure", Certainty.CATALOGUED)


def test_of_several_things_of_which_one_is_enough_the_hopeful_one_decides() -> None:
    edges = [("t1", "pool"), ("pool", "disk"), ("pool", "t2"), ("t2", "A"), ("A", "t2")]
    solution = solve(graph_of(edges, {"disk": "device"}, ["pool"]))
    assert solution.routes["t1"].cause == "disk"
    needs_all = solve(graph_of(edges, {"disk": "device"}))
    assert needs_all.routes["t1"].cause in needs_all.cycles


def test_a_ring_with_ways_out_leaves_by_the_worse_of_them_and_every_member_follows() -> None:
    edges = [("t1", "t2"), ("t2", "t3"), ("t3", "t1"), ("t1", "easy"), ("t2", "hard")]
    graph = graph_of(edges, {"easy": "running", "hard": "device"}, ["t1", "t2", "t3"])
    solution = solve(graph)
    assert not solution.cycles
    assert {solution.routes[each].cause for each in ("t1", "t2", "t3")} == {"hard"}
    assert solution.routes["t2"].next == "hard"


def test_the_cycle_that_is_told_is_the_surest_and_of_those_the_shortest() -> None:
    graph = graph_of([], {})
    for name in ("t1", "t2", "t3", "t4"):
        graph.add(Node(name, NodeKind.THREAD, name))
    for source, target in (("t1", "t2"), ("t2", "t3"), ("t3", "t1"), ("t3", "t4"), ("t4", "t1")):
        joined(graph, source, target, Certainty.PROVEN)
    joined(graph, "t2", "t1", Certainty.GUESSED)
    (cycle,) = solve(graph).cycles.values()
    assert cycle.certainty is Certainty.PROVEN
    assert sorted(cycle.nodes) == ["t1", "t2", "t3"]


def test_a_cycle_names_only_those_that_are_in_it_for_good() -> None:
    edges = [("t1", "A"), ("A", "t2"), ("t2", "B"), ("B", "t1"), ("B", "pool"), ("pool", "t1")]
    graph = graph_of([*edges, ("pool", "disk")], {"disk": "device"}, ["pool"])
    (cycle,) = solve(graph).cycles.values()
    assert sorted(cycle.nodes) == ["A", "B", "t1", "t2"]
    assert len(cycle.edges) == 4 and not cycle.paced


def test_an_edge_to_what_is_in_no_graph_is_not_joined_and_none_is_joined_twice() -> None:
    graph = graph_of([("t1", "A")], {})
    joined(graph, "t1", "nowhere", Certainty.PROVEN)
    joined(graph, "nowhere", "t1", Certainty.PROVEN)
    joined(graph, "t1", "A", Certainty.GUESSED)
    assert [(edge.source, edge.target) for edge in graph.edges] == [("t1", "A")]
    assert graph.edges[0].certainty is Certainty.PROVEN


def test_edges_leave_a_node_the_surest_first() -> None:
    graph = graph_of([], {"a": "device", "b": "device", "c": "device"})
    graph.add(Node("t0", NodeKind.THREAD, "t0"))
    for target, certainty in zip("abc", reversed(Certainty)):
        joined(graph, "t0", target, certainty)
    assert [edge.target for edge in graph.successors("t0")] == ["c", "b", "a"]


def test_of_two_ways_on_the_surer_is_named_first() -> None:
    graph = graph_of([], {"t1": "unknown", "a": "unknown", "b": "unknown"})
    joined(graph, "t1", "a", Certainty.GUESSED)
    joined(graph, "t1", "b", Certainty.PROVEN)
    assert [found.target for found in graph.successors("t1")] == ["b", "a"]


def test_a_node_needs_all_it_waits_for_unless_it_says_that_any_will_do() -> None:
    pairs_ = [("t1", "t2"), ("t1", "x"), ("t2", "t3"), ("t3", "t2")]
    ends = {"x": "running"}
    assert solve(graph_of(pairs_, ends)).routes["t1"].cause == "cycle:1"
    assert solve(graph_of(pairs_, ends, any_of=["t1"])).routes["t1"].cause == "x"


def test_every_cycle_has_a_number_of_its_own() -> None:
    found = solve(graph_of([("t1", "t2"), ("t2", "t1"), ("t3", "t4"), ("t4", "t3")], {}))
    assert sorted(found.cycles) == ["cycle:1", "cycle:2"]
    assert {frozenset(cycle.nodes) for cycle in found.cycles.values()} == {
        frozenset(("t1", "t2")),
        frozenset(("t3", "t4")),
    }


@pytest.mark.parametrize(
    "beyond, cause",
    [("unknown", "t1"), ("external", "t1"), ("device", "x"), ("running", "x"), ("memory", "x")],
)
def test_who_paces_itself_is_the_cause_where_what_it_waits_for_cannot_be_followed(
    beyond: str, cause: str
) -> None:
    routes = solve(graph_of([("t0", "t1"), ("t1", "x")], {"t1": "pacing", "x": beyond})).routes
    assert routes["t1"].cause == routes["t0"].cause == cause
    assert routes["t1"].next == (None if cause == "t1" else "x")


def test_who_does_not_pace_itself_is_not_the_cause() -> None:
    routes = solve(graph_of([("t1", "x")], {"t1": "running", "x": "unknown"})).routes
    assert routes["t1"].cause == "x"
