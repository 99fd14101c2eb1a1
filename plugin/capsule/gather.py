"""What of a kernel tells of people: gathered before it is redacted."""

from __future__ import annotations

from typing import Iterator, List, Set, Tuple

from plugin.capsule.redact import Private
from plugin.errors import LayoutError, MemoryFault, WchanError
from plugin.kernel.geom import mesh
from plugin.kernel.linker import modules
from plugin.kernel.mount import mounts
from plugin.kernel.proc import Proc, processes, threads
from plugin.kernel.zfs.spa import spas
from plugin.session import Kernel
from plugin.targets import Target
from plugin.targets.msgbuf import ring

_P_KPROC = 0x4


def own_words(kernel: Kernel) -> Set[str]:
    """Names that are the kernel's: its processes and threads, messages, devices, pools, types."""
    own = {"kernel", "unknown"}
    ours = {proc.address for proc in processes(kernel) if is_kernels(proc)}
    own.update(proc.comm for proc in processes(kernel) if proc.address in ours)
    for thread in threads(kernel):
        own.add((thread.wmesg or "").lstrip("*"))
        if thread.proc in ours:
            own.add(thread.name)
    own.update(mount.fstype for mount in mounts(kernel))
    own.update(mount.source for mount in mounts(kernel) if "/" not in mount.source)
    own.update(provider.name for provider in mesh(kernel).providers.values())
    own.update(spa.name for spa in spas(kernel))
    for file in modules(kernel):
        own.update((file.filename, file.filename.partition(".")[0]))
    return own


def is_kernels(proc: Proc) -> bool:
    """True of a process of the kernel's own (P_KPROC, sys/proc.h; before 8.x too)."""
    return proc.pid == 0 or bool(proc.flag & _P_KPROC)


def gather(kernel: Kernel, private: Private) -> None:
    """Names of processes, threads, mounts and the host, each with where it lies."""
    layouts = kernel.layouts
    ours = {proc.address for proc in processes(kernel) if is_kernels(proc)}
    wanted: List[Tuple[str, int, str, str]] = []
    wanted += [
        ("name", proc.address, "proc", "p_comm")
        for proc in processes(kernel)
        if proc.address not in ours
    ]
    wanted += [
        ("name", thread.address, "thread", "td_name")
        for thread in threads(kernel)
        if thread.proc not in ours
    ]
    for mount in mounts(kernel):
        wanted.append(("path", mount.address, "mount", "mnt_stat.f_mntonname"))
        wanted.append(("source", mount.address, "mount", "mnt_stat.f_mntfromname"))
    prison = kernel.symbol("prison0")
    if prison is not None and "prison" in layouts:
        wanted.append(("host", prison.address, "prison", "pr_hostname"))
        wanted.append(("host", prison.address, "prison", "pr_domainname"))
    for kind, address, struct, path in wanted:
        try:
            member = layouts.resolve(struct, path)
            private(kind, address + member.offset, kernel.read(
                address + member.offset, member.size))  # fmt: skip
        except (MemoryFault, LayoutError):
            continue
    private.redactor.study(kernel.facts.version)
    private.redactor.study(message_buffer(kernel.target))
    for name in _host_variables(kernel):
        private("host", *name)


def message_buffer(target: Target) -> str:
    """The text of the message buffer, "" where it cannot be read."""
    try:
        return ring(target).data.decode("latin-1")
    except WchanError:
        return target.message_buffer.decode("latin-1")


def _host_variables(kernel: Kernel) -> Iterator[Tuple[int, bytes]]:
    """``hostname`` and ``domainname``, variables of the kernel to 7.x."""
    for name in ("hostname", "domainname"):
        symbol = kernel.symbol(name)
        if symbol is not None and symbol.kind == "object" and 16 <= symbol.size <= 1024:
            try:
                yield symbol.address, kernel.read(symbol.address, symbol.size)
            except WchanError:
                continue
