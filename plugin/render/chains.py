"""Wait chains as indented text, folded: one block for all threads that take the same way."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from plugin.kernel.proc import Thread
from plugin.render.text import escape
from plugin.report import count, seconds
from plugin.waits.analysis import Analysis, Chain, is_long
from plugin.waits.graph import Edge, Graph, Node

#: what an edge is called in front of its target
_VERBS = {
    "waits-for": "waits for",
    "owned-by": "held by",
    "served-by": "served by",
    "needs": "needs",
    "contained-in": "in",
}


def who(threads: Iterable[Thread], limit: int = 6) -> str:
    """ "reader x4, writer x2, faulter"."""
    counted = Counter(thread.label for thread in threads)
    shown = [
        label + (f" x{number}" if number > 1 else "")
        for label, number in counted.most_common(limit)
    ]
    left = len(counted) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def edge_between(graph: Graph, source: Node, target: Node) -> Optional[Edge]:
    return next(
        (
            edge
            for edge in graph.out.get(source.id, ())
            if edge.target == target.id and edge.causal
        ),
        None,
    )


def maximal(analysis: Analysis) -> List[Tuple[Chain, List[int]]]:
    """The chains that no other shown chain contains, each with the tids folded into it.

    The chain of a holder is the tail of its waiters' chain: those are shown once.
    """
    tails: Dict[str, Chain] = {}
    for chain in analysis.chains:
        for tid in chain.tids:
            tails[f"thread:{tid}"] = chain
    inside: Dict[int, List[int]] = {}
    hidden = set()
    for chain in analysis.chains:
        for node in chain.path[1:]:
            tail = tails.get(node.id) if node.kind == "thread" else None
            if tail is not None and tail is not chain and len(tail.tids) == 1:
                hidden.add(id(tail))
                inside.setdefault(id(chain), []).extend(tail.tids)
    order = {cause.key: cause.rank for cause in analysis.causes}
    shown = [
        (chain, sorted(set(inside.get(id(chain), ()))))
        for chain in analysis.chains
        if id(chain) not in hidden
    ]
    rank = len(order) + 1
    return sorted(
        shown, key=lambda item: (order.get(item[0].cause, rank), -len(item[0].tids))
    )


def folded(analysis: Analysis, chain: Chain, also: Sequence[int], width: int) -> str:
    """One chain as a block: its threads, then what they wait for, a line a step."""
    by_tid = {thread.tid: thread for thread in analysis.threads}
    threads = [by_tid[tid] for tid in chain.tids]
    ages = [thread.age for thread in threads if thread.age is not None]
    head = f"{count(len(threads), 'thread')}  {who(threads)}"
    if len(threads) == 1:
        head += f" ({threads[0].tid})"
    if ages:
        mark = "!" if any(is_long(thread) for thread in threads) else ""
        head += f", for {seconds(max(ages))}{mark}"
    lines = _wrap(head, 1, width)
    depth = 1
    steps = list(_steps(analysis.graph, chain.path))
    for number, (text, edge) in enumerate(steps):
        depth = min(depth + 1, 12)
        if number == len(steps) - 1 and edge is not None:
            text += f"  [{edge.certainty}: {edge.evidence}]"
        elif edge is not None and edge.certainty != "proven":
            text += f"  [{edge.certainty}]"
        lines += _wrap(text, depth * 2 - 1, width)
    return "\n".join(lines)


def _wrap(text: str, indent: int, width: int) -> List[str]:
    return textwrap.wrap(
        escape(text),
        max(width, 40),
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def _steps(graph: Graph, path: Sequence[Node]) -> Iterable[Tuple[str, Optional[Edge]]]:
    """The lines of a path: a lock with its holder, and a buffer with its bio, in one."""
    number = 1
    while number < len(path):
        node = path[number]
        edge = edge_between(graph, path[number - 1], node)
        text = named(node)
        following = path[number + 1] if number + 1 < len(path) else None
        link = edge_between(graph, node, following) if following is not None else None
        joined = following is not None and (
            (node.kind == "lock" and following.kind == "thread")
            or (node.kind == "buf" and following.kind == "bio")
        )
        if joined and following is not None and link is not None:
            verb = _holding(node) if following.kind == "thread" else ", bio"
            text += f"{verb} {named(following)}"
            edge = link if link.certainty != "proven" or following is path[-1] else edge
            number += 1
            node = following
        if node is path[-1] and node.kind == "provider" and node.end is not None:
            text = f"at {node.label}"
            if node.end.kind == "device":
                text = f"at device {node.label}"
        elif node is path[-1] and node.kind == "thread" and node.end is not None:
            text += f": {node.end.summary}"
        elif node is path[-1] and node.end is not None and node.kind == "channel":
            text = node.end.summary if node.label in node.end.summary else (
                f"{text}: {node.end.summary}"
            )
        yield text, edge
        number += 1


def _holding(lock: Node) -> str:
    state = lock.facts[1] if len(lock.facts) > 1 else ""
    return f", held {state} by" if state.startswith(("exclusive", "shared")) else ", held by"


def named(node: Node) -> str:
    """A node in words, with its address where it has one worth having."""
    if node.kind == "thread":
        return node.label
    at = f" {node.address:#x}" if node.address is not None else ""
    if node.kind == "lock":
        word = node.facts[0] if node.facts else "lock"
        text = node.label if node.label.startswith(("vnode", "buffer")) else f"{word} {node.label}"
        return text + at
    if node.kind == "bio":
        return f"{at.strip()} {node.label}"
    if node.kind == "buf":
        facts = f" ({', '.join(node.facts)})" if node.facts else ""
        return f"{node.label}{facts}"
    if node.kind in ("memory", "pool", "queue", "page", "object"):
        facts = f" ({', '.join(node.facts)})" if node.facts else ""
        return f"{node.label}{facts}"
    return node.label


def in_full(analysis: Analysis, thread: Thread, width: int) -> str:
    """The chain of one thread, a step a line, each with the evidence of its edge."""
    from plugin.waits.analysis import path_of

    standing = analysis.standings.get(thread.address)
    node = analysis.node_of(thread)
    age = f", for {seconds(thread.age)}" if thread.age is not None else ""
    status = standing.status if standing is not None else thread.state
    why = f": {standing.why}" if standing is not None else ""
    lines = _wrap(
        f"{thread.tid} {thread.label} (pid {thread.pid}), {thread.state}{age}; {status}{why}",
        0,
        width,
    )
    if node is None:
        return "\n".join(lines)
    path = path_of(analysis.graph, analysis.solution, node.id)
    for before, after in zip(path, path[1:]):
        edge = edge_between(analysis.graph, before, after)
        if edge is None:
            continue
        facts = f" ({', '.join(after.facts)})" if after.facts and after.kind == "lock" else ""
        lines += _wrap(f"{_VERBS[edge.kind]:<10} {named(after)}{facts}", 2, width)
        lines += _wrap(f"[{edge.certainty}: {edge.evidence}]", 15, width)
        others = [e for e in analysis.graph.successors(before.id) if e.target != after.id]
        if others:
            lines += _wrap(f"(and {count(len(others), 'other')})", 15, width)
    last = path[-1]
    if last.end is not None:
        lines += _wrap(f"end        {last.end.kind}: {last.end.summary}", 2, width)
        if last.end.evidence:
            lines += _wrap(f"[{last.end.evidence}]", 15, width)
    way = analysis.solution.ways.get(node.id)
    if way is not None and way.cause in analysis.solution.cycles:
        lines += _wrap(f"the chain closes: a cycle of {len(analysis.solution.cycles[way.cause].nodes)}", 2, width)
    for rank in [c.rank for c in analysis.causes if thread.tid in c.tids]:
        lines += _wrap(f"cause      #{rank}", 2, width)
    return "\n".join(lines)
