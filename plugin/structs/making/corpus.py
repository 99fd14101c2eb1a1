"""What structs.yaml is written from: the layouts and constants of many kernels at once.

``Corpus`` holds them, whether read from a structs.yaml, from a folder of layout
JSON or from one kernel's debug information; ``write`` makes the file's text.
The text depends on the contents alone, so that adding a kernel changes only the
lines that differ.
"""

from __future__ import annotations

import re
from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError
from plugin.structs.decoders import (
    ALIASES,
    HEADS,
    LINKS,
    NESTED_ENUMS,
    TABLES,
    TableRule,
)
from plugin.structs.kernels import RELEASE, KernelRow, Spans
from plugin.structs.layout import Layout, Member
from plugin.structs.yamlfile import StructsFile, Typedefs

HEAD = """\
# structs.yaml: where the members of FreeBSD's kernel structs lie, kernel by kernel.
#
# Written by `wchan structs import` and `wchan structs generate`, checked by
# `wchan structs check`; never edited by hand, except that a file of one's own may
# hold a few struct documents in this form (`--structs FILE`).
#
# The file is a stream of YAML documents.  The first key says what a document is:
#
# kernels:    one line per kernel, oldest version first: NAME: OPTIONS.  NAME is
#             VERSION-ARCH[-VARIANT]; `versions` gives for each VERSION the range of
#             __FreeBSD_version it is exact for and where it was taken from;
#             `options` the structs that depend on one option (any other struct
#             that has a debug layout takes it with INVARIANTS or WITNESS).
# struct:     one layout of a struct (`union:` likewise), for the kernels named in
#             `for`, with its size in bytes and one line per member:
#                 OFFSET SIZE NAME: TYPE [= TABLE] [-> STRUCT.LINK]
#             OFFSET and SIZE in bytes; a bit-field's OFFSET is BYTE.BIT+WIDTH, the
#             bit counted from the least significant one of BYTE.  TYPE as declared.
#             TABLE explains the value.  -> says of a list head by which member its
#             elements are linked.  Members of anonymous structs are written
#             `outer.inner`; those of an array of anonymous structs `array[].inner`,
#             their OFFSET counted from the array's element.
# typedefs:   what the declared types are: TYPE: C TYPE [for SPAN][; ...]
# table:      an enum or flag table (`kind: bits`: the constants are bit numbers), the
#             members it explains (`of`), and NAME: VALUE [for SPAN][; VALUE for SPAN]
# constants:  other constants of the kernel's headers, in the same form.
# aliases:    members that have become a macro for another one.
# heads:      global list heads: SYMBOL: STRUCT.LINK of the elements.
# globals:    variables that are structs, or arrays of them: SYMBOL: TYPE.  A kernel
#             whose symbols have other sizes contradicts the layouts.
#
# SPAN is a comma-separated list of ARCH[/VARIANT] [FROM..TO], ARCH being amd64, i386,
# arm64 or all, VARIANT release, debug or up; FROM and TO are versions, inclusive, and
# either may be left out.  No span means every kernel.
"""

_NEXT = re.compile(r"\.(?:tqe_next|le_next|sle_next|stqe_next)$")
_FIRST = re.compile(r"\.?(?:tqh_first|lh_first|slh_first|stqh_first)$")
_KIND_OF_NEXT = {"tqe_next": "tqh", "le_next": "lh", "sle_next": "slh", "stqe_next": "stqh"}


class Source(NamedTuple):
    """One kernel's layouts and constants."""

    row: KernelRow
    structs: Mapping[str, Layout]
    #: macros and enumerators together
    constants: Mapping[str, int]
    #: {variable: C type} of variables that are structs or arrays of them
    globals: Mapping[str, str]


class Corpus:
    """Kernels with their layouts and constants, ready to be written."""

    def __init__(self, sources: Iterable[Source], options: Mapping[str, Tuple[str, ...]]) -> None:
        self.sources = sorted(sources, key=lambda source: _order(source.row))
        self.options = dict(options)

    @classmethod
    def load(cls, file: StructsFile) -> Corpus:
        """Everything a structs.yaml says."""
        sources = []
        for row in file.rows:
            typedefs = Typedefs(file.strings("typedefs", row))
            structs = {d.name: file.layout(d, typedefs) for d in file.struct_documents(row)}
            constants: Dict[str, int] = {}
            for kind in ("constants", "table"):
                for document in file.of_kind(kind, row):
                    constants.update(file.numbers(document, row))
            sources.append(Source(row, structs, constants, file.strings("globals", row)))
        return cls(sources, file.option_structs)

    def replaced(self, sources: Iterable[Source]) -> Corpus:
        """This corpus with kernels added; one of the same name is replaced."""
        merged = {source.row.name: source for source in self.sources}
        merged.update((source.row.name, source) for source in sources)
        return Corpus(merged.values(), self.options)

    def write(self) -> str:
        """The text of structs.yaml."""
        spans = Spans([source.row for source in self.sources])
        parts = [HEAD, self._kernels()]
        typedefs = self._typedefs()
        parts += self._structs(spans)
        parts += _value_document("typedefs", "all", "", typedefs, spans, len(self.sources))
        parts += self._constants(spans)
        every = [source.row.name for source in self.sources]
        aliases = {name: {path: every} for name, path in ALIASES.items()}
        heads = self._heads()
        variables: Dict[str, Dict[str, List[str]]] = {}
        for source in self.sources:
            for name, type_ in source.globals.items():
                variables.setdefault(name, {}).setdefault(type_, []).append(source.row.name)
        parts += _value_document("aliases", "all", "", aliases, spans, len(self.sources))
        parts += _value_document("heads", "all", "", heads, spans, len(self.sources))
        variables = dict(sorted(variables.items()))
        parts += _value_document("globals", "all", "", variables, spans, len(self.sources))
        return "---\n".join(parts)

    def _kernels(self) -> str:
        lines = ["kernels: |"]
        for source in self.sources:
            options = " ".join(sorted(source.row.options))
            lines.append(f"  {source.row.name}: {options}".rstrip())
        lines.append("versions: |")
        for row in {source.row.version: source.row for source in self.sources}.values():
            span = str(row.first) if row.first == row.last else f"{row.first}-{row.last}"
            note = f"vendor {row.vendor} by {row.source}" if row.vendor else row.source
            lines.append(f"  {row.version}: {span}; {note}")
        if self.options:
            lines.append("options: |")
            for option, structs in sorted(self.options.items()):
                lines.append(f"  {option}: {' '.join(structs)}")
        return "\n".join(lines) + "\n"

    def _structs(self, spans: Spans) -> Iterator[str]:
        names = sorted({name for source in self.sources for name in source.structs})
        for name in names:
            variants: Dict[Tuple[str, ...], List[str]] = {}
            for source in self.sources:
                layout = source.structs.get(name)
                if layout is not None:
                    links = _links(layout, source.structs)
                    key = (
                        layout.kind,
                        layout.file,
                        str(layout.size),
                        *_member_lines(layout, links),
                    )
                    variants.setdefault(key, []).append(source.row.name)
            # a header that moved is no other layout
            merged: Dict[Tuple[str, ...], Tuple[List[str], str]] = {}
            for (kind, file, *rest), kernels in variants.items():
                key = (kind, *rest)
                known, _ = merged.get(key, ([], ""))
                merged[key] = (known + kernels, file)
            for (kind, size, *lines), (kernels, file) in merged.items():
                head = [f"{kind}: {name}", f"for: {spans.write(kernels)}"]
                head += [f"file: {file}"] if file else []
                head += [f"size: {size}", "members: |"]
                yield "\n".join(head + [f"  {line}" for line in lines]) + "\n"

    def _typedefs(self) -> Dict[str, Dict[str, List[str]]]:
        """Per type the C types it stands for and where; words before the rest.

        A type that its own words already resolve needs no line.
        """
        found: Dict[str, Dict[str, List[str]]] = {}
        for source in self.sources:
            pairs: Dict[str, str] = {}
            for layout in source.structs.values():
                for member in layout:
                    if pairs.setdefault(member.type, member.ctype) != member.ctype:
                        raise LayoutError(
                            f"{source.row.name}: {member.type} is both {pairs[member.type]} "
                            f"and {member.ctype}"
                        )
            words: Dict[str, str] = {}
            for type_, ctype in sorted(pairs.items(), key=lambda pair: (len(pair[0]), pair[0])):
                if Typedefs(words).resolve(type_) == ctype:
                    continue
                simple = _simplified(type_, ctype)
                if simple is not None and words.get(simple[0], simple[1]) == simple[1]:
                    words[simple[0]] = simple[1]
                if Typedefs(words).resolve(type_) != ctype:
                    words[type_] = ctype
            # a word learnt late may have changed what an earlier type resolves to
            for type_, ctype in pairs.items():
                if Typedefs(words).resolve(type_) != ctype:
                    words[type_] = ctype
            for type_, ctype in words.items():
                found.setdefault(type_, {}).setdefault(ctype, []).append(source.row.name)
        return dict(sorted(found.items()))

    def _values(
        self, rule: Optional[TableRule], taken: set[str]
    ) -> Dict[str, Dict[str, List[str]]]:
        found: Dict[str, Dict[str, List[str]]] = {}
        pattern = re.compile(rule.match) if rule else None
        for source in self.sources:
            for name, value in source.constants.items():
                if name in taken or (pattern is not None and not pattern.fullmatch(name)):
                    continue
                text = hex(value) if value > 9 else str(value)
                found.setdefault(name, {}).setdefault(text, []).append(source.row.name)
        if rule is not None and rule.kind == "flags":
            found = {
                name: values
                for name, values in found.items()
                if all(_single_bit(int(value, 0)) for value in values)
            }
        return found

    def _constants(self, spans: Spans) -> Iterator[str]:
        count = len(self.sources)
        taken: set[str] = set()
        for rule in TABLES:
            values = self._values(rule, set())
            ordered = sorted(
                values.items(),
                key=lambda item: (
                    # of two names for a value a reader of the file takes the first
                    item[0] not in rule.first.split(),
                    min(int(v, 0) for v in item[1]),
                    item[0],
                ),
            )
            taken.update(values)
            extra = f"kind: {rule.kind}\nof: {rule.of}\n"
            yield from _value_document("table", rule.name, extra, dict(ordered), spans, count)
        rest = self._values(None, taken)
        groups: Dict[str, Dict[str, Dict[str, List[str]]]] = {}
        for name in sorted(rest):
            prefix = name.split("_")[0] if "_" in name.strip("_") else "other"
            groups.setdefault(prefix or "other", {})[name] = rest[name]
        small = {p for p, g in groups.items() if len(g) < 4 and p != "other"}
        for prefix in small:
            groups.setdefault("other", {}).update(groups.pop(prefix))
        for prefix in sorted(groups):
            group = dict(sorted(groups[prefix].items()))
            yield from _value_document("constants", prefix, "", group, spans, count)

    def _heads(self) -> Dict[str, Dict[str, List[str]]]:
        found: Dict[str, Dict[str, List[str]]] = {}
        for source in self.sources:
            for symbol, links in HEADS.items():
                link = _first_link(links, source.structs)
                if link:
                    found.setdefault(symbol, {}).setdefault(link, []).append(source.row.name)
        return found


def _order(row: KernelRow) -> Tuple[int, str, str, str, str]:
    return (
        row.first,
        row.version,
        row.arch,
        "" if row.variant == RELEASE else row.variant,
        row.name,
    )


def _single_bit(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _simplified(type_: str, ctype: str) -> Optional[Tuple[str, str]]:
    """The bare typedef behind a pointer, array or qualified type, if it shows."""
    while True:
        for suffix in (" *", "*"):
            if type_.endswith(suffix) and ctype.endswith(suffix):
                type_, ctype = type_[: -len(suffix)], ctype[: -len(suffix)]
                break
        else:
            array = re.search(r"\[\d*\]$", type_)
            if array and ctype.endswith(array.group()):
                type_, ctype = type_[: array.start()], ctype[: -len(array.group())]
                continue
            qualifier = re.match(r"(const|volatile) ", type_)
            if qualifier and ctype.startswith(qualifier.group()):
                type_, ctype = type_[qualifier.end() :], ctype[qualifier.end() :]
                continue
            break
    return (type_, ctype) if re.fullmatch(r"\w+", type_) else None


def _value_document(
    kind: str,
    name: str,
    extra: str,
    values: Mapping[str, Mapping[str, List[str]]],
    spans: Spans,
    count: int,
) -> Iterator[str]:
    if not values:
        return
    lines = [f"{kind}: {name}\n{extra}values: |"]
    written: Dict[Tuple[str, ...], str] = {}
    for entry, choices in values.items():
        texts = []
        for value, kernels in choices.items():
            if len(kernels) == count:
                texts.append(value)
                continue
            key = tuple(kernels)
            if key not in written:
                written[key] = spans.write(kernels)
            texts.append(f"{value} for {written[key]}")
        lines.append(f"  {entry}: {'; '.join(texts)}")
    yield "\n".join(lines) + "\n"


# Members


def _member_lines(layout: Layout, links: Mapping[str, str]) -> Iterator[str]:
    for member in layout:
        at = str(member.offset)
        if member.bit_size:
            at += f".{member.bit_pos}+{member.bit_size}"
        line = f"{at:<5} {member.size:<4} {member.name}: {member.type}"
        decoder = _DECODERS.get(f"{layout.name}.{member.name}", member.decoder)
        if decoder:
            line += f" = {decoder}"
        if member.name in links:
            line += f" -> {links[member.name]}"
        yield line


_DECODERS: Dict[str, str] = {member: rule.name for rule in TABLES for member in rule.of.split()}


def _first_link(links: str, structs: Mapping[str, Layout]) -> str:
    """The first of several links that these structs have, "" if none."""
    for link in links.split():
        struct, _, member = link.partition(".")
        layout = structs.get(struct)
        if layout is not None and any(_NEXT.sub("", name) == member for name in layout.members):
            return link
    return ""


def _links(layout: Layout, structs: Mapping[str, Layout]) -> Dict[str, str]:
    """{member: link} for the list heads in a struct, by rule or because there is one link only."""
    found: Dict[str, str] = {}
    for member in layout:
        first = _FIRST.search(member.name)
        if first is not None:
            head = member.name[: first.start()]
            shown = head.rstrip("[]") or member.name
            ruled = LINKS.get(f"{layout.name}.{head.rstrip('[]')}" if head else layout.name)
            if ruled is not None:
                link = _first_link(ruled, structs)
            else:
                kind = first.group().lstrip(".")[: -len("_first")]
                link = _only_link(member, kind, structs)
            if link:
                found[shown if shown in layout.members else member.name] = link
        elif f"{layout.name}.{member.name}" in LINKS and member.name not in found:
            link = _first_link(LINKS[f"{layout.name}.{member.name}"], structs)
            if link and (member.struct or member.element):
                found[member.name] = link
    return found


def _only_link(member: Member, kind: str, structs: Mapping[str, Layout]) -> str:
    target = structs.get(member.points_to or "")
    if target is None:
        return ""
    links = [
        _NEXT.sub("", m.name)
        for m in target
        if _NEXT.search(m.name)
        and _KIND_OF_NEXT[m.name.rpartition(".")[2]] == kind
        and m.points_to == target.name
    ]
    return f"{target.name}.{links[0]}" if len(links) == 1 else ""


def with_nested_enums(constants: Mapping[str, int]) -> Dict[str, int]:
    """The constants, with the enumerators that are declared inside structs."""
    return {**NESTED_ENUMS, **constants}
