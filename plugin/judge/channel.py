"""What a wait channel is: a variable, a member of an object, a stack, pause(9)."""

from __future__ import annotations

from bisect import bisect_right
from typing import FrozenSet, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.catalogue import Spec
from plugin.errors import LayoutError, MemoryFault, WchanError
from plugin.judge.geom_io import found_bios
from plugin.kernel.buf import buf_lock, is_cached
from plugin.kernel.locks import has_old_lockmgr
from plugin.kernel.mount import by_address as mounts_by_address
from plugin.kernel.mount import mount_at
from plugin.kernel.proc import Thread, thread_at, threads
from plugin.kernel.sleepqueue import Sleep
from plugin.kernel.uma import zone_at, zone_of_channel
from plugin.kernel.vnode import vnode_of_lock
from plugin.session import Kernel

#: variables that are arrays of a struct: a channel inside names a member of it
_ARRAYS = {"vm_dom": "vm_domain", "bdomain": "bufdomain", "thread0_st": "thread"}
_PAUSE = "pause_wchan"


class Channel:
    """A wait channel and what can be told of it without the catalogue."""

    def __init__(self, kernel: Kernel, address: int, sleep: Optional[Sleep]) -> None:
        self.kernel = kernel
        self.address = address
        self.sleep = sleep
        found = kernel.covering(address) if address else None
        #: the variable it lies in, and where in it
        self.symbol: Optional[str] = None
        self.offset = 0
        if found is not None and _covers(kernel, found[0], address):
            self.symbol, self.offset = found

    @property
    def type(self) -> Optional[str]:
        return self.sleep.type if self.sleep is not None else None

    @property
    def is_pause(self) -> bool:
        return self.symbol == _PAUSE or self.type == "pause"

    @property
    def name(self) -> str:
        """The variable, or the address; of one on a kernel stack the thread whose that is."""
        if self.symbol is None:
            owner = self.stack_owner() if self.address else None
            on = f" on the stack of {owner.tid} {owner.name}" if owner is not None else ""
            return f"{self.address:#x}{on}"
        return f"{self.symbol}+{self.offset:#x}" if self.offset else self.symbol

    def stack_owner(self) -> Optional[Thread]:
        """The thread whose kernel stack the channel lies on, None if on none."""
        return stack_owner(self.kernel, self.address)

    def fits(self, spec: Spec) -> Optional[bool]:
        """Whether the channel is what a row of the catalogue says; None if that cannot be told."""
        if spec.kind == "symbol":
            # The variables of a module are not in the kernel's symbol table.
            return False if self.symbol or self.kernel.has_symbol(spec.name) else None
        if spec.kind == "pause":
            if self.is_pause:
                return True
            return False if self.symbol or self.type else self._maybe_stack()
        if spec.kind == "stack":
            return True if self.stack_owner() is not None else self._known() or None
        if self.is_pause or (self.symbol and self.symbol not in _ARRAYS):
            return self._static_object(spec)
        try:
            if spec.kind == "member":
                return self._member(spec.name)
            return object_fits(self.kernel, spec.name, self.address, self.sleep)
        except (WchanError, LookupError):
            return None

    def _known(self) -> Optional[bool]:
        """False where the channel is known to be something else."""
        return False if self.symbol or self.is_pause else None

    def _maybe_stack(self) -> Optional[bool]:
        # Before 8.0 pause(9) slept on a variable of its own frame.
        return True if self.stack_owner() is not None else None

    def _static_object(self, spec: Spec) -> Optional[bool]:
        """An object that is itself a variable (proc0, a static cv): its name tells nothing."""
        if self.is_pause or spec.kind == "member":
            return False
        if spec.name in ("cv", "lock", "proc", "thread"):
            return object_fits(self.kernel, spec.name, self.address, self.sleep)
        return False

    def _member(self, path: str) -> Optional[bool]:
        struct, member = path.split(".", 1)
        layouts = self.kernel.layouts
        if struct not in layouts:
            return None
        if not layouts.has(struct, member):
            return False
        offset = layouts.offsetof(struct, member)
        if self.symbol in _ARRAYS:
            if _ARRAYS[self.symbol] != struct:
                return False
            return self.offset % layouts.sizeof(struct) == offset
        if struct in _ARRAYS.values() and struct != "thread":
            return False
        return object_fits(self.kernel, struct, self.address - offset, self.sleep)

    def container(self, struct: str, member: str) -> int:
        """The address of the ``struct`` whose ``member`` the channel is."""
        return self.address - self.kernel.layouts.offsetof(struct, member)


def _covers(kernel: Kernel, name: str, address: int) -> bool:
    """A debugger's symbolizer may answer with the nearest symbol below."""
    for symbol in kernel.symbols(name):
        if symbol.address <= address < symbol.address + max(symbol.size, 1):
            return symbol.kind != "function"
    return False


class _Stack(NamedTuple):
    low: int
    high: int
    thread: Thread


def stack_owner(kernel: Kernel, address: int) -> Optional[Thread]:
    """The thread whose kernel stack ``address`` lies on."""
    lows, stacks = _stacks(kernel)
    place = bisect_right(lows, address) - 1
    if place >= 0 and address < stacks[place].high:
        return stacks[place].thread
    return None


@cached(MEMORY)
def _stacks(kernel: Kernel) -> Tuple[List[int], List[_Stack]]:
    found = sorted(
        (
            _Stack(thread.kstack, thread.kstack + thread.kstack_size, thread)
            for thread in threads(kernel)
            if thread.kstack
        ),
        key=lambda stack: stack.low,
    )
    return [stack.low for stack in found], found


def object_fits(kernel: Kernel, kind: str, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    """Whether an object of that kind is at ``address``: True, False, None where unknown."""
    test = _TESTS.get(kind)
    return None if test is None else test(kernel, address, sleep)


def _is_buf(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    if is_cached(kernel, address):
        return True
    try:
        lock = buf_lock(kernel, address)
    except (MemoryFault, LayoutError):
        return False
    if has_old_lockmgr(kernel):
        return True if lock is not None and lock.name in ("bufwait", "pbufwait") else None
    return lock is not None and lock.lc_name == "lockmgr"


def _is_bio(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    if address in found_bios(kernel).bios:
        return True
    return None if not _is_buf(kernel, address, sleep) else False


def _is_page(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    array = kernel.global_value("vm_page_array", 0)
    count = kernel.global_value("vm_page_array_size", 0)
    if not array or not count:
        return None
    index, rest = divmod(address - array, kernel.layouts.sizeof("vm_page"))
    return rest == 0 and 0 <= index < count


def _is_mount(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    known = mounts_by_address(kernel)
    if address in known:
        return True
    # A mount on its way out is on no list.
    return None if not known else _looks_like_mount(kernel, address)


def _looks_like_mount(kernel: Kernel, address: int) -> Optional[bool]:
    found = mount_at(kernel, address)
    return None if found is not None and found.fstype.isprintable() and found.fstype else False


def _is_proc(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    return address in _procs(kernel)


@cached(MEMORY)
def _procs(kernel: Kernel) -> FrozenSet[int]:
    return frozenset(thread.proc for thread in threads(kernel))


def _is_thread(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    return thread_at(kernel, address) is not None


def _is_zone(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    return zone_of_channel(kernel, address) is not None


def _is_zone_limit(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    return zone_at(kernel, address) is not None


def _is_cv(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    if sleep is not None and sleep.type is not None:
        return sleep.type == "condvar"
    try:
        same = sleep is not None and sleep.wmesg != 0 and kernel.pointer(address) == sleep.wmesg
    except MemoryFault:
        return None
    return True if same else None


def _is_vnode(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    lock = address + kernel.layouts.offsetof("vnode", "v_lock")
    return True if vnode_of_lock(kernel, lock) == address else None


def _is_lock(kernel: Kernel, address: int, sleep: Optional[Sleep]) -> Optional[bool]:
    # A lock is found before the catalogue is asked; what comes here is none, or unreadable.
    try:
        kernel.read(address, 4)
    except MemoryFault:
        return None
    return False


_TESTS = {
    "buf": _is_buf,
    "bio": _is_bio,
    "vm_page": _is_page,
    "mount": _is_mount,
    "proc": _is_proc,
    "thread": _is_thread,
    "zone": _is_zone,
    "keg": _is_zone,
    "uma_zone": _is_zone_limit,
    "cv": _is_cv,
    "vnode": _is_vnode,
    "lock": _is_lock,
}
