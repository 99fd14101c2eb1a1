"""Runs a command the same way in every host: parse, analyse, render, write.

The host gives the words after the command's name, a way to get the Kernel, and
a function that writes; it gets back an exit status.  Nothing is raised to it but
what it raises itself.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import shlex
import sys
from typing import Any, Callable, List, Optional, Sequence

import commands
from plugin.captures.machine import TextKernel
from plugin.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, UsageError, WchanError
from plugin.findings import Findings
from plugin.hosts.arguments import HelpShown, Parser, told
from plugin.kernel.module_file import untyped
from plugin.render import json as as_json
from plugin.render import text as as_text
from plugin.render.report import Report
from plugin.render.text import escape
from plugin.session import Kernel
from plugin.written import write_file

#: lets what is looked at run for so many seconds
LetRun = Callable[[float], None]
#: Rows of a table shown without --limit.
DEFAULT_LIMIT = 200


def parser_for(name: str) -> argparse.ArgumentParser:
    """The argument parser of a command, with the options that all commands share."""
    command = commands.load(name)
    parser = Parser(
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
    shared.add_argument(
        "--deep",
        action="store_true",
        help="over a remote stub: read all there is, not only what the waits lead to",
    )
    shared.add_argument(
        "--redact",
        action="store_true",
        help="replace names of hosts, users, processes, paths and addresses, each consistently",
    )
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
    let_run: Callable[[], Optional[LetRun]] = lambda: None,
    colour: bool = False,
) -> int:
    """Run one command to its end; returns its exit status (0, 1 or 3).

    ``let_run`` gives what lets the target run for so many seconds; None where it cannot move.

    KeyboardInterrupt ends it with one line and status 1; an error that is not
    wchan's own is reported as a defect, with its traceback under WCHAN_DEBUG.
    """
    # Walks make millions of small tuples and no cycles: collecting them halves the speed.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _run(name, list(argv), get_kernel, write, width, let_run, colour)
    except HelpShown as shown:
        write(shown.text)
        return EXIT_OK
    except KeyboardInterrupt:
        code, said = "interrupted", f"{name}: interrupted"
    except BrokenPipeError:
        raise
    except Exception as error:
        code = error.code if isinstance(error, WchanError) else "defect"
        said = told(name, error)
    finally:
        if collecting:
            gc.enable()
    if "--json" in argv:
        # A program that asked for JSON gets JSON, whatever becomes of it.
        write(as_json.error(name, code, said))
    write_error(escape(said))
    return EXIT_FAILED


def _run(
    name: str,
    argv: List[str],
    get_kernel: Callable[[], Kernel],
    write: Callable[[str], None],
    width: int,
    let_run: Callable[[], Optional[LetRun]],
    colour: bool,
) -> int:
    args = parser_for(name).parse_args(argv)
    kernel = get_kernel()
    kernel.start_command(deep=args.deep)
    args.width = width
    args.earlier = functools.partial(_earlier, kernel)
    args.let_run = functools.partial(_let_run, kernel, let_run)
    command = commands.load(name)
    if isinstance(kernel, TextKernel) and not command.NEEDS.text:
        raise WchanError(f"{name} reads memory, and {kernel.target.description} is text")
    if args.redact:
        kernel = _redacted(kernel, command, args)
    report = command.run(kernel, args)
    for note in untyped(kernel) if not isinstance(kernel, TextKernel) else ():
        kernel.warnings.add("layouts", None, note, partial=False)
    findings = kernel.warnings
    text = render(name, kernel, report, findings, args, width, colour and args.output is None)
    if args.output is not None:
        _write_files(kernel, report, text, args, width)
    else:
        write(text)
    return EXIT_PARTIAL if findings.partial else EXIT_OK


def _earlier(kernel: Kernel, path: str) -> Any:
    from plugin.hosts.moments import earlier

    return earlier(path, kernel)


def _redacted(kernel: Kernel, command: commands.Command, args: argparse.Namespace) -> Kernel:
    from plugin.hosts.redacting import redacted

    # A first run meets the names; what it would write is not written.
    dry = argparse.Namespace(**{**vars(args), "html": None, "sample": None})
    kernel = redacted(kernel, lambda raw: command.run(raw, dry))
    kernel.start_command()
    return kernel


def _let_run(kernel: Kernel, how: Callable[[], Optional[LetRun]], seconds: float) -> None:
    """Let what is looked at run; then nothing of what was read is believed any more."""
    let_run = how()
    if let_run is None and kernel.target.wire is not None:
        raise WchanError(
            f"{kernel.target.description} is let run by a debugger alone: connect gdb or lldb to "
            "it, load wchan there, and ask there for the sample"
        )
    if let_run is None:
        what = "text" if isinstance(kernel, TextKernel) else "a dump"
        raise WchanError(
            f"{kernel.target.description} is {what} and does not move: name an earlier one of the "
            "same boot with --since"
        )
    let_run(seconds)
    if kernel.target.wire is not None:
        kernel.target.wire.forget()
    kernel.forget()
    kernel.start_command()


def _write_files(
    kernel: Kernel, report: Report, text: str, args: argparse.Namespace, width: int
) -> None:
    """The report into the file named; one that has parts into a folder, each part by itself."""
    files = {args.output: text}
    if report.parts and (os.path.isdir(args.output) or args.output.endswith(os.sep)):
        whole = "report.json" if args.json else "report.txt"
        files = {os.path.join(args.output, whole): text}
        for name, part in report.parts:
            path = os.path.join(args.output, f"{name}.txt")
            files[path] = as_text.render(part, Findings(), width=width, verbose=args.verbose)
    if len(files) > 1:
        try:
            os.makedirs(args.output, mode=0o700, exist_ok=True)
        except OSError as error:
            raise WchanError(f"cannot write {args.output}: {error.strerror}") from None
    for path, content in files.items():
        write_file(path, content, kernel.target.files)


def render(
    name: str,
    kernel: Optional[Kernel],
    report: Report,
    findings: Findings,
    args: argparse.Namespace,
    width: int,
    colour: bool = False,
) -> str:
    """The report as the user asked for it: JSON or text."""
    if args.json:
        return as_json.render(name, kernel, report, findings)
    limit = DEFAULT_LIMIT if args.limit is None else args.limit or None
    text = as_text.render(
        report, findings, width=width, limit=limit, verbose=args.verbose, colour=colour
    )
    if report.raw is not None:
        sys.stderr.write(as_text.warnings(findings, args.verbose))
    return text
