"""Ctrl-C as a question that long work asks, so that it can end with what it has.

While ``caught`` is in effect the first Ctrl-C is only noted; walks that ask
``requested`` stop there and the report is marked partial.  The second one is
KeyboardInterrupt, for work that never asks.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType
from typing import Any, Callable, Iterator, Optional

_noted = False


def requested() -> bool:
    """True once the user has asked the command that runs to stop."""
    return _noted


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Note the first Ctrl-C instead of raising KeyboardInterrupt; as before afterwards."""
    global _noted
    _noted = False
    restore = _install()
    try:
        yield
    finally:
        restore()
        _noted = False


def _note(number: int, frame: Optional[FrameType]) -> None:
    global _noted
    if _noted:
        raise KeyboardInterrupt
    _noted = True


def _install() -> Callable[[], None]:
    """Install our handler; returns what puts the old one back."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before: Any = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        return lambda: None
    native = _native_handler()
    if native is None and before is None:
        return lambda: None
    signal.signal(signal.SIGINT, _note)

    def restore() -> None:
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)
        if native is not None:
            native()

    return restore


def _native_handler() -> Optional[Callable[[], None]]:
    """What puts back the handler that the process has now, whoever installed it.

    A debugger that embeds Python handles Ctrl-C itself, and Python knows nothing of
    its handler: only the C library can keep it.  None without ctypes.
    """
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        # struct sigaction takes 16 to 152 bytes, depending on the system.
        kept = ctypes.create_string_buffer(512)
        if libc.sigaction(int(signal.SIGINT), None, kept) != 0:
            return None
    except (ImportError, OSError, AttributeError):
        return None
    return lambda: libc.sigaction(int(signal.SIGINT), kept, None)
