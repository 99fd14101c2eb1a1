"""I/O: from the zio that a thread waits for to what has those at the bottom of its tree."""

from __future__ import annotations

from typing import Optional

from plugin.judge import geom_io
from plugin.judge import zfs as judge
from plugin.kernel.bio import bio_origin
from plugin.kernel.zfs import spa as spa_module
from plugin.kernel.zfs import zio as zio_module
from plugin.kernel.zfs.common import try_peek
from plugin.kernel.zfs.metaslab import throttled
from plugin.kernel.zfs.spa import Spa
from plugin.kernel.zfs.vdev import Vdev, provider_of, vdev_queue
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.io import bio_node, provider_node
from plugin.waits.resolvers.tasks import taskqueue_node
from plugin.waits.resolvers.zfs.common import MOST_BELOW, is_new, other
from plugin.waits.resolvers.zfs.spa import join_suspended
from plugin.words import count, seconds


def zio_node(builder: Builder, address: int) -> Node:
    """A zio, joined to those at the bottom of its tree, and those to what has them."""
    kernel = builder.kernel
    node = builder.object(NodeKind.ZIO, address, f"zio {address:#x}")
    if not is_new(builder, node):
        return node
    index = judge.zios(kernel)
    zio = index.at(address)
    if zio is None:
        _any_request(builder, node)
        return node
    spa = spa_module.spa_of(kernel, zio.spa)
    node.label = f"zio {address:#x} ({zio_module.describe(zio)})"
    if spa is not None:
        node.facts = [f"in pool {spa.name}"]
    below = index.bottom(address)
    if below != [address]:
        for at in below[:MOST_BELOW]:
            between = index.depth(address, at)
            how = f"io_child_list, {count(between, 'zio')} between" if between else "io_child_list"
            builder.join(
                node, zio_node(builder, at), EdgeKind.NEEDS, Certainty.PROVEN, f"below it by {how}"
            )
        return node
    age = zio_module.age(kernel, zio)
    if age is not None:
        node.facts.append(f"queued {seconds(age)} ago")
    _join_place(builder, node, zio, judge.place(kernel, zio), spa)
    return node


def _any_request(builder: Builder, node: Node) -> None:
    """What cannot be read as a zio waits for one of the requests that ZFS has in GEOM."""
    kernel = builder.kernel
    requests = [
        request
        for request in geom_io.top_requests(kernel)
        if bio_origin(kernel, request.bio).kind == "zfs"
    ]
    for request in requests[:MOST_BELOW]:
        builder.join(
            node,
            bio_node(builder, request),
            EdgeKind.SERVED_BY,
            Certainty.GUESSED,
            f"one of {count(len(requests), 'request')} that ZFS has under way",
        )
    if not requests:
        known = "zio" in kernel.layouts
        why = "what lies there is no zio" if known else "the layout of struct zio is not known"
        node.end = End(CauseKind.UNKNOWN, f"{node.label} cannot be followed: {why}", "")


def _join_place(
    builder: Builder, node: Node, zio: zio_module.Zio, place: judge.Place, spa: Optional[Spa]
) -> None:
    kernel = builder.kernel
    sure = Certainty.PROVEN if place.certainty == judge.PROVEN else Certainty.GUESSED
    if place.state == judge.AT_DEVICE and place.bio is not None:
        builder.join(node, bio_node(builder, place.bio), EdgeKind.SERVED_BY, sure, place.why)
    elif place.state == judge.AT_DEVICE:
        provider = provider_of(kernel, place.vdev) if place.vdev is not None else None
        if provider is not None:
            builder.join(
                node, provider_node(builder, provider), EdgeKind.SERVED_BY, sure, place.why
            )
        else:
            node.end = End(CauseKind.UNKNOWN, f"{node.label}: {place.why}", place.why)
    elif place.state == judge.QUEUED and place.vdev is not None:
        queue = queue_node(builder, place.vdev)
        builder.join(node, queue, EdgeKind.CONTAINED_IN, sure, place.why)
    elif place.state == judge.THROTTLED and spa is not None:
        builder.join(
            node, throttle_node(builder, spa), EdgeKind.CONTAINED_IN, Certainty.PROVEN, place.why
        )
    elif place.state == judge.SUSPENDED:
        join_suspended(builder, node, spa, place.why)
    elif place.state == judge.JOINED:
        builder.join(node, zio_node(builder, place.other), EdgeKind.NEEDS, sure, place.why)
    elif place.queue is not None and place.thread is None:
        builder.join(
            node, taskqueue_node(builder, place.queue), EdgeKind.CONTAINED_IN, sure, place.why
        )
    elif place.thread is not None:
        builder.join(node, builder.thread(place.thread), EdgeKind.SERVED_BY, sure, place.why)
    elif not join_suspended(builder, node, spa, "the pool is suspended"):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label} is nowhere to be found",
            place.why,
            zio_module.age(kernel, zio),
        )


def queue_node(builder: Builder, vdev: Vdev) -> Node:
    """The queue of a vdev: one of the zios that the device has must end before the next is sent."""
    node = builder.node(NodeKind.QUEUE, f"vdev:{vdev.address:#x}", f"queue of vdev {vdev.name}")
    if not is_new(builder, node):
        return node
    queue = vdev_queue(builder.kernel, vdev.address)
    active = queue.active if queue is not None else []
    waiting = len(queue.waiting) if queue is not None else 0
    node.facts = [f"{len(active)} active, {waiting} waiting"]
    node.any = True
    for at in active[:MOST_BELOW]:
        builder.join(
            node,
            zio_node(builder, at),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            f"one of {len(active)} that the queue has given to the device",
        )
    if not active:
        node.end = End(
            CauseKind.UNKNOWN,
            f"queue of vdev {vdev.name}: {waiting} wait and none is with the device",
            "vq_active",
        )
    return node


def throttle_node(builder: Builder, spa: Spa) -> Node:
    """The allocation throttle of a pool: a write that has a slot must end for the next to begin."""
    kernel = builder.kernel
    node = builder.node(
        NodeKind.QUEUE, f"alloc:{spa.address:#x}", f"allocation throttle of pool {spa.name}"
    )
    if not is_new(builder, node):
        return node
    holding = judge.allocating(kernel, spa.address)
    waiting = len(throttled(kernel, spa.address))
    node.facts = [f"{waiting} waiting, {len(holding)} found that have allocated"]
    node.any = True
    for at in holding[:MOST_BELOW]:
        builder.join(
            node,
            zio_node(builder, at),
            EdgeKind.NEEDS,
            Certainty.CATALOGUED,
            "a write that has allocated: its slot is free once it is done",
        )
    if not holding:
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label}: {count(waiting, 'write')} wait and none was found that has a slot",
            "spa_allocs",
        )
    return node


@resolver("zfs_zio")
def zio(case: Case) -> Optional[Verdict]:
    """zio_wait(): io_cv lies in the zio at the top of the tree."""
    kernel = case.kernel
    known = "zio" in kernel.layouts
    address = case.channel.container("zio", "io_cv") if known else case.address
    node = zio_node(case.builder, address)
    found = judge.zios(kernel).at(address)
    own = found is not None and found.waiter == case.thread.address
    said = case.said() + ("; io_waiter is this thread" if own else "")
    case.waits_for(node, Certainty.PROVEN, said)
    if (
        own
        and found is not None
        and not found.executor
        and not judge.zios(kernel).children[address]
    ):
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} is done, yet {case.thread.tid} {case.thread.label} sleeps on it",
            "io_executor is NULL",
            case.thread.age,
        )
    return Verdict(Status.STUCK, "waits for a ZFS I/O", case.row)


@resolver("zfs_joined")
def joined(case: Case) -> Optional[Verdict]:
    """arc_read() with ARC_WAIT: another's read of the same block.

    On a condition variable of the ARC's header to 13.x, of the arc_callback from 14.0 on.
    """
    kernel = case.kernel
    if kernel.layouts.has("arc_callback", "acb_wait_cv"):
        callback = case.channel.container("arc_callback", "acb_wait_cv")
    elif kernel.layouts.has("arc_buf_hdr", "b_l1hdr.b_cv"):
        header = case.channel.container("arc_buf_hdr", "b_l1hdr.b_cv")
        callback = try_peek(kernel, "arc_buf_hdr", header, "b_l1hdr.b_acb", 0)
    else:
        return other(case)
    head = try_peek(kernel, "arc_callback", callback, "acb_zio_head", 0) if callback else 0
    if not head:
        return other(case)
    case.waits_for(
        zio_node(case.builder, head), Certainty.PROVEN, f"{case.said()}; acb_zio_head {head:#x}"
    )
    return Verdict(Status.STUCK, "waits for another's ZFS read", case.row)


@resolver("zfs_vdev_io")
def of_a_vdev(case: Case) -> Optional[Verdict]:
    """Scrubbing, initialising and TRIM keep some I/O under way: of that some has to end."""
    builder, kernel = case.builder, case.kernel
    for member in ("vdev_initialize_io_cv", "vdev_trim_io_cv"):
        if member not in (case.thread.wmesg or "") or not kernel.layouts.has("vdev", member):
            continue
        address = case.channel.container("vdev", member)
        for spa in spa_module.spas(kernel):
            for vdev in judge.vdevs_of(kernel, spa.address):
                if vdev.address == address:
                    case.waits_for(queue_node(builder, vdev), Certainty.PROVEN, case.said())
                    return Verdict(Status.STUCK, f"waits for I/O of {vdev.name}", case.row)
    if not kernel.layouts.has("spa", "spa_scrub_io_cv"):
        return other(case)
    found = spa_module.spa_of(kernel, case.channel.container("spa", "spa_scrub_io_cv"))
    if found is None:
        return other(case)
    node = builder.node(NodeKind.QUEUE, f"scrub:{found.address:#x}", f"scrub of pool {found.name}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if is_new(builder, node):
        node.any = True
        for leaf in judge.leaves(kernel):
            queue = leaf.queue if leaf.spa.address == found.address else None
            if queue is not None and (queue.active or queue.waiting):
                builder.join(
                    node,
                    queue_node(builder, leaf.vdev),
                    EdgeKind.NEEDS,
                    Certainty.CATALOGUED,
                    "its I/O goes through the queues of the pool's vdevs",
                )
    if is_new(builder, node):
        why = "no zio is in the queue of a vdev of the pool"
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: {why}", "vq_active")
    return Verdict(Status.STUCK, f"waits for I/O of pool {found.name}'s scrub", case.row)
