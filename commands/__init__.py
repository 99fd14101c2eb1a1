"""The debugger commands, one module each: arguments in, report out, nothing else.

A module ``commands/<name>.py`` (underscores become dashes) is a command in every host by
lying here.  It has what ``Command`` asks for, and its JSON is described in
``docs/schema/<name>.schema.json``: a command with less fails tests/test_contract.py.  What the
README and the manual say of it, and how every host is tested with it, it says itself.
"""

from __future__ import annotations

import argparse
import importlib
import os
from typing import TYPE_CHECKING, List, NamedTuple, Protocol, Tuple

if TYPE_CHECKING:
    from plugin.render.report import Report
    from plugin.session import Kernel


class Needs(NamedTuple):
    """Without what a command has no answer at all.

    ``symbols``: variables of the kernel, one of several where they stand as "a|b".
    ``structs``: structs whose layout must be known.
    ``layouts``: False where it has an answer though no struct's layout is known.
    ``text``: True where a capture (a DDB log, procstat) can stand in for memory.
    """

    symbols: Tuple[str, ...] = ()
    structs: Tuple[str, ...] = ()
    text: bool = False
    layouts: bool = True

    def missing(self, kernel: Kernel) -> List[str]:
        """What this kernel lacks, in words; [] where the command can run."""
        found = [
            f"symbol {name.replace('|', ' or ')}"
            for name in self.symbols
            if not any(kernel.has_symbol(each) for each in name.split("|"))
        ]
        return found + [f"struct {name}" for name in self.structs if name not in kernel.layouts]


class Command(Protocol):
    """What every module here provides.

    ``HELP``: what it answers, without a full stop: for ``--help``, the README and the manual,
    which ``python docs/commands_listed.py`` writes.
    ``EXAMPLE``: command lines for ``--help``.
    ``FORMS``: arguments that any kernel has an answer to, one line for each form whose JSON has
    fields of its own; every host and the contract are tested with them.
    ``COMPLETES``, where it has one: kinds of plugin.hosts.things that its arguments may name.
    """

    HELP: str
    EXAMPLE: str
    FORMS: Tuple[str, ...]
    NEEDS: Needs

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, kernel: Kernel, args: argparse.Namespace) -> Report: ...


def _found() -> Tuple[str, ...]:
    files = os.listdir(os.path.dirname(__file__))
    names = {name[:-3] for name in files if name.endswith(".py") and not name.startswith("_")}
    return tuple(sorted(name.replace("_", "-") for name in names))


#: Every command, as users call it.
NAMES = _found()


def load(name: str) -> Command:
    """The module of a command; KeyError if there is none of that name."""
    if name not in NAMES:
        raise KeyError(name)
    module = importlib.import_module("commands." + name.replace("-", "_"))
    return module


def number(text: str) -> int:
    """An argparse type: a number in C's notation (0x..., decimal)."""
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number or address") from None
