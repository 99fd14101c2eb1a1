"""hang-report's report: the sections one after the other, as text, JSON or one HTML page."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from plugin.findings import Finding
from plugin.kernel.tc import uptime
from plugin.render import html
from plugin.render.report import Block, Report, Text
from plugin.render.text import first_lines
from plugin.session import Kernel
from plugin.waits.analysis import Analysis
from plugin.words import address, count, seconds
from plugin.written import write_file


class Section(NamedTuple):
    """What one command answered: ``report``, or None and the ``error`` in its place.

    ``seconds`` is the time it took, ``findings`` what it could not read.
    """

    title: str
    line: Tuple[str, ...]
    seconds: float
    report: Optional[Report]
    error: str
    findings: List[Finding]
    partial: bool


def report(kernel: Kernel, profile: str, sections: Sequence[Section]) -> Report:
    """All sections in one report; each is a part that ``-o DIR`` writes to a file of its own."""
    made = Report({"profile": profile, "sections": [_data(section) for section in sections]})
    for line in _head(kernel, profile, sections):
        made.text(line)
    for section in sections:
        made.heading(f"##### {section.title}   ({' '.join(section.line)}, {section.seconds:.2f} s)")
        if section.error:
            made.text(f"not answered: {section.error}")
        if section.report is not None:
            made.body += section.report.body
            made.parts.append((section.title, section.report))
        for finding in section.findings[:8]:
            made.text(f"warning: {finding.what}: {finding.detail}")
    return made


def _head(kernel: Kernel, profile: str, sections: Sequence[Section]) -> List[str]:
    up = uptime(kernel)
    lines = [
        f"FreeBSD {kernel.release} {kernel.arch} {kernel.ident}"
        + (f", up {seconds(up)}" if up is not None else "")
        + f", layouts: {kernel.layouts.name}. Profile {profile}: {count(len(sections), 'section')}"
        + f" in {sum(section.seconds for section in sections):.1f} s."
    ]
    if kernel.panicstr:
        lines.append(f"panic: {kernel.panicstr}")
    failed = [section.title for section in sections if section.error]
    if failed:
        lines.append(f"Not answered: {', '.join(failed)}.")
    return lines


def _data(section: Section) -> Dict[str, Any]:
    return {
        "name": section.title,
        "command": section.line[0],
        "arguments": list(section.line[1:]),
        "seconds": round(section.seconds, 3),
        "error": section.error or None,
        "partial": section.partial,
        "warnings": [
            {"what": f.what, "address": address(f.address), "detail": f.detail}
            for f in section.findings
        ],
        "data": section.report.data if section.report is not None else None,
    }


def page(
    kernel: Kernel,
    profile: str,
    sections: Sequence[Section],
    path: str,
    analysis: Optional[Analysis],
) -> Report:
    """All sections as one HTML page at ``path``; WchanError where it cannot be written."""
    made = report(kernel, profile, sections)
    folded: List[Tuple[str, Sequence[Block]]] = []
    for section in sections:
        body: List[Block] = list(section.report.body) if section.report is not None else []
        if section.error:
            body.insert(0, Text(f"not answered: {section.error}"))
        folded.append((f"{section.title} ({' '.join(section.line)})", body))
    head = _head(kernel, profile, sections)
    # The page stands alone: what makes it less than whole is on it, above the verdict.
    head[1:1] = first_lines(kernel.warnings)
    write_file(path, html.sections_page(head, folded, analysis), kernel.target.files)
    made.body = []
    made.pre(f"written to {path}")
    return made
