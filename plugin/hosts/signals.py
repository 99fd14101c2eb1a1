"""Being told to end: what is open is closed and what is half written is removed first."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import Any, Iterator

_NAMES = ("SIGTERM", "SIGHUP")


class Left(BaseException):
    """Raised where a signal tells this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def leave(number: int, _: object) -> None:
    """A signal handler that raises Left."""
    # What follows is cleaning up, which a second signal must not cut short.
    on_signals(signal.SIG_IGN)
    raise Left(number)


def on_signals(handler: Any) -> None:
    """Install a handler for the signals that end a process, but those that are ignored already."""
    for name in _NAMES:
        number = getattr(signal, name)
        # nohup ignores SIGHUP for us.
        if signal.getsignal(number) is not signal.SIG_IGN or handler is signal.SIG_IGN:
            signal.signal(number, handler)


@contextmanager
def leaving() -> Iterator[None]:
    """Signals that end the process raise Left inside the ``with``; as before afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {name: signal.getsignal(getattr(signal, name)) for name in _NAMES}
    on_signals(leave)
    try:
        yield
    finally:
        for name, handler in before.items():
            if handler is not None:
                signal.signal(getattr(signal, name), handler)
