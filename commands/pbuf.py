"""pbuf: every pool of pager buffers, who waits for one, and what holds those in use."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.pbuf import pbufs
from plugin.render.report import Report
from plugin.session import Kernel

HELP = "pager buffers: each pool's limit, use and waiters, and the I/O behind every one in use"
EXAMPLE = "pbuf\npbuf --json"
NEEDS = Needs(structs=("buf",))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--waited", action="store_true", help="only pools that threads wait for or that are full"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    return pbufs(kernel, waited=args.waited)
