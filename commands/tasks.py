"""tasks: task queues, what runs on them, what waits, and who drains them."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.report import Report
from plugin.render.tasks import tasks
from plugin.session import Kernel

HELP = (
    "task queues: their workers, the task that each runs and what that does now, since when; "
    "what is queued, and who waits for it to be done"
)
EXAMPLE = "tasks\ntasks 'thread taskq'"
FORMS = ("", "--all")
NEEDS = Needs(symbols=("allproc",), structs=("taskqueue", "thread"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", nargs="?", help="only this: its name or address")
    parser.add_argument("--all", action="store_true", help="those without work too")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    return tasks(kernel, args.queue, every=args.all)
