"""pbuf: every pool of pager buffers, who waits for one, and what holds those in use."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.pbuf import pbufs
from plugin.render.report import Report
from plugin.session import Kernel

HELP = "every pool of pager buffers: limit, in use, free, who waits; the I/O behind each buffer"
EXAMPLE = "pbuf\npbuf --json"
FORMS = ("",)
NEEDS = Needs(structs=("buf",))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--waited", action="store_true", help="only pools that threads wait for or that are full"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    return pbufs(kernel, waited=args.waited)
