"""Running a command line of the shell, for tests that look at it as a user does."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Tuple
from unittest import mock

from plugin.hosts.shell import main

ROOT = Path(__file__).resolve().parent.parent


def wchan(*words: str) -> Tuple[int, str, str]:
    """``wchan WORDS...`` in this process: (exit status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    environment = mock.patch.dict(os.environ, COLUMNS="80")
    with environment, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    return status, out.getvalue(), err.getvalue()


def as_a_shell_starts_it() -> None:
    """For Popen's preexec_fn: signals end the process, though nohup or ``&`` ignore them for us."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def process(*words: str, timeout: float = 300, **environment: str) -> Tuple[int, str, str]:
    """The same in a process of its own, where that is what is tested."""
    done = subprocess.run(
        [sys.executable, "-m", "plugin", *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr


def shell(dump: Any, command: str, *arguments: str) -> Tuple[int, str, str]:
    """A command on a dump (an object with ``vmcore`` and ``kernel``)."""
    return wchan("-k", str(dump.kernel), str(dump.vmcore), command, *arguments)
