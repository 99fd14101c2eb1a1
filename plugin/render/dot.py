"""The wait-for graph as a graph for graphviz."""

from __future__ import annotations

from typing import Iterator

from plugin.render.picture import Box, Line, Picture
from plugin.render.text import escape

#: fills by the kind of cause that ends in a box
FILLS = {
    "deadlock": "#f2a0a0",
    "device": "#f4b6b6",
    "lost-wakeup": "#e8b4e8",
    "pacing": "#fbe0b0",
    "memory": "#f7d0a8",
    "running": "#c6e2b5",
    "runnable": "#d7ead0",
    "external": "#d0dff0",
    "unknown": "#d9d9d9",
}
_SHAPES = {"thread": "box", "lock": "octagon", "provider": "cylinder", "queue": "cds"}
_STYLES = {"proven": "solid", "catalogued": "dashed", "guessed": "dotted"}
_WIDTH = 44


def dot(picture: Picture) -> str:
    """A digraph, left to right: waiters on the left, what they end at on the right."""
    return "\n".join(_lines(picture)) + "\n"


def _lines(picture: Picture) -> Iterator[str]:
    yield "digraph waits {"
    yield '  rankdir=LR; node [fontname="Helvetica", fontsize=10];'
    yield '  edge [fontname="Helvetica", fontsize=8];'
    for box in picture.boxes:
        yield _box(box)
    for line in picture.lines:
        yield _edge(line)
    if picture.left_out:
        yield f'  left_out [shape=note, label="{picture.left_out} more not shown"];'
    yield "}"


def _box(box: Box) -> str:
    label = "\\n".join(quoted(line, _WIDTH) for line in box.lines)
    fill = FILLS.get(box.cause, "#ffffff")
    shape = _SHAPES.get(box.kind, "ellipse")
    return (
        f'  "{quoted(box.id)}" [label="{label}", shape={shape}, style=filled, '
        f'fillcolor="{fill}", tooltip="{quoted(box.tip, 400)}"];'
    )


def _edge(line: Line) -> str:
    width = 1.4 if line.main else 0.6
    return (
        f'  "{quoted(line.source)}" -> "{quoted(line.target)}" [label="{line.kind}", '
        f"style={_STYLES[line.certainty]}, penwidth={width}, "
        f'tooltip="{quoted(line.certainty + ": " + line.evidence, 400)}"];'
    )


def quoted(text: str, limit: int = 0) -> str:
    """Text for a quoted string of DOT: nothing in it ends the string or escapes."""
    text = " ".join(text.split("\n"))
    if limit and len(text) > limit:
        text = text[: limit - 2] + ".."
    return escape(text).replace("\\", "\\\\").replace('"', '\\"')
