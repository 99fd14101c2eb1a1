"""Character devices in userland, cuse(3): a request and the process that has to answer it.

Mirrors sys/fs/cuse/cuse.c, 11.0 to 15.x.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.session import Kernel

#: CUSE_CMD_*, sys/fs/cuse/cuse_defs.h
_COMMANDS = ("none", "open", "close", "read", "write", "ioctl", "poll", "signal", "sync")


class Request(NamedTuple):
    """One struct cuse_client_command *: ``server`` the pid of the process that serves it.

    ``taken`` the struct thread * that has read it, 0 while none has.
    """

    address: int
    command: str
    server: int
    taken: int


def request_of(kernel: Kernel, channel: int) -> Optional[Request]:
    """The request whose cv is at ``channel``, None where none can be read there."""
    layouts = kernel.layouts
    try:
        address = channel - layouts.offsetof("cuse_client_command", "cv")
        view = kernel.view("cuse_client_command", address)
        client = view.client
        first = client + layouts.offsetof("cuse_client", "cmds")
        number, rest = divmod(address - first, layouts.sizeof("cuse_client_command"))
        if rest or not 0 <= number < len(_COMMANDS):
            return None
        server = kernel.pointer(client + layouts.offsetof("cuse_client", "server"))
        pid = kernel.view("cuse_server", server).pid
    except (MemoryFault, LayoutError):
        return None
    return Request(address, _COMMANDS[number], pid, view.entered)
