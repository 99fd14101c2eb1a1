"""struct buf: the buffer cache and its I/O.

Mirrors sys/sys/buf.h and sys/kern/vfs_bio.c, 6.x to 15.x.  The pbufs are the
same struct elsewhere (``plugin.kernel.pbuf``); ``buf_at`` reads either.
"""

from __future__ import annotations

from collections import Counter
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault
from plugin.kernel.counter import mp_maxid
from plugin.kernel.locks import Lock, lock_at, old_lockmgr
from plugin.session import Kernel

#: the same in every version (sys/buf.h)
B_DONE = 0x200
#: MAXBCACHEBUF of sys/param.h, for a kernel without the variable (12.0 made it one)
_MAXBCACHEBUF = 65536
#: more bufs than any kernel makes: 1 TB of them
_MAX_BUFS = 1 << 28
#: pages missing among the headers before nbuf is taken for corrupt
_MAX_HOLES = 256


class Buf(NamedTuple):
    """One struct buf; members carry the kernel's names without their prefix.

    ``iocmd`` is a command's name ("BIO_READ").  ``blkno`` in blocks of DEV_BSIZE
    (of a page for swap), ``lblkno`` in the file's own; ``offset``, ``iooffset``,
    ``bcount`` in bytes.  ``cached`` is True for a buffer of the buffer cache,
    False for a pbuf.
    """

    address: int
    cached: bool
    iocmd: str
    flags: int
    ioflags: int
    error: int
    blkno: int
    lblkno: int
    offset: int
    iooffset: int
    bcount: int
    resid: int
    vp: int
    bufobj: int
    iodone: int
    caller1: int
    npages: int
    runningbufspace: int
    qindex: int

    @property
    def is_done(self) -> bool:
        return bool(self.flags & B_DONE)


_PATHS = (
    "b_iocmd",
    "b_flags",
    "b_ioflags",
    "b_error",
    "b_blkno",
    "b_lblkno",
    "b_offset",
    "b_iooffset",
    "b_bcount",
    "b_resid",
    "b_vp",
    "b_bufobj",
    "b_iodone",
    "b_caller1",
    "b_npages",
    "b_runningbufspace",
    "b_qindex",
)


def _make(kernel: Kernel, address: int, values: Tuple[int, ...], cached: bool) -> Buf:
    return Buf(address, cached, kernel.layouts.enum("bio_cmd", values[0]), *values[1:])


def buf_at(kernel: Kernel, address: int) -> Buf:
    """The buf at ``address``; MemoryFault where it cannot be read."""
    fields = kernel.layouts.fields("buf", *_PATHS)
    values = kernel.values(fields, address)
    return _make(kernel, address, values, is_cached(kernel, address))


def try_buf_at(kernel: Kernel, address: int) -> Optional[Buf]:
    """As buf_at; what cannot be read becomes a warning and None."""
    try:
        return buf_at(kernel, address)
    except MemoryFault as fault:
        kernel.warnings.add("struct buf", fault.address, f"buf {address:#x}: {fault.reason}")
        return None


class BufArray(NamedTuple):
    """Where the buffer cache's headers lie: ``nbuf`` of them, ``stride`` bytes apart."""

    address: int
    nbuf: int
    stride: int


@cached(MEMORY)
def buf_array(kernel: Kernel) -> Optional[BufArray]:
    """The array of buffer headers, None before it is made.

    From 13.0 on each header is followed by the page pointers of the largest
    buffer (nbufp() in vfs_bio.c), before they were part of it.
    """
    try:
        base = _buf_variable(kernel)
        count = kernel.global_value("nbuf", 0)
        if base and not 0 < count < _MAX_BUFS:
            kernel.warnings.add("nbuf", None, f"is {count}, and there are buffer headers")
        if not base or not 0 < count < _MAX_BUFS:
            return None
        stride = kernel.layouts.sizeof("buf")
        pages = kernel.layouts.resolve("buf", "b_pages")
        if pages.offset >= stride:
            largest = kernel.global_value("maxbcachebuf", _MAXBCACHEBUF)
            stride += largest // kernel.page_size * kernel.pointer_size
    except MemoryFault as fault:
        kernel.warnings.add("buf", fault.address, fault.reason)
        return None
    return BufArray(base, count, stride)


def _buf_variable(kernel: Kernel) -> int:
    """What vfs_bio.c's ``buf`` points to: static from 11.x on, and not the only ``buf``."""
    pointers = [s for s in kernel.target.symbols("buf") if s.size in (0, kernel.pointer_size)]
    values = [kernel.pointer(symbol.address) for symbol in pointers]
    values = [value for value in values if value and kernel.is_kernel_address(value)]
    if len(values) > 1:
        lock = kernel.layouts.offsetof("buf", "b_lock")
        locked = [value for value in values if lock_at(kernel, value + lock) is not None]
        values = locked or values
    return values[0] if values else 0


def is_cached(kernel: Kernel, address: int) -> bool:
    """True where ``address`` is that of a header of the buffer cache."""
    array = buf_array(kernel)
    if array is None:
        return False
    index, rest = divmod(address - array.address, array.stride)
    return rest == 0 and 0 <= index < array.nbuf


def bufs(kernel: Kernel) -> Iterator[Buf]:
    """Every buffer header of the buffer cache, used or not, in the order of the array."""
    for buf, _ in _scan(kernel):
        yield buf


def _scan(kernel: Kernel, *more: str) -> Iterator[Tuple[Buf, Tuple[int, ...]]]:
    """Every header of the cache, with the values of the members in ``more``."""
    array = buf_array(kernel)
    if array is None:
        return
    fields = kernel.layouts.fields("buf", *_PATHS, *more)
    known = len(_PATHS)
    unpack_from = fields.unpack_from
    batch = max(1, (1 << 18) // array.stride)
    first, holes = 0, 0
    while first < array.nbuf:
        count = min(batch, array.nbuf - first)
        at = array.address + first * array.stride
        after = first + count
        try:
            data = kernel.read(at, (count - 1) * array.stride + fields.span)
        except MemoryFault as fault:
            kernel.warnings.add("buffer headers", fault.address, fault.reason)
            holes += 1
            if holes > _MAX_HOLES:
                kernel.warnings.add("buffer headers", at, f"given up after {first} of {array.nbuf}")
                return
            # What lies before and behind the page that is missing is still to be had.
            count = min(max(0, fault.address - at) // array.stride, count - 1)
            beyond = (fault.address // kernel.page_size + 1) * kernel.page_size
            after = max(first + count + 1, -((array.address - beyond) // array.stride))
            data = kernel.read(at, count * array.stride)
        for i in range(count):
            values = unpack_from(data, i * array.stride)
            yield _make(kernel, at + i * array.stride, values[:known], True), values[known:]
        first = after
        if kernel.interrupted():
            kernel.warnings.add("buffer headers", at, f"interrupted after {first}")
            return


def buf_lock(kernel: Kernel, address: int) -> Optional[Lock]:
    """b_lock of the buf at ``address``: who holds it, or that the I/O does (disowned)."""
    at = address + kernel.layouts.offsetof("buf", "b_lock")
    if kernel.layouts.has("lock", "lk_lockholder"):
        return old_lockmgr(kernel, at)
    return lock_at(kernel, at)


@cached(MEMORY)
def locked_bufs(kernel: Kernel) -> List[Tuple[Buf, Lock]]:
    """The buffers of the cache that are locked, as DDB's ``show lockedbufs`` lists them."""
    array = buf_array(kernel)
    if array is None or not kernel.affords("buffer headers", array.nbuf * array.stride):
        return []
    return list(_locked_bufs(kernel))


def _locked_bufs(kernel: Kernel) -> Iterator[Tuple[Buf, Lock]]:
    word = "b_lock.lk_lock"
    if not kernel.layouts.has("buf", word):
        word = "b_lock.lk_flags"
    # Nearly all buffers are unlocked: LK_SHARE without sharers since 8.0.
    unlocked = kernel.layouts.constant("LK_SHARE", 1) if word.endswith("lk_lock") else None
    found: Counter[int] = Counter()
    delayed = kernel.layouts.constant("B_DELWRI", 0x80)
    with kernel.noting() as trouble:
        for buf, (value, queue) in _scan(kernel, word, "b_qindex"):
            found[queue] += 1
            found[-1] += bool(buf.flags & delayed)
            if value == unlocked:
                continue
            lock = buf_lock(kernel, buf.address)
            if lock is None:
                what = "has no lock: the header is no buffer's any more"
                kernel.warnings.add("buffer headers", buf.address, what)
            elif lock.held:
                yield buf, lock
    if found and not trouble.partial and not kernel.interrupted():
        _check_counts(kernel, found)


#: the number of a queue of buffers that the layouts do not tell
_UNKNOWN = -2


def _check_counts(kernel: Kernel, found: Counter[int]) -> None:
    """What was walked against what the kernel counts: the queues' lengths, the dirty buffers.

    ``found``: buffers by b_qindex, and at -1 those with B_DELWRI.  A queue's length and its
    buffers change together; so many may be half done as CPUs run.
    """
    layouts = kernel.layouts
    counted: Dict[int, Tuple[str, int]] = {}
    try:
        if layouts.has("bufdomain", "bd_dirtyq.bq_len") and kernel.has_symbol("bdomain"):
            base, size = kernel.address_of("bdomain"), layouts.sizeof("bufdomain")
            number = max(1, kernel.global_value("buf_domains", 1))
            domains = [kernel.view("bufdomain", base + n * size) for n in range(min(number, 64))]
            dirty = sum(domain.bd_numdirtybuffers for domain in domains)
            counted[-1] = "bd_numdirtybuffers", dirty
            length = sum(domain["bd_dirtyq.bq_len"] for domain in domains)
            counted[layouts.constant("QUEUE_DIRTY", _UNKNOWN)] = (
                "bq_len of the dirty queues",
                length,
            )
            empty = kernel.symbol("bqempty")
            if empty is not None:
                length = kernel.view("bufqueue", empty.address).bq_len
                counted[layouts.constant("QUEUE_EMPTY", _UNKNOWN)] = "bq_len of bqempty", length
        elif kernel.has_symbol("numdirtybuffers"):
            counted[-1] = "numdirtybuffers", kernel.global_value("numdirtybuffers", 0)
    except MemoryFault as fault:
        kernel.warnings.add("bdomain", fault.address, fault.reason)
        return
    counted.pop(_UNKNOWN, None)
    for what, (name, number) in counted.items():
        if abs(number - found[what]) > mp_maxid(kernel) + 1:
            kernel.warnings.add("buffer headers", None, f"{name} is {number}, {found[what]} found")


def b_pages(kernel: Kernel, buf: Buf) -> List[int]:
    """The vm_pages of a buf, by address."""
    at = kernel.layouts.resolve("buf", "b_pages").offset
    count = buf.npages if 0 <= buf.npages <= 4096 else 0
    try:
        data = kernel.read(buf.address + at, count * kernel.pointer_size)
    except MemoryFault as fault:
        kernel.warnings.add("b_pages", fault.address, fault.reason)
        return []
    return list(memoryview(data).cast("Q" if kernel.pointer_size == 8 else "I"))


def iodone_name(kernel: Kernel, buf: Buf) -> str:
    """The function b_iodone points to, "" for NULL: bdone() is what bwait() relies on."""
    return kernel.symbolize(buf.iodone) if buf.iodone else ""


def background_copy(kernel: Kernel, buf: Buf, others: Iterable[Buf]) -> Optional[Buf]:
    """Which of ``others`` a background write of ``buf`` writes; None where none is under way.

    Mirrors ffs_bufwrite() in sys/ufs/ffs/ffs_vfsops.c, all versions: the buffer gets
    BV_BKGRDINPROG (b_vflags), and a copy with BX_BKGRDMARKER (b_xflags) is written in its place.
    """
    layouts = kernel.layouts
    if not buf.vp or not layouts.has("buf", "b_vflags"):
        return None
    flags = layouts.resolve("buf", "b_vflags")
    marks = layouts.resolve("buf", "b_xflags")
    try:
        under_way = kernel.unsigned(buf.address + flags.offset, flags.size)
        if not under_way & layouts.constant("BV_BKGRDINPROG", 2):
            return None
        for each in others:
            if (each.vp, each.lblkno) == (buf.vp, buf.lblkno) and each.address != buf.address:
                mark = kernel.unsigned(each.address + marks.offset, marks.size)
                if mark & layouts.constant("BX_BKGRDMARKER", 0x20):
                    return each
    except MemoryFault as fault:
        kernel.warnings.add("background write", fault.address, fault.reason)
    return None
