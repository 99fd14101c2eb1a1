"""bioq: every bio on GEOM's queues, every other outstanding bio, and where each one is."""

from __future__ import annotations

import argparse
from typing import Union

from commands import Needs
from plugin.errors import UsageError
from plugin.judge.geom_io import (
    outstanding_by_address,
)
from plugin.kernel.bio import (
    GEOM_QUEUES,
    Bio,
    BioQueue,
    g_bioqs,
    is_queue_head,
    queue_at,
)
from plugin.render.bioq import everything, one_bio, one_queue
from plugin.render.report import Report
from plugin.session import Kernel

HELP = (
    "each bio queued, at a device, done but not delivered, or lost; from whom, for whom, since when"
)
EXAMPLE = "bioq down --limit 20"
FORMS = ("", "down")
NEEDS = Needs(symbols=("g_bio_run_down",), structs=("bio", "g_bioq"))

_SHORT = {"down": "g_bio_run_down", "up": "g_bio_run_up", "task": "g_bio_run_task"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "queue",
        nargs="?",
        metavar="down|up|ADDRESS",
        help="one queue only: g_bio_run_down, g_bio_run_up, or the head at ADDRESS "
        "(g_bioq, bio_queue_head or a plain tail queue); a bio's address shows that bio",
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    if args.queue is None:
        return everything(kernel)
    found = _named(kernel, args.queue)
    return one_bio(kernel, found) if isinstance(found, Bio) else one_queue(kernel, found)


def _named(kernel: Kernel, wanted: str) -> Union[BioQueue, Bio]:
    name = _SHORT.get(wanted, wanted)
    for queue in g_bioqs(kernel):
        if queue.name == name:
            return queue
    if name in GEOM_QUEUES:
        raise UsageError(f"this kernel has no {name}")
    symbol = kernel.symbol(wanted)
    try:
        at = symbol.address if symbol else int(wanted, 0)
    except ValueError:
        raise UsageError(f"{wanted!r} is no queue: give down, up or an address") from None
    if at in outstanding_by_address(kernel) and not is_queue_head(kernel, at):
        return outstanding_by_address(kernel)[at].bio
    queue = queue_at(kernel, at)
    # A broken queue must still be shown, garbage must not: its bios have commands.
    genuine = queue.kind == "g_bioq" or is_queue_head(kernel, at)
    known = kernel.layouts.table("bio_cmd").values()
    if not genuine and not (queue.bios and all(bio.cmd in known for bio in queue.bios)):
        raise UsageError(f"there is no queue of bios at {at:#x}")
    return queue
