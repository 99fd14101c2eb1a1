"""Reading structs.yaml: only the documents that one kernel needs, and its cache.

The file is a stream of YAML documents; its own head explains them.  A document
is cut out of the text by its separator and handed to the YAML parser only when
the kernel at hand needs it, so that neither the C nor the pure Python parser
reads what is not asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError
from plugin.structs.cache import layout_from_json, layout_to_json
from plugin.structs.kernels import KernelRow, Spans, split_name
from plugin.structs.layout import Layout, Member
from plugin.yamldata import parse

SHIPPED = os.path.join(
    os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "structs.yaml"
)

_SEPARATOR = re.compile(r"^---[^\S\n]*(?:#[^\n]*)?\n", re.M)
_HEAD = re.compile(r"(\w+): *(\S[^\n]*)?\n(?:for: ([^\n]*)\n)?")
_MEMBER = re.compile(
    r"(\d+)(?:\.(\d)\+(\d+))?[ ]+(\d+)[ ]+([\w.\[\]]+): (.+?)"
    r"(?: = (\w+))?(?: -> (\w+\.[\w.]+))?[ ]*"
)
#: a struct document as `wchan structs` writes it: read without a YAML parser
_WRITTEN = re.compile(
    r"(struct|union): ([\w#/.-]+)\n(?:for: [^\n]*\n)?(?:file: ([\w/.+-]+)\n)?size: (\d+)\n"
    r"members: \|\n((?:  [^\n#]*\n)*)"
)
_WORD = re.compile(r"[A-Za-z_]\w*")
_KINDS = frozenset(
    ("kernels", "struct", "union", "typedefs", "table", "constants", "aliases", "heads", "globals")
)
_MAX_BYTES = 64 << 20


class Document(NamedTuple):
    """One document, not parsed yet."""

    kind: str
    name: str
    #: the span after ``for``, "all" where there is none
    span: str
    start: int
    end: int


class Table(NamedTuple):
    """An enum or flag table of one kernel."""

    name: str
    #: "enum", "flags", or "bits" where the constants are bit numbers
    kind: str
    #: the members it explains: "bio.bio_cmd"
    of: Tuple[str, ...]
    names: Mapping[int, str]


class StructsFile:
    """A structs.yaml: its kernels, and whatever of the rest is asked for.

    Every complaint is a LayoutError of one line that names the file.
    """

    def __init__(self, path: Optional[str] = None) -> None:
        self.path = path or SHIPPED
        try:
            with open(self.path, "rb") as stream:
                raw = stream.read(_MAX_BYTES + 1)
        except OSError as error:
            raise LayoutError(f"{self.path}: {error.strerror or error}") from None
        if len(raw) > _MAX_BYTES:
            raise LayoutError(f"{self.path}: larger than {_MAX_BYTES >> 20} MB, no structs.yaml")
        self._raw = raw
        self.digest = hashlib.sha256(raw).hexdigest()

    # What a start with a warm cache does without is read when first asked for

    @cached_property
    def text(self) -> str:
        """The whole file, its lines ending in a newline alone."""
        try:
            return self._raw.decode("utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise LayoutError(f"{self.path}: not UTF-8 text at byte {error.start}") from None

    @cached_property
    def documents(self) -> List[Document]:
        """Every document, in the order of the file."""
        return list(self._cut())

    @cached_property
    def _kernels(self) -> Tuple[List[KernelRow], Dict[str, Tuple[str, ...]]]:
        return self._read_kernels()

    @property
    def own_kernels(self) -> bool:
        """False for a file that only adds structs to the kernels of the shipped one."""
        return bool(self._kernels[0])

    @cached_property
    def rows(self) -> List[KernelRow]:
        """The kernels: the file's own, or those of the shipped file if it lists none."""
        if self.own_kernels or self.path == SHIPPED:
            return self._kernels[0]
        return StructsFile().rows

    @property
    def option_structs(self) -> Dict[str, Tuple[str, ...]]:
        """{option: structs whose layout depends on that option alone}."""
        return self._kernels[1]

    @cached_property
    def spans(self) -> Spans:
        return Spans(self.rows)

    # The documents

    def _cut(self) -> Iterator[Document]:
        starts = [0] + [match.end() for match in _SEPARATOR.finditer(self.text)]
        ends = [match.start() for match in _SEPARATOR.finditer(self.text)] + [len(self.text)]
        for start, end in zip(starts, ends):
            match = _HEAD.match(self.text, start, end)
            if match is None or match.group(1) not in _KINDS:
                loaded = self._yaml(self.text[start:end])
                if loaded is None:
                    continue
                if not isinstance(loaded, dict) or not loaded:
                    raise LayoutError(f"{self.path}: a document is no mapping")
                kind = next((k for k in loaded if k in _KINDS), None)
                if kind is None:
                    raise LayoutError(
                        f"{self.path}: a document has none of the keys {', '.join(sorted(_KINDS))}"
                    )
                name, span = str(loaded[kind]), str(loaded.get("for", "all"))
            else:
                kind = match.group(1)
                name, span = (match.group(2) or "").strip(), (match.group(3) or "all").strip()
            yield Document(kind, name if kind != "kernels" else "", span, start, end)

    def _yaml(self, text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise LayoutError(f"{self.path}: a document is no YAML: {error}") from None

    def load(self, document: Document) -> Dict[str, Any]:
        """The parsed document, a mapping."""
        loaded = self._yaml(self.text[document.start : document.end])
        if not isinstance(loaded, dict):
            raise LayoutError(f"{self.path}: {document.kind} {document.name}: no mapping")
        return loaded

    def _lines(self, document: Document, loaded: Mapping[str, Any], key: str) -> Iterator[str]:
        block = loaded.get(key)
        if block is None:
            return
        if not isinstance(block, str):
            raise LayoutError(f"{self.path}: {document.kind} {document.name}: {key} is no text")
        for line in block.splitlines():
            line = line.partition("#")[0].strip()
            if line:
                yield line

    def _bad(self, document: Document, line: str, why: str) -> LayoutError:
        where = " ".join(filter(None, (document.kind, document.name)))
        return _bad_line(f"{self.path}: {where}", line, why)

    # Kernels

    def _read_kernels(self) -> Tuple[List[KernelRow], Dict[str, Tuple[str, ...]]]:
        document = next((d for d in self.documents if d.kind == "kernels"), None)
        rows: List[KernelRow] = []
        options: Dict[str, Tuple[str, ...]] = {}
        if document is None:
            return rows, options
        loaded = self.load(document)
        dates: Dict[str, Tuple[int, int, str, str]] = {}
        for line in self._lines(document, loaded, "versions"):
            version, _, rest = line.partition(": ")
            span, _, note = rest.partition("; ")
            first, dash, last = span.partition("-")
            named = note.startswith("vendor ")
            vendor, by, source = note.partition(" by ") if named else ("", "", "")
            try:
                dates[version] = (
                    int(first),
                    int(last) if dash else int(first),
                    vendor[len("vendor ") :] if by else "",
                    source if by else note,
                )
            except ValueError:
                raise self._bad(
                    document, line, "expected VERSION: OSRELDATE[-LAST]; SOURCE"
                ) from None
        for line in self._lines(document, loaded, "kernels"):
            name, colon, given = line.partition(":")
            version, arch, variant = split_name(name)
            if version not in dates or not colon:
                raise self._bad(document, line, "no such version, or no colon")
            row = KernelRow(name, version, arch, variant, frozenset(given.split()), *dates[version])
            if any(row.name == other.name for other in rows):
                raise self._bad(document, line, "twice")
            rows.append(row)
        for line in self._lines(document, loaded, "options"):
            option, _, structs = line.partition(":")
            options[option.strip()] = tuple(structs.split())
        return rows, options

    def row(self, name: str) -> KernelRow:
        """The kernel of that name, LayoutError naming the near ones."""
        for row in self.rows:
            if row.name == name:
                return row
        major = re.split(r"[.-]", name)[0]
        near = [row.name for row in self.rows if row.name.startswith((f"{major}.", f"{major}-"))]
        hint = f"; there are {', '.join(near)}" if near else ""
        raise LayoutError(f"{self.path} has no kernel {name!r}{hint}")

    # Structs

    def struct_documents(self, row: Optional[KernelRow]) -> Iterator[Document]:
        """The struct and union documents that hold for ``row``, all of them for None."""
        for document in self.documents:
            if document.kind in ("struct", "union") and (
                row is None or self._covers(document, document.span, row)
            ):
                yield document

    def _covers(self, document: Document, span: str, row: KernelRow) -> bool:
        try:
            return self.spans.covers(span, row)
        except LayoutError as error:
            where = f"{self.path}: {document.kind} {document.name}"
            raise LayoutError(f"{where}: {error}") from None

    def struct_names(self) -> List[str]:
        """Every struct and union that any kernel of the file has, sorted."""
        return sorted({document.name for document in self.struct_documents(None)})

    def source(self, document: Document) -> str:
        """The text of one document."""
        return self.text[document.start : document.end]

    def layout(self, document: Document, typedefs: Typedefs) -> Layout:
        """The layout that a struct document describes."""
        written = _WRITTEN.fullmatch(self.source(document))
        if written is not None:
            return _written_layout(written, typedefs, self.path)
        loaded = self.load(document)
        size = loaded.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise LayoutError(f"{self.path}: {document.kind} {document.name}: no size in bytes")
        lines = self._lines(document, loaded, "members")
        members = _members(lines, size, typedefs, f"{self.path}: {document.kind} {document.name}")
        file = loaded.get("file", "")
        return Layout(document.name, size, members, document.kind, str(file))

    # Values: typedefs, constants, tables, aliases, list heads

    def values(self, document: Document, row: Optional[KernelRow]) -> Iterator[Tuple[str, str]]:
        """(name, value) of the lines that hold for ``row``."""
        loaded = self.load(document)
        for line in self._lines(document, loaded, "values"):
            name, colon, rest = line.partition(": ")
            if not colon:
                raise self._bad(document, line, "expected NAME: VALUE [for SPAN]")
            for choice in rest.split("; "):
                value, _, span = choice.partition(" for ")
                if row is None or self._covers(document, span or "all", row):
                    yield name, value
                    break

    def of_kind(self, kind: str, row: Optional[KernelRow]) -> Iterator[Document]:
        """The documents of one kind that hold for ``row``."""
        for document in self.documents:
            if document.kind == kind and (
                row is None or self._covers(document, document.span, row)
            ):
                yield document

    def strings(self, kind: str, row: Optional[KernelRow]) -> Dict[str, str]:
        """{name: value} over all documents of a kind: typedefs, aliases, heads."""
        return {
            name: value
            for document in self.of_kind(kind, row)
            for name, value in self.values(document, row)
        }

    def numbers(self, document: Document, row: Optional[KernelRow]) -> Dict[str, int]:
        """{name: number} of a table or constants document."""
        found: Dict[str, int] = {}
        for name, value in self.values(document, row):
            try:
                found[name] = int(value, 0)
            except ValueError:
                raise self._bad(document, f"{name}: {value}", "no number") from None
        return found

    def table(self, document: Document, numbers: Mapping[str, int]) -> Table:
        """The table that a document and its numbers for one kernel make."""
        loaded = self.load(document)
        kind = str(loaded.get("kind", "enum"))
        if kind not in ("enum", "flags", "bits"):
            raise LayoutError(f"{self.path}: table {document.name}: kind {kind!r} is unknown")
        names: Dict[int, str] = {}
        for name, value in numbers.items():
            if kind == "bits":
                if not 0 <= value < 128:
                    raise LayoutError(f"{self.path}: table {document.name}: no bit {value}")
                value = 1 << value
            names.setdefault(value, name)
        return Table(document.name, kind, tuple(str(loaded.get("of", "")).split()), names)


def _bad_line(where: str, line: str, why: str) -> LayoutError:
    shown = line if len(line) < 60 else line[:57] + "..."
    return LayoutError(f"{where}: {why}: {shown!r}")


def _members(lines: Iterable[str], size: int, typedefs: Typedefs, where: str) -> Dict[str, Member]:
    """The members that the lines of a struct document of ``size`` bytes describe."""
    members: Dict[str, Member] = {}
    for line in lines:
        match = _MEMBER.fullmatch(line)
        if match is None:
            raise _bad_line(where, line, "expected OFFSET SIZE NAME: TYPE [= DECODER] [-> LINK]")
        offset, bit, width, length, name, type_, decoder, link = match.groups()
        if int(offset) > size:
            raise _bad_line(where, line, f"past the end of {size} bytes")
        if name in members:
            raise _bad_line(where, line, "twice")
        members[name] = Member(
            name,
            int(offset),
            int(length),
            type_,
            typedefs.resolve(type_),
            decoder or "",
            int(bit or 0),
            int(width or 0),
            link or "",
        )
    return members


def _written_layout(written: re.Match[str], typedefs: Typedefs, path: str) -> Layout:
    kind, name, file, size, block = written.groups()
    lines = map(str.strip, block.splitlines())
    members = _members(lines, int(size), typedefs, f"{path}: {kind} {name}")
    return Layout(name, int(size), members, kind, file or "")


class Structs(Mapping[str, Layout]):
    """The structs of one kernel, each parsed when it is first asked for.

    ``texts`` is {name: (document as `wchan structs` writes it, which of ``typedefs``
    its types are resolved by)}; ``known`` what is parsed already.
    """

    def __init__(
        self,
        texts: Mapping[str, Tuple[str, int]],
        typedefs: List[Typedefs],
        known: Mapping[str, Layout],
    ) -> None:
        self._texts = dict(texts)
        self._typedefs = typedefs
        self._known = dict(known)

    def __getitem__(self, name: str) -> Layout:
        known = self._known.get(name)
        if known is None:
            text, which = self._texts[name]
            written = _WRITTEN.fullmatch(text)
            if written is None:
                raise LayoutError(f"struct {name}: no document of structs.yaml")
            known = self._known[name] = _written_layout(
                written, self._typedefs[which], os.path.basename(SHIPPED)
            )
        return known

    def __iter__(self) -> Iterator[str]:
        yield from self._texts
        yield from (name for name in self._known if name not in self._texts)

    def __len__(self) -> int:
        return len(self._texts.keys() | self._known.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._texts or name in self._known

    def with_over(self, over: Mapping[str, Layout]) -> Structs:
        """These structs with others laid over them."""
        texts = {name: text for name, text in self._texts.items() if name not in over}
        return Structs(texts, self._typedefs, {**self._known, **over})

    def to_json(self) -> Dict[str, Any]:
        """As JSON's own types; what was parsed already is written as text all the same."""
        known = [layout_to_json(v) for n, v in self._known.items() if n not in self._texts]
        return {
            "texts": [[name, text, which] for name, (text, which) in self._texts.items()],
            "typedefs": [dict(typedefs.names) for typedefs in self._typedefs],
            "known": known,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Structs:
        """What to_json wrote; KeyError, TypeError, ValueError and the like if it is none."""
        known = [layout_from_json(value) for value in kept["known"]]
        return cls(
            {name: (text, which) for name, text, which in kept["texts"]},
            [Typedefs(names) for names in kept["typedefs"]],
            {layout.name: layout for layout in known},
        )


class Typedefs:
    """Resolves declared types of one kernel: "uint16_t[4]" is "unsigned short[4]"."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names
        self._resolved: Dict[str, str] = {}

    def resolve(self, type_: str) -> str:
        known = self._resolved.get(type_)
        if known is None:
            known = self.names.get(type_)
            if known is None:
                known = self._words(type_)
            self._resolved[type_] = known
        return known

    def _words(self, type_: str) -> str:
        def one(match: re.Match[str]) -> str:
            if type_[: match.start()].rstrip().endswith(("struct", "union", "enum")):
                return match.group()
            return self.names.get(match.group(), match.group())

        return _WORD.sub(one, type_)


class KernelData:
    """All that structs.yaml says of one kernel: a LayoutSource and its Tables.

    ``name`` is "yaml:<kernel>".
    """

    def __init__(
        self,
        name: str,
        structs: Mapping[str, Layout],
        constants: Mapping[str, int],
        tables: Mapping[str, Table],
        aliases: Mapping[str, str],
        heads: Mapping[str, str],
        globals_: Mapping[str, str],
    ) -> None:
        self.name = name
        self.structs = structs
        self.constants = constants
        self.tables = tables
        self.aliases = aliases
        self.heads = heads
        #: {symbol: C type} of the variables that are structs, or point to one
        self.globals = globals_
        self._decoders = {member: table.name for table in tables.values() for member in table.of}

    def struct(self, name: str) -> Optional[Layout]:
        return self.structs.get(name)

    def names(self) -> List[str]:
        """Every struct and union known, sorted."""
        return sorted(self.structs)

    def constant(self, name: str) -> Optional[int]:
        return self.constants.get(name)

    def table(self, decoder: str) -> Optional[Dict[int, str]]:
        found = self.tables.get(decoder)
        return dict(found.names) if found is not None else None

    def table_kind(self, decoder: str) -> str:
        """ "enum" or "flags" ("" where there is no such table)."""
        found = self.tables.get(decoder)
        return "" if found is None else "enum" if found.kind == "enum" else "flags"

    def decoder(self, struct: str, member: str) -> str:
        """The table that explains ``struct.member``, "" if none does."""
        return self._decoders.get(f"{struct}.{member}", "")

    def alias(self, struct: str, path: str) -> List[str]:
        """What ``struct.path`` is a macro for in some versions: paths to try in order."""
        return self.aliases.get(f"{struct}.{path}", "").split()

    def head(self, symbol: str) -> Optional[Tuple[str, str]]:
        """(struct, link) of the elements of the global list head ``symbol``."""
        struct, _, link = self.heads.get(symbol, "").partition(".")
        return (struct, link) if link else None


def read_kernel(
    file: StructsFile, name: str, row: KernelRow, others: Mapping[str, KernelRow]
) -> KernelData:
    """What ``file`` says of ``row``; the structs named in ``others`` as in other kernels."""
    typedefs = [Typedefs(file.strings("typedefs", row))]
    structs = _Collected(file)
    for document in file.struct_documents(row):
        if document.name not in others:
            structs.add(document, typedefs, 0)
    for which, other in enumerate(dict.fromkeys(others.values()), 1):
        typedefs.append(Typedefs(file.strings("typedefs", other)))
        for document in file.struct_documents(other):
            if others.get(document.name) == other:
                structs.add(document, typedefs, which)
    constants: Dict[str, int] = {}
    tables: Dict[str, Table] = {}
    for document in file.of_kind("constants", row):
        constants.update(file.numbers(document, row))
    for document in file.of_kind("table", row):
        numbers = file.numbers(document, row)
        if numbers:
            constants.update(numbers)
            tables[document.name] = file.table(document, numbers)
    return KernelData(
        name,
        Structs(structs.texts, typedefs, structs.known),
        constants,
        tables,
        file.strings("aliases", row),
        file.strings("heads", row),
        file.strings("globals", row),
    )


class _Collected:
    """Struct documents on their way into Structs."""

    def __init__(self, file: StructsFile) -> None:
        self.file = file
        self.texts: Dict[str, Tuple[str, int]] = {}
        self.known: Dict[str, Layout] = {}

    def add(self, document: Document, typedefs: List[Typedefs], which: int) -> None:
        # what a user wrote is looked through at once: a mistake is met here, not in a command
        text = self.file.source(document)
        if self.file.path == SHIPPED and _WRITTEN.fullmatch(text):
            self.texts[document.name] = (text, which)
        else:
            self.known[document.name] = self.file.layout(document, typedefs[which])


def kernel_to_json(data: KernelData) -> Dict[str, Any]:
    """All of a kernel's data as JSON's own types."""
    return {
        "name": data.name,
        "structs": Structs({}, [], {}).with_over(data.structs).to_json()
        if not isinstance(data.structs, Structs)
        else data.structs.to_json(),
        "constants": dict(data.constants),
        "tables": [
            [t.name, t.kind, list(t.of), [[value, name] for value, name in t.names.items()]]
            for t in data.tables.values()
        ],
        "aliases": dict(data.aliases),
        "heads": dict(data.heads),
        "globals": dict(data.globals),
    }


def kernel_from_json(cached: Mapping[str, Any]) -> KernelData:
    """The data that kernel_to_json wrote; KeyError, TypeError, ValueError if it is none."""
    return KernelData(
        cached["name"],
        Structs.from_json(cached["structs"]),
        cached["constants"],
        {t: Table(t, kind, tuple(of), dict(names)) for t, kind, of, names in cached["tables"]},
        cached["aliases"],
        cached["heads"],
        cached["globals"],
    )
