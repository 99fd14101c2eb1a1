"""Variables that each CPU or each network stack has a copy of: DPCPU and VNET.

The symbol names the place in a template; the copy lies a stored distance from it.  That
holds for a module's variables too, whose symbols stand for the space that the kernel
set aside for modules in the same template.

Mirrors sys/sys/pcpu.h (DPCPU_ID_PTR), sys/net/vnet.h (VNET_VNET_PTR), kern/subr_pcpu.c and
net/vnet.c, 8.0 to 15.x.
"""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.counter import mp_maxid
from plugin.session import Kernel


def dpcpu_addresses(kernel: Kernel, name: str) -> Iterator[Tuple[int, int]]:
    """(CPU id, address) of every CPU's copy of DPCPU_DEFINE(..., name).

    Nothing for a kernel without that variable; a CPU that is absent has no copy.
    """
    entry, offsets = kernel.symbol(f"pcpu_entry_{name}"), kernel.symbol("dpcpu_off")
    if entry is None or offsets is None:
        return
    for cpu in range(mp_maxid(kernel) + 1):
        try:
            offset = kernel.pointer(offsets.address + cpu * kernel.pointer_size)
        except MemoryFault as fault:
            kernel.warnings.add("dpcpu_off", fault.address, fault.reason)
            return
        if offset:
            yield cpu, _moved(kernel, entry.address, offset)


def vnet_address(kernel: Kernel, name: str) -> Optional[int]:
    """Where the first network stack (vnet0) keeps VNET_DEFINE(..., name).

    A kernel without VIMAGE has one plain variable of that name.  None where there is
    neither, MemoryFault where the stack's base cannot be read.
    """
    entry = kernel.symbol(f"vnet_entry_{name}")
    if entry is None:
        plain = kernel.symbol(name)
        return plain.address if plain is not None else None
    try:
        vnet0 = kernel.pointer(kernel.address_of("vnet0"))
        base = kernel.view("vnet", vnet0).vnet_data_base
    except LayoutError:
        return None
    return _moved(kernel, entry.address, base)


def _moved(kernel: Kernel, entry: int, distance: int) -> int:
    # The distance is kept so that a plain sum, which may wrap, gives the copy.
    return (entry + distance) & ((1 << 8 * kernel.pointer_size) - 1)
