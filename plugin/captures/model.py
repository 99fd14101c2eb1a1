"""What text tells of a machine, each fact with the line that says it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, NamedTuple, Optional, Set, Tuple


class Source(NamedTuple):
    """Where a fact was read: a file as the user named it, and the line's number from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class TextThread:
    """A thread as text shows it.  ``tid`` None where only its process was printed.

    ``state`` is a word of the JSON contract, or None where no listing shows the thread.
    ``wmesg`` may be cut by the program that printed it: ``wmesg_cut`` says so.
    ``frames``: function names, innermost first; None where no stack was printed.
    """

    tid: Optional[int]
    pid: int
    comm: str = ""
    name: str = ""
    state: Optional[str] = None
    #: the letters DDB or ps printed
    raw_state: str = ""
    wmesg: Optional[str] = None
    wmesg_cut: bool = False
    wchan: Optional[int] = None
    address: Optional[int] = None
    cpu: Optional[int] = None
    #: the lock a turnstile is for: DDB's "*name" in ps, or "blocked on" in a chain
    lock_name: Optional[str] = None
    frames: Optional[List[str]] = None
    listed: Optional[Source] = None
    stacked: Optional[Source] = None
    idle: bool = False
    #: printed in brackets: a process of the kernel's own
    kernel: bool = False

    @property
    def label(self) -> str:
        """comm, or comm/name where the thread has a name of its own."""
        if self.name and self.name != self.comm:
            return f"{self.comm}/{self.name}" if self.comm else self.name
        return self.comm or self.name or "?"


@dataclass
class TextLock:
    """A lock that text names.  ``address`` None where only its name was printed.

    ``owners``: tids; ``shared``: how many hold it shared, where that was printed;
    ``kernproc``: disowned (LK_KERNPROC), an I/O in flight ends it.
    """

    key: str
    address: Optional[int]
    lc_name: str
    name: str
    owners: Dict[int, Source] = field(default_factory=dict)
    #: holders printed by address and pid alone, as before 10.x: settled once all is read
    held_by: List[Tuple[int, int, Source]] = field(default_factory=list)
    #: those of them that no tid was printed for
    holders: List[Tuple[TextThread, Source]] = field(default_factory=list)
    shared: Optional[int] = None
    mode: str = ""
    kernproc: Optional[Source] = None
    source: Optional[Source] = None
    #: where it was taken, by WITNESS
    taken: str = ""


class Blocked(NamedTuple):
    """``tid`` waits for the lock of that key: said by a chain, WITNESS or ps."""

    tid: int
    lock: str
    source: Source


@dataclass
class TextVnode:
    address: int
    type: str = ""
    tag: str = ""
    lock: Optional[str] = None
    device: str = ""
    inode: Optional[int] = None
    source: Optional[Source] = None


@dataclass
class TextBuf:
    address: int
    vnode: Optional[int] = None
    #: b_bufobj, where b_vp was not printed
    bufobj: Optional[int] = None
    blkno: Optional[int] = None
    bcount: Optional[int] = None
    error: int = 0
    lock: Optional[str] = None
    source: Optional[Source] = None


class TextMount(NamedTuple):
    address: Optional[int]
    source: str
    on: str
    fstype: str
    at: Source


@dataclass
class TextProvider:
    name: str
    address: int
    class_name: str
    geom: str
    access: Tuple[int, int, int]
    flags: int = 0
    consumers: List[int] = field(default_factory=list)
    at: Optional[Source] = None


class TextZone(NamedTuple):
    name: str
    size: int
    used: int
    free: int
    sleeps: int
    at: Source


@dataclass
class TextDomain:
    """A memory domain's page queues; None where not printed."""

    index: int
    counts: Dict[str, int]
    at: Source


@dataclass
class TextCpu:
    cpu: int
    tid: Optional[int] = None
    comm: str = ""
    idle: bool = False
    at: Optional[Source] = None


@dataclass
class Capture:
    """One state of one machine."""

    files: List[str] = field(default_factory=list)
    #: kinds of text met, in order: "ddb", "procstat", ...
    kinds: List[str] = field(default_factory=list)
    release: Optional[str] = None
    osreldate: int = 0
    arch: Optional[str] = None
    ident: Optional[str] = None
    version: str = ""
    panic: Optional[str] = None
    panic_at: Optional[Source] = None
    options: Set[str] = field(default_factory=set)
    hostname: str = ""
    threads: Dict[int, TextThread] = field(default_factory=dict)
    #: processes of one thread, known by pid alone so far
    processes: Dict[int, TextThread] = field(default_factory=dict)
    parents: Dict[int, int] = field(default_factory=dict)
    locks: Dict[str, TextLock] = field(default_factory=dict)
    blocked: Dict[int, Blocked] = field(default_factory=dict)
    vnodes: Dict[int, TextVnode] = field(default_factory=dict)
    bufs: Dict[int, TextBuf] = field(default_factory=dict)
    mounts: List[TextMount] = field(default_factory=list)
    providers: Dict[int, TextProvider] = field(default_factory=dict)
    zones: List[TextZone] = field(default_factory=list)
    domains: Dict[int, TextDomain] = field(default_factory=dict)
    counters: Dict[str, int] = field(default_factory=dict)
    cpus: Dict[int, TextCpu] = field(default_factory=dict)
    modules: Set[str] = field(default_factory=set)
    msgbuf: List[str] = field(default_factory=list)
    panicked_tid: Optional[int] = None
    #: the stack printed with the panic (KDB: stack backtrace), innermost first
    panic_frames: List[str] = field(default_factory=list)
    #: the whole of what can be missed: which listings were complete
    seen: Set[str] = field(default_factory=set)
    lines: int = 0
    #: lines that no reader understood
    unread: int = 0
    #: commands whose output is recognised and not read further, with how many lines
    kept: Dict[str, int] = field(default_factory=dict)
    unread_first: Optional[Source] = None
    #: listings that broke off, or contradict one another
    damage: List[Tuple[str, Source]] = field(default_factory=list)

    def note_kind(self, kind: str) -> None:
        if kind not in self.kinds:
            self.kinds.append(kind)

    def thread(self, tid: int, pid: Optional[int] = None) -> TextThread:
        """The thread of that tid, made if new."""
        known = self.threads.get(tid)
        if known is None:
            known = self.threads[tid] = TextThread(tid, pid if pid is not None else -1)
        elif pid is not None and known.pid < 0:
            known.pid = pid
        return known

    def is_empty(self) -> bool:
        return not (self.threads or self.processes or self.panic)

    def settle(self) -> None:
        """Join what was printed of a process with the thread it turned out to be."""
        by_pid: Dict[int, List[TextThread]] = {}
        for thread in self.threads.values():
            by_pid.setdefault(thread.pid, []).append(thread)
        for pid, process in list(self.processes.items()):
            mine = by_pid.get(pid, [])
            open_ones = [t for t in mine if not t.raw_state or len(mine) == 1]
            if len(open_ones) == 1 and (len(mine) == 1 or process.comm):
                _merge(open_ones[0], process)
                del self.processes[pid]
            elif mine and not open_ones:
                # Every thread of it was listed by itself: this is the same said again.
                del self.processes[pid]
        for thread in self.threads.values():
            if thread.state is None and thread.pid >= 0 and thread.cpu is not None:
                thread.state = "running"
        self._settle_holders()

    def _settle_holders(self) -> None:
        """Name the holders that were printed by the address of their thread: that thread,
        or the only one of a process whose threads have no address in this text."""
        by_address = {t.address: t for t in self.everyone if t.address is not None}
        by_pid: Dict[int, List[TextThread]] = {}
        for thread in self.everyone:
            by_pid.setdefault(thread.pid, []).append(thread)
        for lock in self.locks.values():
            for address, pid, source in lock.held_by:
                holder = by_address.get(address)
                if holder is None:
                    mine = by_pid.get(pid, ())
                    holder = mine[0] if len(mine) == 1 and mine[0].address is None else None
                if holder is None or holder.pid != pid:
                    continue
                if holder.tid is not None:
                    lock.owners.setdefault(holder.tid, source)
                else:
                    lock.holders.append((holder, source))
            lock.held_by.clear()

    @property
    def everyone(self) -> List[TextThread]:
        """Threads, and processes whose thread has no number; by tid, then pid."""
        numbered = sorted(self.threads.values(), key=lambda t: t.tid or 0)
        return numbered + sorted(self.processes.values(), key=lambda t: t.pid)


def _merge(thread: TextThread, process: TextThread) -> None:
    thread.state = process.state
    thread.raw_state = process.raw_state
    if process.wmesg and not (thread.wmesg or "").startswith(process.wmesg):
        thread.wmesg, thread.wmesg_cut = process.wmesg, process.wmesg_cut
    thread.wchan = thread.wchan or process.wchan
    thread.lock_name = thread.lock_name or process.lock_name
    if thread.cpu is None:
        thread.cpu = process.cpu
    thread.comm = process.comm or thread.comm
    thread.name = thread.name or process.name
    thread.listed = thread.listed or process.listed
    thread.kernel = thread.kernel or process.kernel
    if thread.frames is None:
        thread.frames, thread.stacked = process.frames, process.stacked
