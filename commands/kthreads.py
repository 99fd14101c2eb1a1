"""kthreads: every process and thread as DDB's ps prints them, with wait age."""

from __future__ import annotations

import argparse
import functools

from commands import Needs
from plugin.captures.machine import TextKernel
from plugin.kernel.proc import Thread, threads
from plugin.kernel.stack import backtrace
from plugin.render.kthreads import cpus, grouped_by_stack, ps
from plugin.render.report import Report
from plugin.session import Kernel

HELP = (
    "every thread as DDB's ps shows it, with the age of its wait; identical stacks grouped; "
    "what each CPU runs"
)
EXAMPLE = "kthreads --stacks --wmesg biord"
FORMS = ("", "--stacks", "--cpus")
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
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--stacks", action="store_true", help="group the threads by their stack and show it"
    )
    shape.add_argument("--cpus", action="store_true", help="what each CPU runs (DDB's allpcpu)")
    parser.add_argument(
        "--state",
        choices=STATES,
        metavar="STATE",
        help=f"only threads in this state: {', '.join(STATES)}",
    )
    parser.add_argument("--wmesg", metavar="W", help="only threads with this wait message")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    text = kernel if isinstance(kernel, TextKernel) else None
    every = text.threads if text is not None else threads(kernel)
    found = [thread for thread in every if _wanted(thread, args)]
    if args.cpus and text is None:
        return cpus(kernel, found)
    if args.stacks:
        stack = text.stack if text is not None else functools.partial(backtrace, kernel)
        return grouped_by_stack(found, stack)
    return ps(kernel, found, verbose=args.verbose)


def _wanted(thread: Thread, args: argparse.Namespace) -> bool:
    if args.state and thread.state != args.state:
        return False
    return not args.wmesg or (thread.wmesg or "").lstrip("*") == args.wmesg.lstrip("*")
