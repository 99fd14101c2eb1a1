"""NFS mounts with their RPC clients and the requests that wait for an answer.

Mirrors sys/fs/nfsclient (nfsmount.h) and sys/rpc (clnt_rc.c, clnt_vc.c), 9.x to 15.x.
"""

from __future__ import annotations

import ipaddress
from typing import List

from tests.forge.builder import Obj
from tests.forge.files import connection
from tests.forge.machine import Machine
from tests.forge.procs import Thread

_AF_INET = 2


class NfsMount:
    """A mount; ``client`` is its struct ct_data, with ``transport`` "udp" its cu_data.

    ``version`` as mount_nfs(8) has it: "3", "4.1".
    """

    def __init__(
        self,
        machine: Machine,
        on: str,
        host: str,
        address: str,
        port: int = 2049,
        *,
        transport: str = "tcp",
        version: str = "3",
    ) -> None:
        m = self.machine = machine
        self.mount = m.vfs.mount("nfs", on, f"{host}:{on}")
        self.obj = m.new("nfsmount")
        self.obj["nm_com.nmcom_hostname"] = host
        major, _, minor = version.partition(".")
        self.obj["nm_sockreq.nr_vers"] = int(major)
        self.obj["nm_sockreq.nr_sotype"] = 1 if transport == "tcp" else 2
        self.obj.probe(nm_minorvers=int(minor or 0))
        self.mount.obj["mnt_data"] = self.obj
        self.tcp = transport == "tcp"
        self.client = m.new("ct_data" if self.tcp else "cu_data")
        self.socket = m.new("socket")
        self.client["ct_socket" if self.tcp else "cu_socket"] = self.socket
        self.reconnect = m.new("rc_data", rc_waitchan=m.string("nfsreq"))
        own = "ct_addr" if self.tcp else "cu_raddr"
        for struct, member in ((self.client, own), (self.reconnect, "rc_addr")):
            self._sockaddr(struct.at(member), address, port)
        self.inner = m.new("__rpc_client", cl_private=self.client)
        self.reconnect["rc_client"] = self.inner
        outer = m.new("__rpc_client", cl_private=self.reconnect)
        self.obj["nm_sockreq.nr_client"] = outer
        self.requests: List[Obj] = []
        if self.tcp:
            self.pending = self.client.at("ct_pending")
        else:
            shared = m.new("cu_socket")
            self.socket.probe(**{"so_rcv.sb_upcallarg": shared, "so_upcallarg": shared})
            self.pending = shared.at("cs_pending")
        m.at_the_end(lambda: m.tailq(self.pending, "cr_link", self.requests))

    def _sockaddr(self, at: int, address: str, port: int) -> None:
        raw = bytes((16, _AF_INET)) + port.to_bytes(2, "big")
        self.machine.space.write(at, raw + ipaddress.IPv4Address(address).packed)

    def request(self, thread: Thread, *, seconds: float = 120.0, timeout: float = 0.0) -> Obj:
        """A thread in clnt_vc_call(): asleep on its request until the server answers."""
        struct, function = (
            ("ct_request", "clnt_vc_call") if self.tcp else ("cu_request", "clnt_dg_call")
        )
        made = self.machine.new(struct, cr_xid=0x5EED0000 + len(self.requests))
        if not self.tcp:
            made["cr_client"] = self.inner
        self.requests.append(made)
        thread.call(function, "clnt_reconnect_call", "newnfs_request")
        thread.sleeps(made, "nfsreq", seconds=seconds, timeout=timeout or None)
        return made

    def connects_anew(self, thread: Thread, *others: Thread, seconds: float = 50.0) -> None:
        """clnt_reconnect_connect(), after a minute without an answer: one connects, others wait.

        The connection before is nobody's but of those who still wait on it.
        """
        m = self.machine
        self.reconnect.set(rc_client=0, rc_connecting=1)
        socket = connection(m, 2049)[0]
        thread.call("clnt_vc_create", "clnt_reconnect_connect", "newnfs_request")
        thread.sleeps(socket.at("so_timeo"), "connec", seconds=seconds)
        for other in others:
            other.call("clnt_reconnect_connect", "newnfs_request")
            other.sleeps(self.reconnect, "rpcrecon", seconds=seconds)

    def unmounted_by_force(self, thread: Thread, *, seconds: float = 60.0) -> None:
        """umount -f in newnfs_nmcancelreqs(): the client is closed, not everybody is out of it.

        clnt_reconnect_close() has taken the connected client away already.
        """
        m = self.machine
        flags = m.constant("MNTK_UNMOUNT") | m.constant("MNTK_UNMOUNTF")
        self.mount.obj["mnt_kern_flag"] = flags
        self.mount.obj.probe(mnt_vfs_ops=1)
        self.reconnect.set(rc_closed=1, rc_client=0)
        names = ("ct", "clnt_vc_close") if self.tcp else ("cu", "clnt_dg_close")
        self.client[f"{names[0]}_closing"] = 1
        self.client[f"{names[0]}_threads"] = len(self.requests)
        thread.call(
            names[1], "clnt_reconnect_close", "newnfs_nmcancelreqs", "nfs_unmount", "dounmount"
        )
        m.write_pointer(thread.local("dounmount", 24), self.mount)
        thread.sleeps(self.client, "rpcclose", seconds=seconds)

    def state_lock(self) -> Obj:
        """The NFSv4 client's struct nfsv4lock, locked by somebody."""
        m = self.machine
        clp = m.new("nfsclclient")
        self.obj["nm_clp"] = clp
        lock = m.view("nfsv4lock", clp.at("nfsc_lock"))
        lock["nfslock_lock"] = 1
        return lock
