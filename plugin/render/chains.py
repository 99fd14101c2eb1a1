"""Wait chains as indented text, folded: one block for all threads that take the same way."""

from __future__ import annotations

import textwrap
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

from plugin.kernel.prison import jail_of
from plugin.kernel.proc import Thread, arguments
from plugin.render.text import escape
from plugin.waits import advice
from plugin.waits.analysis import Analysis, Chain, Group, is_long, path_of
from plugin.waits.graph import Edge, Graph, Node
from plugin.words import alike, count, seconds

#: what an edge is called in front of its target
_VERBS = {
    "waits-for": "waits for",
    "owned-by": "held by",
    "served-by": "served by",
    "needs": "needs",
    "contained-in": "is in",
}
_MAX_INDENT = 24


def who(threads: Iterable[Thread], limit: int = 6) -> str:
    """ "reader x4, writer x2, hangtest x3 (sx-tail0, sx-tail1, sx-tail2)"."""
    names: Dict[str, List[str]] = {}
    for thread in threads:
        names.setdefault(thread.comm, []).append(thread.name)
    ordered = sorted(names.items(), key=lambda item: -len(item[1]))
    words = []
    for comm, own in ordered[:limit]:
        distinct = list(dict.fromkeys(name for name in own if name not in ("", comm)))
        text = comm + (f" x{len(own)}" if len(own) > 1 else "")
        if len(own) == 1 and distinct:
            text = f"{comm}/{distinct[0]}"
        elif distinct:
            shown = ", ".join(distinct[:4])
            text += f" ({shown}{', ..' if len(distinct) > 4 else ''})"
        words.append(text)
    left = len(ordered) - len(words)
    return ", ".join(words) + (f" and {left} more" if left else "")


def edge_between(graph: Graph, source: Node, target: Node) -> Optional[Edge]:
    """The causal edge from one node to another."""
    return next(
        (edge for edge in graph.out.get(source.id, ()) if edge.target == target.id and edge.causal),
        None,
    )


# Which chains are shown


class Shown(NamedTuple):
    """A chain to show: ``alike`` chains that differ from it in their first objects alone."""

    chain: Chain
    alike: List[Chain]

    @property
    def tids(self) -> List[int]:
        return [tid for chain in (self.chain, *self.alike) for tid in chain.tids]


def maximal(analysis: Analysis, fold: bool = True) -> List[Shown]:
    """The chains that no other one contains, those of one shape under one cause together.

    The chain of a holder is the tail of its waiters' chain: those are shown once.
    """
    own: Dict[str, Chain] = {}
    for chain in analysis.chains:
        for tid in chain.tids:
            own[f"thread:{tid}"] = chain
    passed: Set[str] = {
        node.id for chain in analysis.chains for node in chain.path[1:] if node.kind == "thread"
    }
    order = {cause.key: cause.rank for cause in analysis.causes}
    kinds = {cause.key: f"{cause.kind} {alike(cause.summary)}" for cause in analysis.causes}
    groups: Dict[Tuple[Any, ...], List[Chain]] = {}
    for chain in analysis.chains:
        if all(f"thread:{tid}" in passed for tid in chain.tids):
            continue
        groups.setdefault(_shape(chain, kinds) if fold else (id(chain),), []).append(chain)
    shown = [Shown(chains[0], chains[1:]) for chains in groups.values()]
    last = len(order) + 1
    return sorted(shown, key=lambda each: (_rank(order, each.chain, last), -len(each.tids)))


def _rank(order: Dict[str, int], chain: Chain, last: int) -> int:
    """The rank of the cause that counts the chain: its end's, or its last thread's."""
    found = order.get(chain.cause)
    for node in reversed(chain.path):
        found = found or order.get(node.id)
    return found or last


def _shape(chain: Chain, causes: Dict[str, str]) -> Tuple[Any, ...]:
    """Cause, end and the kinds of things on the way; chains of one shape read alike.

    ``causes``: by key what a cause shares with those that differ in an address or a thread.
    """
    threads = [node.id for node in chain.path[1:] if node.kind == "thread"]
    counted = next((causes[id] for id in (chain.cause, *threads[::-1]) if id in causes), None)
    kinds = tuple((node.kind, _words(node)) for node in chain.path[1:-1])
    if counted is not None and chain.end.kind != "provider":
        return (counted, chain.certainty, kinds)
    return (chain.cause, chain.end.id, chain.certainty, kinds)


def _words(node: Node) -> str:
    """What of a node's label is not its own address, name or place."""
    if node.kind in ("thread", "bio", "buf", "page"):
        return ""
    if node.kind == "lock":
        state = node.facts[1] if len(node.facts) > 1 else ""
        return f"{alike(node.label)} {state}"
    return node.id


# One chain


class Drawing:
    """Draws chains one after the other; what one has shown the next refers to."""

    def __init__(self, analysis: Analysis, width: int) -> None:
        self.analysis = analysis
        self.graph = analysis.graph
        self.width = max(width, 40)
        self._by_tid = {thread.tid: thread for thread in analysis.threads}
        self._seen: Set[str] = set()

    def chain(self, shown: Shown) -> str:
        """One block: the threads, then what they wait for, a line a step."""
        chain = shown.chain
        threads = [self._by_tid[tid] for tid in shown.tids]
        ages = [thread.age for thread in threads if thread.age is not None]
        head = f"{count(len(threads), 'thread')}  {who(threads)}"
        if len(threads) == 1:
            head = f"1 thread   {threads[0].tid} {threads[0].label}"
        if ages:
            mark = " (long)" if any(is_long(thread) for thread in threads) else ""
            head += f", for {seconds(max(ages))}{mark}"
        lines = self._wrap(head, 1)
        if shown.alike:
            lines += self._wrap(f"{count(1 + len(shown.alike), 'chain')} alike, one of them:", 3)
        lines += self._steps(chain)
        self._seen.update(node.id for node in chain.path[1:])
        return "\n".join(lines)

    def _steps(self, chain: Chain) -> List[str]:
        lines: List[str] = []
        steps = list(_steps(self.graph, chain.path))
        for number, (text, edge, nodes) in enumerate(steps):
            indent = min(3 + 2 * number, _MAX_INDENT)
            tag = "" if edge is None or edge.certainty == "proven" else f"  [{edge.certainty}]"
            if number and nodes[0].id in self._seen and number + 1 < len(steps):
                lines += self._wrap(f"{text}{tag}: as above", indent)
                return lines
            if number + 1 == len(steps) and edge is not None:
                tag = f"  [{edge.certainty}: {edge.evidence}]"
                if chain.cause in self.analysis.solution.cycles:
                    text += ": the cycle closes"
            lines += self._wrap(text + tag, indent)
        return lines

    def _wrap(self, text: str, indent: int) -> List[str]:
        return textwrap.wrap(
            escape(text),
            self.width,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 4),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]

    def in_full(self, thread: Thread) -> str:
        """The chain of one thread, a step a line, each with the evidence of its edge."""
        verdict = self.analysis.verdicts.get(thread.address)
        node = self.analysis.node_of(thread)
        age = f", for {seconds(thread.age)}" if thread.age is not None else ""
        taken = f"; {verdict.status}: {verdict.why}" if verdict is not None else ""
        lines = self._wrap(
            f"{thread.tid} {thread.label} (pid {thread.pid}), {thread.state}{age}{taken}", 0
        )
        lines += self._process(thread)
        if node is None:
            return "\n".join(lines)
        path = path_of(self.graph, self.analysis.solution, node.id)
        for before, after in zip(path, path[1:]):
            edge = edge_between(self.graph, before, after)
            if edge is None:
                continue
            facts = f" ({', '.join(after.facts)})" if after.kind == "lock" and after.facts else ""
            lines += self._wrap(f"{_VERBS[edge.kind]:<10} {named(after)}{facts}", 2)
            lines += self._wrap(f"[{edge.certainty}: {edge.evidence}]", 15)
            others = [e for e in self.graph.successors(before.id) if e.target != after.id]
            if others:
                all_of = "one is enough" if before.any else "all have to"
                lines += self._wrap(f"and {count(len(others), 'other')}; {all_of}", 15)
        lines += self._end(path[-1], node, thread)
        return "\n".join(lines)

    def _process(self, thread: Thread) -> List[str]:
        """What its process was run as and the jail it is in, where memory tells."""
        kernel = self.analysis.kernel
        if not thread.proc:
            return []
        lines: List[str] = []
        words = arguments(kernel, thread.proc)
        if words:
            lines += self._wrap(f"run as     {' '.join(words)}", 2)
        jail = jail_of(kernel, thread.proc)
        if jail is not None and jail.id:
            lines += self._wrap(f"in jail    {jail.id} {jail.name}, {jail.path}", 2)
        return lines

    def _end(self, last: Node, first: Node, thread: Thread) -> List[str]:
        lines: List[str] = []
        way = self.analysis.solution.routes.get(first.id)
        cycle = self.analysis.solution.cycles.get(way.cause) if way is not None else None
        if cycle is not None:
            what = "a cycle that goes on, slowly" if cycle.paced else "a cycle without a way out"
            lines += self._wrap(f"end        {what}, of {len(cycle.nodes)} steps", 2)
        elif last.end is not None:
            lines += self._wrap(f"end        {last.end.kind}: {last.end.summary}", 2)
            if last.end.evidence:
                lines += self._wrap(f"[{last.end.evidence}]", 15)
        for cause in self.analysis.causes:
            if thread.tid in cause.tids:
                lines += self._wrap(f"cause      #{cause.rank} {cause.kind}: {cause.summary}", 2)
        return lines


_Step = Tuple[str, Optional[Edge], List[Node]]


def _steps(graph: Graph, path: Sequence[Node]) -> Iterable[_Step]:
    """The lines of a path: a lock with its holder, and a buffer with its bio, in one."""
    number = 1
    while number < len(path):
        node = path[number]
        nodes = [node]
        edge = edge_between(graph, path[number - 1], node)
        text = named(node)
        if number + 1 < len(path) and _belong_together(node, path[number + 1]):
            following = path[number + 1]
            link = edge_between(graph, node, following)
            text += f"{_joint(node, following)} {named(following)}"
            if link is not None and (edge is None or link.certainty != "proven"):
                edge = link
            nodes.append(following)
            number += 1
            node = following
        if node is path[-1]:
            text = _last(text, node)
            edge = edge_between(graph, path[number - 1], node) or edge
        yield text, edge, nodes
        number += 1


def _belong_together(node: Node, following: Node) -> bool:
    return (node.kind, following.kind) in (("lock", "thread"), ("buf", "bio"))


def _joint(node: Node, following: Node) -> str:
    if following.kind == "bio":
        return ", bio"
    state = node.facts[1] if len(node.facts) > 1 else ""
    if state.startswith("exclusive"):
        return ", held exclusively by"
    return f", {state}, among them" if state.startswith("shared") else ", held by"


def _last(text: str, node: Node) -> str:
    """The line of the end of a chain: with what is the matter there."""
    if node.end is None:
        return text
    if node.kind == "provider":
        return f"at {'device ' if node.end.kind == 'device' else ''}{node.label}"
    if node.kind == "thread":
        doing = node.end.summary
        return (
            f"{text}, which {doing[len(node.label) + 1 :]}"
            if doing.startswith(node.label + " ")
            else f"{text}: {doing}"
        )
    if node.label in node.end.summary:
        return node.end.summary
    return f"{text}: {node.end.summary}"


def named(node: Node) -> str:
    """A node in words, with its address where that is worth having."""
    if node.kind == "thread":
        return node.label
    at = f" {node.address:#x}" if node.address is not None else ""
    if node.kind == "lock":
        word = node.facts[0] if node.facts else "lock"
        whole = node.label.startswith(("vnode", "buffer", "PI mutex"))
        return (node.label if whole else f"{word} {node.label}") + (
            "" if at.strip() in node.label else at
        )
    if node.kind == "bio":
        return f"{at.strip()} {node.label}"
    if node.kind in ("memory", "pool", "queue", "page", "object", "buf"):
        return node.label + (f" ({', '.join(node.facts)})" if node.facts else "")
    return node.label


def residue_lines(analysis: Analysis, width: int) -> List[str]:
    """' 2 threads in "htstuck" at ht_chan: no known server  (sx-holder0, lk-holder0)'.

    Under each what the catalogue says to look at, where it says anything.
    """
    merged: Dict[Tuple[str, str, str], List[Group]] = {}
    for group in analysis.residue:
        merged.setdefault((group.wmesg, group.where, group.why), []).append(group)
    lines: List[str] = []
    for (wmesg, where, why), groups in merged.items():
        threads = [thread for group in groups for thread in group.threads]
        head = f'{count(len(threads), "thread")} in "{wmesg}"' + (f" at {where}" if where else "")
        for prefix in (f'"{wmesg}" at {where}: ', f'"{wmesg}" at {where}', f'"{wmesg}" '):
            why = why[len(prefix) :] if why.startswith(prefix) else why
        lines += _residue_line(f"{head}: {why}  ({who(threads)})", width, " ")
        for said in advice.of_group(analysis, groups[0]):
            lines += _residue_line(f"{said}.", width, "     ")
    return lines


def _residue_line(text: str, width: int, indent: str) -> List[str]:
    return textwrap.wrap(
        escape(text),
        max(width, 40),
        initial_indent=indent,
        subsequent_indent="     ",
        break_long_words=False,
        break_on_hyphens=False,
    )
