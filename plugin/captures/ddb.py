"""What ddb(4) prints, line by line: ps, chains, locks, stacks, vnodes, bufs, pages, GEOM.

Each reader recognises its command's output by the output itself, for prompts get lost and
commands come from scripts.  The formats are those of sys/ddb/db_ps.c, db_thread.c,
kern/subr_turnstile.c, subr_sleepqueue.c, subr_witness.c, vfs_subr.c, vfs_bio.c, geom_subr.c,
vm/vm_page.c, uma_core.c, from 6 to 16.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, Optional, Tuple

from plugin.arch import OTHERS, called
from plugin.captures.lines import Line, plain_name
from plugin.captures.model import (
    Blocked,
    Capture,
    Source,
    TextBuf,
    TextCpu,
    TextDomain,
    TextLock,
    TextMount,
    TextProvider,
    TextThread,
    TextVnode,
    TextZone,
)
from plugin.kernel.locks import lock_classes

#: reads one line of a section; False where the line is none of it
Reader = Callable[[Line], bool]

_HEX = r"(?:0x)?[0-9a-f]+"
_PS_ROW = re.compile(
    r"^ *(?P<id>\d+)(?: +(?P<ppid>\d+) +(?P<pgrp>\d+) +(?P<uid>\d+))? +"
    r"(?P<state>[A-Z][A-Za-z+<>?]*) *(?P<rest>.*)$"
)
_PS_WAIT = re.compile(
    r"^(?P<wmesg>\*?\S.{0,14}?) +(?P<wchan>(?:0x)?[0-9a-f]{6,16}) +(?P<cmd>\S.*)$"
)
_PS_CPU = re.compile(r"^CPU (?P<cpu>\d+) +(?P<cmd>\S.*)$")
# 5.x has the address of the uarea between proc and uid.
_OLD_STATES = r"(?:\[[^\]]*\](?:[^\[\]]+ (?:0x)?[0-9a-f]+\])?)+"
_PS_OLD = re.compile(
    r"^ *(?P<pid>\d+) +(?P<proc>[0-9a-f]{8,16})(?: +[0-9a-f]{8,16})? +(?P<uid>\d+) +"
    r"(?P<ppid>\d+) +(?P<pgrp>\d+) +[0-9a-f]{6,8} +(?:(?:stop|new|zomb|Unkn) *)?"
    rf"(?P<states>{_OLD_STATES}|\([^)]*\)|\S+) *(?P<cmd>.*)$"
)
_OLD_THREAD = re.compile(
    rf"^ +thread (?P<td>0x[0-9a-f]+) ksegrp \S+ *(?P<states>{_OLD_STATES}) *(?P<name>.*)$"
)
# "[SLPQ select 0xc0a1b044][SLP]", in a part of 6.x "[SLP]select 0xc0a1b044]".
_OLD_WAIT = re.compile(
    r"\[(?P<kind>SLPQ?|CVQ?|LOCK)\]? *(?P<wmesg>[^\[\]]*?) +(?P<wchan>(?:0x)?[0-9a-f]+)\]"
)
_TRACING = re.compile(
    r"^Tracing (?:command (?P<comm>.*?) )?pid (?P<pid>-?\d+)(?: tid (?P<tid>\d+))? td "
    r"(?P<td>0x[0-9a-f]+)"
)
_FRAME = re.compile(r"^(?P<function>[A-Za-z_.$][\w.$]*)\(.*?\) at (?P<at>[\w.$]+)")
_CHAIN = re.compile(r"^ ?thread (?P<tid>\d+) \(pid (?P<pid>-?\d+), (?P<name>.*?)\) (?P<what>.*)$")
_SLEEPING = re.compile(r'^(?:is )?sleeping on (?P<wchan>(?:0x)?[0-9a-f]+) "(?P<wmesg>.*)"')
_BLOCKED = re.compile(
    r'^(?:is )?blocked on lock (?P<lock>0x[0-9a-f]+)(?: \((?P<lc_name>[^)]*)\))? "(?P<name>.*)"'
)
_ON_LOCKMGR = re.compile(
    r"^(?:is )?blocked on lockmgr (?P<name>.*?) ?(?P<mode>EXCL|SHARED \(count (?P<count>\d+)\))"
)
_ON_SX = re.compile(
    r'^(?:is )?blocked on sx "(?P<name>.*)" (?P<mode>XLOCK|SLOCK \(count (?P<count>\d+)\))'
)
_RUNNING = re.compile(r"^(?:is )?running on CPU (?P<cpu>\d+)")
_WITNESS = re.compile(
    r"^Process (?P<pid>\d+) \((?P<comm>.*?)\) thread (?P<td>0x[0-9a-f]+) \((?P<tid>\d+)\)"
)
#: lc_name of every class that a lock_object can be of, "sleepable rm" before "rm"
_CLASSES = "|".join(sorted((kind.name for kind in lock_classes()), reverse=True))
_HELD = re.compile(
    rf"^(?P<mode>exclusive|shared) (?P<lc_name>{_CLASSES}) "
    r"(?P<name>.*?) \((?P<type>.*?)\) r = (?P<recurse>\d+) \((?P<lock>0x[0-9a-f]+)\)"
    r"(?: locked @ (?P<at>.*))?"
)
_VNODE = re.compile(
    r"^(?:vnode )?(?P<address>0x[0-9a-f]+): (?:tag (?P<tag>\w+), )?type (?P<type>V\w+)"
)
_LOCK_TYPE = re.compile(
    r"^\s*lock type (?P<name>.*?): (?P<mode>EXCL|SHARED|UNLOCKED)"
    # Up to 7.x it counts the recursion of an exclusive holder too, before naming it.
    r"(?: \(count \d+\)(?= by ))?"
    r"(?: by (?:thread (?P<td>0x[0-9a-f]+) \(pid (?P<pid>-?\d+)(?:, (?P<comm>.*?))?"
    r"(?:, tid (?P<tid>\d+))?\)|(?P<kern>KERNPROC)))?"
    r"(?: \(count (?P<count>\d+)\))?"
)
_INODE = re.compile(r"^\s*ino (?P<ino>\d+), on dev (?P<dev>\S+)")
_BUF = re.compile(r"^buf at (?P<address>0x[0-9a-f]+)")
_BUF_VP = re.compile(r"b_blkno = (?P<blkno>-?\d+).* b_vp = (?P<vp>0x[0-9a-f]+|0)")
# Up to 12.x without b_vp: v_bufobj lies inside the vnode.
_BUFOBJ = re.compile(r"b_bufobj = \((?P<bufobj>0x[0-9a-f]+)\)")
_BUF_COUNT = re.compile(r"b_error = (?P<error>\d+), b_bufsize = \d+, b_bcount = (?P<bcount>\d+)")
_CLASS = re.compile(r"^class: (?P<name>\S+) \((?P<address>0x[0-9a-f]+)\)")
_GEOM = re.compile(r"^ +geom: (?P<name>.*?) \((?P<address>0x[0-9a-f]+)\)")
_PROVIDER = re.compile(
    r"^ +provider: (?P<name>.*?) \((?P<address>0x[0-9a-f]+)\), "
    r"access=r(?P<r>\d+)w(?P<w>\d+)e(?P<e>\d+)(?:, flags= ?\(?(?P<flags>0x[0-9a-f]+)?)?"
)
_CONSUMER = re.compile(r"^ +consumer: (?P<address>0x[0-9a-f]+) \((?P<name>.*?)\)")
_CPUID = re.compile(r"^cpuid +=? ?(?P<cpu>\d+)")
_CURTHREAD = re.compile(
    r"^curthread +=? ?(?P<td>0x[0-9a-f]+): pid (?P<pid>\d+)(?: tid (?P<tid>\d+))?[^\"]*\""
    r"(?P<name>.*)\""
)
_MOUNT = re.compile(
    r"^(?P<address>0x[0-9a-f]+) (?P<from>\S.*?) on (?P<on>/.*?|\S+) \((?P<type>\w+)"
)
_DOMAIN = re.compile(r"^dom (?P<dom>\d+) page_cnt (?P<rest>.*)$")
_COUNTER = re.compile(r"^(?:vm_)?cnt\.(?P<name>v_\w+): (?P<value>\d+)")
_ZONE = re.compile(
    r"^ *(?P<name>\S.*?) +(?P<size>\d+) +(?P<used>\d+) +(?P<free>\d+) +(?P<requests>\d+) +"
    r"(?P<sleeps>\d+)\b"
)
_BANNER = re.compile(
    r"^FreeBSD (?:\S+ )?(?P<release>\d+\.\d+-[A-Z]\w*(?:-\w+)?)(?: (?P<rest>.*))?$"
)
_LISTED = re.compile(r"^ +(?P<tid>\d{5,}) \((?P<td>0x[0-9a-f]+)\) \(stack (?P<stack>0x[0-9a-f]+)\)")

_OTHER_MACHINES = frozenset((*OTHERS.values(), "armv6", "armv7"))
_STATES = {
    "R": "runnable", "L": "locked", "D": "sleeping", "S": "sleeping", "I": "iwait",
    "W": "swapped", "T": "suspended", "Z": "zombie", "N": "inactive",
}  # fmt: skip
_THREAD_STATES = {"Run": "running", "RunQ": "runnable", "CanRun": "runnable", "Inactv": "inactive"}
_FRAMES_KEPT = 64


def number(text: str) -> int:
    """An address as DDB prints it, with 0x or without."""
    return int(text, 16)


class Ddb:
    """The readers of DDB's output, over one Capture."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self._owner: Optional[TextThread] = None
        self._pid = -1
        self._comm = ""
        self._stack: Optional[TextThread] = None
        self._vnode: Optional[TextVnode] = None
        self._buf: Optional[TextBuf] = None
        self._lock: Optional[TextLock] = None
        self._class = self._geom = ""
        self._provider: Optional[TextProvider] = None
        self._cpu: Optional[TextCpu] = None
        self._chained: Optional[Tuple[int, str, Source]] = None

    # ps

    def ps(self, line: Line) -> bool:
        """A row of ``ps``: of a process, or of one thread of a threaded one."""
        match = _PS_ROW.match(line.text)
        if match is None:
            return self._ps_old(line)
        state, rest = match["state"], match["rest"].rstrip()
        if match["ppid"] is not None:
            pid = int(match["id"])
            self._pid = pid
            self.capture.parents[pid] = int(match["ppid"])
            if rest.startswith("(threaded)"):
                self._comm = plain_name(rest[10:].strip())
                return True
            thread = TextThread(None, pid, listed=line.source, raw_state=state)
            self._wait(thread, rest)
            thread.comm = thread.name
            thread.state = self._state(thread, state)
            self._comm = thread.comm
            self.capture.processes[pid] = thread
            return True
        thread = self.capture.thread(int(match["id"]), self._pid)
        thread.listed, thread.raw_state = line.source, state
        thread.comm = self._comm
        self._wait(thread, rest)
        thread.state = self._state(thread, state)
        return True

    def of_process(self, pid: int, comm: str) -> None:
        """The rows of threads that follow are of this process."""
        self._pid, self._comm = pid, comm

    def _ps_old(self, line: Line) -> bool:
        """6.x and before: states in brackets, a line "thread 0x... " for each of several."""
        match = _PS_OLD.match(line.text)
        if match is not None:
            pid = int(match["pid"])
            self.capture.parents[pid] = int(match["ppid"])
            self._pid, self._comm = pid, plain_name(match["cmd"].strip())
            if match["states"].startswith("("):
                return True
            thread = TextThread(
                None, pid, self._comm, self._comm, listed=line.source, raw_state=match["states"]
            )
            self._old_states(thread, match["states"])
            self.capture.processes[pid] = thread
            return True
        match = _OLD_THREAD.match(line.text)
        if match is None or self._pid < 0:
            return False
        # Threads of 6.x have no number in this listing: the address stands for it.
        address = number(match["td"])
        thread = self.capture.thread(-(address & 0x7FFFFFFF), self._pid)
        thread.address, thread.comm = address, self._comm
        thread.name, thread.listed = plain_name(match["name"]) or self._comm, line.source
        self._old_states(thread, match["states"])
        return True

    @staticmethod
    def _old_states(thread: TextThread, text: str) -> None:
        match = _OLD_WAIT.search(text)
        if match is not None:
            thread.state = "locked" if match["kind"] == "LOCK" else "sleeping"
            thread.wmesg, thread.wchan = match["wmesg"], number(match["wchan"])
            if match["kind"] == "LOCK":
                thread.lock_name = thread.wmesg
        for word in re.findall(r"\[([^\]]*)\]", text):
            parts = word.split()
            if not parts or thread.state in ("sleeping", "locked"):
                continue
            if parts[0] == "CPU":
                thread.state = "running"
                thread.cpu = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None
            elif parts[0] in ("RUNQ", "CANRUN", "Can"):
                thread.state = "runnable"
            elif parts[0] == "IWAIT":
                thread.state = "iwait"
            elif thread.state is None:
                thread.state = {"SWAP": "swapped", "SUSP": "suspended", "INACTIVE": "inactive"}.get(
                    parts[0]
                )

    def _wait(self, thread: TextThread, rest: str) -> None:
        match = _PS_CPU.match(rest)
        if match is not None:
            thread.cpu = int(match["cpu"])
            thread.name = plain_name(match["cmd"])
        else:
            match = _PS_WAIT.match(rest)
            if match is not None:
                wmesg = match["wmesg"]
                # A chain prints the whole message, ps the beginning of it.
                if thread.wmesg is None or not thread.wmesg.startswith(wmesg):
                    thread.wmesg, thread.wmesg_cut = wmesg, len(wmesg.lstrip("*")) >= 6
                thread.wchan = number(match["wchan"])
                if wmesg.startswith("*"):
                    thread.lock_name = wmesg[1:]
                thread.name = plain_name(match["cmd"])
            else:
                thread.name = plain_name(rest)
        thread.idle = thread.name.startswith("idle")
        thread.kernel = rest.rstrip().endswith("]")

    @staticmethod
    def _state(thread: TextThread, raw: str) -> Optional[str]:
        if thread.cpu is not None:
            return "running"
        known = _THREAD_STATES.get(raw)
        if known is not None:
            return known
        if raw[0] == "R" and thread.idle:
            return "running"
        return _STATES.get(raw[0])

    def threads(self, line: Line) -> bool:
        """A row of ``show threads``: tid, struct thread, stack, its innermost frame."""
        match = _LISTED.match(line.text)
        if match is None:
            return False
        thread = self.capture.thread(int(match["tid"]))
        thread.address = number(match["td"])
        return True

    # Stacks

    def begin_stack(self, line: Line) -> bool:
        match = _TRACING.match(line.text)
        if match is None:
            return False
        pid = int(match["pid"])
        if match["tid"] is None:
            thread = self.capture.processes.get(pid)
            if thread is None:
                thread = self.capture.thread(-(number(match["td"]) & 0x7FFFFFFF), pid)
        else:
            thread = self.capture.thread(int(match["tid"]), pid)
        thread.address = number(match["td"])
        if match["comm"] and not thread.comm:
            thread.comm = match["comm"]
        thread.frames, thread.stacked = [], line.source
        self._stack = thread
        return True

    def stack(self, line: Line) -> bool:
        """One frame; what an exception or a system call interrupted goes on behind "---"."""
        text = line.text
        match = _FRAME.match(text)
        if match is not None:
            if self._stack is not None:
                frames = self._stack.frames
                if frames is not None and len(frames) < _FRAMES_KEPT:
                    frames.append(match["function"])
            return True
        return text.startswith("---") or text.startswith(("\t", " ")) or not text

    def begin_own_stack(self, pid: int, tid: int, source: Source) -> None:
        """``[ thread pid N tid N ]``: whom the debugger stopped."""
        self.capture.thread(tid, pid)
        if self.capture.panicked_tid is None:
            self.capture.panicked_tid = tid

    # Chains

    def chains(self, line: Line) -> bool:
        """``show allchains``, ``lockchain``, ``sleepchain``: who waits, and the next who holds."""
        text = line.text
        if text.startswith("chain "):
            self._chained = None
            return True
        stripped = text.strip()
        if stripped.startswith("disowned (LK_KERNPROC)"):
            if self._chained is not None:
                lock = self.capture.locks[self._chained[1]]
                lock.kernproc = line.source
            return True
        match = _CHAIN.match(text)
        if match is None:
            return False
        tid, what = int(match["tid"]), match["what"]
        thread = self.capture.thread(tid, int(match["pid"]))
        self.named(thread, match["name"])
        if self._chained is not None:
            self.capture.locks[self._chained[1]].owners.setdefault(tid, line.source)
        self._chained = self._doing(thread, what, line.source)
        return True

    def _doing(
        self, thread: TextThread, what: str, source: Source
    ) -> Optional[Tuple[int, str, Source]]:
        assert thread.tid is not None
        match = _SLEEPING.match(what)
        if match is not None:
            thread.wmesg, thread.wmesg_cut = match["wmesg"], False
            thread.wchan = number(match["wchan"])
            thread.state = thread.state or "sleeping"
            thread.listed = thread.listed or source
            return None
        match = _BLOCKED.match(what)
        if match is not None:
            lock = self.lock(
                number(match["lock"]), match["lc_name"] or "lock", match["name"], source
            )
            thread.state = thread.state or "locked"
        else:
            match = _ON_LOCKMGR.match(what) or _ON_SX.match(what)
            if match is None:
                match = _RUNNING.match(what)
                if match is not None:
                    thread.cpu, thread.state = int(match["cpu"]), "running"
                elif "run queue" in what or what.endswith("can run"):
                    thread.state = "runnable"
                thread.listed = thread.listed or source
                return None
            lc_name = "lockmgr" if "lockmgr" in what[:24] else "sx"
            wchan = self._wchan_of(thread)
            if wchan is None:
                # Not addressed: the waiter's channel, if it is printed later, is the lock.
                lock = self.capture.locks.setdefault(
                    f"of {thread.tid}",
                    TextLock(f"of {thread.tid}", None, lc_name, match["name"], source=source),
                )
            else:
                lock = self.lock(wchan, lc_name, match["name"], source)
            lock.mode = match["mode"]
            if match["count"]:
                lock.shared = int(match["count"])
            thread.state = thread.state or "sleeping"
        thread.listed = thread.listed or source
        self.capture.blocked[thread.tid] = Blocked(thread.tid, lock.key, source)
        return thread.tid, lock.key, source

    def _wchan_of(self, thread: TextThread) -> Optional[int]:
        if thread.wchan is not None:
            return thread.wchan
        process = self.capture.processes.get(thread.pid)
        return process.wchan if process is not None else None

    def lock(self, address: int, lc_name: str, name: str, source: Source) -> TextLock:
        """The lock at an address, made if new."""
        key = f"{address:#x}"
        known = self.capture.locks.get(key)
        if known is None:
            known = self.capture.locks[key] = TextLock(key, address, lc_name, name, source=source)
        return known

    def named(self, thread: TextThread, name: str) -> None:
        """A name printed with a thread, where it has none yet."""
        if not thread.name:
            thread.name = name
        if not thread.comm:
            process = self.capture.processes.get(thread.pid)
            thread.comm = process.comm if process is not None else name
        thread.idle = thread.idle or name.startswith("idle")

    # WITNESS

    def witness(self, line: Line) -> bool:
        """``show alllocks``, ``show locks``: what each thread holds."""
        match = _WITNESS.match(line.text)
        if match is not None:
            self._owner = self.capture.thread(int(match["tid"]), int(match["pid"]))
            self._owner.address = number(match["td"])
            self._owner.comm = self._owner.comm or match["comm"]
            return True
        match = _HELD.match(line.text)
        if match is None:
            return False
        lock = self.lock(number(match["lock"]), match["lc_name"], match["name"], line.source)
        lock.mode = match["mode"]
        lock.taken = match["at"] or ""
        if self._owner is not None and self._owner.tid is not None:
            lock.owners.setdefault(self._owner.tid, line.source)
        return True

    # Vnodes and bufs

    def vnode(self, line: Line) -> bool:
        """``show lockedvnods``, ``show vnode``."""
        match = _VNODE.match(line.text)
        if match is not None:
            address = number(match["address"])
            self._vnode = self.capture.vnodes[address] = TextVnode(
                address, match["type"], match["tag"] or "", source=line.source
            )
            self._lock = None
            return True
        if self._vnode is None:
            return False
        match = _LOCK_TYPE.match(line.text)
        if match is not None:
            self._vnode.tag = self._vnode.tag or match["name"]
            self._vnode.lock = self._held(match, f"vnode {self._vnode.address:#x}", line)
            return True
        match = _INODE.match(line.text)
        if match is not None:
            self._vnode.inode, self._vnode.device = int(match["ino"]), match["dev"]
            return True
        return line.text.startswith((" ", "\t"))

    def _held(self, match: re.Match[str], key: str, line: Line) -> str:
        """A lockmgr lock as lockmgr_printinfo() shows it: its holder, or how many share it."""
        lock = self.capture.locks.get(key)
        if lock is None:
            lock = TextLock(key, None, "lockmgr", match["name"], source=line.source)
            self.capture.locks[key] = lock
        lock.mode = match["mode"]
        if match["count"]:
            lock.shared = int(match["count"])
        if match["kern"]:
            lock.kernproc = line.source
        if match["tid"] is not None:
            owner = self.capture.thread(int(match["tid"]), int(match["pid"]))
            if match["comm"]:
                owner.comm = owner.comm or match["comm"]
            owner.address = owner.address or number(match["td"])
            assert owner.tid is not None
            lock.owners.setdefault(owner.tid, line.source)
        elif match["td"] is not None:
            lock.held_by.append((number(match["td"]), int(match["pid"]), line.source))
        return key

    def buf(self, line: Line) -> bool:
        """``show lockedbufs``, ``show buffer``."""
        text = line.text
        match = _BUF.match(text)
        if match is not None:
            address = number(match["address"])
            self._buf = self.capture.bufs[address] = TextBuf(address, source=line.source)
            return True
        if self._buf is None:
            return False
        match = _LOCK_TYPE.match(text)
        if match is not None:
            self._buf.lock = self._held(match, f"buf {self._buf.address:#x}", line)
            return True
        match = _BUF_VP.search(text)
        if match is not None:
            self._buf.blkno = int(match["blkno"])
            self._buf.vnode = number(match["vp"]) or None
            return True
        match = _BUFOBJ.search(text)
        if match is not None:
            self._buf.bufobj = number(match["bufobj"]) or None
        match = _BUF_COUNT.match(text)
        if match is not None:
            self._buf.error, self._buf.bcount = int(match["error"]), int(match["bcount"])
            return True
        return text.startswith(("b_", ",", " ", "lock"))

    # GEOM, mounts, memory, CPUs

    def geom(self, line: Line) -> bool:
        """``show geom``."""
        text = line.text
        match = _CLASS.match(text)
        if match is not None:
            self._class, self._geom, self._provider = match["name"], "", None
            return True
        match = _GEOM.match(text)
        if match is not None:
            self._geom, self._provider = match["name"], None
            return True
        match = _PROVIDER.match(text)
        if match is not None:
            self._provider = TextProvider(
                match["name"],
                number(match["address"]),
                self._class,
                self._geom,
                (int(match["r"]), int(match["w"]), int(match["e"])),
                int(match["flags"] or "0", 16),
                at=line.source,
            )
            self.capture.providers[self._provider.address] = self._provider
            return True
        match = _CONSUMER.match(text)
        if match is not None:
            if self._provider is not None and text.startswith("      "):
                self._provider.consumers.append(number(match["address"]))
            return True
        return False

    def mount(self, line: Line) -> bool:
        """``show mount``."""
        match = _MOUNT.match(line.text)
        if match is None:
            return line.text.startswith("More info")
        self.capture.mounts.append(
            TextMount(
                number(match["address"]), match["from"], match["on"], match["type"], line.source
            )
        )
        return True

    def pages(self, line: Line) -> bool:
        """``show pageq``, ``show page``."""
        text = line.text
        match = _DOMAIN.match(text)
        if match is not None:
            words = ("page_cnt " + match["rest"]).split()
            counts: Dict[str, int] = {}
            for name, value in zip(words[::2], words[1::2]):
                if value.lstrip("-").isdigit():
                    counts[name] = int(value)
            self.capture.domains[int(match["dom"])] = TextDomain(
                int(match["dom"]), counts, line.source
            )
            return True
        match = _COUNTER.match(text)
        if match is not None:
            self.capture.counters[match["name"]] = int(match["value"])
            return True
        return text.startswith(("pq_", "PQ_"))

    def uma(self, line: Line) -> bool:
        """``show uma``."""
        match = _ZONE.match(line.text)
        if match is None:
            return False
        self.capture.zones.append(
            TextZone(
                match["name"],
                int(match["size"]),
                int(match["used"]),
                int(match["free"]),
                int(match["sleeps"]),
                line.source,
            )
        )
        return True

    def pcpu(self, line: Line) -> bool:
        """``show pcpu``, ``show allpcpu``."""
        text = line.text
        match = _CPUID.match(text)
        if match is not None:
            cpu = int(match["cpu"])
            self._cpu = self.capture.cpus[cpu] = TextCpu(cpu, at=line.source)
            return True
        match = _CURTHREAD.match(text)
        if match is not None and self._cpu is not None:
            self._cpu.comm = match["name"]
            self._cpu.idle = match["name"].startswith("idle")
            if match["tid"] is not None:
                tid = int(match["tid"])
                self._cpu.tid = tid
                thread = self.capture.thread(tid, int(match["pid"]))
                thread.address = number(match["td"])
                thread.cpu, thread.state = self._cpu.cpu, "running"
                self.named(thread, match["name"])
                thread.idle = self._cpu.idle
            return True
        return "=" in text or not text or text.startswith(("Current CPU", "spin locks held"))

    # Who it is

    def banner(self, line: Line) -> bool:
        """``FreeBSD 14.2-RELEASE #0 ...``: release, name of the kernel, machine."""
        match = _BANNER.match(line.text)
        if match is None:
            return False
        capture = self.capture
        capture.release = match["release"]
        capture.version = line.text
        words = (match["rest"] or "").split()
        for word in words:
            known = called(word)
            if known is not None or word in _OTHER_MACHINES:
                capture.arch = known.name if known is not None else word
        tail = [word.rsplit("/", 1)[-1] for word in words if "/sys/" in word or "/compile/" in word]
        named = [w for w in words if w.isupper() and w.replace("_", "").replace("-", "").isalnum()]
        capture.ident = tail[-1] if tail else (named[0] if named else capture.ident)
        return True
