"""Free pages: who waits for them, who makes them, and why that one does not.

Mirrors vm_wait*() in sys/vm/vm_page.c and the loops of sys/vm/vm_pageout.c,
7.0 to 15.x; the counters are read by plugin.kernel.vm_domain.
"""

from __future__ import annotations

from typing import List, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.judge.daemons import Daemon, daemons
from plugin.kernel.proc import all_found
from plugin.kernel.vm_domain import Domain, PageChannel, domains, memory_shortage
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.common import generic, idle
from plugin.words import count


def is_short(domain: Domain) -> bool:
    """What vm_wait() waits to end: the mark from 12.0 on, the count before."""
    return domain.minset if domain.minset is not None else domain.below_min


def _figures(found: List[Domain]) -> str:
    return "; ".join(
        (f"domain {domain.domain}: " if len(found) > 1 else "")
        + f"{domain.available} free pages, the minimum is {domain.free_min}"
        for domain in found
    )


def shortage(kernel: Kernel) -> str:
    """ "416 free pages, the minimum is 832", "" where pages are not short."""
    short = [domain for domain in domains(kernel) if is_short(domain)]
    return _figures(short)


def _of_role(builder: Builder, *roles: str) -> List[Daemon]:
    return [each for each in daemons(builder.kernel) if each.role in roles]


def _doing(found: List[Daemon]) -> str:
    return "; ".join(f"{d.thread.tid} {d.thread.label} {d.doing}" for d in found)


def memory_node(builder: Builder) -> Node:
    """Free pages, joined to the page daemon and the laundry that have to make them."""
    node = builder.node(NodeKind.MEMORY, "free pages", "free pages")
    if node.facts:
        return node
    kernel = builder.kernel
    node.facts = [shortage(kernel) or _figures(domains(kernel)) or "counters unreadable"]
    makers = _of_role(builder, "pagedaemon", "laundry")
    stuck = [maker for maker in makers if builder.verdict(maker.thread).status == Status.STUCK]
    for maker in stuck:
        what = "writes dirty pages, which can then be freed"
        if maker.role == "pagedaemon":
            what = "frees pages and wakes those who wait for them"
        builder.join(
            node,
            builder.thread(maker.thread),
            EdgeKind.SERVED_BY,
            Certainty.CATALOGUED,
            f"{maker.thread.label} {what}; {maker.doing}",
        )
    if not stuck:
        node.end = _end(builder, makers)
    return node


def _end(builder: Builder, makers: List[Daemon]) -> End:
    short = shortage(builder.kernel)
    doing = _doing(makers) or "no page daemon was found"
    if not short:
        return End(
            CauseKind.RUNNING,
            f"there are enough pages again ({_figures(domains(builder.kernel))})",
            doing,
        )
    asleep = [m for m in makers if builder.verdict(m.thread).status == Status.IDLE]
    if makers and len(asleep) == len(makers):
        return End(
            CauseKind.LOST_WAKEUP,
            f"the page daemon is idle although memory is short: {short}",
            doing,
        )
    lost = _lost(builder, makers)
    if lost:
        return End(CauseKind.UNKNOWN, f"pages are short ({short}), and {lost}", doing)
    return End(CauseKind.MEMORY, f"memory is exhausted: {short}", doing + _largest(builder))


def _lost(builder: Builder, makers: List[Daemon]) -> str:
    """ "the laundry thread was not found" where one there must be could not be read, else ""."""
    if all_found(builder.kernel):
        return ""
    roles = {maker.role for maker in makers}
    if "pagedaemon" not in roles:
        return "the page daemon was not found"
    # From 12.0 on a thread of its own; before, the page daemon launders.
    modern = any(domain.minset is not None for domain in domains(builder.kernel))
    return "the laundry thread was not found" if modern and "laundry" not in roles else ""


def _largest(builder: Builder) -> str:
    """Who holds the memory: the processes with most resident pages."""
    kernel, layouts = builder.kernel, builder.kernel.layouts
    found = []
    try:
        vmspace = layouts.offsetof("proc", "p_vmspace")
        resident = layouts.resolve("vmspace", "vm_pmap.pm_stats.resident_count")
        for thread in {thread.proc: thread for thread in builder.threads}.values():
            at = kernel.pointer(thread.proc + vmspace)
            if at:
                pages = kernel.unsigned(at + resident.offset, resident.size)
                found.append((pages, thread))
    except (MemoryFault, LayoutError):
        # Whose memory it is would only be a comment on the verdict.
        pass
    found.sort(key=lambda item: -item[0])
    size = kernel.page_size
    shown = ", ".join(
        f"{thread.comm} (pid {thread.pid}) {pages * size >> 20} MB"
        for pages, thread in found[:3]
        if pages
    )
    return f"; largest: {shown}" if shown else ""


def _channel(case: Case) -> Optional[PageChannel]:
    return next(
        (each for each in memory_shortage(case.kernel).channels if each.address == case.address),
        None,
    )


def _wait(case: Case, what: str) -> Verdict:
    channel = _channel(case)
    if channel is None or not channel.satisfied:
        case.waits_for(memory_node(case.builder), Certainty.PROVEN, case.said())
        return Verdict(Status.STUCK, what, case.row)
    # The condition holds.  A page daemon at work may be about to say so.
    builder = case.builder
    node = builder.node(
        NodeKind.MEMORY, channel.name, f"free pages ({channel.name})", channel.address
    )
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is None:
        makers = _of_role(builder, "pagedaemon", "laundry")
        now = _figures(domains(case.kernel))
        node.facts = [now]
        busy = [m for m in makers if builder.verdict(m.thread).status != Status.IDLE]
        sleepers = count(len(channel.tids), "thread")
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"pages are free again, yet {sleepers} sleep for them: a wakeup was lost",
            f"{channel.wants}: {now}; {_doing(makers) or 'no page daemon was found'}",
            case.thread.age,
        )
        if busy and all(m.thread.state in ("running", "runnable") for m in busy):
            node.end = End(
                CauseKind.RUNNING,
                f"pages are free again, the page daemon is at work and has to wake {sleepers}",
                node.end.evidence,
            )
    return Verdict(Status.STUCK, what, case.row)


@resolver("memory")
def memory(case: Case) -> Optional[Verdict]:
    """vmwait, pfault: the thread waits for free pages."""
    return _wait(case, "waits for free pages")


@resolver("pageout_memory")
def pageout_memory(case: Case) -> Optional[Verdict]:
    """VMWait: the page daemon itself needs a page to free pages."""
    return _wait(case, "the page daemon itself waits for free pages")


def _self(case: Case) -> Optional[Daemon]:
    return next((d for d in daemons(case.kernel) if d.thread.address == case.thread.address), None)


@resolver("pagedaemon_idle")
def pagedaemon_idle(case: Case) -> Optional[Verdict]:
    """psleep of the page daemon; to 10.4 also its pause after it failed to free enough."""
    found = _self(case)
    if found is None or not found.trouble or found.role != "pagedaemon":
        return idle(case, "page daemon without work")
    place = next((d for d in domains(case.kernel) if d.domain == (found.domain or 0)), None)
    if place is not None and place.minset is None and not place.pageout_wanted:
        return idle(case, "page daemon that nobody has asked for pages")
    # It has just failed to free enough, and tries again when this sleep times out.
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    node.end = node.end or End(CauseKind.EXTERNAL, f"the page daemon {found.doing}", case.said())
    return Verdict(Status.TIMED, found.doing, case.row)


@resolver("pagedaemon_wait")
def pagedaemon_wait(case: Case) -> Optional[Verdict]:
    """pwait: the target was not met; pages have to be laundered before more can be freed."""
    builder = case.builder
    short = shortage(case.kernel)
    if not short:
        return idle(case, "a pause of the page daemon, with enough pages free")
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    washers = [
        each.thread
        for each in _of_role(builder, "laundry")
        if builder.verdict(each.thread).status == Status.STUCK
    ]
    if washers:
        builder.served_by(node, washers, "dirty pages are freed once the laundry wrote them")
        return Verdict(Status.STUCK, "waits for the laundry", case.row)
    lost = _lost(builder, _of_role(builder, "pagedaemon", "laundry"))
    if lost:
        said = f"the page daemon has freed too little ({short}), and {lost}"
        node.end = End(CauseKind.UNKNOWN, said, case.said(), case.thread.age)
        return Verdict(Status.STUCK, "waits for the laundry", case.row)
    node.end = End(
        CauseKind.MEMORY,
        f"memory is exhausted: {short}; the page daemon finds nothing to free",
        _doing(_of_role(builder, "laundry")) + _largest(builder),
        case.thread.age,
    )
    return Verdict(Status.STUCK, "finds nothing to free", case.row)


@resolver("laundry_idle")
def laundry_idle(case: Case) -> Optional[Verdict]:
    """launds: without a request; with one its wakeup is lost."""
    return idle(case, "laundry without work")


@resolver("pacing_memory")
def pacing_memory(case: Case) -> Optional[Verdict]:
    """A sleep that tries again each tick because some allocation failed for want of pages."""
    short = shortage(case.kernel)
    found = generic(case, "message")
    if short:
        node = case.node
        node.end = End(
            CauseKind.PACING,
            f'{node.label} tries again and again ("{case.thread.wmesg}")',
            case.said(),
            case.thread.age,
        )
        case.builder.join(
            node, memory_node(case.builder), EdgeKind.NEEDS, Certainty.CATALOGUED, short
        )
    return found
