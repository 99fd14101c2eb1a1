"""What system calls that wait for events wait for: kevent(2), select(2), poll(2), eventfd(2).

Benign by themselves.  Where every event can only come from other processes of this machine,
the wait is as stuck as those are; where one can come from outside (a timer, the net, a
terminal), it is not followed, but what it waits for is said.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence

from plugin.errors import LayoutError, MemoryFault
from plugin.judge.files import behind, process_at
from plugin.kernel.event import Note, notes, selected
from plugin.kernel.file import Open, file_at, of_process
from plugin.kernel.proc import Proc, Thread
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.procs import served_by_peers, threads_by_proc

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
    return _waits(case, [*(_of_note(case, note, own) for note in found), *rest])


@resolver("select")
def select(case: Case) -> Optional[Verdict]:
    """select(2), poll(2): the files of the process that have the selinfos waited for."""
    own = process_at(case.kernel, case.thread.proc)
    with case.kernel.noting() as trouble:
        wanted = selected(case.kernel, case.thread)
    if own is None or wanted is None:
        return None
    found = [Awaited("files that could not be read", [])] if trouble.partial else []
    seen: Dict[int, None] = {}
    files = of_process(case.kernel, case.thread.proc)
    for selinfo in wanted:
        opened = _with(case, files, selinfo)
        if opened is None:
            found.append(Awaited(f"selinfo {selinfo:#x}", []))
        elif opened.file not in seen:
            seen[opened.file] = None
            awaited = _of_file(case, opened.file, own)
            found.append(awaited._replace(what=f"fd {opened.fd}, {awaited.what}"))
    return _waits(case, found)


#: structs with a selinfo inside that may be a file's f_data
_SELECTABLE = ("socket", "eventfd", "timerfd", "kqueue", "mqueue")


def _with(case: Case, files: Sequence[Open], selinfo: int) -> Optional[Open]:
    """The descriptor whose pipe or socket a struct selinfo lies in."""
    layouts = case.kernel.layouts
    for opened in files:
        try:
            kind = file_at(case.kernel, opened.file).type
        except (MemoryFault, LayoutError):
            continue
        at = [(opened.data, kind.lower())]
        if kind in ("PIPE", "FIFO") and "pipe" in layouts:
            at = [(opened.data, "pipe")]
            try:
                peer = case.kernel.pointer(opened.data + layouts.offsetof("pipe", "pipe_peer"))
                at.append((peer, "pipe"))
            except (MemoryFault, LayoutError):
                pass
        for data, struct in at:
            known = struct == "pipe" or (struct in _SELECTABLE and struct in layouts)
            if known and data <= selinfo < data + layouts.sizeof(struct):
                return opened
    return None


@resolver("eventfd")
def eventfd(case: Case) -> Optional[Verdict]:
    """efdrd, efdwr: whoever else has the eventfd open."""
    try:
        address = case.channel.container("eventfd", "efd_count")
    except LayoutError:
        return None
    own = process_at(case.kernel, case.thread.proc)
    opened = [f for f in of_process(case.kernel, case.thread.proc) if f.data == address]
    return _waits(case, [_of_file(case, opened[0].file, own)]) if own and opened else None


def _waits(case: Case, found: List[Awaited]) -> Verdict:
    said = ", ".join(each.what for each in found[:_NAMED]) or "no event"
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
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
        if threads:
            return served_by_peers(case, node, list(threads.values()), f"can bring about: {said}")
    outside = [each.what for each in found if not each.procs]
    what = "a timeout" if timed and not outside else (outside or ["no event"])[0]
    node.end = node.end or End(CauseKind.EXTERNAL, f"waits for {what}", case.said())
    return Verdict(Status.BENIGN, f"waits for {said}{more}", case.row)
