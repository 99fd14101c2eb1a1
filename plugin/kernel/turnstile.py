"""Turnstiles: what threads blocked on mutexes, rwlocks and rmlocks hang on.

Mirrors sys/kern/subr_turnstile.c, 6.x to 15.x.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel


class Turnstile(NamedTuple):
    """``lockobj`` is the lock's lock_object, ``owner`` a struct thread or 0.

    An rwlock held by readers has owner 0; an rmlock a writer waits for is owned
    by the reader it waits for.
    """

    address: int
    lockobj: int
    owner: int


@cached(MEMORY)
def turnstile_at(kernel: Kernel, address: int) -> Optional[Turnstile]:
    """The struct turnstile at ``address`` (td_blocked); None if it cannot be read."""
    try:
        fields = kernel.layouts.fields("turnstile", "ts_lockobj", "ts_owner")
        lockobj, owner = kernel.values(fields, address)
    except MemoryFault as fault:
        kernel.warnings.add("turnstile", fault.address, fault.reason)
        return None
    except LayoutError as error:
        kernel.warnings.add("turnstile", address, str(error))
        return None
    return Turnstile(address, lockobj, owner)
