"""Machines too large to describe one by one: for benchmarks."""

from __future__ import annotations

from plugin.errors import UsageError
from tests.forge.bufs import BIO_READ
from tests.forge.machine import Machine


def crowd(
    threads: int = 10_000, bios: int = 100_000, *, osreldate: int = 1402000, arch: str = "amd64"
) -> Machine:
    """Many threads, many bios: chains of lock waiters, sleepers for memory, readers of a disk.

    Of every ten threads three wait in a row for a lock, four wait for memory,
    two for a buffer, one for nothing in particular.
    """
    kstack = threads * 4 * 4096
    ram = (64 << 20) + 2 * kstack + bios * 1024
    m = Machine(osreldate, arch, ram=ram, uptime=9000.0, nbuf=threads // 4 + 64)
    disk = m.geom.disk("da", 0, mediasize=1 << 40)
    mount = m.vfs.ffs("/", m.geom.vfs(disk.provider))
    consumer = mount.consumer
    if consumer is None:
        raise UsageError("the file system is on no device")
    for number in range(bios):
        bio = m.geom.request(
            consumer, BIO_READ, number * 16384, 16384, done="g_vfs_done", seconds=number % 600
        )
        m.geom.down.append(bio)
    calls = ("kern_example", "sys_example")
    channel = m.variable("example_channel", 0, size=4)
    ahead = None
    for number in range(threads):
        thread = m.procs.process(f"p{number}").thread(calls=calls)
        kind = number % 10
        if kind < 3:
            if ahead is None or kind == 0:
                thread.sleeps(channel, "example", seconds=number % 3600 + 1)
            else:
                lock = m.locks.sx("crowd lock")
                lock.owned_by(ahead)
                lock.slept_on_by(thread, seconds=number % 900 + 1)
            ahead = thread
        elif kind < 7:
            m.vm.waited_by(thread, "pfault", seconds=number % 600 + 1)
        elif kind < 9:
            buf = m.bufs.buf(None, 0, blkno=number * 32, cmd=BIO_READ, owner=thread)
            m.bufs.start(buf, mount, seconds=number % 300 + 1).queued_down()
            buf.waited_by(thread, "biord", seconds=number % 300 + 1)
        else:
            thread.sleeps(channel, "example", seconds=number % 3600 + 1)
    m.vm.set_counts(free=40)
    m.expected.update(queued=len(m.geom.down))
    return m


def queue_of(bios: int = 100_000, *, osreldate: int = 1402000, arch: str = "amd64") -> Machine:
    """``bios`` on g_bio_run_down and nothing else: for the cost of a list walk."""
    m = Machine(osreldate, arch, ram=(64 << 20) + bios * 1024)
    disk = m.geom.disk("da", 0, mediasize=1 << 40)
    consumer = m.geom.vfs(disk.provider)
    for number in range(bios):
        m.geom.down.append(
            m.geom.request(
                consumer, BIO_READ, number * 16384, 16384, done="g_vfs_done", seconds=number % 600
            )
        )
    return m


def page_array(
    gigabytes: int = 64,
    *,
    busy_every: int = 50_021,
    osreldate: int = 1402000,
    arch: str = "amd64",
) -> Machine:
    """A machine of so much memory, its page array whole: 64 GB make 16 million pages, 1.7 GB.

    Every second page is free, the others active; of these every
    ``busy_every``-th is exclusively busied.  numpy writes it in seconds.
    """
    m = Machine(osreldate, arch, ram=gigabytes << 30, busy_every=busy_every, nbuf=256)
    active = m.vm.count // 2
    m.expected.update(pages=m.vm.count, active=active, busy=-(-active // busy_every))
    return m
