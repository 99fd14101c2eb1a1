"""Callouts: what a CPU's callout thread runs now.

Mirrors sys/kern/kern_timeout.c, 8.x to 15.x: one struct callout_cpu per CPU, an array to
14.0, per-CPU data since.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.counter import mp_maxid
from plugin.kernel.pcpu import dpcpu_addresses
from plugin.session import Kernel


class CalloutCpu(NamedTuple):
    """One struct callout_cpu *; ``thread`` the struct thread * that serves it (14.0 on), else 0."""

    address: int
    cpu: int
    thread: int


class Executing(NamedTuple):
    """What one of its two struct cc_exec runs: the struct callout *, its function by name.

    ``direct``: run from the timer interrupt itself, not by the callout thread.
    """

    callout: int
    function: str
    direct: bool


def callout_cpus(kernel: Kernel) -> Iterator[CalloutCpu]:
    """The struct callout_cpu of every CPU that can be read."""
    if "callout_cpu" not in kernel.layouts:
        return
    for cpu, address in _addresses(kernel):
        try:
            thread = kernel.view("callout_cpu", address).get("cc_thread", 0)
        except MemoryFault:
            continue
        yield CalloutCpu(address, cpu, thread)


def _addresses(kernel: Kernel) -> Iterator[Tuple[int, int]]:
    symbol = kernel.symbol("cc_cpu")
    if symbol is None:
        yield from dpcpu_addresses(kernel, "cc_cpu")
        return
    stride = kernel.layouts.sizeof("callout_cpu")
    for cpu in range(mp_maxid(kernel) + 1):
        if symbol.size and (cpu + 1) * stride > symbol.size:
            return
        yield cpu, symbol.address + cpu * stride


def waited_for(kernel: Kernel, channel: int) -> Optional[Tuple[CalloutCpu, Executing]]:
    """What a sleeper in "codrain" waits for: its channel is cc_waiting of a cc_exec.

    None where the channel lies in no callout_cpu.  The callout is 0 where none runs any more.
    """
    layouts = kernel.layouts
    for each in callout_cpus(kernel):
        if not each.address <= channel < each.address + layouts.sizeof("callout_cpu"):
            continue
        try:
            base = each.address + layouts.offsetof("callout_cpu", "cc_exec_entity")
            index = (channel - base) // layouts.sizeof("cc_exec")
            if index not in (0, 1):
                return None
            view = kernel.view("cc_exec", base + index * layouts.sizeof("cc_exec"))
            function = view.get("cc_last_func", 0)
            name = kernel.symbolize(function) if function else ""
            return each, Executing(view.cc_curr, name, index == 1)
        except (MemoryFault, LayoutError):
            return None
    return None
