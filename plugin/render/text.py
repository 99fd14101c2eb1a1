"""A report as text for a terminal: tables by tabulate, everything escaped."""

from __future__ import annotations

import re
import textwrap
from typing import Any, List, Optional, Sequence

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
    """The whole report, ending in a newline; at most ``limit`` rows a table.

    What makes the answer less than whole is said before it, in a line; all findings after it.
    """
    if report.raw is not None:
        return report.raw if report.raw.endswith("\n") else report.raw + "\n"
    damage = [_fill(line, width, "", "  ") for line in first_lines(findings)]
    text = "\n".join(body_lines(report.body, width=width, limit=limit, verbose=verbose))
    parts = ["\n".join(damage), text.lstrip("\n"), warnings(findings, verbose).rstrip("\n")]
    whole = "\n\n".join(filter(None, parts))
    return whole + "\n" if whole else ""


def body_lines(
    body: Sequence[Block], *, width: int, limit: Optional[int] = None, verbose: bool = False
) -> List[str]:
    """The blocks of a report's body as text, a block an element."""
    parts: List[str] = []
    for block in body:
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
