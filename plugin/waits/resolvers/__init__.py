"""How each kind of wait goes on.  Every module here is found by itself: a new file counts."""

from __future__ import annotations

import importlib
import pkgutil
from typing import List


def load() -> List[str]:
    """Import every module of this folder, so that its resolvers register; their names."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    for name in names:
        importlib.import_module(f"{__name__}.{name}")
    return names


MODULES = load()
