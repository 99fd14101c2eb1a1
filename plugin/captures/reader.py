"""Text files into Captures: each line to the reader of the section it belongs to.

Sections are told by what they look like.  A new entry into the debugger or a new boot
begins another Capture; several files of one machine make one together.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from plugin.captures.ddb import Ddb
from plugin.captures.lines import Line, read_lines
from plugin.captures.listings import Listings
from plugin.captures.model import Capture
from plugin.captures.shown import Shown
from plugin.errors import WchanError

Reader = Callable[[Line], bool]

_PROMPT = re.compile(r"^(?:db(?::\d+:[^>]*)?>|KDB: debugger>|#####) ?(?P<command>.*)$")
_GDB_PROMPT = re.compile(r"^\((?:k?gdb|lldb)\) ?(?P<command>.*)$")
_PANIC = re.compile(r"^(?:Fatal )?(?:panic|panicstr)(?: =|:) (?P<text>.+)$")
_FATAL = re.compile(r"^Fatal trap \d+: .*")
_ENTER = re.compile(r"^KDB: (?:enter|stack backtrace)")
_PANIC_FRAME = re.compile(
    r"^(?:#\d+ 0x[0-9a-f]+ at (?P<short>[A-Za-z_][\w.]*)|(?P<long>[A-Za-z_][\w.]*)\(.*?\) at )"
)
_WITNESS_ON = "WITNESS option enabled"
_MODULE = re.compile(r"\b(?P<name>[a-z]\w+)\.ko\b")
#: commands of DDB, as far as one types them
_DDB = re.compile(
    r"^(?:sh(?:o|ow)?|show/\w+|ps|bt|t(?:r|race)?|where|alltrace|x(?:/\w+)?|examine(?:/\w+)?|p(?:rint)?|"
    r"textdump|capture|dump|doadump|panic|run|script|scripts|acttrace|findstack|call|"
    r"thread|watchdog|gdb|kill|step|s|dwatch|break|b)(?:/\w+)?(?: |$)"
)
#: those whose every line a reader should know: what is left of them is unread
_READ = frozenset(
    (
        *("ps", "bt", "t", "tr", "trace", "where", "alltrace", "show allchains", "show lockchain"),
        *("show alllocks", "show locks", "show lockedvnods", "show lockedbufs", "show sleepchain"),
        *("show geom", "show uma", "show pageq", "show allpcpu", "show pcpu", "show threads"),
    )
)
_KEPT_COMMANDS = 100
_KEPT = 20_000
_FRAMES = 64


class CaptureReader:
    """Feeds lines; ``captures`` is what came of them, the last state last.

    ``keep``: how many states are kept, the earlier ones dropped as they end; 0 for all.
    """

    def __init__(self, interrupted: Callable[[], bool] = lambda: False, keep: int = 0) -> None:
        self.captures: List[Capture] = []
        self._ddb_prompts = False
        self._last: Optional[Line] = None
        self._keep = keep
        self._interrupted = interrupted
        self._begin(Capture())

    def _begin(self, capture: Capture) -> None:
        if self._keep:
            del self.captures[: max(len(self.captures) - self._keep + 1, 0)]
        self.captures.append(capture)
        self.capture = capture
        self.ddb = Ddb(capture)
        self.shown = Shown(self.ddb)
        self.listings = Listings(capture)
        self._section: Optional[Reader] = None
        self._section_name = ""
        self._prompted = False
        self._openers: Dict[str, List[Tuple[str, str, Reader, str]]] = {}
        ddb, shown, listings = self.ddb, self.shown, self.listings
        # By the line's first character that is no space: what it starts with, the section's
        # name, its reader, the kind of text.
        for start, name, reader, kind in (
            ("pid  ppid  pgrp", "ps", ddb.ps, "ddb"),
            ("pid   proc", "ps", ddb.ps, "ddb"),
            ("chain ", "allchains", ddb.chains, "ddb"),
            ("thread ", "chain", ddb.chains, "ddb"),
            ("Tracing ", "alltrace", ddb.stack, "ddb"),
            ("Process ", "alllocks", ddb.witness, "ddb"),
            ("Process ", "proc", shown.proc, "ddb"),
            ("Thread ", "thread", shown.thread, "ddb"),
            ("Lock: 0x", "turnstile", shown.turnstile, "ddb"),
            ("Wait channel: 0x", "sleepq", shown.sleepq, "ddb"),
            ("exclusive ", "locks", ddb.witness, "ddb"),
            ("shared ", "locks", ddb.witness, "ddb"),
            ("vnode 0x", "lockedvnods", ddb.vnode, "ddb"),
            ("0x", "vnode", ddb.vnode, "ddb"),
            ("buf at 0x", "lockedbufs", ddb.buf, "ddb"),
            ("class: ", "geom", ddb.geom, "ddb"),
            ("class: ", "lock", shown.lock, "ddb"),
            ("cpuid ", "allpcpu", ddb.pcpu, "ddb"),
            ("dom ", "pageq", ddb.pages, "ddb"),
            ("pq_free", "pageq", ddb.pages, "ddb"),
            ("vm_cnt.", "page", ddb.pages, "ddb"),
            ("cnt.v_", "page", ddb.pages, "ddb"),
            ("Zone   Size", "uma", ddb.uma, "ddb"),
            ("Zone     Size", "uma", ddb.uma, "ddb"),
            ("PID    TID COMM", "procstat", listings.procstat, "procstat"),
            ("PID    TID ", "procstat", listings.procstat, "procstat"),
            ("UID", "ps", listings.ps, "ps"),
            ("USER", "ps", listings.ps, "ps"),
            ("PID USERNAME", "top", listings.top, "top"),
            ("PID   JID USERNAME", "top", listings.top, "top"),
            ("#0 ", "stack", listings.debugger, "kgdb"),
            ("Thread ", "threads", listings.debugger, "kgdb"),
            ("Id   Target Id", "header", listings.debugger, "kgdb"),
            ("[Switching to thread", "threads", listings.debugger, "kgdb"),
            ("* thread #", "threads", listings.debugger, "lldb"),
            ("thread #", "threads", listings.debugger, "lldb"),
        ):
            self._openers.setdefault(start[0], []).append((start, name, reader, kind))

    def feed(self, lines: Iterable[Line]) -> None:
        for line in lines:
            self._line(line)
            if not line.number % 4096 and self._interrupted():
                self.capture.damage.append(("interrupted: what follows was not read", line.source))
                return

    def end(self) -> None:
        """A file has ended: within the output of a command of DDB, where prompts are shown?"""
        if self._ddb_prompts and self._last is not None:
            name = self._section_name or " ".join(self.shown.command.split()[:2])
            open_ = self._section is not None or _DDB.match(self.shown.command)
            if open_ and name and name not in ("msgbuf", "backtrace"):
                said = f"the text ends within {name}, no prompt follows: it may be cut"
                self.capture.damage.append((said, self._last.source))
        self._close()
        self.shown.command = ""
        self._ddb_prompts, self._last = False, None

    def _line(self, line: Line) -> None:
        self.capture.lines += 1
        self._last = line
        text = line.text
        if not text:
            return
        first = text[0]
        if first in "dK#(" and self._prompt(line):
            return
        section = self._section
        if section is not None and self._section_name == "msgbuf":
            self._message(line)
            return
        if section is not None and self._stays(text) and section(line):
            return
        if self._opens(line):
            return
        if section is not None and section(line):
            return
        self._outside(line)

    def _stays(self, text: str) -> bool:
        """False where a line of the open section may as well begin another one."""
        return not text.startswith(
            (
                *("Tracing ", "chain ", "class: ", " class: ", "vnode 0x", "buf at 0x", "cpuid "),
                *("Lock: 0x", "Wait channel: 0x", "Thread ", "Process "),
            )
        )

    def _prompt(self, line: Line) -> bool:
        match = _PROMPT.match(line.text)
        kind = "ddb"
        if match is None:
            match, kind = _GDB_PROMPT.match(line.text), "kgdb"
            if match is None:
                return False
        command = match["command"].strip()
        self._ddb_prompts |= line.text.startswith("db")
        self._close()
        self.shown.command = command if kind == "ddb" else ""
        if command:
            self.capture.seen.add(command)
            self.capture.note_kind(kind)
            self._prompted = True
            rest = command
            # A script's prompt may stand before the output itself.
            if rest.startswith(("continue", "reset", "reboot")) or rest in ("c", "co", "cont"):
                self._leave()
        return True

    def _leave(self) -> None:
        """The machine ran on: what comes is another state."""
        if self.capture.threads or self.capture.processes:
            self._next()

    def _next(self) -> None:
        old = self.capture
        fresh = Capture(
            release=old.release, osreldate=old.osreldate, arch=old.arch, ident=old.ident
        )
        fresh.version, fresh.options, fresh.modules = old.version, old.options, old.modules
        self._begin(fresh)

    def _close(self) -> None:
        self._section, self._section_name = None, ""

    def _opens(self, line: Line) -> bool:
        stripped = line.text.lstrip()
        for start, name, reader, kind in self._openers.get(stripped[0], ()):
            if not stripped.startswith(start):
                continue
            if kind in ("ps", "top") and not self._table(line, kind):
                continue
            if name == "alltrace":
                if not self.ddb.begin_stack(line):
                    continue
            elif name == "procstat":
                self.listings.begin_procstat(line)
            elif _reads_itself(kind, name) and not reader(line):
                continue
            self._section, self._section_name = reader, name
            self.capture.note_kind(kind)
            self.capture.seen.add(name if kind == "ddb" else kind)
            return True
        return False

    def _table(self, line: Line, kind: str) -> bool:
        words = line.text.split()
        if "PID" not in words or words[-1] not in ("COMMAND", "CMD"):
            return False
        self.listings.begin_table(line)
        return True

    def _message(self, line: Line) -> None:
        """A line of the message buffer, until the debugger's next prompt."""
        if len(self.capture.msgbuf) < _KEPT:
            self.capture.msgbuf.append(line.text)
        self._told(line)

    def _backtrace(self, line: Line) -> bool:
        """A frame of what KDB_TRACE prints with a panic: "#1 0x... at f+0x1", "f() at f+0x1"."""
        match = _PANIC_FRAME.match(line.text)
        if match is None:
            return line.text.startswith(("---", "time = ", "cpuid = "))
        if len(self.capture.panic_frames) < _FRAMES:
            self.capture.panic_frames.append(match["short"] or match["long"])
        return True

    def _outside(self, line: Line) -> None:
        text = line.text
        if text.startswith("msgbufp = "):
            self._section, self._section_name = self._never, "msgbuf"
            self.capture.note_kind("ddb")
            return
        if text.startswith("[") and "thread pid" in text:
            match = re.match(r"^\[ ?thread pid (\d+) tid (\d+) ?\]", text)
            if match is not None:
                self.ddb.begin_own_stack(int(match[1]), int(match[2]), line.source)
                return
        if self._told(line) or self.ddb.mount(line) or self.ddb.threads(line):
            return
        command = self.shown.command
        if text == command:
            return
        name = " ".join(command.split()[:2])
        kept = self.capture.kept
        room = name in kept or len(kept) < _KEPT_COMMANDS
        if room and _DDB.match(command) and name not in _READ:
            # The command's own output, which no reader takes further.
            kept[name] = kept.get(name, 0) + 1
            return
        self.capture.unread += 1
        if self.capture.unread_first is None:
            self.capture.unread_first = line.source

    @staticmethod
    def _never(line: Line) -> bool:
        return False

    def _told(self, line: Line) -> bool:
        """What a console says between the listings: who it is, a panic, a new boot."""
        text, capture = line.text, self.capture
        first = text[0]
        if first == "F":
            if self.ddb.banner(line):
                return True
            if _FATAL.match(text):
                capture.panic, capture.panic_at = (
                    capture.panic or text,
                    capture.panic_at or line.source,
                )
                return True
        elif first in "pP":
            match = _PANIC.match(text)
            if match is not None:
                capture.panic, capture.panic_at = match["text"].strip(), line.source
                return True
        elif first == "K":
            if text.startswith("KDB: stack backtrace"):
                if self._section_name != "msgbuf" and not capture.panic_frames:
                    self._section, self._section_name = self._backtrace, "backtrace"
                return True
            if text.startswith("KDB: enter") and self._section_name != "msgbuf":
                self._leave()
                return True
        elif first == "-" and text.startswith("---<<BOOT>>---"):
            if self._section_name != "msgbuf":
                self._leave()
            return True
        elif first == "W" and _WITNESS_ON in text:
            capture.options.add("WITNESS")
            return True
        return False


def _reads_itself(kind: str, name: str) -> bool:
    """True where the line that opens a section is one of its rows, not a header."""
    if name == "header":
        return False
    return kind in ("kgdb", "lldb") or (kind == "ddb" and name not in ("ps", "uma"))


def read(
    paths: Sequence[str], interrupted: Callable[[], bool] = lambda: False, keep: int = 0
) -> List[Capture]:
    """The machine states that these files tell of, the last one last; [] if they tell none.

    Several files are taken for one machine: their facts are joined.  WchanError where a
    file cannot be read.  ``keep``: how many states are kept while reading, 0 for all.
    """
    reader = CaptureReader(interrupted, keep)
    for path in paths:
        reader.feed(read_lines(path))
        reader.end()
        name = path.rsplit("/", 1)[-1]
        if name not in reader.capture.files:
            reader.capture.files.append(name)
    found = [capture for capture in reader.captures if not capture.is_empty()]
    for capture in found:
        capture.files = capture.files or [path.rsplit("/", 1)[-1] for path in paths]
        capture.settle()
    return found


def read_one(paths: Sequence[str], interrupted: Callable[[], bool] = lambda: False) -> Capture:
    """The last state in these files; WchanError where there is none."""
    # An empty state, a boot after the hang, may follow the one that is wanted.
    found = read(paths, interrupted, keep=2)
    if not found:
        names = ", ".join(paths)
        raise WchanError(
            f"{names}: no dump, and no text that tells of threads (a DDB log, procstat -kk, "
            "ps, top -SH, core.txt, a debugger's session)"
        )
    return found[-1]
