"""What a command returns: data for JSON, and a body of tables and text.

Nothing here makes output; ``plugin.render`` does.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Union


class Text(NamedTuple):
    """A paragraph, wrapped to the terminal's width, each line indented."""

    text: str
    indent: int = 0


class Pre(NamedTuple):
    """Lines shown as they are (a drawing, a message buffer); what breaks one is escaped."""

    lines: Sequence[str]


class Heading(NamedTuple):
    text: str


class Table(NamedTuple):
    """Rows under headers; a header that ends in ">" is a right-aligned column.

    ``limit`` False for a short table that --limit must not cut.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    limit: bool = True


Block = Union[Text, Pre, Heading, Table]


class Report:
    """``data``: the JSON contract's fields.  ``body``: what a person reads.

    ``raw`` replaces everything for outputs in a foreign format (DOT, XML).
    """

    def __init__(
        self, data: Dict[str, Any], body: Optional[List[Block]] = None, raw: Optional[str] = None
    ) -> None:
        self.data = data
        self.body: List[Block] = body if body is not None else []
        self.raw = raw

    def text(self, text: str, indent: int = 0) -> None:
        self.body.append(Text(text, indent))

    def heading(self, text: str) -> None:
        self.body.append(Heading(text))

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Any]], limit: bool = True
    ) -> None:
        self.body.append(Table(headers, rows, limit))

    def pre(self, *lines: str) -> None:
        self.body.append(Pre(lines))


def address(value: Optional[int]) -> Optional[str]:
    """An address as the contract wants it: "0x..." or None."""
    return None if value is None else f"{value:#x}"


def seconds(value: Optional[float]) -> str:
    """A duration for people: "3 m 58 s"; "" for None."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f} s"
    whole = int(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def count(number: int, noun: str, plural: str = "") -> str:
    """ "1 thread", "3 threads"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
