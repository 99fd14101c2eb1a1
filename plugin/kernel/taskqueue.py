"""Task queues: what each has queued, what it runs, and on which thread.

Mirrors sys/kern/subr_taskqueue.c and subr_gtaskqueue.c, 9.x to 15.x.  The kernel keeps no
list of its task queues: they are found by the threads that serve them.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from plugin.caching import MEMORY, cached
from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.proc import Thread, kernel_thread_flag, thread_at, threads
from plugin.kernel.stack import backtrace, stack_words
from plugin.session import Kernel

#: the same two structs twice: a group task queue differs in where its members lie
KINDS = (("taskqueue", "task"), ("gtaskqueue", "gtask"))
_LOOPS = ("taskqueue_run", "taskqueue_thread_loop", "gtaskqueue_run", "gtaskqueue_thread_loop")
_MAX_TASKS = 1 << 16
_MAX_THREADS = 1 << 12
_VARIABLES = (
    "taskqueue_thread",
    "taskqueue_swi",
    "taskqueue_swi_giant",
    "taskqueue_fast",
    "taskqueue_bus",
    "taskqueue_acpi_task",
)


class Running(NamedTuple):
    """A task that runs: its struct task *, the struct taskqueue_busy * on the worker's stack."""

    task: int
    busy: int


class TaskQueue(NamedTuple):
    """One struct taskqueue * (``kind`` "taskqueue" or "gtaskqueue").

    ``queued``: the struct task * that wait their turn, first first.  ``threads``: the
    struct thread * of its workers.
    """

    address: int
    kind: str
    name: str
    queued: List[int]
    running: List[Running]
    threads: List[int]


def taskqueue_at(kernel: Kernel, address: int) -> Optional[TaskQueue]:
    """The struct taskqueue * or struct gtaskqueue * at ``address``, None if none is there.

    Told by its name, which its mutex shares from 11.0 on, and by a tail pointer of its
    queue that is right.
    """
    for kind, _ in KINDS:
        if kind not in kernel.layouts:
            continue
        try:
            found = _at(kernel, kind, address)
        except (MemoryFault, LayoutError):
            continue
        if found is not None:
            return found
    return None


def _at(kernel: Kernel, kind: str, address: int) -> Optional[TaskQueue]:
    view = kernel.view(kind, address)
    # Up to 10.x a queue has no name of its own, its mutex is called "taskqueue": it goes by its
    # first worker's.
    mutex = "tq_mutex.lock_object.lo_name"
    named = view.tq_name if view.has("tq_name") else view.get(mutex, 0)
    name = kernel.try_cstring(named) if named else ""
    if not name or not name.isprintable():
        return None
    threads_at, count = view.tq_threads, view.tq_tcount
    if not 0 <= count <= _MAX_THREADS or not kernel.is_kernel_address(view["tq_queue.stqh_last"]):
        return None
    if view["tq_queue.stqh_first"] == 0 and view["tq_queue.stqh_last"] != view.at("tq_queue"):
        return None
    workers = _pointers(kernel, threads_at, count) if threads_at else []
    if workers and not any(thread_at(kernel, each) is not None for each in workers):
        return None
    if workers and not view.has("tq_name"):
        first = thread_at(kernel, workers[0])
        name = first.name if first is not None else name
    queued = list(_queued(kernel, kind, address))
    return TaskQueue(address, kind, name, queued, list(_running(kernel, kind, view)), workers)


def _pointers(kernel: Kernel, address: int, count: int) -> List[int]:
    size = kernel.pointer_size
    raw = kernel.read(address, count * size)
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def _queued(kernel: Kernel, kind: str, address: int) -> Iterator[int]:
    # ta_link is the first member of both kinds of task, in every version.
    at = kernel.pointer(address + kernel.layouts.offsetof(kind, "tq_queue"))
    seen: Set[int] = set()
    while at and at not in seen and len(seen) < _MAX_TASKS:
        seen.add(at)
        yield at
        at = kernel.pointer(at)


def _running(kernel: Kernel, kind: str, view) -> Iterator[Running]:  # type: ignore[no-untyped-def]
    """tq_active: a LIST from 12.x on, a TAILQ before; both begin with the first."""
    layouts = kernel.layouts
    busy = "taskqueue_busy"
    link = layouts.offsetof(busy, "tb_link")
    running = layouts.offsetof(busy, "tb_running")
    at = kernel.pointer(view.at("tq_active"))
    seen: Set[int] = set()
    while at and at not in seen and len(seen) < _MAX_THREADS:
        seen.add(at)
        task = kernel.pointer(at + running)
        # A barrier of taskqueue_drain_all() on a release before 12 is marked in bit 0.
        if task & ~1:
            yield Running(task & ~1, at)
        at = kernel.pointer(at + link)


@cached(MEMORY)
def taskqueues(kernel: Kernel) -> List[TaskQueue]:
    """Every task queue that a thread serves: asleep on it, or at work for it."""
    found: Dict[int, TaskQueue] = {}

    def take(address: int) -> None:
        if address and address not in found:
            queue = taskqueue_at(kernel, address)
            if queue is not None:
                found[address] = queue

    for name in _VARIABLES:
        if kernel.has_symbol(name):
            take(kernel.global_value(name, 0))
    busy: List[Thread] = []
    for thread in threads(kernel):
        if thread.wmesg == "-" and thread.wchan:
            take(thread.wchan)
        # Up to 12.x a worker that drains another queue's task sleeps with the same message.
        if thread.wchan not in found and _may_serve(kernel, thread):
            busy.append(thread)
    known = {worker for queue in found.values() for worker in queue.threads}
    for thread in busy:
        if thread.address in known:
            continue
        for word in stack_words(kernel, thread):
            if kernel.is_kernel_address(word) and word not in found:
                queue = taskqueue_at(kernel, word)
                if queue is not None and thread.address in queue.threads:
                    found[word] = queue
                    break
    return sorted(found.values(), key=lambda queue: queue.name)


#: a thread that runs cannot be looked at, one of an interrupt serves no queue of tasks
_WITHOUT_TASKS = frozenset(("running", "zombie", "iwait"))


def _may_serve(kernel: Kernel, thread: Thread) -> bool:
    kernel_thread = thread.p_flag & kernel_thread_flag(kernel)
    if not kernel_thread or not thread.kstack or thread.state in _WITHOUT_TASKS:
        return False
    return any(frame.startswith(_LOOPS) for frame in backtrace(kernel, thread))


def worker_of(kernel: Kernel, queue: TaskQueue, busy: int) -> Optional[Thread]:
    """The thread on whose kernel stack a struct taskqueue_busy * lies."""
    for address in queue.threads:
        thread = thread_at(kernel, address)
        if thread is not None and thread.kstack <= busy < thread.kstack + thread.kstack_size:
            return thread
    return None


def of_task(kernel: Kernel, task: int) -> Tuple[Optional[TaskQueue], Optional[Running]]:
    """The queue that runs or holds the struct task * ``task``; its Running if it runs."""
    for queue in taskqueues(kernel):
        for running in queue.running:
            if running.task == task:
                return queue, running
    for queue in taskqueues(kernel):
        if task in queue.queued:
            return queue, None
    return None, None


#: the tasks of illumos's task queues: ta_context is a taskq_ent_t with the function proper
_ENTRIES = ("taskq_run", "taskq_run_ent", "taskq_run_safe")
#: ta_func of linuxkpi's work (linux_work.c, 11.0 on): its ta_context is a struct work_struct *
_LINUX_ENTRIES = ("linux_work_fn", "linux_delayed_work_fn")


def task_function(kernel: Kernel, task: int, kind: str = "taskqueue") -> str:
    """The name of the function that a task runs (ta_func), "" if it cannot be read.

    Of a task of ZFS (cddl/compat/opensolaris, opensolaris_taskq.c) that of its taskq_ent_t.
    """
    struct = dict(KINDS)[kind]
    struct = struct if struct in kernel.layouts else "task"
    try:
        name = kernel.symbolize(kernel.pointer(task + kernel.layouts.offsetof(struct, "ta_func")))
        if name in _ENTRIES and kernel.layouts.has("taskq_ent", "tqent_func"):
            entry = kernel.pointer(task + kernel.layouts.offsetof(struct, "ta_context"))
            at = entry + kernel.layouts.offsetof("taskq_ent", "tqent_func")
            return kernel.symbolize(kernel.pointer(at)) or name
        if name in _LINUX_ENTRIES and kernel.layouts.has("work_struct", "func"):
            work = kernel.pointer(task + kernel.layouts.offsetof(struct, "ta_context"))
            at = work + kernel.layouts.offsetof("work_struct", "func")
            return kernel.symbolize(kernel.pointer(at)) or name
        return name
    except (MemoryFault, LayoutError):
        return ""
