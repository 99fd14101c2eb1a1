"""Asynchronous I/O: from the process that waits for a job to who does it."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge.files import Peer, behind, process_at
from plugin.judge.geom_io import OutstandingBio, outstanding
from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.aio import Job, jobs
from plugin.kernel.file import file_at
from plugin.kernel.proc import Thread
from plugin.session import Kernel
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.io import bio_node
from plugin.waits.resolvers.procs import threads_by_proc

_MAX_JOBS = 64
_IDLE = "aiordy"


@cached(MEMORY)
def _by_caller(kernel: Kernel) -> Dict[int, List[OutstandingBio]]:
    found: Dict[int, List[OutstandingBio]] = {}
    for request in outstanding(kernel):
        found.setdefault(request.bio.caller1, []).append(request)
    return found


@resolver("aio")
def aio(case: Case) -> Optional[Verdict]:
    """aiospn, aiowc, aioprn: p_aioinfo; one of the jobs under way has to be done."""
    try:
        proc = case.channel.container("proc", "p_aioinfo")
        found = jobs(case.kernel, proc)
    except (MemoryFault, LayoutError):
        return None
    if proc != case.thread.proc or not found:
        return None
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    node.any = True
    made = [_job_node(case, job) for job in found[:_MAX_JOBS]]
    for job_node in made:
        case.builder.join(
            node, job_node, EdgeKind.NEEDS, Certainty.PROVEN, "kaio_jobqueue of its process"
        )
    graph = case.builder.graph
    if all(_is_io(case, each) for each in made):
        return Verdict(Status.STUCK, "waits for asynchronous I/O", case.row)
    followed = [each for each in made if graph.successors(each.id)]
    why = "waits for asynchronous I/O"
    return Verdict(Status.BENIGN, why if followed else f"{why} that nobody does yet", case.row)


def _is_io(case: Case, job: Node) -> bool:
    """Whether a bio does the job: as stuck as a read or write of one's own."""
    graph = case.builder.graph
    return any(graph.nodes[edge.target].kind is NodeKind.BIO for edge in graph.successors(job.id))


def _job_node(case: Case, job: Job) -> Node:
    builder, kernel = case.builder, case.kernel
    what, peers = _file_of(case, job)
    label = f"aio {job.operation} of {what}, {job.length} bytes at {job.offset}"
    node = builder.object(NodeKind.REQUEST, job.address, label)
    if node.end is not None or builder.graph.successors(node.id):
        return node
    for request in _by_caller(kernel).get(job.address, []):
        builder.join(
            node,
            bio_node(builder, request),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"bio {request.bio.address:#x} has the job in bio_caller1",
        )
    if builder.graph.successors(node.id):
        return node
    doing = [t for t in _daemons(case) if kernel_stack_holds(kernel, t, job.address)]
    said = f"its kernel stack holds the job {job.address:#x}"
    certainty = Certainty.GUESSED
    if not doing and peers:
        # A socket's or pipe's job waits for the other end, on no thread at all.
        by_proc = threads_by_proc(kernel)
        doing = [t for peer in peers for t in by_proc.get(peer.proc.address, [])]
        said, certainty = "has the other end open", Certainty.PROVEN
    if not doing:
        doing = [t for t in _daemons(case) if t.wmesg != _IDLE]
        said, certainty = "an aiod at work; the job is not taken yet", Certainty.GUESSED
    _join(case, node, doing, certainty, said)
    if not doing:
        node.end = End(CauseKind.EXTERNAL, f"{label}: no aiod does it", case.said())
    return node


def _file_of(case: Case, job: Job) -> Tuple[str, List[Peer]]:
    """What a job reads or writes, in words, and who has the other end of that."""
    own = process_at(case.kernel, case.thread.proc)
    try:
        file = file_at(case.kernel, job.file)
    except (MemoryFault, LayoutError):
        return f"file {job.file:#x}", []
    return behind(case.kernel, file, own)[:2] if own is not None else (file.type.lower(), [])


def _daemons(case: Case) -> List[Thread]:
    return [t for t in case.builder.threads if t.comm.startswith("aiod") and t.kstack]


def _join(case: Case, node: Node, threads: List[Thread], certainty: Certainty, said: str) -> None:
    for thread in threads[:_MAX_JOBS]:
        case.builder.join(node, case.builder.thread(thread), EdgeKind.SERVED_BY, certainty, said)
    node.any = len(threads) > 1
