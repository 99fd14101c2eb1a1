"""Threads that wait for an epoch without sleeping: from them to the sleepers inside.

Mirrors epoch_wait_preempt() and epoch_block_handler_preempt() in sys/kern/subr_epoch.c, 12.0
to 15.x.
"""

from __future__ import annotations

from typing import Optional

from plugin.kernel.epoch import epoch_at, is_epoch
from plugin.kernel.proc import Thread, thread_at
from plugin.kernel.stack import stack_words
from plugin.waits.builder import Builder, Verdict
from plugin.waits.graph import Node
from plugin.waits.kinds import Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import at_work
from plugin.waits.resolvers.stacks import runs

#: more threads inside than this are not joined
_MAX_THREADS = 64


@at_work
def epoch_wait(builder: Builder, thread: Thread, node: Node, verdict: Verdict) -> Optional[Verdict]:
    """epoch_wait_preempt() does not sleep: it spins, yields, and lends its priority.

    Whom it waits for is inside a section of the epoch, which its stack points at.
    """
    if not runs(builder, thread, ("epoch_wait", "ck_epoch_synchronize_wait")):
        return None
    kernel = builder.kernel
    words = stack_words(kernel, thread)
    at = next((w for w in words if kernel.is_kernel_address(w) and is_epoch(kernel, w)), None)
    epoch = epoch_at(kernel, at) if at is not None else None
    if epoch is None:
        return None
    inside = [thread_at(kernel, each) for each in epoch.inside[:_MAX_THREADS]]
    asleep = [each for each in inside if each is not None and each.waits]
    if not asleep:
        # They run, or wait for a CPU: it is not for long.
        return None
    label = f"epoch {epoch.name or hex(epoch.address)}"
    target = builder.object(NodeKind.EPOCH, epoch.address, label)
    said = f"in epoch_wait() with {epoch.address:#x} on its stack"
    builder.join(node, target, EdgeKind.WAITS_FOR, Certainty.CATALOGUED, said)
    for each in asleep:
        inner = "er_tdlist: inside a section"
        builder.join(target, builder.thread(each), EdgeKind.OWNED_BY, Certainty.PROVEN, inner)
    node.end = None
    return Verdict(Status.STUCK, f"waits for the threads inside {label}")
