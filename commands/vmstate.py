"""vmstate: free pages and who waits for them, the daemons, swap, buffers, arenas, zones."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.captures.machine import TextKernel
from plugin.render import captures
from plugin.render.report import Report
from plugin.render.vmstate import vmstate
from plugin.session import Kernel

HELP = "free pages, thresholds, waiters, page daemon and laundry, swap, buffers, arenas, UMA zones"
EXAMPLE = "vmstate\nvmstate --zones"
FORMS = ("",)
NEEDS = Needs(text=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--zones", action="store_true", help="every UMA zone, not the top ones")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    if isinstance(kernel, TextKernel):
        return captures.memory(kernel)
    return vmstate(kernel, every_zone=args.zones)
