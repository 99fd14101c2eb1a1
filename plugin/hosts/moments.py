"""The earlier moment that ``why-stuck --since`` names: a core, a capsule, a report, or text."""

from __future__ import annotations

import json

from plugin.captures.lines import looks_like_text
from plugin.captures.machine import TextKernel
from plugin.captures.reader import read_one
from plugin.errors import KernelMissing, UsageError
from plugin.opening import open_core
from plugin.session import Kernel
from plugin.vmcore.elf import ElfFile
from plugin.waits.moments import Moment, from_json, moment

#: a report longer than any
_MOST = 1 << 30


def earlier(path: str, kernel: Kernel) -> Moment:
    """The moment in a file; a core's kernel is looked for, else it is that of ``kernel``."""
    if _is_json(path):
        with open(path, encoding="utf-8") as file:
            try:
                report = json.loads(file.read(_MOST))
            except (ValueError, RecursionError):
                raise UsageError(f"{path} is no JSON") from None
        return from_json(report, path)
    if looks_like_text(path):
        return moment(TextKernel(read_one([path]), [path]))
    return moment(_open(path, kernel))


def _is_json(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _open(path: str, kernel: Kernel) -> Kernel:
    try:
        return open_core(path)
    except KernelMissing:
        # Of one boot, it is of the same kernel, which we have.
        for file in kernel.target.files:
            with open(file, "rb") as stream:
                if stream.read(4) != b"\x7fELF":
                    continue
            with ElfFile(file) as elf:
                if elf.has_symbols:
                    return open_core(path, file)
        raise
