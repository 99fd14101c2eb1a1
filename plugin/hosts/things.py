"""Names of what a command can be asked about, for completion in a debugger."""

from __future__ import annotations

from typing import Callable, Dict, Iterable, List

from plugin.kernel.geom import mesh
from plugin.kernel.mount import mounts
from plugin.kernel.proc import processes, threads
from plugin.kernel.zfs.spa import spas
from plugin.session import Kernel


def _threads(kernel: Kernel) -> Iterable[str]:
    for thread in threads(kernel):
        yield from (str(thread.tid), thread.name)


def _structs(kernel: Kernel) -> Iterable[str]:
    for source in kernel.layouts.sources:
        yield from getattr(source, "names", list)()


_KINDS: Dict[str, Callable[[Kernel], Iterable[str]]] = {
    "threads": _threads,
    "processes": lambda kernel: (str(proc.pid) for proc in processes(kernel)),
    "providers": lambda kernel: (p.name for p in mesh(kernel).providers.values()),
    "structs": _structs,
    "pools": lambda kernel: (spa.name for spa in spas(kernel)),
    "mounts": lambda kernel: (mount.on for mount in mounts(kernel)),
}


def things(kernel: Kernel, kind: str) -> List[str]:
    """Names of all threads, processes, providers, structs, pools or mounts; WchanError as walks."""
    return [name for name in _KINDS[kind](kernel) if name and " " not in name]
