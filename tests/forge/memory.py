"""Memory of a machine that never ran: physical pages, and the kernel's map of them.

Three ways lead from a kernel virtual address to a page, as in a real kernel:
the kernel's own image is loaded contiguously, the direct map (where the
architecture has one) is an offset, and everything else is kernel virtual
memory that gets a page of its own when it is first written.  Pages are made on
first touch, so an address space may be as wide as the scenario likes.

The constants are those of sys/<arch>/include/vmparam.h and pmap.h; which
kernel has which is said beside them.
"""

from __future__ import annotations

from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from plugin.errors import MemoryFault, UsageError

PAGE_SIZE = 4096
PAGE_SHIFT = 12
_OFFSET = PAGE_SIZE - 1
#: what a page holds until it is first written; shared, for most stacks stay empty
ZERO = bytes(PAGE_SIZE)


class Map(NamedTuple):
    """Where one architecture and version keeps what, all addresses virtual."""

    arch: str
    pointer_size: int
    #: first address of the image and its physical address
    kernbase: int
    image: int
    image_pa: int
    image_end: int
    #: (first, end) of the direct map, (0, 0) without one, and its physical start
    dmap: Tuple[int, int]
    dmap_pa: int
    #: first address of the page tables a minidump describes
    kva_min: int
    #: arenas: malloc and UMA, what is mapped for good, kernel stacks
    kmem: int
    kva: int
    stacks: int
    #: physical memory available, [start, end)
    ram: Tuple[int, int]
    #: KSTACK_PAGES
    kstack_pages: int


def address_map(
    arch: str,
    osreldate: int,
    ram: int,
    kstack_pages: Optional[int] = None,
    ram_start: Optional[int] = None,
) -> Map:
    """The map of a kernel: ``ram`` bytes of memory, from ``ram_start`` on if given."""
    found = _address_map(arch, osreldate, ram, kstack_pages)
    if ram_start is not None:
        found = found._replace(ram=(ram_start, ram_start + ram))
    return found


def _address_map(arch: str, osreldate: int, ram: int, kstack_pages: Optional[int]) -> Map:
    if arch == "i386":
        if osreldate >= 1200000:
            # 4/4 GB split: user and kernel share no addresses, the kernel lies low.
            return Map(
                "i386",
                4,
                0x800000,
                0x800000,
                0x800000,
                0x2000000,
                (0, 0),
                0,
                0x800000,
                0x4000000,
                0x2000000,
                0x1C000000,
                (0x1000, ram),
                kstack_pages or 4,
            )
        return Map(
            "i386",
            4,
            0xC0000000,
            0xC0400000,
            0x400000,
            0xC1000000,
            (0, 0),
            0,
            0xC0000000,
            0xC2000000,
            0xC1000000,
            0xE3000000,
            (0x1000, ram),
            kstack_pages or 2,
        )
    if arch == "amd64":
        if osreldate >= 1000000:
            dmap, kva = 0xFFFFF80000000000, 0xFFFFFE0000000000
            dmap_end = 0xFFFFFC0000000000
        elif osreldate >= 901000:
            dmap, kva = 0xFFFFFE0000000000, 0xFFFFFF8000000000
            dmap_end = 0xFFFFFF0000000000
        else:
            dmap, kva = 0xFFFFFF0000000000, 0xFFFFFF8000000000
            dmap_end = 0xFFFFFF8000000000
            if osreldate < 900000:
                kva = 0xFFFFFFFE40000000
        return Map(
            "amd64",
            8,
            0xFFFFFFFF80000000,
            0xFFFFFFFF80200000,
            0x200000,
            0xFFFFFFFF81200000,
            (dmap, dmap_end),
            0,
            kva,
            kva + 0x10000000,
            kva,
            kva + 0x20000000,
            (0x10000, ram),
            kstack_pages or 4,
        )
    if arch == "arm64":
        dmap = 0xFFFFA00000000000 if osreldate >= 1300000 else 0xFFFFFD0000000000
        base = 0x40000000
        return Map(
            "arm64",
            8,
            0xFFFF000000000000,
            0xFFFF000000000000,
            base,
            0xFFFF000001000000,
            (dmap, 0xFFFFFF0000000000),
            base,
            0xFFFF000000000000,
            0xFFFF000010000000,
            0xFFFF000008000000,
            0xFFFF000020000000,
            (base, base + ram),
            kstack_pages or 4,
        )
    raise UsageError(f"no dumps are forged for {arch}; known: i386, amd64, arm64")


class Bulk(NamedTuple):
    """Contiguous physical pages whose content is made only when it is written to a file."""

    first: int
    pages: int
    #: yields the pages' bytes in order; what is missing at the end is zeros
    content: Callable[[], Iterator[bytes]]


class Space:
    """Physical pages and the kernel address space over them.

    ``read`` and ``write`` take kernel virtual addresses.  Writing makes pages;
    reading what was never written is a MemoryFault, as in the dump.
    """

    def __init__(self, map_: Map) -> None:
        self.map = map_
        #: content by physical page number
        self.pages: Dict[int, Union[bytes, bytearray]] = {}
        #: physical page number by virtual page number, outside image and direct map
        self.kva: Dict[int, int] = {}
        self.bulk: List[Bulk] = []
        #: set once page tables describe what is mapped: nothing new may come then
        self.frozen = False
        self._by_va: Dict[int, bytearray] = {}
        first, end = map_.ram
        self._next = first >> PAGE_SHIFT
        self._end = end >> PAGE_SHIFT
        image = map_.image_pa >> PAGE_SHIFT
        self._image_pages = (image, image + ((map_.image_end - map_.image) >> PAGE_SHIFT))

    # Physical pages

    def claim(self, count: int = 1, align: int = 1) -> int:
        """Physical page number of ``count`` contiguous pages nobody has; no content."""
        if self.frozen:
            raise UsageError("the page tables are made already: no page can be added")
        first = -(-self._next // align) * align
        low, high = self._image_pages
        while True:
            if first < high and first + count > low:
                first = -(-high // align) * align
            taken = next((p for p in range(first, first + count) if p in self.pages), None)
            if taken is None:
                break
            first = -(-(taken + 1) // align) * align
        if first + count > self._end:
            raise UsageError(
                f"the scenario needs more than the {(self._end << PAGE_SHIFT) >> 20} MB of memory "
                "that its machine has"
            )
        self._next = first + count
        return first

    def page(self, pfn: int) -> bytearray:
        """Content of a physical page to write to, made of zeros if it had none."""
        found = self.pages.get(pfn)
        if not isinstance(found, bytearray):
            found = self.pages[pfn] = bytearray(found or ZERO)
        return found

    def map_bulk(self, address: int, count: int, content: Callable[[], Iterator[bytes]]) -> None:
        """Map ``count`` pages at ``address`` that nothing is read from or written to here."""
        first = self.claim(count)
        self.bulk.append(Bulk(first, count, content))
        base = address >> PAGE_SHIFT
        for index in range(count):
            self.kva[base + index] = first + index

    # Translation

    def pfn_of(self, address: int, *, create: bool = False) -> int:
        """Physical page number behind a virtual address, or MemoryFault."""
        m = self.map
        if m.image <= address < m.image_end:
            return (m.image_pa + address - m.image) >> PAGE_SHIFT
        if m.dmap[0] <= address < m.dmap[1]:
            return (m.dmap_pa + address - m.dmap[0]) >> PAGE_SHIFT
        vpn = address >> PAGE_SHIFT
        found = self.kva.get(vpn)
        if found is None:
            if not create:
                raise MemoryFault(address, "the forged machine maps nothing there")
            found = self.kva[vpn] = self.claim()
        return found

    def translate(self, address: int) -> int:
        """Physical address behind a virtual one, or MemoryFault."""
        return (self.pfn_of(address) << PAGE_SHIFT) | (address & _OFFSET)

    def direct(self, pa: int) -> int:
        """Address of ``pa`` in the direct map."""
        if not self.map.dmap[1]:
            raise UsageError(f"{self.map.arch} has no direct map")
        return self.map.dmap[0] + pa - self.map.dmap_pa

    # Bytes

    def write(self, address: int, data: bytes) -> None:
        offset = address & _OFFSET
        if offset + len(data) <= PAGE_SIZE:
            page = self._by_va.get(address >> PAGE_SHIFT)
            if page is None:
                page = self._touch(address)
            page[offset : offset + len(data)] = data
            return
        at = 0
        while at < len(data):
            take = min(PAGE_SIZE - (address & _OFFSET), len(data) - at)
            self.write(address, data[at : at + take])
            at += take
            address += take

    def read(self, address: int, size: int) -> bytes:
        taken = []
        while size:
            offset = address & _OFFSET
            take = min(PAGE_SIZE - offset, size)
            page = self.pages.get(self.pfn_of(address))
            if page is None:
                raise MemoryFault(address, "the forged machine has no such page")
            taken.append(bytes(page[offset : offset + take]))
            address += take
            size -= take
        return b"".join(taken)

    def touch(self, address: int, size: int) -> None:
        """Make the pages of a range exist, of zeros where they did not."""
        for page in range(address & ~_OFFSET, address + size, PAGE_SIZE):
            self.pages.setdefault(self.pfn_of(page, create=True), ZERO)

    def _touch(self, address: int) -> bytearray:
        page = self.page(self.pfn_of(address, create=True))
        self._by_va[address >> PAGE_SHIFT] = page
        return page

    # For the writers of dumps

    def image_vpns(self) -> Iterator[Tuple[int, int]]:
        """(virtual, physical) page numbers of the image, of the pages that exist."""
        low, high = self._image_pages
        delta = (self.map.image >> PAGE_SHIFT) - low
        for pfn in sorted(p for p in self.pages if low <= p < high):
            yield pfn + delta, pfn

    def mapped(self) -> List[Tuple[int, int]]:
        """(virtual, physical) page numbers of image and kernel virtual memory, sorted."""
        return sorted(list(self.image_vpns()) + list(self.kva.items()))


class Arena:
    """A stretch of virtual addresses handed out upwards, around what is reserved."""

    def __init__(self, start: int, end: int) -> None:
        self.start = self.next = start
        self.end = end
        self._reserved: List[Tuple[int, int]] = []

    def reserve(self, start: int, size: int) -> None:
        """Keep a range for something that must lie at that very address."""
        self._reserved.append((start, start + size))
        self._reserved.sort()

    def take(self, size: int, align: int = 8) -> int:
        address = -(-self.next // align) * align
        for low, high in self._reserved:
            if address < high and address + size > low:
                address = -(-high // align) * align
        if address + size > self.end:
            raise UsageError(f"the forged arena at {self.start:#x} is full")
        self.next = address + size
        return address
