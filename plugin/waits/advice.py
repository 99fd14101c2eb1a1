"""What to look at next, where a verdict rests on the catalogue or ends in the unknown.

The catalogue's rows say it for each kind of sleep: ``look_at``, who ends the sleep
(``woken_by``), whether it tries again by itself (``timed``) or is a sign of trouble (``alarm``).
"""

from __future__ import annotations

from typing import Iterable, List

from plugin.kernel.proc import Thread
from plugin.waits.analysis import Analysis, Cause, Group
from plugin.waits.kinds import CauseKind, Certainty, NodeKind

#: kinds of sleep that one cause gives advice on
_SHOWN = 2


def of_cause(analysis: Analysis, cause: Cause) -> List[str]:
    """Advice on a cause; [] where memory itself proves it to its end."""
    if cause.certainty is Certainty.PROVEN and cause.kind is not CauseKind.UNKNOWN:
        return []
    return _of_threads(analysis, _deciding(analysis, cause))


def of_group(analysis: Analysis, group: Group) -> List[str]:
    """Advice on threads whose wait is not understood."""
    return _of_threads(analysis, group.threads)


def _deciding(analysis: Analysis, cause: Cause) -> List[Thread]:
    """The threads whose own sleep the cause is about: the last before the end of each chain."""
    wanted = set()
    if cause.node.kind is NodeKind.THREAD:
        wanted.add(cause.node.tid)
    for chain in analysis.chains:
        if chain.end.id == cause.node.id:
            last = [node for node in chain.path if node.kind is NodeKind.THREAD]
            wanted.add(last[-1].tid if last else None)
    return [thread for thread in analysis.threads if thread.tid in wanted]


def _of_threads(analysis: Analysis, threads: Iterable[Thread]) -> List[str]:
    found: List[str] = []
    for thread in threads:
        verdict = analysis.verdicts.get(thread.address)
        row = verdict.row if verdict is not None else None
        if row is None:
            continue
        words = []
        if row.alarm:
            words.append(f'a sleep in "{thread.wmesg}" is itself a sign of trouble')
        if row.timed:
            words.append(f'"{thread.wmesg}" has a timeout and is tried again')
        if row.look_at:
            words.append(f"look at {row.look_at}")
        said = "; ".join(words)
        if said and said not in found:
            found.append(said)
    return found[:_SHOWN]
