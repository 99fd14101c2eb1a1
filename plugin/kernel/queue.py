"""The lists of sys/queue.h, walked over memory that may be corrupt.

The names are those of FreeBSD's own debugger scripts: ``list_foreach``,
``tailq_foreach``, ``stailq_foreach``, ``slist_foreach``.  Each yields
``(address, values)`` for every element, ``values`` being the members asked for,
read together with the link in one go.

A walk never loops, never raises and never hides what it read before the
trouble: a cycle, a pointer that cannot be read, a wrong back pointer or a
wrong tail each become one finding with the address, and the report is partial:
one zero word cuts a list, one wrong word skips a part of it.  The end of a
TAILQ or STAILQ is proven by its tail pointer; that of a LIST or SLIST by
nothing, so who needs to know has to count, or to come by a second way.  A wrong
back pointer does not end a walk, for the forward chain may go on.  ``bound``
is the most elements that are yielded; where there are more, that is a finding.
"""

from __future__ import annotations

from typing import Generator, Iterator, Sequence, Set, Tuple

from plugin.errors import MemoryFault
from plugin.session import Kernel

#: More elements than any list of a real kernel has; ends a walk over garbage.
LIMIT = 16_000_000
_POLL = 1024

Element = Tuple[int, Tuple[int, ...]]


def tailq_foreach(
    kernel: Kernel,
    head: int,
    struct: str,
    link: str,
    paths: Sequence[str] = (),
    *,
    what: str = "",
    bound: int = LIMIT,
) -> Iterator[Element]:
    """Elements of the TAILQ whose head is at ``head``; ``link`` is the entry's name."""
    what = what or f"tail queue of struct {struct} at {head:#x}"
    links = (f"{link}.tqe_next", f"{link}.tqe_prev")
    last_link, ended = yield from _walk(kernel, head, struct, links, paths, what, bound)
    if ended:
        _prove_end(kernel, head, last_link, "tqh_last", what)


def _prove_end(kernel: Kernel, head: int, last_link: int, member: str, what: str) -> None:
    """The tail pointer of a head has to point at the last element's link."""
    try:
        tail = kernel.pointer(head + kernel.pointer_size)
    except MemoryFault as fault:
        kernel.warnings.add(what, fault.address, f"{member}: {fault.reason}")
        return
    if tail == last_link or (last_link == head and not tail):
        # A head that was never initialised is all zero: nothing was ever put there.
        return
    kernel.warnings.add(
        what,
        head + kernel.pointer_size,
        f"{member} is {tail:#x}, the last element's link is at {last_link:#x}",
    )


def list_foreach(
    kernel: Kernel,
    head: int,
    struct: str,
    link: str,
    paths: Sequence[str] = (),
    *,
    what: str = "",
    bound: int = LIMIT,
) -> Iterator[Element]:
    """Elements of the LIST whose head is at ``head``."""
    what = what or f"list of struct {struct} at {head:#x}"
    links = (f"{link}.le_next", f"{link}.le_prev")
    yield from _walk(kernel, head, struct, links, paths, what, bound)


def stailq_foreach(
    kernel: Kernel,
    head: int,
    struct: str,
    link: str,
    paths: Sequence[str] = (),
    *,
    what: str = "",
    bound: int = LIMIT,
) -> Iterator[Element]:
    """Elements of the STAILQ whose head is at ``head``."""
    what = what or f"list of struct {struct} at {head:#x}"
    links = (f"{link}.stqe_next",)
    last_link, ended = yield from _walk(kernel, head, struct, links, paths, what, bound)
    if ended:
        _prove_end(kernel, head, last_link, "stqh_last", what)


def slist_foreach(
    kernel: Kernel,
    head: int,
    struct: str,
    link: str,
    paths: Sequence[str] = (),
    *,
    what: str = "",
    bound: int = LIMIT,
) -> Iterator[Element]:
    """Elements of the SLIST whose head is at ``head``."""
    what = what or f"list of struct {struct} at {head:#x}"
    yield from _walk(kernel, head, struct, (f"{link}.sle_next",), paths, what, bound)


def _walk(
    kernel: Kernel,
    head: int,
    struct: str,
    links: Sequence[str],
    paths: Sequence[str],
    what: str,
    bound: int,
) -> Generator[Element, None, Tuple[int, bool]]:
    """The elements; returns where the last link lies, and whether the list ended there.

    ``links`` are the members that lead to the next element and, where there is one, back.
    """
    try:
        address = kernel.pointer(head)
    except MemoryFault as fault:
        kernel.warnings.add(what, fault.address, f"list head: {fault.reason}")
        return head, False
    skip = len(links)
    fields = kernel.layouts.fields(struct, *links, *paths)
    read, unpack, span = kernel.read, fields.unpack, fields.span
    next_offset = kernel.layouts.offsetof(struct, links[0])
    seen: Set[int] = set()
    seen_add = seen.add
    came_from = head
    #: how many elements there may be before the next look at the bound and for Ctrl-C
    checkpoint = min(bound, _POLL)
    while address:
        if len(seen) >= checkpoint:
            if len(seen) >= bound:
                kernel.warnings.add(what, address, f"given up after {len(seen)} elements")
                return came_from, False
            if kernel.interrupted():
                kernel.warnings.add(what, address, f"interrupted after {len(seen)} elements")
                return came_from, False
            checkpoint = min(bound, checkpoint + _POLL)
        if address in seen:
            kernel.warnings.add(
                what,
                came_from,
                f"loops back to {address:#x} after {len(seen)} elements",
            )
            return came_from, False
        seen_add(address)
        try:
            values = unpack(read(address, span))
        except MemoryFault as fault:
            kernel.warnings.add(
                what,
                came_from,
                f"element {len(seen)} at {address:#x} cannot be read ({fault.reason})",
            )
            return came_from, False
        if skip == 2 and values[1] != came_from:
            kernel.warnings.add(
                what,
                address,
                f"back pointer is {values[1]:#x}, should be {came_from:#x}",
            )
        following = values[0]
        yield address, values[skip:]
        came_from = address + next_offset
        address = following
    return came_from, True
