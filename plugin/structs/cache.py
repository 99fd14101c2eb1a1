"""What was worked out once, kept for the next session.

Everything is keyed by the content it was made from, so that nothing kept can be
stale.  A damaged cache is as good as none, and one that cannot be written (a
read-only home, a full disk) costs the next start its time and nothing else.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from plugin.cachedir import cache_path, ours
from plugin.structs.layout import Layout, Member

#: raised when what the cache holds changes its shape
_FORMAT = 2
_MAX_BYTES = 64 << 20
#: layouts looked up between two writes
_BATCH = 64


def _file(key: str) -> str:
    return os.path.join(cache_path(), f"structs-{key}.json")


def cache_key(*parts: object) -> str:
    """A key for what these parts determine, the form of the cache included."""
    return hashlib.sha256(repr((_FORMAT, *parts)).encode()).hexdigest()


def cache_read(key: str) -> Optional[Dict[str, Any]]:
    """What cache_write kept under ``key``, None where there is nothing whole."""
    path = Path(_file(key))
    if not ours(path) or not ours(path.parent):
        return None
    try:
        with open(path, "rb") as stream:
            raw = stream.read(_MAX_BYTES)
        digest, _, body = raw.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return None
        loaded = json.loads(body)
    except (OSError, ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def cache_write(key: str, value: Mapping[str, Any]) -> None:
    """Keep ``value``, at once or not at all; silently not where that cannot be."""
    path = _file(key)
    body = json.dumps(value, separators=(",", ":")).encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    temporary = None
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".structs-")
        with os.fdopen(handle, "wb") as stream:
            stream.write(digest + b"\n" + body)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def layout_to_json(layout: Layout) -> List[Any]:
    """A layout as JSON's own types."""
    members = [list(member) for member in layout]
    return [layout.name, layout.size, layout.kind, layout.file, members]


def layout_from_json(value: List[Any]) -> Layout:
    """The layout that layout_to_json wrote; ValueError and the like if it is none."""
    name, size, kind, file, members = value
    return Layout(name, size, {m[0]: Member._make(m) for m in members}, kind, file)


class LayoutCache:
    """The layouts looked up in one file's debug information, and those known to be missing."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._kept: Dict[str, Any] = cache_read(key) or {}
        self._layouts: Dict[str, Optional[Layout]] = {}
        self._fresh = 0

    def __contains__(self, name: str) -> bool:
        if name in self._layouts:
            return True
        if name not in self._kept:
            return False
        kept = self._kept[name]
        try:
            self._layouts[name] = layout_from_json(kept) if kept is not None else None
        except (TypeError, ValueError, AttributeError, IndexError):
            return False
        return True

    def __getitem__(self, name: str) -> Optional[Layout]:
        return self._layouts[name]

    def __setitem__(self, name: str, layout: Optional[Layout]) -> None:
        self._layouts[name] = layout
        self._kept[name] = layout_to_json(layout) if layout is not None else None
        if not self._fresh:
            atexit.register(self.save)
        self._fresh += 1
        if self._fresh % _BATCH == 0:
            cache_write(self._key, self._kept)

    def save(self) -> None:
        """Write what is new; done by itself when the interpreter ends."""
        if self._fresh:
            cache_write(self._key, self._kept)
            self._fresh = 0
            atexit.unregister(self.save)
