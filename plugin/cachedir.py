"""Where wchan keeps what can be made again: ``$XDG_CACHE_HOME/wchan``, else ``~/.cache/wchan``."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_path() -> Path:
    """The cache's folder, which need not exist nor be writable."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has a relative path ignored.
    root = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return root / "wchan"


def ours(path: Path) -> bool:
    """True where nobody but this user can have put there what is there.

    Its owner is this user and neither its group nor others may write to it.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def writable(folder: Path) -> Path:
    """``folder``, made if need be, else a temporary one that goes with this process."""
    with suppress(OSError):
        # What comes out of a dump holds a machine's secrets: nobody else may read it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if ours(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    fallback = Path(tempfile.mkdtemp(prefix="wchan-"))
    atexit.register(shutil.rmtree, str(fallback), ignore_errors=True)
    return fallback
