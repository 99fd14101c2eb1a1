"""The dumps that savecore(8) has left in a folder."""

from __future__ import annotations

import os
import re
from typing import List

from plugin.errors import UsageError

#: where dumpdir points unless rc.conf says otherwise
CRASH = "/var/crash"
_NAME = re.compile(r"(vmcore|livecore)(_encrypted)?\.\d+(\.zst|\.gz)?")


def dumps_in(folder: str) -> List[str]:
    """The dumps of a folder by savecore's names, newest first; [] where it cannot be read."""
    try:
        names = filter(_NAME.fullmatch, os.listdir(folder))
        found = [os.path.join(folder, name) for name in names]
        return sorted(found, key=os.path.getmtime, reverse=True)
    except OSError:
        return []


def newest_dump(folder: str) -> str:
    """The newest dump of a folder; UsageError where there is none."""
    found = dumps_in(folder)
    if not found:
        raise UsageError(
            f"wchan: {folder} is a directory and there is no vmcore.N in it: name the dump"
        )
    return found[0]
