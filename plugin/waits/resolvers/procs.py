"""Waits for another process: the swapper, children, peers of pipes and sockets, umtx."""

from __future__ import annotations

from typing import Optional

from plugin.waits.build import STUCK, Case, Standing
from plugin.waits.graph import CATALOGUED, PROVEN
from plugin.waits.resolvers.common import idle


def swapper(case: Case) -> Optional[Standing]:
    """The swapper at rest, or a thread that waits for its process to be brought in."""
    if case.thread.pid == 0 or case.thread.comm == "swapper":
        return idle(case, "the swapper without a process to bring in")
    b = case.b
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    for thread in b.threads:
        if thread.pid == 0 and thread.name in ("swapper", "kernel", thread.comm):
            b.join(
                node, b.thread(thread), "served-by", CATALOGUED, "catalogue: the swapper (proc0)"
            )
            break
    return Standing(STUCK, "waits to be swapped in", case.row)
