"""Ctrl-C: the first asks for what there is so far, the second ends the command."""

from __future__ import annotations

import os
import signal
import threading
from typing import Iterator, List

import pytest

from plugin import interrupt


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Python's own handler, though the suite may run in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    # Python runs a handler between two instructions of the main thread.
    signal.getsignal(signal.SIGINT)


def test_the_first_is_noted_the_second_raises() -> None:
    with interrupt.caught():
        assert not interrupt.requested()
        press_ctrl_c()
        assert interrupt.requested()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()
    assert not interrupt.requested()


def test_afterwards_ctrl_c_does_what_it_did() -> None:
    with interrupt.caught():
        pass
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert not interrupt.requested()


def test_a_handler_of_the_host_is_put_back() -> None:
    seen: List[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupt.caught():
            press_ctrl_c()
        assert seen == []
        press_ctrl_c()
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_host_that_ignores_it_is_left_to() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.caught():
            press_ctrl_c()
            assert not interrupt.requested()
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_changed() -> None:
    handlers = []

    def work() -> None:
        with interrupt.caught():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
