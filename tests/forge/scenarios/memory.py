"""No memory: who waits for it, and why the page daemon does not bring any."""

from __future__ import annotations

from typing import Sequence

from tests.forge.machine import Machine
from tests.forge.procs import Thread


def _machine(osreldate: int, arch: str) -> Machine:
    return Machine(osreldate, arch, uptime=7200.0, ram=64 << 20)


def _starving(m: Machine, faulters: int, waiters: int, seconds: float) -> None:
    for number in range(faulters):
        thread = m.procs.process("fault").thread(calls=("vm_fault", "trap_pfault"), entry="fault")
        m.vm.waited_by(thread, "pfault", seconds=seconds - number)
    for number in range(waiters):
        thread = m.procs.process("alloc").thread(calls=("allocbuf", "getblk", "sys_write"))
        m.vm.waited_by(thread, "vmwait", seconds=seconds - number)


def _pagedaemon(m: Machine) -> Thread:
    return m.services["pagedaemon"]


def sibling(
    *, osreldate: int = 700014, arch: str = "i386", faulters: int = 40, waiters: int = 12
) -> Machine:
    """The first report's sibling: the page daemon itself waits for memory, "VMWait".

    It needs a page of metadata for the swap blocks it is about to write
    (swp_pager_meta_build()), and nobody but itself could free one.  No lock is
    held by anybody, no I/O is under way.
    """
    m = _machine(osreldate, arch)
    m.vm.set_counts(free=0, inactive=2000)
    daemon = _pagedaemon(m)
    through = ("swp_pager_meta_build", "swap_pager_putpages", "vm_pageout_flush")
    if osreldate >= 1200000:
        daemon.call("vm_wait_domain", *through, "vm_pageout_cluster", "vm_pageout_launder")
        channel = m.vm.domains.at("vmd_pageout_pages_needed")
        m.vm.domains["vmd_pageout_pages_needed"] = 1
    else:
        daemon.call("vm_wait", *through, "vm_pageout_clean", "vm_pageout_scan")
        channel = m.address_of("vm_pageout_pages_needed")
        m.assign("vm_pageout_pages_needed", 1)
    daemon.sleeps(channel, "VMWait", seconds=640)
    _starving(m, faulters, waiters, 635)
    m.cast["pagedaemon"] = daemon
    m.expected.update(pfault=faulters, vmwait=waiters)
    return m


def lost_wakeup(
    *, osreldate: int = 700014, arch: str = "i386", faulters: int = 30, waiters: int = 10
) -> Machine:
    """Memory is free again, the page daemon is idle, and the sleepers sleep on.

    What they wait for holds: more pages are free than v_free_min, a wakeup never
    came.
    """
    m = _machine(osreldate, arch)
    m.vm.set_counts(inactive=1500)
    _starving(m, faulters, waiters, 900)
    m.cast["pagedaemon"] = _pagedaemon(m)
    m.expected.update(pfault=faulters, vmwait=waiters)
    return m


def exhausted(
    *, osreldate: int = 1402000, arch: str = "amd64", faulters: int = 20, waiters: int = 8
) -> Machine:
    """Memory and swap are both full: the page daemon runs and finds nothing it may take."""
    m = _machine(osreldate, arch)
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    swap = m.geom.swap(disk.provider)
    total = disk.provider.mediasize // 4096
    m.vm.swap_device(swap, pages=total, used=total - 2)
    m.vm.set_counts(free=20, inactive=0)
    _starving(m, faulters, waiters, 300)
    daemon = _pagedaemon(m)
    daemon.call("vm_pageout_scan").runs_on(1)
    m.cast["pagedaemon"] = daemon
    m.expected.update(pfault=faulters, vmwait=waiters)
    return m


def page_states(
    *, osreldate: int = 1402000, arch: str = "amd64", variant: Sequence[str] = ()
) -> Machine:
    """Pages of one vnode in every busy state, each waited for.

    ``m.expected``: {name: address of the struct vm_page}.
    """
    m = Machine(osreldate, arch, variant, ram=64 << 20)
    disk = m.geom.disk("da", 0, mediasize=1 << 30)
    mount = m.vfs.ffs("/", m.geom.vfs(disk.provider))
    vnode = m.vfs.vnode(mount)
    file = vnode.object(64)
    owner = m.procs.process("owner").thread(calls=("vm_fault", "trap_pfault"), entry="fault")
    waiter = m.procs.process("waiter").thread(calls=("vm_fault", "trap_pfault"), entry="fault")
    owner.sleeps(m.take(8), "example", seconds=50)
    pages = {
        "unbusied": file.page(0),
        "exclusive": file.page(1, valid=0, queue=None).busied(owner),
        "waited": file.page(2, valid=0, queue=None).busied(owner),
        "shared": file.page(3).shared_busied(1),
        "shared3": file.page(4).shared_busied(3),
        "dirty": file.page(5, dirty=0xFF, queue="inactive"),
        "partly valid": file.page(6, valid=0x0F),
        "wired": file.page(7, wired=2, queue=None),
        "bogus": m.vm.bogus_page,
    }
    pages["waited"].slept_on_by(waiter, "vmpfw", seconds=45)
    m.cast.update(owner=owner, waiter=waiter)
    m.expected.update({name: page.__index__() for name, page in pages.items()})
    return m
