"""What ``show`` prints of one object: a thread, a lock, a turnstile, a sleep queue.

The formats are those of db_show_thread() (sys/ddb/db_ps.c), db_show_turnstile()
(kern/subr_turnstile.c), db_show_sleepqueue() (kern/subr_sleepqueue.c), db_show_lock()
(kern/subr_lock.c) and the lc_ddb_show of each class (kern_mutex.c, kern_sx.c,
kern_rwlock.c, kern_lock.c), which have not changed since 7.x.
"""

from __future__ import annotations

import re
from typing import Optional

from plugin.captures.ddb import Ddb, number
from plugin.captures.lines import Line
from plugin.captures.model import Blocked, TextLock, TextThread

_WHO = r'(?P<td>0x[0-9a-f]+) \(tid (?P<tid>\d+), pid (?P<pid>-?\d+), "(?P<name>.*)"\)'
_THREAD = re.compile(r"^Thread (?P<tid>\d+) at (?P<td>0x[0-9a-f]+):$")
_PROC = re.compile(r"^Process (?P<pid>\d+) \((?P<comm>.*)\) at 0x[0-9a-f]+:$")
_STATE = re.compile(r"^ state: (?P<word>[A-Z ]+?)(?: \(CPU (?P<cpu>\d+)\)|: \{(?P<why>.*)\})?$")
_WMESG = re.compile(r"^ wmesg: (?P<wmesg>.*?)  wchan: (?P<wchan>0x[0-9a-f]+)")
_BLOCKED_ON = re.compile(r"^ lock: (?P<name>.*?)  turnstile: 0x[0-9a-f]+")
_OWN_NAME = re.compile(r"^ name: (?P<name>.+)$")
_OF_PROC = re.compile(r"^ proc \(pid (?P<pid>-?\d+)\): ")
_TURNSTILE = re.compile(r"^Lock: (?P<lock>0x[0-9a-f]+) - \((?P<lc_name>[^)]*)\) (?P<name>.*)$")
_OWNER = re.compile(rf"^Lock Owner: (?:none|{_WHO})$")
_WAITER = re.compile(rf"^\t *{_WHO}$")
_QUEUES = ("Shared Waiters:", "Exclusive Waiters:", "Pending Threads:")
_CHANNEL = re.compile(r"^Wait channel: (?P<wchan>0x[0-9a-f]+)$")
_LOCK_CLASS = re.compile(r"^ class: (?P<lc_name>[a-z].*)$")
_LOCK_STATE = re.compile(
    r"^ (?:state: |owner: )(?:\{(?P<bits>[A-Z, ]+)\}|(?P<word>UNLOCKED|DESTROYED)"
    r"|(?:SLOCK: |RLOCK: )(?P<count>\d+)(?: locks)?|XLOCK: (?P<kern>LK_KERNPROC)"
    rf"|(?:[XW]LOCK: )?{_WHO})$"
)
_ARGUMENT = re.compile(r"^sh(?:ow?)? +lock +(?:0x)?(?P<address>[0-9a-f]{6,16})$")
_STATES = {
    "RUNNING": "running",
    "RUNQ": "runnable",
    "CAN RUN": "runnable",
    "INACTIVE": "inactive",
}
_INHIBITED = {
    "LOCK": "locked",
    "SLEEPING": "sleeping",
    "SWAPPED": "swapped",
    "SUSPENDED": "suspended",
    "IWAIT": "iwait",
}


class Shown:
    """The readers of single objects, over the Capture of a Ddb.

    ``command``: what was typed at the last prompt; ``show lock`` prints its argument nowhere.
    """

    def __init__(self, ddb: Ddb) -> None:
        self.ddb = ddb
        self.capture = ddb.capture
        self.command = ""
        self._thread: Optional[TextThread] = None
        self._lock: Optional[TextLock] = None
        self._lc_name = ""
        self._pending = False
        self._wchan = 0

    def thread(self, line: Line) -> bool:
        """``show thread``."""
        text = line.text
        match = _THREAD.match(text)
        if match is not None:
            self._thread = self.capture.thread(int(match["tid"]))
            self._thread.address = number(match["td"])
            self._thread.listed = self._thread.listed or line.source
            return True
        thread = self._thread
        if thread is None or not text.startswith(" "):
            return False
        match = _OF_PROC.match(text)
        if match is not None:
            if thread.pid < 0:
                thread.pid = int(match["pid"])
            return True
        match = _OWN_NAME.match(text)
        if match is not None:
            thread.name = thread.name or match["name"]
            return True
        match = _STATE.match(text)
        if match is not None:
            self._state(thread, match)
            return True
        match = _WMESG.match(text)
        if match is not None:
            # Printed whole here, cut in ps.
            thread.wmesg, thread.wmesg_cut = match["wmesg"], False
            thread.wchan = number(match["wchan"])
            return True
        match = _BLOCKED_ON.match(text)
        if match is not None:
            thread.lock_name = match["name"]
        return True

    @staticmethod
    def _state(thread: TextThread, match: re.Match[str]) -> None:
        if match["cpu"] is not None:
            thread.cpu = int(match["cpu"])
        why = (match["why"] or "").split(", ")
        if thread.state is None:
            thread.state = _STATES.get(match["word"]) or next(
                (state for word, state in _INHIBITED.items() if word in why), None
            )

    def proc(self, line: Line) -> bool:
        """``show proc``: its threads are rows of ps."""
        match = _PROC.match(line.text)
        if match is not None:
            self.ddb.of_process(int(match["pid"]), match["comm"])
            return True
        return self.ddb.ps(line) or line.text.startswith(" ")

    def turnstile(self, line: Line) -> bool:
        """``show turnstile``: the lock, who holds it, who waits for it."""
        text = line.text
        match = _TURNSTILE.match(text)
        if match is not None:
            self._lock = self.ddb.lock(
                number(match["lock"]), match["lc_name"], match["name"], line.source
            )
            self._pending = False
            return True
        if self._lock is None:
            return False
        match = _OWNER.match(text)
        if match is not None:
            if match["tid"] is not None:
                self._holds(self._lock, match, line)
            return True
        if text in _QUEUES:
            # Pending ones have been given the lock or a wakeup: they wait no more.
            self._pending = text == _QUEUES[-1]
            return True
        match = _WAITER.match(text)
        if match is not None:
            waiter = self._who(match)
            if not self._pending and waiter.tid is not None:
                waiter.state = waiter.state or "locked"
                waiter.listed = waiter.listed or line.source
                blocked = Blocked(waiter.tid, self._lock.key, line.source)
                self.capture.blocked.setdefault(waiter.tid, blocked)
            return True
        return text.strip() == "empty"

    def sleepq(self, line: Line) -> bool:
        """``show sleepq``: the channel and who sleeps on it."""
        text = line.text
        match = _CHANNEL.match(text)
        if match is not None:
            self._wchan = number(match["wchan"])
            return True
        if not self._wchan:
            return False
        match = _WAITER.match(text)
        if match is not None:
            sleeper = self._who(match)
            sleeper.wchan = sleeper.wchan or self._wchan
            sleeper.state = sleeper.state or "sleeping"
            sleeper.listed = sleeper.listed or line.source
            return True
        words = ("Queue", "Associated Interlock: ", "Blocked threads:", "(expected: ")
        return text.startswith(words) or text.strip() == "empty"

    def lock(self, line: Line) -> bool:
        """``show lock``: class, name, state, holder."""
        text = line.text
        match = _LOCK_CLASS.match(text)
        if match is not None:
            self._lc_name, self._lock = match["lc_name"], None
            return True
        if not self._lc_name or not text.startswith(" "):
            return False
        match = _OWN_NAME.match(text)
        if match is not None:
            self._lock = self._named(match["name"], line)
            return True
        match = _LOCK_STATE.match(text)
        if match is not None and self._lock is not None:
            if match["tid"] is not None:
                self._holds(self._lock, match, line)
            elif match["count"] is not None:
                self._lock.shared, self._lock.mode = int(match["count"]), "SHARED"
            elif match["kern"]:
                self._lock.kernproc = line.source
            elif (match["word"] or match["bits"] or "").startswith(("UNLOCKED", "UNOWNED")):
                self._lock.mode = "UNLOCKED"
        return True

    def _named(self, name: str, line: Line) -> TextLock:
        asked = _ARGUMENT.match(self.command)
        if asked is not None:
            return self.ddb.lock(number(asked["address"]), self._lc_name, name, line.source)
        # Asked for by the name of a variable: which lock of that name it is was not printed.
        key = f"shown {line.source}"
        made = TextLock(key, None, self._lc_name, name, source=line.source)
        self.capture.locks[key] = made
        return made

    def _holds(self, lock: TextLock, match: re.Match[str], line: Line) -> None:
        owner = self._who(match)
        assert owner.tid is not None
        lock.owners.setdefault(owner.tid, line.source)

    def _who(self, match: re.Match[str]) -> TextThread:
        thread = self.capture.thread(int(match["tid"]), int(match["pid"]))
        thread.address = number(match["td"])
        self.ddb.named(thread, match["name"])
        return thread
