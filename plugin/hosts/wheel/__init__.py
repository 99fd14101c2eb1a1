"""The package ``wchan`` of an installed wheel; in the repository nobody imports it.

A wheel keeps ``plugin`` and ``commands`` below one folder of its own, ``wchan``, where they
are out of everybody's way; inside, their names stay.  A debugger loads them from there:
``command script import FOLDER/wchan/plugin``, which ``python -m wchan`` prints.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> int:
    """The command ``wchan``; returns its exit status."""
    sys.path.insert(0, str(Path(__file__).parent))
    status: int = importlib.import_module("plugin.hosts.shell").main()
    return status
