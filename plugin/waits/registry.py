"""Resolvers by the names that the catalogue gives them.

A resolver takes a Case, adds nodes and edges to its graph and returns what the
thread is taken for, or None to leave the sleep to the catalogue's row alone.  It
registers itself where it is defined; ``plugin.waits.resolvers`` finds the modules.

    >>> @resolver("buf")
    ... def buf(case: Case) -> Optional[Verdict]: ...
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional

from plugin.kernel.proc import Thread
from plugin.waits.builder import Builder, Case, Verdict
from plugin.waits.graph import Node

Resolver = Callable[[Case], Optional[Verdict]]
WithoutThread = Callable[[Builder], None]
AtWork = Callable[[Builder, Thread, Node, Verdict], Optional[Verdict]]

RESOLVERS: Dict[str, Resolver] = {}
#: what adds causes that are there though no thread sleeps for them
WITHOUT_THREAD: List[WithoutThread] = []
#: what knows more of a running or runnable thread than that it is one
AT_WORK: List[AtWork] = []


def without_thread(function: WithoutThread) -> WithoutThread:
    """The function below is asked once for each graph, before any thread is explained."""
    WITHOUT_THREAD.append(function)
    return function


def at_work(function: AtWork) -> AtWork:
    """The function below is asked of each running or runnable thread; None: nothing to add."""
    AT_WORK.append(function)
    return function


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
