"""A DOT graph drawn by graphviz, where it is installed."""

from __future__ import annotations

import shutil
import subprocess

from plugin.errors import WchanError

#: graphviz needs seconds for a mesh of thousands of nodes
_TIMEOUT = 120


def svg(graph: str) -> str:
    """The graph as SVG; a WchanError of one line where graphviz is missing or fails."""
    dot = shutil.which("dot")
    if dot is None:
        raise WchanError(
            "graphviz (its program dot) is not installed, so there is nothing to draw with; "
            "--dot gives the graph itself"
        )
    try:
        done = subprocess.run(
            [dot, "-Tsvg"],
            input=graph.encode(),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WchanError(f"{dot}: {error}") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise WchanError(f"{dot} failed: {said[0] if said else f'status {done.returncode}'}")
    return done.stdout.decode("utf-8", "replace")
