"""struct lock_object: the part all of FreeBSD's locks have in common.

Mirrors sys/sys/_lock.h and sys/kern/subr_lock.c.  The class is an index into
``lock_classes[]`` from 7.0-CURRENT on (bits LO_CLASSMASK of lo_flags), a
pointer ``lo_class`` before.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel

#: lc_name by the symbol of the class, for kernels whose read-only strings are not in the
#: dump; each kind in kernel/locks.py adds its own.
CLASS_SYMBOLS: Dict[str, str] = {}


class LockObject(NamedTuple):
    """``name`` is lo_name, ``lc_name`` its class's ("sx", "lockmgr", "sleep mutex", ...).

    None for a name that could not be read: it is equal to none, and no name's absence.
    """

    address: int
    name: Optional[str]
    lc_name: str
    flags: int


@cached(MEMORY)
def lock_class_names(kernel: Kernel) -> List[str]:
    """lc_name of each entry of lock_classes[], in order; "" where unreadable.

    Read through the class symbols, since the names themselves may lie in
    memory that the dump lacks.
    """
    table = kernel.symbol("lock_classes")
    names: List[str] = []
    if table is None:
        return names
    by_address = {}
    for symbol, name in CLASS_SYMBOLS.items():
        found = kernel.symbol(symbol)
        if found is not None:
            by_address[found.address] = name
    count = min(table.size // kernel.pointer_size or 16, 16)
    for index in range(count):
        try:
            address = kernel.pointer(table.address + index * kernel.pointer_size)
        except MemoryFault:
            break
        names.append(by_address.get(address) or _class_name(kernel, address))
    return names


def _class_name(kernel: Kernel, address: int) -> str:
    if not address:
        return ""
    try:
        # lc_name is the first member of struct lock_class in every version.
        return kernel.try_cstring(kernel.pointer(address))
    except MemoryFault:
        return ""


def lock_object(kernel: Kernel, address: int) -> Optional[LockObject]:
    """The lock_object at ``address``, or None where there plainly is none.

    Plainly: unreadable, LO_INITIALIZED not set, or a class that does not exist.
    """
    layout = kernel.layouts["lock_object"]
    try:
        view = kernel.view("lock_object", address)
    except MemoryFault:
        return None
    flags = view.lo_flags
    try:
        initialized = kernel.layouts.constant("LO_INITIALIZED")
    except LayoutError:
        initialized = 0x10000
    if not flags & initialized:
        return None
    if "lo_class" in layout:
        lc_name = _class_name(kernel, view.lo_class)
    else:
        names = lock_class_names(kernel)
        mask = kernel.layouts.constant("LO_CLASSMASK")
        index = (flags & mask) >> kernel.layouts.constant("LO_CLASSSHIFT")
        if index >= len(names):
            return None
        lc_name = names[index]
    if not lc_name:
        return None
    return LockObject(address, _lock_name(kernel, address, view.lo_name), lc_name, flags)


def _lock_name(kernel: Kernel, lock: int, at: int) -> Optional[str]:
    """lo_name as text; None with a finding where it cannot be read."""
    try:
        # What points elsewhere is no name: whoever asked took for a lock what is none.
        return kernel.cstring(at) if kernel.is_kernel_address(at) else ""
    except MemoryFault as fault:
        kernel.warnings.add(f"lock {lock:#x}", fault.address, f"its name: {fault.reason}")
        return None


#: what stands for a name that could not be read
UNREAD = "(name unread)"


def quoted(name: Optional[str]) -> str:
    """A lock's name in quotes, or that it could not be read."""
    return UNREAD if name is None else f'"{name}"'
