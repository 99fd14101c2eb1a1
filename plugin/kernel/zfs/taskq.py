"""taskq_t, as the SPL makes it of a task queue of the kernel: what was dispatched to one.

Mirrors opensolaris_taskq.c (9.3 to 12.x) and os/freebsd/spl/spl_taskq.c (13.0 on):
taskq_dispatch() queues a taskq_ent, whose task comes first, with a function and its argument.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional

from plugin.caching import MEMORY, cached
from plugin.kernel.proc import Thread
from plugin.kernel.taskqueue import TaskQueue, taskqueues, worker_of
from plugin.kernel.zfs.common import try_peek
from plugin.session import Kernel


class Dispatched(NamedTuple):
    """One taskq_ent: its function by name, where it waits or runs, and on which thread."""

    function: str
    queue: TaskQueue
    #: how many are before it; None once it runs
    position: Optional[int]
    worker: Optional[Thread]


@cached(MEMORY)
def dispatched(kernel: Kernel, name: str) -> Dict[int, Dispatched]:
    """{argument: its taskq_ent} of the task queues called ``name``, queued and running."""
    found: Dict[int, Dispatched] = {}
    for queue in taskqueues(kernel) if "taskq_ent" in kernel.layouts else ():
        if queue.name != name:
            continue
        places = [(each.task, None, worker_of(kernel, queue, each.busy)) for each in queue.running]
        tasks = [*places, *((task, at, None) for at, task in enumerate(queue.queued))]
        for task, position, worker in tasks:
            argument = try_peek(kernel, "taskq_ent", task, "tqent_arg", 0)
            function = try_peek(kernel, "taskq_ent", task, "tqent_func", 0)
            if argument:
                made = Dispatched(kernel.symbolize(function), queue, position, worker)
                found.setdefault(argument, made)
    return found
