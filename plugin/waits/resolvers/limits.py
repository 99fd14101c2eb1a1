"""Limits: pager buffers, UMA zones at theirs, and kernel address space."""

from __future__ import annotations

from typing import List, Optional, Tuple

from plugin.judge.pbufs import swap_write_bufs
from plugin.kernel import pbuf
from plugin.kernel.pbuf import Pool
from plugin.kernel.uma import Zone, zone_of_channel
from plugin.kernel.vmem import arenas
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.io import buf_node
from plugin.words import verb


def zone_node(builder: Builder, zone: Zone) -> Node:
    """A zone at its limit: any item given back lets a sleeper go on."""
    node = builder.object(NodeKind.POOL, zone.address, f'zone "{zone.name}"')
    node.any = True
    if not node.facts:
        limit = "no limit" if zone.limit is None else f"limit {zone.limit}"
        node.facts = [f"{zone.items} items, {limit}, {zone.sleepers} asleep"]
    return node


def pool_node(builder: Builder, pool: Pool) -> Node:
    """A pool of pbufs: any one of those in use coming back lets a sleeper go on."""
    name = pool.symbol or pool.name
    node = builder.node(NodeKind.POOL, name, f"pbuf pool {name}", pool.wchan)
    if node.facts:
        return node
    node.any = True
    limit = "no limit" if pool.limit is None else f"of {pool.limit}"
    node.facts = [f"{pool.name}: {pool.in_use} {limit} in use"]
    for address, why in _of_pool(builder.kernel, pool):
        builder.join(
            node,
            buf_node(builder, address),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            f"pbuf in use: {why}",
        )
    if pool.free is not None and pool.free > 0 and pool.waiters:
        asleep = len(pool.waiters)
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} has {pool.free} free, yet {asleep} {verb(asleep, 'sleep')} for one",
            f"{name} {pool.free}",
        )
    elif not builder.graph.successors(node.id):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} is exhausted; its {pool.in_use} pbufs were not found",
            f"{name}: limit {pool.limit}",
        )
    return node


def _of_pool(kernel: Kernel, pool: Pool) -> List[Tuple[int, str]]:
    """The struct buf * of the pbufs in use that count against a pool, each with what says so."""
    if pool.symbol == "nsw_wcount_async":
        # Counted besides, whatever zone the pbuf is from (swap_pager_putpages()).
        return [(buf.address, why) for buf, why in swap_write_bufs(kernel)]
    every = pbuf.bufs(kernel)
    mine = every if pool.kind == "list" else [each for each in every if each.pool == pool.name]
    return [(each.address, each.why) for each in mine]


@resolver("pbuf")
def pbufs(case: Case) -> Optional[Verdict]:
    """wswbuf0, wswbuf1, swbufa: a pbuf of this pool has to come back."""
    pool = pbuf.pool_of_channel(case.kernel, case.address)
    if pool is None:
        return None
    case.waits_for(pool_node(case.builder, pool), Certainty.PROVEN, case.said())
    return Verdict(Status.STUCK, f"waits for a pbuf ({pool.name})", case.row)


@resolver("uma_limit")
def uma_limit(case: Case) -> Optional[Verdict]:
    """zonelimit, keglimit: an item of the zone has to be freed."""
    builder = case.builder
    if pbuf.pool_of_channel(case.kernel, case.address) is not None:
        return pbufs(case)
    zone = zone_of_channel(case.kernel, case.address)
    if zone is None:
        return None
    node = zone_node(builder, zone)
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is None and not builder.graph.successors(node.id):
        if zone.limit is not None and zone.items < zone.limit:
            node.end = End(
                CauseKind.LOST_WAKEUP,
                f"{node.label} is below its limit ({zone.items} of {zone.limit}), yet "
                f"{zone.sleepers} {verb(zone.sleepers, 'sleep')} at it",
                f"uma_zone {zone.address:#x}",
                case.thread.age,
            )
        else:
            node.end = End(
                CauseKind.MEMORY,
                f"{node.label} is exhausted ({zone.items} items, its limit)",
                f"uma_zone {zone.address:#x}; who holds its items is not recorded",
                case.thread.age,
            )
    return Verdict(Status.STUCK, "waits for an item of a zone", case.row)


@resolver("vmem")
def vmem(case: Case) -> Optional[Verdict]:
    """An arena of kernel address space without room."""
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    what = f'kernel address space ("{case.thread.wmesg}")'
    arena = next((each for each in arenas(case.kernel) if case.thread.tid in each.waiters), None)
    facts = f"{arena.inuse} of {arena.size} bytes of it in use" if arena is not None else ""
    node.end = node.end or End(CauseKind.MEMORY, f"{what} is exhausted", facts, case.thread.age)
    return Verdict(Status.STUCK, f"waits for {what}", case.row)
