"""Interrupt handlers and the threads that run them: sys/kern/kern_intr.c, 7.x to 15.x."""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel


class Handler(NamedTuple):
    """One struct intr_handler *, its interrupt's name, the struct thread * that runs it or 0."""

    name: str
    event: str
    thread: int


def handler_thread(kernel: Kernel, address: int) -> Optional[Handler]:
    """The struct intr_handler at ``address``, None where none is there.

    Told by its event's list of handlers being its own kind: ih_event is a struct intr_event *.
    """
    try:
        view = kernel.view("intr_handler", address)
        event = kernel.view("intr_event", view.ih_event)
        thread = 0
        if event.ie_thread:
            # struct intr_thread, private to kern_intr.c: it_event, then it_thread.
            thread = kernel.pointer(event.ie_thread + kernel.pointer_size)
        return Handler(view.text("ih_name"), event.text("ie_name"), thread)
    except (MemoryFault, LayoutError):
        return None
