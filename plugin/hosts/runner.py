"""Runs a command the same way in every host: parse, analyse, render, write.

The host gives the words after the command's name, a way to get the Kernel, and
a function that writes; it gets back an exit status.  Nothing is raised to it but
what it raises itself.
"""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
from typing import Any, Callable, List, NoReturn, Optional, Sequence

import commands
from plugin.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, UsageError, WchanError
from plugin.findings import Findings
from plugin.render.report import Report
from plugin.session import Kernel

#: Rows of a table shown without --limit.
DEFAULT_LIMIT = 200


class _HelpShown(Exception):
    """Raised instead of SystemExit once --help has its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the process it is a guest in."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; try {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        raise _HelpShown(self.format_help())

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        raise UsageError((message or "").strip() or f"{self.prog}: stopped")


def parser_for(name: str) -> argparse.ArgumentParser:
    """The argument parser of a command, with the options that all commands share."""
    command = commands.load(name)
    parser = _Parser(
        prog=name,
        description=command.HELP,
        epilog="example:\n  " + command.EXAMPLE.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    shared = parser.add_argument_group("options of every command")
    shared.add_argument("--json", action="store_true", help="the report as JSON (schema wchan/1)")
    shared.add_argument(
        "--limit",
        type=_limit,
        metavar="N",
        help=f"show at most N rows of a table, 0 for all (default {DEFAULT_LIMIT})",
    )
    shared.add_argument("--verbose", action="store_true", help="show every warning and detail")
    shared.add_argument("-o", "--output", metavar="FILE", help="write to FILE instead")
    return parser


def _limit(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if value < 0:
        raise argparse.ArgumentTypeError("cannot be negative")
    return value


def split(line: str) -> List[str]:
    """A debugger's command line as words, quoted as in a shell."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise UsageError(f"cannot read the arguments: {error}") from None


def run_command(
    name: str,
    argv: Sequence[str],
    get_kernel: Callable[[], Kernel],
    write: Callable[[str], None],
    write_error: Callable[[str], None],
    *,
    width: int = 80,
) -> int:
    """Run one command to its end; returns its exit status (0, 1 or 3).

    KeyboardInterrupt ends it with one line and status 1; an error that is not
    wchan's own is reported as a defect, with its traceback under WCHAN_DEBUG.
    """
    # Walks make millions of small tuples and no cycles: collecting them halves the speed.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _run(name, list(argv), get_kernel, write, width)
    except _HelpShown as shown:
        write(shown.text)
        return EXIT_OK
    except WchanError as error:
        write_error(f"{name}: {error}" if not str(error).startswith(name) else str(error))
    except KeyboardInterrupt:
        write_error(f"{name}: interrupted")
    except BrokenPipeError:
        raise
    except RecursionError:
        write_error(f"{name}: gave up, structures are nested too deeply")
    except MemoryError:
        write_error(f"{name}: gave up, this machine has not enough memory for it")
    except ModuleNotFoundError as error:
        write_error(f"{name}: {missing_module(error)}")
    except Exception as error:
        if os.environ.get("WCHAN_DEBUG"):
            raise
        write_error(
            f"{name}: internal error ({type(error).__name__}: {error}); "
            "set WCHAN_DEBUG=1 for the traceback and report it"
        )
    finally:
        if collecting:
            gc.enable()
    return EXIT_FAILED


def missing_module(error: ModuleNotFoundError) -> str:
    """What to do about a Python without one of the modules that wchan is made with."""
    version = ".".join(str(part) for part in sys.version_info[:2])
    return (
        f"this Python ({version}) has no module {error.name!r}; install.sh sets wchan up with "
        "all it needs, or: pip install tabulate PyYAML"
    )


def _run(
    name: str,
    argv: List[str],
    get_kernel: Callable[[], Kernel],
    write: Callable[[str], None],
    width: int,
) -> int:
    args = parser_for(name).parse_args(argv)
    kernel = get_kernel()
    kernel.start_command()
    args.width = width
    report = commands.load(name).run(kernel, args)
    findings = kernel.warnings
    text = render(name, kernel, report, findings, args, width)
    if args.output is not None:
        _write_files(report, text, args, width)
    else:
        write(text)
    return EXIT_PARTIAL if findings.partial else EXIT_OK


def _write_files(report: Report, text: str, args: argparse.Namespace, width: int) -> None:
    """The report into the file named; one that has parts into a folder, each part by itself."""
    files = {args.output: text}
    if report.parts and (os.path.isdir(args.output) or args.output.endswith(os.sep)):
        whole = "report.json" if args.json else "report.txt"
        files = {os.path.join(args.output, whole): text}
        from plugin.render import text as as_text

        for name, part in report.parts:
            path = os.path.join(args.output, f"{name}.txt")
            files[path] = as_text.render(part, Findings(), width=width, verbose=args.verbose)
    try:
        if len(files) > 1:
            os.makedirs(args.output, exist_ok=True)
        for path, content in files.items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(content)
    except OSError as error:
        raise WchanError(f"cannot write {args.output}: {error.strerror}") from None


def render(
    name: str,
    kernel: Optional[Kernel],
    report: Report,
    findings: Findings,
    args: argparse.Namespace,
    width: int,
) -> str:
    """The report as the user asked for it: JSON or text."""
    if args.json:
        from plugin.render import json as as_json

        return as_json.render(name, kernel, report, findings)
    from plugin.render import text as as_text

    limit = DEFAULT_LIMIT if args.limit is None else args.limit or None
    text = as_text.render(report, findings, width=width, limit=limit, verbose=args.verbose)
    if report.raw is not None:
        sys.stderr.write(as_text.warnings(findings, args.verbose))
    return text
