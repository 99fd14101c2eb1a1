"""Task queues, callouts and epochs, with what they run and who drains them.

Mirrors sys/kern/subr_taskqueue.c, kern_timeout.c and subr_epoch.c, 9.x to 15.x.
"""

from __future__ import annotations

from typing import List, Optional

from tests.forge.builder import Obj
from tests.forge.machine import Machine
from tests.forge.procs import Thread


class TaskQueue:
    """A task queue with its threads; idle ones sleep on it."""

    def __init__(self, machine: Machine, name: str, workers: int = 1) -> None:
        m = self.machine = machine
        self.name = name
        self.obj = m.new("taskqueue", tq_tcount=workers)
        self.obj.probe(tq_name=m.string(name))
        of_its_own = m.osreldate < 1100000
        m.locks.initialize(
            self.obj.sub("tq_mutex"), "sleep mutex", "taskqueue" if of_its_own else name
        )
        kernel = m.procs.proc0
        self.workers: List[Thread] = [
            kernel.thread(f"{name}_{n}", calls=("taskqueue_thread_loop", "fork_exit"))
            for n in range(workers)
        ]
        threads = m.take(workers * m.pointer_size)
        for number, worker in enumerate(self.workers):
            m.write_pointer(threads + number * m.pointer_size, worker)
        self.obj["tq_threads"] = threads
        self.queued: List[Obj] = []
        self.busy: List[Obj] = []
        m.at_the_end(self._finish)

    def __index__(self) -> int:
        return self.obj.address

    def task(self, function: str) -> Obj:
        """A task that is nowhere yet."""
        return self.machine.new("task", ta_func=function)

    def queue(self, function: str) -> Obj:
        """A task that waits its turn."""
        task = self.task(function)
        self.queued.append(task)
        return task

    def run(self, function: str, worker: int = 0, task: Optional[Obj] = None) -> Obj:
        """A task that a worker runs: its taskqueue_busy is on that thread's stack."""
        m = self.machine
        task = task if task is not None else self.task(function)
        thread = self.workers[worker]
        thread.call(function, "taskqueue_run_locked")
        at = thread.local("taskqueue_run_locked", m.sizeof("taskqueue_busy") + 64)
        busy = m.view("taskqueue_busy", at)
        busy["tb_running"] = task
        self.busy.append(busy)
        # The worker's own frames lead back to the queue.
        m.write_pointer(thread.local("taskqueue_run_locked", 32), self.obj)
        return task

    def _finish(self) -> None:
        m = self.machine
        m.stailq(self.obj.at("tq_queue"), "ta_link", self.queued)
        head = self.obj.at("tq_active")
        for busy in self.busy:
            m.write_pointer(head, busy)
            head = busy.at("tb_link")
        m.write_pointer(head, 0)
        for worker in self.workers:
            if worker.state not in ("sleeping", "locked", "running"):
                worker.sleeps(self.obj, "-", seconds=100)


def callout_cpus(machine: Machine) -> List[Obj]:
    """A struct callout_cpu per CPU, where the version keeps them."""
    m = machine
    size = m.sizeof("callout_cpu")
    if m.osreldate < 1402000:
        base = m.symbol("cc_cpu", size=size * m.cpus, align=64).address
        return [m.view("callout_cpu", base + n * size) for n in range(m.cpus)]
    entry = m.symbol("pcpu_entry_cc_cpu", size=size, align=64)
    offsets = m.symbol("dpcpu_off", size=m.pointer_size * m.cpus)
    found = []
    for number in range(m.cpus):
        made = m.new("callout_cpu")
        m.write_int(
            offsets.address + number * m.pointer_size,
            (made.address - entry.address) % (1 << 8 * m.pointer_size),
            m.pointer_size,
        )
        found.append(made)
    return found


def epoch(machine: Machine, name: str, inside: Optional[Thread] = None) -> Obj:
    """A struct epoch; ``inside`` is in a section of it on CPU 0."""
    m = machine
    records = m.take(4096 * m.cpus, "kva", 4096)
    made = m.new("epoch", e_pcpu_record=records, e_drain_count=1)
    made.probe(e_name=m.string(name), e_in_use=1)
    for cpu in range(m.cpus):
        record = m.view("epoch_record", records + cpu * 4096)
        record.set(er_parent=made, er_cpuid=cpu)
        trackers = []
        if inside is not None and cpu == 0:
            trackers = [m.new("epoch_tracker", et_td=inside)]
        m.tailq(record.at("er_tdlist"), "et_link", trackers)
    return made
