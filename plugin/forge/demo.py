"""The dump that ``wchan demo`` explains: the storage deadlock of the first report."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple, Union

from plugin.forge.scenarios.storage_deadlock import storage_deadlock


def make(directory: Union[str, Path]) -> Tuple[Path, Path]:
    """Write the demo's dump and kernel file into ``directory``: (vmcore, kernel)."""
    return storage_deadlock().write(directory)
