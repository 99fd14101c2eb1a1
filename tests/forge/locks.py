"""FreeBSD's locks: their words as each version encodes them, owners and waiters.

Mirrors sys/sys/{mutex,rwlock,sx,rmlock,lockmgr,condvar}.h, sys/kern/kern_*.c of
the same names and sys/kern/subr_turnstile.c, from 7.0-CURRENT of 2006 to 15.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

from plugin.errors import UsageError
from tests.forge import procs
from tests.forge.builder import Obj

if TYPE_CHECKING:
    from tests.forge.machine import Machine
    from tests.forge.procs import Thread

LO_INITIALIZED, LO_WITNESS, LO_RECURSABLE = 0x10000, 0x20000, 0x80000
LO_SLEEPABLE, LO_UPGRADABLE, LO_DUPOK = 0x100000, 0x200000, 0x400000
LO_CLASSSHIFT = 24
LC_SLEEPLOCK, LC_SPINLOCK, LC_SLEEPABLE, LC_RECURSABLE, LC_UPGRADABLE = 1, 2, 4, 8, 16

#: lc_name: symbol, lc_flags, lo_flags (sys/kern/kern_{mutex,sx,rmlock,rwlock,lock}.c)
_CLASSES = {
    "spin mutex": ("lock_class_mtx_spin", LC_SPINLOCK | LC_RECURSABLE, 0),
    "sleep mutex": ("lock_class_mtx_sleep", LC_SLEEPLOCK | LC_RECURSABLE, 0),
    "sx": (
        "lock_class_sx",
        LC_SLEEPLOCK | LC_SLEEPABLE | LC_UPGRADABLE,
        LO_SLEEPABLE | LO_UPGRADABLE | LO_RECURSABLE,
    ),
    "rm": ("lock_class_rm", LC_SLEEPLOCK | LC_RECURSABLE, LO_RECURSABLE),
    "sleepable rm": (
        "lock_class_rm_sleepable",
        LC_SLEEPLOCK | LC_SLEEPABLE | LC_RECURSABLE,
        LO_RECURSABLE | LO_SLEEPABLE,
    ),
    "rw": ("lock_class_rw", LC_SLEEPLOCK | LC_RECURSABLE | LC_UPGRADABLE, LO_UPGRADABLE),
    "lockmgr": (
        "lock_class_lockmgr",
        LC_SLEEPLOCK | LC_SLEEPABLE | LC_RECURSABLE | LC_UPGRADABLE,
        LO_RECURSABLE | LO_SLEEPABLE | LO_UPGRADABLE,
    ),
}
MTX_CONTESTED = 2
RW_READ, RW_READ_WAITERS, RW_WRITE_WAITERS = 1, 2, 4
SX_SHARED, SX_SHARED_WAITERS, SX_EXCLUSIVE_WAITERS = 1, 2, 4
LK_SHARE, LK_SHARED_WAITERS, LK_EXCLUSIVE_WAITERS = 1, 2, 4
# struct lock before 8.0 (sys/lockmgr.h)
LK_HAVE_EXCL, LK_SHARE_NONZERO, LK_WAIT_NONZERO = 0x40000, 0x1000000, 0x2000000


class Lock:
    """One lock: its memory, who owns it and who waits, in the words of its class."""

    kind = ""

    def __init__(self, machine: Machine, obj: Obj, name: str) -> None:
        self.machine = machine
        self.obj = obj
        self.name = name
        self.owner: Optional[Thread] = None
        self.readers: List[Thread] = []
        #: (thread, shared)
        self.waiters: List[Tuple[Thread, bool]] = []
        machine.locks.all.append(self)

    def __index__(self) -> int:
        return self.obj.address

    @property
    def object(self) -> int:
        """Address of the struct lock_object, where it has one."""
        return self.obj.address

    def owned_by(self, thread: Optional[Thread]) -> Any:
        """Held exclusively."""
        self.owner = thread
        return self

    def shared_by(self, *threads: Thread) -> Any:
        """Held shared by these."""
        self.readers.extend(threads)
        return self

    def finish(self) -> None:
        """Write the lock word; called when all owners and waiters are known."""
        raise NotImplementedError

    def _waits(self, shared: bool) -> bool:
        return any(how == shared for _, how in self.waiters)

    def _lo_name(self) -> int:
        return self.machine.string(self.name)

    # turnstile locks

    def block(self, thread: Thread, shared: bool, seconds: float) -> None:
        raise UsageError(f"a thread sleeps on a {self.kind}, it does not block on a turnstile")


class _TurnstileLock(Lock):
    def _functions(self, shared: bool) -> Sequence[str]:
        raise NotImplementedError

    def block(self, thread: Thread, shared: bool, seconds: float) -> None:
        turnstile = self.machine.locks.turnstile(self)
        self.waiters.append((thread, shared))
        thread.obj.probe(td_tsqueue=1 if shared else 0)
        thread.blocked(turnstile, self._lo_name(), seconds, self._functions(shared))


class Mutex(_TurnstileLock):
    """struct mtx; ``spin`` ones have waiters that spin, not sleep."""

    def __init__(self, machine: Machine, obj: Obj, name: str, spin: bool) -> None:
        super().__init__(machine, obj, name)
        self.kind = "spin mutex" if spin else "sleep mutex"

    def _functions(self, shared: bool) -> Sequence[str]:
        return ("__mtx_lock_sleep" if self.machine.osreldate >= 1000000 else "_mtx_lock_sleep",)

    def spun_on_by(self, thread: Thread, cpu: int) -> None:
        """A running thread that spins for this mutex."""
        modern = self.machine.osreldate >= 1200000
        thread.call("_mtx_lock_spin_cookie" if modern else "_mtx_lock_spin")
        self.waiters.append((thread, False))
        thread.runs_on(cpu)

    def finish(self) -> None:
        m = self.machine
        unowned = m.constant("MTX_UNOWNED", 4 if m.osreldate < 1200000 else 0)
        word = self.owner.__index__() if self.owner else unowned
        if self.waiters and self.kind == "sleep mutex":
            word |= MTX_CONTESTED
        self.obj["mtx_lock"] = word


class Rwlock(_TurnstileLock):
    kind = "rw"

    def _functions(self, shared: bool) -> Sequence[str]:
        old = self.machine.osreldate
        if shared:
            return (
                ("__rw_rlock_hard",)
                if old >= 1200000
                else (("__rw_rlock",) if old >= 1000000 else ("_rw_rlock",))
            )
        return ("__rw_wlock_hard",) if old >= 1000000 else ("_rw_wlock_hard",)

    def finish(self) -> None:
        m = self.machine
        shift = m.constant("RW_READERS_SHIFT", 4)
        if self.owner is not None:
            word = self.owner.__index__()
        else:
            word = RW_READ | len(self.readers) << shift
        if self._waits(True):
            word |= RW_READ_WAITERS
        if self._waits(False):
            word |= RW_WRITE_WAITERS
        self.obj["rw_lock"] = word
        for reader in self.readers:
            if reader.obj.has("td_rw_rlocks"):
                reader.obj["td_rw_rlocks"] = reader.obj["td_rw_rlocks"] + 1


class Rmlock(_TurnstileLock):
    """struct rmlock: writers and blocked readers meet on the mutex or sx inside."""

    def __init__(self, machine: Machine, obj: Obj, name: str, sleepable: bool) -> None:
        super().__init__(machine, obj, name)
        self.kind = "sleepable rm" if sleepable else "rm"
        inner = "_rm_lock._rm_lock_sx" if sleepable else "_rm_lock._rm_lock_mtx"
        if not sleepable and not obj.has(inner):
            # To 9.0 the mutex was the only lock inside.
            inner = "rm_lock"
        if sleepable:
            self.inner: Lock = machine.locks.sx(name, at=obj.at(inner))
        else:
            self.inner = machine.locks.mutex(name, at=obj.at(inner))

    def owned_by(self, thread: Optional[Thread]) -> Rmlock:
        self.inner.owned_by(thread)
        value: Rmlock = super().owned_by(thread)
        return value

    def block(self, thread: Thread, shared: bool, seconds: float) -> None:
        thread.call("_rm_rlock_hard" if shared else "_rm_wlock")
        if isinstance(self.inner, Sx):
            self.inner.slept_on_by(thread, seconds=seconds)
        else:
            self.inner.block(thread, False, seconds)

    def _functions(self, shared: bool) -> Sequence[str]:
        return ()

    def finish(self) -> None:
        """The word is the inner lock's; writers mark all CPUs as needing the slow path."""
        self.obj.probe(rm_noreadtoken=int(self.owner is not None))
        for path in ("rm_writecpus.__bits", "rm_writecpus"):
            if self.obj.has(path) and self.owner is not None:
                member = self.machine.locate("rmlock", path)
                self.machine.write_int(
                    self.obj.address + member.offset,
                    (1 << self.machine.cpus) - 1,
                    8 if member.size >= 8 else member.size,
                )
                break


class Rmslock(Lock):
    """struct rmslock (13.0 on): a mutex, the writer, and counts; waiters sleep on its members."""

    kind = "rmslock"

    def slept_on_by(
        self, thread: Thread, *, shared: bool = False, seconds: float = 60.0
    ) -> Rmslock:
        """As rms_wlock() and rms_rlock_fallback() sleep (sys/kern/kern_rmlock.c)."""
        first = self.owner is None and not self._waits(False)
        member = "readers" if shared else "writers" if first else "owner"
        self.waiters.append((thread, shared))
        hard = "rms_rlock_fallback" if shared else "rms_wlock"
        thread.sleeps(
            self.obj.at(member),
            self.name,
            seconds=seconds,
            through=("sleepq_wait", "_sleep", hard),
        )
        thread.obj["td_wmesg"] = self._lo_name()
        return self

    def finish(self) -> None:
        """Readers are counted per CPU until a writer comes, who adds them up."""
        writers = sum(1 for _, shared in self.waiters if not shared) + bool(self.owner)
        self.obj.set(
            owner=self.owner if self.owner else 1,
            writers=writers,
            readers=len(self.readers) if writers else 0,
        )
        if not writers and self.readers:
            share, rest = divmod(len(self.readers), self.machine.cpus)
            if rest:
                raise UsageError("an rmslock's readers are forged as many on each CPU")
            # struct rmslock_pcpu {int influx, readers;}: its upper half.
            self.obj["pcpu"] = self.machine.counter(share * self.machine.cpus << 32)


class Sx(Lock):
    """struct sx: a mutex and two condition variables in 7.0-CURRENT, a word since 8.0."""

    kind = "sx"

    def slept_on_by(self, thread: Thread, *, shared: bool = False, seconds: float = 60.0) -> Sx:
        self.waiters.append((thread, shared))
        if self.obj.has("sx_xholder"):
            cv = "sx_shrd_cv" if shared else "sx_excl_cv"
            thread.call("_sx_slock" if shared else "_sx_xlock")
            thread.sleeps(self.obj.at(cv), self.name, kind=procs.SLEEPQ_CONDVAR, seconds=seconds)
            thread.obj["td_wmesg"] = self._lo_name()
            return self
        hard = "_sx_slock_hard" if shared else "_sx_xlock_hard"
        thread.sleeps(
            self.obj,
            self.name,
            kind=procs.SLEEPQ_SX,
            seconds=seconds,
            queue=1 if shared else 0,
            through=("sleepq_wait", hard),
        )
        return self

    def finish(self) -> None:
        m = self.machine
        if self.obj.has("sx_xholder"):
            waiting = {how: sum(1 for _, h in self.waiters if h == how) for how in (True, False)}
            self.obj.set(
                sx_cnt=-1 if self.owner else len(self.readers),
                sx_xholder=self.owner,
                sx_shrd_wcnt=waiting[True],
                sx_excl_wcnt=waiting[False],
            )
            for cv, how in (("sx_shrd_cv", True), ("sx_excl_cv", False)):
                self.obj[f"{cv}.cv_description"] = self.name
                self.obj[f"{cv}.cv_waiters"] = waiting[how]
            return
        shift = m.constant("SX_SHARERS_SHIFT", 4)
        if self.owner is not None:
            word = self.owner.__index__()
        else:
            word = SX_SHARED | len(self.readers) << shift
        if self._waits(True):
            word |= SX_SHARED_WAITERS
        if self._waits(False):
            word |= SX_EXCLUSIVE_WAITERS
        self.obj["sx_lock"] = word
        for reader in self.readers:
            if reader.obj.has("td_sx_slocks"):
                reader.obj["td_sx_slocks"] = reader.obj["td_sx_slocks"] + 1


class Lockmgr(Lock):
    """struct lock: fields in 7.0-CURRENT, a word behind a lock_object since 8.0."""

    kind = "lockmgr"
    kernproc = False

    def owned_by_io(self) -> Lockmgr:
        """LK_KERNPROC: handed to I/O, no thread owns it."""
        self.kernproc = True
        return self

    def slept_on_by(
        self,
        thread: Thread,
        *,
        shared: bool = False,
        wmesg: Optional[str] = None,
        seconds: float = 60.0,
    ) -> Lockmgr:
        """A thread that sleeps for it; ``wmesg`` where the caller passed its own."""
        self.waiters.append((thread, shared))
        if self.obj.has("lk_lockholder"):
            thread.sleeps(
                self.obj,
                wmesg or self.name,
                seconds=seconds,
                through=("sleepq_wait", "msleep", "acquire", "lockmgr"),
            )
            return self
        m = self.machine
        if m.osreldate >= 1200000:
            hard = "lockmgr_slock_hard" if shared else "lockmgr_xlock_hard"
            through: Tuple[str, ...] = ("sleepq_wait", "sleeplk", hard)
        else:
            through = ("sleepq_wait", "sleeplk", "__lockmgr_args")
        thread.sleeps(
            self.obj,
            wmesg or self.name,
            kind=procs.SLEEPQ_LK,
            seconds=seconds,
            queue=1 if shared else 0,
            through=through,
        )
        return self

    def finish(self) -> None:
        m = self.machine
        held = self.owner is not None or self.kernproc
        if self.obj.has("lk_lockholder"):
            flags = self.obj["lk_flags"]
            if held:
                flags |= LK_HAVE_EXCL
                holder = self.owner.__index__() if self.owner else m.constant("LK_KERNPROC", -2)
            else:
                # LK_NOPROC
                holder = -1
            if self.readers:
                flags |= LK_SHARE_NONZERO
            if self.waiters:
                flags |= LK_WAIT_NONZERO
            self.obj.set(
                lk_flags=flags,
                lk_lockholder=holder,
                lk_exclusivecount=int(held),
                lk_sharecount=len(self.readers),
                lk_waitcount=len(self.waiters),
            )
            return
        shift = m.constant("LK_SHARERS_SHIFT", 4)
        mask = m.constant("LK_FLAGMASK", 0xF)
        if self.kernproc:
            word = (1 << 8 * m.pointer_size) - 1 & ~mask
        elif self.owner is not None:
            word = self.owner.__index__()
        else:
            word = LK_SHARE | len(self.readers) << shift
        if self._waits(True):
            word |= LK_SHARED_WAITERS
        if self._waits(False):
            word |= LK_EXCLUSIVE_WAITERS
        self.obj["lk_lock"] = word
        for reader in self.readers:
            if reader.obj.has("td_lk_slocks"):
                reader.obj["td_lk_slocks"] = reader.obj["td_lk_slocks"] + 1


class Cv:
    """struct cv, a condition variable with a description."""

    def __init__(self, machine: Machine, obj: Obj, description: str) -> None:
        self.machine = machine
        self.obj = obj
        self.description = description
        obj["cv_description"] = description

    def __index__(self) -> int:
        return self.obj.address

    def waited_by(self, thread: Thread, **how: Any) -> Cv:
        self.obj["cv_waiters"] = self.obj["cv_waiters"] + 1
        thread.sleeps(self.obj, self.description, kind=procs.SLEEPQ_CONDVAR, **how)
        return self


class Locks:
    """Lock classes, turnstiles, and every lock that the scenario names."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.all: List[Lock] = []
        self._turnstiles: Dict[int, Tuple[Obj, Lock]] = {}
        self._order: List[str] = []
        self._classes: Dict[str, Obj] = {}
        self._lock_classes()

    def _lock_classes(self) -> None:
        """lock_classes[] in the order of sys/kern/subr_lock.c of each version."""
        m = self.machine
        order = ["spin mutex", "sleep mutex", "sx"]
        if m.osreldate >= 800000:
            order.append("rm")
        if m.osreldate >= 901000:
            order.append("sleepable rm")
        order.append("rw")
        if m.osreldate >= 800000:
            order.append("lockmgr")
        self._order = order
        table = m.symbol("lock_classes", size=16 * m.pointer_size, align=16)
        for index, name in enumerate(order):
            symbol, flags, _ = _CLASSES[name]
            made = m.symbol(symbol, "lock_class", align=16)
            made.set(lc_name=name, lc_flags=flags)
            self._classes[name] = made
            m.write_pointer(table.address + index * m.pointer_size, made)

    def initialize(self, lock: Obj, kind: str, name: str) -> None:
        """The lock_object inside ``lock``, and an unlocked word for mutexes."""
        m = self.machine
        path = next(
            (p for p in ("lock_object", "mtx_object", "rw_object", "sx_object") if lock.has(p)),
            None,
        )
        if path is None:
            raise UsageError(f"struct {lock.struct} holds no lock_object in this version")
        flags = LO_INITIALIZED | _CLASSES[kind][2]
        if "WITNESS" in m.variant:
            flags |= LO_WITNESS
        at = lock.sub(path)
        if at.has("lo_class"):
            at["lo_class"] = self._classes[kind]
        else:
            flags |= self._order.index(kind) << LO_CLASSSHIFT
        at.set(lo_name=name, lo_flags=flags)
        at.probe(lo_type=name)
        if lock.has("mtx_lock"):
            lock["mtx_lock"] = m.constant("MTX_UNOWNED", 4 if m.osreldate < 1200000 else 0)

    # Making them

    def _place(self, struct: str, at: Optional[int], symbol: Optional[str], static: bool) -> Obj:
        m = self.machine
        if symbol is not None:
            # Locks that are alone in their cache line have a struct of their own, same members.
            return m.symbol(symbol, struct, static=static, align=16)
        if at is not None:
            return m.view(struct, at)
        return m.new(struct)

    def mutex(
        self,
        name: str,
        *,
        spin: bool = False,
        at: Optional[int] = None,
        symbol: Optional[str] = None,
        static: bool = False,
    ) -> Mutex:
        obj = self._place("mtx", at, symbol, static)
        self.initialize(obj, "spin mutex" if spin else "sleep mutex", name)
        return Mutex(self.machine, obj, name, spin)

    def rwlock(
        self, name: str, *, at: Optional[int] = None, symbol: Optional[str] = None
    ) -> Rwlock:
        obj = self._place("rwlock", at, symbol, False)
        self.initialize(obj, "rw", name)
        return Rwlock(self.machine, obj, name)

    def rmlock(self, name: str, *, sleepable: bool = False) -> Rmlock:
        obj = self._place("rmlock", None, None, False)
        self.initialize(obj, "sleepable rm" if sleepable else "rm", name)
        return Rmlock(self.machine, obj, name, sleepable)

    def rmslock(self, name: str) -> Rmslock:
        obj = self._place("rmslock", None, None, False)
        self.initialize(self.machine.view("mtx", obj.at("mtx")), "sleep mutex", name)
        return Rmslock(self.machine, obj, name)

    def sx(self, name: str, *, at: Optional[int] = None, symbol: Optional[str] = None) -> Sx:
        obj = self._place("sx", at, symbol, False)
        self.initialize(obj, "sx", name)
        return Sx(self.machine, obj, name)

    def lockmgr(self, name: str, *, at: Optional[int] = None) -> Lockmgr:
        obj = self._place("lock", at, None, False)
        if obj.has("lk_lockholder"):
            obj["lk_wmesg"] = name
        else:
            self.initialize(obj, "lockmgr", name)
        obj.probe(lk_timo=51, lk_pri=96, lk_prio=96)
        return Lockmgr(self.machine, obj, name)

    def cv(self, description: str, *, at: Optional[int] = None, symbol: Optional[str] = None) -> Cv:
        return Cv(self.machine, self._place("cv", at, symbol, True), description)

    # Turnstiles

    def turnstile(self, lock: Lock) -> Obj:
        """The turnstile of a contested lock; the first waiter's own."""
        known = self._turnstiles.get(lock.object)
        if known is None:
            made = self.machine.allocate("turnstile")
            known = self._turnstiles[lock.object] = (made, lock)
        return known[0]

    def finish(self) -> None:
        for lock in self.all:
            lock.finish()
        self._link_turnstiles()

    def _link_turnstiles(self) -> None:
        m = self.machine
        size = m.constant("TC_TABLESIZE", 128)
        stride = m.sizeof("turnstile_chain")
        table = m.symbol("turnstile_chains", "turnstile_chain", count=size, static=True, align=64)
        chains: Dict[int, List[Obj]] = {}
        contested: Dict[int, List[Obj]] = {}
        for turnstile, lock in self._turnstiles.values():
            waiting = lock.waiters
            turnstile.set(ts_lockobj=lock.object, ts_owner=lock.owner)
            if turnstile.has("ts_lock"):
                self.initialize(turnstile.sub("ts_lock"), "spin mutex", "turnstile lock")
            # One queue in 6.x, one each for exclusive and shared waiters since.
            both = m.has("turnstile", "ts_blocked[1]")
            for number in (0, 1) if both else (0,):
                path = f"ts_blocked[{number}]" if both else "ts_blocked"
                here = [t.obj for t, how in waiting if how == bool(number) or not both]
                m.tailq(turnstile.at(path), "td_lockq", here)
                for blocked in here:
                    if turnstile.has("ts_lock"):
                        blocked.probe(td_lock=turnstile.at("ts_lock"))
                    blocked.probe(td_wantedlock=lock.object)
            m.tailq(turnstile.at("ts_pending"), "td_lockq", [])
            spare = [m.allocate("turnstile") for _ in waiting[1:]]
            m.list(turnstile.at("ts_free"), "ts_hash", spare)
            chains.setdefault(lock.object >> 8 & size - 1, []).insert(0, turnstile)
            if lock.owner is not None:
                contested.setdefault(lock.owner.__index__(), []).insert(0, turnstile)
        for slot in range(size):
            chain = m.view("turnstile_chain", table.address + slot * stride)
            self.initialize(chain.sub("tc_lock"), "spin mutex", "turnstile chain")
            m.list(chain.at("tc_turnstiles"), "ts_hash", chains.get(slot, []))
        for owner, held in contested.items():
            m.list(m.view("thread", owner).at("td_contested"), "ts_link", held)
        for proc in m.procs.all:
            for thread in proc.threads:
                if thread.state != "locked":
                    thread.obj["td_turnstile"] = m.allocate("turnstile")
