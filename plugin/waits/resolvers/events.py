"""What system calls that wait for events wait for: kevent(2), select(2), poll(2), eventfd(2).

Benign by themselves.  Where every event can only come from other processes of this machine,
the wait is as stuck as those are; where one can come from outside (a timer, the net, a
terminal), it is not followed, but what it waits for is said.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.judge.files import behind, process_at
from plugin.kernel.event import Note, notes, selected
from plugin.kernel.file import Open, file_at, of_process
from plugin.kernel.proc import Proc, Thread
from plugin.session import Kernel
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.procs import MAX_PEERS, served_by_peers, threads_by_proc

#: what a label names one by one
_NAMED = 3


class Awaited(NamedTuple):
    """One thing waited for: ``procs`` the struct proc * that can bring it about, [] for nobody
    of this machine."""

    what: str
    procs: List[int]


def _of_file(case: Case, file: int, own: Proc) -> Awaited:
    kernel = case.kernel
    try:
        opened = file_at(kernel, file)
    except (MemoryFault, LayoutError):
        return Awaited(f"file {file:#x}, which cannot be read", [])
    what, peers, _ = behind(kernel, opened, own)
    return Awaited(what, [peer.proc.address for peer in peers])


def _of_note(case: Case, note: Note, own: Proc) -> Awaited:
    if note.on_file and note.target:
        found = _of_file(case, note.target, own)
        return found._replace(what=f"{note.filter} of {found.what}")
    if note.filter == "process":
        proc = process_at(case.kernel, note.target)
        if proc is not None:
            return Awaited(f"process {proc.pid} {proc.comm}", [proc.address])
    return Awaited(f"{note.filter} {note.ident}", [])


@resolver("kqueue")
def kqueue(case: Case) -> Optional[Verdict]:
    """kqread: whatever the kqueue's knotes are on."""
    own = process_at(case.kernel, case.thread.proc)
    if own is None:
        return None
    try:
        with case.kernel.noting() as trouble:
            found = notes(case.kernel, case.address)
    except (MemoryFault, LayoutError):
        return None
    # A knote that was not read may be on what comes from outside.
    rest = [Awaited("knotes that could not be read", [])] if trouble.partial else []
    each = (_of_note(case, note, own) for note in found)
    return _waits(case, chain(each, rest), len(found) + len(rest))


@resolver("select")
def select(case: Case) -> Optional[Verdict]:
    """select(2), poll(2): the files of the process that have the selinfos waited for."""
    own = process_at(case.kernel, case.thread.proc)
    with case.kernel.noting() as trouble:
        wanted = selected(case.kernel, case.thread)
    if own is None or wanted is None:
        return None
    rest = [Awaited("files that could not be read", [])] if trouble.partial else []
    return _waits(case, chain(rest, _selected(case, wanted, own)), len(wanted) + len(rest))


def _selected(case: Case, wanted: Sequence[int], own: Proc) -> Iterator[Awaited]:
    """What a thread's struct selinfos belong to; a file that has several of them once."""
    seen: Set[int] = set()
    starts, spans = _spans(case.kernel, own.address)
    for selinfo in wanted:
        place = bisect_right(starts, selinfo) - 1
        if place < 0 or selinfo >= spans[place].end:
            yield Awaited(f"selinfo {selinfo:#x}", [])
        elif spans[place].opened.file not in seen:
            opened = spans[place].opened
            seen.add(opened.file)
            awaited = _of_file(case, opened.file, own)
            yield awaited._replace(what=f"fd {opened.fd}, {awaited.what}")


class _Span(NamedTuple):
    start: int
    end: int
    opened: Open


#: structs with a selinfo inside that may be a file's f_data
_SELECTABLE = ("socket", "eventfd", "timerfd", "kqueue")


@cached(MEMORY)
def _spans(kernel: Kernel, proc: int) -> Tuple[List[int], List[_Span]]:
    """Where the structs lie that a process's files may be selected by, both ends of a pipe."""
    layouts = kernel.layouts
    found: List[_Span] = []
    for opened in of_process(kernel, proc):
        try:
            kind = file_at(kernel, opened.file).type
            struct = "pipe" if kind in ("PIPE", "FIFO") else kind.lower()
            if struct not in layouts or struct not in (*_SELECTABLE, "pipe"):
                continue
            at = [opened.data]
            if struct == "pipe":
                at.append(kernel.pointer(opened.data + layouts.offsetof("pipe", "pipe_peer")))
        except (MemoryFault, LayoutError):
            continue
        size = layouts.sizeof(struct)
        found += [_Span(start, start + size, opened) for start in at if start]
    found.sort()
    return [span.start for span in found], found


@resolver("eventfd")
def eventfd(case: Case) -> Optional[Verdict]:
    """efdrd, efdwr: whoever else has the eventfd open."""
    try:
        address = case.channel.container("eventfd", "efd_count")
    except LayoutError:
        return None
    own = process_at(case.kernel, case.thread.proc)
    opened = [f for f in of_process(case.kernel, case.thread.proc) if f.data == address]
    return _waits(case, [_of_file(case, opened[0].file, own)], 1) if own and opened else None


def _waits(case: Case, things: Iterable[Awaited], number: int) -> Verdict:
    """``number`` things: looked at until one can come from outside, which decides."""
    found: List[Awaited] = []
    for each in things:
        found.append(each)
        if len(found) >= _NAMED and not all(one.procs for one in found):
            break
    said = ", ".join(each.what for each in found[:_NAMED]) or "no event"
    more = f" and {number - _NAMED} more" if number > _NAMED else ""
    node = case.waits_for(
        case.channel_node(f'"{case.thread.wmesg}" for {said}{more}'), Certainty.PROVEN, case.said()
    )
    sleep = case.builder.sleeps.get(case.thread.address)
    timed = sleep is not None and sleep.timed
    if found and not timed and all(each.procs for each in found):
        by_proc = threads_by_proc(case.kernel)
        threads: Dict[int, Thread] = {
            thread.address: thread
            for each in found
            for proc in each.procs
            for thread in by_proc.get(proc, [])
        }
        # Of more than are looked at one may well be able to.
        if 0 < len(threads) <= MAX_PEERS:
            return served_by_peers(case, node, list(threads.values()), f"can bring about: {said}")
    outside = [each.what for each in found if not each.procs]
    what = "a timeout" if timed and not outside else (outside or ["no event"])[0]
    node.end = node.end or End(CauseKind.EXTERNAL, f"waits for {what}", case.said())
    return Verdict(Status.BENIGN, f"waits for {said}{more}", case.row)
