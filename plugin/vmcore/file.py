"""Opening and reading files: reads at an offset, and one clear line where there is no file."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import BinaryIO, Optional

from plugin.errors import DumpError

#: FreeBSD's disks are character devices, read in whole sectors only
_SECTOR = 4096


def open_input(path: str) -> BinaryIO:
    """``path`` opened for reading, or DumpError that says why not."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise DumpError(f"{path} is a directory: name the file in it{_dumps_in(path)}")
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            raise DumpError(f"{path} is a pipe: a dump is read at random, name a file")
        return open(path, "rb", buffering=0)
    except FileNotFoundError:
        raise DumpError(f"{path}: no such file") from None
    except PermissionError:
        raise DumpError(
            f"{path}: permission denied; dumps belong to root: use sudo, or copy it and chown"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DumpError(f"{path}: cannot be opened: {reason}") from None


def _dumps_in(folder: str) -> str:
    with suppress(OSError):
        names = sorted(n for n in os.listdir(folder) if n.startswith(("vmcore", "livecore")))
        if names:
            return f" ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
    return ""


class DumpFile:
    """An open file, read at offsets; never short before its end, never moved by others' reads.

    ``start`` and ``end`` are where in the file the dump lies: the whole file,
    until it turns out to be a dump device.
    """

    def __init__(self, path: str) -> None:
        self._file = open_input(path)
        self.fd = self._file.fileno()
        self.start = 0
        try:
            self._align = _SECTOR if stat.S_ISCHR(os.fstat(self.fd).st_mode) else 1
            self.end = self._size = self._file.seek(0, os.SEEK_END)
        except OSError as error:
            self._file.close()
            raise DumpError(f"{path}: cannot be read: {error.strerror}") from None
        #: once the dump is open, a failing disk is a gap in memory; this says why
        self.lenient = False
        self.trouble: Optional[str] = None

    def __len__(self) -> int:
        return self._size

    def at_random(self) -> None:
        """Tell the system that reads will be scattered: each would drag its neighbours in."""
        with suppress(AttributeError, OSError):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes at a file offset; fewer only at the file's end."""
        try:
            if self._align > 1:
                return self._read_sectors(offset, size)
            data = os.pread(self.fd, size, offset)
            if len(data) in (0, size):
                return data
            return data + self._rest(offset + len(data), size - len(data))
        except (OSError, OverflowError) as error:
            if not self.lenient:
                raise
            self.trouble = getattr(error, "strerror", None) or "no such offset"
            return b""

    def _rest(self, offset: int, size: int) -> bytes:
        pieces = []
        while size:
            data = os.pread(self.fd, size, offset)
            if not data:
                break
            pieces.append(data)
            offset += len(data)
            size -= len(data)
        return b"".join(pieces)

    def _read_sectors(self, offset: int, size: int) -> bytes:
        skip = offset % self._align
        first, last = offset - skip, -(-(offset + size) // self._align) * self._align
        data = self._rest(first, min(last, self._size) - first)
        return data[skip : skip + size]

    def close(self) -> None:
        self._file.close()
        # The number may soon be another file's.
        self.fd = -1
