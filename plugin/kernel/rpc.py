"""RPC clients of the kernel and the NFS mounts they belong to: who has not answered what.

Mirrors sys/rpc (clnt_vc.c, clnt_dg.c, clnt_rc.c, krpc.h) and sys/fs/nfsclient, 8.x to 15.x.
A request has no way back to its client: the mounts are walked down to the requests.
"""

from __future__ import annotations

import ipaddress
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault, WchanError
from plugin.kernel.mount import Mount, mounts
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.socket import endpoints
from plugin.session import Kernel

NFS = ("nfs", "newnfs", "oldnfs")
_AF_INET, _AF_INET6_FREEBSD = 2, 28
_MAX_PENDING = 1 << 16
#: clients of one mount: nconnect is 16 at most, data servers some more
_MAX_CLIENTS = 64
#: _SS_MAXSIZE
_SOCKADDR = 128


class Client(NamedTuple):
    """One RPC client, the CLIENT * of a mount: ``handle`` is its cl_private.

    ``kind`` "tcp", "udp", or "" while it is not connected; ``address`` "192.0.2.1:2049" or
    ""; ``reconnect`` the struct rc_data * above it, 0 where there is none; ``socket`` the
    struct socket *.
    """

    handle: int
    kind: str
    address: str
    reconnect: int
    socket: int


class Server(NamedTuple):
    """What a mount's requests go to.  ``hostname`` as given to mount_nfs(8)."""

    mount: Mount
    nfsmount: int
    hostname: str
    clients: Tuple[Client, ...]

    @property
    def address(self) -> str:
        return next((client.address for client in self.clients if client.address), "")


class Request(NamedTuple):
    """A request that is pending: struct ct_request * (TCP) or cu_request * (UDP)."""

    address: int
    xid: int
    answered: bool
    error: int
    client: Client
    server: Server


@cached(MEMORY)
def servers(kernel: Kernel) -> List[Server]:
    """The server of every NFS mount that can be read."""
    found = []
    for mount in mounts(kernel):
        if mount.fstype in NFS:
            try:
                found.append(_server(kernel, mount))
            except WchanError as error:
                kernel.warnings.add(
                    f"NFS mount {mount.on}", mount.address, str(error), partial=False
                )
    return found


def _server(kernel: Kernel, mount: Mount) -> Server:
    view = kernel.view("mount", mount.address)
    nfsmount = kernel.view("nfsmount", view.mnt_data)
    hostname = ""
    for path in ("nm_com.nmcom_hostname", "nm_hostname"):
        if nfsmount.has(path):
            hostname = nfsmount.text(path)
            break
    if not hostname:
        hostname = mount.source.rpartition(":")[0].strip("[]")
    handles = [nfsmount["nm_sockreq.nr_client"]]
    if nfsmount.has("nm_aconn") and nfsmount.has("nm_aconnect"):
        number = min(nfsmount.nm_aconnect, _MAX_CLIENTS)
        size = kernel.pointer_size
        raw = nfsmount.bytes("nm_aconn")
        handles += [
            int.from_bytes(raw[i * size : (i + 1) * size], "little")
            for i in range(min(number, len(raw) // size))
        ]
    clients = [client for each in handles if each for client in _clients(kernel, each)]
    return Server(mount, nfsmount.address, hostname, tuple(clients))


def _clients(kernel: Kernel, handle: int) -> Iterator[Client]:
    """The client behind a CLIENT *: clnt_rc.c's, and the one it has connected now."""
    try:
        private = kernel.view("__rpc_client", handle).cl_private
        inner = kernel.view("rc_data", private).rc_client
        address = sockaddr(kernel, private + kernel.layouts.offsetof("rc_data", "rc_addr"))
        if not inner:
            yield Client(0, "", address, private, 0)
            return
        yield _connected(kernel, kernel.view("__rpc_client", inner).cl_private, address, private)
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"RPC client {handle:#x}", handle, str(error), partial=False)


def _connected(kernel: Kernel, handle: int, address: str, reconnect: int) -> Client:
    """ct_data or cu_data, told by the address both keep."""
    for kind, struct, member in (("tcp", "ct_data", "ct_addr"), ("udp", "cu_data", "cu_raddr")):
        if struct not in kernel.layouts:
            continue
        try:
            own = sockaddr(kernel, handle + kernel.layouts.offsetof(struct, member))
            socket = kernel.pointer(
                handle + kernel.layouts.offsetof(struct, f"{struct[:2]}_socket")
            )
        except (MemoryFault, LayoutError):
            continue
        if own and (own == address or not address):
            return Client(handle, kind, own, reconnect, socket)
    # The address may be unset in a client made elsewhere: TCP is what mounts use.
    return Client(handle, "tcp", address, reconnect, 0)


def sockaddr(kernel: Kernel, address: int) -> str:
    """The struct sockaddr at ``address`` as "192.0.2.1:2049" or "[2001:db8::1]:2049", else ""."""
    raw = kernel.read(address, 28)
    family, port = raw[1], int.from_bytes(raw[2:4], "big")
    if family == _AF_INET:
        return f"{ipaddress.IPv4Address(raw[4:8])}:{port}"
    if family == _AF_INET6_FREEBSD:
        return f"[{ipaddress.IPv6Address(raw[8:24])}]:{port}"
    return ""


@cached(MEMORY)
def requests(kernel: Kernel) -> Dict[int, Request]:
    """{struct ct_request * or cu_request *: the request}, all that is pending at any mount."""
    found: Dict[int, Request] = {}
    for server in servers(kernel):
        for client in server.clients:
            for request in _pending(kernel, client, server):
                found[request.address] = request
    return found


def _pending(kernel: Kernel, client: Client, server: Server) -> Iterator[Request]:
    layouts = kernel.layouts
    if client.kind == "tcp" and client.handle and "ct_data" in layouts:
        head = client.handle + layouts.offsetof("ct_data", "ct_pending")
        struct = "ct_request"
    elif client.kind == "udp" and client.socket and "cu_socket" in layouts:
        pending = _cu_pending(kernel, client.socket)
        if pending is None:
            return
        head, struct = pending, "cu_request"
    else:
        return
    try:
        for address, (xid, reply, error) in tailq_foreach(
            kernel,
            head,
            struct,
            "cr_link",
            ["cr_xid", "cr_mrep", "cr_error"],
            what=f"RPC requests to {server.hostname}",
            bound=_MAX_PENDING,
        ):
            yield Request(address, xid, bool(reply), error, client, server)
    except LayoutError as error:
        kernel.warnings.add(f"RPC requests to {server.hostname}", head, str(error), partial=False)


def _cu_pending(kernel: Kernel, socket: int) -> Optional[int]:
    """cs_pending of the struct cu_socket that a UDP client's receive upcall has as argument."""
    for path in ("so_rcv.sb_upcallarg", "so_upcallarg"):
        if kernel.layouts.has("socket", path):
            try:
                argument = kernel.pointer(socket + kernel.layouts.offsetof("socket", path))
            except MemoryFault:
                return None
            return argument + kernel.layouts.offsetof("cu_socket", "cs_pending")
    return None


class Connection(NamedTuple):
    """A TCP connection as its struct tcpcb has it; bytes sent and not acknowledged."""

    unacked: int
    retransmits: int


def connection(kernel: Kernel, socket: int) -> Optional[Connection]:
    """The TCP connection of a struct socket *; None where it has none or it cannot be read."""
    layouts = kernel.layouts
    if not socket or "inpcb" not in layouts or "tcpcb" not in layouts:
        return None
    try:
        pcb = kernel.pointer(socket + layouts.offsetof("socket", "so_pcb"))
        if not pcb:
            return None
        tcp = pcb
        if layouts.resolve("tcpcb", "t_inpcb").size <= kernel.pointer_size:
            # From 14.0 on the inpcb is the tcpcb's first member.
            tcp = kernel.pointer(pcb + layouts.offsetof("inpcb", "inp_ppcb"))
        if not tcp:
            return None
        view = kernel.view("tcpcb", tcp)
        unacked = (view.snd_max - view.snd_una) & 0xFFFFFFFF
        return Connection(unacked, view.get("t_rxtshift", 0))
    except (MemoryFault, LayoutError):
        return None


def server_of_lock(kernel: Kernel, address: int) -> Optional[Tuple[int, int]]:
    """(struct nfsclclient *, struct nfsmount *) whose nfsc_lock is at ``address``, else None."""
    layouts = kernel.layouts
    if "nfsclclient" not in layouts:
        return None
    for server in servers(kernel):
        try:
            clp = kernel.view("nfsmount", server.nfsmount).get("nm_clp", 0)
        except (MemoryFault, LayoutError):
            continue
        lock = layouts.offsetof("nfsclclient", "nfsc_lock")
        if clp and clp + lock <= address < clp + lock + layouts.sizeof("nfsv4lock"):
            return clp, server.nfsmount
    return None


def is_own(kernel: Kernel, socket: int) -> bool:
    """True where both ends of a struct socket * have one address: the peer is this machine."""
    ends = endpoints(kernel, socket) if socket else None
    return ends is not None and ends.local == ends.foreign
