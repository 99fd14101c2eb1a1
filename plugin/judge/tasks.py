"""Which task of a task queue runs on which thread, what waits its turn, and who waits for it.

Mirrors sys/kern/subr_taskqueue.c and subr_gtaskqueue.c, 9.x to 15.x.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread, thread_at, threads
from plugin.kernel.taskqueue import TaskQueue, task_function, taskqueues, worker_of
from plugin.session import Kernel


class Task(NamedTuple):
    """One struct task * of a queue: ``function`` is ta_func's name, "" where it has none.

    ``worker`` is the thread that runs it, None while it is queued or where that thread was
    not found; ``drainers`` the threads that sleep until it has run.
    """

    address: int
    function: str
    runs: bool
    worker: Optional[Thread]
    drainers: List[Thread]


class State(NamedTuple):
    """A task queue; ``tasks`` those that run, then those queued, first first.

    ``drainers`` are the threads that wait for its workers to exit (taskqueue_terminate()).
    """

    queue: TaskQueue
    workers: List[Thread]
    tasks: List[Task]
    drainers: List[Thread]

    @property
    def busy(self) -> bool:
        return bool(self.tasks or self.drainers)


def states(kernel: Kernel) -> List[State]:
    """Every task queue that a thread serves, by name."""
    asleep: Dict[int, List[Thread]] = {}
    for thread in threads(kernel):
        if thread.wchan and thread.state == "sleeping":
            asleep.setdefault(thread.wchan, []).append(thread)
    return [_state(kernel, queue, asleep) for queue in taskqueues(kernel)]


def _state(kernel: Kernel, queue: TaskQueue, asleep: Dict[int, List[Thread]]) -> State:
    def task(address: int, runs: bool, worker: Optional[Thread]) -> Task:
        function = task_function(kernel, address, queue.kind)
        return Task(address, function, runs, worker, asleep.get(address, []))

    running = [task(each.task, True, worker_of(kernel, queue, each.busy)) for each in queue.running]
    queued = [task(address, False, None) for address in queue.queued]
    workers = [thread_at(kernel, address) for address in queue.threads]
    ending: List[Thread] = []
    try:
        offset = kernel.layouts.offsetof(queue.kind, "tq_threads")
        ending = asleep.get(kernel.pointer(queue.address + offset), [])
    except (MemoryFault, LayoutError):
        pass
    known = [thread for thread in workers if thread is not None]
    return State(queue, known, running + queued, ending)
