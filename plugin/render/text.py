"""A report as text for a terminal: tables by tabulate, everything escaped."""

from __future__ import annotations

import re
import textwrap
from typing import Any, List, Optional, Sequence

from tabulate import tabulate

from plugin.findings import Findings
from plugin.render.report import Heading, Pre, Report, Table, Text


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


#: a column is never cut below this many characters to make a table fit
_NARROWEST = 8
_GAP = 2
_ADDRESS = re.compile(r"0x[0-9a-f]+\Z")


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], width: Optional[int] = None
) -> str:
    """Rows under headers; what is wider than ``width`` loses the ends of its widest cells."""
    names = [h[:-1] if h.endswith(">") else h for h in headers]
    align = ["right" if h.endswith(">") else "left" for h in headers]
    cells = [[_cell(value) for value in row] for row in rows]
    if width is not None:
        cells = _fit(names, align, cells, width)
    # The header goes in as a row: tabulate makes a column two wider than its header.
    text = tabulate([names, *cells], tablefmt="plain", colalign=align, disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _fit(names: List[str], align: List[str], cells: List[List[str]], width: int) -> List[List[str]]:
    if not cells:
        return cells
    widths = [max(map(len, column)) for column in zip(names, *cells)]
    # Numbers and addresses stay whole; of the texts the widest gives first.
    elastic = [i for i, side in enumerate(align) if side == "left"]
    narrowest = [
        max(_NARROWEST, len(name), *(len(cell) for cell in column if _ADDRESS.match(cell)))
        for name, column in zip(names, zip(*cells))
    ]
    excess = sum(widths) + _GAP * (len(widths) - 1) - width
    while excess > 0:
        yielding = [i for i in elastic if widths[i] > narrowest[i]]
        if not yielding:
            break
        widths[max(yielding, key=lambda i: widths[i])] -= 1
        excess -= 1
    return [
        [
            cell if len(cell) <= w or i not in elastic else cell[: w - 2] + ".."
            for i, (cell, w) in enumerate(zip(row, widths))
        ]
        for row in cells
    ]


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
) -> str:
    """The whole report, ending in a newline; at most ``limit`` rows a table."""
    if report.raw is not None:
        return report.raw if report.raw.endswith("\n") else report.raw + "\n"
    parts: List[str] = []
    for block in report.body:
        if isinstance(block, Heading):
            parts.append("\n" + _fill(block.text, width, "", "  "))
        elif isinstance(block, Pre):
            parts.append("\n".join(escape(line.expandtabs()) for line in block.lines))
        elif isinstance(block, Text):
            indent = " " * block.indent
            parts.append(_fill(block.text, width, indent, indent))
        elif isinstance(block, Table):
            rows = block.rows
            cut = len(rows) if limit is None or not block.limit else limit
            parts.append(table(block.headers, rows[:cut], None if verbose else width))
            if cut < len(rows):
                parts.append(f"... {len(rows) - cut} more; --limit 0 shows all")
    text = "\n".join(parts).lstrip("\n")
    notes = warnings(findings, verbose)
    return (text + "\n" if text else "") + (("\n" + notes) if notes and text else notes)


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
    if findings.partial:
        lines.append("PARTIAL: some of the kernel could not be read; see the warnings.")
    return "".join(line + "\n" for line in lines)
