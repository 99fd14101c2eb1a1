"""What is being ended or cleaned up by another thread: dead VM objects, soft updates' space."""

from __future__ import annotations

from typing import List, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread
from plugin.kernel.stack import stack_words
from plugin.kernel.vm_object import label, try_object_at
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.stacks import runs

_DEAD = ("vadead", "vodead", "objde2")
#: who ends an object: vm_object_terminate() and those who call it
_ENDING = ("vm_object_terminate", "vm_object_deallocate", "vnode_destroy_vobject", "vgonel")
_CLEANING = ("ffsrca", "ffsvina")
_MAX_HOLDERS = 64


@resolver("object_dead")
def object_dead(case: Case) -> Optional[Verdict]:
    """An object with OBJ_DEAD: vm_object_terminate() in another thread has to finish.

    That thread is told by its own sleep on the object, or by its stack.
    """
    builder, kernel = case.builder, case.kernel
    address = _object_of(case)
    found = try_object_at(kernel, address)
    name = f" ({label(kernel, found)})" if found is not None else ""
    node = case.waits_for(
        builder.object(NodeKind.OBJECT, address, f"object {address:#x}{name}, being ended"),
        Certainty.PROVEN,
        case.said(),
    )
    verdict = Verdict(Status.STUCK, "waits for an object to be ended", case.row)
    if node.end is not None or builder.graph.successors(node.id):
        return verdict
    size = kernel.layouts.sizeof("vm_object")
    asleep = [
        thread
        for thread in builder.threads
        if thread.wchan and address <= thread.wchan < address + size and thread.wmesg not in _DEAD
    ]
    for thread in asleep[:_MAX_HOLDERS]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.PROVEN,
            f'it sleeps in "{thread.wmesg}" on the same object',
        )
    if not asleep:
        _join_ending(builder, case, node.id, address, found.handle if found is not None else 0)
    if not builder.graph.successors(node.id):
        node.end = End(
            CauseKind.UNKNOWN, f"{node.label}: no thread that ends it was found", case.said()
        )
    return verdict


def _object_of(case: Case) -> int:
    """The object itself is the channel; a version may sleep on its handle."""
    layouts = case.kernel.layouts
    if layouts.has("vm_object", "handle") and try_object_at(case.kernel, case.address) is None:
        return case.address - layouts.offsetof("vm_object", "handle")
    return case.address


def _join_ending(builder: Builder, case: Case, id: str, address: int, handle: int) -> None:
    node = builder.graph.nodes[id]
    for thread in builder.threads:
        if not thread.kstack or thread.wmesg in _DEAD or thread.address == case.thread.address:
            continue
        words = stack_words(builder.kernel, thread)
        if (address in words or (handle and handle in words)) and runs(builder, thread, _ENDING):
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.OWNED_BY,
                Certainty.GUESSED,
                f"its kernel stack holds {address if address in words else handle:#x} "
                "where an object is ended",
            )


@resolver("softdep_cleanup")
def softdep_cleanup(case: Case) -> Optional[Verdict]:
    """ffsrca, ffsvina: another thread already works off dependencies for want of space."""
    builder = case.builder
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, "waits, again and again, for soft updates' cleanup", case.row)
    if node.end is not None or builder.graph.successors(node.id):
        return verdict
    cleaning = [
        thread
        for thread in builder.threads
        if thread.kstack
        and thread.wmesg not in _CLEANING
        and thread.address != case.thread.address
        and runs(builder, thread, ("softdep_request_cleanup",))
    ]
    there = _on_mount(case, cleaning)
    for thread in (there or cleaning)[:_MAX_HOLDERS]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.OWNED_BY,
            Certainty.GUESSED,
            "it runs softdep_request_cleanup()" + (" of the same file system" if there else ""),
        )
    if not cleaning:
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label}: a cleanup for want of space is said to be under way (FLUSH_RC_ACTIVE), "
            "but no thread does it",
            case.said(),
        )
    return verdict


def _on_mount(case: Case, found: List[Thread]) -> List[Thread]:
    """Those of ``found`` with the ufsmount of the sleeper's channel on their stacks."""
    layouts = case.kernel.layouts
    try:
        softdeps = case.address - layouts.offsetof("mount_softdeps", "sd_flags")
        ump = case.kernel.pointer(softdeps + layouts.offsetof("mount_softdeps", "sd_ump"))
    except (MemoryFault, LayoutError):
        return []
    wanted = {softdeps, ump}
    return [thread for thread in found if wanted & stack_words(case.kernel, thread)]
