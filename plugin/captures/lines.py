"""Lines as the machine printed them, out of what consoles, mailers and loggers made of them.

A serial log has CR LF, terminal escapes, ``--More--`` and the pager's erasures; conserver,
screen, syslog and dmesg put a time before each line; a mail or Bugzilla quotes them.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
import tarfile
import zlib
from typing import IO, Iterator, List, NamedTuple, Optional, Tuple, Type

from plugin.captures.model import Source
from plugin.errors import WchanError

#: a line longer than any kernel prints: what is beyond is dropped
LONGEST = 8192

_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_()][0-9A-B]?)"
)
_QUOTE = re.compile(r"^(?:[>|]{1,8} ?)+")
_MORE = re.compile(r"--[Mm]ore--(?:\s*\(?byte \d+\)?)?")
_PREFIX = re.compile(
    r"^(?:"
    r"\[(?=[^\]]*\d:\d)[^\[\]]{5,40}\] ?"  # [2024-05-01 10:11:12], [-- ... --] of conserver
    r"|\[ *\d+\.\d+\] ?"
    r"|[A-Z][a-z]{2} [ 0-3]\d \d\d:\d\d:\d\d (?:\S+ )?(?:kernel: |/?\w+\[\d+\]: )?"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?:? (?:\S+ kernel"
    r"(?:\[\d+\])?: )?"
    r"|\d\d:\d\d:\d\d(?:\.\d+)? "
    r")"
)
_LEVEL = re.compile(r"^<\d{1,3}>")
_MONTHS = frozenset("JFMASOND")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class Line(NamedTuple):
    text: str
    file: str
    number: int

    @property
    def source(self) -> Source:
        return Source(self.file, self.number)


def clean(text: str) -> str:
    """One line, freed of what carried it."""
    if "\x1b" in text:
        text = _ESCAPE.sub("", text)
    if "\r" in text:
        # The pager prints over its prompt: what was written last stands.
        parts = [part for part in text.split("\r") if part.strip()]
        text = parts[-1] if parts else ""
    if "\b" in text:
        text = _backspaced(text)
    if "--" in text and "ore--" in text:
        text = _MORE.sub("", text)
    first = text[:1]
    if first in (">", "|"):
        text = _QUOTE.sub("", text, count=1)
        first = text[:1]
    if first == "[" or first in _MONTHS or first.isdigit():
        match = _PREFIX.match(text)
        if match is not None:
            text = text[match.end() :]
    if text[:1] == "<":
        text = _LEVEL.sub("", text, count=1)
    if not text.isprintable():
        text = _CONTROL.sub(lambda m: "\t" if m[0] == "\t" else "", text)
    return text.rstrip()


def plain_name(name: str) -> str:
    """A command's name without the brackets of a kernel process."""
    name = name.strip()
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def _backspaced(text: str) -> str:
    kept: List[str] = []
    for char in text:
        if char == "\b":
            if kept:
                kept.pop()
        else:
            kept.append(char)
    return "".join(kept)


def read_lines(path: str) -> Iterator[Line]:
    """Cleaned lines of a file, of a compressed one, of a textdump's members; "-" is stdin."""
    if path == "-":
        yield from _lines(sys.stdin.buffer, "-")
        return
    try:
        with open(path, "rb") as file:
            stream = _unpacked(file, path)
            if _is_tar(stream):
                yield from _members(stream, path)
            else:
                yield from _lines(stream, os.path.basename(path))
    except OSError as error:
        raise WchanError(f"cannot read {path}: {error.strerror or error}") from None
    except _damaged() as error:
        raise WchanError(f"{path}: {' '.join(str(error).split())}") from None


def _damaged() -> Tuple[Type[BaseException], ...]:
    """What unpacking raises where the bytes make no sense."""
    zstandard = sys.modules.get("zstandard")
    packed = () if zstandard is None else (zstandard.ZstdError,)
    return (EOFError, zlib.error, tarfile.TarError, *packed)


def raw_lines(path: str) -> Iterator[str]:
    """The lines of a file, of a compressed one or a textdump's, as they are but for their ends."""
    for line in read_lines(path):
        yield line.text


def _unpacked(file: IO[bytes], path: str) -> IO[bytes]:
    magic = file.read(4)
    file.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    if magic == b"\x28\xb5\x2f\xfd":
        try:
            import zstandard
        except ImportError:
            raise WchanError(
                f"{path} is compressed with zstd and this Python has no zstandard: unpack it first"
            ) from None
        return io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file))
    return file


def _is_tar(stream: IO[bytes]) -> bool:
    peek = getattr(stream, "peek", None)
    head: bytes = peek(512)[:512] if peek is not None else b""
    return head[257:262] == b"ustar"


def _members(stream: IO[bytes], path: str) -> Iterator[Line]:
    """The members of a textdump, in the order that tells most: version first, ddb.txt last."""
    order = {"version.txt": 0, "config.txt": 1, "panic.txt": 2, "msgbuf.txt": 3, "ddb.txt": 4}
    found: List[Tuple[int, str, bytes]] = []
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            opened = archive.extractfile(member) if member.isfile() else None
            if opened is not None:
                name = os.path.basename(member.name)
                found.append((order.get(name, 5), name, opened.read(256 << 20)))
    for _, name, data in sorted(found, key=lambda item: item[:2]):
        marker = {"panic.txt": "panic: ", "version.txt": ""}.get(name)
        if name == "config.txt":
            continue
        if marker:
            data = marker.encode() + data
        yield from _lines(io.BytesIO(data), f"{os.path.basename(path)}/{name}")


def _lines(stream: IO[bytes], name: str) -> Iterator[Line]:
    number = 0
    while True:
        raw = stream.readline(LONGEST)
        if not raw:
            return
        number += 1
        text = raw.decode("utf-8", "replace")
        while not raw.endswith(b"\n") and len(raw) >= LONGEST:
            raw = stream.readline(LONGEST)
            if not raw:
                break
        yield Line(clean(text.rstrip("\n")), name, number)


def looks_like_text(path: str) -> Optional[bool]:
    """Whether a file is text rather than a dump, by its first bytes; None where unreadable."""
    if path == "-":
        return True
    try:
        with open(path, "rb") as file:
            stream = _unpacked(file, path)
            head = stream.read(4096)
    except OSError:
        return None
    except _damaged():
        return None
    if head[257:262] == b"ustar":
        return True
    if (
        not head
        or head.startswith((b"\x7fELF", b"minidump", b"KDUMP"))
        or b"minidump FreeBSD" in head
    ):
        return False
    zeros = head.count(b"\0")
    plain = sum(byte in b"\t\r\n\x1b\b" or 32 <= byte < 127 or byte >= 0xC2 for byte in head)
    return zeros * 50 < len(head) and plain * 100 >= len(head) * 92
