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

from typing import Callable, Generator, Iterator, Sequence, Set, Tuple, TypeVar

from plugin.errors import MemoryFault
from plugin.session import Kernel
from plugin.structs.layout import Fields

#: More elements than any list of a real kernel has; ends a walk over garbage.
LIMIT = 16_000_000
_POLL = 1024

Element = Tuple[int, Tuple[int, ...]]
#: values in the order in which they lie in memory (plugin.structs.layout.Fields)
Raw = Tuple[int, ...]
_T = TypeVar("_T")
#: what makes something of an element's address and the raw values of these fields
Maker = Callable[[Fields], Callable[[int, Raw], _T]]


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
    yield from tailq_made(kernel, head, struct, link, paths, _elements(2), what=what, bound=bound)


def tailq_made(
    kernel: Kernel,
    head: int,
    struct: str,
    link: str,
    paths: Sequence[str],
    maker: Maker[_T],
    *,
    what: str = "",
    bound: int = LIMIT,
) -> Iterator[_T]:
    """As tailq_foreach, of very many: what ``maker`` makes of each element's raw values.

    ``maker(fields)`` is asked once, for ``make(address, raw)``; the first two members of
    ``fields`` are the links, the others are ``paths``.
    """
    what = what or f"tail queue of struct {struct} at {head:#x}"
    links = (f"{link}.tqe_next", f"{link}.tqe_prev")
    last_link, ended = yield from _walk(kernel, head, struct, links, paths, what, bound, maker)
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
    yield from _walk(kernel, head, struct, links, paths, what, bound, _elements(2))


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
    maker = _elements(1)
    last_link, ended = yield from _walk(kernel, head, struct, links, paths, what, bound, maker)
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
    links = (f"{link}.sle_next",)
    yield from _walk(kernel, head, struct, links, paths, what, bound, _elements(1))


def _elements(links: int) -> Maker[Element]:
    """Makes (address, values without the links)."""

    def maker(fields: Fields) -> Callable[[int, Raw], Element]:
        pick = fields.picker(links)
        return lambda address, raw: (address, pick(raw))

    return maker


def _walk(
    kernel: Kernel,
    head: int,
    struct: str,
    links: Sequence[str],
    paths: Sequence[str],
    what: str,
    bound: int,
    maker: Maker[_T],
) -> Generator[_T, None, Tuple[int, bool]]:
    """The elements; returns where the last link lies, and whether the list ended there.

    ``links`` are the members that lead to the next element and, where there is one, back.
    """
    try:
        address = kernel.pointer(head)
    except MemoryFault as fault:
        kernel.warnings.add(what, fault.address, f"list head: {fault.reason}")
        return head, False
    fields = kernel.layouts.fields(struct, *links, *paths)
    make = maker(fields)
    read, raw_of, span = kernel.reader(fields), fields.raw, fields.span
    following = fields.places[0]
    back = fields.places[1] if len(links) > 1 else -1
    next_offset = kernel.layouts.offsetof(struct, links[0])
    seen: Set[int] = set()
    seen_add = seen.add
    came_from = head
    #: how many elements there may be before the next look at the bound and for Ctrl-C
    checkpoint = min(bound, _POLL)
    # Elements of one zone share pages: each page is read once and taken apart in place.
    page, base, mask = b"", -1, kernel.page_size - 1
    fits = kernel.page_size - span if kernel.target.in_pages else -1
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
        inside = address & mask
        try:
            if inside > fits:
                raw = raw_of(read(address, span))
            else:
                if address - inside != base:
                    page, base = _page(kernel, address - inside), address - inside
                raw = raw_of(page, inside) if page else raw_of(read(address, span))
        except MemoryFault as fault:
            kernel.warnings.add(
                what,
                came_from,
                f"element {len(seen)} at {address:#x} cannot be read ({fault.reason})",
            )
            return came_from, False
        if back >= 0 and raw[back] != came_from:
            kernel.warnings.add(
                what,
                address,
                f"back pointer is {raw[back]:#x}, should be {came_from:#x}",
            )
        after = raw[following]
        yield make(address, raw)
        came_from = address + next_offset
        address = after
    return came_from, True


def _page(kernel: Kernel, base: int) -> bytes:
    """The whole page at ``base``; b"" where the dump ends in it."""
    try:
        return kernel.read(base, kernel.page_size)
    except MemoryFault:
        return b""
