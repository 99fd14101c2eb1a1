"""The threads every kernel has, asleep as they are when there is nothing to do.

Which process and name a service thread has, what it sleeps on and by what
functions it got there differs from version to version; a scenario takes the
one it needs out of ``Services`` by the name it has in FreeBSD and says what it
does instead.

Mirrors sys/geom/geom_kern.c and geom_event.c, sys/vm/vm_pageout.c,
vm_swapout.c and vm_zeroidle.c, sys/kern/vfs_bio.c, vfs_subr.c, kern_intr.c,
subr_taskqueue.c and init_main.c, 7.0-CURRENT of 2006 to 15.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Sequence

from plugin.errors import UsageError
from tests.forge.procs import Place, Thread

if TYPE_CHECKING:
    from tests.forge.machine import Machine


class Services:
    """Service threads by name: swapper, init, g_up, g_down, g_event, pagedaemon, ..."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._threads: Dict[str, Thread] = {}
        self._idle: Dict[str, Callable[[Thread], Any]] = {}
        self._calls: Dict[str, Sequence[Place]] = {}
        #: name: address of its struct thread and of its stack, where a scenario pins them
        self.pins: Dict[str, Dict[str, Any]] = {}
        self._made = False
        m = machine
        #: 8.0 gathered kernel threads into processes; 12.0 gave memory domains
        self.modern = m.osreldate >= 800000
        self.domains = m.osreldate >= 1200000

    def pin(self, name: str, **where: Any) -> None:
        """Give a service thread's struct thread (``at``) or stack (``kstack``) an address.

        ``calls`` replaces its outer frames, to give these theirs.
        """
        self.pins[name] = where

    def __getitem__(self, name: str) -> Thread:
        """The thread, for the scenario to say what it does; its calls are on the stack."""
        self.boot()
        found = self._threads.get(name)
        if found is None:
            raise UsageError(f"this kernel has no service thread {name}: {sorted(self._threads)}")
        return found

    def __contains__(self, name: str) -> bool:
        self.boot()
        return name in self._threads

    def finish(self) -> None:
        """Whatever the scenario did not touch is idle."""
        self.boot()
        for name, thread in self._threads.items():
            if not thread.state:
                thread.call(*self._calls[name])
                self._idle[name](thread)

    def _add(
        self,
        name: str,
        group: str,
        outer: Sequence[Place],
        inner: Sequence[Place],
        idle: Callable[[Thread], Any],
        *,
        thread: str = "",
    ) -> None:
        """``outer`` are on the stack whatever it does, ``inner`` only when idle."""
        m = self.machine
        pins = dict(self.pins.get(name, {}))
        made = m.procs.kthread(thread or name, group, pins.pop("calls", outer), **pins)
        self._threads[name] = made
        self._calls[name] = inner
        self._idle[name] = idle

    def boot(self) -> None:
        """Make them all, in the order a kernel starts them; once."""
        if self._made:
            return
        self._made = True
        m = self.machine
        self._swapper()
        init = m.procs.process("init", pid=1)
        m.procs.init = init
        thread = init.thread(calls=("kern_wait", "wait4"))
        self._threads["init"], self._calls["init"] = thread, ()
        self._idle["init"] = lambda t: t.sleeps(
            init, "wait", interruptible=True, seconds=m.uptime - 2
        )
        self._geom()
        self._memory()
        self._buffers()
        self._interrupts()

    def _swapper(self) -> None:
        m = self.machine
        thread = m.procs.proc0.threads[0]
        self._threads["swapper"] = thread
        modern = m.osreldate >= 1000000
        self._calls["swapper"] = ("swapper",) if modern else ("scheduler",)
        wmesg = "swapin" if modern else "sched"
        self._idle["swapper"] = lambda t: t.sleeps(m.procs.proc0, wmesg, seconds=m.uptime - 2)

    def _geom(self) -> None:
        m = self.machine
        # msleep(..., "-", hz/10) in 8.x, ..., 0) in 9.3 (geom_io.c).
        untimed = m.osreldate >= 900000
        timeout = None if untimed else 0.1
        for name, procbody, schedule, channel in (
            ("g_event", "g_event_procbody", "g_run_events" if self.modern else "", "g_wait_event"),
            ("g_up", "g_up_procbody", "g_io_schedule_up", "g_wait_up"),
            ("g_down", "g_down_procbody", "g_io_schedule_down", "g_wait_down"),
        ):
            outer = (schedule, procbody) if schedule else (procbody,)

            def idle(thread: Thread, channel: str = channel) -> None:
                thread.sleeps(m.address_of(channel), "-", seconds=0.05, timeout=timeout)

            self._add(name, "geom", outer, (), idle)
        if m.osreldate >= 900000:
            for name in ("g_up", "g_down", "g_event"):
                static = m.osreldate < 1300000 or name == "g_event"
                m.variable(f"{name}_td", self._threads[name], static=static)

    def _memory(self) -> None:
        m = self.machine
        if self.domains:
            domain = m.vm.domains

            def on(path: str) -> int:
                return domain.at(path)

            self._add(
                "pagedaemon",
                "pagedaemon",
                ("vm_pageout_worker", "vm_pageout"),
                (),
                lambda t: t.sleeps(on("vmd_pageout_wanted"), "psleep", seconds=0.5, timeout=1.0),
                thread="dom0",
            )
            self._add(
                "laundry",
                "pagedaemon",
                ("vm_pageout_laundry_worker",),
                (),
                lambda t: t.sleeps(on("vmd_laundry_request"), "launds", seconds=0.5),
                thread="laundry: dom0",
            )
            reclaim = m.text("uma_reclaim_worker")
            self._add(
                "uma",
                "pagedaemon",
                ("uma_reclaim_worker",),
                (),
                lambda t: t.sleeps(reclaim, "umarcl", seconds=m.uptime - 2),
            )
        else:
            needed = "vm_pages_needed"
            self._add(
                "pagedaemon",
                "",
                ("vm_pageout",),
                (),
                lambda t: t.sleeps(m.address_of(needed), "psleep", seconds=2.0, timeout=5.0),
            )
        if m.osreldate < 1100000:
            m.variable("zero_state", 0, size=4, static=True)
            self._add(
                "pagezero",
                "",
                ("vm_pagezero",),
                (),
                lambda t: t.sleeps(m.address_of("zero_state"), "pgzero", seconds=30.0),
            )
        self._add(
            "vmdaemon",
            "",
            ("vm_daemon",),
            (),
            lambda t: t.sleeps(m.address_of("vm_daemon_needed"), "psleep", seconds=m.uptime - 2),
        )
        m.variable("pageproc", self._threads["pagedaemon"].process)

    def _buffers(self) -> None:
        m = self.machine
        self._add(
            "bufdaemon",
            "bufdaemon" if m.osreldate >= 1200000 else "",
            ("buf_daemon",),
            (),
            lambda t: t.sleeps(m.address_of("bd_request"), "psleep", seconds=0.5, timeout=1.0),
        )
        m.variable(
            "bufdaemonproc", self._threads["bufdaemon"].process, static=m.osreldate < 1000000
        )
        if m.osreldate >= 1200000:
            self._add(
                "bufspacedaemon-0",
                "bufdaemon",
                ("bufspace_daemon",),
                (),
                lambda t: t.sleeps(m.bufs.bdomain.at("bd_running"), "-", seconds=0.5, timeout=1.0),
            )
        m.variable("vnlruproc_sig", 0, size=4, static=True)
        self._add(
            "vnlru",
            "",
            ("vnlru_proc",),
            (),
            lambda t: t.sleeps(t.process, "vlruwt", seconds=0.5, timeout=1.0),
        )
        m.variable("vnlruproc", self._threads["vnlru"].process, static=True)
        if self.modern:
            wakeup = m.locks.cv("syncer", symbol="sync_wakeup")
            self._add(
                "syncer",
                "",
                ("sched_sync",),
                (),
                lambda t: wakeup.waited_by(t, seconds=0.5, timeout=1.0),
            )
        else:
            m.variable("lbolt", 0, size=4)
            self._add(
                "syncer",
                "",
                ("sched_sync",),
                (),
                lambda t: t.sleeps(m.address_of("lbolt"), "syncer", seconds=0.5),
            )

    def _interrupts(self) -> None:
        m = self.machine
        names = (
            ("swi4: clock", "swi1: net", "irq14: ata0")
            if self.modern
            else ("swi4: clock sio", "swi1: net", "irq14: ata0")
        )
        for name in names:
            self._add(name, "intr", (), (), lambda t: t.waits_for_interrupt())
        queue = m.take(256, "kmem", 64)
        self._add(
            "thread taskq",
            "kernel",
            ("taskqueue_thread_loop",),
            (),
            lambda t: t.sleeps(queue, "-", seconds=20.0),
        )
