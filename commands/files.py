"""files: what a process has open, or which processes have a file, a mount or a socket open."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.files import files
from plugin.render.report import Report
from plugin.session import Kernel

HELP = (
    "open files of a process, or who has a path, a mount or a vnode open: type, offset, locks, "
    "sockets with their peers, pipes with the processes at the other end"
)
EXAMPLE = "files 1234\nfiles sshd\nfiles /data"
FORMS = ("", "1")
COMPLETES = ("processes",)
NEEDS = Needs(symbols=("allproc",), structs=("proc", "thread", "file", "filedesc"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", help="a pid, a command's name, a path, a mount point, an address"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    return files(kernel, args.what)
