"""One process for each core, forked from this one: warm, isolated, bounded in time and memory."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

from plugin.batch.task import Task, identity, run

#: the row of a worker is a line of at most this many bytes
_MOST = 16 << 20


class Limits(NamedTuple):
    """``seconds`` of wall time and ``bytes`` of address space for one core."""

    seconds: float = 600.0
    bytes: int = 4 << 30


class _Worker(NamedTuple):
    pid: int
    pipe: int
    task: Task
    started: float


def work(
    tasks: Sequence[Task],
    jobs: int,
    limits: Limits,
    tick: Callable[[int], None] = lambda done: None,
) -> Iterator[Dict[str, Any]]:
    """The row of every task, as they end.  A worker that hangs, dies or overruns is a row too."""
    pending = list(reversed(tasks))
    running: Dict[int, _Worker] = {}
    said: Dict[int, bytearray] = {}
    done = 0
    try:
        while pending or running:
            while pending and len(running) < max(jobs, 1):
                worker = _start(pending.pop(), limits)
                running[worker.pipe] = worker
                said[worker.pipe] = bytearray()
            ready, _, _ = select.select(list(running), [], [], 0.2)
            for pipe in ready:
                piece = os.read(pipe, 1 << 16)
                if piece and len(said[pipe]) < _MOST:
                    said[pipe] += piece
                    continue
                done += 1
                yield _ended(running.pop(pipe), bytes(said.pop(pipe)))
            for pipe, worker in list(running.items()):
                if time.monotonic() - worker.started > limits.seconds:
                    _kill(running.pop(pipe))
                    said.pop(pipe)
                    done += 1
                    yield _row(worker, "timeout", f"not done after {limits.seconds:g} s")
            tick(done)
    finally:
        for worker in running.values():
            _kill(worker)


def _start(task: Task, limits: Limits) -> _Worker:
    """Fork a worker that writes its row, in JSON, to a pipe."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(writing)
        return _Worker(pid, reading, task, time.monotonic())
    status = 1
    try:
        os.close(reading)
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Should the parent be killed, this process still ends by itself.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(limits.seconds) + 5)
        _limit(limits)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        # The parent's files, its lock among them, are none of the worker's.
        os.closerange(3, writing)
        os.closerange(writing + 1, 4096)
        left = memoryview(json.dumps(run(task)).encode())
        while left:
            left = left[os.write(writing, left) :]
        status = 0
    except MemoryError:
        status = 12
    finally:
        # No exit handler, no buffer of the parent's: this process was only borrowed.
        os._exit(status)


def _limit(limits: Limits) -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limits.bytes, limits.bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError):
        # A system that grants no such limit (macOS): time still bounds the worker.
        return


def _ended(worker: _Worker, said: bytes) -> Dict[str, Any]:
    os.close(worker.pipe)
    _, status = os.waitpid(worker.pid, 0)
    row: Optional[Dict[str, Any]] = None
    try:
        loaded = json.loads(said) if said else None
        row = loaded if isinstance(loaded, dict) else None
    except ValueError:
        row = None
    if row is not None:
        if row.get("status") == "failed" and "not enough memory" in str(row.get("error")):
            row["status"] = "memory"
        return row
    if os.WIFSIGNALED(status):
        return _row(worker, "crashed", f"ended by signal {os.WTERMSIG(status)}")
    if os.WEXITSTATUS(status) == 12:
        return _row(worker, "memory", "more memory than --memory allows")
    return _row(worker, "crashed", f"ended with status {os.WEXITSTATUS(status)}")


def _row(worker: _Worker, status: str, error: str) -> Dict[str, Any]:
    seconds = round(time.monotonic() - worker.started, 3)
    return {
        "path": worker.task.path,
        "report": None,
        **identity(worker.task.path),
        "seconds": seconds,
        "status": status,
        "error": error,
        "signature": None,
    }


def _kill(worker: _Worker) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(worker.pid, signal.SIGKILL)
            break
        except OSError:
            continue
    os.close(worker.pipe)
    os.waitpid(worker.pid, 0)


def on_dask(tasks: List[Task], address: str) -> Iterator[Dict[str, Any]]:
    """The same rows from a dask.distributed cluster that is there already.

    ModuleNotFoundError where this Python has no ``distributed``.
    """
    import distributed

    connect: Any = distributed.Client
    ended: Any = distributed.as_completed
    with connect(address) as client:
        futures = {client.submit(run, task, pure=False): task for task in tasks}
        for future in ended(futures):
            if future.status == "finished":
                yield future.result()
            else:
                worker = _Worker(0, -1, futures[future], time.monotonic())
                yield _row(worker, "crashed", f"the cluster says: {future.exception()}")
