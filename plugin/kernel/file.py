"""Open files: which process has what open.

Mirrors struct file (sys/sys/file.h) and the descriptor tables of
sys/sys/filedesc.h, 6.x to 15.x: an array of struct file * to 9.x, of struct
filedescent in 10.x, behind struct fdescenttbl from 11.0 on.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import threads
from plugin.session import Kernel

_MAX_FILES = 1 << 20


class Open(NamedTuple):
    """One descriptor: the process (address of its struct proc), its number, the struct file."""

    proc: int
    fd: int
    file: int
    data: int


@cached(MEMORY)
def by_data(kernel: Kernel) -> Dict[int, List[Open]]:
    """{f_data: the descriptors that refer to it}: pipes, sockets and vnodes to their users."""
    found: Dict[int, List[Open]] = {}
    data = kernel.layouts.offsetof("file", "f_data")
    known: Dict[int, int] = {}
    for proc, fd, file in _descriptors(kernel):
        if file not in known:
            try:
                known[file] = kernel.pointer(file + data)
            except MemoryFault as fault:
                kernel.warnings.add("struct file", fault.address, f"{file:#x}: {fault.reason}")
                known[file] = 0
        if known[file]:
            found.setdefault(known[file], []).append(Open(proc, fd, file, known[file]))
    return found


def _descriptors(kernel: Kernel) -> Iterator[Tuple[int, int, int]]:
    p_fd = kernel.layouts.offsetof("proc", "p_fd")
    seen: Set[int] = set()
    for thread in threads(kernel):
        if thread.proc in seen:
            continue
        seen.add(thread.proc)
        try:
            table = kernel.pointer(thread.proc + p_fd)
            if table:
                for fd, file in _table(kernel, table):
                    yield thread.proc, fd, file
        except (MemoryFault, LayoutError) as error:
            at = getattr(error, "address", None)
            kernel.warnings.add(f"files of pid {thread.pid}", at, str(error))


def _table(kernel: Kernel, address: int) -> Iterator[Tuple[int, int]]:
    layouts = kernel.layouts
    size = kernel.pointer_size
    view = kernel.view("filedesc", address)
    if view.has("fd_files"):
        base = view.fd_files
        number = kernel.unsigned(base + layouts.offsetof("fdescenttbl", "fdt_nfiles"), 4)
        base += layouts.offsetof("fdescenttbl", "fdt_ofiles")
        stride = layouts.sizeof("filedescent")
    else:
        base, number = view.fd_ofiles, view.fd_nfiles
        whole = layouts.resolve("filedesc", "fd_ofiles").points_to == "filedescent"
        stride = layouts.sizeof("filedescent") if whole else size
    number = min(number, _MAX_FILES)
    raw = kernel.read(base, number * stride)
    for fd in range(number):
        file = int.from_bytes(raw[fd * stride : fd * stride + size], "little")
        if file:
            yield fd, file


def by_file(kernel: Kernel) -> Dict[int, List[Open]]:
    """{struct file *: the descriptors that refer to it}: what processes share after fork(2)."""
    found: Dict[int, List[Open]] = {}
    for opened in by_data(kernel).values():
        for each in opened:
            found.setdefault(each.file, []).append(each)
    return found
