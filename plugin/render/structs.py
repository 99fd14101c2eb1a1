"""structs's report: the layouts that are known, and one member by member."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Optional, Sequence

from plugin.render.report import Report
from plugin.structs.layout import Layout

if TYPE_CHECKING:
    pass


def list_structs(
    report: Report, names: Sequence[str], get: Callable[[str], Optional[Layout]]
) -> None:
    rows = []
    for name in names:
        layout = get(name)
        if layout is not None:
            rows.append((f"{layout.kind} {name}", layout.size, len(layout.members), layout.file))
            report.data["structs"].append(
                {"name": name, "kind": layout.kind, "size": layout.size, "file": layout.file}
            )
    report.table(("struct", "size>", "members>", "sys/"), rows, limit=False)


def show(layouts: Sequence[tuple[str, Layout]], source: str) -> Report:
    report = Report({"layouts": source, "structs": []})
    for name, layout in layouts:
        report.heading(f"{layout.kind} {name}, {layout.size} bytes ({source})")
        rows = []
        for member in layout:
            at = str(member.offset)
            if member.bit_size:
                at += f".{member.bit_pos}+{member.bit_size}"
            link = f"-> {member.link}" if member.link else ""
            explained = " ".join(filter(None, (member.decoder, link)))
            rows.append((at, member.size, member.name, member.type, explained))
        report.table(("offset>", "size>", "member", "type", "explained by"), rows, limit=False)
        report.data["structs"].append(
            {
                "name": name,
                "kind": layout.kind,
                "size": layout.size,
                "file": layout.file,
                "members": [member._asdict() for member in layout],
            }
        )
    return report
