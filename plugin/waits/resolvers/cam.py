"""CAM: from a thread that waits for a CCB, a periph or a controller to the device that has it.

Mirrors sys/cam (cam_periph.c, cam_sim.c, scsi/scsi_da.c, ata/ata_da.c, nvme/nvme_da.c, ...), 9.x
to 15.x.  Which periph it is the channel tells; where it lies on the sleeper's stack, a CCB.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.judge import cam as judge
from plugin.judge import controllers, geom_io
from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.cam import (
    AT_SIM,
    DONE,
    HELD,
    Awaited,
    Periph,
    awaited,
    counts,
    periph_at,
    periphs,
)
from plugin.kernel.disk import Disk, disks
from plugin.kernel.geom import Provider, mesh
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.io import provider_node
from plugin.words import count, seconds

#: members of drivers' softcs that a close, or a probe, sleeps on: the first that a kernel has
_SOFTC = (
    ("da_softc", "refcount"),
    ("ada_softc", "refcount"),
    ("nda_softc", "refcount"),
    ("sdda_softc", "refcount"),
    ("cd_softc", "toc"),
    ("pass_softc", "pass_zone"),
)


class _Found(NamedTuple):
    periph: Periph
    certainty: Certainty
    evidence: str


@resolver("cam_ccb")
def cam_ccb(case: Case) -> Optional[Verdict]:
    """cbwait: cam_periph_runccb() sleeps on the cbfcnp of the CCB it has sent."""
    kernel, builder = case.kernel, case.builder
    address = case.channel.container("ccb_hdr", "cbfcnp")
    try:
        ccb = awaited(kernel, address)
        periph = periph_at(kernel, ccb.periph) if ccb.periph else None
    except (MemoryFault, LayoutError):
        return _by_stack(case)
    owner = periph.name if periph is not None else "CAM"
    label = f"command {ccb.function.replace('XPT_', '')} of {owner}"
    node = case.waits_for(
        builder.object(NodeKind.REQUEST, address, label), Certainty.PROVEN, case.said()
    )
    verdict = Verdict(Status.STUCK, f"waits for a {label}", case.row)
    if node.end is not None or builder.graph.successors(node.id):
        return verdict
    node.facts = list(_facts(ccb))
    if ccb.done:
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{label} is done, yet {case.thread.tid} {case.thread.label} sleeps for it",
            f"ccb {address:#x} is queued nowhere and has a status",
            case.thread.age,
        )
    elif periph is None:
        node.end = End(CauseKind.DEVICE, f"{label} has not been answered", ccb.place)
    else:
        said = f"ccb {address:#x} {ccb.place}"
        _join(builder, node, _Found(periph, Certainty.PROVEN, said), ccb, case.thread.age)
    return verdict


def _facts(ccb: Awaited) -> List[str]:
    found = [ccb.place]
    if ccb.timeout:
        found.append(f"timeout {seconds(ccb.timeout / 1000)}")
    if ccb.retries:
        found.append(f"{count(ccb.retries, 'retry', 'retries')} left")
    return found


@resolver("cam")
def cam(case: Case) -> Optional[Verdict]:
    """A periph held, closed or probed, a controller freed: what is awaited is its device."""
    found = _periph(case)
    if not found:
        return _by_stack(case)
    builder, first = case.builder, found[0]
    label = f"periph {first.periph.name}"
    if len(found) > 1:
        label = f"{count(len(found), 'periph')} of {first.periph.sim}"
    node = case.waits_for(
        builder.object(NodeKind.OBJECT, case.address, label), Certainty.PROVEN, case.said()
    )
    if node.end is None and not builder.graph.successors(node.id):
        node.facts = [each for each in first.periph.flags if each != "CAM_PERIPH_NEW_DEV_FOUND"]
        for each in found:
            _join(builder, node, each, None, case.thread.age)
    return Verdict(Status.STUCK, f"waits for {label}", case.row)


def _periph(case: Case) -> List[_Found]:
    """The periphs that a channel is, or lies in: by its own address, ccb_list, softc or SIM."""
    kernel, address = case.kernel, case.address
    known = periphs(kernel)
    at_list = address - kernel.layouts.offsetof("cam_periph", "ccb_list")
    for candidate, said in ((address, "the channel is the periph"), (at_list, "its ccb_list")):
        if candidate in known:
            return [_Found(known[candidate], Certainty.PROVEN, said)]
    for struct, member in _SOFTC:
        if not kernel.layouts.has(struct, member):
            continue
        softc = address - kernel.layouts.offsetof(struct, member)
        for periph in known.values():
            named = f"{periph.name.rstrip('0123456789')}_softc"
            if periph.softc == softc and named == struct:
                return [_Found(periph, Certainty.PROVEN, f"{member} of its softc")]
    return [
        _Found(each, Certainty.PROVEN, "a periph of the SIM that is to be freed")
        for each in known.values()
        if each.sim_address == address
    ]


def _by_stack(case: Case) -> Verdict:
    """Where the channel tells nothing: a periph on the sleeper's stack, which is a guess."""
    builder = case.builder
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    if node.end is None and not builder.graph.successors(node.id):
        of_disks = {disk.drv1 for disk in disks(case.kernel).values()}
        for address, periph in sorted(
            periphs(case.kernel).items(), key=lambda item: item[0] not in of_disks
        ):
            if kernel_stack_holds(case.kernel, case.thread, address):
                said = f"periph {address:#x} is on its kernel stack"
                found = _Found(periph, Certainty.GUESSED, said)
                _join(builder, node, found, None, case.thread.age)
                break
        else:
            node.end = End(
                CauseKind.UNKNOWN, f'"{case.thread.wmesg}": a CAM device or its driver', ""
            )
    return Verdict(Status.STUCK, "waits for a CAM device", case.row)


def _join(
    builder: Builder, node: Node, found: _Found, ccb: Optional[Awaited], age: Optional[float]
) -> None:
    """What a periph waits for: its disk's provider, where GEOM has one, else its device."""
    kernel, periph = builder.kernel, found.periph
    provider = _provider(kernel, periph)
    if provider is not None:
        io = geom_io.provider_io(kernel).get(provider.address)
        if (io is not None and io.verdict in ("owes", "waits")) or _frozen(kernel, periph):
            target = provider_node(builder, provider)
            builder.join(node, target, EdgeKind.SERVED_BY, found.certainty, found.evidence)
            return
    target = builder.object(NodeKind.OBJECT, periph.device, f"device of {periph.name}")
    if target.end is None:
        target.end = _device_end(kernel, periph, ccb, age)
    builder.join(node, target, EdgeKind.SERVED_BY, found.certainty, found.evidence)


def _device_end(
    kernel: Kernel, periph: Periph, ccb: Optional[Awaited], age: Optional[float]
) -> End:
    """ "sa0 behind mps0 has not answered 1 command, its queue frozen, count 1"."""
    try:
        active, waiting, frozen = counts(kernel, periph.device)
    except (MemoryFault, LayoutError) as error:
        return End(CauseKind.UNKNOWN, f"{periph.name}: its device cannot be read", str(error))
    disk = _disk(kernel, periph)
    wrong = controllers.trouble(kernel, disk) if disk is not None else ""
    evidence = f"dev_active {active}, {waiting} in its queue, qfrozen_cnt {frozen}"
    if wrong:
        evidence += f"; {wrong}"
    name = f"{periph.name} behind {periph.sim}"
    if "CAM_PERIPH_INVALID" in periph.flags:
        name += ", which has gone,"
    if ccb is not None and ccb.place == DONE:
        return End(CauseKind.RUNNING, f"{name} has answered; CAM has to pass it on", evidence, age)
    if frozen and (ccb is None or ccb.place in (HELD, "with CAM")):
        what = count(waiting, "command") if waiting else "its commands"
        said = f"{name} is not given {what}: its queue in CAM is frozen, count {frozen}"
        return End(CauseKind.DEVICE, said, evidence, age)
    if active or (ccb is not None and ccb.place == AT_SIM):
        what = count(max(active, 1), "command")
        return End(CauseKind.DEVICE, f"{name} has not answered {what}", evidence, age)
    return End(CauseKind.UNKNOWN, f"{name} has no command under way, and is waited for", evidence)


def _frozen(kernel: Kernel, periph: Periph) -> bool:
    disk = _disk(kernel, periph)
    return disk is not None and bool(judge.stopped(kernel, disk))


def _disk(kernel: Kernel, periph: Periph) -> Optional[Disk]:
    return next((d for d in disks(kernel).values() if d.drv1 == periph.address), None)


def _provider(kernel: Kernel, periph: Periph) -> Optional[Provider]:
    for geom, disk in disks(kernel).items():
        if disk.drv1 == periph.address:
            found = mesh(kernel).geoms[geom].providers
            return found[0] if found else None
    return None
