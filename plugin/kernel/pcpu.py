"""Variables that each CPU or each network stack has a copy of: DPCPU and VNET.

The symbol names the place in a template; the copy lies a stored distance from it.  That
holds for a module's variables too, whose symbols stand for the space that the kernel
set aside for modules in the same template.

Mirrors sys/sys/pcpu.h (DPCPU_ID_PTR), sys/net/vnet.h (VNET_VNET_PTR), kern/subr_pcpu.c and
net/vnet.c, 8.0 to 15.x.
"""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

from plugin.errors import MemoryFault
from plugin.kernel.counter import mp_maxid
from plugin.kernel.queue import list_foreach
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
    return next((at for _, at in vnet_addresses(kernel, name)), None)


def vnet_addresses(kernel: Kernel, name: str) -> Iterator[Tuple[int, int]]:
    """(struct vnet *, address) of every network stack's copy of VNET_DEFINE(..., name).

    vnet0, the host's, comes first, those of jails after it; of a kernel without VIMAGE the
    one plain variable, with 0 for the stack.  MemoryFault where a stack cannot be read.
    """
    entry = kernel.symbol(f"vnet_entry_{name}")
    if entry is None:
        plain = kernel.symbol(name)
        if plain is not None:
            yield 0, plain.address
        return
    if "vnet" not in kernel.layouts or not kernel.has_symbol("vnet0"):
        return
    first = kernel.pointer(kernel.address_of("vnet0"))
    yield first, _moved(kernel, entry.address, kernel.view("vnet", first).vnet_data_base)
    head = kernel.symbol("vnet_head")
    if head is None:
        return
    for vnet, (base,) in list_foreach(
        kernel, head.address, "vnet", "vnet_le", ["vnet_data_base"], what="vnet_head"
    ):
        if vnet != first:
            yield vnet, _moved(kernel, entry.address, base)


def _moved(kernel: Kernel, entry: int, distance: int) -> int:
    # The distance is kept so that a plain sum, which may wrap, gives the copy.
    return (entry + distance) & ((1 << 8 * kernel.pointer_size) - 1)
