"""Physical memory: which vm_page stands for which address, and what is free.

Mirrors sys/vm/vm_phys.c, vm_reserv.c and vm_page.h (PHYS_TO_VM_PAGE), 6.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.uma import items, zone_named
from plugin.session import Kernel

#: VM_PHYSSEG_MAX is 63 or less
_MAX_SEGMENTS = 1024
#: vm_page_array of 64 TB
_MAX_PAGES = 1 << 34


class PageArray(NamedTuple):
    """vm_page_array: ``npages`` structs of ``size`` bytes, the first for page ``first_page``."""

    address: int
    npages: int
    size: int
    first_page: int

    def holds(self, address: int) -> bool:
        """True for the address of one of its elements."""
        place, rest = divmod(address - self.address, self.size)
        return rest == 0 and 0 <= place < self.npages


class Segment(NamedTuple):
    """A contiguous piece of physical memory and its pages; ``start``, ``end`` in bytes."""

    start: int
    end: int
    first_page: int
    npages: int
    domain: int


@cached(MEMORY)
def page_array(kernel: Kernel) -> PageArray:
    """vm_page_array; MemoryFault where it cannot be found out."""
    count = kernel.global_value("vm_page_array_size")
    if not 0 <= count <= _MAX_PAGES:
        kernel.warnings.add(
            "vm_page_array_size", kernel.address_of("vm_page_array_size"), hex(count)
        )
        count = 0
    return PageArray(
        kernel.global_value("vm_page_array"),
        count,
        kernel.layouts.sizeof("vm_page"),
        kernel.global_value("first_page", 0),
    )


@cached(MEMORY)
def segments(kernel: Kernel) -> List[Segment]:
    """The pieces of physical memory: vm_phys_segs from 8.0, phys_avail before."""
    try:
        if kernel.has_symbol("vm_phys_segs") and kernel.has_symbol("vm_phys_nsegs"):
            return _vm_phys_segs(kernel)
        return _phys_avail(kernel)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add("vm_phys_segs", getattr(error, "address", None), str(error))
        return []


def _vm_phys_segs(kernel: Kernel) -> List[Segment]:
    layouts = kernel.layouts
    base, count = kernel.address_of("vm_phys_segs"), kernel.global_value("vm_phys_nsegs")
    stride = layouts.sizeof("vm_phys_seg")
    has_domain = layouts.has("vm_phys_seg", "domain")
    paths = ["start", "end", "first_page"] + (["domain"] if has_domain else [])
    fields = layouts.fields("vm_phys_seg", *paths)
    found = []
    for number in range(min(count, _MAX_SEGMENTS)):
        at = base + number * stride
        start, end, first, *domain = kernel.values(fields, at)
        pages = (end - start) // kernel.page_size
        if not 0 < pages <= _MAX_PAGES or not first:
            kernel.warnings.add("vm_phys_segs", at, f"segment {number} is {start:#x}-{end:#x}")
            continue
        found.append(Segment(start, end, first, pages, domain[0] if domain else 0))
    return found


def _phys_avail(kernel: Kernel) -> List[Segment]:
    """phys_avail[]: pairs of start and end, closed by a pair of zeros."""
    symbol = kernel.symbol("phys_avail")
    array = page_array(kernel)
    if symbol is None:
        return [
            Segment(
                array.first_page * kernel.page_size,
                (array.first_page + array.npages) * kernel.page_size,
                array.address,
                array.npages,
                0,
            )
        ]
    # vm_paddr_t is 8 bytes with PAE and on 64-bit machines.
    width = kernel.layouts.resolve("vm_page", "phys_addr").size
    found = []
    for number in range(min((symbol.size or 20 * width) // (2 * width), _MAX_SEGMENTS)):
        at = symbol.address + 2 * number * width
        start, end = kernel.unsigned(at, width), kernel.unsigned(at + width, width)
        if not end:
            break
        index, pages = (
            start // kernel.page_size - array.first_page,
            (end - start) // kernel.page_size,
        )
        if index < 0 or pages <= 0 or index + pages > array.npages:
            kernel.warnings.add("phys_avail", at, f"{start:#x}-{end:#x} is not in vm_page_array")
            continue
        found.append(Segment(start, end, array.address + index * array.size, pages, 0))
    return found


@cached(MEMORY)
def fictitious(kernel: Kernel) -> Dict[int, int]:
    """Pages that stand for no RAM (device memory), {struct vm_page: physical address}.

    They are the items in use of the zone "fakepg" (vm_page_getfake()).
    """
    zone = zone_named(kernel, "fakepg")
    if zone is None or not zone.keg:
        return {}
    member = kernel.layouts.resolve("vm_page", "phys_addr")
    found = {}
    for page in items(kernel, zone):
        try:
            found[page] = kernel.unsigned(page + member.offset, member.size)
        except MemoryFault as fault:
            kernel.warnings.add("fictitious pages", fault.address, fault.reason)
    return found


def is_vm_page(kernel: Kernel, address: int) -> bool:
    """True where ``address`` is that of a struct vm_page, fictitious ones included."""
    try:
        if page_array(kernel).holds(address):
            return True
    except MemoryFault as fault:
        kernel.warnings.add("vm_page_array", fault.address, fault.reason)
    for segment in segments(kernel):
        index, rest = divmod(address - segment.first_page, kernel.layouts.sizeof("vm_page"))
        if rest == 0 and 0 <= index < segment.npages:
            return True
    return address in fictitious(kernel)


def phys_to_vm_page(kernel: Kernel, address: int) -> Optional[int]:
    """The vm_page of a physical address, None for one that has none."""
    size = kernel.layouts.sizeof("vm_page")
    for segment in segments(kernel):
        if segment.start <= address < segment.end:
            return segment.first_page + (address - segment.start) // kernel.page_size * size
    for page, phys in fictitious(kernel).items():
        if phys <= address < phys + kernel.page_size:
            return page
    array = page_array(kernel)
    index = address // kernel.page_size - array.first_page
    return array.address + index * size if 0 <= index < array.npages else None


def nfreeorder(kernel: Kernel) -> int:
    """VM_NFREEORDER: m->order of a page that heads no free block."""
    value = kernel.layouts.constant("VM_NFREEORDER", 0)
    if value:
        return value
    # i386 from 13.0 has one kernel for both page table formats and decides at run time.
    pae = kernel.global_value("pae_mode", 0)
    return kernel.layouts.constant("VM_NFREEORDER_PAE" if pae else "VM_NFREEORDER_NOPAE", 13)


@cached(MEMORY)
def reserved_unused(kernel: Kernel) -> Optional[int]:
    """Free pages held back inside reservations (superpages being filled).

    They count as free and lie in no free list.  None where this kernel's
    reservations cannot be read.
    """
    layouts = kernel.layouts
    if "vm_reserv" not in layouts or not kernel.has_symbol("vm_reserv_array"):
        return None
    order = layouts.constant("VM_LEVEL_0_ORDER", 0)
    if not order:
        pae = kernel.global_value("pae_mode", 0)
        order = layouts.constant(f"VM_LEVEL_0_ORDER_{'PAE' if pae else 'NOPAE'}", 9)
    if layouts.constant("VM_NRESERVLEVEL", 1) != 1:
        # From 15.0 arm64 counts in two levels; its popcnt is of the outer one.
        order += layouts.constant("VM_LEVEL_1_ORDER", 5)
    pages = 1 << order
    shift = (kernel.page_size * pages).bit_length() - 1
    stride = layouts.sizeof("vm_reserv")
    fields = layouts.fields("vm_reserv", "object", "popcnt")
    unused = 0
    try:
        base = kernel.global_value("vm_reserv_array")
        if not base:
            return None
        starts = _reservations(kernel, base, stride, shift)
        for first, count in starts:
            data = kernel.read(first, count * stride)
            for number in range(count):
                owner, used = fields.unpack_from(data, number * stride)
                if owner and 0 < used < pages:
                    unused += pages - used
    except MemoryFault:
        return None
    return unused


def _reservations(kernel: Kernel, base: int, stride: int, shift: int) -> List[Tuple[int, int]]:
    """(first vm_reserv, how many) that cover the segments, each once."""
    layouts = kernel.layouts
    firsts = layouts.has("vm_phys_seg", "first_reserv")
    seen, found = set(), []
    table = kernel.address_of("vm_phys_segs") if firsts else 0
    for number, segment in enumerate(segments(kernel)):
        first, last = segment.start >> shift, (segment.end - 1) >> shift
        at = base + first * stride
        if firsts:
            # Set only where physical memory is sparse (VM_PHYSSEG_SPARSE).
            member = table + number * layouts.sizeof("vm_phys_seg")
            at = kernel.pointer(member + layouts.offsetof("vm_phys_seg", "first_reserv")) or at
        for index in range(last - first + 1):
            if at + index * stride not in seen:
                seen.add(at + index * stride)
                found.append(at + index * stride)
    runs: List[Tuple[int, int]] = []
    for address in sorted(found):
        if runs and runs[-1][0] + runs[-1][1] * stride == address and runs[-1][1] < 4096:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((address, 1))
    return runs
