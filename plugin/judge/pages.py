"""The page array handed to a pager, against its contract.

Mirrors VOP_GETPAGES(9) and vm_pager_assert_in() (sys/vm/vm_pager.c), and for the
array's place struct vop_getpages_args (made from sys/kern/vnode_if.src) and
struct sf_io (sys/kern/kern_sendfile.c), 6.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread
from plugin.kernel.stack import registers
from plugin.kernel.vm_object import label, try_object_at
from plugin.kernel.vm_page import (
    EXCLUSIVE,
    FREED,
    SHARED,
    UNBUSIED,
    Page,
    encoding,
    try_page_at,
    valid_all,
)
from plugin.kernel.vm_phys import is_vm_page
from plugin.session import Kernel

#: no request is longer (MAXPHYS, 1 MB, of the smallest pages; sendfile's are shorter)
MAX_COUNT = 4096
_MAX_STACK = 64 * 1024
#: pages of an array that is recognised by its contents alone
_PROBE = 256


class Entry(NamedTuple):
    """Element ``place`` of the array; ``problems`` are the points of the contract it breaks."""

    place: int
    address: int
    page: Optional[Page]
    problems: Tuple[str, ...]


class PageArray(NamedTuple):
    """The array at ``address``: ``object`` and ``pindex`` of what it asks for, 0 if unknown."""

    address: int
    object: int
    pindex: int
    entries: Tuple[Entry, ...]

    @property
    def bogus(self) -> List[int]:
        """Indexes of the entries that are bogus_page."""
        return [entry.place for entry in self.entries if entry.page and entry.page.is_bogus]

    @property
    def broken(self) -> List[Entry]:
        return [entry for entry in self.entries if entry.problems]


def check_array(kernel: Kernel, address: int, count: int) -> PageArray:
    """Each entry of ``count`` struct vm_page pointers at ``address`` against the contract.

    VOP_GETPAGES is given pages that are all exclusively busied, of one object, with
    consecutive indexes, not valid throughout and not dirty.  An array that cannot be
    read gives the entries that can, and a finding.
    """
    pointers = _pointers(kernel, address, min(count, MAX_COUNT))
    if len(pointers) < count:
        kernel.warnings.add(
            "page array",
            address + len(pointers) * kernel.pointer_size,
            f"{len(pointers)} of {count} entries could be read",
        )
    pages = [
        try_page_at(kernel, pointer) if is_vm_page(kernel, pointer) else None
        for pointer in pointers
    ]
    owner, base = _common(pages)
    entries = tuple(
        Entry(index, pointer, page, _problems(kernel, index, pointer, page, owner, base))
        for index, (pointer, page) in enumerate(zip(pointers, pages))
    )
    return PageArray(address, owner, base or 0, entries)


def _pointers(kernel: Kernel, address: int, count: int) -> List[int]:
    size = kernel.pointer_size
    while count > 0:
        try:
            data = kernel.read(address, count * size)
        except MemoryFault as fault:
            count = min(count - 1, max(0, fault.address - address) // size)
            continue
        return list(memoryview(data).cast("Q" if size == 8 else "I"))
    return []


def _common(pages: List[Optional[Page]]) -> Tuple[int, Optional[int]]:
    """The object that most pages are of, and the index that entry 0 has for most of those."""
    real = [(i, p) for i, p in enumerate(pages) if p is not None and not p.is_bogus and p.object]
    if not real:
        return 0, None
    owners: Dict[int, int] = {}
    for _, page in real:
        owners[page.object] = owners.get(page.object, 0) + 1
    owner = max(owners, key=lambda address: owners[address])
    bases: Dict[int, int] = {}
    for index, page in real:
        if page.object == owner:
            bases[page.pindex - index] = bases.get(page.pindex - index, 0) + 1
    return owner, max(bases, key=lambda base: bases[base])


def _problems(
    kernel: Kernel,
    index: int,
    pointer: int,
    page: Optional[Page],
    owner: int,
    base: Optional[int],
) -> Tuple[str, ...]:
    if page is None:
        return ("NULL" if not pointer else "no vm_page",)
    found = []
    if page.is_bogus:
        found.append("bogus_page")
    if page.busy.state != EXCLUSIVE:
        found.append("not exclusively busied")
    if page.is_bogus:
        return tuple(found)
    if page.object != owner:
        found.append(f"of object {page.object:#x}")
    elif base is not None and page.pindex != base + index:
        found.append(f"index {page.pindex:#x}, should be {base + index:#x}")
    if page.valid == valid_all(kernel):
        found.append("valid already")
    if page.dirty:
        found.append("dirty")
    return tuple(found)


def busy_words(kernel: Kernel, page: Page) -> str:
    """ "busy_lock 0x01 (unbusied)": the state with the word that says so."""
    busy = page.busy
    state = f"shared by {busy.sharers}" if busy.state == SHARED else busy.state
    return f"{encoding(kernel).member} {busy.raw:#04x} ({state})"


# Finding the array of a thread


class FoundArray(NamedTuple):
    """An array on behalf of a thread: ``npages`` pages, and how it was found."""

    address: int
    npages: int
    how: str
    #: who passed it: "sendfile", or "" if that cannot be told
    caller: str
    #: struct vnode whose pages are asked for, 0 if unknown
    vnode: int


def stack_words(kernel: Kernel, thread: Thread) -> Tuple[int, List[int]]:
    """(address, words) of a thread's kernel stack, from its stack pointer to the top."""
    top = thread.kstack + min(thread.kstack_size, _MAX_STACK)
    start = registers(kernel, thread).get("sp", 0)
    if not thread.kstack <= start < top:
        start = thread.kstack
    size = kernel.pointer_size
    start &= ~(size - 1)
    if top <= start:
        return start, []
    try:
        data = kernel.read(start, top - start)
    except MemoryFault as fault:
        kernel.warnings.add(f"stack of thread {thread.tid}", fault.address, fault.reason)
        return start, []
    return start, list(memoryview(data).cast("Q" if size == 8 else "I"))


def find_array(kernel: Kernel, thread: Thread, page: int) -> Optional[FoundArray]:
    """The array with ``page`` in it that a thread passed, or was passed, on its stack.

    First by the arguments of VOP_GETPAGES or VOP_PUTPAGES, which name it with its
    length; else by any pointer on the stack to pages among which it is, the longest
    run of pages of one object first.
    """
    start, words = stack_words(kernel, thread)
    named = list(_vop_arguments(kernel, words))
    for found in named:
        if page in _pointers(kernel, found.address, found.npages):
            return found
    best: Optional[FoundArray] = None
    for address in _candidates(kernel, start, words, page):
        count = _run_length(kernel, address, page)
        if count and (best is None or count > best.npages):
            best = FoundArray(address, count, "a pointer on the thread's stack", "", 0)
    if best is None:
        return None
    return _as_sendfile(kernel, best)


def _vop_arguments(kernel: Kernel, words: List[int]) -> Iterator[FoundArray]:
    """struct vop_getpages_args and its kin: a_desc, a_vp, a_m, a_count, ... on the stack."""
    for name in ("vop_getpages", "vop_getpages_async", "vop_putpages"):
        symbol = kernel.symbol(name + "_desc")
        if symbol is None:
            continue
        for at, word in enumerate(words[:-3]):
            if word != symbol.address:
                continue
            vnode, array, count = words[at + 1], words[at + 2], words[at + 3] & 0xFFFFFFFF
            # putpages counts in bytes.
            if name == "vop_putpages":
                count = -(-count // kernel.page_size)
            if 0 < count <= MAX_COUNT and kernel.is_kernel_address(array):
                caller = ""
                if name == "vop_getpages_async" and at + 6 < len(words):
                    caller = kernel.symbolize(words[at + 6])
                yield FoundArray(
                    array,
                    count,
                    f"the arguments of {name.upper()} on the thread's stack",
                    "sendfile" if caller.startswith("sendfile") else "",
                    vnode,
                )


def _candidates(kernel: Kernel, start: int, words: List[int], page: int) -> Iterator[int]:
    """Addresses that an array with the page may begin at: what the stack points to."""
    size = kernel.pointer_size
    end = start + len(words) * size
    seen = set()
    for word in words:
        if word % size or word in seen or not kernel.is_kernel_address(word):
            continue
        seen.add(word)
        if start <= word < end:
            inside = words[(word - start) // size :][:_PROBE]
            if page in inside:
                yield word
        elif page in _pointers(kernel, word, _PROBE):
            yield word
    if page in words:
        # The array may lie on the stack without anything pointing to its beginning.
        for at, word in enumerate(words):
            if word == page:
                first = at
                while first and is_vm_page(kernel, words[first - 1]):
                    first -= 1
                yield start + first * size


def _run_length(kernel: Kernel, address: int, page: int) -> int:
    """Pages of one object with consecutive indexes from ``address`` on, bogus_page among them.

    bogus_page neither begins nor ends an array, nor does a page that is not busied
    end it: sendfile_swapin() trims there, while the request that the array is part of
    goes on.  0 where ``page`` is not in it, or is alone: one pointer is no array.
    """
    owner: Optional[int] = None
    base = npages = 0
    pointers = _pointers(kernel, address, _PROBE)
    for place, pointer in enumerate(pointers):
        found = try_page_at(kernel, pointer) if is_vm_page(kernel, pointer) else None
        if found is None:
            break
        if found.is_bogus:
            if owner is None:
                break
            continue
        if owner is None:
            owner, base = found.object, found.pindex - place
        elif (found.object, found.pindex - place) != (owner, base):
            break
        if found.busy.state == EXCLUSIVE or pointer == page or not npages:
            npages = place + 1
    return npages if npages > 1 and page in pointers[:npages] else 0


def _as_sendfile(kernel: Kernel, found: FoundArray) -> FoundArray:
    """The same, recognised as lying in a struct sf_io where npages says so."""
    layouts = kernel.layouts
    if "sf_io" not in layouts:
        return found
    try:
        pages = layouts.offsetof("sf_io", "pa")
        npages = layouts.resolve("sf_io", "npages")
    except LayoutError:
        return found
    size = kernel.pointer_size
    before = 0
    # Entries of the request that precede those that are passed on.
    while before < _PROBE:
        header = found.address - before * size - pages
        try:
            count = kernel.unsigned(header + npages.offset, npages.size)
            inside = _pointers(kernel, header + pages, min(count, MAX_COUNT))
        except MemoryFault:
            return found
        whole = before + found.npages <= count <= _PROBE and len(inside) == count
        if whole and all(not p or is_vm_page(kernel, p) for p in inside):
            how = f"{found.how}, in the struct sf_io at {header:#x}"
            return found._replace(caller="sendfile", how=how)
        try:
            if not is_vm_page(kernel, kernel.pointer(found.address - (before + 1) * size)):
                return found
        except MemoryFault:
            return found
        before += 1
    return found


def indexes(indexes: List[int]) -> str:
    """ "index 3", "indexes 1, 2 and 4", "indexes 1 to 5 and 9"."""
    runs: List[List[int]] = []
    for index in indexes:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    texts: List[str] = []
    for first, last in runs:
        texts += [f"{first} to {last}"] if last > first + 1 else map(str, range(first, last + 1))
    joined = " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
    return ("indexes " if len(indexes) > 1 else "index ") + joined


def array_verdict(kernel: Kernel, array: PageArray) -> str:
    """One sentence on a page array."""
    count = len(array.entries)
    if not count:
        return f"There is no page array at {array.address:#x}."
    owner = try_object_at(kernel, array.object)
    of = f" of {label(kernel, owner)} from index {array.pindex:#x}" if owner else ""
    sentence = f"{count} pages{of}: "
    if not array.broken:
        return sentence + "all keep the contract of VOP_GETPAGES."
    if array.bogus:
        sentence += f"bogus_page stands at {indexes(array.bogus)}"
        if len(array.broken) == len(array.bogus):
            return sentence + "; the others keep the contract of VOP_GETPAGES."
        sentence += "; "
    others = [entry.place for entry in array.broken if not (entry.page and entry.page.is_bogus)]
    states = {entry.page.busy.state for entry in array.entries if entry.page is not None}
    sentence += f"{indexes(others)} break{'s' if len(others) == 1 else ''} the contract"
    if states <= {UNBUSIED, FREED, SHARED}:
        sentence += ", none is exclusively busied"
    return sentence + "."
