"""klocks: the contended locks of the machine, or one lock decoded."""

from __future__ import annotations

import argparse

from commands import Needs, number
from plugin.captures.machine import TextKernel
from plugin.errors import WchanError
from plugin.judge.locks import contended_at
from plugin.render import captures
from plugin.render.heldlocks import all_locks, locked_bufs, locked_vnodes
from plugin.render.klocks import every_lock, one_lock
from plugin.render.report import Report
from plugin.session import Kernel

HELP = (
    "every contended lock, its owners and waiters; one lock decoded; every held lock that "
    "anything tells of, locked vnodes, locked bufs"
)
EXAMPLE = "klocks 0xfffff80002cf03f0"
FORMS = ("", "--all", "--vnodes", "--bufs")
NEEDS = Needs(symbols=("allproc",), structs=("thread", "lock_object"), text=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("address", nargs="?", type=number, help="a lock, or the vnode it lies in")
    shape.add_argument("--all", action="store_true", help="every held lock that anything tells of")
    shape.add_argument("--vnodes", action="store_true", help="locked vnodes (DDB's lockedvnods)")
    shape.add_argument("--bufs", action="store_true", help="locked bufs (DDB's lockedbufs)")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    if isinstance(kernel, TextKernel):
        return captures.locks(kernel, args.address, every=args.all)
    if args.all:
        return all_locks(kernel)
    if args.vnodes:
        return locked_vnodes(kernel)
    if args.bufs:
        return locked_bufs(kernel)
    if args.address is None:
        return every_lock(kernel)
    entry = contended_at(kernel, args.address)
    if entry is None:
        raise WchanError(f"there is no lock at {args.address:#x} (no initialized lock_object)")
    return one_lock(kernel, entry)
