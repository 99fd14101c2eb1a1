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
    """Both ends of a connected internet socket; None for any other, or where it cannot be read."""
    found = bound(kernel, socket)
    return found if found is not None and found.foreign_port else None


def bound(kernel: Kernel, socket: int) -> Optional[Endpoints]:
    """Both ends of an internet socket, connected or not; ports that it has not are 0.

    Told by the inpcb's own pointer back at the socket; None where there is none.
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
    six = bool(raw[0] & _IPV6)
    if kernel.private is not None:
        ends = pcb + layouts.offsetof("inpcb", "inp_inc") + _PORTS + 4
        for at in (0, 16):
            start, size = (at, 16) if six else (at + 12, 4)
            kernel.private("address", ends + start, raw[_PORTS + 4 + start :][:size])
    foreign, local = raw[_PORTS + 4 : _PORTS + 20], raw[_PORTS + 20 : _PORTS + 36]
    return Endpoints(_text(local, six), local_port, _text(foreign, six), foreign_port)


class Socket(NamedTuple):
    """One struct socket *: ``family`` "unix", "inet", "inet6" or dom_name, ``type`` of so_type.

    ``name`` is what it is bound to: a path, or "192.0.2.1:22"; ``peer`` what it is connected
    to, by address; ``other`` the struct socket * of a peer on this machine, else 0; ``received``
    and ``sending`` the bytes in its buffers, None for a listening socket; ``state`` the
    connection's (t_state), "listening", or what so_state says of it.
    """

    address: int
    family: str
    type: str
    name: str
    peer: str
    other: int
    received: Optional[int]
    sending: Optional[int]
    state: str


_TYPES = {1: "stream", 2: "datagram", 3: "raw", 4: "rdm", 5: "seqpacket"}
_FAMILIES = {1: "unix", _AF_INET: "inet", _AF_INET6: "inet6", 17: "route", 38: "netlink"}
#: so_options: the socket accepts connections
_SO_ACCEPTCONN = 2


def socket_at(kernel: Kernel, address: int) -> Socket:
    """The struct socket at ``address``; MemoryFault where it cannot be read."""
    layouts = kernel.layouts
    view = kernel.view("socket", address)
    family, label = 0, ""
    if view.so_proto and "domain" in layouts:
        domain = kernel.pointer(view.so_proto + layouts.offsetof("protosw", "pr_domain"))
        found = kernel.view("domain", domain)
        family, label = found.dom_family, kernel.try_cstring(found.dom_name, limit=32)
    listens = bool(view.so_options & _SO_ACCEPTCONN)
    name = peer = ""
    other = 0
    state = "listening" if listens else ""
    ends = bound(kernel, address)
    if ends is not None:
        name = f"{_bracketed(ends.local)}:{ends.local_port}" if ends.local_port else ""
        peer = ends.peer if ends.foreign_port else ""
        other = inet_peer(kernel, ends) if ends.foreign_port else 0
        state = state or _tcp_state(kernel, view.so_pcb, view.so_type)
        family = family or _AF_INET
    elif _is_unix(kernel, address):
        name = _unix_name(kernel, view.so_pcb)
        other = unix_peer(kernel, address)
        if other:
            theirs = kernel.pointer(other + layouts.offsetof("socket", "so_pcb"))
            peer = _unix_name(kernel, theirs) if theirs else ""
        family = 1
    if not state:
        flags = layouts.flags("so_state", view.so_state & 0xFFFF)
        state = " ".join(flag[5:].lower() for flag in flags if flag.startswith("SS_IS"))
    return Socket(
        address,
        _FAMILIES.get(family, label or str(family or "?")),
        _TYPES.get(view.so_type, str(view.so_type)),
        name,
        peer,
        other,
        None if listens else _held(kernel, address, "so_rcv"),
        None if listens else _held(kernel, address, "so_snd"),
        state,
    )


def _held(kernel: Kernel, socket: int, buffer: str) -> Optional[int]:
    """Bytes in a socket buffer: sb_ccc from 11.0 on, sb_cc before (r275326)."""
    path = kernel.layouts.first_of("socket", f"{buffer}.sb_ccc", f"{buffer}.sb_cc")
    if path is None:
        return None
    member = kernel.layouts.resolve("socket", path)
    return kernel.unsigned(socket + member.offset, member.size)


def _is_unix(kernel: Kernel, socket: int) -> bool:
    layouts = kernel.layouts
    if "unpcb" not in layouts:
        return False
    pcb = kernel.pointer(socket + layouts.offsetof("socket", "so_pcb"))
    try:
        return bool(pcb) and socket == kernel.pointer(pcb + layouts.offsetof("unpcb", "unp_socket"))
    except MemoryFault:
        return False


def _unix_name(kernel: Kernel, pcb: int) -> str:
    """The path that a struct unpcb is bound to (unp_addr, a struct sockaddr_un), else ""."""
    try:
        address = kernel.pointer(pcb + kernel.layouts.offsetof("unpcb", "unp_addr"))
        if not address:
            return ""
        # sun_len counts the two bytes before sun_path too.
        length = kernel.unsigned(address, 1)
        raw = kernel.read(address + 2, max(length - 2, 0))
    except (MemoryFault, LayoutError):
        return ""
    if kernel.private is not None:
        kernel.private("path", address + 2, raw)
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _tcp_state(kernel: Kernel, pcb: int, kind: int) -> str:
    """t_state of a TCP socket by its name, "established"; "" for any other."""
    layouts = kernel.layouts
    if kind != 1 or "tcpcb" not in layouts:
        return ""
    try:
        tcp = pcb
        if layouts.resolve("tcpcb", "t_inpcb").size <= kernel.pointer_size:
            # From 14.0 on the inpcb is the tcpcb's first member.
            tcp = kernel.pointer(pcb + layouts.offsetof("inpcb", "inp_ppcb"))
        state = kernel.view("tcpcb", tcp).t_state if tcp else None
    except (MemoryFault, LayoutError):
        return ""
    return "" if state is None else layouts.enum("t_state", state).replace("TCPS_", "").lower()


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
