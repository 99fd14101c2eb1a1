"""What a disk driver's own memory says of the bios it was given.

Drivers keep them in structs of their own (a vtblk_request's vbr_bp, a ccb's
ccb_bp), whose layouts no table here has.  All lie within a few pointers of
d_drv1, so they are looked for there: what is found is what the driver still
refers to; what is not found proves nothing, for some drivers keep them deeper.
"""

from __future__ import annotations

from typing import Callable, Dict, Iterator, List, Set, Tuple

from plugin.errors import MemoryFault
from plugin.kernel.bio import try_bio_at
from plugin.kernel.disk import Disk, is_driver_clone
from plugin.session import Kernel

#: bytes looked at of d_drv1's struct, of what that points to (a virtqueue with its
#: descriptors, a periph's softc), and of what those point to (a request, a ccb)
_WINDOWS = (1024, 8192, 512)
#: reads after which the search ends, whatever it found
_MAX_READS = 8192


def _words(kernel: Kernel, root: int) -> Iterator[Tuple[int, int]]:
    """(address, value) of the pointer-like words reachable from ``root``, nearest first."""
    size = kernel.pointer_size
    level, seen, reads = [root], {root}, 0
    for window in _WINDOWS:
        following: List[int] = []
        for base in level:
            reads += 1
            if reads > _MAX_READS or (reads % 256 == 0 and kernel.interrupted()):
                return
            data = _window(kernel, base, window)
            usable = len(data) // size * size
            for index, value in enumerate(
                memoryview(data[:usable]).cast("Q" if size == 8 else "I")
            ):
                if value % size or not kernel.is_kernel_address(value):
                    continue
                yield base + index * size, value
                if value not in seen:
                    seen.add(value)
                    following.append(value)
        level = following


def _window(kernel: Kernel, address: int, size: int) -> bytes:
    """Up to ``size`` bytes, cut short where a page cannot be read."""
    data = b""
    while size > 0:
        step = min(kernel.page_size - address % kernel.page_size, size)
        try:
            data += kernel.read(address, step)
        except MemoryFault:
            break
        address, size = address + step, size - step
    return data


def references(kernel: Kernel, disk: Disk, bios: Set[int]) -> Dict[int, int]:
    """Of these bios those that the driver still refers to, and the address of the reference."""
    found: Dict[int, int] = {}
    if not disk.drv1 or not bios:
        return found
    for at, value in _words(kernel, disk.drv1):
        if value in bios and value not in found:
            found[value] = at
            if len(found) == len(bios):
                break
    return found


def search(kernel: Kernel, disk: Disk) -> List[int]:
    """Bios of this disk in its driver's memory, for a kernel whose g_bio zone cannot be read.

    A bio freed since may still be referred to, so these are guesses.
    """
    if not disk.drv1:
        return []
    looks_right = _tester(kernel, disk)
    found: List[int] = []
    tried: Set[int] = set()
    for _, value in _words(kernel, disk.drv1):
        if value not in tried:
            tried.add(value)
            if looks_right(value):
                found.append(value)
    return found


def _tester(kernel: Kernel, disk: Disk) -> Callable[[int], bool]:
    at_disk = kernel.layouts.offsetof("bio", "bio_disk")

    def looks_right(address: int) -> bool:
        try:
            if kernel.pointer(address + at_disk) != disk.address:
                return False
        except MemoryFault:
            return False
        bio = try_bio_at(kernel, address, "bio of a driver")
        return bio is not None and is_driver_clone(kernel, bio) and bool(bio.parent)

    return looks_right
