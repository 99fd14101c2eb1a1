"""provider: GEOM's topology, its health, and which device owes I/O and which does not."""

from __future__ import annotations

import argparse

from commands import Needs
from plugin.captures.machine import TextKernel
from plugin.errors import UsageError
from plugin.kernel.geom import (
    Mesh,
    mesh,
    select,
)
from plugin.render import captures
from plugin.render.provider import as_tree, drawn, providers
from plugin.render.report import Report
from plugin.session import Kernel
from plugin.words import did_you_mean

HELP = "GEOM: providers with access counts, errors, what they owe; as tree, dot, xml or svg"
EXAMPLE = "provider vtbd1\nprovider --tree"
FORMS = ("",)
COMPLETES = ("providers",)
NEEDS = Needs(
    symbols=("g_classes",), structs=("g_class", "g_geom", "g_provider", "g_consumer"), text=True
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "provider",
        nargs="?",
        metavar="NAME|ADDRESS",
        help="one provider, or all of one geom or class, by name or address",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--tree", action="store_true", help="devices, and what stands on each")
    shape.add_argument("--dot", action="store_true", help="a graph as kern.geom.confdot gives it")
    shape.add_argument("--xml", action="store_true", help="the mesh as kern.geom.confxml gives it")
    shape.add_argument("--svg", action="store_true", help="the graph drawn by graphviz")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    if isinstance(kernel, TextKernel):
        return captures.providers(kernel, args.provider)
    every = mesh(kernel)
    chosen, how = select(kernel, args.provider) if args.provider is not None else ([], "all")
    if how is None:
        raise UsageError(_unknown(every, args.provider))
    named = chosen if args.provider is not None else None
    if args.dot or args.svg or args.xml:
        return drawn(kernel, named, "xml" if args.xml else "svg" if args.svg else "dot")
    return as_tree(kernel, named) if args.tree else providers(kernel, named)


def _unknown(found: Mesh, wanted: str) -> str:
    providers = sorted({p.name for p in found.providers.values()})
    known = {*providers, *(g.name for g in found.geoms.values()), *(c.name for c in found.classes)}
    names = ", ".join(providers[:12]) or "no providers"
    near = did_you_mean(wanted, sorted(known))
    return f"no provider, geom or class {wanted!r}{near or f'; there are {names}'}"
