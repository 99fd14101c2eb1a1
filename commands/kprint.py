"""kprint: any struct that structs.yaml or debug information knows, decoded; its lists walked."""

from __future__ import annotations

import argparse
from typing import Tuple

from commands import Needs
from plugin.errors import MemoryFault, UsageError
from plugin.kernel.pcpu import vnet_addresses
from plugin.render.kprint import list_elements, one_struct
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.structs.value import find_link, head_of_symbol

HELP = (
    "any struct at an address or symbol, flags decoded, pointers symbolized; --list walks its lists"
)
EXAMPLE = "kprint proc allproc --list p_list --members p_pid,p_comm,p_flag"
FORMS = ("proc allproc --list p_list", "proc allproc")
COMPLETES = ("structs",)
NEEDS = Needs()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("struct", metavar="STRUCT", help="the struct's name, as in C")
    parser.add_argument(
        "where",
        metavar="ADDRESS|SYMBOL",
        help="an address, a symbol or SYMBOL+OFFSET; *SYMBOL for what the variable points to",
    )
    parser.add_argument("--list", metavar="MEMBER", help="walk the list it heads, or is a link of")
    parser.add_argument(
        "--vnet",
        type=int,
        default=0,
        metavar="N",
        help="of a VNET variable the copy of the Nth network stack: 0 the host's (default), "
        "1 and up those of jails",
    )
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
    symbol, at = _place(kernel, args.where, args.vnet)
    if args.list:
        link = head_of_symbol(kernel, symbol, at, struct, args.list) if symbol else None
        if link is None:
            link = find_link(
                kernel, struct, _start(kernel, args.where, symbol, at, layout.size), args.list
            )
        return list_elements(kernel, link, wanted, args.depth)
    start = _start(kernel, args.where, symbol, at, layout.size)
    return one_struct(kernel, struct, start, wanted, args.depth)


def _element(kernel: Kernel, struct: str, args: argparse.Namespace) -> str:
    """The struct whose members a listing shows: known only once the list is found."""
    symbol, at = _place(kernel, args.where, args.vnet)
    if symbol and head_of_symbol(kernel, symbol, at, struct, args.list) is not None:
        return struct
    start = _start(kernel, args.where, symbol, at, kernel.layouts.sizeof(struct))
    return find_link(kernel, struct, start, args.list).struct


def _place(kernel: Kernel, where: str, vnet: int) -> Tuple[str, int]:
    """(symbol or "", address) of what the user named."""
    text = where.lstrip("*&")
    try:
        return "", int(text, 0)
    except ValueError:
        pass
    name, plus, offset = text.partition("+")
    try:
        distance = int(offset, 0) if plus else 0
    except ValueError:
        raise UsageError(f"{offset!r} is no offset") from None
    if not kernel.has_symbol(name):
        # "ifnet" for V_ifnet, of which only the template has a symbol
        copies = [at for _, at in vnet_addresses(kernel, name)]
        if copies and not 0 <= vnet < len(copies):
            raise UsageError(f"there is no network stack {vnet}: {name} has {len(copies)} copies")
        if copies:
            return "", copies[vnet] + distance
    return name if not plus else "", kernel.address_of(name) + distance


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
