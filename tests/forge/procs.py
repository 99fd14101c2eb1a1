"""Processes, threads, their kernel stacks, sleep queues and CPUs.

Mirrors sys/sys/proc.h, sys/kern/subr_sleepqueue.c, sys/kern/sched_*.c,
sys/<arch>/<arch>/vm_machdep.c (where a stack begins and where the pcb lies) and
sys/kern/subr_pcpu.c, from 7.0-CURRENT of 2006 to 15.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from plugin.errors import UsageError
from tests.forge.builder import Obj
from tests.forge.memory import PAGE_SIZE

if TYPE_CHECKING:
    from tests.forge.machine import Machine

# td_state (sys/proc.h, an enum without a tag in all versions)
TDS_INACTIVE, TDS_INHIBITED, TDS_CAN_RUN, TDS_RUNQ, TDS_RUNNING = range(5)
PRS_NEW, PRS_NORMAL, PRS_ZOMBIE = range(3)
TDI_SUSPENDED, TDI_SLEEPING, TDI_SWAPPED, TDI_LOCK, TDI_IWAIT = 1, 2, 4, 8, 16
TDF_SINTR, TDF_IDLETD, TDF_INMEM = 0x8, 0x20, 0x4
P_KTHREAD, P_SYSTEM, P_INMEM, P_HADTHREADS = 0x4, 0x200, 0x10000000, 0x80
#: kinds of sleep queue (sys/sleepqueue.h)
SLEEPQ_SLEEP, SLEEPQ_CONDVAR, SLEEPQ_PAUSE, SLEEPQ_SX, SLEEPQ_LK = range(5)
CALLOUT_ACTIVE, CALLOUT_PENDING = 2, 4
#: an amd64 FPU state with AVX, kept above the pcb since 12.0
_XSAVE = 832


class Call(NamedTuple):
    """One frame of a stack: "function" or "function+0x12" as a backtrace shows it.

    ``fp`` puts its frame pointer at an address, ``size`` that many bytes below
    the caller's.
    """

    place: str
    fp: Optional[int] = None
    size: Optional[int] = None


Place = Union[str, Call]


class Frame(NamedTuple):
    place: str
    fp: int


class Process:
    """A process; an int wherever a pointer to its struct proc is wanted."""

    def __init__(self, machine: Machine, obj: Obj, pid: int, comm: str, kernel: bool) -> None:
        self.machine = machine
        self.obj = obj
        self.pid = pid
        self.comm = comm
        self.kernel = kernel
        self.threads: List[Thread] = []
        self.parent: Optional[Process] = None
        self.zombie = False

    def __index__(self) -> int:
        return self.obj.address

    def thread(self, name: str = "", calls: Sequence[Place] = (), **how: Any) -> Thread:
        """A further thread of this process."""
        return self.machine.procs.thread(self, name, calls, **how)

    def exits(self) -> Process:
        """Make it a zombie."""
        self.zombie = True
        self.obj["p_state"] = PRS_ZOMBIE
        return self


class Thread:
    """A thread; an int wherever a pointer to its struct thread is wanted."""

    def __init__(self, machine: Machine, process: Process, obj: Obj, tid: int, name: str) -> None:
        self.machine = machine
        self.process = process
        self.obj = obj
        self.tid = tid
        self.name = name
        self.frames: List[Frame] = []
        self.state = ""
        #: sleep queue and turnstile this thread lends to what it waits for
        self.sleepqueue: Optional[Obj] = None
        self.turnstile: Optional[Obj] = None
        self._fp = 0
        self._top = 0
        self._where = ""

    def __index__(self) -> int:
        return self.obj.address

    # The stack

    def begin(self, outermost: str, top: int, saved_fp: int) -> None:
        """Start the stack: the first function is called from ``outermost``."""
        self._where, self._top, self._fp = outermost, top, saved_fp

    def call(self, *places: Place) -> Thread:
        """Push frames, innermost first as a backtrace shows them."""
        word = self.machine.pointer_size
        for place in reversed(places):
            call = place if isinstance(place, Call) else Call(place)
            size = call.size or 8 * word
            if call.fp is not None:
                fp = call.fp
            elif self.frames:
                fp = self._top - size
            else:
                fp = self._top - (call.size or 2 * word)
            self.machine.write_pointer(fp, self._fp)
            self.machine.write_pointer(fp + word, self.machine.call_site(self._where))
            self.frames.append(Frame(call.place, fp))
            self._fp = self._top = fp
            self._where = call.place
        return self

    def interrupted(self, *places: Place) -> Thread:
        """Push a trap frame, then frames of the handler, innermost first.

        What ran so far is what the trap frame says was interrupted; the last
        of ``places`` is the assembler stub that called the handler.
        """
        m = self.machine
        word = m.pointer_size
        size = m.sizeof("trapframe")
        # On arm64 the stub leaves a frame record behind the trap frame (exception.S).
        record = 2 * word if m.arch == "arm64" else 0
        frame = (self._top - 8 * word - size - record) & ~15
        names = _TRAPFRAME[m.arch]
        tf = m.view("trapframe", frame)
        tf[names.pc] = m.call_site(self._where)
        tf[names.fp] = self._fp
        tf[names.sp] = self._top - word
        if record:
            # x30 is stale: it still leads to where the last call from there came back.
            tf.probe(tf_lr=m.call_site(self._where))
            m.write_pointer(frame + size, self._fp)
            m.write_pointer(frame + size + word, m.call_site(self._where))
            self._fp = frame + size
        stub = places[-1]
        where = stub.place if isinstance(stub, Call) else stub
        self.frames.append(Frame(where, self._fp))
        self._where, self._top = where, frame
        first = list(places[:-1])
        if first:
            handler = first.pop()
            self.call(handler if isinstance(handler, Call) else Call(handler, size=2 * word))
        return self.call(*first)

    def frame(self, function: str) -> Frame:
        """The frame of a function on this stack."""
        for frame in self.frames:
            if frame.place.split("+")[0] == function:
                return frame
        raise UsageError(f"{function} is not on the stack of {self.name or self.process.comm}")

    def local(self, function: str, below: int) -> int:
        """Address of a local variable: ``below`` bytes under that function's frame pointer."""
        return self.frame(function).fp - below

    def _save(self, pcb: Optional[Obj] = None) -> None:
        """Write pc, fp and sp of the innermost frame into a pcb."""
        m = self.machine
        target = pcb or m.view("pcb", self.obj["td_pcb"])
        pc, fp, sp = m.call_site(self._where), self._fp, self._top - 4 * m.pointer_size
        if m.arch == "amd64":
            target.set(pcb_rip=pc, pcb_rbp=fp, pcb_rsp=sp)
        elif m.arch == "i386":
            target.set(pcb_eip=pc, pcb_ebp=fp, pcb_esp=sp)
        else:
            count = m.locate("pcb", "pcb_x").size // 8
            # x19..x29, lr since 14.0; x0.. before (sys/arm64/include/pcb.h)
            target[f"pcb_x[{10 if count == 12 else 29}]"] = fp
            target["pcb_sp"] = sp
            if count == 12:
                target["pcb_x[11]"] = pc
            else:
                if count > 30:
                    target["pcb_x[30]"] = pc
                target.probe(pcb_lr=pc, pcb_pc=pc)

    # States

    def _state(self, name: str, td_state: int, inhibitors: int = 0) -> None:
        if self.state:
            raise UsageError(f"thread {self.tid} is {self.state} already")
        self.state = name
        self.obj.set(td_state=td_state, td_inhibitors=inhibitors)

    def sleeps(
        self,
        wchan: Any,
        wmesg: str,
        *,
        kind: int = SLEEPQ_SLEEP,
        seconds: float = 60.0,
        timeout: Optional[float] = None,
        interruptible: bool = False,
        queue: int = 0,
        through: Optional[Sequence[Place]] = None,
        priority: int = 0,
    ) -> Thread:
        """Asleep on ``wchan`` for ``seconds``; ``timeout`` is that of the sleep itself.

        ``through`` replaces the functions between the scheduler and the caller.
        """
        m = self.machine
        self._state("sleeping", TDS_INHIBITED, TDI_SLEEPING)
        if through is None:
            through = m.procs.sleep_functions(kind, timeout is not None, interruptible)
        self.call("sched_switch", "mi_switch", "sleepq_switch", *through)
        self.obj.set(td_wchan=wchan.__index__(), td_wmesg=wmesg)
        if priority:
            self.obj["td_priority"] = priority
        if interruptible:
            self.obj["td_flags"] = self.obj["td_flags"] | TDF_SINTR
        started = m.ticks - int(seconds * m.hz)
        self.obj.probe(td_slptick=started, td_sqqueue=queue)
        m.procs.slept(self, seconds)
        if timeout is not None:
            self._callout(timeout, seconds)
        m.procs.sleepers.setdefault(wchan.__index__(), []).append((self, kind, queue))
        self._save()
        return self

    def _callout(self, timeout: float, seconds: float) -> None:
        m = self.machine
        left = max(timeout - seconds % timeout, 0.0)
        callout = self.obj.sub("td_slpcallout")
        if m.locate("callout", "c_time").size == 4:
            due = m.ticks + max(int(left * m.hz), 1)
        else:
            # sbintime since boot
            due = int((m.uptime + left) * (1 << 32))
            self.obj.probe(td_sleeptimo=due)
        callout.set(c_time=due, c_arg=self, c_func="sleepq_timeout")
        callout["c_flags"] = (
            CALLOUT_ACTIVE if callout.has("c_iflags") else (CALLOUT_ACTIVE | CALLOUT_PENDING)
        )
        callout.probe(c_iflags=CALLOUT_PENDING)

    def pauses(self, wmesg: str, timeout: float, *, seconds: float = 0.0) -> Thread:
        """In pause(9): on no channel but its own, for ``timeout`` seconds.

        9.0-CURRENT and before slept on the address of one variable, 10.1 on one
        byte per CPU (sys/kern/kern_synch.c).
        """
        m = self.machine
        wchan = m.lookup("pause_wchan")
        if wchan is None:
            raise UsageError("pause(9) slept on a local variable in this version: use sleeps()")
        at = wchan.address + (self.obj["td_lastcpu"] if wchan.size > 8 else 0)
        return self.sleeps(at, wmesg, kind=SLEEPQ_PAUSE, seconds=seconds, timeout=timeout)

    def blocks_on(self, lock: Any, *, shared: bool = False, seconds: float = 60.0) -> Thread:
        """Blocked on the turnstile of a mutex, rwlock or rmlock."""
        lock.block(self, shared, seconds)
        return self

    def blocked(self, turnstile: Obj, name: Any, seconds: float, through: Sequence[Place]) -> None:
        """Called by the lock: what a thread on a turnstile looks like."""
        m = self.machine
        self._state("locked", TDS_INHIBITED, TDI_LOCK)
        self.call("sched_switch", "mi_switch", "turnstile_wait", *through)
        self.obj.set(td_blocked=turnstile, td_lockname=name)
        self.obj.probe(td_blktick=m.ticks - int(seconds * m.hz))
        self._save()

    def runs_on(self, cpu: int) -> Thread:
        """On a CPU; stopped by the dump, its registers are in stoppcbs."""
        m = self.machine
        self._state("running", TDS_RUNNING)
        self.obj.set(td_oncpu=cpu, td_lastcpu=cpu)
        m.procs.oncpu[cpu] = self
        return self

    def runnable(self, cpu: int = 0) -> Thread:
        """On a run queue."""
        self._state("runnable", TDS_RUNQ)
        self.call("sched_switch", "mi_switch", "critical_exit")
        self.obj["td_lastcpu"] = cpu
        self._save()
        return self

    def waits_for_interrupt(self) -> Thread:
        """An interrupt thread without work."""
        self._state("iwait", TDS_INHIBITED, TDI_IWAIT)
        self.call("sched_switch", "mi_switch", "ithread_loop")
        self._save()
        return self

    def suspended(self) -> Thread:
        """Stopped by a signal or by single threading."""
        self._state("suspended", TDS_INHIBITED, TDI_SUSPENDED)
        self.call("sched_switch", "mi_switch", "thread_suspend_switch", "ast")
        self._save()
        return self

    def swapped_out(self) -> Thread:
        """Woken while its kernel stack was out (up to 14.x): it waits for faultin().

        A thread still asleep whose stack is out counts as asleep, as DDB's ps has it.
        """
        self._state("swapped", TDS_INHIBITED, TDI_SWAPPED)
        through = ("sleepq_wait", *self.machine.procs.sleep_name())
        self.call("sched_switch", "mi_switch", "sleepq_switch", *through)
        self.obj["td_flags"] = self.obj["td_flags"] & ~TDF_INMEM
        self._save()
        return self

    def inactive(self) -> Thread:
        self._state("inactive", TDS_INACTIVE)
        self._save()
        return self


class _TrapNames(NamedTuple):
    pc: str
    fp: str
    sp: str


_TRAPFRAME = {
    "amd64": _TrapNames("tf_rip", "tf_rbp", "tf_rsp"),
    "i386": _TrapNames("tf_eip", "tf_ebp", "tf_esp"),
    "arm64": _TrapNames("tf_elr", "tf_x[29]", "tf_sp"),
}
#: stub in the assembler, its C function: for system calls and for page faults
_ENTRY = {
    ("i386", "syscall"): ("Xint0x80_syscall", "syscall"),
    ("i386", "fault"): ("calltrap", "trap"),
    ("amd64", "syscall"): ("fast_syscall_common", "amd64_syscall"),
    ("amd64", "fault"): ("calltrap", "trap"),
    ("arm64", "syscall"): ("handle_el0_sync", "do_el0_sync"),
    ("arm64", "fault"): ("handle_el0_sync", "do_el0_sync"),
}
_USER_FP = {"i386": 0xBFBFE8A8, "amd64": 0x7FFFFFFFDB00, "arm64": 0xFFFFFFFFDB00}


class Procs:
    """All processes and threads of a machine, and the queues they sleep on."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.all: List[Process] = []
        #: by wait channel: (thread, kind, queue) in order of arrival
        self.sleepers: Dict[int, List[Tuple[Thread, int, int]]] = {}
        self.oncpu: Dict[int, Thread] = {}
        self.init: Optional[Process] = None
        #: kernel processes from 2 on, users' from 500 on
        self._next_pid = {True: 2, False: 500}
        self._tid = 100000
        m = machine
        self.modern = m.osreldate >= 800000
        m.symbol("allproc", size=m.pointer_size)
        if m.osreldate < 1300000:
            m.symbol("zombproc", size=m.pointer_size)
        self.proc0 = self._proc0()

    # Making them

    def _proc0(self) -> Process:
        m = self.machine
        obj = m.symbol("proc0", "proc")
        # One name for process 0 up to 7.x, where its only thread is the swapper.
        comm = "kernel" if self.modern else "swapper"
        proc = self._fill(obj, 0, comm, True)
        if m.osreldate >= 1100000:
            # struct thread0_storage: the thread, then uint64_t t0st_sched[10]
            size = m.sizeof("thread") + 80
            storage = m.symbol("thread0_st", size=size, align=32)
            thread = m.view("thread", storage.address)
        else:
            thread = m.symbol("thread0", "thread", align=32)
        self._new_thread(proc, "swapper", thread)
        return proc

    def _fill(self, obj: Obj, pid: int, comm: str, kernel: bool) -> Process:
        m = self.machine
        flags = (P_SYSTEM | P_KTHREAD) if kernel else 0
        if m.constant("P_INMEM", 0):
            flags |= P_INMEM
        obj.set(p_pid=pid, p_comm=comm[:19], p_state=PRS_NORMAL, p_flag=flags)
        # PS_INMEM
        obj.probe(p_sflag=1, p_magic=0xBEEFFACE, p_ucred=m.ucred, p_leader=obj)
        made = Process(m, obj, pid, comm, kernel)
        self.all.append(made)
        return made

    def process(
        self,
        comm: str,
        *,
        pid: Optional[int] = None,
        kernel: bool = False,
        parent: Optional[Process] = None,
        at: Optional[int] = None,
    ) -> Process:
        """A process without threads yet."""
        self.machine.services.boot()
        if pid is None:
            pid = self._next_pid[kernel]
            self._next_pid[kernel] += 1
        obj = self.machine.allocate("proc", at=at)
        made = self._fill(obj, pid, comm, kernel)
        made.parent = parent or self.proc0
        return made

    def find(self, comm: str) -> Optional[Process]:
        return next((p for p in self.all if p.comm == comm), None)

    def thread(
        self,
        process: Process,
        name: str = "",
        calls: Sequence[Place] = (),
        *,
        entry: Optional[str] = None,
        tid: Optional[int] = None,
        at: Optional[int] = None,
        kstack: Optional[int] = None,
        lastcpu: int = 0,
    ) -> Thread:
        """A thread with its stack begun.

        ``calls`` are its own functions, innermost first; ``entry`` is how a user
        thread came into the kernel, "syscall" or "fault".
        """
        obj = self.machine.allocate("thread", at=at)
        made = self._new_thread(process, name, obj, tid=tid, kstack=kstack, entry=entry)
        made.obj["td_lastcpu"] = lastcpu
        return made.call(*calls)

    def _new_thread(
        self,
        process: Process,
        name: str,
        obj: Obj,
        *,
        tid: Optional[int] = None,
        kstack: Optional[int] = None,
        entry: Optional[str] = None,
    ) -> Thread:
        m = self.machine
        if tid is None:
            tid = self._tid
        self._tid = max(self._tid, tid) + 1
        pages = m.map.kstack_pages
        if kstack is None:
            # An unmapped guard page lies below every stack.
            kstack = m.arenas["stacks"].take((pages + 1) * PAGE_SIZE, PAGE_SIZE) + PAGE_SIZE
        m.space.touch(kstack, pages * PAGE_SIZE)
        top = kstack + pages * PAGE_SIZE
        pcb, frame = self._stack_top(top)
        thread = Thread(m, process, obj, tid, name)
        process.threads.append(thread)
        obj.set(
            td_proc=process,
            td_tid=tid,
            td_pcb=pcb,
            td_frame=frame,
            td_kstack=kstack,
            td_kstack_pages=pages,
            td_priority=120 if not process.kernel else 84,
        )
        # The name of a single thread is its process's from 8.0 on.
        if name or self.modern:
            obj.probe(td_name=(name or process.comm)[:19])
        obj["td_oncpu"] = 0xFF if m.locate("thread", "td_oncpu").size == 1 else -1
        obj.probe(td_ucred=m.ucred, td_base_pri=obj["td_priority"])
        if m.constant("TDF_INMEM", 0):
            obj["td_flags"] = TDF_INMEM
        self._begin(thread, entry, frame)
        if obj.has("td_ksegrp"):
            group = m.new("ksegrp", kg_proc=process, kg_numthreads=1)
            obj["td_ksegrp"] = group
            m.tailq(group.at("kg_threads"), "td_kglist", [obj])
        return thread

    def _stack_top(self, top: int) -> Tuple[int, int]:
        """(pcb, trap frame) of a stack that ends at ``top``."""
        m = self.machine
        frame_size = m.sizeof("trapframe")
        if m.arch == "i386":
            # vm86 calls need 16 bytes above the frame (sys/i386/i386/vm_machdep.c).
            pcb = (
                top - m.sizeof("pcb")
                if m.osreldate < 1200000
                else ((top - 512 - m.sizeof("pcb")) & ~15)
            )
            return pcb, pcb - 16 - frame_size
        if m.arch == "amd64":
            above = _XSAVE if m.osreldate >= 1000000 else 0
            pcb = top - above - m.sizeof("pcb")
            return pcb, pcb - frame_size
        pcb = (top - m.sizeof("pcb")) & ~15
        return pcb, (pcb - frame_size) & ~15

    def _begin(self, thread: Thread, entry: Optional[str], frame: int) -> None:
        m = self.machine
        if thread.process.kernel:
            # fork_trampoline pushes three arguments on i386.
            thread.begin("fork_trampoline", frame - (12 if m.arch == "i386" else 0), 0)
            thread.call("fork_exit")
            return
        outermost, function = _ENTRY[m.arch, entry or "syscall"]
        if m.arch == "amd64" and entry != "fault" and m.osreldate < 1200000:
            outermost = "Xfast_syscall"
        names = _TRAPFRAME[m.arch]
        tf = m.view("trapframe", frame)
        user = _USER_FP[m.arch]
        tf[names.pc] = 0x8048F00 if m.arch == "i386" else 0x80084C2FA
        tf[names.fp] = user
        tf[names.sp] = user - 0x40
        thread.begin(outermost, frame, user)
        thread.call(function)

    def kthread(
        self,
        name: str,
        group: str = "",
        calls: Sequence[Place] = (),
        *,
        pid: Optional[int] = None,
        **how: Any,
    ) -> Thread:
        """A kernel thread: one of process ``group`` from 8.0 on, its own process before."""
        comm = group if group and self.modern else name
        process = self.find(comm) if comm == group else None
        if process is None:
            process = self.process(comm, kernel=True, pid=pid)
        # A thread of its own name only where it shares the process (kproc_kthread_add).
        return self.thread(process, name if comm == group else "", calls, **how)

    # What a sleep looks like on the stack

    def sleep_name(self) -> Tuple[str, ...]:
        return ("_sleep",) if self.modern else ("msleep",)

    def sleep_functions(self, kind: int, timed: bool, interruptible: bool) -> Tuple[str, ...]:
        """Functions from sleepq_switch() up to what the caller called, innermost first."""
        m = self.machine
        wait = "sleepq_timedwait" if timed else "sleepq_wait"
        if interruptible:
            wait += "_sig"
        below: Tuple[str, ...] = ("sleepq_catch_signals", wait) if interruptible else (wait,)
        if kind == SLEEPQ_CONDVAR:
            name = "_cv_timedwait_sbt" if m.osreldate >= 1000000 else "_cv_timedwait"
            name = name if timed else "_cv_wait"
            name = name + "_sig" if interruptible else name
            return (*below, name if self.modern else name[1:])
        if kind == SLEEPQ_PAUSE:
            return (*below, "_sleep", "pause_sbt" if m.osreldate >= 1000000 else "pause")
        if kind == SLEEPQ_SX:
            return (*below, "_sx_xlock_hard")
        if kind == SLEEPQ_LK:
            if m.osreldate >= 1200000:
                return (*below, "sleeplk", "lockmgr_xlock_hard")
            return (*below, "sleeplk", "__lockmgr_args")
        return (*below, *self.sleep_name())

    def slept(self, thread: Thread, seconds: float) -> None:
        """Before 8.0 the time asleep is kept per KSEGRP, in seconds, untimed sleeps included."""
        if thread.obj.has("td_ksegrp"):
            group = self.machine.view("ksegrp", thread.obj["td_ksegrp"])
            group["kg_slptime"] = min(int(seconds), 127)

    # Finishing: lists, hashes, sleep queues, CPUs

    def finish(self) -> None:
        self._cpus()
        self._lists()
        self._sleep_queues()

    def _lists(self) -> None:
        m = self.machine
        living = [p for p in self.all if not p.zombie]
        zombies = [p for p in self.all if p.zombie]
        m.list(m.address_of("allproc"), "p_list", [p.obj for p in reversed(living)])
        if m.lookup("zombproc"):
            m.list(m.address_of("zombproc"), "p_list", [p.obj for p in reversed(zombies)])
        for proc in self.all:
            threads = [t.obj for t in proc.threads]
            m.tailq(proc.obj.at("p_threads"), "td_plist", threads)
            proc.obj["p_numthreads"] = len(threads)
            if proc.obj.has("p_ksegrps"):
                groups = [m.view("ksegrp", t["td_ksegrp"]) for t in threads]
                m.tailq(proc.obj.at("p_ksegrps"), "kg_ksegrp", groups)
            if proc.parent is not None:
                proc.obj["p_pptr"] = proc.parent
        children: Dict[int, List[Obj]] = {}
        for proc in self.all:
            if proc.parent is not None:
                children.setdefault(proc.parent.obj.address, []).insert(0, proc.obj)
        for address, items in children.items():
            m.list(m.view("proc", address).at("p_children"), "p_sibling", items)
        m.variable("nprocs", len(self.all), size=4)
        m.variable("initproc", self.init or 0)
        self._hash("pidhash", "p_hash", [(p.pid, p.obj) for p in self.all if p.pid])
        if m.has("thread", "td_hash"):
            static = m.osreldate >= 1300000
            every = [(t.tid, t.obj) for p in self.all for t in p.threads]
            self._hash("tidhash", "td_hash", every, static)

    def _hash(
        self, name: str, link: str, items: Sequence[Tuple[int, Obj]], static: bool = False
    ) -> None:
        m = self.machine
        mask = max(1 << len(items).bit_length(), 64) - 1
        table = m.take((mask + 1) * m.pointer_size, "kva", 16)
        chains: Dict[int, List[Obj]] = {}
        for key, obj in items:
            chains.setdefault(key & mask, []).insert(0, obj)
        for slot, chain in chains.items():
            m.list(table + slot * m.pointer_size, link, chain)
        m.variable(name + "tbl", table, static=static)
        m.variable(name, mask, static=static)

    def _sleep_queues(self) -> None:
        """sleepq_chains[], a queue per wait channel; every sleeper lends its own."""
        m = self.machine
        default = 128 if m.osreldate < 1000000 else 256
        if m.arch == "amd64" and m.osreldate >= 1200000:
            default = 1024
        size = m.constant("SC_TABLESIZE", default)
        stride = m.sizeof("sleepqueue_chain")
        table = m.symbol("sleepq_chains", "sleepqueue_chain", count=size, static=True, align=64)
        chains: Dict[int, List[Obj]] = {}
        for wchan, waiting in self.sleepers.items():
            queues = [m.allocate("sleepqueue") for _ in waiting]
            queue = queues[0]
            queue["sq_wchan"] = wchan
            queue.probe(sq_type=waiting[0][1])
            m.list(queue.at("sq_free"), "sq_hash", queues[1:])
            if m.has("sleepqueue", "sq_blocked[0]"):
                for number in (0, 1):
                    here = [t.obj for t, _, q in waiting if q == number]
                    m.tailq(queue.at(f"sq_blocked[{number}]"), "td_slpq", here)
                    if m.has("sleepqueue", "sq_blockedcnt"):
                        queue[f"sq_blockedcnt[{number}]"] = len(here)
            else:
                m.tailq(queue.at("sq_blocked"), "td_slpq", [t.obj for t, _, _ in waiting])
            hashed = wchan >> 8 if m.osreldate < 1000000 else wchan >> 8 ^ wchan
            slot = hashed & (size - 1)
            chains.setdefault(slot, []).insert(0, queue)
            chain = m.view("sleepqueue_chain", table.address + slot * stride)
            for thread, _, _ in waiting:
                thread.obj.probe(td_lock=chain.at("sc_lock"))
        for slot in range(size):
            at = table.address + slot * stride
            chain = m.view("sleepqueue_chain", at)
            m.locks.initialize(chain.sub("sc_lock"), "spin mutex", "sleepq chain")
            m.list(chain.at("sc_queues"), "sq_hash", chains.get(slot, []))
        for proc in self.all:
            for thread in proc.threads:
                if thread.state != "sleeping":
                    thread.obj["td_sleepqueue"] = m.allocate("sleepqueue")

    def _cpus(self) -> None:
        """struct pcpu per CPU, its idle thread, and the registers of what ran there."""
        m = self.machine
        idle = [self._idle(cpu) for cpu in range(m.cpus)]
        maxcpu = m.constant("MAXCPU", 32)
        table = m.symbol(
            "cpuid_to_pcpu", size=maxcpu * m.pointer_size, static=m.osreldate < 800000, align=16
        )
        pcpus = m.pcpus
        for cpu, pcpu in enumerate(pcpus):
            pcpu.set(pc_cpuid=cpu, pc_idlethread=idle[cpu])
            if m.arch == "amd64":
                pcpu.probe(pc_zpcpu_offset=m.pcpus[0].address + cpu * PAGE_SIZE)
            else:
                pcpu.probe(pc_zpcpu_offset=cpu * PAGE_SIZE)
            current = self.oncpu.get(cpu, idle[cpu])
            if current is idle[cpu]:
                idle[cpu].runs_on(cpu)
            pcpu.set(pc_curthread=current)
            pcpu.probe(pc_curpcb=current.obj["td_pcb"], pc_prvspace=pcpu)
            m.write_pointer(table.address + cpu * m.pointer_size, pcpu)
            if current is not idle[cpu]:
                idle[cpu].runnable(cpu)
        link = "pc_allcpu"
        head = m.symbol("cpuhead", size=(2 if m.osreldate >= 900000 else 1) * m.pointer_size)
        if m.has("pcpu", "pc_allcpu.sle_next"):
            m.slist(head.address, link, list(reversed(pcpus)))
        else:
            m.stailq(head.address, link, pcpus)
        m.variable("mp_ncpus", m.cpus, size=4)
        m.variable("mp_maxid", m.cpus - 1, size=4)
        mask = (1 << m.cpus) - 1
        for name, value in (("all_cpus", mask), ("stopped_cpus", mask & ~(1 << m.dumping_cpu))):
            width = 4 if m.osreldate < 900000 else max(maxcpu // 8, m.pointer_size)
            m.write_int(m.symbol(name, size=width).address, value, width)
        self._stoppcbs(maxcpu)

    def _idle(self, cpu: int) -> Thread:
        if self.modern:
            thread = self.kthread(
                f"idle: cpu{cpu}" if self.machine.cpus > 1 else "idle", "idle", ("sched_idletd",)
            )
        else:
            thread = self.kthread(f"idle: cpu{cpu}", calls=("idle_proc",))
        thread.obj["td_flags"] = thread.obj["td_flags"] | TDF_IDLETD
        thread.obj["td_lastcpu"] = cpu
        return thread.call("cpu_idle")

    def _stoppcbs(self, maxcpu: int) -> None:
        m = self.machine
        size = m.sizeof("pcb")
        if m.osreldate >= 1401000 or (m.arch == "arm64" and m.osreldate >= 1400000):
            base = m.take(size * m.cpus, "kva", 64)
            m.variable("stoppcbs", base)
        else:
            base = m.symbol("stoppcbs", "pcb", count=maxcpu, align=64).address
        dump = m.symbol("dumppcb", "pcb", static=m.osreldate < 1400000, align=64)
        dumper = m.dumper
        m.variable("dumptid", dumper.tid if dumper else 0, size=4, static=m.osreldate < 900000)
        if dumper is not None:
            dumper._save(dump)
        for cpu, thread in sorted(self.oncpu.items()):
            if thread is dumper:
                continue
            if m.arch == "i386" and m.osreldate < 800000:
                thread.interrupted("cpustop_handler", "Xcpustop")
            elif m.arch == "arm64":
                thread.interrupted("ipi_stop", "intr_ipi_dispatch", "handle_el1h_irq")
            else:
                thread.interrupted("cpustop_handler", "ipi_nmi_handler", "trap", "nmi_calltrap")
            thread._save(m.view("pcb", base + cpu * size))
