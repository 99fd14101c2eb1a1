"""struct rmslock: writers and readers that keep each other out, and readers nobody recorded.

A reader sleeps while a writer wants the lock, so a reader that asks again for what it has,
behind a writer, waits for itself.  Who reads is told by stacks, and said to be guessed.
"""

from __future__ import annotations

from typing import List

from plugin.judge.locks import LockWait, guarded
from plugin.kernel import locks
from plugin.kernel.lock_object import quoted
from plugin.kernel.proc import Thread
from plugin.waits.builder import Builder, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.resolvers.locks import holders_of
from plugin.waits.resolvers.stacks import threads_with
from plugin.words import count


def wait_for_rms(builder: Builder, thread: Thread, node: Node, wait: LockWait) -> Verdict:
    """A thread in rms_rlock() or rms_wlock(): readers wait for writers, writers for all."""
    lock, member = wait.lock, _member(builder, thread, wait.lock)
    verdict = Verdict(Status.STUCK, "waits for a sleepable rmlock")
    key = f"{lock.address:#x}" + (":readers" if member == "readers" else "")
    target = builder.node(NodeKind.LOCK, key, quoted(lock.name), lock.address)
    said = f'td_wchan {thread.wchan or 0:#x}, &{member} of the lock, td_wmesg "{thread.wmesg}"'
    builder.join(node, target, EdgeKind.WAITS_FOR, Certainty.PROVEN, said)
    if target.end is not None or builder.graph.successors(target.id):
        return verdict
    target.facts = ["sleepable rmlock", locks.describe(lock)]
    if lock.state != "exclusive" and member != "writers":
        _behind_a_writer(builder, target, lock)
        return verdict
    for holder in holders_of(builder.kernel, lock):
        certainty = Certainty(holder.certainty)
        owner = builder.thread(holder.thread)
        builder.join(target, owner, EdgeKind.OWNED_BY, certainty, holder.evidence)
    if not builder.graph.successors(target.id):
        _held_by_readers(builder, target, lock)
    return verdict


def _member(builder: Builder, thread: Thread, lock: locks.Lock) -> str:
    """The member of the lock that a thread sleeps on: readers, writers or owner."""
    offset = (thread.wchan or 0) - lock.address
    layouts = builder.kernel.layouts
    names = ("readers", "writers", "owner")
    return next((each for each in names if layouts.offsetof("rmslock", each) == offset), "owner")


def _sleepers(builder: Builder, lock: locks.Lock, member: str) -> List[Thread]:
    found = []
    for thread in builder.threads:
        wait = builder.lock_waits.get(thread.address)
        if (
            wait is not None
            and wait.lock.address == lock.address
            and _member(builder, thread, lock) == member
        ):
            found.append(thread)
    return found


def _all_asleep(builder: Builder, lock: locks.Lock) -> List[Thread]:
    members = ("readers", "writers", "owner")
    return [each for member in members for each in _sleepers(builder, lock, member)]


def _behind_a_writer(builder: Builder, node: Node, lock: locks.Lock) -> None:
    """No reader is let in while a writer wants the lock: the writer has to go on first."""
    first = _sleepers(builder, lock, "writers")
    for writer in first:
        said = "it asks for the lock for writing: readers that come later sleep"
        builder.join(node, builder.thread(writer), EdgeKind.OWNED_BY, Certainty.PROVEN, said)
    if not first:
        text = f"{node.label}: no writer was found that has or wants it, yet threads sleep for it"
        node.end = End(CauseKind.UNKNOWN, text, locks.describe(lock))


def _held_by_readers(builder: Builder, node: Node, lock: locks.Lock) -> None:
    """Who of those asleep for it can have it as well, where no other stack names the lock.

    Only a thread that came into the file system twice (a page fault, a look-up on the way)
    can; or all that are asleep, where there are no more of them than readers.
    """
    asleep = _sleepers(builder, lock, "readers")
    again = [each for each in asleep if _came_twice(builder.stack(each))]
    how = "entered the file system twice and asks again for"
    inside = [
        thread
        for at in (lock.address, *guarded(builder.kernel, lock))
        for thread in threads_with(builder, at, exclude=_all_asleep(builder, lock))
    ]
    for thread in inside[:8]:
        said = f"its stack holds {lock.address:#x} or what it guards; {lock.sharers} read it"
        builder.join(node, builder.thread(thread), EdgeKind.OWNED_BY, Certainty.GUESSED, said)
    if not again and not inside and lock.sharers and len(asleep) <= lock.sharers:
        again, how = asleep, "asks again for, there being no other reader,"
    for thread in again[: max(lock.sharers, 1) + 7]:
        said = f"its stack: it {how} {lock.address:#x}, which {lock.sharers} read"
        builder.join(node, builder.thread(thread), EdgeKind.OWNED_BY, Certainty.GUESSED, said)
    if not again and not inside:
        text = f"{node.label} is held by {count(lock.sharers, 'reader')}; by whom is not recorded"
        node.end = End(CauseKind.UNKNOWN, text, locks.describe(lock))


def _came_twice(frames: object) -> bool:
    """True where the module that asks for the lock is on the stack a second time further out.

    ``zfs_lookup <- VOP_LOOKUP <- namei <- zfs_setextattr``: zfs, others, zfs.
    """
    names = [str(frame) for frame in frames] if isinstance(frames, (list, tuple)) else []
    at = max((n for n, frame in enumerate(names) if frame.startswith("rms_")), default=-1)
    beyond = names[at + 1 :] if at >= 0 else names
    while beyond and "_enter" in beyond[0]:
        beyond = beyond[1:]
    if not beyond:
        return False
    own = beyond[0].split("_", 1)[0] + "_"
    left = False
    for frame in beyond[1:]:
        if not frame.startswith(own):
            left = True
        elif left:
            return True
    return False
