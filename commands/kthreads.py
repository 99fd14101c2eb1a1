"""kthreads: every process and thread as DDB's ps prints them, with wait age."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.kernel.proc import Thread, threads
from plugin.render.kthreads import cpus, grouped_by_stack, ps
from plugin.render.report import Report
from plugin.session import Kernel

HELP = "every thread: its state, what it waits for, since when (DDB's ps)"
EXAMPLE = "kthreads --stacks --wmesg biord"
NEEDS = Needs(symbols=("allproc",), structs=("proc", "thread"), text=True)

STATES = (
    "running",
    "runnable",
    "sleeping",
    "locked",
    "suspended",
    "swapped",
    "iwait",
    "inactive",
    "zombie",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stacks", action="store_true", help="group the threads by their stack and show it"
    )
    parser.add_argument("--cpus", action="store_true", help="what each CPU runs (DDB's allpcpu)")
    parser.add_argument("--state", choices=STATES, help="only threads in this state")
    parser.add_argument("--wmesg", metavar="W", help="only threads with this wait message")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    found = [thread for thread in threads(kernel) if _wanted(thread, args)]
    if args.cpus:
        return cpus(kernel, found)
    if args.stacks:
        return grouped_by_stack(kernel, found)
    return ps(kernel, found, verbose=args.verbose)


def _wanted(thread: Thread, args: argparse.Namespace) -> bool:
    if args.state and thread.state != args.state:
        return False
    return not args.wmesg or (thread.wmesg or "").lstrip("*") == args.wmesg.lstrip("*")
