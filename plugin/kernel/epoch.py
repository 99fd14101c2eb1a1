"""Epochs: the threads inside a section that a drainer waits for.

Mirrors sys/kern/subr_epoch.c, 12.x to 15.x.
"""

from __future__ import annotations

from typing import List, NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.queue import tailq_foreach
from plugin.session import Kernel, View

#: UMA's per-CPU allocations lie this far apart (UMA_PCPU_ALLOC_SIZE)
_PCPU_STRIDE = 4096
_MAX_CPUS = 1 << 12


class Epoch(NamedTuple):
    """One struct epoch *: ``inside`` the struct thread * within a section of it.

    ``draining``: callbacks that epoch_drain_callbacks() still waits for.
    """

    address: int
    name: str
    inside: List[int]
    draining: int


def is_epoch(kernel: Kernel, address: int) -> bool:
    """Whether a struct epoch is at ``address``: its first CPU's record points back at it."""
    try:
        record = kernel.view("epoch_record", _records(kernel, kernel.view("epoch", address)))
        return bool(record.er_parent == address)
    except (MemoryFault, LayoutError):
        return False


def _records(kernel: Kernel, view: View) -> int:
    """The struct epoch_record of CPU 0."""
    base: int = view.e_pcpu_record
    if kernel.has_symbol("__pcpu") and base and not kernel.is_kernel_address(base):
        # amd64 from 13.0 on keeps per-CPU pointers relative to its pcpu array.
        relative = kernel.global_value("__pcpu", 0)
        base = (base + relative) & ((1 << 8 * kernel.pointer_size) - 1)
    return base


def epoch_at(kernel: Kernel, address: int) -> Optional[Epoch]:
    """The struct epoch at ``address``, None where it cannot be read."""
    try:
        view = kernel.view("epoch", address)
        name = kernel.name_at("epoch", view.e_name) if view.has("e_name") else ""
        base = _records(kernel, view)
        inside: List[int] = []
        for cpu in range(min(kernel.global_value("mp_maxid", 0) + 1, _MAX_CPUS)):
            inside += _inside(kernel, address, base + cpu * _PCPU_STRIDE)
        return Epoch(address, name, inside, view.get("e_drain_count", 0))
    except (MemoryFault, LayoutError):
        return None


def _inside(kernel: Kernel, epoch: int, record: int) -> List[int]:
    """The threads on one CPU's er_tdlist; [] where the record is none of this epoch's."""
    try:
        view = kernel.view("epoch_record", record)
        if view.er_parent != epoch:
            return []
        return [
            thread
            for _, (thread,) in tailq_foreach(
                kernel,
                view.at("er_tdlist"),
                "epoch_tracker",
                "et_link",
                ["et_td"],
                what=f"threads inside epoch {epoch:#x}",
                bound=1 << 16,
            )
        ]
    except (MemoryFault, LayoutError):
        return []
