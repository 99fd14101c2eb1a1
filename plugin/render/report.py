"""What a command returns: data for JSON, and a body of tables and text.

Nothing here makes output; ``plugin.render`` does.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union


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

    ``limit`` False for a short table that --limit must not cut; ``optional`` columns are
    left out where the table would not fit, the first of them first.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    limit: bool = True
    optional: Sequence[str] = ()


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
        #: the block before which what adds to a verdict belongs
        self.behind_verdict = 0
        #: reports of which this one is made, by name: ``-o DIR`` writes each by itself
        self.parts: List[Tuple[str, Report]] = []

    def text(self, text: str, indent: int = 0) -> None:
        self.body.append(Text(text, indent))

    def heading(self, text: str) -> None:
        self.body.append(Heading(text))

    def table(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[Any]],
        limit: bool = True,
        optional: Sequence[str] = (),
    ) -> None:
        self.body.append(Table(headers, rows, limit, optional))

    def pre(self, *lines: str) -> None:
        self.body.append(Pre(lines))
