"""The whole answer of why-stuck as one page that a bug report can carry.

The page needs no network and no script to be read: the graph is drawn here, the
tables are plain.  One short script adds the search and sorts a table by the head
clicked.  A Content-Security-Policy admits that script and the style by their hashes
and nothing else, and every text from the core is escaped, so that a hostile core
cannot speak through it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape as html_escape
from typing import (
    Callable,
    Dict,
    Hashable,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

from plugin.kernel.proc import Thread
from plugin.render.dot import FILLS
from plugin.render.picture import Box, Line, Picture, picture, step
from plugin.render.report import Block, Heading, Pre, Table, Text
from plugin.render.text import escape
from plugin.waits import advice
from plugin.waits.analysis import LONG_ASLEEP, LONG_BLOCKED, Analysis, is_long
from plugin.waits.graph import Node
from plugin.waits.verdict import sentences
from plugin.words import alike, seconds

#: more rows than this that differ in an address, a thread or a number alone are one
FOLD = 24
#: addresses listed of what is folded
_PAIRS = 200
_NUMBERS = re.compile(r"\d+")
_T = TypeVar("_T")

_BOX_WIDTH, _LINE_HEIGHT, _PAD = 250, 15, 8
_GAP_X, _GAP_Y = 70, 12
_CHARACTERS = 38
_DASHES = {"proven": "", "catalogued": "6 3", "guessed": "2 3"}

_STYLE = """
:root { color-scheme: light dark; --line: #c8c8c8; --soft: #777; --back: #fff; --text: #1a1a1a; }
@media (prefers-color-scheme: dark) {
  :root { --line: #444; --soft: #9a9a9a; --back: #16181a; --text: #e4e4e4; }
}
body { font: 15px/1.45 system-ui, sans-serif; margin: 0; background: var(--back);
  color: var(--text); }
header, section { padding: 0 1.5rem; max-width: 100rem; }
header { position: sticky; top: 0; background: var(--back); padding-top: .6rem;
  padding-bottom: .6rem; border-bottom: 1px solid var(--line); z-index: 1; }
h1 { font-size: 1.1rem; margin: 0 0 .3rem; }
h2 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { margin: .2rem 0; max-width: 60rem; }
input { font: inherit; width: 22rem; max-width: 90%; padding: .25rem .5rem; }
.soft { color: var(--soft); }
table { border-collapse: collapse; font-size: .86rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .7rem .2rem 0;
  border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
td.m { font-family: ui-monospace, monospace; font-size: .8rem; overflow-wrap: anywhere; }
tr.long td { background: rgba(220, 60, 60, .13); }
.kind { display: inline-block; padding: 0 .45rem; border-radius: .6rem; color: #111; }
.wide { overflow-x: auto; }
h3 { font-size: .92rem; margin: 1rem 0 .3rem; }
.scroll { overflow: auto; max-height: 85vh; border: 1px solid var(--line); }
summary { font-weight: 600; margin: .8rem 0 .2rem; cursor: pointer; }
pre { font-size: .8rem; overflow-x: auto; margin: 0; }
svg { display: block; background: #fff; }
svg text { font: 11px system-ui, sans-serif; fill: #111; }
svg .off { opacity: .12; }
.hidden { display: none; }
th[tabindex] { cursor: pointer; }
@media print { header { position: static; } input { display: none; } .scroll { max-height: none; } }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
"""
_STYLE += "".join(f".k-{kind} {{ background: {fill}; }}\n" for kind, fill in FILLS.items())

_SCRIPT = """
"use strict";
(function () {
  var input = document.getElementById("search");
  var state = document.getElementById("found");
  var rows = document.querySelectorAll("tbody tr");
  var boxes = document.querySelectorAll("svg g.box");
  function search() {
    var words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
    function fits(element) {
      var text = element.textContent.toLowerCase();
      return words.every(function (word) { return text.indexOf(word) >= 0; });
    }
    var shown = 0;
    rows.forEach(function (row) {
      var fit = fits(row);
      row.classList.toggle("hidden", !fit);
      if (fit) { shown += 1; }
    });
    boxes.forEach(function (box) {
      box.classList.toggle("off", words.length > 0 && !fits(box));
    });
    state.textContent = words.length ? shown + " rows" : "";
    // What was folded opens where something in it was searched for.
    document.querySelectorAll("section > details").forEach(function (folded) {
      if (words.length) { folded.open = fits(folded); }
    });
  }
  input.addEventListener("input", search);
  if (location.hash.indexOf("#q=") === 0) {
    input.value = decodeURIComponent(location.hash.slice(3));
  }
  boxes.forEach(function (box) {
    box.addEventListener("click", function () {
      input.value = box.getAttribute("data-search") || "";
      search();
    });
  });
  search();
  function key(row, column) {
    var cell = row.cells[column];
    var exact = cell.querySelector("data");
    var text = exact ? exact.value : cell.textContent.trim();
    var number = /^-?(0x[0-9a-f]+|[0-9.]+)(-[0-9]+)?$/i.test(text);
    return text === "" ? null : number ? Number(text.replace(/(.)-.*/, "$1")) : text.toLowerCase();
  }
  function order(one, other) {
    if (typeof one === typeof other) { return one < other ? -1 : one > other ? 1 : 0; }
    return typeof one === "number" ? -1 : 1;
  }
  function sort(head) {
    var body = head.closest("table").tBodies[0];
    var down = head.getAttribute("aria-sort") === "ascending";
    var keyed = Array.from(body.rows, function (row) {
      return { row: row, key: key(row, head.cellIndex) };
    });
    keyed.sort(function (one, other) {
      // What has no value comes last, whichever way.
      if (one.key === null || other.key === null) {
        return (one.key === null) - (other.key === null);
      }
      return order(one.key, other.key) * (down ? -1 : 1);
    });
    Array.from(head.parentNode.cells).forEach(function (cell) {
      cell.removeAttribute("aria-sort");
    });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    keyed.forEach(function (each) { body.appendChild(each.row); });
  }
  document.querySelectorAll("thead th").forEach(function (head) {
    head.tabIndex = 0;
    head.addEventListener("click", function () { sort(head); });
    head.addEventListener("keydown", function (event) {
      if (event.key === "Enter") { sort(head); }
    });
  });
}());
"""


def html(
    analysis: Analysis, title: str, panic: Sequence[str] = (), known: Sequence[str] = ()
) -> str:
    """The page.  ``title`` names the kernel, ``panic`` are lines about its panic, ``known``
    about diagnosed bugs that look like it."""
    return _document(title, panic, [*_verdict(analysis), _known(known), *_details(analysis)])


def _known(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    told = "".join(f"<p>{text(line)}</p>" for line in lines)
    return f'<section id="known"><h2>Known bugs</h2>{told}</section>'


def sections_page(
    head: Sequence[str],
    sections: Sequence[Tuple[str, Sequence[Block]]],
    analysis: Optional[Analysis],
) -> str:
    """A page of reports: first the verdict, the causes and the graph, then each report, folded.

    ``head`` are its first lines.
    """
    parts = _verdict(analysis) if analysis is not None else []
    for title, body in sections:
        content = "\n".join(_block(block) for block in body)
        parts.append(
            f"<section><details><summary>{text(title)}</summary>{content}</details></section>"
        )
    return _document(head[0] if head else "wchan", head[1:], parts)


def _document(title: str, lines: Sequence[str], parts: Sequence[str]) -> str:
    whole = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{text(title)}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f"<h1>{text(title)}</h1>",
        '<input id="search" type="search" placeholder="search: a tid, a name, a lock, an address"'
        ' aria-label="search"> <span id="found" class="soft"></span>',
        "</header>",
        "<section>",
        *[f"<p>{text(line)}</p>" for line in lines],
        "</section>",
        *parts,
        f"<script>{_SCRIPT}</script>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in whole if part) + "\n"


def _verdict(analysis: Analysis) -> List[str]:
    """The verdict's sentences, the causes, the graph."""
    said = "".join(f"<p>{text(line)}</p>" for line in sentences(analysis))
    return [
        f"<section>{said}</section>",
        _causes(analysis),
        _graph(analysis, picture(analysis)),
    ]


def _details(analysis: Analysis) -> List[str]:
    return [_threads(analysis), _residue(analysis), _nodes(analysis), _edges(analysis)]


def _block(block: Block) -> str:
    """A part of another command's report."""
    if isinstance(block, Heading):
        return f"<h3>{text(block.text)}</h3>"
    if isinstance(block, Text):
        return f"<p>{text(block.text)}</p>"
    if isinstance(block, Pre):
        return f"<pre>{text_lines(chr(10).join(line.expandtabs() for line in block.lines))}</pre>"
    return f'<div class="wide">{_rows(block)}</div>'


def _rows(table: Table) -> str:
    """A report's table: rows that differ in numbers alone are one where they are many."""
    rows: List[_Row] = []
    cells = [["" if cell is None else str(cell) for cell in row] for row in table.rows]
    for group in _folded(cells, lambda row: tuple(_shape(cell) for cell in row)):
        shown = [
            text(column[0]) if len(set(column)) == 1 else _listed(list(column), _PAIRS)
            for column in zip(*group)
        ]
        rows.append((shown, False))
    return _plain_table(table.headers, rows)


def text(value: object) -> str:
    """Any text for HTML: control characters shown, markup escaped."""
    return html_escape(escape(str(value)), quote=True)


def _policy() -> str:
    def hashed(content: str) -> str:
        digest = hashlib.sha256(content.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; script-src {hashed(_SCRIPT)}; style-src {hashed(_STYLE)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _kind(kind: str) -> str:
    return f'<span class="kind k-{text(kind)}">{text(kind)}</span>'


def _duration(value: Optional[float]) -> str:
    """Seconds as people read them, and as the page sorts them."""
    if value is None:
        return ""
    return f'<data value="{value:.3f}">{text(seconds(value))}</data>'


# Tables

_Row = Tuple[Sequence[str], bool]


def _table(title: str, headers: Sequence[str], rows: Iterable[_Row]) -> str:
    """A section with a table, "" where there are no rows."""
    made = _plain_table(headers, rows)
    wide = f'<div class="wide">{made}</div>'
    return f"<section><h2>{text(title)}</h2>{wide}</section>" if made else ""


def _plain_table(headers: Sequence[str], rows: Iterable[_Row]) -> str:
    """A table; a header that ends in ">" is a column of numbers, in "#" of fixed width.

    Cells are HTML already.  A row marked long stands out.
    """
    classes = ["n" if h.endswith(">") else "m" if h.endswith("#") else "" for h in headers]
    names = [h.rstrip(">#") for h in headers]
    body: List[str] = []
    for cells, long in rows:
        columns = "".join(
            f'<td class="{css}">{cell}</td>' if css else f"<td>{cell}</td>"
            for css, cell in zip(classes, cells)
        )
        body.append(f'<tr class="long">{columns}</tr>' if long else f"<tr>{columns}</tr>")
    if not body:
        return ""
    head = "".join(
        f'<th class="{css}">{text(name)}</th>' if css == "n" else f"<th>{text(name)}</th>"
        for css, name in zip(classes, names)
    )
    return (
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table>"
    )


def _folded(items: Iterable[_T], shape: Callable[[_T], Hashable]) -> List[List[_T]]:
    """Items of one shape together where they are many, in the order of the first of each.

    Few stay single rows: what is folded is found by search, but not one by one.
    """
    groups: Dict[Hashable, List[_T]] = {}
    for item in items:
        groups.setdefault(shape(item), []).append(item)
    found: List[List[_T]] = []
    for members in groups.values():
        found += [members] if len(members) > FOLD else [[member] for member in members]
    return found


def _listed(words: Sequence[str], limit: Optional[int] = None) -> str:
    """Many words as one cell that opens on a click; of more than ``limit`` the rest as a count."""
    if len(words) == 1:
        return text(words[0])
    shown = words if limit is None else words[:limit]
    more = f", and {len(words) - len(shown)} more" if len(shown) < len(words) else ""
    return f"<details><summary>{len(words)}</summary>{text(', '.join(shown))}{more}</details>"


def _causes(analysis: Analysis) -> str:
    rows = []
    for group in _folded(analysis.causes, lambda cause: (cause.kind, alike(cause.summary))):
        cause = group[0]
        ages = [each.since for each in group if each.since is not None]
        more = f" and {len(group) - 1} like it" if len(group) > 1 else ""
        cells = (
            text(cause.rank),
            _kind(cause.kind),
            text(cause.summary + more),
            text(sum(len(each.tids) for each in group)),
            _duration(max(ages, default=None)),
            text(cause.certainty),
            text(cause.evidence),
        )
        rows.append((cells, False))
    headers = ["#>", "cause", "what", "threads>", "since>", "certainty", "evidence"]
    return _table("Causes", headers, rows)


class _Line(NamedTuple):
    """A row of the table of threads before it is folded."""

    thread: Thread
    status: str
    rank: Optional[int]
    why: str
    cause: str


def _threads(analysis: Analysis) -> str:
    causes = {tid: cause for cause in analysis.causes for tid in cause.tids}
    lines = []
    for thread in analysis.threads:
        verdict = analysis.verdicts.get(thread.address)
        cause = causes.get(thread.tid)
        lines.append(
            _Line(
                thread,
                str(verdict.status) if verdict is not None else thread.state,
                cause.rank if cause is not None else None,
                verdict.why if verdict is not None else "",
                alike(cause.summary) if cause is not None else "",
            )
        )
    lines.sort(key=lambda line: line.status != "stuck")
    rows = []
    for group in _folded(
        lines, lambda each: (each.thread.state, each.thread.wmesg, each.status, each.cause)
    ):
        first = group[0].thread
        ages = [line.thread.age for line in group if line.thread.age is not None]
        ranks = sorted({line.rank for line in group if line.rank is not None})
        single = len(group) == 1
        who = [f"{each.thread.tid} {each.thread.label}" for each in group]
        cells = (
            text(first.tid if single else f"{len(group)}"),
            text(first.pid if single else ""),
            text(first.label) if single else _listed(who),
            text(first.state),
            text(first.wmesg or ""),
            text(f"{first.wchan:#x}" if first.wchan and single else ""),
            _duration(max(ages, default=None)),
            text(group[0].status),
            text(ranks[0] if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}" if ranks else ""),
            text(group[0].why),
        )
        long = group[0].status == "stuck" and any(is_long(line.thread) for line in group)
        rows.append((cells, long))
    headers = ["tid>", "pid>", "name", "state", "wmesg", "wchan#", "age>", "taken for", "cause>"]
    note = f"marked: blocked for {LONG_BLOCKED:.0f} s, asleep for {LONG_ASLEEP:.0f} s or more"
    return _table(f"Threads ({note})", [*headers, "because"], rows)


def _residue(analysis: Analysis) -> str:
    rows = [
        (
            (
                text(len(group.threads)),
                text(group.wmesg),
                text(group.where),
                text("; ".join([group.why, *advice.of_group(analysis, group)])),
                _listed([f"{t.tid} {t.label}" for t in group.threads], 50),
                text(" <- ".join(group.stack)),
            ),
            False,
        )
        for group in analysis.residue
    ]
    headers = ["threads>", "wmesg", "channel", "why", "who", "stack"]
    return _table("Residue: waits that are not understood", headers, rows)


def _end_of(node: Node) -> str:
    return f"{node.end.kind}: {node.end.summary}" if node.end is not None else ""


def _nodes(analysis: Analysis) -> str:
    nodes = [node for node in analysis.graph.nodes.values() if node.kind != "thread"]
    rows = []
    for group in _folded(
        nodes, lambda n: (n.kind, _shape(n.label), tuple(n.facts[:2]), _end_of(n))
    ):
        node = group[0]
        at = [f"{each.address:#x}" for each in group if each.address is not None]
        more = f" and {len(group) - 1} like it" if len(group) > 1 else ""
        cells = (
            text(node.kind),
            text(node.label + more),
            _listed(at, _PAIRS) if at else "",
            text(", ".join(node.facts)),
            text(_end_of(node)),
        )
        rows.append((cells, False))
    return _table("Things waited for", ["kind", "what", "address#", "state", "end"], rows)


def _edges(analysis: Analysis) -> str:
    nodes = analysis.graph.nodes
    rows = []
    for group in _folded(
        analysis.graph.edges,
        lambda edge: (
            edge.kind,
            edge.certainty,
            _shape(nodes[edge.source].label),
            _shape(nodes[edge.target].label),
        ),
    ):
        edge = group[0]
        more = f" and {len(group) - 1} like it" if len(group) > 1 else ""
        cells = (
            text(nodes[edge.source].label + more),
            text(edge.kind),
            text(nodes[edge.target].label),
            text(edge.certainty),
            text(edge.evidence),
        )
        rows.append((cells, False))
    return _table("Edges and their evidence", ["from", "edge", "to", "certainty", "evidence"], rows)


def _shape(label: str) -> str:
    """A label without addresses, threads and numbers."""
    return _NUMBERS.sub("#", alike(label))


# The graph


class _Place(NamedTuple):
    x: float
    y: float
    height: float


def _height(box: Box) -> float:
    return len(box.lines[:3]) * _LINE_HEIGHT + 2 * _PAD


def _places(analysis: Analysis, drawn: Picture) -> Dict[str, _Place]:
    """Columns by the distance to the end of the chain, ends on the left: causes first.

    Every box has one box that its chain goes to, so the boxes are a forest: each
    tree takes rows of its own, a box the middle of those that lead to it.
    """
    boxes = {box.id: box for box in drawn.boxes}
    parent: Dict[str, Optional[str]] = {}
    ranks = {cause.node.id: cause.rank for cause in reversed(analysis.causes)}
    # Causes first: where a cycle is cut it is at its cause, and roots are in the order of rank.
    for box in sorted(drawn.boxes, key=lambda box: ranks.get(box.id, len(ranks) + 1)):
        to = step(analysis, box.id)
        parent[box.id] = to if to in boxes and to != box.id else None
    _cut_cycles(parent)
    children: Dict[Optional[str], List[str]] = {}
    for id, to in parent.items():
        children.setdefault(to, []).append(id)
    places: Dict[str, _Place] = {}
    columns: Dict[str, int] = {}
    bottom = float(_GAP_Y)
    for root in children.get(None, []):
        order: List[str] = [root]
        columns[root] = 0
        for id in order:
            for child in children.get(id, ()):
                columns[child] = columns[id] + 1
                order.append(child)
        bottom = _place_tree(root, children, boxes, places, bottom) + _GAP_Y
    return {
        id: place._replace(x=columns[id] * (_BOX_WIDTH + _GAP_X) + _GAP_X / 2)
        for id, place in places.items()
    }


def _cut_cycles(parent: Dict[str, Optional[str]]) -> None:
    """Make a forest of it: of each cycle one box becomes a root."""
    done: Dict[str, int] = {}
    for number, start in enumerate(parent):
        at: Optional[str] = start
        while at is not None and at not in done:
            done[at] = number
            at = parent[at]
        if at is not None and done[at] == number:
            parent[at] = None


def _place_tree(
    root: str,
    children: Dict[Optional[str], List[str]],
    boxes: Dict[str, Box],
    places: Dict[str, _Place],
    top: float,
) -> float:
    """Rows for one tree from ``top`` down; returns where it ends.

    Without recursion: chains are long.
    """
    stack: List[Tuple[str, bool]] = [(root, False)]
    while stack:
        id, after = stack.pop()
        height = _height(boxes[id])
        below = children.get(id, [])
        if not below:
            places[id] = _Place(0, top, height)
            top += height + _GAP_Y
        elif after:
            first, last = places[below[0]], places[below[-1]]
            middle = (first.y + last.y + last.height) / 2
            places[id] = _Place(0, middle - height / 2, height)
            top = max(top, middle + height / 2 + _GAP_Y)
        else:
            stack.append((id, True))
            stack.extend((child, False) for child in reversed(below))
    return top


def _graph(analysis: Analysis, drawn: Picture) -> str:
    if not drawn.boxes:
        return ""
    places = _places(analysis, drawn)
    width = max(place.x for place in places.values()) + _BOX_WIDTH + _GAP_X / 2
    height = max(place.y + place.height for place in places.values()) + _GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="wait-for graph">',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#666"/></marker></defs>',
    ]
    parts += [_drawn_line(line, places) for line in drawn.lines]
    parts += [_drawn_box(box, places[box.id]) for box in drawn.boxes]
    parts.append("</svg>")
    more = f" {drawn.left_out} more boxes are in the tables only." if drawn.left_out else ""
    return (
        '<section><h2>Who waits for whom</h2><p class="soft">Causes are on the left. '
        "Solid lines are proven by memory, "
        f"dashed ones from the catalogue, dotted ones guessed. A box clicked is searched for.{more}"
        '</p><div class="scroll">' + "\n".join(parts) + "</div></section>"
    )


def _drawn_box(box: Box, place: _Place) -> str:
    fill = FILLS.get(box.cause, "#f7f7f4" if box.kind == "thread" else "#eef3f8")
    lines = []
    for number, line in enumerate(box.lines[:3]):
        short = line if len(line) <= _CHARACTERS else line[: _CHARACTERS - 2] + ".."
        y = place.y + _PAD + 11 + number * _LINE_HEIGHT
        lines.append(f'<text x="{place.x + _PAD:.0f}" y="{y:.1f}">{text(short)}</text>')
    radius = 3 if box.kind == "thread" else 9
    wanted = str(box.tids[0]) if len(box.tids) == 1 else box.lines[-1 if box.tids else 0]
    tids = " ".join(map(str, box.tids))
    return (
        f'<g class="box" data-search="{text(wanted)}"><title>{text_lines(box.tip)}\n{tids}</title>'
        f'<rect x="{place.x:.0f}" y="{place.y:.1f}" width="{_BOX_WIDTH}" '
        f'height="{place.height:.0f}" rx="{radius}" fill="{fill}" stroke="#555"/>'
        + "".join(lines)
        + "</g>"
    )


def text_lines(value: str) -> str:
    """Several lines for HTML, each escaped."""
    return "\n".join(text(line) for line in value.split("\n"))


def _drawn_line(line: Line, places: Dict[str, _Place]) -> str:
    start, end = places[line.source], places[line.target]
    y1, y2 = start.y + start.height / 2, end.y + end.height / 2
    closes = start.x <= end.x
    if not closes:
        x1, x2 = start.x, end.x + _BOX_WIDTH
        bend = max(20.0, (x1 - x2) / 2)
        path = f"M{x1:.0f} {y1:.1f} C{x1 - bend:.0f} {y1:.1f} {x2 + bend:.0f} {y2:.1f} "
        path += f"{x2:.0f} {y2:.1f}"
    else:
        # Not towards an end: where a cycle closes.
        x1, x2 = start.x + _BOX_WIDTH / 2, end.x + _BOX_WIDTH / 2
        y1, y2 = start.y + start.height, end.y + end.height
        dip = max(y1, y2) + 24
        path = f"M{x1:.0f} {y1:.1f} C{x1:.0f} {dip:.1f} {x2:.0f} {dip:.1f} {x2:.0f} {y2:.1f}"
    dashes = _DASHES.get(line.certainty, "")
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    weight = "1.6" if line.main else "0.8"
    return (
        f'<path d="{path}" fill="none" stroke="{"#c02020" if closes else "#666"}" '
        f'stroke-width="{weight}"{dash} '
        f'marker-end="url(#arrow)"><title>{text(line.kind)} [{text(line.certainty)}: '
        f"{text(line.evidence)}]</title></path>"
    )
