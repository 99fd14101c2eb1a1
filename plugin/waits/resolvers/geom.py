"""GEOM's own threads: idle, pacing, or the reason why requests stand still."""

from __future__ import annotations

from typing import Optional

from plugin.judge import geom_workers as geom_kern
from plugin.judge.geom_workers import GeomThread
from plugin.kernel.bio import g_bioqs
from plugin.kernel.geom import mesh
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.common import generic, idle, lost_wakeup
from plugin.waits.resolvers.io import provider_node
from plugin.waits.resolvers.memory import memory_node, shortage
from plugin.words import count


def _role(case: Case) -> Optional[GeomThread]:
    return next(
        (
            each
            for each in geom_kern.geom_threads(case.kernel)
            if each.thread.address == case.thread.address
        ),
        None,
    )


@resolver("g_down_idle", "g_up_idle", "g_event_idle")
def worker_idle(case: Case) -> Optional[Verdict]:
    """g_up, g_down or g_event at rest: only right while there is nothing to do."""
    found = _role(case)
    if found is not None and found.state == "stuck":
        return lost_wakeup(case, f"{found.role} sleeps although {found.detail}", case.said())
    return idle(case, "GEOM thread without work")


@resolver("g_pace")
def pace(case: Case) -> Optional[Verdict]:
    """g_down pauses after an allocation failed: slow, not blocked.

    What it waits for in truth is free pages: where they are short, that is the
    edge a resource cycle closes with.
    """
    builder, kernel = case.builder, case.kernel
    state = geom_kern.pacing(kernel)
    queued = sum(
        queue.length if queue.length is not None else len(queue.bios)
        for queue in g_bioqs(kernel)
        if queue.name == "g_bio_run_down"
    )
    node = case.node
    if state is None:
        return generic(case, "message")
    slow = f"at most {1 / state.pause:.0f} bios a second"
    if not state.per_failure:
        slow = f"one tick of hz, {state.pause * 1000:.3g} ms, after a failure; {slow}"
    node.end = End(
        CauseKind.PACING,
        f"GEOM is pacing, not blocked: {slow}, {count(queued, 'bio')} queued",
        f"pace {state.pace}; {case.said()}; {state.explain(queued)}",
        case.thread.age,
    )
    short = shortage(kernel)
    if short:
        target = memory_node(builder)
        builder.join(
            node,
            target,
            EdgeKind.NEEDS,
            Certainty.CATALOGUED,
            f"g_io_deliver(): a bio failed with ENOMEM (pace {state.pace}); {short}",
        )
    return Verdict(Status.STUCK, "paces itself after an allocation failure", case.row)


@resolver("g_transient")
def transient(case: Case) -> Optional[Verdict]:
    """g_d_tra: address space to map an unmapped bio for a driver that needs it mapped."""
    node = case.node
    number = geom_kern.health(case.kernel).inflight_transient_maps
    node.end = End(
        CauseKind.PACING,
        f"g_down waits for address space to map a bio; {number} are mapped",
        f"inflight_transient_maps {number}",
        case.thread.age,
    )
    return Verdict(Status.STUCK, "waits for address space to map a bio", case.row)


@resolver("g_events")
def events(case: Case) -> Optional[Verdict]:
    """g_waitidle, g_waitfor_event: the g_event thread has to run what was posted."""
    builder, kernel = case.builder, case.kernel
    posted = geom_kern.events(kernel)
    doorstep = geom_kern.health(kernel).doorstep
    node = case.waits_for(
        builder.node(NodeKind.QUEUE, "g_events", "g_events", case.address),
        Certainty.PROVEN,
        case.said(),
    )
    node.facts = [count(len(posted), "event")] + ([f"first {posted[0].func}"] if posted else [])
    if not posted and not doorstep:
        node.end = End(
            CauseKind.LOST_WAKEUP,
            "no GEOM event is left, yet threads wait for them",
            "g_events is empty",
            case.thread.age,
        )
        return Verdict(Status.STUCK, "waits for GEOM events", case.row)
    workers = [t for t in geom_kern.geom_threads(kernel) if t.role == "g_event"]
    for worker in workers:
        builder.join(
            node,
            builder.thread(worker.thread),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"g_event runs the events; {worker.state}: {worker.detail}",
        )
    return Verdict(Status.STUCK, "waits for GEOM events", case.row)


@resolver("g_dev_close")
def dev_close(case: Case) -> Optional[Verdict]:
    """The close of a GEOM device waits for its outstanding requests."""
    if "g_dev_softc" not in case.kernel.layouts or case.channel.is_pause:
        return None
    softc = case.channel.container("g_dev_softc", "sc_active")
    geom = next(
        (
            g
            for g in mesh(case.kernel).geoms.values()
            if any(c.private == softc for c in g.consumers) or g.softc == softc
        ),
        None,
    )
    if geom is None:
        return None
    node = case.waits_for(
        case.channel_node(f"requests of /dev/{geom.name}"), Certainty.PROVEN, case.said()
    )
    for consumer in geom.consumers:
        if consumer.provider is not None:
            case.builder.join(
                node,
                provider_node(case.builder, consumer.provider),
                EdgeKind.SERVED_BY,
                Certainty.CATALOGUED,
                f"sc_active of {geom.name} counts requests of {consumer.provider.name}",
            )
    return Verdict(Status.STUCK, "waits for a device's last requests", case.row)
