"""Threads whose kernel stack is on swap: woken they want to run, and only the swapper lets them.

Mirrors sys/vm/vm_swapout.c (vm_glue.c to 11.x): faultin() brings a process back, for the swapper
(proc0) and for whoever needs the process.  The swapper takes one process at a time, one in
MAXSLP/2 s, and none but killed ones while free pages are short (swapper_wkilled_only(), 12.0 on).
TDI_SWAPPED alone says that a thread has been woken; 15.0 has no such thing any more.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Set

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge import geom_io
from plugin.kernel.proc import Thread, clock, threads
from plugin.kernel.swap_pager import SwapDevice, device_of_block, devices, swap_block
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.common import idle
from plugin.waits.resolvers.io import provider_node
from plugin.waits.resolvers.memory import memory_node, shortage
from plugin.waits.resolvers.stacks import runs
from plugin.words import count, seconds

#: functions that bring a process back in
_FAULTIN = ("faultin", "vm_thread_swapin", "scheduler_swapin")
#: MAXSLP / 2 (sys/param.h): the swapper brings one process back in so many seconds
_INTERVAL = 10.0
#: a machine may have a thousand stacks on swap: their blocks are looked up of so many
_MAX_LOOKUPS = 64


def wants_in(thread: Thread) -> bool:
    """TDI_SWAPPED and nothing else: it was woken, and would run if its stack were there."""
    return thread.state == "swapped"


@cached(MEMORY)
def waiting(kernel: Kernel) -> List[Thread]:
    """The threads that want to run and are swapped out."""
    return [thread for thread in threads(kernel) if wants_in(thread)]


def swapped(builder: Builder, thread: Thread, node: Node) -> Verdict:
    """A thread that was woken while its stack was out: it waits to be brought in."""
    kernel = builder.kernel
    target = _stacks_node(builder)
    out = _out_for(kernel, thread)
    said = "td_inhibitors has TDI_SWAPPED alone: it was woken, its kernel stack is swapped out"
    builder.join(node, target, EdgeKind.WAITS_FOR, Certainty.PROVEN, said)
    since = f" for {seconds(out)}" if out is not None else ""
    return Verdict(Status.STUCK, f"has been swapped out{since} and wants to run")


def _out_for(kernel: Kernel, thread: Thread) -> Optional[float]:
    """Seconds since a thread's process was swapped out (p_swtick), None if not known."""
    now = clock(kernel)
    try:
        member = kernel.layouts.resolve("proc", "p_swtick")
        tick = kernel.unsigned(thread.proc + member.offset, member.size)
    except (MemoryFault, LayoutError):
        return None
    if now is None or not tick:
        return None
    age = ((now.ticks - tick) & 0xFFFFFFFF) / now.hz
    return age if age <= 0x80000000 / now.hz else None


def _stacks_node(builder: Builder) -> Node:
    """The kernel stacks to be brought in, joined to who does that, or to what it lacks."""
    kernel = builder.kernel
    node = builder.node(NodeKind.MEMORY, "swapped out stacks", "kernel stacks on swap")
    if node.facts:
        return node
    wanting = waiting(kernel)
    procs = {thread.proc for thread in wanting}
    node.facts = [f"{count(len(wanting), 'thread')} of {count(len(procs), 'process', 'processes')}"]
    bringing = [
        thread
        for thread in builder.threads
        if thread.state != "swapped" and runs(builder, thread, _FAULTIN)
    ]
    for thread in bringing:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN if _is_swapper(thread) else Certainty.CATALOGUED,
            "it is in faultin(), which brings one process in at a time",
        )
    if not bringing:
        _not_brought(builder, node)
    return node


def _not_brought(builder: Builder, node: Node) -> None:
    """Nobody is at it: pages are short, the disk is silent, or the swapper takes its time."""
    kernel = builder.kernel
    short = shortage(kernel)
    if short:
        builder.join(
            node,
            memory_node(builder),
            EdgeKind.NEEDS,
            Certainty.CATALOGUED,
            f"the swapper brings none but killed processes in while pages are short: {short}",
        )
    for place in _silent(kernel):
        if place.device.provider is not None:
            builder.join(
                node,
                provider_node(builder, place.device.provider),
                EdgeKind.NEEDS,
                place.certainty,
                place.evidence,
            )
    if builder.graph.successors(node.id):
        return
    number = count(len(waiting(kernel)), "thread")
    swapper = next((each for each in builder.threads if _is_swapper(each)), None)
    if swapper is None or swapper.age is None or swapper.age > _INTERVAL:
        doing = f'it has slept in "{swapper.wmesg}"' if swapper is not None else "it was not found"
        node.end = End(
            CauseKind.LOST_WAKEUP if swapper is not None else CauseKind.UNKNOWN,
            f"{number} wait to be brought in from swap, and the swapper does not do it",
            doing + (f" for {seconds(swapper.age)}" if swapper and swapper.age else ""),
        )
        return
    node.end = End(
        CauseKind.PACING,
        f"the swapper brings one process in every {_INTERVAL:.0f} s; {number} wait",
        f'proc0 sleeps in "{swapper.wmesg}" since {seconds(swapper.age)}',
    )


class _Place(NamedTuple):
    device: SwapDevice
    certainty: Certainty
    evidence: str


def _silent(kernel: Kernel) -> List[_Place]:
    """The swap devices that owe requests and have these stacks, or may have them."""
    owing: Dict[int, SwapDevice] = {}
    known = geom_io.provider_io(kernel)
    for device in devices(kernel):
        io = known.get(device.provider.address) if device.provider is not None else None
        if io is not None and io.verdict in ("owes", "waits"):
            owing[device.address] = device
    if not owing:
        return []
    has: Set[int] = set()
    looked = 0
    for thread in waiting(kernel)[:_MAX_LOOKUPS]:
        block = _stack_block(kernel, thread)
        found = device_of_block(kernel, block) if block is not None else None
        looked += block is not None
        if found is not None:
            has.add(found.address)
    if looked:
        return [
            _Place(
                device, Certainty.PROVEN, f"swap blocks of their td_kstack_obj are on {device.name}"
            )
            for address, device in owing.items()
            if address in has
        ]
    number = len(devices(kernel))
    said = "swapped-out stacks come back over swap alone"
    sure = Certainty.CATALOGUED if number == 1 else Certainty.GUESSED
    return [_Place(device, sure, said) for device in owing.values()]


def _stack_block(kernel: Kernel, thread: Thread) -> Optional[int]:
    """The swap block of the first page of a thread's kernel stack that has one."""
    if not kernel.layouts.has("thread", "td_kstack_obj"):
        return None
    try:
        at = thread.address + kernel.layouts.offsetof("thread", "td_kstack_obj")
        owner = kernel.pointer(at)
    except MemoryFault:
        return None
    for index in range(max(1, thread.kstack_size // kernel.page_size) if owner else 0):
        block = swap_block(kernel, owner, index)
        if block is not None:
            return block
    return None


def _is_swapper(thread: Thread) -> bool:
    return thread.pid == 0 and thread.name in ("swapper", "kernel", thread.comm)


@resolver("swapper")
def swapper(case: Case) -> Optional[Verdict]:
    """The swapper at rest, or a thread that waits for its process to be brought in."""
    builder = case.builder
    if case.thread.pid == 0 or case.thread.comm == "swapper":
        if not waiting(case.kernel):
            return idle(case, "the swapper without a process to bring in")
        node = case.waits_for(_stacks_node(builder), Certainty.CATALOGUED, case.said())
        number = count(len(waiting(case.kernel)), "thread")
        return Verdict(Status.WAITING, f"{number} wait to be brought in: {node.label}", case.row)
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    if node.end is not None or builder.graph.successors(node.id):
        return Verdict(Status.STUCK, "waits to be swapped in", case.row)
    servers = [
        each
        for each in builder.threads
        if each.address != case.thread.address
        and runs(builder, each, _FAULTIN)
        and each.wmesg != case.thread.wmesg
    ]
    why = "it is in faultin()"
    if not servers:
        servers, why = [each for each in builder.threads if _is_swapper(each)][:1], "the swapper"
    builder.served_by(node, servers, why)
    return Verdict(Status.STUCK, "waits to be swapped in", case.row)
