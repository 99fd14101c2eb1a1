"""Resolvers by the names that the catalogue gives them.

A resolver takes a Case, adds nodes and edges to its graph and returns what the
thread is taken for, or None to leave the sleep to the catalogue's row alone.  It
registers itself where it is defined; ``plugin.waits.resolvers`` finds the modules.

    >>> @resolver("buf")
    ... def buf(case: Case) -> Optional[Verdict]: ...
"""

from __future__ import annotations

from typing import Callable, Dict, Optional

from plugin.waits.builder import Case, Verdict

Resolver = Callable[[Case], Optional[Verdict]]

RESOLVERS: Dict[str, Resolver] = {}


def resolver(*names: str) -> Callable[[Resolver], Resolver]:
    """The function below is what the catalogue's rows mean by ``names``.

    Raises ValueError where a name is taken: two resolvers of one name would hide each other.
    """

    def register(function: Resolver) -> Resolver:
        for name in names:
            if RESOLVERS.setdefault(name, function) is not function:
                raise ValueError(f"two resolvers are called {name!r}")
        return function

    return register
