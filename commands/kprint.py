"""kprint: any struct that structs.yaml or debug information knows, decoded; its lists walked."""

from __future__ import annotations

import argparse
from typing import Any, Dict, Iterator, List, Optional, Tuple

from plugin.errors import MemoryFault, UsageError
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.structs.value import Link, Value, Wanted, elements, find_link, head_of_symbol, values
from plugin.words import address, count

HELP = "any struct at an address or symbol, decoded; --list walks one of its lists"
EXAMPLE = "kprint proc allproc --list p_list --members p_pid,p_comm,p_flag"

#: members that say what an element of a list is
_TELLING = ("name", "comm", "tid", "pid", "wmesg", "length", "offset", "cmd", "state", "size")
_COLUMNS = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("struct", metavar="STRUCT", help="the struct's name, as in C")
    parser.add_argument(
        "where",
        metavar="ADDRESS|SYMBOL",
        help="an address, a symbol or SYMBOL+OFFSET; *SYMBOL for what the variable points to",
    )
    parser.add_argument("--list", metavar="MEMBER", help="walk the list it heads, or is a link of")
    parser.add_argument("--members", metavar="A,B,..", help="only these members")
    parser.add_argument(
        "--depth",
        type=int,
        default=1,
        metavar="N",
        help="open structs held by value N levels deep (default 1)",
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    struct = args.struct.removeprefix("struct ")
    layout = kernel.layouts[struct]
    wanted = [name.strip() for name in args.members.split(",")] if args.members else None
    for name in wanted or ():
        kernel.layouts.resolve(struct if not args.list else _element(kernel, struct, args), name)
    symbol, at = _place(kernel, args.where)
    if args.list:
        link = head_of_symbol(kernel, symbol, at, struct, args.list) if symbol else None
        if link is None:
            link = find_link(
                kernel, struct, _start(kernel, args.where, symbol, at, layout.size), args.list
            )
        return _list(kernel, link, wanted, args)
    start = _start(kernel, args.where, symbol, at, layout.size)
    return _one(kernel, struct, start, wanted, args.depth)


def _element(kernel: Kernel, struct: str, args: argparse.Namespace) -> str:
    """The struct whose members a listing shows: known only once the list is found."""
    symbol, at = _place(kernel, args.where)
    if symbol and head_of_symbol(kernel, symbol, at, struct, args.list) is not None:
        return struct
    start = _start(kernel, args.where, symbol, at, kernel.layouts.sizeof(struct))
    return find_link(kernel, struct, start, args.list).struct


def _place(kernel: Kernel, where: str) -> Tuple[str, int]:
    """(symbol or "", address) of what the user named."""
    text = where.lstrip("*&")
    try:
        return "", int(text, 0)
    except ValueError:
        pass
    name, plus, offset = text.partition("+")
    try:
        return name if not plus else "", kernel.address_of(name) + (int(offset, 0) if plus else 0)
    except ValueError:
        raise UsageError(f"{offset!r} is no offset") from None


def _start(kernel: Kernel, where: str, symbol: str, at: int, size: int) -> int:
    """Where the struct itself begins: at the variable, or where the variable points."""
    found = kernel.symbol(symbol) if symbol else None
    is_pointer = found is not None and found.size == kernel.pointer_size != size
    if where.startswith("*") or (is_pointer and not where.startswith("&")):
        target = kernel.pointer(at)
        if not target:
            raise MemoryFault(0, f"{where.lstrip('*')} is NULL")
        return target
    return at


def _one(
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


def _list(
    kernel: Kernel, link: Link, wanted: Optional[List[str]], args: argparse.Namespace
) -> Report:
    columns = wanted or _telling(kernel, link.struct)
    picked = Wanted(columns)
    rows = []
    made = []
    for at in elements(kernel, link):
        try:
            found = {
                value.path: value for value in _wanted(kernel, link.struct, at, picked, args.depth)
            }
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
