"""Arguments and failures as every host meets them: text and one line, never an exit."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn, Optional

from plugin.errors import UsageError, WchanError


class HelpShown(Exception):
    """Raised instead of SystemExit once --help or --version has its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the process it may be a guest in."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; try {self.prog} --help")

    def print_help(self, file: Any = None) -> NoReturn:
        raise HelpShown(self.format_help())

    def _print_message(self, message: str, file: Any = None) -> None:
        # What --version prints before it would leave.
        raise HelpShown(message)

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        raise UsageError((message or "").strip() or f"{self.prog}: stopped")


def told(name: str, error: Exception) -> str:
    """The line that tells the user of ``name`` what went wrong.

    An error that is not wchan's own is a defect, and is raised again under WCHAN_DEBUG.
    """
    if isinstance(error, WchanError):
        return str(error) if str(error).startswith(name) else f"{name}: {error}"
    if isinstance(error, RecursionError):
        return f"{name}: gave up, structures are nested too deeply"
    if isinstance(error, MemoryError):
        return f"{name}: gave up, this machine has not enough memory for it"
    if isinstance(error, ModuleNotFoundError):
        version = ".".join(str(part) for part in sys.version_info[:2])
        return (
            f"{name}: this Python ({version}) has no module {error.name!r}; install.sh sets wchan "
            "up with all it needs, or: pip install tabulate PyYAML"
        )
    if os.environ.get("WCHAN_DEBUG"):
        raise error
    return (
        f"{name}: internal error ({type(error).__name__}: {error}); "
        "set WCHAN_DEBUG=1 for the traceback and report it"
    )
