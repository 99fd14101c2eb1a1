"""A command's answer on a dump, in this process: quick, and what coverage sees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from plugin.hosts.runner import run_command
from plugin.opening import open_core
from plugin.session import Kernel


class Dump(NamedTuple):
    """A dump and its kernel, as ``Machine.write`` gives them."""

    vmcore: Path
    kernel: Path


#: the dump opened last: a test module asks many things of one
_opened: Dict[Tuple[str, str, int], Kernel] = {}


def opened(dump: Any) -> Kernel:
    """The Kernel of a dump (an object with ``vmcore`` and ``kernel``), opened once."""
    files = str(dump.vmcore), str(dump.kernel)
    # A test may write another dump in the place of its first.
    key = (*files, os.stat(files[0]).st_mtime_ns)
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_core(*files)
    return _opened[key]


def answer(dump: Any, command: str, *arguments: str, width: int = 80) -> Tuple[int, str, str]:
    """``wchan DUMP COMMAND ...``: (exit status, output, errors)."""
    out: List[str] = []
    err: List[str] = []
    status = run_command(
        command, arguments, lambda: opened(dump), out.append, err.append, width=width
    )
    return status, "".join(out), "".join(f"{line}\n" for line in err)
