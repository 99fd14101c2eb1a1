"""Running a command in the shell, for tests that look at it as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Tuple

ROOT = Path(__file__).resolve().parent.parent


def wchan(*words: str, timeout: float = 300, **environment: str) -> Tuple[int, str, str]:
    """``wchan WORDS...``: (exit status, stdout, stderr)."""
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
