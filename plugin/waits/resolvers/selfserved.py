"""A file system that this very machine serves: NFS mounted from oneself."""

from __future__ import annotations

import ipaddress
from typing import List

from plugin.kernel.proc import Thread
from plugin.kernel.rpc import Server, is_own
from plugin.session import Kernel
from plugin.waits.builder import Builder

_LOCALHOST = ("localhost", "localhost.localdomain")


def serves_itself(kernel: Kernel, server: Server) -> bool:
    """True where the mount's server is this machine: by loopback, or an address of its own."""
    if any(is_own(kernel, client.socket) for client in server.clients):
        return True
    host = server.address.rpartition(":")[0].strip("[]") or server.hostname
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in _LOCALHOST


def nfsd_threads(builder: Builder) -> List[Thread]:
    """The threads of nfsd, asleep without work or serving."""
    return [thread for thread in builder.threads if thread.comm.startswith("nfsd")]
