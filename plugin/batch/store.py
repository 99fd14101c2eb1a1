"""A batch's folder: summary.ndjson and one report a core; what makes it resumable.

A line is written when its core is done, whole or not at all: a kill loses the cores under
way and nothing else, and the next run does only those and what is new.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any, Dict, Iterable, List, Tuple

from plugin.errors import WchanError

SUMMARY = "summary.ndjson"


class Store:
    """The rows of a batch, the newest for each path."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.reports = os.path.join(folder, "reports")
        try:
            os.makedirs(self.reports, mode=0o700, exist_ok=True)
        except OSError as error:
            raise WchanError(f"cannot make {self.reports}: {error.strerror}") from None
        self._path = os.path.join(folder, SUMMARY)
        self.rows: Dict[str, Dict[str, Any]] = {row["path"]: row for row in read(self._path)}
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(handle, "ab")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise WchanError(f"another batch is writing to {folder}") from None
        # A line that a kill cut short must not swallow the next one.
        if self._file.tell() and not _ends_whole(self._path):
            self._file.write(b"\n")

    def add(self, row: Dict[str, Any]) -> None:
        self.rows[row["path"]] = row
        self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def is_done(self, path: str) -> bool:
        """True where this very file has been read to an end before."""
        row = self.rows.get(path)
        if row is None:
            return False
        try:
            found = os.stat(path)
        except OSError:
            return True
        return (row.get("size"), row.get("mtime")) == (found.st_size, int(found.st_mtime))


def read(path: str) -> List[Dict[str, Any]]:
    """The whole lines of a summary, of several for one path the last; [] where there is none."""
    found: Dict[str, Dict[str, Any]] = {}
    try:
        with open(path, "rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict) and _is_row(row):
                    found[row["path"]] = row
    except OSError:
        return []
    return list(found.values())


#: what the fields that are used are, where they are there
_FIELDS: Dict[str, Tuple[type, ...]] = {
    "path": (str,),
    "status": (str,),
    "report": (str, type(None)),
    "signature": (str, type(None)),
    "mtime": (int, type(None)),
    "known": (list, type(None)),
}
#: a year that four digits hold
_LATEST = 1 << 37


def _is_row(row: Dict[str, Any]) -> bool:
    """Whether a batch wrote it: others may have written into the file."""
    return (
        all(isinstance(row.get(name), kinds) for name, kinds in _FIELDS.items())
        and (row.get("report") is not None or not row.get("signature"))
        and 0 <= (row.get("mtime") or 0) < _LATEST
        and all(isinstance(each, str) for each in row.get("known") or ())
    )


def groups(rows: Iterable[Dict[str, Any]]) -> Dict[str, List[Dict[str, Any]]]:
    """Rows by signature, the largest group first; those that failed are in none."""
    found: Dict[str, List[Dict[str, Any]]] = {}
    for row in rows:
        if row.get("signature"):
            found.setdefault(row["signature"], []).append(row)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _ends_whole(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
