"""The debugger commands, one module each: arguments in, report out, nothing else.

A module ``commands/<name>.py`` (dashes become underscores) has ``HELP`` (one
line), ``EXAMPLE``, ``add_arguments(parser)`` and ``run(kernel, args) -> Report``.
It is found by its name in NAMES, in the order in which they are listed to users.
"""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from plugin.render.report import Report
    from plugin.session import Kernel

NAMES = (
    "bioq",
    "klocks",
    "kmsgbuf",
    "kprint",
    "kthreads",
    "pbuf",
    "provider",
    "structs",
    "vmpage",
    "vmstate",
    "why-stuck",
)


class Command(Protocol):
    """What every module here provides."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, kernel: Kernel, args: argparse.Namespace) -> Report: ...


def load(name: str) -> Command:
    """The module of a command; KeyError if there is none of that name."""
    if name not in NAMES:
        raise KeyError(name)
    module = importlib.import_module("commands." + name.replace("-", "_"))
    return module
