"""Jails: which one a process is in.

Mirrors sys/sys/jail.h and sys/kern/kern_jail.c, 7.x to 15.x.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel


class Jail(NamedTuple):
    """One struct prison *; ``id`` 0 is the host itself.

    ``references`` is pr_ref, ``users`` pr_uref (9.0 on, else 0), ``state`` pr_state's name
    without PRISON_STATE_ (13.1 on, else "").
    """

    address: int
    id: int
    name: str
    path: str
    references: int
    users: int
    state: str


#: what of a struct prison tells of people: the kind of plugin.capsule.redact, the member
_PRIVATE = (
    ("name", "pr_name"),
    ("path", "pr_path"),
    ("host", "pr_hostname"),
    ("host", "pr_domainname"),
    ("name", "pr_hostuuid"),
)


@cached(MEMORY)
def jail_at(kernel: Kernel, address: int) -> Optional[Jail]:
    """The struct prison at ``address``, None where it cannot be read."""
    try:
        view = kernel.view("prison", address)
        for kind, member in _PRIVATE if kernel.private is not None else ():
            if view.has(member) and view.text(member) not in ("", "0", "/"):
                assert kernel.private is not None
                kernel.private(kind, view.at(member), view.bytes(member))
        state = ""
        if view.has("pr_state"):
            state = kernel.layouts.enum("pr_state", view.pr_state).replace("PRISON_STATE_", "")
        return Jail(
            address,
            view.pr_id,
            view.text("pr_name") if view.has("pr_name") else "",
            view.text("pr_path"),
            view.pr_ref,
            view.get("pr_uref", 0),
            state,
        )
    except (MemoryFault, LayoutError):
        return None


def jail_of(kernel: Kernel, proc: int) -> Optional[Jail]:
    """The jail of a struct proc *: the host's own from 8.0 on; None where it cannot be read.

    Before 8.0 a process in no jail has none.
    """
    layouts = kernel.layouts
    try:
        ucred = kernel.pointer(proc + layouts.offsetof("proc", "p_ucred"))
        if not ucred:
            return None
        prison = kernel.pointer(ucred + layouts.offsetof("ucred", "cr_prison"))
    except (MemoryFault, LayoutError):
        return None
    return jail_at(kernel, prison) if prison else None
