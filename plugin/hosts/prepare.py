"""Making ``plugin``, ``commands`` and what they need importable in a debugger's own Python.

Of the standard library alone: what is missing must be told before it is missed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, List, Optional

ROOT = Path(__file__).resolve().parents[2]
_OLDEST_LLDB = 14
#: Directories that install.sh found the dependencies in, one a line.
DEPS_FILE = ROOT / ".wchan-deps"


def too_old(debugger: Any) -> List[str]:
    """What to say in an lldb whose Python API wchan cannot work with; [] where it can.

    lldb 11 aborts at commands of ours, and some distributions' 14 have no API at all.
    """
    try:
        version = re.search(r"version (\d+)", debugger.GetVersionString())
    except AttributeError:
        return ["wchan: this lldb's Python module is incomplete; install its python3-lldb package"]
    # Apple numbers its own otherwise, from 1300 on.
    if version is not None and int(version.group(1)) < _OLDEST_LLDB:
        return [
            f"wchan: this is lldb {version.group(1)}; wchan works in lldb {_OLDEST_LLDB} and later"
        ]
    return []


def prepare() -> List[str]:
    """Make ``plugin``, ``commands`` and what they need importable; what hinders, as text.

    A debugger's Python is not ours: it may lack tabulate and PyYAML, and another
    plugin may have taken the name of one of our folders.
    """
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    for name in ("plugin", "commands"):
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and not _is_ours(loaded):
            return [
                f"wchan: another module named {name!r} is loaded already "
                f"({loaded or 'no file'}); wchan cannot be loaded into the same debugger"
            ]
    missing = _missing()
    if missing:
        for directory in _deps_directories():
            if directory not in sys.path:
                # Last, so that nothing of the debugger's own Python is hidden by it.
                sys.path.append(directory)
        missing = _missing()
    if missing:
        version = ".".join(str(part) for part in sys.version_info[:2])
        return [
            f"wchan: this debugger's Python ({version}) has no {' and no '.join(missing)}; "
            f"run {installer()}, which puts them where wchan finds them"
        ]
    return []


def installer() -> str:
    """The installer to run, by its path where it is at hand; an installed wchan has it not."""
    here = ROOT / "install.sh"
    return str(here) if here.is_file() else "install.sh of wchan's sources"


def _is_ours(file: Optional[str]) -> bool:
    try:
        return file is not None and ROOT in Path(file).resolve().parents
    except OSError:
        return False


def _missing() -> List[str]:
    missing = []
    for name in ("tabulate", "yaml"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    return missing


def _deps_directories() -> List[str]:
    try:
        lines = DEPS_FILE.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [line.strip() for line in lines if line.strip()]
