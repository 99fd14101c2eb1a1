"""The GEOM mesh as XML, in the shape of kern.geom.confxml.

Mirrors g_confxml() in sys/geom/geom_dump.c, so that what reads the sysctl
(geom_xml2tree() of libgeom, and geom(8) with it) reads this.  <config> holds
what class DISK puts there; other classes keep theirs in softcs of their own.
"""

from __future__ import annotations

from typing import Callable, Container, Iterator, Mapping, Optional

from plugin.kernel.geom import G_PF_WITHER, Consumer, Geom, Mesh, Provider

#: what a provider's <config> holds: {element: text}, in order
Config = Callable[[Provider], Mapping[str, str]]


def confxml(mesh: Mesh, config: Config, geoms: Optional[Container[int]] = None) -> str:
    """The document; ``geoms`` limits it to some geoms."""
    return "\n".join(_lines(mesh, config, geoms)) + "\n"


def _lines(mesh: Mesh, config: Config, geoms: Optional[Container[int]]) -> Iterator[str]:
    yield "<mesh>"
    for g_class in mesh.classes:
        yield f'  <class id="{g_class.address:#x}">'
        yield f"    <name>{_escape(g_class.name)}</name>"
        for geom in g_class.geoms:
            if geoms is None or geom.address in geoms:
                yield from _geom(geom, config, geoms)
        yield "  </class>"
    yield "</mesh>"


def _geom(geom: Geom, config: Config, geoms: Optional[Container[int]]) -> Iterator[str]:
    yield f'    <geom id="{geom.address:#x}">'
    yield f'      <class ref="{geom.g_class.address:#x}"/>'
    yield f"      <name>{_escape(geom.name)}</name>"
    yield f"      <rank>{geom.rank}</rank>"
    if geom.withering:
        yield "      <wither/>"
    elif geom.dumpconf:
        yield "      <config>"
        yield "      </config>"
    for consumer in geom.consumers:
        yield from _consumer(consumer, geoms)
    for provider in geom.providers:
        yield from _provider(provider, config)
    for alias in geom.aliases:
        yield f"      <alias>{_escape(alias)}</alias>"
    yield "    </geom>"


def _consumer(consumer: Consumer, geoms: Optional[Container[int]]) -> Iterator[str]:
    yield f'\t<consumer id="{consumer.address:#x}">'
    yield f'\t  <geom ref="{consumer.geom.address:#x}"/>'
    provider = consumer.provider
    # A reference to what the document lacks would make libgeom follow NULL.
    below = provider.geom if provider is not None else None
    if provider is not None and below and (geoms is None or below.address in geoms):
        yield f'\t  <provider ref="{provider.address:#x}"/>'
    yield f"\t  <mode>{consumer.access}</mode>"
    if consumer.geom.dumpconf and not consumer.geom.withering:
        yield "\t  <config>"
        yield "\t  </config>"
    yield "\t</consumer>"


def _provider(provider: Provider, config: Config) -> Iterator[str]:
    geom = provider.geom
    yield f'\t<provider id="{provider.address:#x}">'
    if geom is not None:
        yield f'\t  <geom ref="{geom.address:#x}"/>'
    yield f"\t  <mode>{provider.access}</mode>"
    yield f"\t  <name>{_escape(provider.name)}</name>"
    for alias in provider.aliases:
        yield f"\t  <alias>{_escape(alias)}</alias>"
    yield f"\t  <mediasize>{provider.mediasize}</mediasize>"
    yield f"\t  <sectorsize>{provider.sectorsize}</sectorsize>"
    yield f"\t  <stripesize>{provider.stripesize}</stripesize>"
    yield f"\t  <stripeoffset>{provider.stripeoffset}</stripeoffset>"
    if provider.flags & G_PF_WITHER:
        yield "\t  <wither/>"
    elif geom is not None and geom.dumpconf and not geom.withering:
        yield "\t  <config>"
        for name, value in config(provider).items():
            yield f"\t    <{name}>{_escape(value)}</{name}>"
        yield "\t  </config>"
    yield "\t</provider>"


def _escape(text: str) -> str:
    """As g_conf_cat_escaped(): markup and what is not ASCII by number, controls as "?"."""
    out = []
    for c in text:
        if c in "&<>'\"" or (ord(c) > 0x7E and c.isprintable()):
            out.append(f"&#x{ord(c):X};")
        elif c in "\t\n\r" or 0x1F < ord(c) < 0x7F:
            out.append(c)
        else:
            out.append("?")
    return "".join(out)
