"""modules: what is loaded beside the kernel, and where its symbols and types come from."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.modules import linked
from plugin.render.report import Report
from plugin.session import Kernel

HELP = (
    "what is loaded beside the kernel: address, size, references; where symbols and types come "
    "from (memory, a .ko beside the kernel or under --sysroot), files of another build refused"
)
EXAMPLE = "modules\nmodules --json"
FORMS = ("",)
NEEDS = Needs()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    del args
    return linked(kernel)
