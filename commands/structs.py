"""structs: the layouts wchan reads a kernel with, and the tool that makes and checks them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from commands import Needs
from plugin.errors import UsageError
from plugin.render.report import Report
from plugin.render.structs import list_structs, show
from plugin.session import Kernel

if TYPE_CHECKING:
    pass

# What only the shell needs is imported where it is needed: this module is loaded
# with every command's name and help.

HELP = "which layouts are in use; in the shell also generate, add, check, diff, import"
EXAMPLE = "structs show bio\nstructs list"
FORMS = ("list", "show bio")
COMPLETES = ("structs",)
NEEDS = Needs(layouts=False)


# In a session


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("list", "show"), help="what to do")
    parser.add_argument("struct", nargs="*", metavar="STRUCT", help="of show: the structs")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The layouts of the kernel at hand."""
    from plugin.structs.making.tool import known_names

    sources = kernel.layouts.sources
    if args.action == "show":
        if not args.struct:
            raise UsageError("structs show: which struct?")
        return show([(name, kernel.layouts[name]) for name in args.struct], kernel.layouts.name)
    report = Report({"layouts": kernel.layouts.name, "structs": []})
    report.text(f"Layouts of this kernel: {', then '.join(source.name for source in sources)}.")
    list_structs(report, known_names(*sources), kernel.layouts.get)
    return report
