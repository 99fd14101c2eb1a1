"""Progress of long work, shown on a terminal."""

from __future__ import annotations

import time
from typing import TextIO


class Progress:
    """Progress on a terminal, for work that takes longer than a second; silent elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = False
        self._next = time.monotonic() + 1.0 if stream.isatty() else float("inf")

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.1
            self._shown = True
            share = f"{100 * done // total} %" if total else f"{done}"
            self._stream.write(f"\r\033[K{what}: {share}")
            self._stream.flush()

    def spooling(self, done: int, total: int) -> None:
        """The same, as a callback of what decompresses a dump."""
        self("decompressing", done, total)
        if done >= total:
            self.clear()

    def clear(self) -> None:
        if self._shown:
            self._shown = False
            self._stream.write("\r\033[K")
            self._stream.flush()
