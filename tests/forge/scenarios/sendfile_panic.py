"""The second report: a busy-page panic under sendfile (amd64, 12.0-CURRENT r329363).

The page of the panic string is at the report's address and *is* bogus_page,
unbusied.  sendfile_swapin() had put it in place of the pages that were valid
already, in the middle of the run it handed to vm_pager_get_pages_async()
(sys/kern/kern_sendfile.c); the others are exclusively busied as
VOP_GETPAGES(9) demands.  The kernel has INVARIANTS, or there had been no
assertion.

The report's machine has 32 GB at least, for its page array lies there in the
direct map.  The forged one describes the 64 MB of it around that place.
"""

from __future__ import annotations

from typing import List

from tests.forge.builder import Obj
from tests.forge.machine import Machine
from tests.forge.procs import Call, Thread
from tests.forge.vm import Page, VmObject

PAGE = 0xFFFFF807EBBD8F98
PANIC = (
    f"vm_page_assert_xbusied: page {PAGE:#x} not exclusive busy @ "
    "/usr/src/sys/cddl/contrib/opensolaris/uts/common/fs/zfs/dmu.c:1592"
)
#: 511 pages before it: where the array is page aligned
_ARRAY = PAGE - 511 * 104
_RAM_START = 0x7E8000000
_STACK = 0xFFFFFE00B3C33000
#: frame pointers of the report's backtrace; one frame lost its own in the mail
_FRAMES = (
    Call("vpanic", fp=0xFFFFFE00B3C36390),
    Call("dmu_read_pages+0x535", fp=0xFFFFFE00B3C36460),
    Call("zfs_freebsd_getpages+0x24c", fp=0xFFFFFE00B3C36510),
    Call("VOP_GETPAGES_APV+0xd9", fp=0xFFFFFE00B3C36540),
    Call("vop_stdgetpages_async+0x49", fp=0xFFFFFE00B3C36590),
    Call("VOP_GETPAGES_ASYNC_APV+0xd9", fp=0xFFFFFE00B3C365C0),
    Call("vnode_pager_getpages_async+0x81", fp=0xFFFFFE00B3C36640),
    Call("vn_sendfile+0xe70", fp=0xFFFFFE00B3C368E0),
    Call("sendfile+0x149", fp=0xFFFFFE00B3C36980),
)

#: pages of the request, and which of them were valid already
NPAGES = 12
FIRST, COUNT = 2, 8
VALID = frozenset((0, 1, 4, 5, 7, 10, 11))
#: indexes into the request that hold bogus_page
BOGUS = tuple(i - FIRST for i in range(FIRST + 1, FIRST + COUNT - 1) if i in VALID)


def sendfile_panic() -> Machine:
    """The machine of the second report."""
    m = Machine(
        1200058,
        "amd64",
        ("INVARIANTS", "WITNESS"),
        ram=64 << 20,
        ram_start=_RAM_START,
        vm_page_array=_ARRAY,
        bogus_page=PAGE,
        cpus=4,
        uptime=3127.0,
        time=1518876000,
    )
    tank = m.vfs.mount("zfs", "/tank", "tank")
    vnode = m.vfs.vnode(tank)
    file = vnode.object(4096)
    thread = _nginx(m)
    pages = _grabbed(m, file, thread)
    sfio = _sf_io(m, pages)
    _on_the_stack(m, thread, vnode, sfio)
    file.paging(1)
    m.panics(thread, PANIC, cpu=3)
    m.cast["sendfile"] = thread
    m.expected.update(page=PAGE, array=sfio.at("pa") + FIRST * 8, count=COUNT, bogus=BOGUS)
    return m


def _nginx(m: Machine) -> Thread:
    """The thread that panics: td_frame and pcb come out where its frame pointers say they were."""
    m.function("amd64_syscall", size=0x900, site=0x79B)
    m.function("fast_syscall_common", size=0x180, site=0x101)
    thread = m.procs.process("nginx", pid=1189).thread(
        kstack=_STACK, calls=("doadump", "kern_reboot", *_FRAMES), tid=100734
    )
    m.procs.process("nginx", pid=1190).thread(calls=("kern_kevent", "sys_kevent")).sleeps(
        m.take(64), "kqread", interruptible=True, seconds=12
    )
    return thread


def _grabbed(m: Machine, file: VmObject, thread: Thread) -> List[Page]:
    """vm_page_grab_pages(): all wired and busied; the valid ones have been unbusied since."""
    pages = []
    for index in range(NPAGES):
        valid = index in VALID
        page = file.page(256 + index, valid=0xFF if valid else 0, queue=None, wired=1)
        if not valid:
            page.busied(thread)
        pages.append(page)
    return pages


def _sf_io(m: Machine, pages: List[Page]) -> Obj:
    """struct sf_io: the array of pages, bogus_page in place of what was valid in the middle."""
    size = m.sizeof("sf_io") + NPAGES * m.pointer_size
    sfio = m.new("sf_io", size=size, nios=2, npages=NPAGES)
    for index, page in enumerate(pages):
        bogus = index - FIRST in BOGUS
        m.write_pointer(sfio.at("pa") + index * m.pointer_size, m.vm.bogus_page if bogus else page)
    return sfio


def _on_the_stack(m: Machine, thread: Thread, vnode: object, sfio: Obj) -> None:
    """The array's address and length where the compiler spills them: locals and VOP arguments."""
    run = sfio.at("pa") + FIRST * m.pointer_size
    word = m.pointer_size
    for function, below in (("dmu_read_pages", 0x48), ("zfs_freebsd_getpages", 0x40)):
        m.write_pointer(thread.local(function, below), run)
        m.write_int(thread.local(function, below - word), COUNT, 4)
    # struct vop_getpages_args, vop_getpages_async_args: a_desc, a_vp, a_m, a_count, ...
    for function in ("vop_stdgetpages_async", "vnode_pager_getpages_async"):
        arguments = thread.local(function, 0x40)
        for index, value in enumerate((m.text("vop_getpages_desc"), vnode, run, COUNT)):
            m.write_pointer(arguments + index * word, value)
    m.write_pointer(thread.local("vn_sendfile", 0xA0), sfio)
