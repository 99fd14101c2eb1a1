"""RPC clients of the kernel and the NFS mounts they belong to: who has not answered what.

Mirrors sys/rpc (clnt_vc.c, clnt_dg.c, clnt_rc.c, krpc.h) and sys/fs/nfsclient, 8.x to 15.x.
A request has no way back to its client: the mounts are walked down to the requests.
"""

from __future__ import annotations

import ipaddress
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault, WchanError
from plugin.kernel.mount import Mount, mounts, unmounting
from plugin.kernel.proc import threads
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.socket import endpoints
from plugin.session import Kernel, View

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
    struct socket *; ``closed`` True once CLNT_CLOSE() was called on the former, as an
    unmount by force does, ``connecting`` while a thread makes a new connection for it.
    ``wmesg`` is what its callers sleep in (rc_waitchan).
    """

    handle: int
    kind: str
    address: str
    reconnect: int
    socket: int
    closed: bool = False
    connecting: bool = False
    wmesg: str = ""


class Server(NamedTuple):
    """What a mount's requests go to.  ``hostname`` as given to mount_nfs(8).

    ``version`` "3", "4.1", "" where it cannot be told; ``transport`` "tcp" or "udp";
    ``state`` what the client says of it: "not responding", "connecting", ...
    """

    mount: Mount
    nfsmount: int
    hostname: str
    clients: Tuple[Client, ...]
    version: str
    transport: str
    state: List[str]

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


#: what nmcom_state (nm_state before 9.0) and nm_privflag say, for people; fs/nfs/nfsport.h,
#: fs/nfsclient/nfsmount.h
_STATE = (
    ("NFSSTA_TIMEO", "not responding"),
    ("NFSSTA_LOCKTIMEO", "lockd not responding"),
)
_PRIVATE = (
    ("NFSMNTP_FORCEDISM", "its unmount by force is past the point of return"),
    ("NFSMNTP_CANCELRPCS", "its requests are being cancelled"),
)
_SOCK_STREAM, _SOCK_DGRAM = 1, 2


def _server(kernel: Kernel, mount: Mount) -> Server:
    nfsmount = kernel.view("nfsmount", mount.data)
    hostname = ""
    for path in ("nm_com.nmcom_hostname", "nm_hostname"):
        if nfsmount.has(path):
            hostname = nfsmount.text(path)
            if kernel.private is not None:
                kernel.private("host", nfsmount.at(path), nfsmount.bytes(path))
            break
    if not hostname:
        hostname = mount.source.rpartition(":")[0].strip("[]")
    clients = [
        client
        for each in dict.fromkeys(_handles(kernel, nfsmount))
        if each
        for client in _clients(kernel, each)
    ]
    version = str(nfsmount.get("nm_sockreq.nr_vers", "") or "")
    if version == "4" and nfsmount.has("nm_minorvers"):
        version += f".{nfsmount.nm_minorvers}"
    socket_type = nfsmount["nm_sockreq.nr_sotype"]
    transport = {_SOCK_STREAM: "tcp", _SOCK_DGRAM: "udp"}.get(socket_type, "")
    transport = transport or next((client.kind for client in clients if client.kind), "")
    state = _state(kernel, mount, nfsmount, clients)
    return Server(mount, nfsmount.address, hostname, tuple(clients), version, transport, state)


def _handles(kernel: Kernel, nfsmount: View) -> Iterator[int]:
    """Every CLIENT * of a mount: its own, those of nconnect (13.0 on), of pNFS data servers."""
    yield nfsmount["nm_sockreq.nr_client"]
    size = kernel.pointer_size
    if nfsmount.has("nm_aconn") and nfsmount.has("nm_aconnect"):
        raw = nfsmount.bytes("nm_aconn")
        for i in range(min(nfsmount.nm_aconnect, _MAX_CLIENTS, len(raw) // size)):
            yield int.from_bytes(raw[i * size : (i + 1) * size], "little")
    if nfsmount.has("nm_sess") and kernel.layouts.has("nfsclds", "nfsclds_sockp"):
        inside = kernel.layouts.offsetof("nfssockreq", "nr_client")
        for _, (sockreq,) in tailq_foreach(
            kernel,
            nfsmount.at("nm_sess"),
            "nfsclds",
            "nfsclds_list",
            ["nfsclds_sockp"],
            what=f"sessions of the NFS mount {nfsmount.address:#x}",
            bound=_MAX_CLIENTS,
        ):
            if sockreq:
                yield kernel.pointer(sockreq + inside)


def _state(kernel: Kernel, mount: Mount, nfsmount: View, clients: List[Client]) -> List[str]:
    constant = kernel.layouts.constant
    flags = nfsmount.get("nm_com.nmcom_state", nfsmount.get("nm_state", 0))
    said = [word for name, word in _STATE if flags & constant(name, 0)]
    flags = nfsmount.get("nm_privflag", 0)
    said += [word for name, word in _PRIVATE if flags & constant(name, 0)]
    if "MNTK_UNMOUNTF" in unmounting(kernel, mount):
        said.append("being unmounted by force")
    if any(client.closed for client in clients):
        said.append("its client is closed")
    if any(client.connecting for client in clients):
        said.append("connecting anew")
    elif any(client.reconnect and not client.handle and not client.closed for client in clients):
        said.append("not connected")
    return said


def _clients(kernel: Kernel, handle: int) -> Iterator[Client]:
    """The client behind a CLIENT *: clnt_rc.c's, and the one it has connected now."""
    try:
        private = kernel.view("__rpc_client", handle).cl_private
        outer = kernel.view("rc_data", private)
        address = sockaddr(kernel, private + kernel.layouts.offsetof("rc_data", "rc_addr"))
        found = Client(0, "", address, private, 0)
        if outer.rc_client:
            inner = kernel.view("__rpc_client", outer.rc_client).cl_private
            found = _connected(kernel, inner, address, private)
        yield found._replace(
            closed=bool(outer.rc_closed),
            connecting=bool(outer.rc_connecting),
            wmesg=kernel.try_cstring(outer.rc_waitchan, limit=32),
        )
    except (MemoryFault, LayoutError) as error:
        kernel.warnings.add(f"RPC client {handle:#x}", handle, str(error), partial=False)


#: kind, struct, the member with the server's address; what both structs' names begin with
_KINDS = (("tcp", "ct_data", "ct_addr"), ("udp", "cu_data", "cu_raddr"))


def _connected(kernel: Kernel, handle: int, address: str, reconnect: int) -> Client:
    """ct_data or cu_data, told by the address both keep."""
    for kind, _, _ in _KINDS:
        found = client_at(kernel, handle, kind)
        if found is not None and (found.address == address or not address):
            return found._replace(reconnect=reconnect)
    # The address may be unset in a client made elsewhere: TCP is what mounts use.
    return Client(handle, "tcp", address, reconnect, 0)


def client_at(kernel: Kernel, handle: int, kind: str) -> Optional[Client]:
    """The struct ct_data ("tcp") or cu_data ("udp") at ``handle``, None where none is.

    Told by the address of its server.
    """
    struct, member = next(row[1:] for row in _KINDS if row[0] == kind)
    if struct not in kernel.layouts:
        return None
    try:
        address = sockaddr(kernel, handle + kernel.layouts.offsetof(struct, member))
        socket = kernel.pointer(handle + kernel.layouts.offsetof(struct, f"{struct[:2]}_socket"))
    except (MemoryFault, LayoutError):
        return None
    return Client(handle, kind, address, 0, socket) if address else None


def client_of_request(kernel: Kernel, request: int) -> Optional[Client]:
    """The client that a struct ct_request or cu_request is pending at, None where none is.

    By the request's own way back, for one that no mount leads to: an unmount by force takes
    the client away from its mount before the last request is out (clnt_reconnect_close()).
    """
    layouts = kernel.layouts
    if "cu_request" in layouts:
        try:
            at = kernel.pointer(request + layouts.offsetof("cu_request", "cr_client"))
            if kernel.is_kernel_address(at):
                private = kernel.view("__rpc_client", at).cl_private
                found = client_at(kernel, private, "udp")
                if found is not None:
                    return found
        except (MemoryFault, LayoutError):
            pass
    try:
        head = _head_of(kernel, request)
        inside = layouts.offsetof("ct_data", "ct_pending")
    except (MemoryFault, LayoutError):
        return None
    return client_at(kernel, head - inside, "tcp") if head else None


def _head_of(kernel: Kernel, request: int) -> int:
    """The head of the TAILQ that a ct_request is on: whose tqh_last points at a NULL."""
    size = kernel.pointer_size
    at = request + kernel.layouts.offsetof("ct_request", "cr_link")
    for _ in range(_MAX_PENDING):
        before = kernel.pointer(at + size)
        if kernel.pointer(before) != at:
            return 0
        if kernel.pointer(kernel.pointer(before + size)) == 0:
            return before
        at = before
    return 0


def client_of_socket(kernel: Kernel, socket: int) -> Optional[Client]:
    """The client whose socket it is, or that has the same server; None where it is of neither."""
    ends: Optional[str] = None
    for server in servers(kernel):
        for client in server.clients:
            if client.socket == socket:
                return client
            if ends is None:
                found = endpoints(kernel, socket)
                ends = found.peer if found is not None else ""
            if ends and client.address == ends:
                return client._replace(socket=socket)
    return None


def server_at(kernel: Kernel, address: str) -> Optional[Server]:
    """A mount's server with that address, None where no mount has one."""
    return next((each for each in servers(kernel) if address and each.address == address), None)


def sockaddr(kernel: Kernel, address: int) -> str:
    """The struct sockaddr at ``address`` as "192.0.2.1:2049" or "[2001:db8::1]:2049", else ""."""
    raw = kernel.read(address, 28)
    family, port = raw[1], int.from_bytes(raw[2:4], "big")
    if kernel.private is not None and family in (_AF_INET, _AF_INET6_FREEBSD):
        at, size = (4, 4) if family == _AF_INET else (8, 16)
        kernel.private("address", address + at, raw[at : at + size])
    if family == _AF_INET:
        return f"{ipaddress.IPv4Address(raw[4:8])}:{port}"
    if family == _AF_INET6_FREEBSD:
        return f"[{ipaddress.IPv6Address(raw[8:24])}]:{port}"
    return ""


@cached(MEMORY)
def requests(kernel: Kernel) -> Dict[int, Request]:
    """{struct ct_request * or cu_request *: the request}, all that is pending at any mount.

    A mount that has lost its client, or connected anew, does not lead to the requests of the
    one before: those are added that threads wait for.
    """
    found: Dict[int, Request] = {}
    for server in servers(kernel):
        for client in server.clients:
            for request in _pending(kernel, client, server):
                found[request.address] = request
    messages = {client.wmesg for server in servers(kernel) for client in server.clients} - {""}
    for thread in threads(kernel) if messages else ():
        if thread.wmesg in messages and thread.wchan and thread.wchan not in found:
            lost = _lost(kernel, thread.wchan)
            if lost is not None:
                found[lost.address] = lost
    return found


def _lost(kernel: Kernel, address: int) -> Optional[Request]:
    client = client_of_request(kernel, address)
    server = server_at(kernel, client.address) if client is not None else None
    if client is None or server is None:
        return None
    view = kernel.view("ct_request" if client.kind == "tcp" else "cu_request", address)
    return Request(address, view.cr_xid, bool(view.cr_mrep), view.cr_error, client, server)


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
