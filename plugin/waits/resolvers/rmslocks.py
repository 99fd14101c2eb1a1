"""struct rmslock: writers and readers that keep each other out, and readers nobody recorded.

A reader sleeps while a writer wants the lock, so a reader that asks again for what it has,
behind a writer, waits for itself.  Who reads is told by stacks, and said to be guessed.
"""

from __future__ import annotations

from typing import List, Optional

from plugin.kernel.proc import Thread
from plugin.kernel.rmslock import Rmslock, RmsWait, wait_at
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.resolvers.stacks import threads_with
from plugin.words import count


def rms_wait(builder: Builder, thread: Thread) -> Optional[RmsWait]:
    """The rmslock that a thread sleeps for, None where it sleeps for something else."""
    sleep = builder.sleeps.get(thread.address)
    if sleep is None or thread.state != "sleeping" or not thread.wchan:
        return None
    if sleep.type not in (None, "sleep"):
        return None
    return wait_at(builder.kernel, thread.wchan, sleep.wmesg)


def wait_for_rms(case: Case, wait: RmsWait) -> Verdict:
    """A thread in rms_rlock() or rms_wlock(): readers wait for writers, writers for all."""
    builder, lock = case.builder, wait.lock
    verdict = Verdict(Status.STUCK, "waits for a sleepable rmlock")
    key = f"{lock.address:#x}" + (":readers" if wait.member == "readers" else "")
    node = builder.node(NodeKind.LOCK, key, f'"{lock.name}"', lock.address)
    case.waits_for(node, Certainty.PROVEN, f"{case.said()}: &{wait.member} of the lock")
    if node.end is not None or builder.graph.successors(node.id):
        return verdict
    node.facts = ["sleepable rmlock", _state(lock, wait.member)]
    holder = builder.thread_node_at(lock.owner)
    if holder is not None:
        said = f"owner {lock.owner:#x} of the rmslock"
        builder.join(node, holder, EdgeKind.OWNED_BY, Certainty.PROVEN, said)
    elif wait.member == "writers":
        _held_by_readers(builder, node, lock, case.thread)
    else:
        _behind_a_writer(builder, node, lock)
    return verdict


def _state(lock: Rmslock, member: str) -> str:
    if lock.owner:
        return "held for writing"
    if member == "readers":
        return f"{count(lock.writers, 'writer')} before it"
    return f"held by {count(lock.readers, 'reader')}"


def _sleepers(builder: Builder, lock: Rmslock, *members: str) -> List[Thread]:
    found = []
    for thread in builder.threads:
        wait = rms_wait(builder, thread)
        if wait is not None and wait.lock.address == lock.address and wait.member in members:
            found.append(thread)
    return found


def _behind_a_writer(builder: Builder, node: Node, lock: Rmslock) -> None:
    """No reader is let in while a writer wants the lock: the writer has to go on first."""
    first = _sleepers(builder, lock, "writers")
    for writer in first:
        said = f"writers {lock.writers}: it asks for the lock before those that sleep here"
        builder.join(node, builder.thread(writer), EdgeKind.OWNED_BY, Certainty.PROVEN, said)
    if first:
        return
    if lock.writers:
        text = f"{node.label} is wanted by {count(lock.writers, 'writer')}, who was not found"
        node.end = End(CauseKind.UNKNOWN, text, f"writers {lock.writers}")
    else:
        text = f"{node.label} is wanted by no writer, yet readers sleep for it"
        node.end = End(CauseKind.LOST_WAKEUP, text, "writers 0")


def _held_by_readers(builder: Builder, node: Node, lock: Rmslock, writer: Thread) -> None:
    """The readers that a writer waits for: at work with the lock on their stack, or asking again.

    Every reader that sleeps for the lock has its address on its stack; only one that has come
    into the file system twice (a page fault, a look-up on the way) can have it as well.
    """
    asleep = _sleepers(builder, lock, *("readers", "writers", "owner"))
    again = [each for each in asleep if each is not writer and _came_twice(builder.stack(each))]
    inside = threads_with(builder, lock.address, exclude=asleep)
    waits = [each for each in asleep if rms_mode(builder, each) == "readers"]
    if not inside and not again and lock.readers >= 1 and len(waits) <= lock.readers:
        # There are no more readers asleep than have the lock, and nobody else is near it.
        again = waits
    for thread in [*again, *inside][: max(lock.readers, 1) + 7]:
        how = "entered the file system twice and asks again" if thread in again else "works on"
        said = f"its stack: it {how} {lock.address:#x}; readers {lock.readers}"
        builder.join(node, builder.thread(thread), EdgeKind.OWNED_BY, Certainty.GUESSED, said)
    if not builder.graph.successors(node.id):
        text = f"{node.label} is held by {count(lock.readers, 'reader')}; by whom is not recorded"
        node.end = End(CauseKind.UNKNOWN, text, f"readers {lock.readers}")


def rms_mode(builder: Builder, thread: Thread) -> str:
    """The member of the lock that a thread sleeps on, "" where it sleeps for none."""
    wait = rms_wait(builder, thread)
    return wait.member if wait is not None else ""


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
