"""The verdict in a sentence or two, out of the ranked causes."""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

from plugin.catalogue import SleepClass
from plugin.judge.geom_io import ProviderIO, provider_io
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.waits.analysis import Analysis, Cause, around, path_of
from plugin.waits.graph import Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.resolvers.cpus import contends_in
from plugin.waits.settle import MANY
from plugin.words import count, seconds, verb

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


#: what a chain leads through -> what the hang is one of
_MATTERS = (
    ("zfs", {NodeKind.ZPOOL, NodeKind.TXG, NodeKind.ZIO, NodeKind.DBUF, NodeKind.LWB}),
    ("nfs", {NodeKind.SERVER}),
)


def matter(analysis: Optional[Analysis]) -> str:
    """What kind of hang the first cause is: "zfs", "nfs", "io", "memory", else "hang"."""
    if analysis is None or not analysis.causes:
        return "hang"
    cause = analysis.causes[0]
    kinds = {cause.node.kind}
    for tid in cause.tids:
        path = path_of(analysis.graph, analysis.solution, f"thread:{tid}")
        kinds.update(node.kind for node in path)
    for name, those in _MATTERS:
        if kinds & those:
            return name
    if cause.kind in (CauseKind.DEVICE, CauseKind.PACING):
        return "io"
    return "memory" if cause.kind is CauseKind.MEMORY else "hang"


def in_words(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def sentences(analysis: Analysis) -> List[str]:
    """The verdict: worst first, each a full sentence; what it does not cover is in it."""
    causes = analysis.causes
    found: List[str] = []
    deadlocks = [cause for cause in causes if cause.kind is CauseKind.DEADLOCK]
    for cause in deadlocks[:3]:
        found.append(_deadlock(analysis, cause))
    if len(deadlocks) > 3:
        found.append(f"{count(len(deadlocks) - 3, 'more deadlock')}: see the causes.")
    for cause in causes:
        if cause.node.kind is NodeKind.ZPOOL:
            found.append(_told(cause, "", f": {_behind(cause.tids)} it" if cause.tids else ""))
    for cause in causes:
        if cause.kind is CauseKind.PACING:
            found += _pacing(analysis, cause)
        elif cause.kind is CauseKind.LOST_WAKEUP:
            found.append(_told(cause, "lost wakeup: ", f" ({count(len(cause.tids), 'thread')})"))
        elif cause.kind is CauseKind.LEAK:
            found.append(_told(cause, "", f"; {_behind(cause.tids)} it"))
    devices = [cause for cause in causes if cause.kind is CauseKind.DEVICE]
    if devices:
        found.append(_devices(analysis, devices))
    for cause in causes:
        if cause.kind is CauseKind.MEMORY:
            found.append(_told(cause, "", f"; {_waits(cause.tids)} for it"))
    found.extend(_rest(causes))
    found.extend(_other_threads(analysis))
    found.extend(_limits(analysis, bool(deadlocks)))
    return found


def _waits(tids: Sequence[Any]) -> str:
    return f"{count(len(tids), 'thread')} {verb(len(tids), 'wait')}"


def _behind(tids: Sequence[Any]) -> str:
    return f"{_waits(tids)} behind"


def _told(cause: Cause, before: str, after: str) -> str:
    """A cause as a sentence; "probably" where no thread's way to it is better than a guess."""
    if cause.certainty is Certainty.GUESSED:
        before = f"probably {before}"
    return _sentence(f"{before}{cause.summary}{after}")


def _other_threads(analysis: Analysis) -> List[str]:
    """What is not stuck and not idle either, and what is not understood."""
    found = []
    spinning = analysis.statuses.get(Status.SPINNING, 0)
    runnable = analysis.statuses.get(Status.RUNNABLE, 0)
    waiting = analysis.statuses.get(Status.WAITING, 0)
    if spinning:
        spin = verb(spinning, "spin")
        found.append(f"{count(spinning, 'thread')} {spin} on a CPU for what another holds.")
    if runnable:
        found.append(_runnable(analysis, runnable))
    if waiting:
        wait = verb(waiting, "wait")
        longest = "" if waiting == 1 else ", the longest"
        since = seconds(analysis.waiting_for or 0.0)
        yet = (
            "nothing looks"
            if not (analysis.stuck or analysis.not_understood)
            else "that does not look"
        )
        found.append(f"{count(waiting, 'thread')} {wait}{longest} for {since}: {yet} stuck yet.")
    unknown = [thread for group in analysis.residue for thread in group.threads]
    stuck = {thread.tid for thread in analysis.stuck}
    timed = [thread for thread in analysis.not_understood if thread.tid not in stuck]
    retrying = [thread for thread in timed if _retries(analysis, thread)]
    timed = [thread for thread in timed if thread not in retrying]
    if retrying:
        where = _places(retrying)
        does = verb(len(retrying), "retry")
        found.append(f"{count(len(retrying), 'thread')} {does}: {where}, since when is not known.")
    if unknown or timed:
        found.append(_not_understood([*unknown, *timed], _with_timeout(analysis, timed)))
    return found


def _runnable(analysis: Analysis, number: int) -> str:
    """How many threads wait for a CPU, and for how long where that is known."""
    ages = []
    for thread in analysis.threads:
        node = analysis.node_of(thread) if thread.state == "runnable" else None
        if node is not None and node.end is not None and node.end.since is not None:
            ages.append(node.end.since)
    longest = f", one of them for {seconds(max(ages))}" if ages and max(ages) >= 1 else ""
    if number == 1:
        longest = longest.replace(", one of them", "")
    does = f"{verb(number, 'are')} runnable and {verb(number, 'wait')}"
    looping = [t for t in _contending(analysis) if t.state == "runnable"]
    some = ""
    if looping:
        every = "it" if number == 1 else "all of them"
        who = every if len(looping) == number else f"{len(looping)} of them"
        some = f", {who} in a loop that yields or spins"
    return f"{count(number, 'thread')} {does} for a CPU{longest}{some}."


def _contending(analysis: Analysis) -> List[Thread]:
    """Threads on a CPU or waiting for one that spin, or yield and try again."""
    at_work = (Status.SPINNING, Status.RUNNING, Status.RUNNABLE)
    return [
        thread
        for thread in analysis.threads
        if thread.state in ("running", "runnable")
        and analysis.status(thread) in at_work
        and contends_in(analysis.stack(thread)) is not None
    ]


def _with_timeout(analysis: Analysis, threads: Sequence[Thread]) -> int:
    verdicts = [analysis.verdicts.get(thread.address) for thread in threads]
    return sum(each is not None and each.status is Status.TIMED for each in verdicts)


def _retries(analysis: Analysis, thread: Thread) -> bool:
    verdict = analysis.verdicts.get(thread.address)
    row = verdict.row if verdict is not None else None
    return row is not None and row.sleep_class is SleepClass.RETRY


def _not_understood(threads: Sequence[Thread], timed: int) -> str:
    """ "4 threads wait for what is not understood: 2 in "ht cv", 2 in "htstuck"."."""
    with_timeout = f" ({timed} with a timeout, which is no progress)" if timed else ""
    return f"{_waits(threads)} for what is not understood: {_places(threads)}{with_timeout}."


def _places(threads: Sequence[Thread]) -> str:
    """ "2 in "ht cv" and 2 in "htstuck"": the messages, the most frequent first."""
    places: Dict[str, int] = {}
    for thread in threads:
        place = f'"{thread.wmesg}"' if thread.wmesg else f"state {thread.state}"
        places[place] = places.get(place, 0) + 1
    ranked = sorted(places.items(), key=lambda item: -item[1])
    shown = [f"{number} in {place}" for place, number in ranked[:4]]
    if len(ranked) > 4:
        shown.append(f"{sum(number for _, number in ranked[4:])} elsewhere")
    return listed(shown)


def _limits(analysis: Analysis, deadlock: bool) -> List[str]:
    """The calm sentence, as far as it is earned."""
    blind, clear = len(analysis.not_understood), analysis.understood
    partial = analysis.kernel.warnings.partial
    missing = "not everything could be read"
    if not analysis.stuck:
        if blind:
            # Said by _not_understood() already; a timeout is no proof of progress.
            return [f"Nothing else looks stuck{', but ' + missing if partial else ''}."]
        if partial:
            return [f"Of what could be read no thread looks stuck, but {missing}."]
        if analysis.causes:
            return ["No thread waits for it yet."]
        if analysis.statuses.get(Status.WAITING):
            return []
        if len(_contending(analysis)) >= MANY:
            return ["No thread sleeps stuck; whether those in loops get on, one look cannot tell."]
        return ["No thread is stuck."]
    if deadlock:
        return [f"There may be more: {missing}."] if partial else []
    if not clear:
        text = "No wait is understood to its end, so whether there is a deadlock cannot be told"
    elif blind:
        not_ = f"{blind} {verb(blind, 'are')} not"
        text = f"No deadlock among the {count(clear, 'wait')} understood; {not_}"
    elif partial or any(_may_be_deadlock(cause) for cause in analysis.causes):
        text = "No deadlock was found"
    else:
        text = "No deadlock"
    return [f"{text}{'; ' + missing if partial else ''}."]


def _may_be_deadlock(cause: Cause) -> bool:
    """Something is held by nobody who was seen, or by one who waits for it himself."""
    return cause.kind is CauseKind.LEAK and cause.certainty is Certainty.GUESSED


def _sentence(text: str) -> str:
    # A device is called by its own name, "da0", at the head of a sentence too.
    if re.match(r"[a-z]+(?:[ ,:;.]|$)", text):
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def _deadlock(analysis: Analysis, cause: Cause) -> str:
    """Who waits for what whose, all the way round; a long way only as a line of arrows."""
    sure = "" if cause.certainty is Certainty.PROVEN else f" (an edge of it is {cause.certainty})"
    start = "Probably a deadlock" if cause.certainty is Certainty.GUESSED else "Deadlock"
    inside = [id for id in cause.cycle.nodes if id.startswith("thread:")] if cause.cycle else []
    behind = len(cause.tids) - len(inside)
    held = f"{count(len(inside), 'thread')} in it"
    if behind > 0:
        held += f", {behind} more behind it"
    nodes = [analysis.graph.nodes[id] for id in cause.cycle.nodes] if cause.cycle else []
    text = cause.summary if len(nodes) <= 8 else f"a cycle of {len(nodes)} steps: {around(nodes)}"
    return f"{start}{sure}: {text}; {held}."


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
            f"It is {what}: {around(nodes)}. It goes on, slowly; "
            f"{behind} {verb(len(cause.tids), 'are')} in it or behind it"
        ),
    ]
    found += _in_the_queue(analysis, nodes)
    for io in asked(analysis.kernel):
        settled = io.verdict in ("clear", "waits")
        word = "owes nothing" if settled else "owes I/O"
        found.append(f"The disk {io.provider.name} {word}: {io.reason}.")
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


def asked(kernel: Kernel) -> List[ProviderIO]:
    """The devices that requests are under way to, with what their counters say."""
    return [
        io
        for io in provider_io(kernel).values()
        if io.provider.is_device and (io.in_flight or io.found)
    ]


def _devices(analysis: Analysis, causes: List[Cause]) -> str:
    names = [cause.node.label for cause in causes]
    swaps = [c.node for c in causes if "swap" in c.node.facts]
    words = [f"the swap disk {c.node.label}" if c.node in swaps else c.node.label for c in causes]
    words = [
        f"{word} (probably)" if cause.certainty is Certainty.GUESSED else word
        for word, cause in zip(words, causes)
    ]
    tids = [tid for cause in causes for tid in cause.tids]
    stuck = len(analysis.stuck)
    if len(names) == 1:
        text = _sentence(f"{words[0]} owes I/O")
    else:
        text = f"{in_words(len(names)).capitalize()} devices owe I/O: {listed(words)}."
    where = "there" if len(names) > 1 else "at it"
    if stuck == 1:
        text += f" The one stuck thread ends {where}"
    elif len(tids) == stuck:
        text += f" All {stuck} stuck threads end {where}"
    else:
        text += f" {len(tids)} of {stuck} stuck threads {verb(len(tids), 'end')} {where}"
    laundry, starved = _memory_behind(analysis, tids)
    if laundry:
        text += f", among them {listed(laundry)}"
        if starved:
            who = f"{count(starved, 'thread')} {verb(starved, 'wait')}"
            text += f", so no page can be cleaned and {who} for memory"
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
        if cause.node.kind is NodeKind.ZPOOL:
            continue
        if cause.kind in (CauseKind.RUNNING, CauseKind.RUNNABLE, CauseKind.EXTERNAL):
            others = [tid for tid in cause.tids if tid != cause.node.tid]
            found.append(_told(cause, "", f": {_behind(others)} it" if others else ""))
    unknown = [cause for cause in causes if cause.kind is CauseKind.UNKNOWN]
    if unknown:
        tids = [tid for cause in unknown for tid in cause.tids]
        guessed = all(cause.certainty is Certainty.GUESSED for cause in unknown)
        holders = listed([_who(cause.node) for cause in unknown[:3]])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        found.append(
            _sentence(
                f"{'probably ' if guessed else ''}{_behind(tids)} {holders}{more}, "
                "whose own wait is not understood"
            )
        )
    return found


def _who(node: Node) -> str:
    return re.sub(r"\s+", " ", node.label)
