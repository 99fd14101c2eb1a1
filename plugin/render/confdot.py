"""The GEOM mesh as a graph, in the shape of kern.geom.confdot.

Mirrors g_confdot() in sys/geom/geom_dump.c: a box for a geom, a hexagon for a
provider, an ellipse for a consumer, named by their addresses.  What is stuck is
filled and says so in one more line of its label.
"""

from __future__ import annotations

from typing import Container, Dict, Iterator, NamedTuple, Optional

from plugin.kernel.geom import Consumer, Geom, Mesh, Provider


class Mark(NamedTuple):
    """How a node stands out: its fill, and what its label says besides."""

    colour: str
    text: str = ""


#: fills: a device that owes I/O, what waits for it, what is in error
OWES = "#f4b6b6"
WAITS = "#fbe0b0"
ERROR = "#d0d0d0"


def confdot(mesh: Mesh, marks: Dict[int, Mark], geoms: Optional[Container[int]] = None) -> str:
    """The graph; ``marks`` by address, ``geoms`` limits it to some geoms."""
    return "\n".join(_lines(mesh, marks, geoms)) + "\n"


def _lines(mesh: Mesh, marks: Dict[int, Mark], geoms: Optional[Container[int]]) -> Iterator[str]:
    yield "digraph geom {"
    shown = {
        geom.address: geom
        for g_class in mesh.classes
        for geom in g_class.geoms
        if geoms is None or geom.address in geoms
    }
    for geom in shown.values():
        yield from _geom(geom, marks, shown)
    yield "}"


def _geom(geom: Geom, marks: Dict[int, Mark], shown: Container[int]) -> Iterator[str]:
    label = f"{_quote(geom.g_class.name)}\\n{_quote(geom.name)}\\nr#{geom.rank}"
    yield _node(geom.address, label, "shape=box,", marks)
    for consumer in geom.consumers:
        yield from _consumer(consumer, marks, shown)
        yield f"z{geom.address:#x} -> z{consumer.address:#x};"
    for provider in geom.providers:
        yield _provider(provider, marks)
        yield f"z{provider.address:#x} -> z{geom.address:#x};"


def _consumer(consumer: Consumer, marks: Dict[int, Mark], shown: Container[int]) -> Iterator[str]:
    yield _node(consumer.address, str(consumer.access), "", marks)
    provider = consumer.provider
    if provider is not None and provider.geom is not None and provider.geom.address in shown:
        yield f"z{consumer.address:#x} -> z{provider.address:#x};"


def _provider(provider: Provider, marks: Dict[int, Mark]) -> str:
    label = (
        f"{_quote(provider.name)}\\n{provider.access}\\nerr#{provider.error}\\n"
        f"sector={provider.sectorsize}\\nstripe={provider.stripesize}"
    )
    return _node(provider.address, label, "shape=hexagon,", marks)


def _node(address: int, label: str, shape: str, marks: Dict[int, Mark]) -> str:
    mark = marks.get(address)
    if mark is None:
        return f'z{address:#x} [{shape}label="{label}"];'
    more = f"\\n{_quote(mark.text)}" if mark.text else ""
    return f'z{address:#x} [{shape}label="{label}{more}",style=filled,fillcolor="{mark.colour}"];'


def _quote(text: str) -> str:
    """A name out of the core, made harmless inside a DOT string."""
    safe = "".join(c if c.isprintable() else "?" for c in text)
    return safe.replace("\\", "\\\\").replace('"', '\\"')
