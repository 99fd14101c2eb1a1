"""kmsgbuf: the kernel message buffer and the panic string."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.captures.machine import TextKernel
from plugin.kernel.msgbuf import message_buffer
from plugin.render import captures
from plugin.render.report import Report
from plugin.session import Kernel

HELP = "the kernel message buffer and the panic string"
EXAMPLE = "kmsgbuf --limit 50"
FORMS = ("",)
NEEDS = Needs(symbols=("msgbufp",), text=True, layouts=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    if isinstance(kernel, TextKernel):
        return captures.messages(kernel, args.limit)
    text = message_buffer(kernel)
    lines = text.splitlines()
    report = Report({"panic": kernel.panicstr, "version": kernel.facts.version, "text": text})
    if kernel.panicstr:
        report.text(f"panic: {kernel.panicstr}")
    # dmesg(8) habit: the newest lines are the ones wanted, so --limit counts from the end.
    report.pre(*(lines[-args.limit :] if args.limit else lines))
    return report
