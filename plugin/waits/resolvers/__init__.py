"""How each kind of wait goes on.  Every module here is found by itself: a new file counts."""

from __future__ import annotations

import importlib
import pkgutil
from typing import List


def load() -> List[str]:
    """Import every module of this folder and those in it, so that resolvers register; names."""
    prefix = f"{__name__}."
    names = [module.name for module in pkgutil.walk_packages(__path__, prefix)]
    for name in names:
        importlib.import_module(name)
    return [name[len(prefix) :] for name in names]


MODULES = load()
