"""The buffer cache's spaces: what is used of each, its marks, and who waits.

Mirrors sys/kern/vfs_bio.c, 6.x to 15.x.  To 11.x the counts are global; from 12.0
on each buffer domain (struct bufdomain) has its own, while running writes stay
global.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.counter import counter_u64_fetch
from plugin.kernel.sleepqueue import sleepers
from plugin.session import Kernel

_MAX_DOMAINS = 64


class BufSpace(NamedTuple):
    """One quantity the buffer cache keeps between two marks.

    ``value``, ``low`` and ``high`` in ``unit`` ("bytes" or "buffers"); None where
    this kernel keeps none.  ``waiters`` sleep in ``wmesg`` on ``wchan`` until
    ``until`` holds; ``satisfied`` says whether it does.
    """

    name: str
    symbol: str
    domain: Optional[int]
    value: int
    low: Optional[int]
    high: Optional[int]
    unit: str
    wmesg: str
    wchan: int
    until: str
    satisfied: bool
    waiters: Tuple[int, ...]


@cached(MEMORY)
def spaces(kernel: Kernel) -> List[BufSpace]:
    """Running writes, dirty buffers, buffer space and free buffers."""
    return list(_spaces(kernel))


def runningbufspace(kernel: Kernel) -> Optional[BufSpace]:
    """Bytes of writes in flight; writers wait in "wdrain" while it is above its high mark."""
    return next((space for space in spaces(kernel) if space.name == "runningbufspace"), None)


def nbuf(kernel: Kernel) -> int:
    """How many buffer headers there are."""
    return _value(kernel, "nbuf") or 0


def _value(kernel: Kernel, name: str) -> Optional[int]:
    """A global of int or long, None where there is none or it cannot be read."""
    symbol = kernel.symbol(name)
    if symbol is None:
        return None
    try:
        size = symbol.size if symbol.size in (4, 8) else 4
        return kernel.signed(symbol.address, size)
    except MemoryFault as fault:
        kernel.warnings.add(name, fault.address, fault.reason)
        return None


def _tids(kernel: Kernel, wchan: int, wmesgs: Tuple[str, ...]) -> Tuple[int, ...]:
    return tuple(t.tid for t in sleepers(kernel).get(wchan, ()) if (t.wmesg or "") in wmesgs)


def _at(kernel: Kernel, name: str) -> int:
    symbol = kernel.symbol(name)
    return symbol.address if symbol else 0


def _spaces(kernel: Kernel) -> Iterator[BufSpace]:
    running = _value(kernel, "runningbufspace")
    if running is not None:
        low, high = _value(kernel, "lorunningspace"), _value(kernel, "hirunningspace")
        wchan = _at(kernel, "runningbufreq")
        yield BufSpace(
            "runningbufspace",
            "runningbufspace",
            None,
            running,
            low,
            high,
            "bytes",
            "wdrain",
            wchan,
            "it falls to lorunningspace",
            low is not None and running <= low,
            _tids(kernel, wchan, ("wdrain",)),
        )
    if kernel.has_symbol("bdomain") and "bufdomain" in kernel.layouts:
        yield from _bufdomains(kernel)
    else:
        yield from _global(kernel)


def _global(kernel: Kernel) -> Iterator[BufSpace]:
    needs = _at(kernel, "needsbuffer")
    # bdirtywait has been apart from needsbuffer since 10.0.
    dirty_channel = _at(kernel, "bdirtywait") or needs
    dirty = _value(kernel, "numdirtybuffers")
    if dirty is not None:
        low, high = _value(kernel, "lodirtybuffers"), _value(kernel, "hidirtybuffers")
        yield BufSpace(
            "dirty buffers",
            "numdirtybuffers",
            None,
            dirty,
            low,
            high,
            "buffers",
            "flswai",
            dirty_channel,
            "they fall below the mean of the marks",
            low is not None and high is not None and dirty < (low + high) // 2,
            _tids(kernel, dirty_channel, ("flswai",)),
        )
    space = _value(kernel, "bufspace")
    if space is not None:
        low, high = _value(kernel, "lobufspace"), _value(kernel, "hibufspace")
        yield BufSpace(
            "bufspace",
            "bufspace",
            None,
            space,
            low,
            high,
            "bytes",
            "nbufkv",
            needs,
            "buffers give up space",
            high is not None and space < high,
            _tids(kernel, needs, ("nbufkv", "nbufbs", "newbuf", "bufspace")),
        )
    free = _value(kernel, "numfreebuffers")
    if free is not None:
        low, high = _value(kernel, "lofreebuffers"), _value(kernel, "hifreebuffers")
        yield BufSpace(
            "free buffers",
            "numfreebuffers",
            None,
            free,
            low,
            high,
            "buffers",
            "newbuf",
            needs,
            "a buffer is released",
            free > 0,
            _tids(kernel, needs, ("newbuf",)) if space is None else (),
        )


def _bufdomains(kernel: Kernel) -> Iterator[BufSpace]:
    layouts = kernel.layouts
    base, stride = kernel.address_of("bdomain"), layouts.sizeof("bufdomain")
    count = max(1, min(_value(kernel, "buf_domains") or 1, _MAX_DOMAINS))
    paths = (
        "bd_bufspace",
        "bd_lobufspace",
        "bd_hibufspace",
        "bd_numdirtybuffers",
        "bd_lodirtybuffers",
        "bd_hidirtybuffers",
        "bd_freebuffers",
        "bd_lofreebuffers",
        "bd_hifreebuffers",
    )
    dirty_channel = _at(kernel, "bdirtywait")
    for number in range(count):
        at = base + number * stride
        try:
            values = [
                kernel.signed(at + member.offset, member.size)
                for member in (layouts.resolve("bufdomain", path) for path in paths)
            ]
            wanted = at + layouts.offsetof("bufdomain", "bd_wanted")
        except (MemoryFault, LayoutError) as error:
            kernel.warnings.add(f"bdomain[{number}]", getattr(error, "address", at), str(error))
            continue
        space, lospace, hispace, dirty, lodirty, hidirty, free, lofree, hifree = values
        symbol = f"bdomain[{number}]"
        yield BufSpace(
            "dirty buffers",
            symbol + ".bd_numdirtybuffers",
            number,
            dirty,
            lodirty,
            hidirty,
            "buffers",
            "flswai",
            dirty_channel,
            "they fall below the mean of the marks",
            dirty < (lodirty + hidirty) // 2,
            _tids(kernel, dirty_channel, ("flswai",)) if number == 0 else (),
        )
        yield BufSpace(
            "bufspace",
            symbol + ".bd_bufspace",
            number,
            space,
            lospace,
            hispace,
            "bytes",
            "newbuf",
            wanted,
            "buffers give up space",
            space < hispace,
            _tids(kernel, wanted, ("newbuf", "bufspace")),
        )
        yield BufSpace(
            "free buffers",
            symbol + ".bd_freebuffers",
            number,
            free,
            lofree,
            hifree,
            "buffers",
            "newbuf",
            wanted,
            "a buffer is released",
            free > 0,
            (),
        )


def bufkvaspace(kernel: Kernel) -> Optional[int]:
    """Kernel address space of the buffers in bytes, None before 11.0."""
    symbol = kernel.symbol("bufkvaspace")
    if symbol is None:
        return None
    try:
        value = kernel.unsigned(symbol.address, kernel.pointer_size)
        # A counter(9) from 12.0 on, where the buffer domains are.
        return counter_u64_fetch(kernel, value) if kernel.has_symbol("bdomain") else value
    except MemoryFault as fault:
        kernel.warnings.add("bufkvaspace", fault.address, fault.reason)
        return None
