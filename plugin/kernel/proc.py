"""Processes and threads: struct proc and struct thread.

Mirrors sys/sys/proc.h; the states are those DDB's ``ps`` prints
(sys/ddb/db_ps.c), 6.x to 15.x.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel import census
from plugin.kernel.lock_object import UNREAD, LockObject, lock_object
from plugin.kernel.queue import list_foreach, tailq_foreach
from plugin.session import Kernel

# td_state, an enum without a tag inside struct thread (sys/proc.h, all versions).
TDS_INACTIVE, TDS_INHIBITED, TDS_CAN_RUN, TDS_RUNQ, TDS_RUNNING = range(5)
PRS_NEW, PRS_NORMAL, PRS_ZOMBIE = range(3)


class Proc(NamedTuple):
    """One process; ``state`` is p_state, ``flag`` p_flag, ``parent`` p_pptr,
    ``numthreads`` what it counts of its own threads."""

    address: int
    pid: int
    comm: str
    state: int
    flag: int
    parent: int
    numthreads: int


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


_PROC = ("p_pid", "p_comm", "p_state", "p_flag", "p_pptr", "p_numthreads")
#: p_flag, the same in every version (sys/sys/proc.h)
_P_WEXIT = 0x2000
#: processes that nprocs may be ahead of what exists: fork1() counts before it makes one
_IN_THE_MAKING = 16


@cached(MEMORY)
def processes(kernel: Kernel) -> List[Proc]:
    """Every process: allproc, then zombies (zombproc to 12.x, the pid hash from 13.0).

    In 13.0 and later a zombie is on no list of its own, only in pidhashtbl, and so is a
    process on its way out (sys/kern/kern_exit.c).  Where the lists are damaged, or nprocs
    says that there are more, those of the pid hash and of the process tree are added; what
    only they know of is a finding.
    """
    found: Dict[int, Proc] = {}
    with kernel.noting() as trouble:
        for head in ("allproc", "zombproc"):
            symbol = kernel.symbol(head)
            if symbol is None:
                if head == "allproc":
                    kernel.address_of(head)
                continue
            for address, values in list_foreach(
                kernel, symbol.address, "proc", "p_list", _PROC, what=head
            ):
                if address not in found:
                    found[address] = _proc(kernel, address, values)
    try:
        number = kernel.global_value("nprocs") if kernel.has_symbol("nprocs") else None
    except MemoryFault as fault:
        kernel.warnings.add("nprocs", fault.address, fault.reason)
        number = None
    if not trouble.partial and number == len(found):
        return list(found.values())
    lost = _second_way(kernel, found, number)
    if lost:
        pids = ", ".join(str(proc.pid) for proc in lost[:8])
        more = f" and {len(lost) - 8} more" if len(lost) > 8 else ""
        kernel.warnings.add(
            "allproc",
            lost[0].address,
            f"is cut short: pid {pids}{more} found by the pid hash or the process tree alone",
        )
    if number is not None and number != len(found):
        kernel.warnings.add(
            "nprocs",
            kernel.address_of("nprocs"),
            f"is {number}, {len(found)} processes found",
            partial=not 0 < number - len(found) <= _IN_THE_MAKING,
        )
    return list(found.values())


def _second_way(kernel: Kernel, found: Dict[int, Proc], number: Optional[int]) -> List[Proc]:
    """Adds what pid hash and process tree know to ``found``; returns what a list should have.

    Over a wire the table is not looked at where the tree has as many as there are.
    """
    fields = kernel.layouts.fields("proc", *_PROC)
    without_list = not kernel.has_symbol("zombproc")
    lost: List[Proc] = []
    for address in _second_ways(kernel, found, number):
        if address in found:
            continue
        try:
            proc = _proc(kernel, address, kernel.values(fields, address))
        except MemoryFault as fault:
            kernel.warnings.add("process", fault.address, f"proc {address:#x}: {fault.reason}")
            continue
        if proc.state > PRS_ZOMBIE or not (proc.pid or proc.parent or proc.numthreads):
            kernel.warnings.add("process", address, "is no struct proc any more")
            continue
        found[address] = proc
        if not (without_list and (proc.state == PRS_ZOMBIE or proc.flag & _P_WEXIT)):
            lost.append(proc)
    return lost


def _second_ways(kernel: Kernel, found: Dict[int, Proc], number: Optional[int]) -> Iterator[int]:
    listed = list(found)
    if kernel.chosen:
        yield from census.tree(kernel, listed)
        if len(found) != number:
            yield from census.pid_hash(kernel)
        return
    yield from census.pid_hash(kernel)
    yield from census.tree(kernel, listed)


def _proc(kernel: Kernel, address: int, values: Tuple[Any, ...]) -> Proc:
    pid, comm, state, flag, parent, numthreads = values
    if pid < 0:
        # As with td_tid: no kernel gives one.
        kernel.warnings.add("process", address, f"p_pid is {pid}")
        pid &= 0xFFFFFFFF
    return Proc(address, pid, _name(comm), state, flag, parent, numthreads)


def _name(raw: Any) -> str:
    return bytes(raw).split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


#: more than ps_arg_cache_limit (kern.ps_arg_cache_limit, PAGE_SIZE / 16) ever is
_MAX_ARGUMENTS = 1 << 16


def arguments(kernel: Kernel, proc: int) -> Optional[List[str]]:
    """What a struct proc * was run as (p_args, a struct pargs), first its name.

    None where the kernel keeps no copy: of a kernel process, of arguments longer than
    kern.ps_arg_cache_limit, or where it cannot be read.
    """
    layouts = kernel.layouts
    if "pargs" not in layouts or not layouts.has("proc", "p_args"):
        return None
    try:
        at = kernel.pointer(proc + layouts.offsetof("proc", "p_args"))
        if not at:
            return None
        length = kernel.unsigned(at + layouts.offsetof("pargs", "ar_length"), 4)
        if not 0 < length <= _MAX_ARGUMENTS:
            return None
        place = at + layouts.offsetof("pargs", "ar_args")
        raw = kernel.read(place, length)
    except MemoryFault:
        return None
    if kernel.private is not None:
        kernel.private("arguments", place, raw)
    words = raw.rstrip(b"\0").split(b"\0")
    return [word.decode("utf-8", "backslashreplace") for word in words]


@cached(MEMORY)
def threads(kernel: Kernel) -> List[Thread]:
    """All threads of all processes, in the order of the kernel's lists."""
    found = list(_threads(kernel))
    if not found:
        kernel.warnings.add("allproc", kernel.address_of("allproc"), "holds no thread at all")
    return found


@cached(MEMORY)
def all_found(kernel: Kernel) -> bool:
    """Whether every process and every thread that the kernel counts was found.

    Only then does a search among them that finds nobody prove that there is nobody.
    """
    with kernel.noting():
        found: Dict[int, int] = {}
        for thread in threads(kernel):
            found[thread.proc] = found.get(thread.proc, 0) + 1
        procs = processes(kernel)
        number = kernel.global_value("nprocs", len(procs))
    return number - len(procs) in range(_IN_THE_MAKING + 1) and all(
        found.get(proc.address, 0) >= proc.numthreads for proc in procs if proc.state != PRS_NEW
    )


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


def kernel_thread_flag(kernel: Kernel) -> int:
    """The bit of p_flag that kernel processes have: P_KTHREAD to 8.x, P_KPROC since."""
    return kernel.layouts.constant("P_KPROC", 0) or kernel.layouts.constant("P_KTHREAD", 4)


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
    "td_proc",
)


#: what is of use while a thread is blocked, and while it is on a CPU or waits for one
_IF_LOCKED = ("td_blocked", "td_lockname")
_ON_CPU = ("td_oncpu", "td_lastcpu")
#: what is of no use of a service or interrupt thread that waits for work
_AT_WORK = ("td_slptick", "td_kstack", "td_kstack_pages")


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
    strings: Dict[int, Optional[str]] = {}
    seen: Set[int] = set()
    locks: Dict[int, Optional[LockObject]] = {}
    lockobj_offset = _lockobj_offset(kernel)
    for proc in processes(kernel):
        for address, values in _of_proc(kernel, proc, paths):
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
                _,
            ) = values[:15]
            if address in seen:
                kernel.warnings.add(
                    f"threads of pid {proc.pid}", address, "is on another process's list already"
                )
                continue
            seen.add(address)
            if tid < 0:
                # No kernel gives one: what lies here is no thread, or is damaged.
                kernel.warnings.add(f"threads of pid {proc.pid}", address, f"td_tid is {tid}")
                tid &= 0xFFFFFFFF
            extra = dict(zip(optional, values[15:]))
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
                    kernel.warnings.add(f"thread {tid}", lock_address, "the lock it waits for")
                    lock = LockObject(lock_address, name, "unknown", 0)
                elif lock.name is None and name is not None:
                    # td_lockname is another pointer to it.
                    lock = lock._replace(name=name)
                wmesg, channel = "*" + (name or lock.name or UNREAD), blocked or None
                since = extra.get("td_blktick")
            elif inhibitors & tdi["SLEEPING"] or (wchan and state == "swapped"):
                wmesg, channel = _string(kernel, wmesg_at, strings), wchan or None
                if not wmesg:
                    # None: unknown is no message, and is equal to none.
                    wmesg = None
                    kernel.warnings.add(
                        f"thread {tid}", wmesg_at or address, "its wait message cannot be read"
                    )
                if channel is None:
                    kernel.warnings.add(f"thread {tid}", address, "sleeps, and td_wchan is NULL")
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


def _listed(
    kernel: Kernel, head: int, paths: List[str], what: str
) -> Iterator[Tuple[int, Tuple[Any, ...]]]:
    """The threads on one p_threads; over a wire what a state leaves unused is not read, and 0."""
    if not kernel.chosen:
        yield from tailq_foreach(kernel, head, "thread", "td_plist", paths, what=what)
        return
    locked = kernel.layouts.constant("TDI_LOCK", 8)
    sleeping = kernel.layouts.constant("TDI_SLEEPING", 2)
    iwait = kernel.layouts.constant("TDI_IWAIT", 16)
    few = [path for path in paths if path not in _IF_LOCKED + _ON_CPU + _AT_WORK]
    work = tuple(path for path in _AT_WORK if path in paths)
    for address, values in tailq_foreach(kernel, head, "thread", "td_plist", few, what=what):
        got: Dict[str, Any] = dict(zip(few, values))
        rests = got["td_inhibitors"] & iwait or (
            got["td_inhibitors"] & sleeping and kernel.try_cstring(got["td_wmesg"]) == "-"
        )
        more = () if rests else work
        if got["td_inhibitors"] & locked:
            more += _IF_LOCKED
        if got["td_state"] in (TDS_CAN_RUN, TDS_RUNQ, TDS_RUNNING):
            more += _ON_CPU
        if more:
            try:
                got.update(
                    zip(more, kernel.values(kernel.layouts.fields("thread", *more), address))
                )
            except MemoryFault as fault:
                kernel.warnings.add(what, fault.address, fault.reason)
                continue
        yield address, tuple(got.get(path, 0) for path in paths)


def _of_proc(kernel: Kernel, proc: Proc, paths: List[str]) -> Iterator[Tuple[int, Tuple[Any, ...]]]:
    """The threads on p_threads, then those that only tidhashtbl has, where it is not whole."""
    head = proc.address + kernel.layouts.offsetof("proc", "p_threads")
    what = f"threads of pid {proc.pid}"
    owner = paths.index("td_proc")
    found: Set[int] = set()
    with kernel.noting() as trouble:
        walked = list(_listed(kernel, head, paths, what))
        for address, values in walked:
            if values[owner] != proc.address:
                kernel.warnings.add(
                    what, address, f"is no thread of it: td_proc is {values[owner]:#x}"
                )
    for address, values in walked:
        if values[owner] == proc.address:
            found.add(address)
            yield address, values
    if not trouble.partial and (len(found) == proc.numthreads or proc.state == PRS_NEW):
        return
    fields = kernel.layouts.fields("thread", *paths)
    lost = []
    for address in census.tid_hash(kernel).get(proc.address, ()):
        if address not in found:
            try:
                values = kernel.values(fields, address)
            except MemoryFault as fault:
                kernel.warnings.add(what, fault.address, f"thread {address:#x}: {fault.reason}")
                continue
            found.add(address)
            lost.append(address)
            yield address, values
    if lost:
        number = f"{len(lost)} more" if len(lost) > 1 else "one more"
        kernel.warnings.add(what, lost[0], f"the list is cut short: tidhashtbl has {number}")
    if len(found) != proc.numthreads:
        kernel.warnings.add(
            what, proc.address, f"p_numthreads is {proc.numthreads}, {len(found)} found"
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


def _string(kernel: Kernel, address: int, known: Dict[int, Optional[str]]) -> Optional[str]:
    """The text at ``address``, None where there is none to be read."""
    if address not in known:
        try:
            known[address] = kernel.cstring(address, 64) if address else None
        except MemoryFault:
            known[address] = None
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
