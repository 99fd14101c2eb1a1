"""A Kernel without memory: what commands ask of a kernel, answered out of text."""

from __future__ import annotations

from typing import Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from plugin.arch import BY_NAME
from plugin.captures.model import Capture, TextThread
from plugin.errors import MemoryFault
from plugin.kernel.proc import Thread
from plugin.session import Kernel, KernelFacts
from plugin.structs import Layouts
from plugin.structs.kernels import osreldate_of
from plugin.structs.layout import Layout
from plugin.targets import Symbol
from plugin.vmcore.memory import CarriedModule
from plugin.words import count

#: entries from user mode: a thread with one on its stack is a process's, not the kernel's own
_FROM_USER = frozenset(("ast",)).union(*(arch.stacks.entries for arch in BY_NAME.values()))
#: numbers for threads that were printed without one: above any tid of a kernel
_UNNUMBERED = 10_000_000
_P_KPROC = 0x4


class _NoMemory:
    """A target that holds no byte: every read faults, no symbol is known."""

    stable = True
    in_pages = False
    wire = None
    truncated = False
    message_buffer = b""
    page_size = 4096
    memory = None
    carried: Mapping[str, CarriedModule] = {}

    def __init__(self, arch: str, names: Sequence[str], paths: Sequence[str]) -> None:
        self.arch = arch
        self.description = ", ".join(names)
        self.files = paths

    def read(self, address: int, size: int) -> bytes:
        raise MemoryFault(address, "this is text: it holds no memory")

    def symbols(self, name: str) -> Sequence[Symbol]:
        return []

    def symbolize(self, address: int) -> Optional[Tuple[str, int]]:
        return None

    def types(self, notes: List[str]) -> None:
        return None

    def interrupted(self) -> bool:
        return False


class _NoTables:
    def constant(self, name: str) -> Optional[int]:
        return None

    def table(self, decoder: str) -> Optional[Dict[int, str]]:
        return None

    def table_kind(self, decoder: str) -> str:
        return ""

    def decoder(self, struct: str, member: str) -> str:
        return ""

    def alias(self, struct: str, path: str) -> List[str]:
        return []

    def head(self, symbol: str) -> Optional[Tuple[str, str]]:
        return None


class _NoStructs:
    def __init__(self, name: str) -> None:
        self.name = name

    def struct(self, name: str) -> Optional[Layout]:
        return None

    def structs(self) -> List[str]:
        return []


class TextKernel(Kernel):
    """The machine that a Capture tells of.  ``threads`` as ``plugin.kernel.proc`` yields them.

    ``paths``: the files it was read from, which no report may be written over.

    A thread printed without a number has its pid for one where that is free, else one above
    ``10000000``; one printed without an address has a negative number for it, which is shown
    nowhere.
    """

    def __init__(self, capture: Capture, paths: Sequence[str] = ()) -> None:
        kinds = ", ".join(capture.kinds) or "text"
        layouts = Layouts([_NoStructs(f"text: {kinds}")], _NoTables())
        variant: FrozenSet[str] = frozenset(capture.options)
        facts = KernelFacts(
            release=capture.release or "unknown",
            osreldate=capture.osreldate or osreldate_of(capture.release or ""),
            ident=capture.ident or "unknown",
            version=capture.version,
            variant=variant,
            page_size=4096,
        )
        arch = capture.arch if capture.arch in BY_NAME else "amd64"
        super().__init__(_NoMemory(arch, capture.files, paths), layouts, facts)
        self.arch = capture.arch or "unknown"
        self.capture = capture
        #: the text behind each thread, by the thread's tid
        self.texts: Dict[int, TextThread] = {}
        #: the thread first printed with each address, and those that were with another's
        self._at: Dict[int, int] = {}
        self._twice: List[Tuple[int, int]] = []
        self.threads: List[Thread] = [self._thread(text) for text in capture.everyone]

    def stack(self, thread: Thread) -> Sequence[str]:
        """The functions printed of a thread's stack, innermost first; [] where none was."""
        return self.texts[thread.tid].frames or ()

    @property
    def panicstr(self) -> Optional[str]:
        return self.capture.panic

    def start_command(self, *, deep: bool = False) -> None:
        super().start_command(deep=deep)
        capture = self.capture
        for what, source in capture.damage:
            self.warnings.add(str(source), None, what)
        for tid, address in self._twice:
            first = self._at[address]
            self.warnings.add(
                "threads", address, f"{first} and {tid} were both printed with this address"
            )
        if not self.threads:
            self.warnings.add("threads", None, "nothing in this text lists them")
        if capture.kept:
            said = ", ".join(f"{name} ({count(n, 'line')})" for name, n in capture.kept.items())
            self.warnings.add("DDB", None, f"recognised, not read further: {said}", partial=False)
        if capture.unread:
            self.warnings.add(
                str(capture.unread_first),
                None,
                f"{capture.unread} of {capture.lines} lines are of no listing that is known",
                partial=False,
            )

    def _thread(self, text: TextThread) -> Thread:
        tid = text.tid
        if tid is None or tid < 0:
            tid = text.pid if text.pid > 0 and text.pid not in self.texts else None
        if tid is None or tid in self.texts:
            tid = _UNNUMBERED + len(self.texts)
        self.texts[tid] = text
        address = text.address if text.address is not None else -tid
        if self._at.setdefault(address, tid) != tid:
            self._twice.append((tid, address))
            address = -tid
        frames = text.frames or ()
        own = text.pid == 0 or ("fork_exit" in frames and not _FROM_USER & set(frames))
        return Thread(
            address=address,
            tid=tid,
            pid=text.pid,
            comm=text.comm,
            name=text.name,
            proc=0,
            state=text.state or "unknown",
            cpu=text.cpu,
            wmesg=text.wmesg,
            wchan=text.wchan,
            lock=None,
            age=None,
            lastcpu=-1,
            flags=0,
            pflags=0,
            inhibitors=0,
            p_flag=_P_KPROC if own or text.kernel else 0,
            pcb=0,
            kstack=0,
            kstack_size=0,
            blocked=0,
        )
