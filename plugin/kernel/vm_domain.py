"""Memory domains: free pages, thresholds, queues, and who waits for pages.

Mirrors sys/vm/vm_pagequeue.h, vm_page.c (vm_wait() and its kin), vm_meter.c and
sys/sys/vmmeter.h, 6.x to 15.x.  To 9.x there is one domain, made here out of the
global counters; from 10.0 struct vm_domain has the queues, from 12.0 also the
free count and the thresholds.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.sleepqueue import sleepers
from plugin.session import Kernel, View

_MAX_DOMAINS = 64


class Domain(NamedTuple):
    """One memory domain; counts in pages.  None where this kernel has no such thing.

    ``minset`` and ``severeset``: the kernel has marked it as below free_min or
    free_severe (from 12.0).  ``pages_needed``: the page daemon itself waits for
    pages; ``pageout_wanted``: it has been asked to run.
    """

    domain: int
    address: int
    page_count: int
    free: int
    active: int
    inactive: int
    laundry: Optional[int]
    unswappable: Optional[int]
    #: clean pages ready for reuse, to 11.x
    cache: Optional[int]
    free_min: int
    free_target: int
    free_reserved: int
    free_severe: int
    pageout_free_min: int
    interrupt_free_min: int
    inactive_target: Optional[int]
    minset: Optional[bool]
    severeset: Optional[bool]
    pageout_wanted: bool
    pages_needed: bool
    #: VM_LAUNDRY_IDLE, _BACKGROUND, _SHORTFALL as "idle", "background", "shortfall"
    laundry_request: Optional[str]
    oom: bool
    #: threads that wait for pages of this domain, or of any
    waiters: Tuple[int, ...]

    @property
    def available(self) -> int:
        """What an allocation can take: free pages, and cached ones where they are kept."""
        return self.free + (self.cache or 0)

    @property
    def below_min(self) -> bool:
        """vm_paging_min(): vmwait and pfault sleep."""
        return self.available < self.free_min

    @property
    def below_severe(self) -> bool:
        """vm_paging_severe()."""
        return self.available < self.free_severe


class PageChannel(NamedTuple):
    """A wait channel for pages: the threads on it, and whether they should still be.

    ``wants``: the condition that wakes them; ``satisfied``: it holds, so that a
    thread still asleep has missed its wakeup, or is about to get it.
    """

    name: str
    address: int
    wmesgs: Tuple[str, ...]
    tids: Tuple[int, ...]
    wants: str
    satisfied: bool


class Shortage(NamedTuple):
    """``channels`` with sleepers or not; ``short`` is True where some domain is below its
    minimum; ``lost`` lists the channels whose sleepers should have been woken."""

    channels: Tuple[PageChannel, ...]
    short: bool

    @property
    def tids(self) -> Tuple[int, ...]:
        return tuple(tid for channel in self.channels for tid in channel.tids)

    @property
    def lost(self) -> Tuple[PageChannel, ...]:
        return tuple(c for c in self.channels if c.tids and c.satisfied)


def counters(kernel: Kernel) -> Optional[View]:
    """struct vmmeter: ``vm_cnt`` from 11.0, ``cnt`` before; None where it cannot be read."""
    for name in ("vm_cnt", "cnt"):
        symbol = kernel.symbol(name)
        if symbol is not None:
            try:
                return kernel.view("vmmeter", symbol.address)
            except MemoryFault as fault:
                kernel.warnings.add(name, fault.address, fault.reason)
                return None
    return None


@cached(MEMORY)
def domains(kernel: Kernel) -> List[Domain]:
    """Every memory domain."""
    try:
        if not kernel.has_symbol("vm_dom"):
            found = [_global(kernel)]
        else:
            found = _vm_dom(kernel)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("vm_dom", getattr(error, "address", None), str(error))
        return []
    if not found:
        kernel.warnings.add("vm_dom", None, "no memory domain could be read")
    return _with_waiters(kernel, found)


def _with_waiters(kernel: Kernel, found: List[Domain]) -> List[Domain]:
    """Each domain with the threads that may wait for it.

    vmwait does not record for which domains: those that are low are taken, or all.
    """
    short = [d.domain for d in found if (d.minset if d.minset is not None else d.below_min)]
    chosen = short or [d.domain for d in found]
    general = tuple(
        tid
        for channel in _general_channels(kernel)
        for tid in (thread.tid for thread in sleepers(kernel).get(channel[1], ()))
    )
    return [
        domain._replace(waiters=domain.waiters + (general if domain.domain in chosen else ()))
        for domain in found
    ]


def _queue_numbers(kernel: Kernel) -> Dict[str, int]:
    """{"active": PQ_ACTIVE, ...} of this kernel."""
    return {
        name[len("PQ_") :].lower(): number
        for number, name in kernel.layouts.table("queue").items()
        if name.startswith("PQ_")
    }


_LAUNDRY = ("idle", "background", "shortfall")


def _vm_dom(kernel: Kernel) -> List[Domain]:
    layouts = kernel.layouts
    base, stride = kernel.address_of("vm_dom"), layouts.sizeof("vm_domain")
    count = max(1, min(kernel.global_value("vm_ndomains", 1), _MAX_DOMAINS))
    numbers = _queue_numbers(kernel)
    queues_at = layouts.offsetof("vm_domain", "vmd_pagequeues")
    queue_size = layouts.sizeof("vm_pagequeue")
    queues = layouts.resolve("vm_domain", "vmd_pagequeues").size // queue_size
    own = layouts.has("vm_domain", "vmd_free_min")
    meter = None if own else counters(kernel)
    found = []
    for index in range(count):
        at = base + index * stride
        view = kernel.view("vm_domain", at)
        lengths: Dict[str, Optional[int]] = {}
        for name in ("active", "inactive", "laundry", "unswappable"):
            number = numbers.get(name)
            if number is None or number >= queues:
                lengths[name] = None
                continue
            queue = at + queues_at + number * queue_size
            lengths[name] = kernel.signed(queue + layouts.offsetof("vm_pagequeue", "pq_cnt"), 4)

        def limit(name: str, view: View = view) -> int:
            if own:
                value: int = view.get("vmd_" + name, 0)
                return value
            return meter.get("v_" + name, 0) if meter is not None else 0

        free = view.vmd_free_count
        cache = None
        if meter is not None and meter.has("v_free_count"):
            # To 11.x the free pages of all domains are counted together.
            free = meter.v_free_count if count == 1 else view.vmd_free_count
            cache = meter.get("v_cache_count") if index == 0 else 0
        needed = view.at("vmd_pageout_pages_needed") if own else _daemon_channel(kernel, index)
        request = view.get("vmd_laundry_request")
        found.append(
            Domain(
                index,
                at,
                view.vmd_page_count,
                free,
                lengths["active"] or 0,
                lengths["inactive"] or 0,
                lengths["laundry"],
                lengths["unswappable"],
                cache,
                limit("free_min"),
                limit("free_target"),
                limit("free_reserved"),
                limit("free_severe"),
                limit("pageout_free_min"),
                limit("interrupt_free_min"),
                limit("inactive_target"),
                bool(view.vmd_minset) if own else None,
                bool(view.vmd_severeset) if own else None,
                bool(view.vmd_pageout_wanted if own else _flag(kernel, "vm_pages_needed")),
                bool(
                    view.vmd_pageout_pages_needed
                    if own
                    else _flag(kernel, "vm_pageout_pages_needed")
                ),
                _LAUNDRY[request] if request is not None and request < len(_LAUNDRY) else None,
                bool(view.vmd_oom),
                tuple(t.tid for t in sleepers(kernel).get(needed, ())) if needed else (),
            )
        )
    return found


def _global(kernel: Kernel) -> Domain:
    """The one domain of a kernel without struct vm_domain (to 9.x)."""
    meter = counters(kernel)
    if meter is None:
        raise LayoutError("this kernel has neither vm_dom nor a struct vmmeter that can be read")
    return Domain(
        0,
        meter.address,
        meter.v_page_count,
        meter.v_free_count,
        meter.v_active_count,
        meter.v_inactive_count,
        None,
        None,
        meter.get("v_cache_count"),
        meter.v_free_min,
        meter.v_free_target,
        meter.v_free_reserved,
        meter.v_free_severe,
        meter.v_pageout_free_min,
        meter.v_interrupt_free_min,
        meter.get("v_inactive_target"),
        None,
        None,
        _flag(kernel, "vm_pages_needed"),
        _flag(kernel, "vm_pageout_pages_needed"),
        None,
        False,
        tuple(t.tid for t in sleepers(kernel).get(_daemon_channel(kernel, 0), ())),
    )


def _daemon_channel(kernel: Kernel, domain: int) -> int:
    """Where the page daemon itself waits for pages, to 11.x; 0 if nowhere."""
    symbol = kernel.symbol("vm_pageout_pages_needed")
    return symbol.address if symbol and domain == 0 else 0


def _flag(kernel: Kernel, name: str) -> bool:
    try:
        return bool(kernel.global_value(name, 0))
    except MemoryFault:
        return False


def _general_channels(kernel: Kernel) -> List[Tuple[str, int, Tuple[str, ...]]]:
    """Channels for pages of any domain: (name, address, wait messages)."""
    found: List[Tuple[str, int, Tuple[str, ...]]] = []
    if kernel.has_symbol("vm_min_domains"):
        found.append(("vm_min_domains", kernel.address_of("vm_min_domains"), ("vmwait", "pfault")))
        if kernel.has_symbol("vm_severe_domains"):
            address = kernel.address_of("vm_severe_domains")
            found.append(("vm_severe_domains", address, ("vmwait",)))
        return found
    meter = counters(kernel)
    if meter is not None and meter.has("v_free_count"):
        name = "vm_cnt" if kernel.has_symbol("vm_cnt") else "cnt"
        found.append((f"{name}.v_free_count", meter.at("v_free_count"), ("vmwait", "pfault")))
    return found


@cached(MEMORY)
def memory_shortage(kernel: Kernel) -> Shortage:
    """Who waits for pages, and whether what they wait for is so already."""
    found = domains(kernel)
    short = any(domain.below_min for domain in found)
    channels = []

    def add(name: str, address: int, wmesgs: Tuple[str, ...], wants: str, holds: bool) -> None:
        tids = tuple(thread.tid for thread in sleepers(kernel).get(address, ()))
        channels.append(PageChannel(name, address, wmesgs, tids, wants, holds))

    for name, address, wmesgs in _general_channels(kernel):
        if name == "vm_severe_domains":
            wants = "free >= free_severe"
            holds = bool(found) and not any(domain.below_severe for domain in found)
        else:
            wants = "free >= free_min"
            holds = bool(found) and not short
        add(name, address, wmesgs, wants, holds)
    if kernel.has_symbol("vm_pageproc_waiters"):
        address = kernel.address_of("vm_pageproc_waiters")
        # One tick, or any domain that leaves a set.
        add("vm_pageproc_waiters", address, ("pageprocwait",), "the next tick", False)
    own = kernel.layouts.has("vm_domain", "vmd_pageout_pages_needed")
    for domain in found:
        wants = "free >= pageout_free_min"
        holds = domain.available >= domain.pageout_free_min
        if own:
            at = domain.address + kernel.layouts.offsetof("vm_domain", "vmd_pageout_pages_needed")
            name = f"vm_dom[{domain.domain}].vmd_pageout_pages_needed"
            add(name, at, ("VMWait",), wants, holds)
        elif domain.domain == 0 and kernel.has_symbol("vm_pageout_pages_needed"):
            at = kernel.address_of("vm_pageout_pages_needed")
            add("vm_pageout_pages_needed", at, ("VMWait",), wants, holds)
    return Shortage(tuple(channels), short)
