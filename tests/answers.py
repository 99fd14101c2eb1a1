"""A command's answer on a dump, in this process: quick, and what coverage sees."""

from __future__ import annotations

from typing import Any, Dict, List, Tuple

from plugin.hosts.runner import run_command
from plugin.opening import open_core
from plugin.session import Kernel

#: the dump opened last: a test module asks many things of one
_opened: Dict[Tuple[str, str], Kernel] = {}


def opened(dump: Any) -> Kernel:
    """The Kernel of a dump (an object with ``vmcore`` and ``kernel``), opened once."""
    key = (str(dump.vmcore), str(dump.kernel))
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_core(*key)
    return _opened[key]


def answer(dump: Any, command: str, *arguments: str, width: int = 80) -> Tuple[int, str, str]:
    """``wchan DUMP COMMAND ...``: (exit status, output, errors)."""
    out: List[str] = []
    err: List[str] = []
    status = run_command(
        command, arguments, lambda: opened(dump), out.append, err.append, width=width
    )
    return status, "".join(out), "\n".join(err)
