"""struct rmslock (13.0 on): a reader that asks again behind a writer, and simpler shapes.

``m.cast`` names the threads.
"""

from __future__ import annotations

from typing import Any, Sequence

from tests.forge.builder import Obj
from tests.forge.machine import Machine
from tests.forge.procs import Thread


def rmslock(m: Machine, name: str) -> Obj:
    """A free lock of that name; owner RMS_NOOWNER."""
    lock = m.new("rmslock")
    m.locks.initialize(lock.sub("mtx"), "sleep mutex", name)
    m.write_pointer(lock.at("owner"), 1)
    return lock


def wants(thread: Thread, lock: Obj, member: str, seconds: float) -> Thread:
    """Asleep in rms_rlock() or rms_wlock(), the lock in its frame."""
    function = "rms_rlock_fallback" if member == "readers" else "rms_wlock"
    thread.call(function)
    m = thread.machine
    m.write_pointer(thread.local(function, 24), lock)
    name = lock["mtx.lock_object.lo_name"]
    thread.sleeps(lock.at(member), "unused", seconds=seconds)
    thread.obj["td_wmesg"] = name
    return thread


def _thread(m: Machine, comm: str, *calls: str) -> Thread:
    made = m.procs.process(comm).thread(calls=calls)
    m.cast[comm] = made
    return made


def reader_asks_again(
    name: str = "zfs teardown",
    *,
    osreldate: int = 1402000,
    arch: str = "amd64",
    prefix: str = "zfs",
    behind: Sequence[str] = ("nfsd",),
) -> Machine:
    """``rsync`` has the lock for reading and asks again, behind ``mountd``, which wants to write.

    Those in ``behind`` ask for it for reading too; they have nothing.
    """
    m = Machine(osreldate, arch, cpus=2, uptime=7200.0)
    lock = rmslock(m, name)
    lock.set(writers=1, readers=1)
    rsync = _thread(
        m,
        "rsync",
        f"{prefix}_lookup_internal",
        "VOP_LOOKUP_APV",
        "namei",
        f"{prefix}_setextattr",
        "VOP_SETEXTATTR_APV",
        "sys_extattr_set_link",
    )
    wants(rsync, lock, "readers", 900)
    mountd = _thread(m, "mountd", f"{prefix}vfs_teardown", "vfs_domount_update", "sys_nmount")
    wants(mountd, lock, "writers", 901)
    for comm in behind:
        wants(_thread(m, comm, f"{prefix}_getattr", "VOP_GETATTR_APV"), lock, "readers", 890)
    return m


def writer_works(
    name: str = "zfs teardown", *, osreldate: int = 1402000, arch: str = "amd64"
) -> Machine:
    """``writer`` has the lock and runs; a reader and a second writer wait."""
    m = Machine(osreldate, arch, cpus=2, uptime=7200.0)
    lock = rmslock(m, name)
    writer = _thread(m, "writer", "zfsvfs_teardown", "sys_nmount")
    lock.set(writers=2, owner=writer)
    writer.runs_on(0)
    wants(_thread(m, "reader", "zfs_getattr", "VOP_GETATTR_APV"), lock, "readers", 90)
    wants(_thread(m, "second", "zfsvfs_teardown", "sys_nmount"), lock, "owner", 80)
    return m


def lone_reader(*, at_work: Any = True) -> Machine:
    """``writer`` waits for ``reader``, which runs inside the file system (or left no trace)."""
    m = Machine(1402000, "amd64", cpus=2, uptime=7200.0)
    lock = rmslock(m, "example rms")
    lock.set(writers=1, readers=1)
    wants(_thread(m, "writer", "zfsvfs_teardown", "sys_nmount"), lock, "writers", 90)
    reader = _thread(m, "reader", "zfs_read", "VOP_READ_APV", "sys_read")
    if at_work:
        m.write_pointer(reader.local("zfs_read", 24), lock)
    reader.runs_on(0)
    return m
