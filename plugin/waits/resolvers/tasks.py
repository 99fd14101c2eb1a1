"""Draining: from the thread that waits until others are out to those who are in.

A drain ends when what it waits for has run, so the chain goes on with the thread that
runs it, or that would have to.
"""

from __future__ import annotations

from typing import Optional

from plugin.errors import LayoutError, MemoryFault
from plugin.kernel.callout import waited_for
from plugin.kernel.cdev import cdevs_in_use
from plugin.kernel.epoch import epoch_at
from plugin.kernel.intr import handler_thread
from plugin.kernel.proc import Thread, thread_at
from plugin.kernel.stack import stack_words
from plugin.kernel.taskqueue import (
    TaskQueue,
    of_task,
    task_function,
    taskqueue_at,
    taskqueues,
    worker_of,
)
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import End, Node
from plugin.waits.kinds import CauseKind, Certainty, EdgeKind, NodeKind, Status
from plugin.waits.registry import resolver
from plugin.waits.resolvers.common import generic, lost_wakeup
from plugin.waits.resolvers.procs import others_of_process
from plugin.waits.resolvers.stacks import runs, threads_with

#: more threads than this are not joined to one node
_MAX_THREADS = 64
_IDLE = "-"
_DRAINS = ("taskqueue_drain", "gtaskqueue_drain", "taskqueue_terminate")


def _stuck(case: Case, what: str) -> Verdict:
    return Verdict(Status.STUCK, what, case.row)


# Task queues


@resolver("task_drain")
def task_drain(case: Case) -> Optional[Verdict]:
    """taskqueue_drain*(): the channel is a task, tb_running, a barrier, or the queue's threads."""
    kernel, builder = case.kernel, case.builder
    queue, running = of_task(kernel, case.address)
    if queue is None:
        queue = _terminated(case)
        if queue is not None:
            node = taskqueue_node(builder, queue)
            case.waits_for(node, Certainty.PROVEN, f"tq_threads of {queue.name}; {case.said()}")
            return _stuck(case, f"waits for the threads of task queue {queue.name} to exit")
        return None
    node = builder.object(NodeKind.TASK, case.address, "")
    name = task_function(kernel, case.address, queue.kind)
    node.label = node.label or f"task {name or hex(case.address)} of {queue.name}"
    case.waits_for(node, Certainty.PROVEN, case.said())
    if node.end is not None or builder.graph.successors(node.id):
        return _stuck(case, f"drains {node.label}")
    if running is not None:
        worker = worker_of(kernel, queue, running.busy)
        if worker is not None:
            builder.join(
                node,
                builder.thread(worker),
                EdgeKind.SERVED_BY,
                Certainty.PROVEN,
                f"tq_active of {queue.name}: taskqueue_busy {running.busy:#x} is on its stack",
            )
            return _stuck(case, f"drains {node.label}, which runs")
    place = queue.queued.index(case.address) if case.address in queue.queued else None
    where = "it runs" if place is None else f"{place} tasks before it"
    builder.join(
        node,
        taskqueue_node(builder, queue),
        EdgeKind.CONTAINED_IN,
        Certainty.PROVEN,
        f"tq_queue of {queue.address:#x}: {where}",
    )
    return _stuck(case, f"drains {node.label}")


def taskqueue_node(builder: Builder, queue: TaskQueue) -> Node:
    """A task queue, served by its workers: those at work for it, all of them if none is."""
    node = builder.object(NodeKind.TASKQUEUE, queue.address, f"task queue {queue.name}")
    if node.end is not None or builder.graph.successors(node.id):
        return node
    node.facts = [f"{len(queue.queued)} queued, {len(queue.running)} running"]
    workers = [thread_at(builder.kernel, each) for each in queue.threads[:_MAX_THREADS]]
    known = [thread for thread in workers if thread is not None]
    busy = [thread for thread in known if thread.wmesg != _IDLE]
    for thread in busy or known:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            f"tq_threads of {queue.name}",
        )
    node.any = len(busy or known) > 1
    if not known:
        node.end = End(CauseKind.UNKNOWN, f"{node.label} has no thread that could be found")
    return node


def _terminated(case: Case) -> Optional[TaskQueue]:
    """taskqueue_terminate() sleeps on the queue's tq_threads."""
    for queue in taskqueues(case.kernel):
        try:
            offset = case.kernel.layouts.offsetof(queue.kind, "tq_threads")
            if case.kernel.pointer(queue.address + offset) == case.address:
                return queue
        except (MemoryFault, LayoutError):
            continue
    return taskqueue_at(case.kernel, case.address)


# Callouts, epochs, interrupts


@resolver("callout_drain")
def callout_drain(case: Case) -> Optional[Verdict]:
    """callout_drain(): the callout runs on one CPU's callout thread."""
    builder = case.builder
    found = waited_for(case.kernel, case.address)
    if found is None:
        return None
    cpu, executing = found
    label = f"callout {executing.function or hex(executing.callout)} on CPU {cpu.cpu}"
    node = case.waits_for(
        builder.object(NodeKind.CALLOUT, case.address, label), Certainty.PROVEN, case.said()
    )
    if node.end is not None or builder.graph.successors(node.id):
        return _stuck(case, f"drains {label}")
    thread = thread_at(case.kernel, cpu.thread) if cpu.thread else None
    certainty, why = Certainty.PROVEN, f"cc_thread of CPU {cpu.cpu}, cc_curr {executing.callout:#x}"
    if thread is None:
        name = f"clock ({cpu.cpu})"
        thread = next((each for each in builder.threads if each.name.endswith(name)), None)
        certainty, why = Certainty.CATALOGUED, f"{name} runs the callouts of CPU {cpu.cpu}"
    if thread is not None and not executing.direct:
        builder.join(node, builder.thread(thread), EdgeKind.SERVED_BY, certainty, why)
    else:
        said = f"cc_curr {executing.callout:#x}"
        node.end = End(CauseKind.RUNNING, f"{label} runs in the timer interrupt", said)
    return _stuck(case, f"drains {label}")


@resolver("epoch_drain")
def epoch_drain(case: Case) -> Optional[Verdict]:
    """epoch_drain_callbacks(): threads inside the epoch hold its callbacks up."""
    builder = case.builder
    epoch = epoch_at(case.kernel, case.address)
    if epoch is None:
        return None
    label = f"epoch {epoch.name or hex(epoch.address)}"
    node = case.waits_for(
        builder.object(NodeKind.EPOCH, epoch.address, label), Certainty.PROVEN, case.said()
    )
    if node.end is not None or builder.graph.successors(node.id):
        return _stuck(case, f"drains {label}")
    node.facts = [f"e_drain_count {epoch.draining}"]
    for address in epoch.inside[:_MAX_THREADS]:
        inside = builder.thread_node_at(address)
        if inside is not None:
            builder.join(
                node, inside, EdgeKind.OWNED_BY, Certainty.PROVEN, "er_tdlist: inside a section"
            )
    if not builder.graph.successors(node.id):
        # Nobody is inside: the callbacks run in the group task of each CPU.
        workers = [
            each
            for each in builder.threads
            if each.name.startswith(("softirq_", "if_io_tqg_")) and each.wmesg != _IDLE
        ]
        if workers:
            builder.served_by(node, workers, "the group tasks that run an epoch's callbacks")
        else:
            node.end = End(
                CauseKind.UNKNOWN, f"{label}: no thread is inside, and no callback runs", ""
            )
    return _stuck(case, f"drains {label}")


@resolver("intr_drain")
def intr_drain(case: Case) -> Optional[Verdict]:
    """intr_event_remove_handler(): the interrupt's thread has to pass the handler."""
    builder = case.builder
    found = handler_thread(case.kernel, case.address)
    if found is None:
        return None
    node = case.waits_for(
        builder.object(NodeKind.OBJECT, case.address, f"interrupt handler {found.name}"),
        Certainty.PROVEN,
        case.said(),
    )
    thread = builder.thread_node_at(found.thread)
    if thread is not None:
        builder.join(
            node, thread, EdgeKind.SERVED_BY, Certainty.PROVEN, f"ie_thread of {found.event}"
        )
    elif node.end is None:
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: its interrupt has no thread")
    return _stuck(case, f"waits for {node.label} to return")


# Devices, modules, processes


@resolver("dev_drain")
def dev_drain(case: Case) -> Optional[Verdict]:
    """destroy_dev(): si_threadcount threads are inside the device's methods.

    The sleeper's channel is no object: which device it is its stack tells.
    """
    builder = case.builder
    used = cdevs_in_use(case.kernel)
    words = stack_words(case.kernel, case.thread)
    devices = [device for device in used if device.address in words]
    if not devices:
        return None
    for device in devices:
        node = builder.object(NodeKind.OBJECT, device.address, f"device {device.name}")
        node.facts = [f"si_threadcount {device.threads}"]
        case.waits_for(
            node, Certainty.GUESSED, f"its kernel stack holds {device.address:#x}; {case.said()}"
        )
        if node.end is not None or builder.graph.successors(node.id):
            continue
        for thread in builder.threads:
            if (
                thread.kstack
                and device.address in stack_words(case.kernel, thread)
                and _inside_device(builder, thread)
            ):
                builder.join(
                    node,
                    builder.thread(thread),
                    EdgeKind.OWNED_BY,
                    Certainty.GUESSED,
                    f"inside devfs with {device.address:#x} on its stack",
                )
        if not builder.graph.successors(node.id):
            node.end = End(
                CauseKind.UNKNOWN,
                f"{node.label}: {device.threads} threads are counted inside, none was found",
                f"si_threadcount {device.threads}",
            )
    return _stuck(case, f"waits for threads to leave {devices[0].name}")


def _inside_device(builder: Builder, thread: Thread) -> bool:
    """Whether a method of a device is on the thread's stack: si_threadcount counts it.

    destroy_dev() goes through devfs as well, innermost; called by such a method it waits for
    its own caller.
    """
    frames = builder.stack(thread)
    destroys = [n for n, frame in enumerate(frames) if frame.startswith("destroy_dev")]
    outer = frames[destroys[-1] + 1 :] if destroys else frames
    return any(frame.startswith(("devfs_", "giant_", "dev_")) for frame in outer)


@resolver("kld_busy")
def kld_busy(case: Case) -> Optional[Verdict]:
    """linker_kldload_busy(): kld_busy_td loads or unloads a module."""
    builder = case.builder
    owner = case.kernel.global_value("kld_busy_td", 0)
    thread = builder.thread_node_at(owner)
    if thread is None:
        return None
    node = builder.node(NodeKind.LOCK, "kld_busy", "kld_busy", case.address)
    case.waits_for(node, Certainty.PROVEN, case.said())
    builder.join(node, thread, EdgeKind.OWNED_BY, Certainty.PROVEN, f"kld_busy_td {owner:#x}")
    return _stuck(case, "waits for another thread to load or unload a module")


def _inside(case: Case, struct: str, address: int) -> bool:
    return address <= case.address < address + case.kernel.layouts.sizeof(struct)


@resolver("kthread_stop")
def kthread_stop(case: Case) -> Optional[Verdict]:
    """kproc_suspend(), kthread_suspend(): the kernel thread that has to notice."""
    builder = case.builder
    # The channel is &p->p_siglist or &td->td_flags: a member of the one asked to stop.
    of_thread = [each for each in builder.threads if _inside(case, "thread", each.address)]
    found = of_thread or [each for each in builder.threads if _inside(case, "proc", each.proc)]
    if not found:
        return None
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    for thread in found[:_MAX_THREADS]:
        builder.join(
            node,
            builder.thread(thread),
            EdgeKind.SERVED_BY,
            Certainty.PROVEN,
            "the channel lies in the struct of the thread asked to stop",
        )
    return _stuck(case, f"waits for {found[0].name} to stop")


@resolver("thread_single")
def thread_single(case: Case) -> Optional[Verdict]:
    """Another thread of the process becomes its only one, or is asked to: p_singlethread."""
    others = others_of_process(case.builder, case.thread)
    if not others:
        return None
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    for other in others[:_MAX_THREADS]:
        case.builder.join(
            node,
            case.builder.thread(other),
            EdgeKind.NEEDS,
            Certainty.PROVEN,
            "a thread of the same process that has not stopped",
        )
    return _stuck(case, f"waits for {len(others)} threads of its process to stop")


# linuxkpi


@resolver("linux_completion")
def linux_completion(case: Case) -> Optional[Verdict]:
    """wait_for_completion(): the channel is the struct completion, which begins with ``done``.

    complete() counts it up and wakes one; who is to call it nothing records, so the threads
    that have the completion on their stacks are a guess (linux_compat.c, 11.0 on).
    """
    builder, kernel = case.builder, case.kernel
    node = case.waits_for(
        builder.object(NodeKind.OBJECT, case.address, f"completion {case.address:#x}"),
        Certainty.PROVEN,
        case.said(),
    )
    if node.end is not None or builder.graph.successors(node.id):
        return _stuck(case, "waits for a completion of linuxkpi")
    try:
        done = kernel.unsigned(case.address, 4)
    except MemoryFault:
        return None
    if done:
        node.end = End(
            CauseKind.LOST_WAKEUP,
            f"{node.label} is complete, yet {case.thread.tid} {case.thread.label} sleeps on it",
            f"done {done}",
            case.thread.age,
        )
        return _stuck(case, "waits for a completion of linuxkpi")
    for thread in threads_with(builder, case.address, exclude=[case.thread])[:_MAX_THREADS]:
        if thread.wchan != case.address:
            builder.join(
                node,
                builder.thread(thread),
                EdgeKind.SERVED_BY,
                Certainty.GUESSED,
                f"its kernel stack holds {case.address:#x}",
            )
    if not builder.graph.successors(node.id):
        return generic(case, "message")
    return _stuck(case, "waits for a completion of linuxkpi")


# Service threads


@resolver("service")
def service(case: Case) -> Optional[Verdict]:
    """ "-": a service thread at rest; a task queue's only while its queue is empty.

    Up to 12.x whoever drained a task slept with the same message, on the task.
    """
    queue = taskqueue_at(case.kernel, case.address)
    works = queue is not None and case.thread.address in queue.threads
    drains = not works and runs(case.builder, case.thread, _DRAINS)
    found = task_drain(case) if drains else None
    if found is not None:
        return found
    if drains or not case.builder.is_kernel_thread(case.thread):
        what = "a task is drained" if drains else "a process, no service thread, sleeps here"
        node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
        node.end = node.end or End(CauseKind.UNKNOWN, f"{node.label}: {what}")
        return _stuck(case, "sleeps without a message")
    loops = ("taskqueue_thread_loop", "gtaskqueue_thread_loop")
    if not works and not runs(case.builder, case.thread, loops):
        return None
    if queue is not None and queue.queued:
        return lost_wakeup(
            case,
            f"{case.thread.label} sleeps although task queue {queue.name} has a task "
            f"{queue.queued[0]:#x}",
            f"tq_queue of {case.address:#x}",
        )
    return None
