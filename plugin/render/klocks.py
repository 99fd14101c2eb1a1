"""klocks's report: locks with their owners and waiters."""

from __future__ import annotations

from typing import Any, Dict, List

from plugin.judge.locks import Contended, Holder, contended
from plugin.kernel import locks
from plugin.kernel.lock_object import UNREAD, quoted
from plugin.kernel.vnode import vnode_at, vnode_of_lock
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count


def every_lock(kernel: Kernel) -> Report:
    """The contended locks, a line each."""
    found = contended(kernel)
    report = Report({"locks": [lock_data(kernel, entry) for entry in found]})
    if not found:
        report.text("No thread waits for a lock.")
        return report
    report.table(
        ["address", "lock", "state", "held by", "waiters>"],
        [
            (
                address(entry.lock.address),
                called(kernel, entry.lock),
                _short_state(entry.lock),
                _who(entry.holders),
                len(entry.waiters),
            )
            for entry in found
        ],
    )
    guessed = any(h.certainty != "proven" for entry in found for h in entry.holders)
    note = "; a holder with a ? is a guess" if guessed else ""
    report.text(f"klocks ADDRESS shows one lock with every waiter{note}.")
    return report


def one_lock(kernel: Kernel, entry: Contended) -> Report:
    """One lock decoded, with every holder and waiter."""
    lock = entry.lock
    report = Report({"locks": [lock_data(kernel, entry)]})
    word = "" if lock.word is None else f", word {lock.word:#x}"
    flags = f" ({', '.join(lock.flags)})" if lock.flags else ""
    report.text(
        f"{locks.word_for(lock.lc_name)} {lock_name(kernel, lock)!r} at "
        f"{lock.address:#x}: {locks.describe(lock)}{word}{flags}"
    )
    for holder in entry.holders:
        report.text(
            f"  held by {holder.thread.tid} {holder.thread.label} (pid {holder.thread.pid}, "
            f"{holder.thread.state}) [{holder.certainty}: {holder.evidence}]"
        )
    if lock.held and not entry.holders and lock.state != "disowned":
        report.text("  held by threads that the kernel does not record")
    if entry.waiters:
        report.heading(count(len(entry.waiters), "thread") + " waiting")
        report.table(
            ["tid>", "pid>", "name", "wants", "wmesg"],
            [(t.tid, t.pid, t.label, mode or "", t.wmesg) for t, mode in entry.waiters],
        )
    return report


def called(kernel: Kernel, lock: locks.Lock) -> str:
    """'sx "proctree"', or what the lock of a vnode is called."""
    name = lock_name(kernel, lock)
    if name not in (lock.name, UNREAD):
        return name
    return f"{locks.word_for(lock.lc_name)} {quoted(lock.name)}"


def _short_state(lock: locks.Lock) -> str:
    return {
        "exclusive": "excl",
        "shared": f"shared {lock.sharers}" if lock.sharers else "shared",
        "disowned": "by I/O",
    }.get(lock.state, lock.state)


def lock_name(kernel: Kernel, lock: locks.Lock) -> str:
    """The lock's name; for a vnode's lock the file system and path too."""
    vnode = vnode_of_lock(kernel, lock.address) if lock.lc_name == locks.LOCKMGR else None
    found = vnode_at(kernel, vnode) if vnode is not None else None
    return found.label if found is not None else UNREAD if lock.name is None else lock.name


def _who(held: List[Holder]) -> str:
    text = ", ".join(
        f"{h.thread.tid} {h.thread.name}" + ("" if h.certainty == "proven" else "?")
        for h in held[:2]
    )
    return text + (f" and {len(held) - 2} more" if len(held) > 2 else "")


def lock_data(kernel: Kernel, entry: Contended) -> Dict[str, Any]:
    lock = entry.lock
    return {
        "address": address(lock.address),
        "name": lock.name,
        "class": lock.lc_name,
        "state": lock.state,
        "sharers": lock.sharers,
        "recursion": lock.recursion,
        "word": address(lock.word),
        "flags": list(lock.flags),
        "vnode": address(vnode_of_lock(kernel, lock.address)),
        "owners": [holder.thread.tid for holder in entry.holders],
        "holders": [
            {
                "tid": holder.thread.tid,
                "shared": holder.shared,
                "certainty": holder.certainty,
                "evidence": holder.evidence,
            }
            for holder in entry.holders
        ],
        "waiters": [{"tid": thread.tid, "mode": mode} for thread, mode in entry.waiters],
    }
