"""provider's report: what each owes, GEOM's health, the topology drawn."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from plugin.judge import controllers
from plugin.judge.geom_io import (
    OutstandingBio,
    ProviderIO,
    check_provider_io,
    doing,
    held_by_driver,
    outstanding,
    provider_io,
)
from plugin.judge.geom_workers import Health, health, workers
from plugin.judge.locks import Contended
from plugin.judge.zfs import suspended_on
from plugin.kernel import geom_class
from plugin.kernel.bio import g_bioqs
from plugin.kernel.cam import CamDevice, Unreadable, cam_of
from plugin.kernel.disk import Disk, disk_of
from plugin.kernel.disk import config as disk_config
from plugin.kernel.geom import (
    G_PF_ORPHAN,
    G_PF_WITHER,
    Class,
    Consumer,
    Geom,
    Mesh,
    Provider,
    around,
    consumer_active,
    mesh,
)
from plugin.kernel.geom_class import ClassQueue
from plugin.render import confdot, confxml, svg
from plugin.render.bioq import bio_data, command_data, show_bios
from plugin.render.confdot import ERROR, OWES, WAITS, Mark
from plugin.render.geomtree import tree
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, seconds


def providers(kernel: Kernel, named: Optional[Sequence[Provider]]) -> Report:
    """All of GEOM in a table and a few sentences; of those ``named`` everything."""
    report, known = _facts(kernel, named)
    if named is not None:
        for provider in named:
            _one(kernel, report, provider, known[provider.address])
        return report
    _verdicts(kernel, report, known)
    queued = sum(len(q.bios) for q in g_bioqs(kernel) if q.name == "g_bio_run_down")
    _health(report, health(kernel), queued)
    every = mesh(kernel).providers.values()
    report.heading(f"{count(len(every), 'provider')}:")
    _table(report, [known[provider.address] for provider in every])
    report.text("More: provider NAME | provider --tree | bioq")
    return report


def as_tree(kernel: Kernel, named: Optional[Sequence[Provider]]) -> Report:
    """Devices, and what stands on each."""
    report, known = _facts(kernel, named)
    report.pre(*tree(mesh(kernel), _notes(known), _part(named)))
    return report


def drawn(kernel: Kernel, named: Optional[Sequence[Provider]], shape: str) -> Report:
    """The topology in a foreign format: ``shape`` is "dot", "svg" or "xml"."""
    report, _ = _facts(kernel, named)
    found = mesh(kernel)
    if shape == "xml":
        config = partial(disk_config, kernel)
        report.raw = confxml.confxml(found, config, _part(named))
    else:
        drawing = confdot.confdot(found, _marks(kernel, found), _part(named))
        report.raw = svg.svg(drawing) if shape == "svg" else drawing
    return report


def _facts(
    kernel: Kernel, named: Optional[Sequence[Provider]]
) -> Tuple[Report, Dict[int, ProviderIO]]:
    """A report with the JSON in it, and the I/O of every provider by its address."""
    found = mesh(kernel)
    known = provider_io(kernel)
    check_provider_io(kernel)
    chosen = list(found.providers.values()) if named is None else named
    report = Report(
        {
            "providers": [_data(kernel, provider, known[provider.address]) for provider in chosen],
            "classes": [_class_data(kernel, g_class) for g_class in found.classes],
            "health": _health_data(health(kernel)),
        }
    )
    return report, known


def _part(named: Optional[Sequence[Provider]]) -> Optional[Set[int]]:
    return None if named is None else around(named)


def _marks(kernel: Kernel, found: Mesh) -> Dict[int, Mark]:
    """What stands out in a drawing: devices that owe, and the way up from them."""
    marks: Dict[int, Mark] = {}
    for each in outstanding(kernel):
        consumer = found.consumers.get(each.bio.from_)
        if consumer is not None:
            marks[consumer.address] = marks[consumer.geom.address] = Mark(WAITS)
    for at, io in provider_io(kernel).items():
        provider = io.provider
        note = _notes({at: io}).get(at, "")
        if provider.error or provider.flags & (G_PF_ORPHAN | G_PF_WITHER):
            marks[at] = Mark(ERROR, note)
        elif io.verdict in ("owes", "unclear"):
            marks[at] = Mark(OWES, note)
            if provider.geom is not None:
                marks[provider.geom.address] = Mark(OWES)
        elif io.in_flight:
            marks[at] = Mark(WAITS, note)
    return marks


def _leaving(provider: Provider) -> List[str]:
    """Words for a provider that is on its way out."""
    words = ["orphaned"] if provider.flags & G_PF_ORPHAN else []
    if provider.flags & G_PF_WITHER or (provider.geom and provider.geom.withering):
        words.append("withering")
    return words


def _notes(known: Dict[int, ProviderIO]) -> Dict[int, str]:
    """A few words on each provider that is not plainly well, by address."""
    found = {}
    for at, io in known.items():
        words = []
        if io.at_device:
            where = "at the device" if io.provider.is_device else "below"
            words.append(f"{io.at_device} {where}")
        if io.queued:
            words.append(f"{io.queued} queued")
        if io.lost:
            words.append(f"{io.lost} lost")
        if words and io.oldest is not None:
            words.append(f"oldest {seconds(io.oldest)}")
        if io.provider.error:
            words.append(f"error {io.provider.error}")
        words += _leaving(io.provider)
        if words:
            found[at] = ", ".join(words)
    return found


def _verdicts(kernel: Kernel, report: Report, known: Dict[int, ProviderIO]) -> None:
    devices = [a for a in known.values() if a.provider.is_device]
    owing = sorted((a for a in devices if a.verdict == "owes"), key=lambda a: -(a.oldest or 0))
    if owing:
        names = ", ".join(
            f"{a.provider.name} {a.at_device}"
            + (f" (oldest {seconds(a.oldest)})" if a.oldest is not None else "")
            for a in owing
        )
        report.text(f"{count(len(owing), 'device')} {_owe(len(owing))} I/O: {names}.")
    for io in devices:
        trouble = suspended_on(kernel, io.provider)
        if trouble is not None:
            report.text(f"{io.provider.name}: {trouble.summary}.")
        if io.verdict == "unclear":
            report.text(f"{io.provider.name}: {io.reason}.")
        elif io.verdict == "waits":
            report.text(f"{io.provider.name} is given nothing: {io.reason}.")
        elif io.verdict == "clear" and io.in_flight and trouble is None:
            report.text(f"{io.provider.name} owes nothing: {io.reason}.")
    for io in known.values():
        if io.lost and not io.provider.is_device:
            name = f"{io.provider.class_name} {io.provider.name}"
            report.text(f"{count(io.lost, 'request')} lost at {name}: see bioq.")
    clear = [a.provider.name for a in devices if a.verdict == "clear" and not a.in_flight]
    if clear:
        report.text(f"Nothing outstanding: {', '.join(sorted(clear))}.")


def _owe(number: int) -> str:
    return "owes" if number == 1 else "owe"


def _health(report: Report, state: Health, queued: int) -> None:
    if state.pacing and state.pacing.active:
        report.text(state.pacing.explain(queued))
    for thread in state.threads:
        if thread.state not in ("idle", "pacing"):
            report.text(f"{thread.role} ({thread.thread.tid}) is {thread.state}: {thread.detail}.")
    if state.event_stack:
        report.text("g_event's stack: " + " <- ".join(state.event_stack))
    for event in state.events[:20]:
        about = f" for {', '.join(event.refs)}" if event.refs else ""
        flags = f" {' '.join(event.flags)}" if event.flags else ""
        report.text(f"Event waiting: {event.func}(){about}{flags} at {event.address:#x}.")
    for provider in state.doorstep:
        report.text(f"{provider.name} is orphaned and its consumers have not been told yet.")
    topology = state.topology
    if topology is not None and (topology.holders or topology.waiters or topology.lock.held):
        report.text(_topology(topology))
    if state.inflight_transient_maps:
        report.text(
            f"{count(state.inflight_transient_maps, 'bio')} transiently mapped for drivers that "
            "do not take unmapped bios."
        )
    if not any(
        (
            state.events,
            state.doorstep,
            state.pacing and state.pacing.active,
            any(t.state != "idle" for t in state.threads),
            topology and topology.lock.held,
        )
    ):
        report.text(
            "GEOM itself is well: no pacing, no event waits, the topology lock is free, "
            "g_up, g_down and g_event are idle with empty queues."
        )


def _topology(topology: Contended) -> str:
    held = ", ".join(f"{h.thread.tid} {h.thread.label} ({h.certainty})" for h in topology.holders)
    wait = ", ".join(f"{t.tid} {t.label}" for t, _ in topology.waiters)
    return (
        f"Topology lock: {topology.lock.state}"
        + (f" by {held}" if held else "")
        + (f"; waiting: {wait}" if wait else "")
        + "."
    )


def _table(report: Report, known: List[ProviderIO]) -> None:
    report.table(
        ["name", "class", "access", "media>", "flight>", "queued>", "device>", "verdict"],
        [
            (
                a.provider.name,
                a.provider.class_name,
                a.provider.access,
                size(a.provider.mediasize),
                a.in_flight,
                a.queued,
                a.at_device,
                _verdict(a),
            )
            for a in known
        ],
        optional=("class", "access", "media"),
    )


def _in_words(io: ProviderIO) -> str:
    name = io.provider.name
    if io.verdict == "owes":
        return f"{name} owes {count(io.at_device, 'request')}"
    return {
        "clear": f"{name} owes nothing",
        "waits": f"{name} waits for what is below it",
    }.get(io.verdict, f"What {name} owes is unclear")


def _verdict(io: ProviderIO) -> str:
    text = io.verdict
    if io.provider.error:
        text += f", error {io.provider.error}"
    text += "".join(f", {word}" for word in _leaving(io.provider))
    if io.verdict == "owes" and io.oldest is not None:
        text += f", {seconds(io.oldest)}"
    return text


def size(number: int) -> str:
    """Bytes as a person reads them, in powers of 1024 as diskinfo(8) and geom(8) print."""
    value = float(number)
    for unit in ("", "K", "M", "G", "T", "P"):
        if abs(value) < 1024 or unit == "P":
            return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"
        value /= 1024
    return str(number)


def _one(kernel: Kernel, report: Report, provider: Provider, io: ProviderIO) -> None:
    geom = provider.geom
    report.heading(
        f"provider {provider.name} at {provider.address:#x}"
        + (f", geom {geom.name} of class {geom.g_class.name}" if geom else ", of no geom")
    )
    report.text(
        f"access {provider.access}, error {provider.error}, index {provider.index}, "
        f"flags {' '.join(provider.flag_names) or 'none'}",
        indent=2,
    )
    report.text(
        f"media {provider.mediasize} bytes ({size(provider.mediasize)}), "
        f"sector {provider.sectorsize}, stripe {provider.stripesize} "
        f"at offset {provider.stripeoffset}",
        indent=2,
    )
    aliases = provider.aliases or (geom.aliases if geom else [])
    if aliases:
        report.text(f"aliases {' '.join(aliases)}", indent=2)
    if provider.nstart is not None:
        report.text(f"nstart {provider.nstart}, nend {provider.nend}", indent=2)
    disk = disk_of(kernel, provider)
    if disk is not None:
        gone = ", gone" if disk.gone else ""
        report.text(
            f"disk {disk.name} at {disk.address:#x}, {disk.strategy or 'no driver'}{gone}", indent=2
        )
    stat = disk.devstat if disk and disk.devstat else provider.devstat
    if stat is not None:
        report.text(
            f"devstat: {stat.start_count} started, {stat.end_count} ended; "
            f"{stat.reads} reads, {stat.writes} writes",
            indent=2,
        )
    report.text(
        f"{io.in_flight} in flight ({io.source}): {io.queued} queued, "
        f"{io.at_device} at the device. {_in_words(io)}: {io.reason}."
    )
    for line in controllers.sentences(kernel, disk) if disk is not None else ():
        report.text(line)
    trouble = suspended_on(kernel, provider)
    if trouble is not None:
        report.text(f"{trouble.summary} ({trouble.evidence}).")
    for words in geom_class.standing(kernel, geom) if geom else []:
        report.text(f"{geom.g_class.name} {geom.name}: {words}." if geom else words)
    for queue, number in _kept(kernel, geom) if geom else ():
        report.text(f"{count(number, 'bio')} on {queue.name}: {queue.queue.why}.")
    for thread in workers(kernel, geom) if geom else []:
        report.text(f"Served by {thread.tid} {thread.label}, {doing(thread)}.")
    held = held_by_driver(kernel, provider)
    if held:
        report.text(
            f"The driver's own memory still refers to {len(held)} of them, for instance at "
            f"{min(held.values()):#x}."
        )
    if provider.consumers:
        report.heading(f"{count(len(provider.consumers), 'consumer')}:")
        report.table(
            ["address", "class", "geom", "access", "active>", "flags"],
            [
                (
                    address(consumer.address),
                    consumer.geom.g_class.name,
                    consumer.geom.name,
                    consumer.access,
                    _active(kernel, consumer),
                    " ".join(kernel.layouts.flags("g_consumer_flags", consumer.flags)),
                )
                for consumer in provider.consumers
            ],
        )
    bios = [each for each in outstanding(kernel) if each.bio.to == provider.address]
    if bios:
        report.heading(f"{count(len(bios), 'bio')} to it:")
        show_bios(kernel, report, bios)


def _active(kernel: Kernel, consumer: Consumer) -> Optional[int]:
    """Requests that the consumer's own class counts as out."""
    active = consumer_active(kernel, consumer)
    return active.bios if active else None


def _data(kernel: Kernel, provider: Provider, io: ProviderIO) -> Dict[str, Any]:
    stat = provider.devstat
    disk = disk_of(kernel, provider)
    if disk is not None and disk.devstat is not None:
        stat = disk.devstat
    geom = provider.geom
    trouble = suspended_on(kernel, provider)
    return {
        "name": provider.name,
        "address": address(provider.address),
        "class": provider.class_name,
        "geom": geom.name if geom else None,
        "geom_address": address(geom.address) if geom else None,
        "mediasize": provider.mediasize,
        "sectorsize": provider.sectorsize,
        "stripesize": provider.stripesize,
        "stripeoffset": provider.stripeoffset,
        "access": list(provider.access),
        "error": provider.error,
        "flags": provider.flag_names,
        "orphan": bool(provider.flags & G_PF_ORPHAN),
        "on_doorstep": provider.on_doorstep,
        "withering": "withering" in _leaving(provider),
        "aliases": provider.aliases or (geom.aliases if geom else []),
        "index": provider.index,
        "in_flight": io.in_flight,
        "source": io.source,
        "queued": io.queued,
        "at_device": io.at_device,
        "found": io.found,
        "lost": io.lost,
        "driver": io.driver,
        "driver_found": io.driver_found,
        "oldest": io.oldest,
        "verdict": io.verdict,
        "reason": io.reason,
        "suspended_pool": trouble.spa.name if trouble is not None else None,
        "nstart": provider.nstart,
        "nend": provider.nend,
        "devstat": stat
        and {
            "address": address(stat.address),
            "start_count": stat.start_count,
            "end_count": stat.end_count,
            "busy_from": stat.busy_from,
        },
        "disk": disk
        and {
            "address": address(disk.address),
            "name": disk.name,
            "strategy": disk.strategy,
            "gone": disk.gone,
        },
        "cam": _cam_data(kernel, disk) if disk is not None else None,
        "controller": _controller_data(kernel, disk) if disk is not None else None,
        "standing": geom_class.standing(kernel, geom) if geom is not None else [],
        "kept": [
            {"queue": queue.name, "bios": number, "why": queue.queue.why}
            for queue, number in (_kept(kernel, geom) if geom is not None else ())
        ],
        "consumers": [address(consumer.address) for consumer in provider.consumers],
        "bios": [
            dict(bio_data(kernel, each.bio), state=each.state)
            for each in _bios_of(kernel, provider)
        ],
    }


def _kept(kernel: Kernel, geom: Geom) -> Iterator[Tuple[ClassQueue, int]]:
    """The queues of a geom's class that have bios, and how many of those outstanding."""
    on = Counter(each.queue for each in outstanding(kernel) if each.queue and not each.clones)
    for queue in geom_class.queues(kernel).values():
        if queue.geom is geom and on[queue.name]:
            yield queue, on[queue.name]


def _controller_data(kernel: Kernel, disk: Disk) -> Optional[Dict[str, Any]]:
    """A disk's controller and its commands; null where no layout of its driver is known."""
    found = controllers.of_disk(kernel, disk)
    if found is None:
        return None
    if isinstance(found, Unreadable):
        return {"error": found.why}
    return {
        "error": None,
        "name": found.controller.name,
        "struct": found.controller.struct,
        "address": address(found.controller.address),
        "trouble": list(found.controller.trouble),
        "whole": found.controller.whole,
        "commands": [command_data(found.controller, each) for each in found.commands],
    }


def _cam_data(kernel: Kernel, disk: Disk) -> Optional[Dict[str, Any]]:
    """CAM's side of a disk; null for a disk that is not CAM's."""
    device = cam_of(kernel, disk)
    if device is None:
        return None
    if not isinstance(device, CamDevice):
        return {"error": device.why}
    return {
        "error": None,
        "periph": address(device.periph),
        "device": address(device.device),
        "sim": device.sim,
        "sim_address": address(device.sim_address),
        "devq": address(device.devq),
        "periph_flags": list(device.periph_flags),
        "device_frozen": device.device_frozen,
        "sim_frozen": device.sim_frozen,
        "release": [flag for flag in device.device_flags if "_REL_" in flag],
        "recovering": device.recovering,
        "active": device.active,
        "waiting": device.waiting,
        "ccbs": [
            {
                "address": address(ccb.address),
                "bio": address(ccb.bio) if ccb.bio else None,
                "status": ccb.status,
                "timeout": ccb.timeout / 1000,
                "place": ccb.place,
            }
            for ccb in device.ccbs
        ],
    }


def _bios_of(kernel: Kernel, provider: Provider) -> Iterator[OutstandingBio]:
    for each in outstanding(kernel):
        if each.bio.to == provider.address:
            yield each


def _class_data(kernel: Kernel, g_class: Class) -> Dict[str, Any]:
    return {
        "name": g_class.name,
        "address": address(g_class.address),
        "geoms": [
            {
                "name": geom.name,
                "address": address(geom.address),
                "rank": geom.rank,
                "flags": kernel.layouts.flags("g_geom_flags", geom.flags),
                "withering": geom.withering,
                "workers": [thread.tid for thread in workers(kernel, geom)],
                "providers": [address(p.address) for p in geom.providers],
                "consumers": [
                    {
                        "address": address(consumer.address),
                        "provider": consumer.provider.name if consumer.provider else None,
                        "access": list(consumer.access),
                        "flags": kernel.layouts.flags("g_consumer_flags", consumer.flags),
                        "nstart": consumer.nstart,
                        "nend": consumer.nend,
                        "active": _active(kernel, consumer),
                    }
                    for consumer in geom.consumers
                ],
            }
            for geom in g_class.geoms
        ],
    }


def _health_data(state: Health) -> Dict[str, Any]:
    topology = state.topology
    return {
        "pacing": state.pacing and dict(state.pacing._asdict(), active=state.pacing.active),
        "threads": [
            {"role": t.role, "tid": t.thread.tid, "state": t.state, "detail": t.detail}
            for t in state.threads
        ],
        "events": [
            {
                "address": address(event.address),
                "func": event.func,
                "arg": address(event.arg),
                "flags": list(event.flags),
                "refs": list(event.refs),
            }
            for event in state.events
        ],
        "event_stack": state.event_stack,
        "doorstep": [address(provider.address) for provider in state.doorstep],
        "topology_lock": topology
        and {
            "address": address(topology.lock.address),
            "state": topology.lock.state,
            "owners": [h.thread.tid for h in topology.holders],
            "waiters": [t.tid for t, _ in topology.waiters],
        },
        "inflight_transient_maps": state.inflight_transient_maps,
    }
