"""Userland locks as far as the kernel knows their owners: priority-inheritance mutexes.

Mirrors sys/kern/kern_umtx.c.  The owner of any other umtx is a word in the
process's own memory, which a dump of the kernel does not hold.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread
from plugin.session import Kernel


class Pi(NamedTuple):
    """A struct umtx_pi that a thread is blocked on; ``owner`` is a struct thread or 0."""

    address: int
    owner: int


def blocked_on(kernel: Kernel, thread: Thread) -> Optional[Pi]:
    """The PI mutex a thread waits for (td_umtxq->uq_pi_blocked), None if it waits for none."""
    layouts = kernel.layouts
    try:
        queue = kernel.pointer(thread.address + layouts.offsetof("thread", "td_umtxq"))
        pi = kernel.pointer(queue + layouts.offsetof("umtx_q", "uq_pi_blocked")) if queue else 0
        if not pi:
            return None
        return Pi(pi, kernel.pointer(pi + layouts.offsetof("umtx_pi", "pi_owner")))
    except (MemoryFault, LayoutError):
        return None
