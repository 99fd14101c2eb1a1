"""FUSE: a request to a file system's daemon, and who that daemon is.

Mirrors sys/fs/fuse (fuse_ipc.h, fuse_device.c), 10.x to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.file import by_file
from plugin.kernel.queue import list_foreach
from plugin.session import Kernel

_OPCODES = {
    1: "LOOKUP",
    2: "FORGET",
    3: "GETATTR",
    4: "SETATTR",
    5: "READLINK",
    6: "SYMLINK",
    8: "MKNOD",
    9: "MKDIR",
    10: "UNLINK",
    11: "RMDIR",
    12: "RENAME",
    13: "LINK",
    14: "OPEN",
    15: "READ",
    16: "WRITE",
    17: "STATFS",
    18: "RELEASE",
    20: "FSYNC",
    21: "SETXATTR",
    22: "GETXATTR",
    23: "LISTXATTR",
    24: "REMOVEXATTR",
    25: "FLUSH",
    26: "INIT",
    27: "OPENDIR",
    28: "READDIR",
    29: "RELEASEDIR",
    30: "FSYNCDIR",
    31: "GETLK",
    32: "SETLK",
    33: "SETLKW",
    34: "ACCESS",
    35: "CREATE",
    36: "INTERRUPT",
    37: "BMAP",
    38: "DESTROY",
    46: "LSEEK",
}


class Ticket(NamedTuple):
    """One struct fuse_ticket *: the request ``opcode`` by name, the caller's ``pid``.

    ``data`` is its struct fuse_data *, ``mount`` its struct mount *; ``unread`` True while
    the daemon has not read it.
    """

    address: int
    data: int
    mount: int
    opcode: str
    unique: int
    pid: int
    unread: bool


def ticket_at(kernel: Kernel, address: int) -> Optional[Ticket]:
    """The struct fuse_ticket at ``address``, None where it cannot be read as one."""
    try:
        view = kernel.view("fuse_ticket", address)
        if not kernel.is_kernel_address(view.tk_data):
            return None
        data = kernel.view("fuse_data", view.tk_data)
        base = kernel.pointer(view.at("tk_ms_fiov"))
        opcode, unique, pid = "request", view.tk_unique, 0
        if base:
            header = kernel.view("fuse_in_header", base)
            opcode = _OPCODES.get(header.opcode, f"opcode {header.opcode}")
            unique, pid = header.unique, header.pid
        return Ticket(
            address, data.address, data.mp, opcode, unique, pid, _unread(kernel, data, address)
        )
    except LayoutError:
        return None
    except MemoryFault as fault:
        kernel.warnings.add("struct fuse_ticket", fault.address, f"{address:#x}: {fault.reason}")
        return None


def _unread(kernel: Kernel, data, address: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether the ticket is still on ms_head."""
    link = kernel.layouts.offsetof("fuse_ticket", "tk_ms_link")
    at = kernel.pointer(data.at("ms_head"))
    for _ in range(1 << 12):
        if not at or at == address:
            return bool(at)
        at = kernel.pointer(at + link)
    return False


def daemons(kernel: Kernel, data: int) -> List[int]:
    """The struct proc * that have the session of a struct fuse_data * open: its daemon.

    From the device (fdev) to the private data of each of its open files (cdp_fdpriv); []
    where that cannot be read.
    """
    found: List[int] = []
    try:
        device = kernel.pointer(data + kernel.layouts.offsetof("fuse_data", "fdev"))
        private = device - kernel.layouts.offsetof("cdev_priv", "cdp_c")
        head = private + kernel.layouts.offsetof("cdev_priv", "cdp_fdpriv")
        for _, (file, value) in list_foreach(
            kernel,
            head,
            "cdev_privdata",
            "cdpd_list",
            ["cdpd_fp", "cdpd_data"],
            what="open files of /dev/fuse",
            bound=1 << 16,
        ):
            if value == data:
                found += [each.proc for each in by_file(kernel).get(file, ())]
    except LayoutError:
        return []
    except MemoryFault as fault:
        kernel.warnings.add("open files of /dev/fuse", fault.address, fault.reason)
    return list(dict.fromkeys(found))
