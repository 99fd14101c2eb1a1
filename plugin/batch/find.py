"""Cores and captures below a path, told by what they hold; kernels, told the same way."""

from __future__ import annotations

import os
from typing import Iterable, Iterator, List

from plugin.captures.lines import looks_like_text
from plugin.errors import WchanError
from plugin.vmcore.capsule import MAGIC as CAPSULE

#: first bytes of files that are neither core nor capture
_OTHERS = (b"\x89PNG", b"GIF8", b"%PDF", b"PK\x03\x04", b"{", b"<!DOCTYPE", b"<html", b"<?xml")
_ET_CORE = 4
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
#: of a text, as much as shows whether anything in it is a listing
_PEEK = 1 << 18
_LISTINGS = (
    b"db> ", b"db:", b"Tracing ", b"chain 1:", b"KSTACK", b"wmesg", b"MWCHAN", b"kgdb)", b"lldb)",
    b"KDB: ", b"panic: ", b"PID USERNAME",
)  # fmt: skip


def inputs(paths: Iterable[str]) -> List[str]:
    """Every core and capture that the paths name or hold, each once, in order.

    A file that is named is taken as it is; of a folder's files those that look like one.
    WchanError for a path that does not exist.
    """
    found: List[str] = []
    seen = set()
    for path in paths:
        if not os.path.exists(path):
            raise WchanError(f"no file or folder {path}")
        for each in _files(path) if os.path.isdir(path) else [path]:
            real = os.path.realpath(each)
            if real not in seen and (each == path or _is_input(each)):
                seen.add(real)
                found.append(os.path.abspath(each))
    return found


def kernels(folder: str) -> List[str]:
    """ELF files below a folder that are no core: kernels to try, in order."""
    return [path for path in _files(folder) if _elf_type(path) not in (0, _ET_CORE)]


def _files(folder: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(root, name)
            if not name.startswith(".") and os.path.isfile(path):
                yield path


def _head(path: str, size: int = 64) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return b""


def _elf_type(path: str) -> int:
    """e_type of an ELF file, 0 where it is none."""
    head = _head(path)
    if not head.startswith(b"\x7fELF") or len(head) < 18:
        return 0
    return int.from_bytes(head[16:18], "little" if head[5] == 1 else "big")


def _is_input(path: str) -> bool:
    head = _head(path)
    if not head or head.startswith(_OTHERS):
        return False
    if head.startswith(b"\x7fELF"):
        return _elf_type(path) == _ET_CORE
    if head.startswith((b"minidump", CAPSULE)) or b"FreeBSD Kernel Dump" in head:
        return True
    if head.startswith(_PACKED):
        # What is inside is told when it is opened; a packed kernel or module is none.
        name = os.path.basename(path)
        return not name.startswith("kernel") and ".ko" not in name
    if looks_like_text(path):
        peek = _head(path, _PEEK)
        return peek[257:262] == b"ustar" or any(mark in peek for mark in _LISTINGS)
    name = os.path.basename(path)
    return name.startswith(("vmcore", "livecore")) or name.endswith(".core")
