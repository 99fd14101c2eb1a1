"""kthreads's report: threads as DDB's ps prints them, or grouped by their stacks."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence, Tuple

from plugin.kernel.proc import Thread
from plugin.kernel.stack import backtrace
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, seconds


def ps(kernel: Kernel, found: List[Thread], *, verbose: bool) -> Report:
    """A line a thread; ``verbose``: under its process's name too."""
    report = Report({"threads": [_data(thread) for thread in found]})
    report.table(
        ["tid>", "pid>", "name", "state", "wmesg", "wchan", "age>"],
        [
            (
                t.tid,
                t.pid,
                t.label if verbose else t.name,
                t.state if t.cpu is None else f"CPU {t.cpu}",
                t.wmesg,
                _channel(kernel, t),
                seconds(t.age),
            )
            for t in found
        ],
        optional=("pid", "wchan"),
    )
    return report


def grouped_by_stack(found: List[Thread], stack: Callable[[Thread], Sequence[str]]) -> Report:
    """The threads of one stack together, the largest group first."""
    groups = stacks(found, stack)
    report = Report(
        {
            "threads": [_data(thread) for thread in found],
            "groups": [
                {"frames": list(frames), "tids": [t.tid for t in members]}
                for frames, members in groups
            ],
        }
    )
    for frames, members in groups:
        report.heading(f"{count(len(members), 'thread')}: {_who(members)}")
        report.text(" <- ".join(frames) or "(no stack in the dump)", indent=2)
    return report


def cpus(kernel: Kernel, found: List[Thread]) -> Report:
    """A CPU at a time: its curthread and that one's stack, as far as the dump has it."""
    running = sorted((t for t in found if t.cpu is not None), key=lambda t: (t.cpu or 0, t.tid))
    report = Report({"threads": [_data(thread) for thread in running]})
    for thread in running:
        report.heading(
            f"cpuid = {thread.cpu}  curthread = {thread.address:#x}: pid {thread.pid} "
            f'tid {thread.tid} "{thread.label}"'
        )
        report.text(" <- ".join(backtrace(kernel, thread)) or "(no stack in the dump)", indent=2)
    if not running:
        report.text("No thread is on a CPU.")
    return report


def _channel(kernel: Kernel, thread: Thread) -> str:
    """What it waits on: the lock rather than its turnstile, a symbol rather than an address."""
    at = thread.lock.address if thread.lock else thread.wchan
    return kernel.symbolize(at) or f"{at:#x}" if at else ""


def _data(thread: Thread) -> Dict[str, Any]:
    lock = thread.lock
    return {
        "tid": thread.tid,
        "pid": thread.pid,
        "comm": thread.comm,
        "name": thread.name,
        "address": address(thread.address) if thread.address > 0 else None,
        "state": thread.state,
        "cpu": thread.cpu,
        "wmesg": thread.wmesg,
        "wchan": address(thread.wchan),
        "lock": lock
        and {"address": address(lock.address), "name": lock.name, "class": lock.lc_name},
        "age": thread.age,
    }


def stacks(
    chosen: List[Thread], stack: Callable[[Thread], Sequence[str]]
) -> List[Tuple[Tuple[str, ...], List[Thread]]]:
    """Threads grouped by identical stacks, the largest group first."""
    groups: Dict[Tuple[str, ...], List[Thread]] = {}
    for thread in chosen:
        groups.setdefault(tuple(stack(thread)), []).append(thread)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _who(members: List[Thread]) -> str:
    shown = ", ".join(f"{t.tid} {t.label}" for t in members[:6])
    return shown + (f" and {len(members) - 6} more" if len(members) > 6 else "")
