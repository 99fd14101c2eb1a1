"""Volumes of ZFS: a zvol_state, its provider, its thread or task queue, and what they do.

Mirrors zvol.c (9.3 to 12.x) and os/freebsd/zfs/zvol_os.c (13.0 on): a queue and a thread of
its own to 14.x, task queues that all volumes share from 15.0 on.
"""

from __future__ import annotations

from typing import List, Optional

from tests.forge.builder import Obj
from tests.forge.geom import BIO_READ, Bio, Provider
from tests.forge.procs import Thread
from tests.forge.tasks import TaskQueue
from tests.forge.zfs import Pool

#: td_name's length
_NAME = 19
_OS = "_zso_state._zso_geom"


class Zvol:
    """One volume; ``mode`` "geom" or "dev"."""

    def __init__(self, pool: Pool, name: str = "vol", *, mode: str = "geom") -> None:
        self.pool = pool
        self.machine = m = pool.machine
        self.name = f"{pool.name}/{name}"
        self.obj = m.new("zvol_state", arena="kva", zv_objset=pool.objset, zv_name=self.name)
        self.obj.probe(zv_volmode={"geom": 1, "dev": 2}[mode])
        self.own = self.obj.has("zv_zso")
        self.os: Obj = m.new("zvol_state_os", arena="kva") if self.own else self.obj
        if self.own:
            self.obj["zv_zso"] = self.os
        self.provider: Optional[Provider] = None
        if mode == "geom":
            geom = m.geom.geom("ZFS::ZVOL", f"zfs::zvol::{self.name}")
            self.provider = m.geom.new_provider(geom, f"zvol/{self.name}", 1 << 30, 512)
            self.provider.obj["private"] = self.obj
            self.os[f"{_OS}.zsg_provider" if self.own else "zv_provider"] = self.provider
        self.tasks = m.has("zv_request_task", "ent")
        self.queued: List[Bio] = []
        self.thread: Optional[Thread] = None
        self.queue: Optional[TaskQueue] = None
        self._listed()
        if self.tasks:
            self.queue = TaskQueue(m, "zvol_tq-0")
        elif mode == "geom":
            calls = ("zvol_geom_worker", "fork_exit")
            self.thread = m.procs.kthread(f"zvol {self.name}"[:_NAME], "zfskern", calls)
        m.at_the_end(self._finish)

    def __index__(self) -> int:
        return self.obj.address

    def _listed(self) -> None:
        """On the module's list of volumes, where it has one."""
        m, pool = self.machine, self.pool
        if self.obj.has("zv_next"):
            if m.lookup("zvol_state_list") is None:
                m.symbol("zvol_state_list", "list", static=True)
            pool.append(m.address_of("zvol_state_list"), "zvol_state", "zv_next", self.obj)
        elif self.obj.has("zv_links"):
            if m.lookup("all_zvols") is None:
                m.symbol("all_zvols", size=m.pointer_size, static=True)
            pool.volumes.append(self.obj)
            m.list(m.address_of("all_zvols"), "zv_links", pool.volumes)

    # Its I/O

    def at(self, member: str) -> int:
        """Where its queue or its state lies, by the name it has in zvol_state_geom."""
        return self.os.at(f"{_OS}.zsg_{member}" if self.own else f"zv_{member}")

    def asked(self, seconds: float = 60.0) -> Bio:
        """A read of the volume by somebody above it."""
        assert self.provider is not None
        return self.machine.geom.request(
            self.provider.consumers[0], BIO_READ, 4096, 4096, seconds=seconds
        )

    def waits(self, bio: Bio) -> Bio:
        """On the volume's queue, or a task that waits its turn."""
        if self.queue is not None:
            self.queue.queued.append(self._task(bio))
        else:
            self.queued.append(bio)
        return bio

    def done_by(self, bio: Bio, worker: int = 0) -> Thread:
        """The volume's thread, or a worker of the task queue, has it in hand."""
        if self.queue is not None:
            self.queue.run("zvol_strategy_task", worker, self._task(bio))
            return self.queue.workers[worker]
        assert self.thread is not None
        self.thread.call("zvol_geom_bio_strategy")
        self.pool.holds(self.thread, "zvol_geom_bio_strategy", bio)
        return self.thread

    def _task(self, bio: Bio) -> Obj:
        m = self.machine
        request = m.new("zv_request_task", arena="kva")
        request["zvr.zv"] = self.obj
        request["zvr.bio"] = bio
        task = m.view("task", request.at("ent"))
        task["ta_func"] = "taskq_run_ent"
        return task

    def rests(self) -> None:
        """Its thread has nothing to do."""
        assert self.thread is not None
        self.thread.sleeps(self.at("queue"), "zvol:io")

    def _finish(self) -> None:
        if self.provider is not None and not self.tasks:
            m = self.machine
            head = m.view("bio_queue_head", self.at("queue"))
            m.tailq(head.at("queue"), "bio_queue", [bio.obj for bio in self.queued])
