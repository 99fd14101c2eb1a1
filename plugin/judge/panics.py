"""A panicked kernel: who panicked, over what, and what memory says about it.

The messages are those of sys/kern: deadlkres() in kern_clock.c, the locks of kern_mutex.c,
kern_sx.c, kern_rwlock.c and kern_lock.c, propagate_priority() in subr_turnstile.c, trap_fatal()
of each architecture, and the assertions of sys/vm/vm_page.c, 6.x to 15.x.
"""

from __future__ import annotations

import re
from typing import Iterator, NamedTuple, Optional, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import MemoryFault, WchanError
from plugin.judge.pages import (
    FoundArray,
    PageArray,
    busy_words,
    check_array,
    find_array,
    indexes,
    stack_words,
)
from plugin.kernel import witness
from plugin.kernel.lock_object import quoted
from plugin.kernel.locks import Lock, lock_at
from plugin.kernel.msgbuf import message_buffer
from plugin.kernel.proc import Thread, thread_at, thread_by_tid, threads
from plugin.kernel.queue import tailq_foreach
from plugin.kernel.stack import backtrace
from plugin.kernel.vm_object import label, try_object_at
from plugin.kernel.vm_page import (
    Page,
    try_page_at,
)
from plugin.kernel.vm_phys import is_vm_page
from plugin.session import Kernel
from plugin.words import count, seconds


class PagePanic(NamedTuple):
    """A panic whose message names a page: the page, the thread, and its page array."""

    message: str
    #: the function that asserted, as the message names it
    function: str
    page: Page
    thread: Optional[Thread]
    frames: Tuple[str, ...]
    found: Optional[FoundArray]
    array: Optional[PageArray]
    #: one sentence for the user
    verdict: str


_HEX = re.compile(r"(?:0x)?([0-9a-fA-F]{6,16})\b")

#: not the callers of the assertion, but what stands between it and the panic
PANIC_FRAMES = frozenset(
    (
        *("panic", "vpanic", "kassert_panic", "kdb_enter", "doadump", "dumpsys", "dump_savectx"),
        *("kdb_backtrace", "db_trace_self", "db_trace_self_wrapper"),
        # How each architecture comes from a fault in the kernel to its panic.
        *("trap_fatal", "trap_pfault", "trap", "calltrap", "alltraps"),
        *("data_abort", "do_el1h_sync", "handle_el1h_sync"),
        *("page_fault_handler", "do_trap_supervisor", "cpu_exception_handler_supervisor"),
    )
)

_EXPECTED = (
    ("xbusied", "exclusively busied"),
    ("sbusied", "busied shared"),
    ("unbusied", "not busied"),
    ("busied", "busied"),
)


@cached(MEMORY)
def page_panic(kernel: Kernel) -> Optional[PagePanic]:
    """What a panic about a page is about; None for a kernel that panicked otherwise or not."""
    message = kernel.panicstr
    if not message:
        return None
    page = None
    for match in _HEX.finditer(message):
        address = int(match.group(1), 16)
        if is_vm_page(kernel, address):
            page = try_page_at(kernel, address)
            break
    if page is None:
        return None
    function = message.split(":", 1)[0].strip() if ":" in message else ""
    thread = panicking_thread(kernel)
    frames = tuple(backtrace(kernel, thread)) if thread else ()
    found = find_array(kernel, thread, page.address) if thread else None
    array = check_array(kernel, found.address, found.npages) if found else None
    verdict = _panic_verdict(kernel, function, page, frames, found, array)
    return PagePanic(message, function, page, thread, frames, found, array, verdict)


def panicking_thread(kernel: Kernel) -> Optional[Thread]:
    """The thread that panicked: the one that dumped, else the one whose stack shows it."""
    try:
        tid = kernel.global_value("dumptid", 0)
        known = thread_by_tid(kernel, tid) if tid else None
        if known is not None:
            return known
        debugged = kernel.global_value("kdb_thread", 0)
    except MemoryFault:
        debugged = 0
    running = [thread for thread in threads(kernel) if thread.state == "running"]
    for thread in running:
        if debugged and thread.address == debugged:
            return thread
    return next(
        (thread for thread in running if PANIC_FRAMES & set(backtrace(kernel, thread))),
        None,
    )


def _asserter(frames: Tuple[str, ...], function: str) -> str:
    """The function in which the assertion stands, as the stack shows it."""
    for at, frame in enumerate(frames):
        if frame in ("panic", "vpanic", "kassert_panic"):
            rest = [f for f in frames[at:] if f not in PANIC_FRAMES]
            return rest[0] if rest else function
    return ""


def _panic_verdict(
    kernel: Kernel,
    function: str,
    page: Page,
    frames: Tuple[str, ...],
    found: Optional[FoundArray],
    array: Optional[PageArray],
) -> str:
    where = _asserter(frames, function)
    expected = next((text for name, text in _EXPECTED if name in function), "")
    if page.is_bogus:
        of = f" that {where} asserts to be {expected}" if where and expected else " of the panic"
        sentence = f"The page{of}, {page.address:#x}, is bogus_page itself, "
        sentence += f"{busy_words(kernel, page)}: "
        contract = ", whose contract is that every page is exclusively busied."
        who = "sendfile_swapin() put it" if _is_sendfile(frames, found) else "it stands"
        if array is not None and array.bogus:
            return (
                f"{sentence}{who} at {indexes(array.bogus)} of the {len(array.entries)} pages at "
                f"{array.address:#x} handed to VOP_GETPAGES{contract}"
            )
        if _is_sendfile(frames, found):
            return f"{sentence}{who} in the page array handed to VOP_GETPAGES{contract}"
        return sentence + "it stands in for valid pages in a page array, and nobody busies it."
    owner = try_object_at(kernel, page.object)
    of = f", index {page.pindex:#x} of {label(kernel, owner)}" if owner else ""
    sentence = f"Page {page.address:#x}{of} is {busy_words(kernel, page)}"
    if page.busy.owner is not None:
        sentence += f" by thread {page.busy.owner}"
    if expected:
        sentence += f", {where or function} asserts that it is {expected}"
    if array is not None:
        at = [entry.place for entry in array.entries if entry.address == page.address]
        sentence += (
            f"; it stands at {indexes(at)} of the {len(array.entries)} pages at "
            f"{array.address:#x}, {_rest(array)}"
        )
    return sentence + "." + _mapped(kernel, function, page) + _on_stack_of(kernel, page)


def _mapped(kernel: Kernel, function: str, page: Page) -> str:
    """Of a mapped page that is freed: which mappings it has (pmap's pv entries)."""
    if "mapped" not in (kernel.panicstr or ""):
        return ""
    path = "md.pv_list"
    if not (kernel.layouts.has("vm_page", path) and kernel.layouts.has("pv_entry", "pv_next")):
        return ""
    head = page.address + kernel.layouts.offsetof("vm_page", path)
    places = [
        va & ~(kernel.page_size - 1)
        for _, (va,) in tailq_foreach(
            kernel, head, "pv_entry", "pv_next", ["pv_va"], what="pv_list", bound=65536
        )
    ]
    write = "PGA_WRITEABLE is set" if "PGA_WRITEABLE" in page.flags else "PGA_WRITEABLE is not set"
    if not places:
        return f" {write}, and it has no pv entry: the mapping is of another kind, or has gone."
    shown = ", ".join(f"{va:#x}" for va in places[:4]) + (" ..." if len(places) > 4 else "")
    return f" {write}, and {count(len(places), 'pv entry', 'pv entries')} for it: {shown}."


def _on_stack_of(kernel: Kernel, page: Page) -> str:
    """Whose kernel stack the page is, where a thread's td_kstack_obj is its object alone."""
    layouts = kernel.layouts
    if not page.object or not layouts.has("thread", "td_kstack_obj"):
        return ""
    offset = layouts.offsetof("thread", "td_kstack_obj")
    owners = []
    for thread in threads(kernel):
        try:
            if kernel.pointer(thread.address + offset) == page.object:
                owners.append(thread)
        except MemoryFault:
            continue
    if len(owners) != 1:
        return ""
    return f" It is part of the kernel stack of thread {owners[0].tid} {owners[0].label}."


def _rest(array: PageArray) -> str:
    broken = len(array.broken)
    if not broken:
        return "which keep the contract of VOP_GETPAGES"
    return f"of which {broken} break{'s' if broken == 1 else ''} the contract of VOP_GETPAGES"


def _is_sendfile(frames: Tuple[str, ...], found: Optional[FoundArray]) -> bool:
    if found is not None and found.caller == "sendfile":
        return True
    return any("sendfile" in frame for frame in frames)


# What other panics say

_DEADLKRES = re.compile(r"possible deadlock detected for (0x)?([0-9a-f]+)")
_SPIN = re.compile(
    r"spin lock (?:0x)?([0-9a-f]+) (?:\((.*?)\) )?held by (?:0x)?([0-9a-f]+) (?:\(tid|for >)"
)
#: of the message buffer, what may have been printed for a panic
_PRINTED = 16384
_OWNS = re.compile(r"[Ss]leeping thread \((?:tid )?(\d+)")
#: "_mtx_lock_sleep: recursed on non-recursive mutex NAME @ FILE:LINE", and its kin
_RECURSED = re.compile(
    r"recurs(?:ed|ing)(?: on)?(?: but)? non[- ]recursive (?:mutex|sx|rw|lockmgr) (?P<name>.*?)"
    r"(?: @ (?P<at>\S+?))?\s*$"
)
_DESTROYED = re.compile(r"of destroyed ((?:sleep)?mutex|spin mutex|sx|rwlock|rmlock|lock)")
_FAULT = re.compile(r"(?:fault virtual address\s*= 0x|\bfar: +(?:0x)?)([0-9a-f]+)")
_PC = re.compile(r"instruction pointer\s*= 0x[0-9a-f]+:(0x[0-9a-f]+)")


class Panic(NamedTuple):
    """``kind``: "page", "deadlkres", "spin lock", "sleeping owner", "own lock", "destroyed
    lock", "page fault" or "other".

    ``thread`` is the one that panicked, ``about`` the one the message names; ``held`` are the
    locks of ``thread`` in words, where a graph tells of them.
    """

    message: str
    kind: str
    verdict: str
    thread: Optional[Thread]
    about: Optional[Thread]
    frames: Tuple[str, ...]
    held: Tuple[str, ...] = ()


def panic(kernel: Kernel) -> Optional[Panic]:
    """What memory says about the panic; None for a kernel that has not panicked."""
    message = kernel.panicstr
    if not message:
        return None
    page = page_panic(kernel)
    thread = page.thread if page is not None else panicking_thread(kernel)
    frames = tuple(backtrace(kernel, thread)) if thread is not None else ()
    if page is not None:
        return Panic(message, "page", page.verdict, thread, None, frames)
    for kind, explain in (
        ("deadlkres", _deadlkres),
        ("spin lock", _spin_lock),
        ("sleeping owner", _sleeping_owner),
        ("own lock", _recursed),
        ("destroyed lock", _destroyed),
        ("page fault", _page_fault),
    ):
        found = explain(kernel, message)
        if found is not None:
            about, verdict = found
            return Panic(message, kind, verdict, thread, about, frames)
    return Panic(message, "other", who_panicked(thread, frames), thread, None, frames)


def _deadlkres(kernel: Kernel, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    match = _DEADLKRES.search(message)
    if match is None:
        return None
    thread = thread_at(kernel, int(match[2], 16))
    if thread is None:
        return None, f"DEADLKRES panicked over a thread at 0x{match[2]} that is none now."
    waited = f" for {seconds(thread.age)}" if thread.age is not None else ""
    return thread, (
        f"DEADLKRES panicked because thread {thread.tid} {thread.label} had waited{waited} in "
        f'"{thread.wmesg}".'
    )


def _printed(
    kernel: Kernel, message: str, start: str, wanted: re.Pattern[str]
) -> Optional[re.Match[str]]:
    """The match in a panic's message, or in what was printed just before it."""
    found = wanted.search(message)
    if found is not None or not message.lower().startswith(start):
        return found
    try:
        text = message_buffer(kernel)[-_PRINTED:]
    except WchanError:
        return None
    last = None
    for last in wanted.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return last


def _spin_lock(kernel: Kernel, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    match = _printed(kernel, message, "spin lock", _SPIN)
    if match is None:
        return None
    thread = thread_at(kernel, int(match[3], 16))
    lock = lock_at(kernel, int(match[1], 16))
    name = lock.name if lock is not None else match[2] or match[1]
    if thread is None:
        return None, f'Spin lock "{name}" was held too long by a thread that is gone.'
    stack = " <- ".join(backtrace(kernel, thread)[:6])
    on = f" on CPU {thread.cpu}" if thread.cpu is not None else ""
    return thread, (
        f'Spin lock "{name}" was held too long by {thread.tid} {thread.label}, {thread.state}{on}'
        + (f": {stack}." if stack else ".")
    )


def _sleeping_owner(kernel: Kernel, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    match = _printed(kernel, message, "sleeping thread", _OWNS)
    thread = thread_by_tid(kernel, int(match[1])) if match is not None else None
    if thread is None:
        return None
    return thread, (
        f'Thread {thread.tid} {thread.label} sleeps in "{thread.wmesg}" and holds a lock that '
        "may not be held in sleep."
    )


def _recursed(kernel: Kernel, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    """The panicking thread itself owns the lock it asks for: the kernel says so in these words."""
    match = _RECURSED.search(message)
    thread = panicking_thread(kernel)
    if match is None or thread is None:
        return None
    name = match["name"] or ""
    mine = [lock for lock in _locks_on_stack(kernel, thread) if thread.address in lock.owners]
    lock = next(
        (lock for lock in mine if lock.name == name or f"{lock.address:x}" in message), None
    )
    what = f"{lock.lc_name} {quoted(lock.name)} at {lock.address:#x}" if lock else f'lock "{name}"'
    proof = ", whose word names it as the owner" if lock else ""
    place = f" (asked for at {match['at']})" if match["at"] else ""
    return thread, (
        f"Thread {thread.tid} {thread.label} asked for {what}{place}, which it holds itself"
        f"{proof}; the lock is not one that may be taken twice."
    )


def _destroyed(kernel: Kernel, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    """A lock that was destroyed is asked for: which one, and who holds it by WITNESS."""
    match = _DESTROYED.search(message)
    thread = panicking_thread(kernel)
    if match is None:
        return None
    who = f"Thread {thread.tid} {thread.label}" if thread else "A thread"
    found = [
        lock
        for lock in (_locks_on_stack(kernel, thread) if thread else ())
        if lock.state == "destroyed"
    ]
    text = f"{who} asked for a {match[1]} that has been destroyed"
    for lock in found[:1]:
        text += f": {quoted(lock.name)} at {lock.address:#x}"
        last = [held.tid for held, _ in witness.holders(kernel).get(lock.address, ())]
        if last:
            text += f"; WITNESS still has it as held by {', '.join(map(str, last))}"
    return thread, text + "."


def _locks_on_stack(kernel: Kernel, thread: Thread) -> Iterator[Lock]:
    """Locks that words of a thread's stack point to: what it passed to the lock's functions."""
    _, words = stack_words(kernel, thread)
    for word in dict.fromkeys(words):
        if kernel.is_kernel_address(word):
            lock = lock_at(kernel, word)
            if lock is not None and lock.name != "":
                yield lock


def _page_fault(kernel: Kernel, message: str) -> Optional[Tuple[Optional[Thread], str]]:
    """What was touched and by whom: trap_fatal() prints both, the panic's message neither."""
    if "page fault" not in message and "vm_fault" not in message:
        return None
    thread = panicking_thread(kernel)
    address = _last(kernel, _FAULT)
    pc = _last(kernel, _PC)
    if address is None:
        found = _HEX.search(message)
        address = int(found[1], 16) if found else None
    words = []
    if address is not None:
        near = "NULL" if not address else f"a member at {address:#x} of a NULL pointer"
        name = kernel.symbolize(address)
        where = (
            near if address < kernel.page_size else f"{address:#x}" + (f" <{name}>" * bool(name))
        )
        words.append(f"touched {where}")
    if pc is not None and kernel.symbolize(pc):
        words.append(f"in {kernel.symbolize(pc)}")
    if not words:
        return None
    who = f"Thread {thread.tid} {thread.label}" if thread else "A thread"
    return thread, f"{who} {' '.join(words)}."


def _last(kernel: Kernel, wanted: re.Pattern[str]) -> Optional[int]:
    """The address in the last line of the message buffer that matches, None without one."""
    try:
        found = wanted.findall(message_buffer(kernel)[-_PRINTED:])
    except WchanError:
        return None
    return int(found[-1], 16) if found else None


def who_panicked(thread: Optional[Thread], frames: Tuple[str, ...]) -> str:
    own = [frame for frame in frames if frame not in PANIC_FRAMES]
    where = f", in {own[0]}" + (f" called by {own[1]}" if len(own) > 1 else "") if own else ""
    if thread is None:
        return f"Which thread panicked is not recorded{where and '; it was' + where[1:]}."
    return f"Thread {thread.tid} {thread.label} (pid {thread.pid}) panicked{where}."
