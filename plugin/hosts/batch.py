"""``wchan batch``: why-stuck over a pile of cores and captures, grouped into problems."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any, Callable, Dict, Iterator, List

from plugin.batch import workers
from plugin.batch.find import inputs, kernels
from plugin.batch.signature import nearness
from plugin.batch.store import SUMMARY, Store, groups, read
from plugin.batch.task import Task, report_name
from plugin.batch.where import parse
from plugin.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, UsageError
from plugin.render import batch as shown
from plugin.written import write_file

_NEAR = 0.5


def main(argv: List[str]) -> int:
    """Run or continue a batch; returns the exit status of the worst core."""
    args = _arguments(argv)
    wanted = parse(args.where) if args.where else None
    tasks_of = inputs(args.paths)
    if not tasks_of and not args.paths:
        raise UsageError("batch: name cores, captures or folders that hold them")
    store = Store(args.output)
    try:
        taken = {
            os.path.basename(row["report"])[:-5] for row in store.rows.values() if row["report"]
        }
        tried = kernels(args.kernels) if args.kernels else []
        tasks: List[Task] = []
        for path in tasks_of:
            if store.is_done(path):
                continue
            name = report_name(path, sorted(taken))
            taken.add(name)
            tasks.append(Task(path, os.path.join(store.reports, name + ".json"), tried))
        for done in _work(tasks, args):
            store.add(done)
        rows = [store.rows[path] for path in tasks_of if path in store.rows]
    finally:
        store.close()
    if wanted is not None:
        rows = [row for row in rows if wanted(row)]
    found = groups(rows)
    failed = [row for row in rows if not row.get("signature")]
    old = groups(read(os.path.join(args.diff, SUMMARY))) if args.diff else None
    new = [signature for signature in found if old is not None and signature not in old]
    write_file(
        os.path.join(args.output, "index.html"),
        shown.page(found, failed, _nearest(found), args.output, new),
    )
    if args.json:
        print(json.dumps({"groups": _plain(found), "failed": failed, "new": new}))
    else:
        print("\n".join(shown.lines(found, failed, new)))
    if any(row["status"] not in ("ok", "partial") for row in rows):
        return EXIT_FAILED
    return EXIT_PARTIAL if any(row["status"] == "partial" for row in rows) else EXIT_OK


def _arguments(argv: List[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="wchan batch", description="why-stuck over many cores and captures, grouped."
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="cores, captures, folders of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("-o", "--output", default="wchan-batch", metavar="DIR")
    parser.add_argument("--kernels", metavar="DIR", help="kernels that may have made them")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    parser.add_argument("--memory", type=int, default=4096, metavar="MB", help="for one core")
    parser.add_argument("--where", metavar="TERMS", help="'cause=device and release>=14'")
    parser.add_argument("--diff", metavar="OLD", help="an earlier batch: what is new since")
    parser.add_argument("--dask", metavar="ADDRESS", help="an existing dask.distributed cluster")
    parser.add_argument("--json", action="store_true", help="the groups as JSON")
    return parser.parse_args(argv)


def _work(tasks: List[Task], args: argparse.Namespace) -> Iterator[Dict[str, Any]]:
    if not tasks:
        return
    if args.dask:
        yield from workers.on_dask(tasks, args.dask)
        return
    limits = workers.Limits(args.timeout, args.memory << 20)
    yield from workers.work(tasks, args.jobs, limits, _bar(len(tasks)))


def _bar(total: int) -> Callable[[int], None]:
    """Progress on a terminal: how many of how many; silent elsewhere."""
    if not sys.stderr.isatty():
        return lambda done: None

    def show(done: int) -> None:
        sys.stderr.write(f"\r\033[K{done} of {total}")
        sys.stderr.flush()
        if done == total:
            sys.stderr.write("\r\033[K")

    return show


def _nearest(found: Dict[str, List[Dict[str, Any]]]) -> Dict[str, str]:
    """For a problem of one machine, the group it is most like."""
    larger = [signature for signature, rows in found.items() if len(rows) > 1]
    nearest = {}
    for signature, rows in found.items():
        if len(rows) == 1 and larger:
            best = max(larger, key=lambda other: nearness(signature, other))
            if nearness(signature, best) >= _NEAR:
                nearest[signature] = best
    return nearest


def _plain(found: Dict[str, List[Dict[str, Any]]]) -> List[Dict[str, Any]]:
    return [
        {
            "signature": signature,
            "paths": [row["path"] for row in rows],
            "verdict": rows[0]["verdict"],
        }
        for signature, rows in found.items()
    ]
