"""I/O: from a buffer or a bio to the queue, the class or the device that has it.

Rests on plugin.judge.geom_io, which finds every outstanding bio and says where
it is and by what that is known.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge import cam, controllers, geom_io
from plugin.judge.channel import object_fits
from plugin.judge.daemons import daemons
from plugin.judge.geom_io import AT_DEVICE, CAM_QUEUE, COMPLETED, LOST, QUEUED, OutstandingBio
from plugin.judge.geom_workers import geom_threads, workers
from plugin.kernel import geom_class
from plugin.kernel.bio import g_bioqs, try_bio_at
from plugin.kernel.buf import Buf, background_copy, try_buf_at
from plugin.kernel.cluster import cluster_of
from plugin.kernel.disk import DISK_CLASS, disk_of
from plugin.kernel.geom import Provider
from plugin.kernel.geom_class import ClassQueue
from plugin.kernel.mount import mounts
from plugin.kernel.proc import Thread
from plugin.kernel.vfs_bio import BufSpace, runningbufspace, spaces
from plugin.kernel.vnode import vnode_at, vnode_of_lock
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.common import idle
from plugin.waits.resolvers.nfs import join_carriers, mount_node
from plugin.waits.resolvers.served import GATE, join_gate
from plugin.waits.resolvers.tasks import taskqueue_node
from plugin.words import count, seconds, verb


def _certainty(request: OutstandingBio) -> Certainty:
    return Certainty.PROVEN if request.certainty == geom_io.PROVEN else Certainty.GUESSED


# Buffers


def buf_node(builder: Builder, address: int) -> Node:
    """The node of a buf, joined to the bios that carry its I/O."""
    node = builder.object(NodeKind.BUF, address, f"buf {address:#x}")
    if node.end is not None or builder.graph.successors(node.id):
        return node
    buf = try_buf_at(builder.kernel, address)
    if buf is not None:
        node.facts = _buf_facts(builder.kernel, buf)
    requests = geom_io.buf_io(builder.kernel, address)
    for request in requests:
        builder.join(
            node,
            bio_node(builder, request),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"bio {request.bio.address:#x} has the buf in bio_caller2",
        )
    if (
        not requests
        and not _join_cluster(builder, node, address)
        and not _join_background(builder, node, buf)
        and not _remote(builder, node, buf)
    ):
        node.end = _bufless(builder.kernel, buf, node)
    return node


def _remote(builder: Builder, node: Node, buf: Optional[Buf]) -> bool:
    """A buffer of NFS: no bio ever stands for it."""
    vnode = vnode_at(builder.kernel, buf.vp) if buf is not None and buf.vp else None
    return (
        buf is not None
        and vnode is not None
        and join_carriers(builder, node, buf.address, vnode.mount)
    )


def _join_background(builder: Builder, node: Node, buf: Optional[Buf]) -> bool:
    """A buffer of FFS whose copy is being written: its I/O is that of the copy."""
    others = geom_io.bufs_at_work(builder.kernel)
    copy = background_copy(builder.kernel, buf, others) if buf is not None else None
    if copy is None:
        return False
    builder.join(
        node,
        buf_node(builder, copy.address),
        EdgeKind.SERVED_BY,
        Certainty.PROVEN,
        "BV_BKGRDINPROG: its copy, of the same vnode and block, has BX_BKGRDMARKER",
    )
    return True


def _join_cluster(builder: Builder, node: Node, address: int) -> bool:
    """A buffer read or written together with others: its I/O is that of the cluster's pbuf."""
    cluster = cluster_of(builder.kernel, address)
    if cluster is None:
        return False
    builder.join(
        node,
        buf_node(builder, cluster),
        EdgeKind.CONTAINED_IN,
        Certainty.PROVEN,
        f"b_cluster: on the list of cluster {cluster:#x}, whose b_iodone is cluster_callback()",
    )
    return True


def _buf_facts(kernel: Kernel, buf: Buf) -> List[str]:
    vnode = vnode_at(kernel, buf.vp) if buf.vp else None
    facts = [f"{buf.iocmd.replace('BIO_', '').lower()} of {buf.bcount} bytes"]
    if vnode is not None and (vnode.path or vnode.on):
        facts.append(vnode.label)
    return facts


def _bufless(kernel: Kernel, buf: Optional[Buf], node: Node) -> End:
    if buf is None:
        return End(CauseKind.UNKNOWN, f"{node.label} cannot be read")
    vnode = vnode_at(kernel, buf.vp) if buf.vp else None
    if vnode is not None and vnode.fstype in ("smbfs", "fusefs", "p9fs"):
        return End(
            CauseKind.EXTERNAL,
            f"{vnode.fstype} server of {vnode.on or 'a mount'} has not answered",
            f"buf {buf.address:#x} of a vnode on {vnode.fstype}; no bio stands for it",
        )
    return End(
        CauseKind.UNKNOWN,
        f"{node.label}: no bio for it was found",
        "g_bio zone and queues searched",
    )


@resolver("buf")
def buf(case: Case) -> Optional[Verdict]:
    """bwait(): the thread sleeps on the buf itself, or on a member of it."""
    address = case.address
    if case.row is not None and any(spec.name == "buf.b_xflags" for spec in case.row.channel):
        address = case.channel.container("buf", "b_xflags")
    node = buf_node(case.builder, address)
    case.waits_for(node, Certainty.PROVEN, case.said())
    found = try_buf_at(case.kernel, address)
    if found is not None and found.is_done and not geom_io.buf_io(case.kernel, address):
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} is done, yet {case.thread.tid} {case.thread.label} sleeps on it",
            f"b_flags {found.flags:#x} has B_DONE",
            case.thread.age,
        )
    return Verdict(Status.STUCK, "waits for a buffer's I/O", case.row)


# Bios


def bio_node(builder: Builder, request: OutstandingBio) -> Node:
    """The node of a request, joined to whatever has it now.

    Clones are shown only where a request was split: one clone of one request
    is the same I/O one layer down.
    """
    node = builder.object(NodeKind.BIO, request.bio.address, "")
    if node.label:
        return node
    leaves = _leaves(builder.kernel, request)
    # A request of physio() names no provider, its clone does.
    named = request if request.bio.to or not leaves else leaves[0]
    node.label = geom_io.describe(builder.kernel, named.bio)
    if request.age is not None:
        node.facts = [f"asked for {seconds(request.age)} ago"]
    for leaf in leaves[:64]:
        if len(leaves) == 1:
            _join_place(builder, node, leaf, request)
            continue
        below = builder.object(
            NodeKind.BIO, leaf.bio.address, geom_io.describe(builder.kernel, leaf.bio)
        )
        builder.join(
            node,
            below,
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            f"clone {leaf.bio.address:#x} is outstanding",
        )
        if not builder.graph.successors(below.id) and below.end is None:
            _join_place(builder, below, leaf, leaf)
    return node


def _leaves(kernel: Kernel, request: OutstandingBio) -> List[OutstandingBio]:
    """The outstanding clones at the bottom of a request, itself if it has none."""
    by_address = geom_io.outstanding_by_address(kernel)
    found: List[OutstandingBio] = []
    pending, seen = [request], {0}
    while pending:
        each = pending.pop()
        if each.bio.address in seen:
            continue
        seen.add(each.bio.address)
        below = [by_address[clone] for clone in each.clones if clone in by_address]
        if below:
            pending.extend(below)
        else:
            found.append(each)
    return found


def _join_place(builder: Builder, node: Node, leaf: OutstandingBio, top: OutstandingBio) -> None:
    certainty = _certainty(leaf)
    since = f" for {seconds(leaf.age)}" if leaf.age is not None else ""
    evidence = f"{leaf.why}{since}"
    if leaf.bio.address != top.bio.address:
        evidence += f" (clone {leaf.bio.address:#x})"
    if leaf.state == AT_DEVICE and leaf.provider is not None:
        builder.join(
            node, provider_node(builder, leaf.provider), EdgeKind.SERVED_BY, certainty, evidence
        )
    elif leaf.state in (QUEUED, COMPLETED) and leaf.queue is not None:
        target = queue_node(builder, leaf.queue, leaf.provider)
        builder.join(node, target, EdgeKind.CONTAINED_IN, certainty, evidence)
    elif leaf.state == COMPLETED:
        node.end = End(CauseKind.LOST_WAKEUP, f"{node.label}: {leaf.why}", evidence, leaf.age)
    elif leaf.state == LOST:
        node.end = End(CauseKind.UNKNOWN, f"{node.label} is lost: {leaf.why}", evidence, leaf.age)
    elif leaf.state == AT_DEVICE:
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: {leaf.why}", evidence, leaf.age)
    else:
        _join_carrier(builder, node, leaf, evidence)


def _join_carrier(builder: Builder, node: Node, leaf: OutstandingBio, evidence: str) -> None:
    """To the thread that has a request in hand; a volume's may wait in a task queue for one."""
    holder = geom_io.found_bios(builder.kernel).carrier(leaf.bio)
    queue = geom_io.task_queue_of(builder.kernel, leaf)
    if queue is not None and holder is None:
        target, kind = taskqueue_node(builder, queue), EdgeKind.CONTAINED_IN
        builder.join(node, target, kind, Certainty.PROVEN, evidence)
    elif holder is not None and not builder.waits_for_work(holder):
        sure = Certainty.PROVEN if queue is not None else Certainty.GUESSED
        if queue is None and "on its stack" not in evidence:
            evidence += f"; {holder.tid} {holder.label} has it on its stack"
        builder.join(node, builder.thread(holder), EdgeKind.SERVED_BY, sure, evidence)
    elif leaf.provider is None:
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: {leaf.why}", evidence, leaf.age)
    else:
        target = provider_node(builder, leaf.provider)
        builder.join(node, target, EdgeKind.SERVED_BY, _certainty(leaf), evidence)


@resolver("bio")
def bio(case: Case) -> Optional[Verdict]:
    """biowait(): the thread sleeps on the bio (on a buf in physio() before 10.x)."""
    kernel = case.kernel
    request = geom_io.outstanding_by_address(kernel).get(case.address)
    if request is not None:
        node = bio_node(case.builder, request)
        case.waits_for(node, Certainty.PROVEN, case.said())
        return Verdict(Status.STUCK, "waits for an I/O", case.row)
    if object_fits(kernel, "buf", case.address, None):
        return buf(case)
    found = try_bio_at(kernel, case.address)
    node = case.builder.object(NodeKind.BIO, case.address, f"bio {case.address:#x}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if found is not None and found.is_done:
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"bio {case.address:#x} is done, yet {case.thread.tid} sleeps on it",
            f"bio_flags {found.flags:#x} has BIO_DONE",
            case.thread.age,
        )
    else:
        node.end = End(
            CauseKind.UNKNOWN, f"bio {case.address:#x} is asked for nowhere", "not in flight"
        )
    return Verdict(Status.STUCK, "waits for an I/O", case.row)


# Queues and devices


def queue_node(builder: Builder, name: str, provider: Optional[Provider]) -> Node:
    """A queue of bios: of GEOM's own the thread that empties it, of a driver its device."""
    node = builder.node(NodeKind.QUEUE, name, name)
    if node.end is not None or builder.graph.successors(node.id):
        return node
    role = {"g_bio_run_down": "g_down", "g_bio_run_up": "g_up", "g_bio_run_task": "g_up"}.get(
        name, name
    )
    workers = [each for each in geom_threads(builder.kernel) if each.role == role]
    for worker in workers:
        builder.join(
            node,
            builder.thread(worker.thread),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"{role} is the thread that empties {name}; {worker.state}: {worker.detail}",
        )
    length = _queue_length(builder.kernel, name)
    if length is not None:
        node.facts = [count(length, "bio")]
    kept = next((q for q in geom_class.queues(builder.kernel).values() if q.name == name), None)
    if kept is not None:
        _class_queue(builder, node, kept)
    elif not workers and provider is not None:
        builder.join(
            node,
            provider_node(builder, provider),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            "the device's queue" if name.startswith(CAM_QUEUE) else "the driver's own queue",
        )
    elif not workers:
        node.end = End(CauseKind.UNKNOWN, f"queue {name}: nothing known empties it")
    return node


def _class_queue(builder: Builder, node: Node, kept: ClassQueue) -> None:
    """A queue of a GEOM class: its own threads empty it, or requests below have to end first."""
    kernel, geom = builder.kernel, kept.geom
    node.facts = [kept.queue.why]
    standing = "; ".join((kept.queue.why, *geom_class.standing(kernel, geom)))
    if kept.queue.behind:
        known = geom_io.provider_io(kernel)
        for consumer in geom.consumers:
            io = known.get(consumer.provider.address) if consumer.provider is not None else None
            if io is not None and io.verdict in ("owes", "waits") and io.in_flight:
                builder.join(
                    node,
                    provider_node(builder, io.provider),
                    EdgeKind.NEEDS,
                    Certainty.CATALOGUED,
                    f"{standing}; {io.provider.name} has {count(io.in_flight, 'request')}",
                )
        if builder.graph.successors(node.id):
            return
    if geom.g_class.name == GATE:
        if not join_gate(builder, node, geom.softc):
            node.end = End(CauseKind.EXTERNAL, f"{node.label}: no process serves it was found")
        return
    own = geom_class.own_threads(kernel, geom)
    threads = own or workers(kernel, geom)
    busy = [each for each in threads if not builder.waits_for_work(each)]
    sure = Certainty.PROVEN if own else Certainty.CATALOGUED
    for each in busy:
        said = (
            f"a thread of {geom.g_class.name} {geom.name}, told by its {'softc' if own else 'name'}"
        )
        builder.join(node, builder.thread(each), EdgeKind.SERVED_BY, sure, said)
    node.any = len(busy) > 1
    if threads and not busy:
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} has requests, yet {', '.join(each.label for each in threads[:3])} "
            f"{verb(len(threads), 'sleep')} without work",
            standing,
        )
    elif not threads:
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: its thread was not found")


def _queue_length(kernel: Kernel, name: str) -> Optional[int]:
    found = next((queue for queue in g_bioqs(kernel) if queue.name == name), None)
    if found is None:
        return None
    return found.length if found.length is not None else len(found.bios)


def provider_node(builder: Builder, provider: Provider) -> Node:
    """A provider that has bios; a device at the bottom owes them."""
    node = builder.object(NodeKind.PROVIDER, provider.address, provider.name)
    if node.end is None and not builder.graph.successors(node.id):
        node.facts = uses(builder.kernel, provider)
        if provider.class_name == DISK_CLASS or not _join_workers(builder, node, provider):
            node.end = device_end(builder.kernel, provider)
    return node


def _join_workers(builder: Builder, node: Node, provider: Provider, evidence: str = "") -> bool:
    """The class's own threads that have this geom's requests (md0, g_eli[0] da0), if any works."""
    geom = provider.geom
    if geom is None:
        return False
    if provider.class_name == GATE:
        return join_gate(builder, node, geom.softc, evidence)
    own = geom_class.own_threads(builder.kernel, geom)
    found = own or workers(builder.kernel, geom)
    busy = [each for each in found if not builder.waits_for_work(each)]
    who = f"the thread of {provider.class_name} {geom.name}, told by its "
    said = "; ".join(filter(None, (evidence, who + ("softc" if own else "name"))))
    if not own:
        builder.served_by(node, busy, said)
        return bool(busy)
    for each in busy:
        builder.join(node, builder.thread(each), EdgeKind.SERVED_BY, Certainty.PROVEN, said)
    node.any = len(busy) > 1
    return bool(busy)


def _owed(kernel: Kernel, provider: Provider) -> List[OutstandingBio]:
    return _owed_by_provider(kernel).get(provider.address, [])


@cached(MEMORY)
def _owed_by_provider(kernel: Kernel) -> Dict[int, List[OutstandingBio]]:
    found: Dict[int, List[OutstandingBio]] = {}
    for each in geom_io.outstanding(kernel):
        if each.state == AT_DEVICE and each.provider is not None and not each.clones:
            found.setdefault(each.provider.address, []).append(each)
    return found


_WORDS = {
    "BIO_READ": "read",
    "BIO_WRITE": "write",
    "BIO_DELETE": "delete",
    "BIO_GETATTR": "getattr",
    "BIO_FLUSH": "flush",
}


def device_end(kernel: Kernel, provider: Provider) -> End:
    """ "vtbd1 has not returned 3 reads", with what the counters say."""
    owed = _owed(kernel, provider)
    kinds: Dict[str, int] = {}
    for each in owed:
        word = _WORDS.get(each.bio.cmd, each.bio.cmd)
        kinds[word] = kinds.get(word, 0) + 1
    account = geom_io.provider_io(kernel).get(provider.address)
    ages = [each.age for each in owed if each.age is not None]
    since = max(ages) if ages else None
    what = " and ".join(count(number, word) for word, number in kinds.items())
    use = uses(kernel, provider)
    name = provider.name + (f" ({', '.join(use)})" if use else "")
    evidence = account.reason if account is not None else ""
    disk = disk_of(kernel, provider)
    stopped = cam.stopped(kernel, disk) if disk is not None else ""
    unknown = cam.unknown(kernel, disk) if disk is not None else ""
    wrong = controllers.trouble(kernel, disk) if disk is not None else ""
    if wrong:
        evidence = f"{evidence}; {wrong}" if evidence else wrong
    if unknown:
        evidence = f"{evidence}; {unknown}" if evidence else unknown
    if not provider.is_device and not what:
        return _kept(kernel, provider, name, evidence)
    if stopped and account is not None and not account.at_device:
        waiting = count(account.queued, "request") if account.queued else "its requests"
        since = max(filter(None, (since, account.oldest)), default=None)
        return End(CauseKind.DEVICE, f"{name} is not given {waiting}, {stopped}", evidence, since)
    if not what:
        number = account.at_device if account is not None else 0
        what = count(number, "request") if number else "a request"
    if not provider.is_device:
        holder = provider.class_name or "its class"
        return End(CauseKind.UNKNOWN, f"{name}: {holder} holds {what}", evidence, since)
    summary = f"{name} has not returned {what}"
    if wrong:
        summary += f"; {wrong}"
    if stopped:
        summary += f"; what follows is {stopped}"
    return End(CauseKind.DEVICE, summary, evidence, since)


def _kept(kernel: Kernel, provider: Provider, name: str, evidence: str) -> End:
    """Requests that a class has and has not passed on, by its own threads' state."""
    kept = [
        each
        for each in geom_io.outstanding(kernel)
        if each.bio.to == provider.address and not each.clones
    ]
    since = max((each.age for each in kept if each.age is not None), default=None)
    klass = provider.class_name or "its class"
    what = count(len(kept), "request") if kept else "requests"
    own = workers(kernel, provider.geom) if provider.geom is not None else []
    them = "it" if len(kept) == 1 else "them"
    said = f"{name}: {klass} holds {what} and has not passed {them} on"
    group = f"provider:{provider.address:#x}"
    if own:
        # provider_node() has come here because none of them is at work.
        who = ", ".join(f"{thread.tid} {thread.label}" for thread in own[:3])
        said += f", and its thread rests ({who})"
    return End(CauseKind.LOST_WAKEUP if own else CauseKind.UNKNOWN, said, evidence, since, group)


@cached(MEMORY)
def uses(kernel: Kernel, provider: Provider) -> List[str]:
    """What a provider is for: "swap", and the mount points of what lies on it."""
    mounted: Dict[str, List[str]] = {}
    for mount in mounts(kernel):
        mounted.setdefault(mount.source.replace("/dev/", "", 1), []).append(mount.on)
    found: List[str] = []
    pending, seen = [provider], {0}
    while pending:
        each = pending.pop(0)
        if each.address in seen or len(seen) > 256:
            continue
        seen.add(each.address)
        names = [each.name, *each.aliases]
        found.extend(on for name in names for on in mounted.get(name, ()) if on not in found)
        for consumer in each.consumers:
            geom = consumer.geom
            if geom.g_class.name == "SWAP" and consumer.access.open and "swap" not in found:
                found.append("swap")
            pending.extend(geom.providers)
    return found


# Counters of the buffer cache


def _space_node(builder: Builder, case: Case, space: Optional[BufSpace], name: str) -> Node:
    """A space of the buffer cache: how full it is, and whether its waiters should wait."""
    node = builder.node(
        NodeKind.POOL, space.symbol if space is not None else name, name, case.address
    )
    if space is not None and not node.facts:
        high = "" if space.high is None else f", the mark is {space.high}"
        node.facts = [f"{space.value} {space.unit}{high}; wakes when {space.until}"]
        if space.satisfied and space.waiters:
            node.end = End(
                CauseKind.LOST_WAKEUP,
                f"{name}: {space.until}, which holds ({space.value} {space.unit}), yet "
                f"{len(space.waiters)} {verb(len(space.waiters), 'sleep')}",
                f"{space.symbol} {space.value}",
                case.thread.age,
            )
    return node


def _space(case: Case, *names: str) -> Optional[BufSpace]:
    found = [space for space in spaces(case.kernel) if space.name in names]
    return next((s for s in found if s.wchan == case.address), found[0] if found else None)


@resolver("running_space")
def running_space(case: Case) -> Optional[Verdict]:
    """wdrain: too many bytes of asynchronous writes are under way."""
    builder, kernel = case.builder, case.kernel
    node = _space_node(builder, case, runningbufspace(kernel), "runningbufspace")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is not None or builder.graph.successors(node.id):
        return Verdict(Status.STUCK, "waits for writes to finish", case.row)
    node.any = True
    writing = [found for found in geom_io.bufs_at_work(kernel) if found.runningbufspace > 0]
    for found in writing:
        builder.join(
            node,
            buf_node(builder, found.address),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            f"b_runningbufspace {found.runningbufspace}",
        )
    if not writing:
        node.end = End(CauseKind.UNKNOWN, "runningbufspace is high, and no buffer is being written")
    return Verdict(Status.STUCK, "waits for writes to finish", case.row)


@resolver("bufobj_output")
def bufobj_output(case: Case) -> Optional[Verdict]:
    """bo_wwait: all writes of one vnode (or device) have to end."""
    builder, kernel = case.builder, case.kernel
    address = case.channel.container("bufobj", "bo_numoutput")
    member = kernel.layouts.resolve("bufobj", "bo_numoutput")
    try:
        left: Optional[int] = kernel.unsigned(case.address, member.size)
    except MemoryFault:
        left = None
    node = builder.object(NodeKind.OBJECT, address, f"writes of bufobj {address:#x}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if builder.graph.successors(node.id) or node.end is not None:
        return Verdict(Status.STUCK, "waits for a vnode's writes", case.row)
    owner = _vnode_of_bufobj(kernel, address)
    if owner:
        node.label = f"writes of {owner}"
    node.facts = [f"bo_numoutput {left}"]
    vnode = vnode_at(kernel, address - kernel.layouts.offsetof("vnode", "v_bufobj"))
    remote = owner != "" and vnode is not None and mount_node(builder, vnode.mount) is not None
    writing = [
        found
        for found in _bufs_of_bufobj(kernel).get(address, [])
        if found.iocmd == "BIO_WRITE" and (remote or geom_io.buf_io(kernel, found.address))
    ]
    for found in writing:
        builder.join(
            node,
            buf_node(builder, found.address),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            f"b_bufobj {address:#x}",
        )
    if left == 0:
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label}: none is left, yet threads wait",
            "bo_numoutput 0",
            case.thread.age,
        )
    elif not writing:
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: {left} under way, none found", "")
    return Verdict(Status.STUCK, "waits for a vnode's writes", case.row)


@cached(MEMORY)
def _bufs_of_bufobj(kernel: Kernel) -> Dict[int, List[Buf]]:
    found: Dict[int, List[Buf]] = {}
    for each in geom_io.bufs_at_work(kernel):
        found.setdefault(each.bufobj, []).append(each)
    return found


def _vnode_of_bufobj(kernel: Kernel, address: int) -> str:
    try:
        at = address - kernel.layouts.offsetof("vnode", "v_bufobj")
        lock = at + kernel.layouts.offsetof("vnode", "v_lock")
    except LayoutError:
        return ""
    found = vnode_at(kernel, at) if vnode_of_lock(kernel, lock) == at else None
    return found.label if found is not None else ""


def _at_work(builder: Builder, *roles: str) -> List[Thread]:
    """The buffer daemons of those roles that are not at rest."""
    found = [each.thread for each in daemons(builder.kernel) if each.role in roles]
    return [thread for thread in found if builder.verdict(thread).status is not Status.IDLE]


def _needs_io(builder: Builder, node: Node, writes: bool) -> None:
    """The buffers that have I/O under way: each that ends gives one back.  No daemon is at it."""
    node.any = True
    for found in geom_io.bufs_at_work(builder.kernel):
        if writes and found.iocmd != "BIO_WRITE":
            continue
        if geom_io.buf_io(builder.kernel, found.address):
            builder.join(
                node,
                buf_node(builder, found.address),
                EdgeKind.NEEDS,
                Certainty.PROVEN,
                f"{found.iocmd.replace('BIO_', '').lower()} under way; no buffer daemon is at work",
            )
    if not builder.graph.successors(node.id):
        node.end = End(
            CauseKind.UNKNOWN,
            f"{node.label}: no buffer daemon is at work and no buffer has I/O under way",
        )


@resolver("dirty")
def dirty(case: Case) -> Optional[Verdict]:
    """flswai: too many dirty buffers; bufdaemon flushes them.  qsleep: it could not."""
    builder = case.builder
    space = _space(case, "dirty buffers")
    own = next((d for d in daemons(case.kernel) if d.thread.address == case.thread.address), None)
    if own is not None:
        if space is None or space.high is None or space.value < space.high:
            return idle(case, "bufdaemon tries again in a moment")
        node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
        node.end = node.end or End(CauseKind.PACING, f"bufdaemon: {own.doing}", space.symbol)
        return Verdict(Status.STUCK, own.doing, case.row)
    node = _space_node(builder, case, space, "dirty buffers")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is None and not builder.graph.successors(node.id):
        flushers = _at_work(builder, "bufdaemon")
        builder.served_by(node, flushers, "bufdaemon writes dirty buffers")
        if not flushers:
            _needs_io(builder, node, writes=True)
    return Verdict(Status.STUCK, "waits for dirty buffers to be written", case.row)


@resolver("newbuf")
def newbuf(case: Case) -> Optional[Verdict]:
    """newbuf: no buffer, or no space for one; the buffer daemons make some."""
    builder = case.builder
    own = next((d for d in daemons(case.kernel) if d.thread.address == case.thread.address), None)
    if own is not None:
        node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
        node.end = node.end or End(CauseKind.PACING, f"{own.role}: {own.doing}", case.said())
        return Verdict(Status.STUCK, own.doing, case.row)
    node = _space_node(builder, case, _space(case, "bufspace", "free buffers"), "buffer space")
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is None and not builder.graph.successors(node.id):
        makers = _at_work(builder, "bufdaemon", "bufspacedaemon")
        builder.served_by(node, makers, "the buffer daemons free buffers")
        if not makers:
            _needs_io(builder, node, writes=False)
    return Verdict(Status.STUCK, "waits for a buffer", case.row)
