"""A panic beside the chains: the cause that the thread it names is behind, and what it held.

What the panic itself is about plugin.judge.panics tells.
"""

from __future__ import annotations

from typing import List, Optional

from plugin.judge import panics
from plugin.judge.panics import Panic
from plugin.kernel import witness
from plugin.kernel.lock_object import quoted
from plugin.kernel.locks import lock_at
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.waits.analysis import Analysis
from plugin.waits.kinds import EdgeKind

_LOCKS_SHOWN = 4


def panic(analysis: Analysis) -> Optional[Panic]:
    """What is known of the panic, None for a kernel that has not panicked."""
    return with_graph(analysis, panics.panic(analysis.kernel))


def with_graph(analysis: Analysis, found: Optional[Panic]) -> Optional[Panic]:
    """A panic as memory or text tells it, with what the graph adds."""
    if found is None:
        return None
    held = tuple(_held(analysis, found.thread)) if found.thread is not None else ()
    verdict = found.verdict
    if found.about is not None and found.about is not found.thread:
        verdict = f"{verdict} {_behind(analysis, found.about)}".rstrip()
    return found._replace(verdict=verdict, held=held)


def _behind(analysis: Analysis, thread: Thread) -> str:
    """The cause that a thread is behind, in words."""
    for cause in analysis.causes:
        if thread.tid in cause.tids:
            return f"It is behind cause {cause.rank}: {cause.summary}."
        if cause.node.tid == thread.tid:
            return f"It is cause {cause.rank} itself: {cause.summary}."
    for group in analysis.residue:
        if any(each.tid == thread.tid for each in group.threads):
            return f"What it waits for is not understood: {group.why}."
    return ""


def _held(analysis: Analysis, thread: Thread) -> List[str]:
    """Locks the thread holds: by WITNESS, else those somebody waits for."""
    kernel: Kernel = analysis.kernel
    found = []
    for held in witness.held_by(kernel, thread.address):
        lock = lock_at(kernel, held.lock)
        name = quoted(lock.name if lock is not None else f"{held.lock:#x}")
        found.append(f"{lock.lc_name if lock is not None else 'lock'} {name}")
    if not found:
        node = analysis.node_of(thread)
        for edge in analysis.graph.into.get(node.id, ()) if node is not None else ():
            if edge.kind == EdgeKind.OWNED_BY:
                source = analysis.graph.nodes[edge.source]
                found.append(f"{source.facts[0] if source.facts else 'lock'} {source.label}")
    return found[:_LOCKS_SHOWN]
