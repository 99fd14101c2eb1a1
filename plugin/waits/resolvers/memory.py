"""Free pages: who waits for them, who makes them, and why that one does not.

Mirrors vm_wait*() in sys/vm/vm_page.c and the loops of sys/vm/vm_pageout.c,
7.0 to 15.x; the counters are read by plugin.kernel.vm_domain.
"""

from __future__ import annotations

from typing import List, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.judge.daemons import Daemon, daemons
from plugin.kernel.vm_domain import Channel, Domain, domains, memory_shortage
from plugin.session import Kernel
from plugin.waits.build import IDLE, STUCK, TIMED, Builder, Case, Standing
from plugin.waits.graph import CATALOGUED, PROVEN, End, Node
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


def _of_role(b: Builder, *roles: str) -> List[Daemon]:
    return [each for each in daemons(b.kernel) if each.role in roles]


def _doing(found: List[Daemon]) -> str:
    return "; ".join(f"{d.thread.tid} {d.thread.label} {d.doing}" for d in found)


def memory_node(b: Builder) -> Node:
    """Free pages, joined to the page daemon and the laundry that have to make them."""
    node = b.node("memory", "free pages", "free pages")
    if node.facts:
        return node
    kernel = b.kernel
    node.facts = [shortage(kernel) or _figures(domains(kernel)) or "counters unreadable"]
    makers = _of_role(b, "pagedaemon", "laundry")
    stuck = [maker for maker in makers if b.standing(maker.thread).status == STUCK]
    for maker in stuck:
        what = "writes dirty pages, which can then be freed"
        if maker.role == "pagedaemon":
            what = "frees pages and wakes those who wait for them"
        b.join(
            node,
            b.thread(maker.thread),
            "served-by",
            CATALOGUED,
            f"{maker.thread.label} {what}; {maker.doing}",
        )
    if not stuck:
        node.end = _end(b, makers)
    return node


def _end(b: Builder, makers: List[Daemon]) -> End:
    short = shortage(b.kernel)
    doing = _doing(makers) or "no page daemon was found"
    if not short:
        return End(
            "running", f"there are enough pages again ({_figures(domains(b.kernel))})", doing
        )
    asleep = [m for m in makers if b.standing(m.thread).status == IDLE]
    if makers and len(asleep) == len(makers):
        return End(
            "lost-wakeup", f"the page daemon is idle although memory is short: {short}", doing
        )
    return End("memory", f"memory is exhausted: {short}", doing + _largest(b))


def _largest(b: Builder) -> str:
    """Who holds the memory: the processes with most resident pages."""
    kernel, layouts = b.kernel, b.kernel.layouts
    found = []
    try:
        vmspace = layouts.offsetof("proc", "p_vmspace")
        resident = layouts.resolve("vmspace", "vm_pmap.pm_stats.resident_count")
        for thread in {thread.proc: thread for thread in b.threads}.values():
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


def _channel(case: Case) -> Optional[Channel]:
    return next(
        (each for each in memory_shortage(case.kernel).channels if each.address == case.address),
        None,
    )


def _wait(case: Case, what: str) -> Standing:
    channel = _channel(case)
    if channel is None or not channel.satisfied:
        case.waits_for(memory_node(case.b), PROVEN, case.said())
        return Standing(STUCK, what, case.row)
    # The condition holds.  A page daemon at work may be about to say so.
    b = case.b
    node = b.node("memory", channel.name, f"free pages ({channel.name})", channel.address)
    case.waits_for(node, PROVEN, case.said())
    if node.end is None:
        makers = _of_role(b, "pagedaemon", "laundry")
        now = _figures(domains(case.kernel))
        node.facts = [now]
        busy = [m for m in makers if b.standing(m.thread).status != IDLE]
        sleepers = count(len(channel.tids), "thread")
        node.end = End(
            "lost-wakeup",
            f"pages are free again, yet {sleepers} sleep for them: a wakeup was lost",
            f"{channel.wants}: {now}; {_doing(makers) or 'no page daemon was found'}",
            case.thread.age,
        )
        if busy and all(m.thread.state in ("running", "runnable") for m in busy):
            node.end = End(
                "running",
                f"pages are free again, the page daemon is at work and has to wake {sleepers}",
                node.end.evidence,
            )
    return Standing(STUCK, what, case.row)


def memory(case: Case) -> Optional[Standing]:
    """vmwait, pfault: the thread waits for free pages."""
    return _wait(case, "waits for free pages")


def pageout_memory(case: Case) -> Optional[Standing]:
    """VMWait: the page daemon itself needs a page to free pages."""
    return _wait(case, "the page daemon itself waits for free pages")


def _self(case: Case) -> Optional[Daemon]:
    return next((d for d in daemons(case.kernel) if d.thread.address == case.thread.address), None)


def pagedaemon_idle(case: Case) -> Optional[Standing]:
    """psleep of the page daemon; to 10.4 also its pause after it failed to free enough."""
    found = _self(case)
    if found is None or not found.trouble or found.role != "pagedaemon":
        return idle(case, "page daemon without work")
    place = next((d for d in domains(case.kernel) if d.domain == (found.domain or 0)), None)
    if place is not None and place.minset is None and not place.pageout_wanted:
        return idle(case, "page daemon that nobody has asked for pages")
    # It has just failed to free enough, and tries again when this sleep times out.
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    node.end = node.end or End("external", f"the page daemon {found.doing}", case.said())
    return Standing(TIMED, found.doing, case.row)


def pagedaemon_wait(case: Case) -> Optional[Standing]:
    """pwait: the target was not met; pages have to be laundered before more can be freed."""
    b = case.b
    short = shortage(case.kernel)
    if not short:
        return idle(case, "a pause of the page daemon, with enough pages free")
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    washers = [
        each.thread for each in _of_role(b, "laundry") if b.standing(each.thread).status == STUCK
    ]
    if washers:
        b.served_by(node, washers, "dirty pages are freed once the laundry wrote them")
        return Standing(STUCK, "waits for the laundry", case.row)
    node.end = End(
        "memory",
        f"memory is exhausted: {short}; the page daemon finds nothing to free",
        _doing(_of_role(b, "laundry")) + _largest(b),
        case.thread.age,
    )
    return Standing(STUCK, "finds nothing to free", case.row)


def laundry_idle(case: Case) -> Optional[Standing]:
    """launds: without a request; with one its wakeup is lost."""
    return idle(case, "laundry without work")


def pacing_memory(case: Case) -> Optional[Standing]:
    """A sleep that tries again each tick because some allocation failed for want of pages."""
    short = shortage(case.kernel)
    found = generic(case, "message")
    if short:
        node = case.node
        node.end = End(
            "pacing",
            f'{node.label} tries again and again ("{case.thread.wmesg}")',
            case.said(),
            case.thread.age,
        )
        case.b.join(node, memory_node(case.b), "needs", CATALOGUED, short)
    return found
