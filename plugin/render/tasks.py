"""tasks's report: task queues, what they run and since when, what waits, who drains them."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from plugin.errors import UsageError
from plugin.judge.tasks import State, Task, states
from plugin.kernel.proc import Thread
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import address, count, did_you_mean, seconds


def tasks(kernel: Kernel, wanted: Optional[str] = None, *, every: bool = False) -> Report:
    """The queues with something to do, with ``every`` all; or the one called ``wanted``."""
    found = states(kernel)
    chosen = found if wanted is None else _chosen(found, wanted)
    report = Report({"queues": [_data(state) for state in chosen]})
    if not found:
        report.text(
            "No task queue was found: the kernel lists none, they are told by their threads."
        )
        return report
    busy = [state for state in chosen if state.busy]
    shown = chosen if every or wanted is not None else busy
    if not busy and wanted is None:
        report.text(
            f"Nothing runs and nothing is queued on the {count(len(found), 'task queue')} found."
        )
    if shown:
        report.table(
            ["queue", "workers>", "running>", "queued>", "drained by", "address"],
            [_row(state) for state in shown],
            optional=["address"],
        )
    for state in shown:
        if state.tasks:
            _tasks(report, state)
    idle = [state.queue.name for state in chosen if state not in shown]
    if idle and busy:
        report.text(f"{count(len(idle), 'task queue')} without work; --all shows them.")
    return report


def _chosen(found: List[State], wanted: str) -> List[State]:
    chosen = [s for s in found if wanted in (s.queue.name, f"{s.queue.address:#x}")]
    if not chosen:
        names = sorted({state.queue.name for state in found})
        near = did_you_mean(wanted, names)
        raise UsageError(f"no task queue {wanted!r}{near or '; there are ' + ', '.join(names)}")
    return chosen


def _row(state: State) -> List[Any]:
    running = sum(task.runs for task in state.tasks)
    return [
        state.queue.name,
        len(state.queue.threads),
        running,
        len(state.tasks) - running,
        ", ".join(_called(thread) for thread in _drainers(state)[:3]),
        f"{state.queue.address:#x}",
    ]


def _drainers(state: State) -> List[Thread]:
    return state.drainers + [thread for task in state.tasks for thread in task.drainers]


def _tasks(report: Report, state: State) -> None:
    report.heading(f"{state.queue.name}, struct {state.queue.kind} {state.queue.address:#x}")
    report.table(
        ["task", "function", "on", "doing", "drained by"],
        [
            (
                f"{task.address:#x}",
                task.function or "?",
                _where(task),
                _doing(task),
                ", ".join(map(_called, task.drainers)),
            )
            for task in state.tasks
        ],
        optional=["drained by", "task"],
    )


def _where(task: Task) -> str:
    if not task.runs:
        return "queued"
    return _called(task.worker) if task.worker is not None else "a thread not found"


def _doing(task: Task) -> str:
    """What the thread that runs the task does now, and for how long: of a start none is kept."""
    thread = task.worker
    if thread is None:
        return ""
    if not thread.waits:
        return thread.state
    since = f" for {seconds(thread.age)}" if thread.age is not None else ""
    return f"{thread.wmesg}{since}"


def _called(thread: Thread) -> str:
    return f"{thread.tid} {thread.name}"


def _data(state: State) -> Dict[str, Any]:
    queue = state.queue
    return {
        "name": queue.name,
        "address": address(queue.address),
        "kind": queue.kind,
        "workers": [thread.tid for thread in state.workers],
        "tasks": [
            {
                "address": address(task.address),
                "function": task.function or None,
                "state": "running" if task.runs else "queued",
                "worker": task.worker.tid if task.worker is not None else None,
                "wmesg": task.worker.wmesg if task.worker is not None else None,
                "age": task.worker.age if task.worker is not None else None,
                "drained_by": [thread.tid for thread in task.drainers],
            }
            for task in state.tasks
        ],
        "drained_by": [thread.tid for thread in state.drainers],
    }
