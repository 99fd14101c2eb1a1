"""All pbufs of a pool in use, whichever way a kernel keeps its pools."""

from __future__ import annotations

from tests.forge.machine import Machine


def exhaustion(*, osreldate: int = 1402000, arch: str = "amd64", waiters: int = 3) -> Machine:
    """Swap writes hold every pbuf of their pool, all of them at a disk that does not answer.

    Up to 12.x the page daemon (the laundry thread from 12.0) sleeps in getpbuf(),
    "wswbuf0", on the counter nsw_wcount_async.  From 13.0 the zone "swwbuf" is at
    its limit and those that want a pbuf sleep in "zonelimit", while the laundry
    thread has its four asynchronous writes under way and sleeps in "swbufa".
    """
    m = Machine(osreldate, arch, ram=64 << 20, uptime=5000.0)
    disk = m.geom.disk("da", 1, mediasize=1 << 30)
    disk.provider.finished = disk.finished = 81_234
    device = m.vm.swap_device(m.geom.swap(disk.provider), used=4000)
    memory = m.vm.object("swap", size=4096)
    zones = osreldate >= 1300000
    name = "swwbuf" if zones else "nsw_wcount_async"
    pool = m.bufs.pool(name)
    for number in range(pool.limit):
        page = memory.page(number, dirty=0xFF, queue="inactive")
        write = m.bufs.swap_write(device, 512 + number, [page], pool=name, seconds=700 - number)
        if write.bio is not None:
            write.bio.to_device()
    memory.paging(pool.limit)
    m.vm.set_counts(free=400, inactive=3000)
    writer = m.services["laundry" if osreldate >= 1200000 else "pagedaemon"]
    cleaning = ("swap_pager_putpages", "vm_pageout_flush", "vm_pageout_cluster")
    writer.call(*cleaning, "vm_pageout_launder" if osreldate >= 1200000 else "vm_pageout_scan")
    m.bufs.pool_waited_by("nsw_wcount_async", writer, seconds=690)
    m.cast["writer"] = writer
    for number in range(waiters):
        thread = m.procs.process("swapper-out").thread(
            calls=("swap_pager_putpages", "vm_pageout_flush", "vm_object_page_clean", "sys_fsync")
        )
        m.bufs.pool_waited_by(name, thread, seconds=600 - number)
        m.cast[f"waiter{number}"] = thread
    m.expected.update(
        pool=name, limit=pool.limit, used=pool.limit, provider="da1", at_device=pool.limit
    )
    return m
