"""The shell entry: ``wchan [options] VMCORE COMMAND ...`` and the shell-only subcommands."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import signal
import sys
import textwrap
from contextlib import ExitStack, suppress
from typing import (
    TYPE_CHECKING,
    Callable,
    Dict,
    List,
    Optional,
    Sequence,
    Tuple,
)

import commands
from plugin import interrupt
from plugin.errors import EXIT_FAILED, EXIT_OK, UsageError, WchanError
from plugin.hosts.arguments import HelpShown, Parser, told
from plugin.hosts.progress import Progress
from plugin.hosts.signals import Left, leaving
from plugin.version import VERSION
from plugin.words import did_you_mean

if TYPE_CHECKING:
    from plugin.session import Kernel

#: options before the dump that take a value
#: before the address of a machine's gdb stub, in place of a dump
REMOTE = "remote:"
_WITH_VALUE = ("-k", "--kernel", "--key", "--structs", "--sysroot")
#: The command that a dump without one is asked.
DEFAULT = "why-stuck"
#: Subcommands of the shell alone: module, function (argv -> exit status), what it does.
SHELL: Dict[str, Tuple[str, str, str]] = {
    "lldb": (
        "plugin.hosts.launch",
        "lldb_main",
        "open the dump in lldb, threads and commands loaded",
    ),
    "gdb": ("plugin.hosts.launch", "gdb_main", "open the dump in gdb, threads and commands loaded"),
    "serve": (
        "plugin.hosts.launch",
        "serve_main",
        "serve the dump to a debugger (remote protocol)",
    ),
    "structs": ("plugin.hosts.structs", "main", "list, show, generate, check and compare layouts"),
    "batch": ("plugin.hosts.batch", "main", "why-stuck over many cores and captures, grouped"),
    "capsule": (
        "plugin.hosts.capsule",
        "main",
        "a dump reduced to what the reports read, for a bug report",
    ),
    "known": ("plugin.hosts.known", "main", "diagnosed public bugs: list, show, search"),
    "demo": ("plugin.hosts.demo", "main", "explain an embedded storage deadlock"),
}


class _Parser(Parser):
    def format_help(self) -> str:
        # Naming the commands loads them all: for those who ask, not at every start.
        self.epilog = _epilog()
        return super().format_help()


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog="wchan",
        usage="wchan [-k KERNEL] [--force] [--structs FILE] [--sysroot DIR]\n"
        "             VMCORE [COMMAND ...]\n"
        "       wchan " + "|".join(SHELL) + " ...",
        description="Ask a stuck FreeBSD kernel why.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"wchan {VERSION}")
    core_options(made)
    made.add_argument(
        "vmcore",
        metavar="VMCORE",
        help="a FreeBSD kernel dump (.zst, .gz too), text, or remote:HOST:PORT, remote:/dev/ttyU0 "
        "for a stopped machine's gdb stub (-k names its kernel)",
    )
    made.add_argument("command", metavar="COMMAND", help="see below")
    made.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return made


def _epilog() -> str:
    lines = ["commands (each has --help, --json, --limit, --verbose, -o):"]
    lines += [_line(name, commands.load(name).HELP) for name in commands.NAMES]
    lines += ["", "without a dump, or with it first among their own arguments:"]
    lines += [_line(name, help_) for name, (_, _, help_) in SHELL.items()]
    return "\n".join(lines)


def _line(name: str, help_: str) -> str:
    return textwrap.fill(help_, 79, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14)


def core_options(to: argparse.ArgumentParser) -> None:
    """The options that say how a dump is opened; the launchers have them too."""
    to.add_argument("-k", "--kernel", metavar="KERNEL", help="the kernel file that made the dump")
    to.add_argument(
        "--force", action="store_true", help="go on with a kernel that does not match the dump"
    )
    to.add_argument(
        "--key", metavar="FILE", help="the private key that an encrypted dump was made for"
    )
    to.add_argument("--structs", metavar="FILE", help="struct layouts that take precedence")
    to.add_argument(
        "--sysroot", metavar="DIR", help="holds that machine's files (boot/kernel/*.ko)"
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command line; returns the exit status (0, 1 or 3)."""
    words = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # While modules are loaded Ctrl-C ends the process without a word (__main__.py).
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with leaving():
            status = _main(words)
        sys.stdout.flush()
        return status
    except Left as left:
        return 128 + left.number
    except HelpShown as shown:
        sys.stdout.write(shown.text)
        return EXIT_OK
    except KeyboardInterrupt:
        _complain("wchan: interrupted")
    except BrokenPipeError:
        # The reader (head, less) has gone.
        _drop_output()
    except OSError as error:
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"wchan: {where}{error.strerror or error}")
    except Exception as error:
        _complain(told("wchan", error))
    return EXIT_FAILED


def _prepare_streams() -> None:
    """Make what is closed a sink, and names in any script printable in any locale."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by whoever called: Python has no stream then, not one that fails.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Keep the interpreter from failing once more when it flushes what could not be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    sys.stderr.write(text.rstrip("\n") + "\n")


def _main(words: List[str]) -> int:
    if words and words[0] in SHELL:
        module, function, _ = SHELL[words[0]]
        run: Callable[[List[str]], int] = getattr(importlib.import_module(module), function)
        return run(words[1:])
    if not words:
        return _offer()
    words = _with_command(words)
    if words[0] in commands.NAMES and not os.path.exists(words[0]):
        raise UsageError(f"wchan: the dump comes first: wchan VMCORE {words[0]} ...")
    files = _leading_files(words)
    args = parser().parse_args(words[max(len(files) - 1, 0) :])
    args.files = files or [args.vmcore]
    if args.command not in commands.NAMES:
        raise UsageError(
            f"no command {args.command!r}{did_you_mean(args.command, commands.NAMES)}; "
            f"there are: {', '.join(commands.NAMES)}"
        )
    from plugin.hosts.runner import run_command

    progress = Progress(sys.stderr)

    def write(text: str) -> None:
        progress.clear()
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            _drop_output()
            raise WchanError(f"cannot write the report: {error.strerror}") from None

    def complain(text: str) -> None:
        progress.clear()
        _complain(text)

    with ExitStack() as until_done:

        def kernel() -> Kernel:
            opened = _open(args, progress)
            # Only now: what opens a dump does not ask whether to stop.
            until_done.enter_context(interrupt.caught())
            return opened

        return run_command(
            args.command,
            args.arguments,
            kernel,
            write,
            complain,
            width=shutil.get_terminal_size((80, 24)).columns,
            colour=_in_colour(),
        )


def _in_colour() -> bool:
    """True on a terminal that has colours, unless NO_COLOR (https://no-color.org) is set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return sys.stdout.isatty() and not plain


def _offer() -> int:
    """Nothing was asked: the help, and the dump that may be meant."""
    from plugin.opening.dumps import CRASH, dumps_in

    sys.stdout.write(parser().format_help())
    newest = next(iter(dumps_in(os.curdir) or dumps_in(CRASH)), None)
    if newest is not None:
        sys.stdout.write(f"\nthe newest dump here: wchan {shlex.quote(os.path.normpath(newest))}\n")
    return EXIT_FAILED


def _with_command(words: List[str]) -> List[str]:
    """A dump alone asks why the machine is stuck; a folder means its newest dump."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        at += 2 if words[at] in _WITH_VALUE else 1
    if at >= len(words):
        return words
    words = list(words)
    if os.path.isdir(words[at]):
        from plugin.opening.dumps import newest_dump

        words[at] = newest_dump(words[at])
        _complain(f"wchan: {words[at]} is the newest dump there")
    end = at + 1
    while end < len(words) and words[end] not in commands.NAMES and os.path.isfile(words[end]):
        end += 1
    if end == len(words) or (words[end].startswith("-") and not _help(words[end:])):
        words.insert(end, DEFAULT)
    return words


def _help(words: Sequence[str]) -> bool:
    return words[0] in ("-h", "--help", "--version") or any(w in commands.NAMES for w in words)


def _leading_files(words: Sequence[str]) -> List[str]:
    """The files before the command: one dump, or the texts that tell of one machine."""
    for number, word in enumerate(words):
        if word in commands.NAMES:
            return list(words[:number])
        if word != "-" and (word.startswith("-") or not os.path.exists(word)):
            break
    return []


def _open_remote(args: argparse.Namespace, progress: Progress) -> Kernel:
    from plugin.opening import open_target
    from plugin.opening.remote import open_remote

    target, notes = open_remote(
        args.vmcore[len(REMOTE) :],
        args.kernel,
        force=args.force,
        say=lambda text: _complain(f"wchan: {text}"),
        progress=progress,
    )
    bare = not commands.load(args.command).NEEDS.layouts
    kernel = open_target(
        target,
        structs=args.structs,
        force=args.force,
        notes=notes,
        sysroot=args.sysroot,
        bare=bare,
    )
    kernel.progress = progress
    return kernel


def _open(args: argparse.Namespace, progress: Progress) -> Kernel:
    if args.vmcore.startswith(REMOTE):
        return _open_remote(args, progress)
    from plugin.captures.lines import looks_like_text

    if looks_like_text(args.vmcore):
        from plugin.captures.machine import TextKernel
        from plugin.captures.reader import read_one

        return TextKernel(read_one(args.files), args.files)
    if len(args.files) > 1:
        raise UsageError(f"wchan: {args.vmcore} is no text: one dump at a time")
    from plugin.opening import open_core

    kernel = open_core(
        args.vmcore,
        args.kernel,
        force=args.force,
        structs=args.structs,
        sysroot=args.sysroot,
        key=args.key,
        progress=progress.spooling,
        bare=not commands.load(args.command).NEEDS.layouts,
    )
    kernel.progress = progress
    return kernel


if __name__ == "__main__":
    sys.exit(main())
