"""Threads as FreeBSD's own scripts for gdb (sys/tools/gdb) look for them: the TID is in ptid[2].

kgdb numbers a dump's threads so; gdb's remote target has room for the TID in ptid[1]
alone, whatever a server sends.  Its objects are of types that cannot be changed, so what
the functions of the module ``gdb`` give are stand-ins, where a kernel is debugged remotely.
"""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import gdb

from plugin.targets.image import KernelImage

_REMOTE = ("remote", "extended-remote")


class _StandIn:
    """Behaves as gdb's own object in everything that is not said here."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_real":
            object.__setattr__(self, name, value)
        else:
            setattr(self._real, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._real)

    def __eq__(self, other: object) -> bool:
        real = other._real if type(other) in (Thread, Inferior) else other  # type: ignore[attr-defined]
        return bool(self._real == real)

    def __hash__(self) -> int:
        return hash(self._real)

    def __repr__(self) -> str:
        return repr(self._real)


class Thread(_StandIn):
    """A gdb.InferiorThread whose ``ptid`` is (process, TID, TID)."""

    @property
    def ptid(self) -> Tuple[int, int, int]:
        pid, lwp, tid = self._real.ptid
        return pid, lwp, tid or lwp

    @property
    def inferior(self) -> Inferior:
        return Inferior(self._real.inferior)


class Inferior(_StandIn):
    """A gdb.Inferior whose threads are those above."""

    def threads(self) -> Tuple[Thread, ...]:
        return tuple(map(Thread, self._real.threads()))


def _is_remote_kernel(inferior: Any) -> bool:
    connection = getattr(inferior, "connection", None)
    if connection is None or connection.type not in _REMOTE:
        return False
    image = KernelImage.open(inferior.progspace.filename)
    return image is not None and image.is_kernel


def install() -> None:
    """Have gdb.selected_thread, .selected_inferior and .inferiors give stand-ins; once."""
    if hasattr(gdb, "_wchan_own_functions"):
        return
    thread: Callable[[], Any] = gdb.selected_thread
    inferior: Callable[[], Any] = gdb.selected_inferior
    inferiors: Callable[[], Any] = gdb.inferiors
    gdb._wchan_own_functions = thread, inferior, inferiors

    def stand_in(real: Any) -> Any:
        return Inferior(real) if _is_remote_kernel(real) else real

    def selected_thread() -> Any:
        """The selected thread, None if there is none."""
        real = thread()
        return Thread(real) if real is not None and _is_remote_kernel(real.inferior) else real

    def selected_inferior() -> Any:
        """The selected inferior."""
        return stand_in(inferior())

    def all_inferiors() -> Tuple[Any, ...]:
        """Every inferior."""
        found: List[Any] = [stand_in(real) for real in inferiors()]
        return tuple(found)

    gdb.selected_thread = selected_thread
    gdb.selected_inferior = selected_inferior
    gdb.inferiors = all_inferiors
