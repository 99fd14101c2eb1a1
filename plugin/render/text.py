"""A report as text for a terminal: tables by tabulate, everything escaped."""

from __future__ import annotations

import re
import textwrap
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from tabulate import tabulate

from plugin.findings import Findings
from plugin.render.report import Block, Heading, Pre, Report, Table, Text


def escape(text: str) -> str:
    """``text`` with control characters shown as \\x.., newlines and tabs included.

    What comes out of a core may hold escape sequences for the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return escape(str(value))


#: a word is never broken to less than this many characters to make a table fit
_NARROWEST = 8
_GAP = 2
_ADDRESS = re.compile(r"0x[0-9a-f]+\Z")


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
    width: Optional[int] = None,
    optional: Sequence[str] = (),
) -> str:
    """Rows under headers, at most ``width`` wide where that can be: nothing is cut off.

    Texts wrap in their column.  Where a word would have to break for it, the columns named
    in ``optional`` are left out instead, the first of them first.
    """
    left_out: List[str] = []
    while True:
        kept = [i for i, h in enumerate(headers) if h.rstrip(">") not in left_out]
        cells = [[_cell(row[i]) for i in kept] for row in rows]
        names = [headers[i].rstrip(">") for i in kept]
        align = ["right" if headers[i].endswith(">") else "left" for i in kept]
        widths, whole = (
            _fitting(names, align, cells, width)
            if width is not None
            else (_natural(names, cells), True)
        )
        todo = [name for name in optional if name in names]
        if whole or not todo:
            break
        left_out.append(todo[0])
    # The header goes in as a row: tabulate makes a column two wider than its header.
    lines = [names, *(line for row in cells for line in _wrapped(row, widths))]
    text = tabulate(lines, tablefmt="plain", colalign=align, disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _natural(names: Sequence[str], cells: Sequence[Sequence[str]]) -> List[int]:
    return [max(map(len, column)) for column in zip(names, *cells)]


def _fitting(
    names: Sequence[str], align: Sequence[str], cells: Sequence[Sequence[str]], width: int
) -> Tuple[List[int], bool]:
    """(width of each column, True if no word has to break for it and all of it fits)."""
    widths = _natural(names, cells)
    columns = list(zip(*cells)) if cells else [() for _ in names]
    words = [
        max([len(name), *(len(word) for cell in column for word in cell.split())])
        for name, column in zip(names, columns)
    ]
    # Numbers and addresses stay whole; of the texts the widest gives first.
    stiff = [
        max([_NARROWEST, len(name), *(len(cell) for cell in column if _ADDRESS.match(cell))])
        for name, column in zip(names, columns)
    ]
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    for narrowest in (words, stiff):
        while excess > 0:
            yielding = [
                i for i, side in enumerate(align) if side == "left" and widths[i] > narrowest[i]
            ]
            if not yielding:
                break
            widths[max(yielding, key=lambda i: widths[i])] -= 1
            excess -= 1
        if excess <= 0:
            return widths, narrowest is words
    return widths, False


def _wrapped(row: Sequence[str], widths: Sequence[int]) -> Iterator[List[str]]:
    """A row as the lines that it takes."""
    cells = [
        [cell] if len(cell) <= width else textwrap.wrap(cell, width, break_on_hyphens=False)
        for cell, width in zip(row, widths)
    ]
    for number in range(max(map(len, cells), default=0)):
        yield [lines[number] if number < len(lines) else "" for lines in cells]


def _fill(text: str, width: int, first: str, other: str) -> str:
    """``text`` in lines of at most ``width`` where its words allow that."""
    return textwrap.fill(
        escape(text),
        width,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def render(
    report: Report,
    findings: Findings,
    *,
    width: int = 80,
    limit: Optional[int] = None,
    verbose: bool = False,
    colour: bool = False,
) -> str:
    """The whole report, ending in a newline; at most ``limit`` rows a table.

    What makes the answer less than whole is said before it, in a line; all findings after it.
    ``colour``: for a terminal; what came out of the core is escaped all the same.
    """
    if report.raw is not None:
        return report.raw if report.raw.endswith("\n") else report.raw + "\n"
    damage = [_styled(_fill(line, width, "", "  "), _RED, colour) for line in first_lines(findings)]
    text = "\n".join(
        body_lines(report.body, width=width, limit=limit, verbose=verbose, colour=colour)
    )
    parts = ["\n".join(damage), text.lstrip("\n"), warnings(findings, verbose).rstrip("\n")]
    whole = "\n\n".join(filter(None, parts))
    return whole + "\n" if whole else ""


_BOLD, _RED, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[0m"


def _styled(text: str, style: str, colour: bool) -> str:
    """Each line in a style of its own, so that a pager may cut between them."""
    if not colour:
        return text
    return "\n".join(f"{style}{line}{_PLAIN}" if line else "" for line in text.split("\n"))


def body_lines(
    body: Sequence[Block],
    *,
    width: int,
    limit: Optional[int] = None,
    verbose: bool = False,
    colour: bool = False,
) -> List[str]:
    """The blocks of a report's body as text, a block an element."""
    parts: List[str] = []
    for block in body:
        if isinstance(block, Heading):
            parts.append("\n" + _styled(_fill(block.text, width, "", "  "), _BOLD, colour))
        elif isinstance(block, Pre):
            parts.append("\n".join(escape(line.expandtabs()) for line in block.lines))
        elif isinstance(block, Text):
            indent = " " * block.indent
            parts.append(_fill(block.text, width, indent, indent))
        elif isinstance(block, Table):
            rows = block.rows
            cut = len(rows) if limit is None or not block.limit else limit
            drawn = table(block.headers, rows[:cut], None if verbose else width, block.optional)
            names, *lines = drawn.split("\n")
            parts.append("\n".join([_styled(names, _BOLD, colour), *lines]))
            if cut < len(rows):
                parts.append(f"... {len(rows) - cut} more; --limit 0 shows all")
    return parts


def first_lines(findings: Findings) -> List[str]:
    """What a reader must know before the verdict: that the dump, or the answer, is not whole."""
    every = list(findings)
    cut_short = [f.detail for f in every if f.what == "kernel" and "truncated" in f.detail]
    lines = [f"TRUNCATED: {detail}." for detail in cut_short[:1]]
    if findings.partial:
        missed = [f for f in every if f.what != "kernel"]
        first = f"{missed[0].what}: {missed[0].detail}".rstrip(": ") if missed else "see below"
        more = f", and {len(missed) - 1} more" if len(missed) > 1 else ""
        lines.append(f"PARTIAL: some of the kernel could not be read ({first}{more}).")
    return lines


def warnings(findings: Findings, verbose: bool = False) -> str:
    """The findings, a line each; the first eight unless ``verbose``."""
    shown = list(findings)
    lines = [
        "warning: "
        + escape(f"{f.what}: {f.detail}" if f.detail else f.what)
        + (f" [{f.address:#x}]" if f.address is not None else "")
        for f in (shown if verbose else shown[:8])
    ]
    if len(lines) < len(shown):
        lines.append(f"warning: {len(shown) - len(lines)} more; --verbose shows all")
    return "".join(line + "\n" for line in lines)
