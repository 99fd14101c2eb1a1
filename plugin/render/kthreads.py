"""kthreads's report: threads as DDB's ps prints them, or grouped by their stacks."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Sequence, Tuple

from plugin.kernel.proc import Thread
from plugin.kernel.sched import Queued, is_idle_thread, on_cpu_for, queued
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
    """A CPU at a time: its curthread, for how long, its stack, and who waits for it to run.

    Who waits for a CPU stands there with since when, and whether it may run on that one alone.
    """
    running = sorted((t for t in found if t.cpu is not None), key=lambda t: (t.cpu or 0, t.tid))
    waiting = [each for each in queued(kernel) if each.thread in found]
    shown = running + [each.thread for each in waiting]
    report = Report(
        {
            "threads": [_data(thread) for thread in shown],
            "cpus": [
                {
                    "cpu": thread.cpu,
                    "tid": thread.tid,
                    "idle": is_idle_thread(kernel, thread),
                    "since": on_cpu_for(kernel, thread.cpu) if thread.cpu is not None else None,
                    "queue": [_queued_data(each) for each in waiting if each.cpu == thread.cpu],
                }
                for thread in running
            ],
        }
    )
    for thread in running:
        since = on_cpu_for(kernel, thread.cpu) if thread.cpu is not None else None
        report.heading(
            f"cpuid = {thread.cpu}  curthread = {thread.address:#x}: pid {thread.pid} "
            f'tid {thread.tid} "{thread.label}"' + (f", for {seconds(since)}" if since else "")
        )
        report.text(" <- ".join(backtrace(kernel, thread)) or "(no stack in the dump)", indent=2)
        for each in waiting:
            if each.cpu == thread.cpu:
                report.text(f"on its run queue: {_queued_words(each)}", indent=2)
    known = {thread.cpu for thread in running}
    for each in waiting:
        if each.cpu not in known:
            report.text(f"on a run queue: {_queued_words(each)}")
    if not running:
        report.text("No thread is on a CPU.")
    return report


def _queued_words(each: Queued) -> str:
    thread, found = each.thread, each.dispatch
    words = f"{thread.tid} {thread.label}"
    if found.never_ran:
        words += ", has never run"
    elif found.since is not None:
        words += f", last ran {seconds(found.since)} ago" + (
            ", preempted" if found.preempted else ""
        )
    return words + (f", pinned to CPU {found.pinned}" if found.pinned is not None else "")


def _queued_data(each: Queued) -> Dict[str, Any]:
    return {
        "tid": each.thread.tid,
        "since": each.dispatch.since,
        "preempted": each.dispatch.preempted,
        "pinned": each.dispatch.pinned,
    }


def _channel(kernel: Kernel, thread: Thread) -> str:
    """What it waits on: the lock rather than its turnstile, a symbol rather than an address."""
    at = thread.lock.address if thread.lock else thread.wchan
    return kernel.symbolize(at) or f"{at:#x}" if at else ""


def _data(thread: Thread) -> Dict[str, Any]:
    lock = thread.lock
    return {
        "tid": thread.tid,
        "pid": thread.pid if thread.pid >= 0 else None,
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
