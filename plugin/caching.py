"""Cached walks: a decorator with the two lifetimes a value read from a kernel can have.

``@cached(MEMORY)`` for what was read from memory: kept for the session on a dump, for one
command on a kernel that runs.  ``@cached(LAYOUT)`` for what follows from layouts and symbols
alone: kept until the target changes.  The first parameter is the Kernel, the others are the
key and have to be hashable.  What the walk found wrong is kept with its value and reported
at every use.  Not for what is asked once, nor for what is as cheap as the look-up.

    >>> @cached(MEMORY)
    ... def mounts(kernel: Kernel) -> List[Mount]: ...
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple, TypeVar, cast

if TYPE_CHECKING:
    from plugin.findings import Findings
    from plugin.session import Kernel


class Lifetime(enum.IntEnum):
    """How long a value holds: as long as the layouts, or as long as memory stands still."""

    LAYOUT = 0
    MEMORY = 1


LAYOUT, MEMORY = Lifetime.LAYOUT, Lifetime.MEMORY
#: by lifetime: {(function, arguments): (what it returned, what it found wrong or None)}
Kept = Tuple[Dict[Any, Tuple[Any, Optional["Findings"]]], ...]

_F = TypeVar("_F", bound=Callable[..., Any])


def cached(lifetime: Lifetime) -> Callable[[_F], _F]:
    """Keep what a function of a Kernel (and hashable arguments) returns, for ``lifetime``."""

    def decorate(function: _F) -> _F:
        number = int(lifetime)

        @functools.wraps(function)
        def asked(kernel: Kernel, *arguments: Any) -> Any:
            known = kernel.kept[number].get((function, arguments))
            if known is None:
                return kernel.remember(lifetime, function, arguments)
            value, findings = known
            if findings is not None:
                kernel.warnings.extend(findings)
            return value

        return cast(_F, asked)

    return decorate
