"""What userland and debuggers print of threads: procstat, ps, top, kgdb, lldb."""

from __future__ import annotations

import re
from typing import Dict, List, Optional

from plugin.captures.lines import Line, plain_name
from plugin.captures.model import Capture, TextThread

_FRAME_OFFSET = re.compile(r"(?:^| )(?P<first>[A-Za-z_.][\w.]*\+0x[0-9a-f]+)(?: |$)")
_PROCSTAT = re.compile(r"^ *(?P<pid>\d+) +(?P<tid>\d+) (?P<rest>.*)$")
_MARKS = ("<running>", "<swapped>", "<exiting>", "-")
_STAT = re.compile(r"^[DIRSTLWZ][<>+ACEGHLNJSVWXsl]*$")
_KGDB_THREAD = re.compile(
    r"^\s*\*?\s*\d+\s+Thread (?P<tid>\d+)(?: \(LWP \d+\))?(?: \(PID=(?P<pid>\d+): "
    r"(?P<name>.*?)\))?\s"
)
_KGDB_SWITCH = re.compile(
    r"^(?:\[Switching to )?[Tt]hread \d+ \((?:LWP |Thread )(?P<tid>\d+)[^)]*\)"
)
_KGDB_FRAME = re.compile(
    r"^#(?P<number>\d+) +(?:0x[0-9a-f]+ in )?(?P<function>[A-Za-z_.][\w.]*) \("
)
_LLDB_THREAD = re.compile(
    r"^\s*\*?\s*thread #\d+(?:: tid = (?P<tid>\w+))?.*?name = '\(pid (?P<pid>\d+)\) (?P<name>.*?)'"
)
_LLDB_FRAME = re.compile(
    r"^\s*\*?\s*frame #(?P<number>\d+): (?:0x[0-9a-f]+ )?[\w.-]+`(?P<function>[A-Za-z_.][\w.]*)"
)


class Listings:
    """The readers of listings that are tables or stacks of their own."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self._columns: List[str] = []
        self._kstack = 0
        self._tdname = 0
        self._stack: Optional[TextThread] = None
        self._tops = 0

    # procstat -k, -kk

    def begin_procstat(self, line: Line) -> None:
        header = line.text
        self._kstack = header.find("KSTACK")
        self._tdname = header.find("TDNAME")

    def procstat(self, line: Line) -> bool:
        """PID TID COMM TDNAME KSTACK; frames innermost first, with offsets for -kk."""
        match = _PROCSTAT.match(line.text)
        if match is None:
            return False
        text = line.text
        first = _FRAME_OFFSET.search(text, match.start("rest"))
        if first is not None:
            names, stack = (
                text[match.start("rest") : first.start("first")],
                text[first.start("first") :],
            )
        elif 0 < self._kstack <= len(text):
            names, stack = text[match.start("rest") : self._kstack], text[self._kstack :]
        else:
            words = match["rest"].split()
            names, stack = " ".join(words[:2]), " ".join(words[2:])
        comm, name = self._names(names, match.start("rest"))
        thread = self.capture.thread(int(match["tid"]), int(match["pid"]))
        thread.comm, thread.name = comm, name if name not in ("", "-") else comm
        thread.idle = thread.name.startswith("idle")
        frames = [word.split("+")[0] for word in stack.split()]
        thread.stacked = line.source
        if frames and frames[0] in _MARKS:
            mark, frames = frames[0], []
            state = {"<running>": "running", "<swapped>": "swapped"}.get(mark)
            thread.state = thread.state or state
        thread.frames = frames
        if frames and thread.state is None:
            thread.state = _state_by_stack(frames)
        return True

    def _names(self, names: str, start: int) -> tuple[str, str]:
        at = self._tdname - start
        if 0 < at < len(names):
            return names[:at].strip(), names[at:].strip()
        parts = re.split(r" {2,}", names.strip(), maxsplit=1)
        if len(parts) == 2:
            return parts[0], parts[1].strip()
        words = names.split()
        half = len(words) // 2 or 1
        return " ".join(words[:half]), " ".join(words[half:])

    # ps, top

    def begin_table(self, line: Line) -> None:
        self._columns = line.text.split()

    def ps(self, line: Line) -> bool:
        """ps -axl, -axH and the like, by the columns its header names."""
        row = _row(self._columns, line.text)
        if row is None or not row.get("PID", "").isdigit():
            return False
        pid = int(row["PID"])
        tid = row.get("LWP", "")
        command = row.get("COMMAND", "").strip()
        comm = _command(command)
        if tid.isdigit():
            thread = self.capture.thread(int(tid), pid)
        elif pid in self.capture.processes:
            # ps -H without numbers: one line for each thread of the process.
            thread = TextThread(None, pid)
            self._tops += 1
            self.capture.processes[-self._tops] = thread
        else:
            thread = self.capture.processes[pid] = TextThread(None, pid)
        if row.get("PPID", "").isdigit():
            self.capture.parents[pid] = int(row["PPID"])
        thread.comm, thread.name = comm, thread.name or comm
        thread.idle = comm == "idle"
        thread.kernel = command.startswith("[")
        thread.listed = line.source
        stat = row.get("STAT", "")
        thread.raw_state = stat
        wmesg = row.get("MWCHAN") or row.get("WCHAN") or ""
        if wmesg not in ("", "-"):
            thread.wmesg, thread.wmesg_cut = wmesg, len(wmesg.lstrip("*")) >= 6
            if wmesg.startswith("*"):
                thread.lock_name = wmesg[1:]
        thread.state = _ps_state(stat, thread)
        return True

    def top(self, line: Line) -> bool:
        """top -SH: STATE is the wait message, or the CPU."""
        row = _row(self._columns, line.text)
        if row is None or not row.get("PID", "").isdigit():
            return False
        command = row.get("COMMAND", "").strip()
        self._tops += 1
        comm, _, name = command.partition("{")
        thread = TextThread(
            None, int(row["PID"]), plain_name(comm), name.rstrip("}") or plain_name(comm)
        )
        state = row.get("STATE", "")
        thread.listed = line.source
        thread.idle = thread.comm == "idle"
        if state.startswith("CPU") and state[3:].isdigit():
            thread.state, thread.cpu = "running", int(state[3:])
        elif state == "RUN":
            thread.state = "runnable"
        elif state.startswith("*"):
            thread.state, thread.lock_name, thread.wmesg = "locked", state[1:], state
            thread.wmesg_cut = True
        elif state not in ("-", "") or thread.comm:
            thread.state, thread.wmesg, thread.wmesg_cut = "sleeping", state, len(state) >= 6
        self.capture.processes[-self._tops] = thread
        return True

    # Debuggers

    def debugger(self, line: Line) -> bool:
        """kgdb's and lldb's "info threads", "thread apply all bt", "bt all"."""
        text = line.text
        match = _KGDB_FRAME.match(text)
        if match is None:
            match = _LLDB_FRAME.match(text)
        if match is not None:
            if self._stack is not None:
                if match["number"] == "0":
                    self._stack.frames, self._stack.stacked = [], line.source
                if self._stack.frames is not None and len(self._stack.frames) < 64:
                    self._stack.frames.append(match["function"])
                    if self._stack.state is None:
                        self._stack.state = _state_by_stack(self._stack.frames)
            return True
        match = _KGDB_SWITCH.match(text)
        if match is not None:
            self._stack = self.capture.thread(int(match["tid"]))
            return True
        match = _KGDB_THREAD.match(text)
        if match is not None:
            thread = self.capture.thread(int(match["tid"]), int(match["pid"] or -1))
            if match["name"]:
                comm, _, name = match["name"].partition("/")
                thread.comm, thread.name = comm, name or comm
                thread.idle = thread.name.startswith("idle")
            thread.listed = thread.listed or line.source
            return True
        match = _LLDB_THREAD.match(text)
        if match is not None:
            tid = match["tid"]
            comm, _, name = match["name"].partition("/")
            if tid:
                self._stack = self.capture.thread(int(tid, 0), int(match["pid"]))
            else:
                self._tops += 1
                self._stack = self.capture.processes[-self._tops] = TextThread(
                    None, int(match["pid"])
                )
            self._stack.comm, self._stack.name = comm, name or comm
            return True
        # Arguments go over several lines.
        return text.startswith((" ", "\t"))


def _state_by_stack(frames: List[str]) -> Optional[str]:
    """What a stack shows of the thread's state: None where its innermost frame says nothing."""
    inner = frames[:6]
    if any(
        f.startswith(("turnstile_wait", "__mtx_lock", "_mtx_lock", "__rw_", "_rw_")) for f in inner
    ):
        return "locked" if "turnstile_wait" in inner else None
    if any(f.startswith("sleepq_") or f in ("_sleep", "msleep", "_cv_wait") for f in inner):
        return "sleeping"
    return None


def _row(columns: List[str], text: str) -> Optional[Dict[str, str]]:
    """Words under their headers, the rest under the last; STAT puts a spaced MWCHAN right."""
    words = text.split(None, max(len(columns) - 1, 0))
    if len(words) < len(columns) - 1:
        return None
    if "STAT" in columns and "MWCHAN" in columns:
        want = columns.index("STAT")
        have = text.split()
        found = next(
            (i for i in range(want, min(want + 4, len(have))) if _STAT.match(have[i])), None
        )
        if found is None:
            return None
        if found != want:
            extra = found - want
            at = columns.index("MWCHAN")
            have[at : at + extra + 1] = [" ".join(have[at : at + extra + 1])]
            words = [*have[: len(columns) - 1], " ".join(have[len(columns) - 1 :])]
    return dict(zip(columns, words))


def _ps_state(stat: str, thread: TextThread) -> Optional[str]:
    if not stat:
        return "sleeping" if thread.wmesg else None
    letter = stat[0]
    if letter == "R":
        return "running" if thread.idle else "runnable"
    return {
        "D": "sleeping",
        "S": "sleeping",
        "I": "sleeping",
        "L": "locked",
        "T": "suspended",
        "Z": "zombie",
        "W": "iwait",
    }.get(letter)


def _command(text: str) -> str:
    """The name of the program out of ps's COMMAND."""
    text = text.strip()
    if text.startswith("["):
        inner = text[1:].split("]")[0]
        return inner.split("/")[0]
    word = text.split()[0] if text else ""
    return word.rsplit("/", 1)[-1].rstrip(":")
