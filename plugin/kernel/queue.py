"""The lists of sys/queue.h, walked over memory that may be corrupt.

The names are those of FreeBSD's own debugger scripts: ``list_foreach``,
``tailq_foreach``, ``stailq_foreach``, ``slist_foreach``.  Each yields
``(address, values)`` for every element, ``values`` being the members asked for,
read together with the link in one go.

A walk never loops, never raises and never hides what it read before the
trouble: a cycle, a pointer that cannot be read, a wrong back pointer or a
wrong tail each become one finding with the address.  A wrong back pointer
alone does not end a walk, for the forward chain may still be whole.
"""

from __future__ import annotations

from typing import Generator, Iterator, Optional, Sequence, Set, Tuple

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
    first = _head(kernel, head, what)
    if first is None:
        return
    last_link, ended = yield from _walk(
        kernel, first, struct, f"{link}.tqe_next", f"{link}.tqe_prev", head, paths, what, bound
    )
    if ended:
        try:
            tail = kernel.pointer(head + kernel.pointer_size)
        except MemoryFault as fault:
            kernel.warnings.add(what, fault.address, f"tqh_last: {fault.reason}", partial=False)
            return
        if tail != last_link and not (first == 0 and tail == 0):
            kernel.warnings.add(
                what,
                head + kernel.pointer_size,
                f"tqh_last is {tail:#x}, the last element's link is at {last_link:#x}",
                partial=False,
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
    first = _head(kernel, head, what)
    if first is None:
        return
    yield from _walk(
        kernel, first, struct, f"{link}.le_next", f"{link}.le_prev", head, paths, what, bound
    )


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
    yield from _singly(kernel, head, struct, f"{link}.stqe_next", paths, what, bound)


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
    yield from _singly(kernel, head, struct, f"{link}.sle_next", paths, what, bound)


def _singly(
    kernel: Kernel,
    head: int,
    struct: str,
    next_path: str,
    paths: Sequence[str],
    what: str,
    bound: int,
) -> Iterator[Element]:
    what = what or f"list of struct {struct} at {head:#x}"
    first = _head(kernel, head, what)
    if first is None:
        return
    yield from _walk(kernel, first, struct, next_path, None, head, paths, what, bound)


def _head(kernel: Kernel, head: int, what: str) -> Optional[int]:
    try:
        return kernel.pointer(head)
    except MemoryFault as fault:
        kernel.warnings.add(what, fault.address, f"list head: {fault.reason}")
        return None


def _walk(
    kernel: Kernel,
    first: int,
    struct: str,
    next_path: str,
    prev_path: Optional[str],
    head: int,
    paths: Sequence[str],
    what: str,
    bound: int,
) -> Generator[Element, None, Tuple[int, bool]]:
    """The elements; returns where the last link lies, and whether the list ended there."""
    skip = 1 if prev_path is None else 2
    links = (next_path,) if prev_path is None else (next_path, prev_path)
    fields = kernel.layouts.fields(struct, *links, *paths)
    read, unpack, span = kernel.read, fields.unpack, fields.span
    next_offset = kernel.layouts.offsetof(struct, next_path)
    seen: Set[int] = set()
    seen_add = seen.add
    address, came_from = first, head
    while address:
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
                partial=False,
            )
        following = values[0]
        yield address, values[skip:]
        came_from = address + next_offset
        address = following
        if not len(seen) % _POLL:
            if len(seen) >= bound:
                kernel.warnings.add(what, address, f"given up after {len(seen)} elements")
                return came_from, False
            if kernel.interrupted():
                kernel.warnings.add(what, address, f"interrupted after {len(seen)} elements")
                return came_from, False
    return came_from, True
