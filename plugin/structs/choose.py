"""Choosing the kernel of structs.yaml whose layouts fit a kernel without debug information."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Tuple

from plugin.errors import LayoutError
from plugin.structs.cache import cache_key, cache_read, cache_write
from plugin.structs.kernels import RELEASE, KernelRow
from plugin.structs.yamlfile import (
    KernelData,
    Structs,
    StructsFile,
    kernel_from_json,
    kernel_to_json,
    read_kernel,
)

#: options that make the debug kernels of the file differ from the release ones
_DEBUG_OPTIONS = frozenset(("INVARIANTS", "WITNESS", "BUF_TRACKING"))


#: structs that a sentence names before it counts them
_SHOWN = 6


class Choice(NamedTuple):
    """The layouts chosen, and why."""

    source: KernelData
    #: the same object: it is a LayoutSource and a Tables at once
    tables: KernelData
    #: the kernel of the file that was taken
    row: KernelRow
    #: True where the file knows this very kernel version and variant
    exact: bool
    #: one sentence for the user
    how: str


def choose_yaml(
    osreldate: int,
    arch: str,
    variant: FrozenSet[str] = frozenset(),
    path: Optional[str] = None,
    kernel_name: Optional[str] = None,
    force: bool = False,
) -> Choice:
    """The layouts of structs.yaml for a kernel with this __FreeBSD_version.

    ``arch`` is as in uname -m; ``variant`` holds the names of the options found
    in the kernel: INVARIANTS, WITNESS, BUF_TRACKING, UP.  ``path`` is a file of
    the user's: where it lists kernels these are chosen from, else its structs are
    laid over the shipped ones.  ``kernel_name`` picks one kernel whatever else is
    said.  An unknown version takes the nearest kernel of its own major branch,
    within which FreeBSD keeps its kernel's binary interface; another branch only
    with ``force``.  LayoutError where nothing fits.
    """
    files = [StructsFile(path)] if path is None else [StructsFile(path), StructsFile()]
    asked = (osreldate, arch, sorted(variant), kernel_name, force)
    key = cache_key([(file.path, file.digest) for file in files], *asked)
    cached = cache_read(key)
    if cached is not None:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            return _from_json(cached)
    choice = _choice(files, osreldate, arch, variant, kernel_name, force)
    cache_write(key, _to_json(choice))
    return choice


def _choice(
    files: List[StructsFile],
    osreldate: int,
    arch: str,
    variant: FrozenSet[str],
    kernel_name: Optional[str],
    force: bool,
) -> Choice:
    file = files[0]
    if not file.own_kernels and len(files) > 1:
        under = _choice(files[1:], osreldate, arch, variant, kernel_name, force)
        data = _merge(read_kernel(file, f"yaml:{file.path}", under.row, {}), under.source)
        how = f"{under.how}, with the structs of {file.path} over them"
        return under._replace(source=data, tables=data, how=how)
    row, how, exact = _choose(file, osreldate, arch, variant, kernel_name, force)
    others, missing = _mixed(file, row, variant) if kernel_name is None else ({}, frozenset())
    name = row.name if len(files) == 1 else f"{file.path}:{row.name}"
    if others:
        foreign = ", ".join(sorted({other.name for other in others.values()}))
        name += f"+{foreign}"
        shown = sorted(others)
        many = f" and {len(shown) - _SHOWN} more structs" if len(shown) > _SHOWN else ""
        how += f"; {', '.join(shown[:_SHOWN])}{many} as in {foreign}"
    if missing:
        exact = False
        how += f"; no kernel with {' '.join(sorted(missing))} is known of that branch"
    data = read_kernel(file, f"yaml:{name}", row, others)
    return Choice(data, data, row, exact, how)


def _to_json(choice: Choice) -> Dict[str, Any]:
    row = [*choice.row[:4], sorted(choice.row.options), *choice.row[5:]]
    data = kernel_to_json(choice.source)
    return {"data": data, "row": row, "exact": choice.exact, "how": choice.how}


def _from_json(cached: Dict[str, Any]) -> Choice:
    data = kernel_from_json(cached["data"])
    row = KernelRow._make(cached["row"])._replace(options=frozenset(cached["row"][4]))
    return Choice(data, data, row, cached["exact"], cached["how"])


def kindred_arch(arch: str, file: Optional[StructsFile] = None) -> str:
    """``arch``, or for one without any kernel in structs.yaml the likest that has.

    Constants, tables and the list of structs are the same on every LP64 architecture
    but for the few of <machine/...>; layouts are never taken from another one.
    """
    known = {row.arch for row in (file or StructsFile()).rows}
    return arch if arch in known else "arm64"


def candidates(
    file: StructsFile,
    osreldate: int,
    arch: str,
    variant: FrozenSet[str] = frozenset(),
    force: bool = False,
) -> List[KernelRow]:
    """The kernels worth trying, nearest first: FreeBSD's own before any vendor's."""
    wanted = _variant_of(variant)
    rows = [row for row in file.rows if row.arch == arch]
    if not force:
        rows = [row for row in rows if row.major == osreldate // 100000]
    return sorted(
        rows,
        key=lambda row: (
            abs(row.major - osreldate // 100000),
            bool(row.vendor) and row.distance(osreldate) != 0,
            row.distance(osreldate),
            row.variant != wanted,
            # of two variants that are not the one wanted the release is the safer
            row.variant != RELEASE,
            row.last - row.first,
        ),
    )


def _variant_of(variant: FrozenSet[str]) -> str:
    if variant & _DEBUG_OPTIONS:
        return "debug"
    return "up" if "UP" in variant else RELEASE


def _choose(
    file: StructsFile,
    osreldate: int,
    arch: str,
    variant: FrozenSet[str],
    kernel_name: Optional[str],
    force: bool,
) -> Tuple[KernelRow, str, bool]:
    if kernel_name is not None:
        row = file.row(kernel_name)
        return row, f"layouts of {row.name}, as asked", False
    found = candidates(file, osreldate, arch, variant, force)
    if not found:
        known = sorted({str(row.major) for row in file.rows if row.arch == arch}, key=int)
        if known:
            why = f"it has {arch} kernels of {_listed(known)} only"
        else:
            archs = sorted({row.arch for row in file.rows})
            why = f"it has no {arch} kernel at all, only {_listed(archs)}"
        raise LayoutError(
            f"{file.path} has no layouts for FreeBSD {osreldate // 100000} ({osreldate}) on "
            f"{arch}: {why}; use a kernel with debug information, `wchan structs generate` on one, "
            "or --force to take the nearest"
        )
    # A row of the wanted variant may be of another version than the nearest row;
    # the nearest version wins, its variant's few structs are mixed in afterwards.
    row = found[0]
    if row.distance(osreldate) == 0:
        return row, f"layouts of {row.name}, which is this version ({osreldate})", True
    branch = "in its branch" if row.major == osreldate // 100000 else "of another branch, forced"
    return (
        row,
        f"layouts of {row.name} ({row.first}), the nearest {branch} to version {osreldate}",
        False,
    )


def _mixed(
    file: StructsFile, row: KernelRow, variant: FrozenSet[str]
) -> Tuple[Dict[str, KernelRow], FrozenSet[str]]:
    """The structs to take from another kernel because of options, and options not covered.

    A struct that depends on one option alone (``options`` in the file) follows
    that option; every other one follows INVARIANTS.
    """
    others: Dict[str, KernelRow] = {}
    wanted = _variant_of(variant)
    if row.variant == wanted:
        partner = _release_of(file, row)
        if wanted == "debug" and partner is not None:
            for struct in _differing(file, row, partner):
                if not _needs(file, struct) & variant:
                    others[struct] = partner
        return others, frozenset()
    near = [
        r
        for r in sorted(file.rows, key=lambda r: abs(r.first - row.first))
        if r.arch == row.arch and r.variant == wanted and r.major == row.major
    ]
    for other in near:
        plain = _release_of(file, other)
        if plain is None:
            continue
        for struct in _differing(file, other, plain):
            if _needs(file, struct) & variant or wanted == "up":
                others[struct] = other
        return others, frozenset()
    return others, variant


def _release_of(file: StructsFile, row: KernelRow) -> Optional[KernelRow]:
    wanted = (row.version, row.arch, RELEASE)
    return next((r for r in file.rows if (r.version, r.arch, r.variant) == wanted), None)


def _needs(file: StructsFile, struct: str) -> FrozenSet[str]:
    """The options whose presence gives ``struct`` its debug layout."""
    own = {option for option, structs in file.option_structs.items() if struct in structs}
    return frozenset(own or ("INVARIANTS", "WITNESS"))


def _differing(file: StructsFile, one: KernelRow, other: KernelRow) -> List[str]:
    """Structs whose layouts differ between two kernels of the file."""
    spans: Dict[str, Dict[str, int]] = {}
    for row in (one, other):
        for document in file.struct_documents(row):
            spans.setdefault(document.name, {})[row.name] = document.start
    return sorted(
        name for name, starts in spans.items() if len(set(starts.values())) > 1 and len(starts) == 2
    )


def _merge(over: KernelData, under: KernelData) -> KernelData:
    return KernelData(
        over.name,
        under.structs.with_over(over.structs)
        if isinstance(under.structs, Structs)
        else {**under.structs, **over.structs},
        {**under.constants, **over.constants},
        {**under.tables, **over.tables},
        {**under.aliases, **over.aliases},
        {**under.heads, **over.heads},
        {**under.globals, **over.globals},
    )


def _listed(names: List[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]
