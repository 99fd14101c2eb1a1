"""RPC servers of the kernel, nfsd above all: how many threads they have, and what waits for one.

Mirrors sys/rpc/svc.h and svc.c: one list of threads and connections to 9.x, in groups (r267742)
from 10.1 on.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.pcpu import vnet_addresses
from plugin.kernel.queue import list_foreach, tailq_foreach
from plugin.session import Kernel

#: the variables that point at a pool: nfsd's, the NFSv4 client's for callbacks
_POOLS = ("nfsrvd_pool", "nfscbd_pool")
_MAX_GROUPS = 16
_MAX_THREADS = 1 << 12
_MAX_CONNECTIONS = 1 << 16


class Pool(NamedTuple):
    """One SVCPOOL *: ``threads`` it has, at most ``most``; ``idle`` of them.

    ``connections`` it serves, ``waiting`` of them with requests that no thread has taken
    (sg_active); ``queued`` bytes of requests taken and not done, ``throttled`` True where that
    is so much that it reads no more of them.
    """

    address: int
    name: str
    threads: int
    most: int
    idle: int
    connections: int
    waiting: int
    queued: int
    throttled: bool


@cached(MEMORY)
def pools(kernel: Kernel) -> List[Pool]:
    """The pools that there are; [] where none is, or none can be read."""
    found = []
    for name in _POOLS:
        try:
            # Each network stack of a VIMAGE kernel may have a pool of its own.
            for _, at in vnet_addresses(kernel, name):
                address = kernel.pointer(at)
                if address and "__rpc_svcpool" in kernel.layouts:
                    found.append(_pool(kernel, address))
        except (MemoryFault, LayoutError) as error:
            kernel.warnings.add(name, None, str(error), partial=False)
    return found


def _pool(kernel: Kernel, address: int) -> Pool:
    view = kernel.view("__rpc_svcpool", address)
    threads = idle = connections = waiting = 0
    for struct, at, prefix in _groups(kernel, address):
        group = kernel.view(struct, at)
        threads += group[f"{prefix}threadcount"]
        idle += sum(
            1
            for _ in list_foreach(
                kernel,
                at + kernel.layouts.offsetof(struct, f"{prefix}idlethreads"),
                "__rpc_svcthread",
                "st_ilink",
                what=f"idle threads of RPC pool {address:#x}",
                bound=_MAX_THREADS,
            )
        )
        counts = [
            sum(
                1
                for _ in tailq_foreach(
                    kernel,
                    at + kernel.layouts.offsetof(struct, f"{prefix}{head}"),
                    "__rpc_svcxprt",
                    link,
                    what=f"connections of RPC pool {address:#x}",
                    bound=_MAX_CONNECTIONS,
                )
            )
            for head, link in (("xlist", "xp_link"), ("active", "xp_alink"))
        ]
        connections += counts[0]
        waiting += counts[1]
    return Pool(
        address,
        kernel.try_cstring(view.sp_name) or "RPC",
        threads,
        view.sp_maxthreads,
        idle,
        connections,
        waiting,
        view.sp_space_used,
        bool(view.sp_space_throttled),
    )


def _groups(kernel: Kernel, pool: int) -> Iterator[Tuple[str, int, str]]:
    """(struct, address, what its members begin with) of each group, or of the pool itself."""
    layouts = kernel.layouts
    if not layouts.has("__rpc_svcpool", "sp_groups"):
        yield "__rpc_svcpool", pool, "sp_"
        return
    number = min(kernel.view("__rpc_svcpool", pool).sp_groupcount, _MAX_GROUPS)
    size = layouts.sizeof("__rpc_svcgroup")
    for index in range(number):
        at = pool + layouts.offsetof("__rpc_svcpool", "sp_groups") + index * size
        yield "__rpc_svcgroup", at, "sg_"
