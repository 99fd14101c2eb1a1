"""A batch's answer: the groups as text, and index.html over all of them."""

from __future__ import annotations

import html
import os
import time
from typing import Any, Dict, List, Sequence
from urllib.parse import quote

from plugin.words import count

Row = Dict[str, Any]

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1rem;
 color:#1b1f24;background:#fff;overflow-wrap:anywhere}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin:1.5rem 0 .3rem}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;
 padding:.2rem .6rem .2rem 0;border-bottom:1px solid #d0d7de}
details{margin:.4rem 0}summary{cursor:pointer}.bad{color:#b3261e}input{font:inherit;width:100%}
code{font-size:.92em}
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}
 td,th{border-color:#30363d}a{color:#6cb6ff}.bad{color:#ff8a80}}
"""
_SCRIPT = """
document.getElementById('q').addEventListener('input',function(){var w=this.value.toLowerCase();
document.querySelectorAll('section').forEach(function(s){
s.hidden=w!==''&&s.textContent.toLowerCase().indexOf(w)<0})})
"""


def lines(groups: Dict[str, List[Row]], failed: Sequence[Row], new: Sequence[str]) -> List[str]:
    """The groups, largest first, then every file that gave no report."""
    found = []
    for number, (signature, rows) in enumerate(groups.items(), 1):
        mark = "  NEW" if signature in new else ""
        found.append(f"{number:3}  {count(len(rows), 'machine')}{mark}  {signature}")
        found.append(f"       {_verdict(rows[0])}")
        found.append(f"       {_span(rows)}; first: {rows[0]['path']}")
        known = sorted({name for row in rows for name in row.get("known") or ()})
        if known:
            found.append(f"       looks like {', '.join(known)}")
    for row in failed:
        found.append(f"  -  {row['status']}: {row['path']}: {row.get('error', '')}")
    return found


def _verdict(row: Row) -> str:
    text = str(row.get("verdict", ""))
    return text if len(text) <= 200 else text[:197] + "..."


def _span(rows: Sequence[Row]) -> str:
    releases = sorted({str(row.get("release")) for row in rows})
    days = sorted(_day(row["mtime"]) for row in rows if row.get("mtime"))
    when = f", {days[0]} to {days[-1]}" if days else ""
    return f"{', '.join(releases)}{when}"


def _day(moment: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(moment))


def page(
    groups: Dict[str, List[Row]],
    failed: Sequence[Row],
    nearest: Dict[str, str],
    folder: str,
    new: Sequence[str],
) -> str:
    """index.html: one section a group, the reports linked; everything escaped, no request."""
    total = sum(map(len, groups.values()))
    out = [
        "<!DOCTYPE html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>wchan batch</title><style>{_STYLE}</style>",
        f"<h1>{count(total, 'machine')}, {count(len(groups), 'problem')}"
        + (f", {len(failed)} without a report" if failed else "")
        + "</h1><input id=q placeholder='search' aria-label=search>",
    ]
    for number, (signature, rows) in enumerate(groups.items(), 1):
        fresh = " <b>new</b>" if signature in new else ""
        out.append(
            f"<section><h2>{number}. {count(len(rows), 'machine')}{fresh}: {_e(signature)}</h2>"
        )
        out.append(f"<p>{_e(str(rows[0].get('verdict', '')))}<p>{_e(_span(rows))}")
        if len(rows) == 1 and signature in nearest:
            out.append(f"<p>Nearest: {_e(nearest[signature])}")
        known = sorted({name for row in rows for name in row.get("known") or ()})
        if known:
            out.append(f"<p>Looks like {_e(', '.join(known))}")
        out.append(f"<details><summary>{count(len(rows), 'report')}</summary><table>")
        out += [_row(row, folder) for row in rows]
        out.append("</table></details></section>")
    if failed:
        out.append("<section><h2 class=bad>Without a report</h2><table>")
        for row in failed:
            out.append(
                f"<tr><td>{_e(str(row['status']))}<td>{_e(str(row['path']))}"
                f"<td>{_e(str(row.get('error', '')))}"
            )
        out.append("</table></section>")
    out.append(f"<script>{_SCRIPT}</script></html>")
    return "\n".join(out) + "\n"


def _row(row: Row, folder: str) -> str:
    link = quote(os.path.relpath(str(row["report"]), folder))
    return (
        f"<tr><td><a href='{link}'>{_e(str(row['path']))}</a><td>{_e(str(row.get('release')))}"
        f"<td>{_e(str(row.get('stuck')))} of {_e(str(row.get('threads')))} stuck"
        f"<td>{_e(str(row.get('status')))}"
    )


def _e(text: str) -> str:
    return html.escape(text, quote=True)
