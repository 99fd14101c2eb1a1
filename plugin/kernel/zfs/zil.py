"""The intent log: its blocks (lwb), and who waits for one to be on disk.

Mirrors zil.c and sys/zil_impl.h.  12.0 on: zil_commit() waits on a zil_commit_waiter, which
has the lwb; before, on the zilog's own condition variables, for the one thread that writes.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.list import list_t_foreach
from plugin.kernel.locks import lock_at
from plugin.kernel.zfs.common import age_of, enum_name, peek, try_peek
from plugin.kernel.zfs.dbuf import objset_name
from plugin.session import Kernel

_MOST_LWBS = 100_000


class Lwb(NamedTuple):
    """One log write block.

    ``state``: "OPENED", "ISSUED", ... ("" before 12.0).  ``root_zio`` and ``write_zio`` are
    struct zio * or 0; ``age`` the seconds since it was issued.
    """

    address: int
    zilog: int
    state: str
    root_zio: int
    write_zio: int
    age: Optional[float]


def lwb_at(kernel: Kernel, address: int) -> Lwb:
    """The lwb at ``address``; MemoryFault, LayoutError."""
    state = try_peek(kernel, "lwb", address, "lwb_state")
    write = kernel.layouts.first_of("lwb", "lwb_write_zio", "lwb_zio") or "lwb_write_zio"
    return Lwb(
        address,
        peek(kernel, "lwb", address, "lwb_zilog"),
        "" if state is None else enum_name(kernel, "lwb_state", "LWB_STATE_", state),
        try_peek(kernel, "lwb", address, "lwb_root_zio", 0),
        peek(kernel, "lwb", address, write),
        age_of(kernel, try_peek(kernel, "lwb", address, "lwb_issued_timestamp", 0)),
    )


def lwbs(kernel: Kernel, zilog: int) -> List[Lwb]:
    """zl_lwb_list of a ``struct zilog *``, oldest first."""
    head = zilog + kernel.layouts.offsetof("zilog", "zl_lwb_list")
    what = f"zl_lwb_list of zilog {zilog:#x}"
    found = []
    for at in list_t_foreach(kernel, head, what=what, bound=_MOST_LWBS):
        try:
            found.append(lwb_at(kernel, at))
        except (MemoryFault, LayoutError) as error:
            kernel.warnings.add(what, at, str(error))
    return found


class CommitWaiter(NamedTuple):
    """A zil_commit_waiter: ``lwb`` 0 while no lwb has taken it, ``done`` once woken."""

    address: int
    lwb: int
    done: bool


def commit_waiter_at(kernel: Kernel, address: int) -> CommitWaiter:
    """The zil_commit_waiter at ``address``; MemoryFault, LayoutError."""
    return CommitWaiter(
        address,
        peek(kernel, "zil_commit_waiter", address, "zcw_lwb"),
        bool(peek(kernel, "zil_commit_waiter", address, "zcw_done")),
    )


def zilog_name(kernel: Kernel, zilog: int) -> str:
    """The dataset whose log it is, "" where it cannot be read."""
    objset = try_peek(kernel, "zilog", zilog, "zl_os", 0)
    return objset_name(kernel, objset) if objset else ""


def issuer(kernel: Kernel, zilog: int) -> int:
    """The struct thread * that has zl_issuer_lock (12.0 on): it fills and issues the blocks.

    0 where nobody has it, or it cannot be read.
    """
    layouts = kernel.layouts
    if not layouts.has("zilog", "zl_issuer_lock"):
        return 0
    lock = lock_at(kernel, zilog + layouts.offsetof("zilog", "zl_issuer_lock"))
    return lock.owners[0] if lock is not None and lock.owners else 0
