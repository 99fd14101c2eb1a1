"""Reading ZFS's structures: single members of large structs, names, times."""

from __future__ import annotations

from typing import Any, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.tc import uptime
from plugin.session import Kernel

#: hrtime_t counts nanoseconds since boot (gethrtime() of the SPL is nanouptime())
_NANO = 1e9


def peek(kernel: Kernel, struct: str, address: int, path: str) -> Any:
    """One member of a struct, read alone: a spa is 19 KB.  LayoutError, MemoryFault."""
    member = kernel.layouts.resolve(struct, path)._replace(offset=0)
    at = address + kernel.layouts.offsetof(struct, path)
    return _unpack(kernel, member, at)


def _unpack(kernel: Kernel, member: Any, at: int) -> Any:
    raw = kernel.read(at, member.size)
    if member.size > 8 or member.is_array:
        return raw
    return int.from_bytes(raw, "little", signed=member.is_signed)


def try_peek(kernel: Kernel, struct: str, address: int, path: str, default: Any = None) -> Any:
    """As peek, ``default`` where this kernel has no such member or it cannot be read."""
    try:
        return peek(kernel, struct, address, path)
    except (LayoutError, MemoryFault):
        return default


def text_of(raw: bytes) -> str:
    """A char array as text, up to its NUL."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def age_of(kernel: Kernel, hrtime: Optional[int]) -> Optional[float]:
    """Seconds that have passed since an hrtime_t; None for 0 and for what cannot be."""
    now = uptime(kernel)
    if not hrtime or now is None or hrtime < 0:
        return None
    age = now - hrtime / _NANO
    # The timehands are up to a tick older than a time just taken.
    return max(age, 0.0) if age > -1 else None


def enum_name(kernel: Kernel, table: str, prefix: str, value: int) -> str:
    """ "WRITE" for ZIO_TYPE_WRITE; the number where this kernel has no name for it."""
    name = kernel.layouts.enum(table, value)
    return name[len(prefix) :] if name.startswith(prefix) else name
