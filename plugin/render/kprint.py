"""kprint's report: a struct decoded member by member, a list with a line an element."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Optional

from plugin.errors import MemoryFault
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.structs.value import Link, Value, Wanted, elements, values
from plugin.words import address, count

#: members that say what an element of a list is
_TELLING = ("name", "comm", "tid", "pid", "wmesg", "length", "offset", "cmd", "state", "size")

_COLUMNS = 7


def one_struct(
    kernel: Kernel, struct: str, start: int, wanted: Optional[List[str]], depth: int
) -> Report:
    layout = kernel.layouts[struct]
    shown = list(_wanted(kernel, struct, start, Wanted(wanted) if wanted else None, depth))
    report = Report(
        {
            "struct": struct,
            "address": address(start),
            "size": layout.size,
            "symbol": kernel.symbolize(start) or None,
            "members": [_as_json(value) for value in shown],
        }
    )
    name = kernel.symbolize(start)
    report.heading(
        f"{layout.kind} {struct} at {start:#x}{f' <{name}>' if name else ''}, {layout.size} bytes"
    )
    rows = [(v.path, _text(v), v.meaning, v.type) for v in shown]
    report.table(("member", "value", "meaning", "type"), rows, limit=False)
    return report


def _wanted(
    kernel: Kernel, struct: str, start: int, wanted: Optional[Wanted], depth: int
) -> Iterator[Value]:
    return values(kernel, struct, start, max(depth, 8 if wanted else 0), wanted)


def _as_json(value: Value) -> Dict[str, Any]:
    return {
        "name": value.path,
        "address": address(value.address),
        "type": value.type,
        "value": value.value,
        "meaning": value.meaning or None,
    }


def _text(value: Value) -> str:
    if value.value is None:
        return "?"
    if isinstance(value.value, list):
        return ", ".join(str(item) for item in value.value)
    if value.bits and value.value:
        return f"{value.value:#x}"
    return str(value.value)


def list_elements(kernel: Kernel, link: Link, wanted: Optional[List[str]], depth: int) -> Report:
    columns = wanted or _telling(kernel, link.struct)
    picked = Wanted(columns)
    rows = []
    made = []
    for at in elements(kernel, link):
        try:
            found = {value.path: value for value in _wanted(kernel, link.struct, at, picked, depth)}
        except MemoryFault as fault:
            kernel.warnings.add(f"struct {link.struct}", at, fault.reason)
            found = {}
        made.append(
            {"address": address(at), "members": [_as_json(value) for value in found.values()]}
        )
        rows.append((f"{at:#x}", *(_cell(found, name) for name in columns)))
    report = Report(
        {"struct": link.struct, "link": link.next_path.rpartition(".")[0], "elements": made}
    )
    report.text(f"{count(len(rows), 'element')}, struct {link.struct} by {link.next_path}")
    report.table((f"struct {link.struct}", *columns), rows)
    return report


def _cell(found: Dict[str, Value], name: str) -> str:
    value = found.get(name)
    if value is None:
        return ", ".join(_text(v) for path, v in found.items() if path.startswith(name))
    return value.meaning or _text(value)


def _telling(kernel: Kernel, struct: str) -> List[str]:
    """The members that tell one element from another: names, numbers, states."""
    found = []
    for member in kernel.layouts[struct]:
        plain = not member.struct and "[]." not in member.name and "(" not in member.ctype
        text = member.element is not None and member.element[0] == "char"
        scalar = not member.is_array and (not member.is_pointer or member.bare == "char *")
        telling = member.decoder or member.name.rpartition("_")[2] in _TELLING
        if plain and telling and (scalar or text):
            found.append(member.name)
    # names first: they are what one looks for
    found.sort(key=lambda name: name.rpartition("_")[2] not in _TELLING)
    return found[:_COLUMNS]
