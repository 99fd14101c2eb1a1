"""Sockets: what they are connected to, and which socket of this machine that is.

Mirrors struct socket (sys/sys/socketvar.h), unpcb (sys/sys/unpcb.h) and inpcb
(sys/netinet/in_pcb.h), 9.x to 15.x.
"""

from __future__ import annotations

import ipaddress
from typing import Dict, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.file import by_data
from plugin.session import Kernel

_AF_INET, _AF_INET6 = 2, 28
_DTYPE_SOCKET = 2
#: inc_flags, inc_len and inc_fibnum before the ports of struct in_conninfo
_PORTS = 4
#: INC_ISIPV6
_IPV6 = 1


class Endpoints(NamedTuple):
    """Both ends of an internet socket: addresses as text, ports in the host's order."""

    local: str
    local_port: int
    foreign: str
    foreign_port: int

    def __str__(self) -> str:
        return (
            f"{_bracketed(self.local)}:{self.local_port} - "
            f"{_bracketed(self.foreign)}:{self.foreign_port}"
        )

    @property
    def peer(self) -> str:
        return f"{_bracketed(self.foreign)}:{self.foreign_port}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def unix_peer(kernel: Kernel, socket: int) -> int:
    """The struct socket * that a connected local socket talks to; 0 where it is none.

    Raises MemoryFault where the socket cannot be read.
    """
    layouts = kernel.layouts
    pcb = kernel.pointer(socket + layouts.offsetof("socket", "so_pcb"))
    if not pcb:
        return 0
    own = kernel.pointer(pcb + layouts.offsetof("unpcb", "unp_socket"))
    if own != socket:
        return 0
    connected = kernel.pointer(pcb + layouts.offsetof("unpcb", "unp_conn"))
    if not connected:
        return 0
    return kernel.pointer(connected + layouts.offsetof("unpcb", "unp_socket"))


def endpoints(kernel: Kernel, socket: int) -> Optional[Endpoints]:
    """Both ends of a connected internet socket; None for any other, or where it cannot be read.

    Told by the inpcb's own pointer back at the socket.
    """
    layouts = kernel.layouts
    if "inpcb" not in layouts or not layouts.has("inpcb", "inp_inc"):
        return None
    try:
        pcb = kernel.pointer(socket + layouts.offsetof("socket", "so_pcb"))
        if not pcb:
            return None
        if kernel.pointer(pcb + layouts.offsetof("inpcb", "inp_socket")) != socket:
            return None
        raw = kernel.read(pcb + layouts.offsetof("inpcb", "inp_inc"), _PORTS + 36)
    except (MemoryFault, LayoutError):
        return None
    foreign_port = int.from_bytes(raw[_PORTS : _PORTS + 2], "big")
    local_port = int.from_bytes(raw[_PORTS + 2 : _PORTS + 4], "big")
    if not foreign_port:
        return None
    six = bool(raw[0] & _IPV6)
    foreign, local = raw[_PORTS + 4 : _PORTS + 20], raw[_PORTS + 20 : _PORTS + 36]
    return Endpoints(_text(local, six), local_port, _text(foreign, six), foreign_port)


def _text(raw: bytes, six: bool) -> str:
    if six:
        return str(ipaddress.IPv6Address(raw))
    return str(ipaddress.IPv4Address(raw[12:16]))


@cached(MEMORY)
def _by_endpoints(kernel: Kernel) -> Dict[Endpoints, int]:
    """Every connected internet socket that a process has open, by its ends."""
    found: Dict[Endpoints, int] = {}
    if not kernel.layouts.has("file", "f_type"):
        return found
    offset = kernel.layouts.offsetof("file", "f_type")
    size = kernel.layouts.resolve("file", "f_type").size
    for data, opened in by_data(kernel).items():
        try:
            if kernel.unsigned(opened[0].file + offset, size) != _DTYPE_SOCKET:
                continue
        except MemoryFault:
            continue
        ends = endpoints(kernel, data)
        if ends is not None:
            found[ends] = data
    return found


def inet_peer(kernel: Kernel, ends: Endpoints) -> int:
    """The struct socket * at the other end of a connection within this machine, else 0."""
    turned = Endpoints(ends.foreign, ends.foreign_port, ends.local, ends.local_port)
    return _by_endpoints(kernel).get(turned, 0)
