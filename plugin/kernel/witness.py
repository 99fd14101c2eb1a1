"""Locks that each thread holds, as WITNESS records them: proof of every holder.

Mirrors sys/kern/subr_witness.c: td_sleeplocks and pc_spinlocks are chains of
struct lock_list_entry, in every version; empty unless the kernel has WITNESS.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread, threads
from plugin.session import Kernel

_LI_EXCLUSIVE = 0x00010000


class Held(NamedTuple):
    """One lock held: the lock_object's address, how, and where it was taken."""

    lock: int
    exclusive: bool
    file: str
    line: int


@cached(MEMORY)
def holders(kernel: Kernel) -> Dict[int, List[Tuple[Thread, Held]]]:
    """{lock_object address: [(thread, Held)]}; {} where WITNESS keeps nothing."""
    found: Dict[int, List[Tuple[Thread, Held]]] = {}
    if not (kernel.has_symbol("w_data") and kernel.layouts.has("thread", "td_sleeplocks")):
        return found
    offset = kernel.layouts.offsetof("thread", "td_sleeplocks")
    for thread in threads(kernel):
        try:
            chain = kernel.pointer(thread.address + offset)
            for held in _chain(kernel, chain):
                found.setdefault(held.lock, []).append((thread, held))
        except MemoryFault as fault:
            kernel.warnings.add(f"locks of thread {thread.tid}", fault.address, fault.reason)
        except LayoutError as error:
            kernel.warnings.add("WITNESS lock lists", None, str(error))
            return found
    return found


def held_by(kernel: Kernel, address: int) -> List[Held]:
    """The locks that the thread at ``address`` holds, in the order WITNESS has them."""
    return [
        held
        for entries in holders(kernel).values()
        for thread, held in entries
        if thread.address == address
    ]


def _chain(kernel: Kernel, address: int) -> Iterator[Held]:
    layouts = kernel.layouts
    children = layouts.resolve("lock_list_entry", "ll_children")
    stride = layouts.sizeof("lock_instance")
    instance = layouts.fields("lock_instance", "li_lock", "li_file", "li_line", "li_flags")
    exclusive = layouts.constant("LI_EXCLUSIVE", _LI_EXCLUSIVE)
    seen: Set[int] = set()
    while address and address not in seen and len(seen) < 64:
        seen.add(address)
        entry = kernel.view("lock_list_entry", address)
        count = min(entry.ll_count, children.size // stride)
        raw = kernel.read(address + children.offset, count * stride)
        for index in range(count):
            lock, file, line, flags = instance.unpack_from(raw, index * stride)
            if lock:
                yield Held(
                    lock, bool(flags & exclusive), kernel.name_at("WITNESS: a file", file), line
                )
        address = entry.ll_next
