"""Free pages: who waits for them, who makes them, and why that one does not.

Mirrors vm_wait*() in sys/vm/vm_page.c and the loops of sys/vm/vm_pageout.c,
7.0 to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from plugin.errors import MemoryFault
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.waits.build import IDLE, STUCK, Builder, Case, Standing
from plugin.waits.graph import CATALOGUED, PROVEN, End, Node
from plugin.waits.resolvers.common import generic, idle

_MAX_DOMAINS = 64


class Domain(NamedTuple):
    """Free pages of one memory domain against its thresholds (all in pages).

    ``short`` is what vm_wait() waits for: vmd_minset from 12.0 on, fewer free
    (and cached) pages than v_free_min before.
    """

    number: int
    free: int
    free_min: int
    free_target: int
    short: bool
    severe: bool


def domains(kernel: Kernel) -> List[Domain]:
    """Every memory domain; one for the whole machine before 12.0."""
    return kernel.once("memory domains", lambda: _domains(kernel))


def _domains(kernel: Kernel) -> List[Domain]:
    try:
        if kernel.layouts.has("vm_domain", "vmd_minset"):
            return _per_domain(kernel)
        return [_whole(kernel)]
    except MemoryFault as fault:
        kernel.warnings.add("memory domains", fault.address, fault.reason)
        return []


def _per_domain(kernel: Kernel) -> List[Domain]:
    base = kernel.address_of("vm_dom")
    number = max(1, min(kernel.global_value("vm_ndomains", 1), _MAX_DOMAINS))
    stride = kernel.layouts.sizeof("vm_domain")
    found = []
    for index in range(number):
        view = kernel.view("vm_domain", base + index * stride)
        found.append(
            Domain(
                index,
                view.vmd_free_count,
                view.vmd_free_min,
                view.vmd_free_target,
                bool(view.vmd_minset),
                bool(view.vmd_severeset),
            )
        )
    return found


def _whole(kernel: Kernel) -> Domain:
    name = next(name for name in ("vm_cnt", "cnt") if kernel.has_symbol(name))
    view = kernel.view("vmmeter", kernel.address_of(name))
    free = view.v_free_count + view.get("v_cache_count", 0)
    return Domain(
        0,
        free,
        view.v_free_min,
        view.v_free_target,
        view.v_free_min > free,
        view.get("v_free_severe", 0) > free,
    )


def shortage(kernel: Kernel) -> str:
    """ "416 free pages, fewer than v_free_min 1234", "" where pages are not short."""
    short = [domain for domain in domains(kernel) if domain.short]
    if not short:
        return ""
    return "; ".join(
        (f"domain {domain.number}: " if len(domains(kernel)) > 1 else "")
        + f"{domain.free} free pages, the minimum is {domain.free_min}"
        for domain in short
    )


def _page_daemon(b: Builder) -> List[Thread]:
    """The threads that free pages: of the page daemon those that are no helpers."""
    try:
        pageproc = b.kernel.global_value("pageproc", 0)
    except MemoryFault:
        pageproc = 0
    if pageproc:
        found = [thread for thread in b.threads if thread.proc == pageproc]
    else:
        found = b.named(["pagedaemon"])
    helpers = ("laundry", "uma", "pagezero", "bufspacedaemon")
    return [t for t in found if not t.name.startswith(helpers) and "helper" not in t.name]


def _laundry(b: Builder) -> List[Thread]:
    return [t for t in b.threads if t.name.startswith("laundry") and b.is_kernel_thread(t)]


def memory_node(b: Builder) -> Node:
    """Free pages, joined to the page daemon that has to make them."""
    node = b.node("memory", "free pages", "free pages")
    if node.facts:
        return node
    kernel = b.kernel
    short = shortage(kernel)
    node.facts = [
        short
        or "; ".join(f"{d.free} free pages, the minimum is {d.free_min}" for d in domains(kernel))
        or "counters unreadable"
    ]
    daemons = _page_daemon(b)
    washers = _laundry(b)
    stuck = [t for t in daemons + washers if b.standing(t).status == STUCK]
    for daemon in stuck:
        what = "frees pages and wakes those who wait for them"
        if daemon in washers:
            what = "writes dirty pages, which can then be freed"
        b.join(
            node,
            b.thread(daemon),
            "served-by",
            CATALOGUED,
            f"catalogue: {daemon.label} {what}",
        )
    if not short or not stuck:
        node.end = _memory_end(b, daemons, short)
    return node


def _memory_end(b: Builder, daemons: List[Thread], short: str) -> End:
    standings = [b.standing(daemon) for daemon in daemons]
    doing = ", ".join(
        f"{daemon.tid} {daemon.label} {standing.why}"
        for daemon, standing in zip(daemons, standings)
    )
    if not short:
        now = "; ".join(f"{d.free} free, minimum {d.free_min}" for d in domains(b.kernel))
        if any(b.standing(daemon).status != IDLE for daemon in daemons):
            return End("running", f"the page daemon has freed pages and still works ({doing})", now)
        return End(
            "lost-wakeup",
            "pages are free again, yet threads wait for them: a wakeup was lost",
            f"{now}; page daemon: {doing or 'not found'}",
        )
    if standings and all(standing.status == IDLE for standing in standings):
        return End(
            "lost-wakeup",
            f"the page daemon is idle although memory is short ({short})",
            doing,
        )
    return End("memory", f"memory is exhausted: {short}", f"page daemon: {doing or 'not found'}")


def memory(case: Case) -> Optional[Standing]:
    """vmwait, pfault: the thread waits for free pages."""
    case.waits_for(memory_node(case.b), PROVEN, case.said())
    return Standing(STUCK, "waits for free pages", case.row)


def pageout_memory(case: Case) -> Optional[Standing]:
    """VMWait: the page daemon itself needs a page to free pages."""
    case.waits_for(memory_node(case.b), PROVEN, case.said())
    return Standing(STUCK, "the page daemon itself waits for free pages", case.row)


def pagedaemon_idle(case: Case) -> Optional[Standing]:
    """psleep of the page daemon; to 10.4 also its pause after it failed to free enough."""
    needed = case.kernel.global_value("vm_pages_needed", 0)
    if needed and case.row is not None and case.channel.symbol == "vm_pages_needed":
        node = case.waits_for(case.channel_node(), PROVEN, case.said())
        short = shortage(case.kernel) or "by now there are enough"
        node.end = End(
            "memory",
            f"the page daemon has failed to free enough pages ({short})",
            f"vm_pages_needed {needed}",
            case.thread.age,
        )
        return Standing(STUCK, "pauses after it failed to free enough pages", case.row)
    return idle(case, "page daemon without work")


def pagedaemon_wait(case: Case) -> Optional[Standing]:
    """pwait: the target was not met; pages have to be laundered before more can be freed."""
    b = case.b
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    washers = [t for t in _laundry(b) if b.standing(t).status == STUCK]
    if not washers:
        short = shortage(case.kernel)
        if not short:
            node.end = End("external", "a pause of the page daemon, with enough pages free")
            return Standing(IDLE, "pauses; pages are not short", case.row)
        node.end = End(
            "memory",
            f"memory is exhausted: {short}; the page daemon finds nothing to free",
            "; ".join(f"{t.tid} {t.label}: {b.standing(t).why}" for t in _laundry(b)),
            case.thread.age,
        )
        return Standing(STUCK, "finds nothing to free", case.row)
    b.served_by(node, washers, "catalogue: dirty pages are freed once the laundry wrote them")
    return Standing(STUCK, "waits for the laundry", case.row)


def laundry_idle(case: Case) -> Optional[Standing]:
    return idle(case, "laundry without work")


def pacing_memory(case: Case) -> Optional[Standing]:
    """A sleep that tries again each tick because some allocation failed for want of pages."""
    short = shortage(case.kernel)
    found = generic(case, "message")
    if short:
        node = case.node
        node.end = End(
            "pacing",
            f'{case.thread.tid} {case.thread.label} tries again ("{case.thread.wmesg}")',
            case.said(),
            case.thread.age,
        )
        case.b.join(node, memory_node(case.b), "needs", CATALOGUED, short)
    return found
