"""Who has to do with an object, told by kernel stacks: a guess, and said to be one."""

from __future__ import annotations

from typing import Iterable, List, Optional, Sequence

from plugin.caching import MEMORY, cached
from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.proc import Thread, thread_at
from plugin.kernel.sleepqueue import sleepers
from plugin.kernel.stack import backtrace
from plugin.session import Kernel
from plugin.waits.builder import Builder
from plugin.waits.graph import Node
from plugin.waits.kinds import Certainty, EdgeKind


def threads_with(
    builder: Builder,
    address: int,
    functions: Sequence[str] = (),
    exclude: Iterable[Thread] = (),
) -> List[Thread]:
    """Threads whose live kernel stack points at ``address``.

    With ``functions`` only those that also run a function whose name begins with
    one of them.
    """
    left = {thread.address for thread in exclude}
    found = []
    for thread in builder.threads:
        if thread.address in left or not thread.kstack or thread.state == "zombie":
            continue
        if kernel_stack_holds(builder.kernel, thread, address) and (
            not functions or runs(builder, thread, functions)
        ):
            found.append(thread)
    return found


def runs(builder: Builder, thread: Thread, functions: Sequence[str]) -> bool:
    """True where a function on the thread's stack begins with one of ``functions``."""
    return any(
        frame.startswith(tuple(functions)) for frame in _frames(builder.kernel, thread.address)
    )


@cached(MEMORY)
def _frames(kernel: Kernel, address: int) -> List[str]:
    thread = thread_at(kernel, address)
    return backtrace(kernel, thread) if thread is not None else []


def sleepers_on(builder: Builder, channel: int) -> List[Thread]:
    """Threads that sleep on one channel."""
    return sleepers(builder.kernel).get(channel, [])


def guess_holders(
    builder: Builder,
    node: Node,
    address: int,
    functions: Sequence[str],
    exclude: Iterable[Thread],
    limit: Optional[int] = None,
) -> List[Thread]:
    """Join ``node`` to the threads whose stacks show them at work on ``address``."""
    found = threads_with(builder, address, functions, exclude)[:limit]
    for thread in found:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.GUESSED,
            f"its kernel stack holds {address:#x}"
            + (f" in {functions[0]}*" if len(functions) == 1 else ""),
        )
    return found
