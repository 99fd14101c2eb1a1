"""Threads that wait for each other, or only seem to: every lock of the kernel, small shapes.

``m.cast`` names the threads of each; what a shape comes to is in its
docstring, for a test to say as a sentence.
"""

from __future__ import annotations

from typing import Any, Dict, Sequence

from plugin.errors import UsageError
from tests.forge.machine import Machine
from tests.forge.procs import Thread

#: every kind that ``lock`` makes, in the words of the kernel
KINDS = ("mutex", "spin", "rwlock", "rmlock", "sleepable rmlock", "rmslock", "sx", "lockmgr")
#: what a thread sleeps for rather than blocks on
SLEEPING = ("sx", "lockmgr", "sleepable rmlock", "rmslock")


def lock(m: Machine, kind: str, name: str) -> Any:
    """A lock of one of KINDS."""
    if kind == "mutex":
        return m.locks.mutex(name)
    if kind == "spin":
        return m.locks.mutex(name, spin=True)
    if kind == "rwlock":
        return m.locks.rwlock(name)
    if kind in ("rmlock", "sleepable rmlock"):
        return m.locks.rmlock(name, sleepable=kind == "sleepable rmlock")
    if kind == "rmslock":
        return m.locks.rmslock(name)
    if kind == "sx":
        return m.locks.sx(name)
    if kind == "lockmgr":
        return m.locks.lockmgr(name)
    raise UsageError(f"no lock kind {kind!r}: {', '.join(KINDS)}")


def wants(thread: Thread, wanted: Any, *, shared: bool = False, seconds: float = 60.0) -> None:
    """The thread waits for a lock as its kind is waited for; for a spin mutex it spins."""
    if wanted.kind == "spin mutex":
        m = thread.machine
        free = next(cpu for cpu in range(m.cpus) if cpu not in m.procs.oncpu)
        wanted.spun_on_by(thread, free)
    elif wanted.kind in ("sx", "lockmgr", "rmslock"):
        wanted.slept_on_by(thread, shared=shared, seconds=seconds)
    else:
        thread.blocks_on(wanted, shared=shared, seconds=seconds)


def _thread(m: Machine, name: str) -> Thread:
    made = m.procs.process(name).thread(calls=("kern_example", "sys_example"))
    m.cast[name] = made
    return made


def _machine(osreldate: int, arch: str, variant: Sequence[str]) -> Machine:
    return Machine(osreldate, arch, variant, cpus=4, uptime=4000.0)


def abba(
    first: str = "mutex",
    second: str = "mutex",
    *,
    osreldate: int = 1402000,
    arch: str = "amd64",
    variant: Sequence[str] = (),
) -> Machine:
    """Two locks taken in two orders: ``alpha`` and ``beta`` wait for each other for ever."""
    m = _machine(osreldate, arch, variant)
    a, b = lock(m, first, "lock A"), lock(m, second, "lock B")
    alpha, beta = _thread(m, "alpha"), _thread(m, "beta")
    a.owned_by(alpha)
    b.owned_by(beta)
    wants(alpha, b)
    wants(beta, a)
    return m


def ring(
    kinds: Sequence[str] = ("sx", "lockmgr", "mutex"),
    *,
    tail: int = 0,
    osreldate: int = 1402000,
    arch: str = "amd64",
    variant: Sequence[str] = (),
) -> Machine:
    """A cycle of as many threads as ``kinds``: ``ring0`` waits for ``ring1``, and so round.

    ``tail`` more threads, ``tail0`` first, wait in a row for a lock of ``ring0``:
    behind the cycle, not in it.
    """
    m = _machine(osreldate, arch, variant)
    locks = [lock(m, kind, f"ring lock {n}") for n, kind in enumerate(kinds)]
    threads = [_thread(m, f"ring{n}") for n in range(len(kinds))]
    for held, thread in zip(locks, threads):
        held.owned_by(thread)
    for n, thread in enumerate(threads):
        wants(thread, locks[(n + 1) % len(locks)], seconds=300 - n)
    ahead = threads[0]
    for n in range(tail):
        held = m.locks.sx(f"tail lock {n}")
        held.owned_by(ahead)
        ahead = _thread(m, f"tail{n}")
        wants(ahead, held, seconds=200 - n)
    return m


def diamond(kind: str = "sx", *, osreldate: int = 1402000, arch: str = "amd64") -> Machine:
    """Two ways from ``top`` to ``bottom`` and no cycle: ``bottom`` runs on CPU 1.

    ``top`` wants a lock that ``left`` and ``right`` hold shared; both want one
    that ``bottom`` holds.
    """
    m = _machine(osreldate, arch, ())
    upper, lower = lock(m, kind, "upper"), lock(m, kind, "lower")
    top, left = _thread(m, "top"), _thread(m, "left")
    right, bottom = _thread(m, "right"), _thread(m, "bottom")
    upper.shared_by(left, right)
    lower.owned_by(bottom)
    wants(top, upper)
    wants(left, lower)
    wants(right, lower)
    bottom.runs_on(1)
    return m


def shared_owners(
    kind: str = "lockmgr", *, owners: int = 3, osreldate: int = 1402000, arch: str = "amd64"
) -> Machine:
    """``writer`` waits for several readers; one of them, ``reader0``, is asleep for long.

    The others, runnable, will let go by themselves.
    """
    m = _machine(osreldate, arch, ())
    held = lock(m, kind, "shared lock")
    readers = [_thread(m, f"reader{n}") for n in range(owners)]
    writer = _thread(m, "writer")
    held.shared_by(*readers)
    wants(writer, held, seconds=120)
    channel = m.variable("example_channel", 0, size=4)
    readers[0].sleeps(channel, "example", seconds=3600)
    for reader in readers[1:]:
        reader.runnable(1)
    return m


def reader_writer_starvation(
    kind: str = "rwlock", *, waiting: int = 5, osreldate: int = 1402000, arch: str = "amd64"
) -> Machine:
    """A reader holds the lock and runs; ``writer`` waits for it, and new readers for the writer.

    Behind ``writer`` stand ``waiting`` threads that only want to read what is
    held for reading; the cause is ``reader`` on CPU 1, not the writer.
    """
    m = _machine(osreldate, arch, ())
    held = lock(m, kind, "read mostly")
    reader, writer = _thread(m, "reader"), _thread(m, "writer")
    held.shared_by(reader)
    wants(writer, held, seconds=500)
    for n in range(waiting):
        wants(_thread(m, f"late{n}"), held, shared=True, seconds=400 - n)
    reader.runs_on(1)
    return m


def chain(length: int = 6, *, osreldate: int = 1402000, arch: str = "amd64") -> Machine:
    """A row of threads, each waiting for the next by another kind of lock; the last one runs."""
    m = _machine(osreldate, arch, ())
    kinds = ("mutex", "sx", "rwlock", "lockmgr", "rmlock")
    threads = [_thread(m, f"link{n}") for n in range(length)]
    for n in range(length - 1):
        held = lock(m, kinds[n % len(kinds)], f"chain lock {n}")
        held.owned_by(threads[n + 1])
        wants(threads[n], held, seconds=100 + n)
    threads[-1].runs_on(1)
    return m


def every_lock(
    *, osreldate: int = 1402000, arch: str = "amd64", variant: Sequence[str] = ()
) -> Machine:
    """One contended lock of each kind that this version has: one owner, two waiters each.

    ``m.expected``: {kind: (address, lc_name, owner's tid, waiters' tids)}.
    """
    m = _machine(osreldate, arch, variant)
    # rmlock(9) came with 8.0, its sleepable form with 9.1, rmslock with 13.0.
    since = {"rmlock": 800000, "sleepable rmlock": 901000, "rmslock": 1300000}
    kinds = [k for k in KINDS if k != "spin" and osreldate >= since.get(k, 0)]
    for kind in kinds:
        short = kind.replace(" ", "-")
        held = lock(m, kind, f"a {kind}")
        owner = _thread(m, f"{short}-owner"[:19])
        waiters = [_thread(m, f"{short}-{n}"[:19]) for n in range(2)]
        held.owned_by(owner)
        for n, waiter in enumerate(waiters):
            wants(waiter, held, seconds=10 + n)
        owner.sleeps(m.take(8), "example", seconds=20)
        inner = getattr(held, "inner", held)
        m.expected[kind] = (inner.object, inner.kind, owner.tid, [waiter.tid for waiter in waiters])
    return m


def states(*, osreldate: int = 1402000, arch: str = "amd64") -> Machine:
    """A thread in every state that DDB's ps knows; ``m.expected`` is {name: state}."""
    m = _machine(osreldate, arch, ())
    held = m.locks.mutex("a lock")
    made: Dict[str, Thread] = {
        name: _thread(m, name)
        for name in ("running", "runnable", "sleeping", "locked", "suspended", "iwait", "inactive")
    }
    held.owned_by(made["sleeping"])
    made["running"].runs_on(2)
    made["runnable"].runnable()
    made["sleeping"].sleeps(m.take(8), "example", seconds=17)
    made["locked"].blocks_on(held, seconds=3)
    made["suspended"].suspended()
    made["iwait"].waits_for_interrupt()
    made["inactive"].inactive()
    m.expected.update({name: name for name in made})
    if osreldate < 1500000:
        # Kernel stacks are swapped out no more since 15.0.
        _thread(m, "swapped").swapped_out()
        m.expected["swapped"] = "swapped"
    dead = m.procs.process("zombie")
    dead.thread(calls=("exit1",)).inactive()
    dead.exits()
    m.expected["zombie"] = "zombie"
    return m
