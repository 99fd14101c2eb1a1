"""Running ``wchan gdb`` and ``wchan lldb`` in batch, for tests that look at them as a user does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from hosts import process


class Batch(NamedTuple):
    """What a debugger in batch did."""

    status: int
    out: str
    err: str

    @property
    def threads(self) -> List[Tuple[int, str]]:
        """(tid, name) of every thread that ``info threads`` or ``thread list`` showed."""
        of_gdb = re.findall(r'^[* ] +\d+ +Thread (\d+) "(.*?)" +\S', self.out, re.MULTILINE)
        of_lldb = re.findall(r"^[* ] thread #\d+: tid = (\d+),.*?name = '(.*?)'", self.out, re.M)
        return [(int(tid), name) for tid, name in of_gdb or of_lldb]

    @property
    def stacks(self) -> Dict[str, List[str]]:
        """tid or, in lldb, thread name: the functions that ``thread apply all bt`` showed."""
        of_gdb = re.split(r"^Thread \d+ \(Thread (\d+) .*\n", self.out, flags=re.MULTILINE)
        of_lldb = re.split(r"^[* ] thread #\d+, name = '(.*?)'.*\n", self.out, flags=re.MULTILINE)
        pieces = of_gdb if len(of_gdb) > 1 else of_lldb
        return {who: functions(text) for who, text in zip(pieces[1::2], pieces[2::2])}


def functions(text: str) -> List[str]:
    """The functions of the frames that a backtrace shows."""
    of_gdb = re.findall(r"^#\d+ +0x[0-9a-f]+ in (\w+) \(\)", text, re.MULTILINE)
    of_lldb = re.findall(r"^ +\*? *frame #\d+: 0x[0-9a-f]+ [\w.]+`(\w+)", text, re.MULTILINE)
    return of_gdb or of_lldb


def gdb(program: Optional[Path], dump: Any, *commands: str, **environment: str) -> Batch:
    """Commands in ``wchan gdb`` on a dump (an object with ``vmcore`` and ``kernel``)."""
    rest = [word for command in commands for word in ("-ex", command)]
    return _run("gdb", program, dump, ["-nx", "-batch", *rest], environment)


def lldb(program: Optional[Path], dump: Any, *commands: str, **environment: str) -> Batch:
    """Commands in ``wchan lldb`` on a dump."""
    rest = [word for command in commands for word in ("-o", command)]
    return _run("lldb", program, dump, ["--no-lldbinit", "-b", *rest], environment)


def _run(name: str, program: Optional[Path], dump: Any, rest: List[str], environment: Any) -> Batch:
    which = ["--debugger", str(program)] if program else []
    words = [name, "-k", str(dump.kernel), *which, str(dump.vmcore), "--", *rest]
    return Batch(*process(*words, timeout=120, **environment))
