"""The GEOM mesh as an indented tree: each device, and what stands on it."""

from __future__ import annotations

from typing import Container, Iterator, List, Mapping, Optional, Set, Tuple

from plugin.kernel.geom import Geom, Mesh, Provider

#: deeper than any stack of classes; a mesh that loops is cut here
_DEPTH = 32


def tree(mesh: Mesh, notes: Mapping[int, str], geoms: Optional[Container[int]] = None) -> List[str]:
    """One line per provider and per geom above it; ``notes`` by address end a line.

    Geoms without a consumer and without a provider come last: a class may keep
    one to be controlled through.
    """
    lines: List[str] = []
    seen: Set[int] = set()
    for g_class in mesh.classes:
        for geom in g_class.geoms:
            if geom.consumers or not geom.providers or (geoms and geom.address not in geoms):
                continue
            seen.add(geom.address)
            for provider in geom.providers:
                lines.extend(_provider(provider, notes, (), seen, geoms))
    rest = [
        geom
        for geom in mesh.geoms.values()
        if geom.address not in seen and (geoms is None or geom.address in geoms)
    ]
    if rest:
        lines.append("on no device:")
        lines.extend(f"  {_geom_line(geom, notes)}" for geom in rest)
    return lines


def _provider(
    provider: Provider,
    notes: Mapping[int, str],
    below: Tuple[int, ...],
    seen: Set[int],
    geoms: Optional[Container[int]],
) -> Iterator[str]:
    """The provider and what stands on it; ``below``: the providers that it stands on."""
    depth = 2 * len(below)
    note = notes.get(provider.address, "")
    yield (
        "  " * depth
        + f"{provider.name}  {provider.class_name} {provider.access}"
        + (f"  {note}" if note else "")
    )
    if depth >= _DEPTH or provider.address in below:
        why = "deeper than any mesh is" if depth >= _DEPTH else "the mesh loops"
        yield "  " * (depth + 1) + f"... {why}"
        return
    for consumer in provider.consumers:
        above = consumer.geom
        if geoms is not None and above.address not in geoms:
            continue
        seen.add(above.address)
        yield "  " * (depth + 1) + f"{_geom_line(above, notes)}  {consumer.access}"
        for made in above.providers:
            yield from _provider(made, notes, (*below, provider.address), seen, geoms)


def _geom_line(geom: Geom, notes: Mapping[int, str]) -> str:
    note = notes.get(geom.address, "")
    return f"{geom.g_class.name} {geom.name}" + (f"  {note}" if note else "")
