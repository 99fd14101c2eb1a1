"""Busy pages and paging in progress: from the page to its I/O, or to its owner.

Mirrors sys/vm/vm_page.c, vm_object.c and the pagers, 7.0 to 15.x.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.judge import geom_io
from plugin.kernel import pbuf
from plugin.kernel.lock_object import lock_object
from plugin.kernel.proc import Thread, thread_by_tid
from plugin.kernel.vm_object import label, try_object_at
from plugin.kernel.vm_page import EXCLUSIVE, SHARED, Page, encoding, try_page_at
from plugin.kernel.vm_phys import is_vm_page
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.io import buf_node
from plugin.waits.resolvers.stacks import guess_holders, runs, sleepers_on
from plugin.words import verb


def page_io(kernel: Kernel, page: int) -> List[int]:
    """The bufs and pbufs under way that carry a page."""
    return [buf for buf in pbuf.holders(kernel).get(page, ()) if geom_io.buf_io(kernel, buf)]


def _page_label(kernel: Kernel, page: Page) -> str:
    owner = try_object_at(kernel, page.object)
    if page.is_bogus:
        return f"page {page.address:#x} (bogus_page)"
    of = f", index {page.pindex:#x} of {label(kernel, owner)}" if owner is not None else ""
    return f"page {page.address:#x}{of}"


def page_node(builder: Builder, address: int) -> Node:
    """The node of a busy page, joined to its I/O or to the thread that busied it."""
    node = builder.object(NodeKind.PAGE, address, f"page {address:#x}")
    if node.end is not None or builder.graph.out.get(node.id):
        return node
    kernel = builder.kernel
    page = try_page_at(kernel, address)
    if page is None:
        node.end = End(CauseKind.UNKNOWN, f"page {address:#x} cannot be read")
        return node
    node.label = _page_label(kernel, page)
    word = f"{encoding(kernel).member} {page.busy.raw:#x}"
    node.facts = [f"{page.busy.state}, {word}"]
    if page.object:
        owner = try_object_at(kernel, page.object)
        name = label(kernel, owner) if owner is not None else "object"
        target = builder.object(NodeKind.OBJECT, page.object, f"object {page.object:#x} ({name})")
        builder.join(
            node, target, EdgeKind.CONTAINED_IN, Certainty.PROVEN, f"object {page.object:#x}", False
        )
    waiting = sleepers_on(builder, address)
    if page.busy.owner is not None:
        thread = thread_by_tid(kernel, page.busy.owner)
        if thread is not None:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.OWNED_BY,
                Certainty.PROVEN,
                f"{word} records its thread",
            )
            return node
    for buf in page_io(kernel, address):
        builder.join(
            node,
            buf_node(builder, buf),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"b_pages of buf {buf:#x} has it",
        )
    if builder.graph.successors(node.id):
        return node
    if page.is_bogus:
        node.end = End(
            CauseKind.UNKNOWN, f"{node.label}: waiting for bogus_page is always a mistake", word
        )
    elif page.busy.state not in (EXCLUSIVE, SHARED):
        age = max((t.age for t in waiting if t.age is not None), default=None)
        asleep = f"{len(waiting)} {verb(len(waiting), 'sleep')}"
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} is {page.busy.state}, yet {asleep} for it",
            word,
            age,
        )
    elif not guess_holders(builder, node, address, (), waiting, page.busy.sharers or 1):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} is busied {page.busy.state}; its holder is not recorded and no I/O "
            "has it",
            word,
        )
    return node


@resolver("page")
def page(case: Case) -> Optional[Verdict]:
    """A thread waits for a page to be unbusied, or for an object's pages (13.0 on)."""
    builder, kernel = case.builder, case.kernel
    if is_vm_page(kernel, case.address):
        case.waits_for(page_node(builder, case.address), Certainty.PROVEN, case.said())
        return Verdict(Status.STUCK, "waits for a busy page", case.row)
    if kernel.layouts.has("vm_object", "busy"):
        address = case.channel.container("vm_object", "busy")
        node = object_node(builder, address, sleepers_on(builder, case.address))
        case.waits_for(node, Certainty.PROVEN, case.said())
        return Verdict(Status.STUCK, "waits for a busy object", case.row)
    return None


def _container(case: Case) -> Optional[int]:
    """The object whose member (or which itself) the thread sleeps on."""
    kernel = case.kernel
    for member in ("paging_in_progress", "handle", "busy"):
        if not kernel.layouts.has("vm_object", member):
            continue
        address = case.channel.container("vm_object", member)
        if _is_object(kernel, address):
            return address
    return case.address if _is_object(kernel, case.address) else None


def _is_object(kernel: Kernel, address: int) -> bool:
    """An object's lock is named "vm object" (11.0 on; "standard object" and others before)."""
    lock = kernel.layouts.first_of("vm_object", "lock", "mtx")
    if lock is None:
        return False
    found = lock_object(kernel, address + kernel.layouts.offsetof("vm_object", lock))
    return found is not None and "object" in (found.name or "")


@cached(MEMORY)
def _object_io(kernel: Kernel) -> Dict[int, List[Tuple[int, int]]]:
    """{vm_object: [(buf, page)]} of the pages that are under way."""
    found: Dict[int, List[Tuple[int, int]]] = {}
    for address in pbuf.holders(kernel):
        page = try_page_at(kernel, address)
        bufs = page_io(kernel, address)
        if page is not None and page.object and bufs:
            found.setdefault(page.object, []).append((bufs[0], address))
    return found


def object_node(builder: Builder, address: int, waiting: List[Thread]) -> Node:
    """The node of an object with paging in progress, joined to that paging's I/O."""
    kernel = builder.kernel
    node = builder.object(NodeKind.OBJECT, address, f"object {address:#x}")
    if node.end is not None or builder.graph.out.get(node.id):
        return node
    found = try_object_at(kernel, address)
    if found is None:
        node.end = End(CauseKind.UNKNOWN, f"object {address:#x} cannot be read")
        return node
    node.label = f"object {address:#x} ({label(kernel, found)})"
    node.facts = [f"paging_in_progress {found.paging_in_progress}"]
    seen = set()
    for buf, page in _object_io(kernel).get(address, ()):
        if buf not in seen:
            seen.add(buf)
            builder.join(
                node,
                buf_node(builder, buf),
                EdgeKind.NEEDS,
                Certainty.PROVEN,
                f"page {page:#x} of it is in b_pages",
            )
    if builder.graph.successors(node.id):
        return node
    if not found.paging_in_progress:
        age = max((t.age for t in waiting if t.age is not None), default=None)
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label}: no paging is in progress, yet threads wait for it to end",
            "paging_in_progress 0",
            age,
        )
    elif not guess_holders(builder, node, address, (), waiting, 4):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label}: paging in progress, by whom is not recorded",
            node.facts[0],
        )
    return node


@resolver("object_pip")
def object_pip(case: Case) -> Optional[Verdict]:
    """objtrm and its kin: the object's paging has to end first."""
    address = _container(case)
    if address is None:
        return None
    node = object_node(case.builder, address, sleepers_on(case.builder, case.address))
    case.waits_for(node, Certainty.PROVEN, case.said())
    return Verdict(Status.STUCK, "waits for an object's paging to end", case.row)


@resolver("swap_read")
def swap_read(case: Case) -> Optional[Verdict]:
    """swread: a page is being read from swap; the channel is the page, or the object."""
    if is_vm_page(case.kernel, case.address):
        case.waits_for(page_node(case.builder, case.address), Certainty.PROVEN, case.said())
        return Verdict(Status.STUCK, "waits for a page from swap", case.row)
    return object_pip(case)


@resolver("vm_map")
def vm_map(case: Case) -> Optional[Verdict]:
    """vmmaps, mbusy: another thread of the same address space changes or wires it."""
    builder = case.builder
    member = "busy" if case.thread.wmesg == "mbusy" else "root"
    try:
        address = case.channel.container("vm_map", member)
    except (MemoryFault, LookupError):
        return None
    node = case.waits_for(
        builder.object(NodeKind.OBJECT, address, f"vm_map {address:#x} of pid {case.thread.pid}"),
        Certainty.PROVEN,
        case.said(),
    )
    if node.end is not None or builder.graph.successors(node.id):
        return Verdict(Status.STUCK, "waits for its address space", case.row)
    waiting = sleepers_on(builder, case.address)
    same = [t for t in builder.threads if t.proc == case.thread.proc and t not in waiting]
    for thread in same:
        if runs(builder, thread, ("vm_map_", "vm_fault_wire", "vslock", "kern_mlock", "vm_fault")):
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.OWNED_BY,
                Certainty.GUESSED,
                "a thread of the same process inside vm_map_* or vm_fault*",
            )
    if not builder.graph.successors(node.id):
        node.end = End(CauseKind.UNKNOWN, f"{node.label} is in transition; by whom is not recorded")
    return Verdict(Status.STUCK, "waits for its address space", case.row)
