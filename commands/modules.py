"""modules: what is loaded beside the kernel, and where its symbols and types come from."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.render.modules import linked
from plugin.render.report import Report
from plugin.session import Kernel

HELP = "loaded modules: address, size, references, where their symbols and types come from"
EXAMPLE = "modules\nmodules --json"
NEEDS = Needs()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    del args
    return linked(kernel)
