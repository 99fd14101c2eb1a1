"""The dump that ``wchan demo`` explains: the storage deadlock of the first report.

It is shipped as two gzipped files beside ``plugin/hosts/demo``; after a change of the
forge or of the scenario, ``python -m tests.forge.demo`` writes them anew.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Tuple, Union

from tests.forge.scenarios.storage_deadlock import storage_deadlock

SHIPPED = Path(__file__).resolve().parents[2] / "plugin" / "hosts" / "demo"


def make(directory: Union[str, Path]) -> Tuple[Path, Path]:
    """Write the demo's dump and kernel file into ``directory``: (vmcore, kernel)."""
    return storage_deadlock().write(directory)


def ship() -> None:
    """Write the gzipped dump and kernel file that the product carries."""
    with tempfile.TemporaryDirectory() as folder:
        for made, name in zip(make(folder), ("dump.gz", "kernel.gz")):
            packed = gzip.compress(made.read_bytes(), compresslevel=9, mtime=0)
            (SHIPPED / name).write_bytes(packed)


if __name__ == "__main__":
    ship()
