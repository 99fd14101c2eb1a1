"""counter(9): a sum over per-CPU values, fetched as the kernel fetches it.

Mirrors counter_u64_fetch() (sys/<arch>/include/counter.h) and the zpcpu macros
(sys/sys/pcpu.h, sys/amd64/include/pcpu.h), 10.0 to 15.x.
"""

from __future__ import annotations

from typing import List

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.session import Kernel

#: more CPUs than MAXCPU of any kernel; bounds a corrupt mp_maxid
_MAX_CPUS = 4096


@cached(MEMORY)
def mp_maxid(kernel: Kernel) -> int:
    """The highest CPU id; 0 for a kernel built without SMP.

    A finding where mp_ncpus contradicts it: the greater of the two is taken.
    """
    highest, number = kernel.global_value("mp_maxid", 0), kernel.global_value("mp_ncpus", 1)
    if number > highest + 1 or highest >= _MAX_CPUS:
        kernel.warnings.add("mp_maxid", None, f"is {highest}, which contradicts mp_ncpus, {number}")
        highest = max(highest if highest < _MAX_CPUS else 0, number - 1)
    return max(0, min(highest, _MAX_CPUS - 1))


@cached(MEMORY)
def zpcpu_offsets(kernel: Kernel) -> List[int]:
    """For each CPU id, what is added to a per-CPU allocation's base to find its part."""
    stride = kernel.layouts.constant("UMA_PCPU_ALLOC_SIZE", 0)
    if not stride:
        # Before 12.0 the stride was that of struct pcpu itself.
        stride = kernel.layouts.sizeof("pcpu")
    count = mp_maxid(kernel) + 1
    offsets = [stride * cpu for cpu in range(count)]
    # From 13.0 amd64 stores the base less &__pcpu[0]; what makes up for it, and the
    # CPU's own offset, are in pc_zpcpu_offset.  An absent CPU has no struct pcpu.
    if not kernel.layouts.has("pcpu", "pc_zpcpu_offset") or not kernel.has_symbol("cpuid_to_pcpu"):
        return offsets
    member = kernel.layouts.resolve("pcpu", "pc_zpcpu_offset")
    table = kernel.address_of("cpuid_to_pcpu")
    for cpu in range(count):
        try:
            pcpu = kernel.pointer(table + cpu * kernel.pointer_size)
            own = kernel.unsigned(pcpu + member.offset, member.size) if pcpu else 0
        except MemoryFault as fault:
            kernel.warnings.add(f"struct pcpu of CPU {cpu}", fault.address, fault.reason)
            continue
        if own:
            offsets[cpu] = own
    return offsets


def counter_u64_fetch(kernel: Kernel, counter: int) -> int:
    """The value of a counter_u64_t, modulo 2^64; MemoryFault where it cannot be read."""
    if not counter:
        return 0
    mask = (1 << (8 * kernel.pointer_size)) - 1
    total = 0
    for offset in zpcpu_offsets(kernel):
        total += kernel.unsigned(counter + offset & mask, 8)
    return total & 0xFFFFFFFFFFFFFFFF


def stat(kernel: Kernel, struct: str, address: int, member: str) -> int:
    """A statistic that is a plain integer in some kernels and a counter in others."""
    found = kernel.layouts.resolve(struct, member)
    value = kernel.unsigned(address + found.offset, found.size)
    if found.type.strip() == "counter_u64_t" or found.is_pointer:
        return counter_u64_fetch(kernel, value)
    return value
