"""What is done with one core or capture, wherever the work runs: a report, and a line of it."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from typing import Any, Dict, List, NamedTuple, Sequence

from plugin.batch.signature import signature
from plugin.captures.lines import looks_like_text
from plugin.captures.machine import TextKernel
from plugin.captures.reader import read_one
from plugin.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, WchanError
from plugin.hosts.runner import run_command
from plugin.opening import open_core
from plugin.session import Kernel
from plugin.written import write_file

#: for tests: a file of that name makes its worker hang, or eat memory
HANG, EAT = "WCHAN_BATCH_HANG", "WCHAN_BATCH_EAT"


class Task(NamedTuple):
    """``path`` is read; its report goes to ``report``; ``kernels`` may have made it."""

    path: str
    report: str
    kernels: Sequence[str] = ()


def run(task: Task) -> Dict[str, Any]:
    """Analyse one file; the row of the summary.  Raises nothing but what ends a process."""
    started = time.monotonic()
    row: Dict[str, Any] = {"path": task.path, "report": None, **identity(task.path)}
    _for_tests(task.path)
    written: List[str] = []
    complaints: List[str] = []
    status = run_command(
        "why-stuck",
        ["--json"],
        lambda: _open(task),
        written.append,
        complaints.append,
    )
    row["seconds"] = round(time.monotonic() - started, 3)
    if status == EXIT_FAILED:
        return {**row, "status": "failed", "error": " ".join(complaints), "signature": None}
    text = "".join(written)
    write_file(task.report, text)
    return {
        **row,
        "status": {EXIT_OK: "ok", EXIT_PARTIAL: "partial"}[status],
        "report": task.report,
        **summary(json.loads(text)),
    }


def summary(report: Dict[str, Any]) -> Dict[str, Any]:
    """What a line says of a why-stuck report: who, the verdict, the causes, the signature."""
    kernel, data = report["kernel"], report["data"]
    causes = data["causes"]
    return {
        "release": kernel["release"],
        "arch": kernel["arch"],
        "ident": kernel["ident"],
        "panic": kernel["panic"],
        "verdict": data["verdict"],
        "cause": causes[0]["kind"] if causes else "none",
        "causes": [[cause["kind"], cause["summary"], len(cause["tids"])] for cause in causes[:8]],
        "threads": data["threads"]["total"],
        "stuck": data["threads"]["stuck"],
        "known": [each["id"] for each in data.get("known", ())],
        "signature": signature(report),
    }


def identity(path: str) -> Dict[str, Any]:
    """What tells whether a file is still the one that was read."""
    try:
        found = os.stat(path)
    except OSError:
        return {"size": None, "mtime": None}
    return {"size": found.st_size, "mtime": int(found.st_mtime)}


def _open(task: Task) -> Kernel:
    if looks_like_text(task.path):
        return TextKernel(read_one([task.path]), [task.path])
    try:
        return open_core(task.path)
    except WchanError:
        for kernel in task.kernels:
            with suppress(WchanError):
                return open_core(task.path, kernel)
        raise


def _for_tests(path: str) -> None:
    name = os.path.basename(path)
    if os.environ.get(HANG) == name:
        time.sleep(3600)
    if os.environ.get(EAT) == name:
        hoard = []
        while True:
            hoard.append(bytearray(32 << 20))


def report_name(path: str, taken: Sequence[str]) -> str:
    """The report's file for an input: its path with what no file name holds replaced."""
    name = re.sub(r"[^\w.+-]+", "_", path.strip("/"))[-180:] or "core"
    if name not in taken:
        return name
    number = 2
    while f"{name}~{number}" in taken:
        number += 1
    return f"{name}~{number}"
