"""NFS and RPC: from a request to the server that has not answered; from state to who holds it.

All requests of one mount end at one node, its server: one silent server is one cause.
"""

from __future__ import annotations

from typing import Iterable, List, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.judge.locks import kernel_stack_holds
from plugin.kernel.lockf import locks_of
from plugin.kernel.mount import Mount, mount_at, mounts
from plugin.kernel.proc import Thread, all_found
from plugin.kernel.rpc import (
    NFS,
    Client,
    Server,
    client_at,
    client_of_request,
    client_of_socket,
    connection,
    requests,
    server_at,
    server_of_lock,
    servers,
    sockaddr,
)
from plugin.kernel.stack import stack_words
from plugin.kernel.vnode import vnode_at
from plugin.session import Kernel
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.selfserved import nfsd_threads, serves_itself
from plugin.waits.resolvers.stacks import runs
from plugin.words import count

#: what a thread sleeps in while its request is unanswered (ct_waitchan, rc_waitchan)
RPC_MESSAGES = ("nfsreq", "newnfsreq", "rpcrecv", "nfscbreq", "rpcrecon", "rpccon", "connec")
_STATE_MESSAGES = ("nfsv4lck", "nfsv4gr", "nfscld", "nfslyp")
_MAX_HOLDERS = 64


def server_node(builder: Builder, server: Server) -> Node:
    """The server of a mount; where that is this machine itself, its nfsd threads serve it.

    Mounts of one server share its node: it is silent for all of them.
    """
    name = server.hostname or server.mount.source
    key = server.address or name
    node = builder.node(NodeKind.SERVER, key, _server_label(server), server.mount.address)
    if node.end is not None or builder.graph.successors(node.id):
        return node
    same = [each for each in servers(builder.kernel) if (each.address or each.hostname) == key]
    on = [each.mount.on for each in same] or [server.mount.on]
    node.facts = [f"mounted on {', '.join(on[:4])}"]
    if serves_itself(builder.kernel, server):
        own = nfsd_threads(builder)
        busy = [thread for thread in own if thread.wmesg != "rpcsvc"]
        if busy:
            node.facts.append("served by this machine's own nfsd")
            for thread in busy[:_MAX_HOLDERS]:
                builder.join(
                    node,
                    builder.thread(thread),
                    EdgeKind.SERVED_BY,
                    Certainty.CATALOGUED,
                    f"{key} is this machine: its nfsd answers",
                )
            node.any = len(busy) > 1
            return node
    address = f" ({server.address})" if server.address else ""
    what = (
        f"{server.mount.source} on {on[0]}" if len(on) == 1 else f"{name} for {', '.join(on[:4])}"
    )
    node.end = End(
        CauseKind.EXTERNAL,
        f"the NFS server of {what}{address} has not answered",
        "; ".join(_evidence(builder, same)),
        None,
        node.id,
    )
    return node


def _evidence(builder: Builder, same: List[Server]) -> List[str]:
    """How much is unanswered, and whether the connection itself is."""
    mounts_of_it = {each.mount.address for each in same}
    pending = [
        request
        for request in requests(builder.kernel).values()
        if request.server.mount.address in mounts_of_it
    ]
    said = [f"{count(len(pending), 'request')} pending"]
    for server in same:
        said += server.state
        for client in server.clients:
            state = connection(builder.kernel, client.socket)
            if state is not None:
                said.append(
                    f"TCP to {client.address}: {state.unacked} bytes not acknowledged, "
                    f"{count(state.retransmits, 'retransmission')}"
                )
    return said


def _server_label(server: Server) -> str:
    where = f" ({server.address})" if server.address else ""
    return f"NFS server {server.hostname or server.mount.source}{where}"


def _mounts_of(case: Case) -> List[Mount]:
    """Mounts of NFS that the thread works on: on its stack, or the only one there is.

    By the mount, its struct nfsmount or one of its clients.
    """
    some = [mount for mount in mounts(case.kernel) if mount.fstype in NFS]
    words = stack_words(case.kernel, case.thread)
    known = {server.mount.address: server for server in servers(case.kernel)}
    seen = []
    for mount in some:
        marks = {mount.address, mount.data}
        for client in known[mount.address].clients if mount.address in known else ():
            marks |= {client.handle, client.reconnect, client.socket}
        if words & (marks - {0}):
            seen.append(mount)
    return seen or (some if len(some) == 1 else [])


def client_node(builder: Builder, client: Client) -> Node:
    """The server of a client that no mount leads to any more, by the address it talks to.

    An unmount by force takes the client from its mount first, and the mount's own data last.
    """
    server = server_at(builder.kernel, client.address)
    if server is not None:
        return server_node(builder, server)
    known = {each.mount.address for each in servers(builder.kernel)}
    gone = [m for m in mounts(builder.kernel) if m.fstype in NFS and m.address not in known]
    if len(gone) == 1:
        return _unread_server(builder, gone[0], client.address)
    node = builder.node(NodeKind.SERVER, client.address, f"RPC server {client.address}")
    node.end = node.end or End(
        CauseKind.EXTERNAL, f"{node.label} has not answered", f"{client.kind} client", None, node.id
    )
    return node


@resolver("nfs_request")
def nfs_request(case: Case) -> Optional[Verdict]:
    """A request to a server, by the channel; else the mount that the thread's stack shows."""
    builder = case.builder
    verdict = Verdict(Status.STUCK, "waits for a server", case.row)
    request = requests(case.kernel).get(case.address)
    if request is not None:
        server = request.server
        node = builder.object(
            NodeKind.REQUEST, request.address, f"RPC {request.xid:#x} to {server.hostname}"
        )
        case.waits_for(node, Certainty.PROVEN, case.said())
        builder.join(
            node,
            server_node(builder, server),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"ct_pending of the mount's client {request.client.handle:#x}",
        )
        if request.answered:
            node.facts = ["answered"]
        return verdict
    by_mount = {server.mount.address: server for server in servers(case.kernel)}
    for server in by_mount.values():
        # rc_data, ct_data or something inside: connecting, closing, a window that is full.
        for client in server.clients:
            if case.address and (
                case.address in (client.reconnect, client.socket)
                or _inside(case, client) == client.handle
            ):
                case.waits_for(server_node(builder, server), Certainty.PROVEN, case.said())
                return verdict
    lone = _lone_client(case)
    if lone is not None:
        said = f"{case.said()}; {lone.kind} client {lone.handle:#x}, its server {lone.address}"
        case.waits_for(client_node(builder, lone), Certainty.PROVEN, said)
        return verdict
    found = _mounts_of(case)
    if not found:
        node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
        node.end = node.end or End(
            CauseKind.EXTERNAL,
            "an NFS or RPC server has not answered",
            case.said(),
            case.thread.age,
        )
        return verdict
    for mount in found:
        known = by_mount.get(mount.address)
        target = (
            server_node(builder, known) if known is not None else _unread_server(builder, mount)
        )
        certainty = Certainty.GUESSED if len(found) > 1 else Certainty.CATALOGUED
        case.waits_for(target, certainty, f"{mount.on} is its NFS mount; {case.said()}")
    return verdict


#: sleeps on the struct ct_data or cu_data itself, or on this member of one
_CLIENT_MESSAGES = {
    "rpcclose": "",
    "rpcrcvst": "ct_rcvstate",
    "rpccwnd": "cu_cwnd_wait",
}


def _inside(case: Case, client: Client) -> int:
    """Where a client of that kind would lie, if the thread sleeps on it or on a member of it."""
    member = _CLIENT_MESSAGES.get(case.thread.wmesg or "", "")
    struct = "ct_data" if client.kind == "tcp" else "cu_data"
    if not member or not case.kernel.layouts.has(struct, member):
        return case.address
    return case.address - case.kernel.layouts.offsetof(struct, member)


def _lone_client(case: Case) -> Optional[Client]:
    """The client that a thread waits for or asks, where no mount leads to it."""
    if case.thread.wmesg not in _CLIENT_MESSAGES:
        return client_of_request(case.kernel, case.address)
    for kind in ("tcp", "udp"):
        at = _inside(case, Client(0, kind, "", 0, 0))
        found = client_at(case.kernel, at, kind)
        if found is not None:
            return found
    return None


def sends_to_server(case: Case, socket: int) -> Optional[Verdict]:
    """A thread that sleeps on the socket of an RPC client: its request cannot even be sent.

    sosend() waits for room in the socket's buffer, which the server has to make by
    acknowledging what is in it (sys/rpc/clnt_vc.c).
    """
    found = client_of_socket(case.kernel, socket)
    if found is None:
        return None
    node = case.waits_for(
        case.channel_node(f'"{case.thread.wmesg}" on the socket to {found.address}'),
        Certainty.PROVEN,
        case.said(),
    )
    case.builder.join(
        node,
        client_node(case.builder, found),
        EdgeKind.SERVED_BY,
        Certainty.PROVEN,
        f"the socket {socket:#x} is connected to the server of an NFS mount",
    )
    return Verdict(Status.STUCK, "waits for a server to take what is sent", case.row)


def _unread_server(builder: Builder, mount: Mount, address: str = "") -> Node:
    """A mount whose client cannot be read: what mount(8) shows of it is known all the same."""
    name = mount.source.rpartition(":")[0] or mount.source
    where = f" ({address})" if address else ""
    node = builder.object(NodeKind.SERVER, mount.address, f"NFS server {name}{where}")
    node.end = node.end or End(
        CauseKind.EXTERNAL,
        f"the NFS server of {mount.source} on {mount.on}{where} has not answered",
        "mnt_stat.f_mntfromname",
        None,
        node.id,
    )
    return node


# State that threads of the client or the server lock against each other


def in_rpc(builder: Builder) -> List[Thread]:
    """The threads with a request under way."""
    return [thread for thread in builder.threads if thread.wmesg in RPC_MESSAGES]


def _join_holders(
    builder: Builder, node: Node, holders: Iterable[Thread], certainty: Certainty, why: str
) -> None:
    for thread in list(holders)[:_MAX_HOLDERS]:
        builder.join(node, builder.thread(thread), EdgeKind.OWNED_BY, certainty, why)


@resolver("nfs_state_lock")
def nfs_state_lock(case: Case) -> Optional[Verdict]:
    """nfsv4_lock(): no owner is recorded.

    Who has it: a thread with the lock on its stack that does not itself wait for one; else
    the renew thread of its client; else the threads whose requests are unanswered.
    """
    builder, kernel = case.builder, case.kernel
    lock = case.address
    if "nfsv4lock" in kernel.layouts:
        lock -= kernel.layouts.offsetof("nfsv4lock", "nfslock_lock")
    node = builder.object(NodeKind.LOCK, lock, f"NFSv4 state lock {lock:#x}")
    case.waits_for(node, Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, "waits for an NFSv4 state lock, again and again", case.row)
    if node.end is not None or builder.graph.successors(node.id):
        return verdict
    held = _state_lock_facts(kernel, lock)
    others = [t for t in builder.threads if t.kstack and t.wmesg not in _STATE_MESSAGES]
    if kernel.symbolize(lock) == "nfsv4rootfs_lock":
        # Each request of NFSv4 has a reference to it, and the lock is a variable: no stack has it.
        serving = [t for t in others if runs(builder, t, _SERVING)]
        if serving:
            why = "an nfsd at work on a request, which has a reference to it"
            _join_holders(builder, node, serving, Certainty.CATALOGUED, why)
            return verdict
    holders = [thread for thread in others if kernel_stack_holds(kernel, thread, lock)]
    if holders:
        _join_holders(
            builder, node, holders, Certainty.GUESSED, f"its kernel stack holds {lock:#x}"
        )
        return verdict
    if server_of_lock(kernel, lock) is not None:
        renewing = [t for t in others if t.name.startswith("nfscl") or t.comm.startswith("nfscl")]
        busy = [thread for thread in renewing if thread.wmesg != "nfscl"]
        if busy:
            _join_holders(
                builder, node, busy, Certainty.CATALOGUED, "the renew thread recovers the state"
            )
            return verdict
    if case.thread.comm.startswith("nfsd"):
        asking = busy_nfsd(builder, case.thread)
        said = "an nfsd at work; the lock records no holder"
    else:
        asking = _asking(builder, lock)
        said = "it has a request under way; the lock records no holder"
    _join_holders(builder, node, asking, Certainty.GUESSED, said)
    if not asking:
        node.end = _unheld(case, node, held)
    return verdict


#: functions of nfsd between the arrival of a request and its answer (fs/nfsserver/nfs_nfsdkrpc.c)
_SERVING = ("nfsrvd_dorpc", "nfsrvd_compound", "nfs_proc")
_LOCKED = 1


def _state_lock_facts(kernel: Kernel, lock: int) -> str:
    """ "has 2 references", "is locked", "" where it is free or struct nfsv4lock unknown."""
    if "nfsv4lock" not in kernel.layouts:
        return ""
    try:
        view = kernel.view("nfsv4lock", lock)
    except MemoryFault as fault:
        kernel.warnings.add("nfsv4lock", fault.address, fault.reason)
        return ""
    if view.nfslock_lock & _LOCKED:
        return "is locked"
    return f"has {count(view.nfslock_usecnt, 'reference')}" if view.nfslock_usecnt else ""


def _asking(builder: Builder, lock: int) -> List[Thread]:
    """The threads with a request under way, to the lock's own server where that is known."""
    kernel = builder.kernel
    own = server_of_lock(kernel, lock)
    found = in_rpc(builder)
    if own is None:
        return found
    pending = {t.address: requests(kernel).get(t.wchan or 0) for t in found}
    return [
        t
        for t in found
        if (request := pending[t.address]) is None or request.server.nfsmount == own[1]
    ]


def _unheld(case: Case, node: Node, held: str) -> End:
    """Nobody was found that has the lock or a reference: who asks for it has, or nobody."""
    whole = all_found(case.kernel) and not case.kernel.warnings.partial
    if held and whole:
        return End(
            CauseKind.LEAK,
            f"{node.label} {held}, and all who were found to use it wait for it: "
            "one of them has it already, or it was leaked",
            case.said(),
            case.thread.age,
            certainty=Certainty.GUESSED,
        )
    said = f"{node.label}: no holder is recorded, none was found"
    return End(CauseKind.UNKNOWN, said, case.said(), case.thread.age)


def busy_nfsd(builder: Builder, waiter: Thread) -> List[Thread]:
    """The threads of nfsd that serve a request, without those that wait as ``waiter`` does."""
    return [
        thread
        for thread in nfsd_threads(builder)
        if thread.address != waiter.address
        and not builder.waits_for_work(thread)
        and (thread.wmesg, thread.wchan) != (waiter.wmesg, waiter.wchan)
    ]


@resolver("nfs_retry")
def nfs_retry(case: Case) -> Optional[Verdict]:
    """nfs_catnap(): NFS tries again what failed, once in a while.

    An unmount waits for who still uses the mount; everybody else for a server that said later.
    """
    builder = case.builder
    found = _mounts_of(case)
    if len(found) != 1:
        return None
    mount = found[0]
    node = case.waits_for(
        case.channel_node(f'"{case.thread.wmesg}" of {mount.on}'), Certainty.PROVEN, case.said()
    )
    if node.end is None and not builder.graph.successors(node.id):
        users = [t for t in askers(builder, mount.address) if t.address != case.thread.address]
        unmounts = runs(builder, case.thread, ("nfs_unmount",))
        if unmounts and users:
            said = "it has a request under way on the mount that is unmounted"
            _join_holders(builder, node, users, Certainty.GUESSED, said)
        else:
            server = mount_node(builder, mount.address)
            if server is None:
                return None
            said = "its mount is NFS: the server puts off what is asked of it"
            builder.join(node, server, EdgeKind.SERVED_BY, Certainty.CATALOGUED, said)
    return Verdict(Status.STUCK, f"tries again what {mount.on} did not do", case.row)


def askers(builder: Builder, mount: int) -> List[Thread]:
    """The threads with a request to the server of the struct mount at ``mount`` under way."""
    waited = {
        request.address
        for request in requests(builder.kernel).values()
        if request.server.mount.address == mount
    }
    return [thread for thread in builder.threads if thread.wchan in waited]


@resolver("nfsd")
def nfsd(case: Case) -> Optional[Verdict]:
    """nfsrc, nfsd clp, nfsdclp: an entry of the request cache, or a client, in another's use."""
    builder, kernel = case.builder, case.kernel
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, "waits for another nfsd thread", case.row)
    if node.end is not None or builder.graph.successors(node.id):
        return verdict
    busy = busy_nfsd(builder, case.thread)
    seen = [thread for thread in busy if kernel_stack_holds(kernel, thread, case.address)]
    said = f"its kernel stack holds {case.address:#x}" if seen else "an nfsd thread at work"
    _join_holders(builder, node, seen or busy, Certainty.GUESSED, said)
    node.any = not seen and len(busy) > 1
    if not busy:
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: no nfsd thread is at work", case.said())
    return verdict


@resolver("nlm")
def nlm(case: Case) -> Optional[Verdict]:
    """nlmlock: a lock on a file of NFS that its server has not granted (nlm_waiting_lock).

    Benign, as every wait for a lock: who has it may be a process of this machine, whose lock
    the client notes at the vnode too, or anybody's elsewhere.
    """
    builder, kernel = case.builder, case.kernel
    try:
        vnode = kernel.view("nlm_waiting_lock", case.address).nw_vp
    except (MemoryFault, LayoutError):
        return None
    found = vnode_at(kernel, vnode)
    if found is None:
        return None
    node = case.waits_for(
        builder.object(NodeKind.LOCK, case.address, f"NFS lock on {found.label}"),
        Certainty.PROVEN,
        case.said(),
    )
    held, _ = locks_of(kernel, vnode)
    pids = {entry.pid for entry in held if not entry.is_flock} - {case.thread.pid}
    holders = [thread for thread in builder.threads if thread.pid in pids]
    _join_holders(
        builder, node, holders, Certainty.CATALOGUED, "the vnode's own locks have one of it"
    )
    node.any = len(holders) > 1
    server = mount_node(builder, found.mount)
    where = f", {server.label}" if server is not None else ""
    if not holders:
        node.end = node.end or End(
            CauseKind.EXTERNAL, f"{node.label} is not granted{where}", case.said()
        )
    return Verdict(Status.BENIGN, f"waits for {node.label}", case.row)


@resolver("smb_request")
def smb_request(case: Case) -> Optional[Verdict]:
    """90wrq: a request to an SMB server (netsmb, to 14.x); its circuit names the server."""
    kernel, layouts = case.kernel, case.kernel.layouts
    try:
        request = case.address - layouts.offsetof("smb_rq", "sr_state")
        circuit = kernel.view("smb_vc", kernel.view("smb_rq", request).sr_vc)
        name = kernel.try_cstring(circuit.vc_srvname)
        address = sockaddr(kernel, circuit.vc_paddr) if circuit.vc_paddr else ""
    except (MemoryFault, LayoutError):
        return None
    if not name and not address:
        return None
    where = f" ({address})" if address else ""
    node = case.builder.node(
        NodeKind.SERVER, f"smb:{circuit.address:#x}", f"SMB server {name}{where}", circuit.address
    )
    node.end = node.end or End(
        CauseKind.EXTERNAL, f"{node.label} has not answered", "sr_vc of the request", None, node.id
    )
    case.waits_for(node, Certainty.PROVEN, case.said())
    return Verdict(Status.STUCK, "waits for a server", case.row)


@resolver("nfs_slots")
def nfs_slots(case: Case) -> Optional[Verdict]:
    """Every slot of the session is an unanswered request of somebody's."""
    builder = case.builder
    slots = case.channel_node("slots of an NFSv4.1 session")
    node = case.waits_for(slots, Certainty.PROVEN, case.said())
    verdict = Verdict(Status.STUCK, "waits for a slot of the session", case.row)
    if node.end is not None or builder.graph.successors(node.id):
        return verdict
    asking = in_rpc(builder)
    _join_holders(builder, node, asking, Certainty.CATALOGUED, "a request under way has a slot")
    node.any = len(asking) > 1
    if not asking:
        summary = "all slots of an NFSv4.1 session are taken, by whom is not known"
        node.end = End(CauseKind.UNKNOWN, summary)
    return verdict


@resolver("nfs_renew")
def nfs_renew(case: Case) -> Optional[Verdict]:
    """The client's renew thread has to go on, and mostly waits for the server itself."""
    builder = case.builder
    threads = [thread for thread in builder.named(["nfscl"]) if thread is not case.thread]
    busy = [thread for thread in threads if thread.wmesg != "nfscl"]
    if not busy:
        return None
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    builder.served_by(node, busy, "the renew thread")
    return Verdict(Status.STUCK, "waits for NFSv4's renew thread", case.row)


@resolver("nfs_aio")
def nfs_aio(case: Case) -> Optional[Verdict]:
    """ncl_asyncio(): too many buffers wait for the nfsiods of the mount."""
    builder = case.builder
    iods = [thread for thread in builder.named(["nfsiod", "newnfs"]) if thread.wmesg != "-"]
    if not iods:
        return None
    queue = case.channel_node("the nfsiods' queue of a mount")
    node = case.waits_for(queue, Certainty.PROVEN, case.said())
    builder.served_by(node, iods, "nfsiods take buffers from nm_bufq")
    return Verdict(Status.STUCK, "waits for an nfsiod", case.row)


# What hangs on a server without a request of its own


def mount_node(builder: Builder, mount: int) -> Optional[Node]:
    """The node of the server that the struct mount at ``mount`` is of; None if it is no NFS."""
    for server in servers(builder.kernel):
        if server.mount.address == mount:
            return server_node(builder, server)
    found = mount_at(builder.kernel, mount) if mount else None
    return _unread_server(builder, found) if found is not None and found.fstype in NFS else None


def join_carriers(builder: Builder, node: Node, thing: int, mount: int) -> bool:
    """A buffer or nfsnode of a mount: the thread that works on it, else the mount's server.

    NFS starts no bio: a write is at an nfsiod, or in the process that asked for it.
    """
    server = mount_node(builder, mount)
    if server is None:
        return False
    carriers = [
        thread
        for thread in builder.threads
        if thread.wmesg in RPC_MESSAGES and kernel_stack_holds(builder.kernel, thread, thing)
    ]
    for thread in carriers[:_MAX_HOLDERS]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.GUESSED,
            f"its kernel stack holds {thing:#x}, and its request is under way",
        )
    if not carriers:
        said = "its mount is NFS: what it waits for comes from the server"
        builder.join(node, server, EdgeKind.SERVED_BY, Certainty.CATALOGUED, said)
    return True


@resolver("nfs_node")
def nfs_node(case: Case) -> Optional[Verdict]:
    """nfsdirlk, nfscrt, nfslkup: an nfsnode that another thread works on."""
    layouts = case.kernel.layouts
    if "nfsnode" not in layouts:
        return None
    for address in (case.address - layouts.offsetof("nfsnode", "n_flag"), case.address):
        try:
            vnode = case.kernel.pointer(address + layouts.offsetof("nfsnode", "n_vnode"))
            back = case.kernel.pointer(vnode + layouts.offsetof("vnode", "v_data"))
        except (MemoryFault, LayoutError):
            continue
        found = vnode_at(case.kernel, vnode) if back == address else None
        if found is None:
            continue
        node = case.waits_for(
            case.channel_node(f'"{case.thread.wmesg}" on {found.label}'),
            Certainty.PROVEN,
            case.said(),
        )
        if not case.builder.graph.successors(node.id):
            join_carriers(case.builder, node, address, found.mount)
        return Verdict(Status.STUCK, f"waits for another thread inside {found.label}", case.row)
    return None


@resolver("nfs_mount")
def nfs_mount(case: Case) -> Optional[Verdict]:
    """nfsndlck, nfsfdism: what lies in a mount's own struct nfsmount."""
    size = case.kernel.layouts.sizeof("nfsmount") if "nfsmount" in case.kernel.layouts else 0
    for server in servers(case.kernel):
        if server.nfsmount <= case.address < server.nfsmount + size:
            node = case.waits_for(
                case.channel_node(f'"{case.thread.wmesg}" of {server.mount.on}'),
                Certainty.PROVEN,
                case.said(),
            )
            case.builder.join(
                node,
                server_node(case.builder, server),
                EdgeKind.SERVED_BY,
                Certainty.CATALOGUED,
                "whoever has it talks to the mount's server",
            )
            return Verdict(Status.STUCK, f"waits inside the mount {server.mount.on}", case.row)
    return None
