"""zfs: pools, their transaction groups, what their devices owe, and who waits."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.report import Report
from plugin.render.zfs import pools
from plugin.session import Kernel

HELP = (
    "ZFS pools: state and suspension, txg numbers and who holds them, zios at each vdev by age "
    "and priority, who waits for what"
)
EXAMPLE = "zfs tank"
FORMS = ("",)
COMPLETES = ("pools",)
NEEDS = Needs(symbols=("allproc",), structs=("thread",))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", nargs="?", help="only this pool")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    return pools(kernel, args.pool)
