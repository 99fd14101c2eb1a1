"""NFS mounts with their RPC clients and the requests that wait for an answer.

Mirrors sys/fs/nfsclient (nfsmount.h) and sys/rpc (clnt_rc.c, clnt_vc.c), 9.x to 15.x.
"""

from __future__ import annotations

import ipaddress
from typing import List

from tests.forge.builder import Obj
from tests.forge.machine import Machine
from tests.forge.procs import Thread

_AF_INET = 2


class NfsMount:
    """A mount over TCP; ``client`` is its struct ct_data."""

    def __init__(
        self, machine: Machine, on: str, host: str, address: str, port: int = 2049
    ) -> None:
        m = self.machine = machine
        self.mount = m.vfs.mount("nfs", on, f"{host}:{on}")
        self.obj = m.new("nfsmount")
        self.obj["nm_com.nmcom_hostname"] = host
        self.mount.obj["mnt_data"] = self.obj
        self.client = m.new("ct_data")
        reconnect = m.new("rc_data")
        for struct, member in ((self.client, "ct_addr"), (reconnect, "rc_addr")):
            self._sockaddr(struct.at(member), address, port)
        inner = m.new("__rpc_client", cl_private=self.client)
        reconnect["rc_client"] = inner
        outer = m.new("__rpc_client", cl_private=reconnect)
        self.obj["nm_sockreq.nr_client"] = outer
        self.requests: List[Obj] = []
        m.at_the_end(lambda: m.tailq(self.client.at("ct_pending"), "cr_link", self.requests))

    def _sockaddr(self, at: int, address: str, port: int) -> None:
        raw = bytes((16, _AF_INET)) + port.to_bytes(2, "big")
        self.machine.space.write(at, raw + ipaddress.IPv4Address(address).packed)

    def request(self, thread: Thread, *, seconds: float = 120.0, timeout: float = 0.0) -> Obj:
        """A thread in clnt_vc_call(): asleep on its request until the server answers."""
        made = self.machine.new("ct_request", cr_xid=0x5EED0000 + len(self.requests))
        self.requests.append(made)
        thread.call("clnt_vc_call", "clnt_reconnect_call", "newnfs_request")
        thread.sleeps(made, "nfsreq", seconds=seconds, timeout=timeout or None)
        return made

    def state_lock(self) -> Obj:
        """The NFSv4 client's struct nfsv4lock, locked by somebody."""
        m = self.machine
        clp = m.new("nfsclclient")
        self.obj["nm_clp"] = clp
        lock = m.view("nfsv4lock", clp.at("nfsc_lock"))
        lock["nfslock_lock"] = 1
        return lock
