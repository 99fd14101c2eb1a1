"""Processes and threads: struct proc and struct thread.

Mirrors sys/sys/proc.h; the states are those DDB's ``ps`` prints
(sys/ddb/db_ps.c), 6.x to 15.x.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.lock_object import LockObject, lock_object
from plugin.kernel.queue import list_foreach, tailq_foreach
from plugin.session import Kernel

# td_state, an enum without a tag inside struct thread (sys/proc.h, all versions).
TDS_INACTIVE, TDS_INHIBITED, TDS_CAN_RUN, TDS_RUNQ, TDS_RUNNING = range(5)
PRS_NEW, PRS_NORMAL, PRS_ZOMBIE = range(3)


class Proc(NamedTuple):
    """One process; ``state`` is p_state, ``flag`` p_flag, ``parent`` p_pptr."""

    address: int
    pid: int
    comm: str
    state: int
    flag: int
    parent: int


class Thread(NamedTuple):
    """One thread, its state as DDB names it.

    ``state``: running, runnable, sleeping, locked, suspended, swapped, iwait,
    inactive or zombie.  ``wmesg`` and ``wchan`` are those of a sleep; for a
    thread blocked on a turnstile ``lock`` is the lock, ``wmesg`` its name
    behind a "*" and ``wchan`` the turnstile, as DDB prints them.  ``cpu`` is the
    CPU a running thread runs on.  ``age`` is in seconds, None where the
    kernel keeps no start (before 8.0) or the thread does not wait.
    """

    address: int
    tid: int
    pid: int
    comm: str
    name: str
    proc: int
    state: str
    cpu: Optional[int]
    wmesg: Optional[str]
    wchan: Optional[int]
    lock: Optional[LockObject]
    age: Optional[float]
    #: the last CPU it ran on
    lastcpu: int
    #: td_flags, td_pflags, td_inhibitors, p_flag
    flags: int
    pflags: int
    inhibitors: int
    p_flag: int
    #: td_pcb, td_kstack and the stack's size in bytes
    pcb: int
    kstack: int
    kstack_size: int
    #: struct turnstile * while blocked, else 0
    blocked: int

    @property
    def label(self) -> str:
        """comm, and the thread's own name where it has another."""
        return self.comm if self.name in ("", self.comm) else f"{self.comm}/{self.name}"

    @property
    def waits(self) -> bool:
        return self.state in ("sleeping", "locked")


def processes(kernel: Kernel) -> Iterator[Proc]:
    """Every process: allproc, then zombies (zombproc to 12.x, the pid hash from 13.0).

    In 13.0 and later a zombie is on no list of its own, only in pidhashtbl
    (sys/kern/kern_exit.c).
    """
    paths = ["p_pid", "p_comm", "p_state", "p_flag", "p_pptr"]
    seen = set()
    for head in ("allproc", "zombproc"):
        symbol = kernel.symbol(head)
        if symbol is None:
            if head == "allproc":
                kernel.address_of(head)
            continue
        for address, values in list_foreach(
            kernel, symbol.address, "proc", "p_list", paths, what=head
        ):
            seen.add(address)
            yield _proc(address, values)
    if not kernel.has_symbol("zombproc") and kernel.has_symbol("pidhashtbl"):
        for address in _pid_hash(kernel):
            if address not in seen:
                try:
                    values = kernel.layouts.fields("proc", *paths).unpack(
                        kernel.read(address, kernel.layouts.fields("proc", *paths).span)
                    )
                except MemoryFault as fault:
                    kernel.warnings.add("pid hash", fault.address, fault.reason)
                    continue
                if values[2] == PRS_ZOMBIE:
                    yield _proc(address, values)


def _proc(address: int, values: Tuple[Any, ...]) -> Proc:
    pid, comm, state, flag, parent = values
    return Proc(address, pid, _name(comm), state, flag, parent)


def _name(raw: Any) -> str:
    return bytes(raw).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def _pid_hash(kernel: Kernel) -> Iterator[int]:
    try:
        table = kernel.global_value("pidhashtbl")
        mask = kernel.global_value("pidhash")
        heads = kernel.read(table, (mask + 1) * kernel.pointer_size) if mask < 1 << 20 else b""
    except MemoryFault as fault:
        kernel.warnings.add("pid hash", fault.address, fault.reason)
        return
    for at in range(0, len(heads), kernel.pointer_size):
        if any(heads[at : at + kernel.pointer_size]):
            for address, _ in list_foreach(
                kernel, table + at, "proc", "p_hash", what="pid hash chain"
            ):
                yield address


@cached(MEMORY)
def threads(kernel: Kernel) -> List[Thread]:
    """All threads of all processes, in the order of the kernel's lists."""
    found = list(_threads(kernel))
    if not found:
        kernel.warnings.add("allproc", kernel.address_of("allproc"), "holds no thread at all")
    return found


def thread_at(kernel: Kernel, address: int) -> Optional[Thread]:
    """The thread whose struct thread is at ``address``, or None."""
    return _by_address(kernel).get(address)


def thread_by_tid(kernel: Kernel, tid: int) -> Optional[Thread]:
    """The thread with that td_tid, or None."""
    return _by_tid(kernel).get(tid)


@cached(MEMORY)
def _by_address(kernel: Kernel) -> Dict[int, Thread]:
    return {thread.address: thread for thread in threads(kernel)}


@cached(MEMORY)
def _by_tid(kernel: Kernel) -> Dict[int, Thread]:
    return {thread.tid: thread for thread in threads(kernel)}


_THREAD = (
    "td_tid",
    "td_state",
    "td_inhibitors",
    "td_flags",
    "td_pflags",
    "td_wmesg",
    "td_wchan",
    "td_blocked",
    "td_lockname",
    "td_oncpu",
    "td_lastcpu",
    "td_pcb",
    "td_kstack",
    "td_kstack_pages",
)


class Clock(NamedTuple):
    ticks: int
    hz: int


def clock(kernel: Kernel) -> Optional[Clock]:
    """``ticks`` (32 bits) and ``hz``; None where the kernel has none or they cannot be read."""
    # 15.0 keeps ticksl, a long, and ticks as its low half (sys/kern/subr_ticks.S).
    name = next((n for n in ("ticks", "ticksl") if kernel.has_symbol(n)), None)
    if name is None:
        return None
    try:
        hz = kernel.global_value("hz", 0)
        return Clock(kernel.unsigned(kernel.address_of(name), 4), hz) if hz else None
    except MemoryFault:
        return None


def _threads(kernel: Kernel) -> Iterator[Thread]:
    layouts = kernel.layouts
    required = list(_THREAD)
    optional = [p for p in ("td_name", "td_slptick", "td_blktick") if layouts.has("thread", p)]
    paths = required + optional
    now = clock(kernel)
    nocpu = {0xFF, 0xFFFFFFFF, -1}
    tdi = {
        name: layouts.constant("TDI_" + name, default)
        for name, default in (
            ("SUSPENDED", 1),
            ("SLEEPING", 2),
            ("SWAPPED", 4),
            ("LOCK", 8),
            ("IWAIT", 16),
        )
    }
    strings: Dict[int, str] = {}
    seen: Set[int] = set()
    locks: Dict[int, Optional[LockObject]] = {}
    lockobj_offset = _lockobj_offset(kernel)
    p_threads = layouts.offsetof("proc", "p_threads")
    for proc in processes(kernel):
        for address, values in tailq_foreach(
            kernel,
            proc.address + p_threads,
            "thread",
            "td_plist",
            paths,
            what=f"threads of pid {proc.pid}",
        ):
            (
                tid,
                td_state,
                inhibitors,
                flags,
                pflags,
                wmesg_at,
                wchan,
                blocked,
                lockname,
                oncpu,
                lastcpu,
                pcb,
                kstack,
                pages,
            ) = values[:14]
            if address in seen:
                kernel.warnings.add(
                    f"threads of pid {proc.pid}", address, "is on another process's list already"
                )
                break
            seen.add(address)
            extra = dict(zip(optional, values[14:]))
            state = _state(proc, td_state, inhibitors, tdi)
            wmesg: Optional[str] = None
            channel: Optional[int] = None
            lock: Optional[LockObject] = None
            age: Optional[float] = None
            since = None
            if state == "locked":
                lock_address = _lock_of(kernel, blocked, lockobj_offset)
                if lock_address:
                    if lock_address not in locks:
                        locks[lock_address] = lock_object(kernel, lock_address)
                    lock = locks[lock_address]
                name = _string(kernel, lockname, strings)
                if lock is None:
                    lock = LockObject(lock_address, name, "unknown", 0)
                wmesg, channel = "*" + (name or lock.name), blocked or None
                since = extra.get("td_blktick")
            elif inhibitors & tdi["SLEEPING"] or (wchan and state == "swapped"):
                wmesg, channel = _string(kernel, wmesg_at, strings), wchan or None
                since = extra.get("td_slptick")
            if since and now:
                age = ((now.ticks - since) & 0xFFFFFFFF) / now.hz
                if age > 0x80000000 / now.hz:
                    age = None
            yield Thread(
                address,
                tid,
                proc.pid,
                proc.comm,
                _name(extra.get("td_name", b"")) or proc.comm,
                proc.address,
                state,
                oncpu if state == "running" and oncpu not in nocpu else None,
                wmesg,
                channel,
                lock,
                age,
                lastcpu,
                flags,
                pflags,
                inhibitors,
                proc.flag,
                pcb,
                kstack,
                pages * kernel.page_size,
                blocked if state == "locked" else 0,
            )


def _state(proc: Proc, td_state: int, inhibitors: int, tdi: Dict[str, int]) -> str:
    if proc.state == PRS_ZOMBIE:
        return "zombie"
    if td_state == TDS_RUNNING:
        return "running"
    if td_state in (TDS_RUNQ, TDS_CAN_RUN):
        return "runnable"
    if td_state == TDS_INHIBITED:
        for bit, name in (
            ("LOCK", "locked"),
            ("SLEEPING", "sleeping"),
            ("IWAIT", "iwait"),
            ("SUSPENDED", "suspended"),
            ("SWAPPED", "swapped"),
        ):
            if inhibitors & tdi[bit]:
                return name
    return "inactive"


def _string(kernel: Kernel, address: int, known: Dict[int, str]) -> str:
    if address not in known:
        known[address] = kernel.try_cstring(address, limit=64)
    return known[address]


def _lockobj_offset(kernel: Kernel) -> Optional[int]:
    try:
        return kernel.layouts.offsetof("turnstile", "ts_lockobj")
    except LayoutError:
        return None


def _lock_of(kernel: Kernel, blocked: int, offset: Optional[int]) -> int:
    if not blocked or offset is None:
        return 0
    try:
        return kernel.pointer(blocked + offset)
    except MemoryFault as fault:
        kernel.warnings.add("turnstile", fault.address, fault.reason)
        return 0
