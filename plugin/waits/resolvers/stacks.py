"""Who has to do with an object, told by kernel stacks: a guess, and said to be one."""

from __future__ import annotations

from typing import Dict, Iterable, List, Optional, Sequence

from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.proc import Thread
from plugin.kernel.stack import backtrace
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
    frames = builder.kernel.once(
        ("frames", thread.address), lambda: backtrace(builder.kernel, thread)
    )
    return any(frame.startswith(tuple(functions)) for frame in frames)


def threads_running(
    builder: Builder, functions: Sequence[str], kernel_only: bool = False
) -> List[Thread]:
    """Threads with one of ``functions`` on their stack."""
    return [
        thread
        for thread in builder.threads
        if thread.kstack
        and (not kernel_only or builder.is_kernel_thread(thread))
        and runs(builder, thread, functions)
    ]


def sleepers_on(builder: Builder, channel: int) -> List[Thread]:
    """Threads that sleep on one channel."""
    index = builder.kernel.once("threads by channel", lambda: _by_channel(builder))
    return index.get(channel, [])


def _by_channel(builder: Builder) -> Dict[int, List[Thread]]:
    found: Dict[int, List[Thread]] = {}
    for thread in builder.threads:
        if thread.wchan:
            found.setdefault(thread.wchan, []).append(thread)
    return found


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
