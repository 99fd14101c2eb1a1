"""mounts: every mount, what keeps it from being used, and who waits for it."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.mounts import mounts
from plugin.render.report import Report
from plugin.session import Kernel

HELP = (
    "mounts: flags, references, writers, who suspended or unmounts one, who waits; "
    "of NFS the server and its unanswered requests; of nfsd its threads"
)
EXAMPLE = "mounts\nmounts /home"
FORMS = ("",)
COMPLETES = ("mounts",)
NEEDS = Needs(symbols=("mountlist",), structs=("mount", "thread"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "mount", nargs="?", help="only this: mounted where, or what; or its address"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    return mounts(kernel, args.mount)
