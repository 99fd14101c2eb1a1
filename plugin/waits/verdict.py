"""The verdict in a sentence or two, out of the ranked causes."""

from __future__ import annotations

import re
from typing import List, Sequence, Tuple

from plugin.judge.geom_io import Account, accounts
from plugin.session import Kernel
from plugin.waits.analysis import Analysis, Cause, around, path_of
from plugin.waits.graph import Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind
from plugin.words import count

_NUMBERS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def in_words(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def sentences(analysis: Analysis) -> List[str]:
    """The verdict: worst first, each a full sentence."""
    causes = analysis.causes
    stuck = len(analysis.stuck)
    if not stuck:
        return ["No thread is stuck."]
    found: List[str] = []
    deadlocks = [cause for cause in causes if cause.kind is CauseKind.DEADLOCK]
    for cause in deadlocks[:3]:
        found.append(_deadlock(analysis, cause))
    for cause in causes:
        if cause.kind is CauseKind.PACING:
            found += _pacing(analysis, cause)
        elif cause.kind is CauseKind.LOST_WAKEUP:
            found.append(
                _sentence(f"Lost wakeup: {cause.summary} ({count(len(cause.tids), 'thread')})")
            )
    devices = [cause for cause in causes if cause.kind is CauseKind.DEVICE]
    if devices:
        found.append(_devices(analysis, devices))
    for cause in causes:
        if cause.kind is CauseKind.MEMORY:
            verb = "waits" if len(cause.tids) == 1 else "wait"
            found.append(
                _sentence(f"{cause.summary}; {count(len(cause.tids), 'thread')} {verb} for it")
            )
    found.extend(_rest(causes))
    left = sum(len(group.threads) for group in analysis.residue)
    if left and not causes:
        verb = "waits" if left == 1 else "wait"
        found.append(f"{count(left, 'thread')} {verb} where no server is known: see the residue.")
    if not deadlocks:
        found.append("No deadlock.")
    return found


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def _deadlock(analysis: Analysis, cause: Cause) -> str:
    """Who waits for what whose, all the way round; a long way only as a line of arrows."""
    sure = "" if cause.certainty is Certainty.PROVEN else f" (an edge of it is {cause.certainty})"
    inside = [id for id in cause.cycle.nodes if id.startswith("thread:")] if cause.cycle else []
    behind = len(cause.tids) - len(inside)
    held = f"{count(len(inside), 'thread')} in it"
    if behind > 0:
        held += f", {behind} more behind it"
    nodes = [analysis.graph.nodes[id] for id in cause.cycle.nodes] if cause.cycle else []
    text = cause.summary if len(nodes) <= 8 else f"a cycle of {len(nodes)} steps: {around(nodes)}"
    return f"Deadlock{sure}: {text}; {held}."


def _pacing(analysis: Analysis, cause: Cause) -> List[str]:
    """Slow, not dead: what goes round, and whether the disks have a part in it."""
    behind = count(len(cause.tids), "thread")
    if cause.cycle is None:
        return [_sentence(f"{cause.summary}; {behind} behind it")]
    nodes = [analysis.graph.nodes[id] for id in cause.cycle.nodes]
    locks = [node for node in nodes if node.kind == NodeKind.LOCK]
    what = "a cycle" if locks else "a cycle through resources, with no lock in it"
    found = [
        _sentence(f"{cause.summary}"),
        _sentence(
            f"It is {what}: {around(nodes)}. It goes on, slowly; {behind} are in it or behind it"
        ),
    ]
    found += _in_the_queue(analysis, nodes)
    for account in asked(analysis.kernel):
        settled = account.verdict in ("clear", "waits")
        word = "owes nothing" if settled else "owes I/O"
        found.append(f"The disk {account.provider.name} {word}: {account.reason}.")
    return found


def _in_the_queue(analysis: Analysis, nodes: Sequence[Node]) -> List[str]:
    """What ties a pool to the queue, and the queue to memory."""
    queue = next((node for node in nodes if node.kind == NodeKind.QUEUE), None)
    pool = next((node for node in nodes if node.kind == NodeKind.POOL), None)
    found = []
    if queue is not None and pool is not None:
        bufs = [edge.target for edge in analysis.graph.successors(pool.id)]
        there = [id for id in bufs if queue in path_of(analysis.graph, analysis.solution, id)]
        share = "All" if len(there) == len(bufs) else f"{len(there)} of the"
        found.append(
            f"{share} {len(bufs)} pbufs in use of that pool are attached to bios in {queue.label}."
        )
    daemons = [
        node for node in nodes if node.kind == NodeKind.THREAD and "pagedaemon" in node.label
    ]
    if daemons and any(node.kind is NodeKind.MEMORY for node in nodes):
        found.append("The free pages that would end it are what the page daemon cannot make.")
    return found


def asked(kernel: Kernel) -> List[Account]:
    """The devices that requests are under way to, with what their counters say."""
    return [
        account
        for account in accounts(kernel).values()
        if account.provider.is_device and (account.in_flight or account.found)
    ]


def _devices(analysis: Analysis, causes: List[Cause]) -> str:
    names = [cause.node.label for cause in causes]
    swaps = [c.node for c in causes if "swap" in c.node.facts]
    words = [f"the swap disk {c.node.label}" if c.node in swaps else c.node.label for c in causes]
    tids = [tid for cause in causes for tid in cause.tids]
    stuck = len(analysis.stuck)
    if len(names) == 1:
        text = f"{words[0]} owes I/O."
        text = text[:1].upper() + text[1:]
    else:
        text = f"{in_words(len(names)).capitalize()} devices owe I/O: {listed(words)}."
    where = "there" if len(names) > 1 else "at it"
    share = f"All {stuck}" if len(tids) == stuck else f"{len(tids)} of {stuck}"
    text += f" {share} stuck threads end {where}"
    laundry, starved = _memory_behind(analysis, tids)
    if laundry:
        text += f", among them {listed(laundry)}"
        if starved:
            text += f", so no page can be cleaned and {count(starved, 'thread')} wait for memory"
    elif starved:
        text += f", {starved} of them for want of memory"
    return text + "."


def _memory_behind(analysis: Analysis, tids: Sequence[int]) -> Tuple[List[str], int]:
    """The page daemon's own threads among ``tids``, and how many wait for free pages."""
    wanted = set(tids)
    memory = [node for node in analysis.graph.nodes.values() if node.kind is NodeKind.MEMORY]
    servers = {edge.target for node in memory for edge in analysis.graph.out.get(node.id, ())}
    daemons = []
    for id in servers:
        node = analysis.graph.nodes[id]
        if node.tid in wanted:
            word = "the laundry thread" if "laundry" in node.label else "the page daemon"
            if word not in daemons:
                daemons.append(word)
    waiting = [
        edge.source
        for node in memory
        for edge in analysis.graph.into.get(node.id, ())
        if edge.kind == EdgeKind.WAITS_FOR
    ]
    starved = len([id for id in waiting if analysis.graph.nodes[id].tid in wanted])
    return sorted(daemons), starved


def _rest(causes: Sequence[Cause]) -> List[str]:
    found = []
    for cause in causes:
        if cause.kind in (CauseKind.RUNNING, CauseKind.RUNNABLE, CauseKind.EXTERNAL):
            verb = "waits" if len(cause.tids) == 1 else "wait"
            behind = f"{count(len(cause.tids), 'thread')} {verb} behind it"
            found.append(_sentence(f"{cause.summary}: {behind}"))
    unknown = [cause for cause in causes if cause.kind is CauseKind.UNKNOWN]
    if unknown:
        tids = sum(len(cause.tids) for cause in unknown)
        verb = "waits" if tids == 1 else "wait"
        holders = listed([_who(cause.node) for cause in unknown[:3]])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        found.append(
            _sentence(
                f"{count(tids, 'thread')} {verb} behind {holders}{more}, "
                "whose own wait is not understood"
            )
        )
    return found


def _who(node: Node) -> str:
    return re.sub(r"\s+", " ", node.label)
