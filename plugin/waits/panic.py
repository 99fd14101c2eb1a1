"""A panicked kernel: what its message says, who panicked, and how that fits the chains.

The messages are those of sys/kern: deadlkres() in kern_clock.c, the spin locks
of kern_mutex.c, propagate_priority() in subr_turnstile.c; panics about a page
are plugin.judge.pages's.
"""

from __future__ import annotations

import re
from typing import List, NamedTuple, Optional, Tuple

from plugin.errors import WchanError
from plugin.judge.pages import page_panic, panicking_thread
from plugin.kernel import witness
from plugin.kernel.locks import lock_at
from plugin.kernel.msgbuf import message_buffer
from plugin.kernel.proc import Thread, thread_at, thread_by_tid
from plugin.kernel.stack import backtrace
from plugin.session import Kernel
from plugin.waits.analysis import Analysis
from plugin.waits.kinds import EdgeKind
from plugin.words import seconds

_DEADLKRES = re.compile(r"possible deadlock detected for (0x)?([0-9a-f]+)")
_SPIN = re.compile(
    r"spin lock (?:0x)?([0-9a-f]+) (?:\((.*?)\) )?held by (?:0x)?([0-9a-f]+) (?:\(tid|for >)"
)
_OWNS = re.compile(r"[Ss]leeping thread \((?:tid )?(\d+)")
_PANIC_FRAMES = ("panic", "vpanic", "kassert_panic", "kdb_enter", "doadump", "dumpsys")
_LOCKS_SHOWN = 4
#: of the message buffer, what may have been printed for a panic
_PRINTED = 16384


class Panic(NamedTuple):
    """``kind``: "page", "deadlkres", "spin lock", "sleeping owner" or "other".

    ``thread`` is the one that panicked, ``about`` the one the message names;
    ``held`` what the former held, where that is known.
    """

    message: str
    kind: str
    verdict: str
    thread: Optional[Thread]
    about: Optional[Thread]
    frames: Tuple[str, ...]
    held: Tuple[str, ...]


def panic(analysis: Analysis) -> Optional[Panic]:
    """What is known of the panic, None for a kernel that has not panicked."""
    kernel = analysis.kernel
    message = kernel.panicstr
    if not message:
        return None
    page = page_panic(kernel)
    thread = page.thread if page is not None else panicking_thread(kernel)
    frames = tuple(backtrace(kernel, thread)) if thread is not None else ()
    held = tuple(_held(analysis, thread)) if thread is not None else ()
    if page is not None:
        return Panic(message, "page", page.verdict, thread, None, frames, held)
    for kind, explain in (
        ("deadlkres", _deadlkres),
        ("spin lock", _spin_lock),
        ("sleeping owner", _sleeping_owner),
    ):
        found = explain(analysis, message)
        if found is not None:
            about, verdict = found
            return Panic(message, kind, verdict, thread, about, frames, held)
    return Panic(message, "other", _other(thread, frames), thread, None, frames, held)


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


def _deadlkres(analysis: Analysis, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    match = _DEADLKRES.search(message)
    if match is None:
        return None
    thread = thread_at(analysis.kernel, int(match[2], 16))
    if thread is None:
        return None, f"DEADLKRES panicked over a thread at 0x{match[2]} that is none now."
    waited = f" for {seconds(thread.age)}" if thread.age is not None else ""
    text = (
        f"DEADLKRES panicked because thread {thread.tid} {thread.label} had waited{waited} in "
        f'"{thread.wmesg}".'
    )
    return thread, f"{text} {_behind(analysis, thread)}".rstrip()


def _printed(
    kernel: Kernel, message: str, start: str, wanted: re.Pattern[str]
) -> Optional[re.Match[str]]:
    """The match in a panic's message, or in what was printed just before it."""
    found = wanted.search(message)
    if found is not None or not message.lower().startswith(start):
        return found
    try:
        text = message_buffer(kernel)[-_PRINTED:]
    except WchanError:
        return None
    last = None
    for last in wanted.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return last


def _spin_lock(analysis: Analysis, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    match = _printed(analysis.kernel, message, "spin lock", _SPIN)
    if match is None:
        return None
    thread = thread_at(analysis.kernel, int(match[3], 16))
    lock = lock_at(analysis.kernel, int(match[1], 16))
    name = lock.name if lock is not None else match[2] or match[1]
    if thread is None:
        return None, f'Spin lock "{name}" was held too long by a thread that is gone.'
    stack = " <- ".join(backtrace(analysis.kernel, thread)[:6])
    on = f" on CPU {thread.cpu}" if thread.cpu is not None else ""
    return thread, (
        f'Spin lock "{name}" was held too long by {thread.tid} {thread.label}, {thread.state}{on}'
        + (f": {stack}." if stack else ".")
    )


def _sleeping_owner(analysis: Analysis, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    match = _printed(analysis.kernel, message, "sleeping thread", _OWNS)
    thread = thread_by_tid(analysis.kernel, int(match[1])) if match is not None else None
    if thread is None:
        return None
    return thread, (
        f'Thread {thread.tid} {thread.label} sleeps in "{thread.wmesg}" and holds a lock that '
        f"may not be held in sleep. {_behind(analysis, thread)}".rstrip()
    )


def _other(thread: Optional[Thread], frames: Tuple[str, ...]) -> str:
    if thread is None:
        return "Which thread panicked is not recorded."
    own = [
        f for f in frames if f not in ("panic", "vpanic", "kassert_panic", "kdb_enter", "doadump")
    ]
    where = f", in {own[0]}" + (f" called by {own[1]}" if len(own) > 1 else "") if own else ""
    return f"Thread {thread.tid} {thread.label} (pid {thread.pid}) panicked{where}."


def _held(analysis: Analysis, thread: Thread) -> List[str]:
    """Locks the thread holds: by WITNESS, else those somebody waits for."""
    kernel: Kernel = analysis.kernel
    found = []
    for held in witness.held_by(kernel, thread.address):
        lock = lock_at(kernel, held.lock)
        name = lock.name if lock is not None else f"{held.lock:#x}"
        found.append(f'{lock.klass if lock is not None else "lock"} "{name}"')
    if not found:
        node = analysis.node_of(thread)
        for edge in analysis.graph.into.get(node.id, ()) if node is not None else ():
            if edge.kind == EdgeKind.OWNED_BY:
                source = analysis.graph.nodes[edge.source]
                found.append(f"{source.facts[0] if source.facts else 'lock'} {source.label}")
    return found[:_LOCKS_SHOWN]
