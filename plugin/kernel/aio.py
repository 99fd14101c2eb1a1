"""Asynchronous I/O: the jobs of a process that are not done yet.

Mirrors sys/kern/vfs_aio.c, 11.0 to 15.x (struct kaiocb; a struct aiocblist before).
"""

from __future__ import annotations

from typing import List, NamedTuple

from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel

_MAX_JOBS = 1 << 16
#: lio_opcode, sys/sys/aio.h; 13.0 adds LIO_VECTORED and its kin as flags above
_OPCODES = {0: "nop", 1: "write", 2: "read", 4: "sync", 8: "mlock", 16: "fdatasync"}
_OPCODE_MASK = 0x1F


class Job(NamedTuple):
    """One struct kaiocb *: ``file`` its struct file *, ``offset`` and ``length`` in bytes."""

    address: int
    operation: str
    file: int
    offset: int
    length: int


def jobs(kernel: Kernel, proc: int) -> List[Job]:
    """The jobs of a struct proc * that are under way: kaio_jobqueue; [] where it has none.

    MemoryFault or LayoutError where they cannot be read.
    """
    layouts = kernel.layouts
    info = kernel.pointer(proc + layouts.offsetof("proc", "p_aioinfo"))
    if not info:
        return []
    found = []
    for address, (opcode, file, offset, length) in tailq_foreach(
        kernel,
        info + layouts.offsetof("kaioinfo", "kaio_jobqueue"),
        "kaiocb",
        "plist",
        ["uaiocb.aio_lio_opcode", "fd_file", "uaiocb.aio_offset", "uaiocb.aio_nbytes"],
        what=f"kaio_jobqueue of process {proc:#x}",
        bound=_MAX_JOBS,
    ):
        operation = _OPCODES.get(opcode & _OPCODE_MASK, str(opcode))
        found.append(Job(address, operation, file, offset, length))
    return found
