"""What a thread in kevent(2), select(2) or poll(2) waits for.

Mirrors sys/kern/kern_event.c and sys/kern/sys_generic.c, 8.0 to 15.x.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread
from plugin.kernel.queue import slist_foreach, stailq_foreach
from plugin.session import Kernel

#: more than kern.maxfiles lets a process have open
_MAX_LISTS = 1 << 20
_MAX_NOTES = 1 << 16
#: EVFILT_*, sys/sys/event.h, the same since 4.1
FILTERS = {
    -1: "read",
    -2: "write",
    -3: "aio",
    -4: "vnode",
    -5: "process",
    -6: "signal",
    -7: "timer",
    -8: "procdesc",
    -9: "fs",
    -10: "lio",
    -11: "user",
    -12: "sendfile",
    -13: "empty",
}


class Note(NamedTuple):
    """One struct knote *: ``filter`` EVFILT_*'s name in small letters, ``ident`` its fd or pid.

    ``target`` is kn_ptr: a struct file * of a filter on a descriptor, a struct proc * of
    "process", else whatever the filter keeps.
    """

    address: int
    filter: str
    ident: int
    target: int

    @property
    def on_file(self) -> bool:
        return self.filter in ("read", "write", "vnode", "procdesc", "empty")


def notes(kernel: Kernel, kqueue: int) -> List[Note]:
    """What a struct kqueue * waits for; MemoryFault where it cannot be read.

    By descriptor in kq_knlist, everything else in kq_knhash.
    """
    view = kernel.view("kqueue", kqueue)
    heads: List[int] = []
    if view.kq_knlist:
        heads += _heads(kernel, view.kq_knlist, min(view.kq_knlistsize, _MAX_LISTS))
    if view.kq_knhash:
        heads += _heads(kernel, view.kq_knhash, min(view.kq_knhashmask + 1, _MAX_LISTS))
    return [note for head in heads for note in _notes(kernel, head, kqueue)]


def _heads(kernel: Kernel, base: int, number: int) -> List[int]:
    """The addresses of the lists of an array that are not empty."""
    size = kernel.pointer_size
    raw = kernel.read(base, number * size)
    return [base + at for at in range(0, number * size, size) if any(raw[at : at + size])]


def _notes(kernel: Kernel, head: int, kqueue: int) -> Iterator[Note]:
    for address, (filter_, ident, target, owner) in slist_foreach(
        kernel,
        head,
        "knote",
        "kn_link",
        ["kn_kevent.filter", "kn_kevent.ident", "kn_ptr.p_fp", "kn_kq"],
        what=f"knotes of kqueue {kqueue:#x}",
        bound=_MAX_NOTES,
    ):
        if owner == kqueue:
            number = filter_ - (1 << 16) if filter_ >= 1 << 15 else filter_
            yield Note(address, FILTERS.get(number, str(number)), ident, target)


def selected(kernel: Kernel, thread: Thread) -> Optional[List[int]]:
    """The struct selinfo * that a thread in select(2) or poll(2) waits for, 8.0 on (r183566).

    td_sel -> st_selq, a struct selfd for each; None where they cannot be read.
    """
    layouts = kernel.layouts
    try:
        seltd = kernel.pointer(thread.address + layouts.offsetof("thread", "td_sel"))
        if not seltd:
            return None
        return [
            selinfo
            for _, (selinfo,) in stailq_foreach(
                kernel,
                seltd + layouts.offsetof("seltd", "st_selq"),
                "selfd",
                "sf_link",
                ["sf_si"],
                what=f"what thread {thread.tid} selects on",
                bound=_MAX_NOTES,
            )
            if selinfo
        ]
    except (MemoryFault, LayoutError):
        return None
