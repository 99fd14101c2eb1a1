"""The kernel's modules: struct linker_file, so that an address in one can be named.

Mirrors sys/sys/linker.h and sys/kern/kern_linker.c, 6.x to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel


class LinkerFile(NamedTuple):
    """One file linked into the kernel; the first is the kernel itself. ``size`` in bytes."""

    address: int
    filename: str
    base: int
    size: int


@cached(MEMORY)
def linker_files(kernel: Kernel) -> List[LinkerFile]:
    """The kernel and its modules, in the order in which they were loaded."""
    head = kernel.symbol("linker_files")
    if head is None or kernel.layouts.get("linker_file") is None:
        return []
    return [
        LinkerFile(at, kernel.try_cstring(filename), base, size)
        for at, (filename, base, size) in tailq_foreach(
            kernel,
            head.address,
            "linker_file",
            "link",
            ["filename", "address", "size"],
            what="linker_files",
        )
    ]


def linker_file_of(kernel: Kernel, address: int) -> Optional[LinkerFile]:
    """The module that ``address`` lies in, None for the kernel itself and anything else."""
    try:
        modules = linker_files(kernel)[1:]
    except LayoutError:
        return None
    return next((f for f in modules if f.base <= address < f.base + f.size), None)


def name_of(kernel: Kernel, address: int) -> str:
    """ "g_vfs_done", or "zfs.ko+0x1234" for what only a module's own symbols name, or ""."""
    name = kernel.symbolize(address)
    if name:
        return name
    module = linker_file_of(kernel, address)
    return f"{module.filename}+{address - module.base:#x}" if module else ""
