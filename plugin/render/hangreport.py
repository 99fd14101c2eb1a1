"""hang-report's report: the sections one after the other, as text, JSON or one HTML page."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from plugin.findings import Finding
from plugin.kernel.tc import uptime
from plugin.render import html
from plugin.render.report import Report
from plugin.render.text import body_lines, first_lines
from plugin.session import Kernel
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


def page(kernel: Kernel, profile: str, sections: Sequence[Section], path: str) -> Report:
    """All sections as one HTML page at ``path``; WchanError where it cannot be written."""
    made = report(kernel, profile, sections)
    lines = [
        "\n".join(body_lines(section.report.body, width=120, limit=2000))
        if section.report is not None
        else f"not answered: {section.error}"
        for section in sections
    ]
    titles = [f"{section.title} ({' '.join(section.line)})" for section in sections]
    head = _head(kernel, profile, sections)
    # The page stands alone: what makes it less than whole is on it, above the verdict.
    head[1:1] = first_lines(kernel.warnings)
    text = html.sections_page(head, list(zip(titles, lines)))
    write_file(path, text, kernel.target.files)
    made.body = []
    made.pre(f"written to {path}")
    return made
