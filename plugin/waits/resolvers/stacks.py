"""Who has to do with an object, told by kernel stacks: a guess, and said to be one."""

from __future__ import annotations

from typing import Dict, Iterable, List, Optional, Sequence

from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.proc import Thread
from plugin.kernel.stack import backtrace
from plugin.waits.build import Builder
from plugin.waits.graph import GUESSED, Node


def threads_with(
    b: Builder,
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
    for thread in b.threads:
        if thread.address in left or not thread.kstack or thread.state == "zombie":
            continue
        if kernel_stack_holds(b.kernel, thread, address) and (
            not functions or runs(b, thread, functions)
        ):
            found.append(thread)
    return found


def runs(b: Builder, thread: Thread, functions: Sequence[str]) -> bool:
    """True where a function on the thread's stack begins with one of ``functions``."""
    frames = b.kernel.once(("frames", thread.address), lambda: backtrace(b.kernel, thread))
    return any(frame.startswith(tuple(functions)) for frame in frames)


def threads_running(
    b: Builder, functions: Sequence[str], kernel_only: bool = False
) -> List[Thread]:
    """Threads with one of ``functions`` on their stack."""
    return [
        thread
        for thread in b.threads
        if thread.kstack
        and (not kernel_only or b.is_kernel_thread(thread))
        and runs(b, thread, functions)
    ]


def sleepers_on(b: Builder, channel: int) -> List[Thread]:
    """Threads that sleep on one channel."""
    index = b.kernel.once("threads by channel", lambda: _by_channel(b))
    return index.get(channel, [])


def _by_channel(b: Builder) -> Dict[int, List[Thread]]:
    found: Dict[int, List[Thread]] = {}
    for thread in b.threads:
        if thread.wchan:
            found.setdefault(thread.wchan, []).append(thread)
    return found


def guess_holders(
    b: Builder,
    node: Node,
    address: int,
    functions: Sequence[str],
    exclude: Iterable[Thread],
    limit: Optional[int] = None,
) -> List[Thread]:
    """Join ``node`` to the threads whose stacks show them at work on ``address``."""
    found = threads_with(b, address, functions, exclude)[:limit]
    for thread in found:
        b.join(
            node,
            b.thread(thread),
            "owned-by",
            GUESSED,
            f"its kernel stack holds {address:#x}"
            + (f" in {functions[0]}*" if len(functions) == 1 else ""),
        )
    return found
