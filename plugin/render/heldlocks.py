"""klocks --all, --vnodes and --bufs: held locks as DDB's show commands list them."""

from __future__ import annotations

from typing import Dict, List, Tuple

from plugin.judge.held import bufs_with_locks, has_witness, held_locks, vnodes_with_locks
from plugin.judge.locks import Contended
from plugin.kernel import locks, witness
from plugin.kernel.lock_object import UNREAD
from plugin.kernel.proc import Thread, thread_at
from plugin.render.klocks import called, lock_data
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count

#: waiters named in a line
_SHOWN = 6


def all_locks(kernel: Kernel) -> Report:
    """`show alllocks`: by thread the locks it holds; then those whose holder is not known."""
    found = held_locks(kernel)
    report = Report({"locks": [lock_data(kernel, entry) for entry in found]})
    if not has_witness(kernel):
        report.text(
            "This kernel keeps no list of the locks that a thread holds (it has no WITNESS): "
            "shown are held locks that a thread waits for, and those of vnodes and bufs."
        )
    places = {
        (thread.tid, held.lock): held
        for entries in witness.holders(kernel).values()
        for thread, held in entries
    }
    for thread, held in _by_thread(found):
        report.heading(
            f"Process {thread.pid} ({thread.comm}) thread {thread.address:#x} ({thread.tid})"
        )
        for entry, shared, certainty in held:
            place = places.get((thread.tid, entry.lock.address))
            where = f" locked @ {place.file}:{place.line}" if place is not None else ""
            sure = "" if certainty == "proven" else f" [{certainty}]"
            report.text(
                f"{'shared' if shared else 'exclusive'} {_named(kernel, entry.lock)}"
                f"{where}{sure}{_waiting(entry)}"
            )
    rest = [entry for entry in found if not entry.holders]
    if rest:
        report.heading(f"{count(len(rest), 'held lock')} of no known holder:")
        for entry in rest:
            report.text(
                f"{_named(kernel, entry.lock)}: {locks.describe(entry.lock)}{_waiting(entry)}"
            )
    if not found:
        report.text("No held lock is known.")
    return report


def _by_thread(
    found: List[Contended],
) -> List[Tuple[Thread, List[Tuple[Contended, bool, str]]]]:
    grouped: Dict[int, Tuple[Thread, List[Tuple[Contended, bool, str]]]] = {}
    for entry in found:
        for holder in entry.holders:
            _, held = grouped.setdefault(holder.thread.tid, (holder.thread, []))
            held.append((entry, holder.shared, str(holder.certainty)))
    return sorted(grouped.values(), key=lambda item: (-len(item[1]), item[0].tid))


def _named(kernel: Kernel, lock: locks.Lock) -> str:
    return f"{called(kernel, lock)} r = {lock.recursion or 0} ({lock.address:#x})"


def _waiting(entry: Contended) -> str:
    if not entry.waiters:
        return ""
    names = ", ".join(f"{thread.tid} {thread.name}" for thread, _ in entry.waiters[:_SHOWN])
    more = len(entry.waiters) - _SHOWN
    return f"; {count(len(entry.waiters), 'waiter')}: {names}" + (
        f" and {more} more" if more > 0 else ""
    )


def _held(kernel: Kernel, entry: Contended) -> str:
    """ "EXCL by thread 0x... (pid 30, mkdir, tid 100114)", as lockmgr_printinfo() has it."""
    lock = entry.lock
    if lock.state == "disowned":
        return "EXCL by the I/O (LK_KERNPROC)"
    if lock.state != "exclusive":
        who = ", ".join(f"{h.thread.tid} {h.thread.name}" for h in entry.holders)
        return f"SHARED (count {lock.sharers})" + (f", perhaps by {who}" if who else "")
    owners = [holder.thread for holder in entry.holders] or [
        thread for thread in (thread_at(kernel, at) for at in lock.owners) if thread is not None
    ]
    if not owners:
        return "EXCL by a thread that is not known"
    thread = owners[0]
    return f"EXCL by thread {thread.address:#x} (pid {thread.pid}, {thread.comm}, tid {thread.tid})"


def _type_of(kernel: Kernel, entry: Contended) -> str:
    name = entry.lock.name or UNREAD
    return f"lock type {name}: {_held(kernel, entry)}{_waiting(entry)}"


def locked_vnodes(kernel: Kernel) -> Report:
    """`show lockedvnods`: vnode, type, mount and path, and its lock."""
    found = vnodes_with_locks(kernel)
    report = Report({"locks": [lock_data(kernel, entry) for _, entry in found]})
    report.text(f"Locked vnodes: {len(found)}")
    for vnode, entry in found:
        report.heading(f"vnode {vnode.address:#x}: type {vnode.type}  {vnode.label}")
        report.text(
            _type_of(kernel, entry),
            indent=4,
        )
    return report


def locked_bufs(kernel: Kernel) -> Report:
    """`show lockedbufs`: buf, flags, block, vnode, and its lock."""
    found = bufs_with_locks(kernel)
    report = Report({"locks": [lock_data(kernel, entry) for _, entry in found]})
    report.text(f"Locked bufs: {len(found)}")
    for buf, entry in found:
        flags = ",".join(kernel.layouts.flags("b_flags", buf.flags))
        report.heading(f"buf at {buf.address:#x}  b_flags {buf.flags:#x}<{flags}>")
        report.text(
            f"{buf.iocmd}, b_bcount {buf.bcount}, b_blkno {buf.blkno}, b_lblkno {buf.lblkno}, "
            f"b_vp {address(buf.vp)}",
            indent=4,
        )
        report.text(
            _type_of(kernel, entry),
            indent=4,
        )
    return report
