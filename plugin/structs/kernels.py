"""The kernels that structs.yaml knows, and the spans that name several of them at once.

A kernel is called VERSION-ARCH or VERSION-ARCH-VARIANT ("14.2-amd64-debug").
A span is what stands after ``for`` in the file::

    all                     every kernel
    amd64 10.1..12.1        the kernels of amd64, every variant, 10.1 to 12.1
    all 13.0..              from 13.0 on, every architecture and variant
    i386/debug ..9.3        debug kernels of i386 up to 9.3
    amd64 14.2, arm64 15.0  either

Versions are ordered as the ``kernels`` document lists them.
"""

from __future__ import annotations

import re
from typing import Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from plugin.errors import LayoutError

RELEASE = "release"
_VARIANTS = frozenset(("debug", "up"))


class KernelRow(NamedTuple):
    """One kernel of the file."""

    name: str
    version: str
    arch: str
    #: "release", "debug" (INVARIANTS, WITNESS and the like) or "up" (no SMP)
    variant: str
    options: FrozenSet[str]
    #: the values of __FreeBSD_version this row is exact for, both inclusive
    first: int
    last: int
    #: "" for FreeBSD itself, else who changed it ("HardenedBSD")
    vendor: str
    #: where the layouts were taken from and how sure they are
    source: str

    @property
    def major(self) -> int:
        return self.first // 100000

    def distance(self, osreldate: int) -> int:
        """How far ``osreldate`` is from what this row is exact for, 0 if within."""
        return max(self.first - osreldate, osreldate - self.last, 0)


def split_name(name: str) -> Tuple[str, str, str]:
    """(version, arch, variant) of a kernel's name, LayoutError if it has no such form."""
    parts = name.split("-")
    variant = parts.pop() if parts[-1] in _VARIANTS else RELEASE
    if len(parts) < 2 or not all(parts):
        raise LayoutError(f"kernel name {name!r} is not of the form VERSION-ARCH[-debug|-up]")
    return "-".join(parts[:-1]), parts[-1], variant


def _nearest(word: str, known: Sequence[str]) -> str:
    # imported here: only a mistake needs it
    import difflib

    # letters changed about first: "adm64" is "amd64", not "arm64"
    near = [k for k in known if sorted(k) == sorted(word)]
    near += difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _nearest_version(version: str, known: Sequence[str]) -> str:
    """The nearest by number, of equals the later: "14.0" is no misspelt "10.4"."""
    wanted = _numbers(version)
    if wanted is None:
        return _nearest(version, known)

    def distance(one: Tuple[int, int]) -> Tuple[int, int]:
        return abs(one[0] - wanted[0]), abs(one[1] - wanted[1])

    numbered = [(distance(found), k) for k in known for found in [_numbers(k)] if found]
    return f"; did you mean {min(reversed(numbered), key=lambda each: each[0])[1]!r}?"


def _numbers(version: str) -> Optional[Tuple[int, int]]:
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version)
    return (int(found[1]), int(found[2])) if found else None


class Spans:
    """Reads and writes spans over an ordered list of kernels."""

    def __init__(self, rows: Sequence[KernelRow]) -> None:
        self.rows = list(rows)
        self.versions: List[str] = list(dict.fromkeys(row.version for row in rows))
        self._index = {version: i for i, version in enumerate(self.versions)}
        self._known: Dict[Tuple[str, str], bool] = {}
        self._items: Dict[str, FrozenSet[str]] = {}

    def covers(self, spec: str, row: KernelRow) -> bool:
        """True where ``spec`` names this kernel.

        LayoutError, naming the nearest right one, for a version, an architecture or a
        variant that is not in the list, and for a span that names no kernel.
        """
        key = (spec, row.name)
        known = self._known.get(key)
        if known is None:
            # every item is looked at, so that a mistake is met whatever the kernel
            named = [self._one(item.strip(), row) for item in spec.split(",")]
            known = self._known[key] = any(named)
        return known

    def _one(self, item: str, row: KernelRow) -> bool:
        return row.name in self._named_by(item)

    def _named_by(self, item: str) -> FrozenSet[str]:
        """The kernels that one item of a span names: one at least, else a LayoutError."""
        known = self._items.get(item)
        if known is None:
            known = self._items[item] = self._read(item)
        return known

    def _read(self, item: str) -> FrozenSet[str]:
        words = item.split()
        if not 1 <= len(words) <= 2:
            raise LayoutError(f"span {item!r}: expected ARCH[/VARIANT] [FROM..TO]")
        arch, slash, variant = words[0].partition("/")
        archs = ["all", *sorted({row.arch for row in self.rows})]
        if arch not in archs:
            raise LayoutError(self._no_arch(item, arch, archs))
        if slash and variant not in (RELEASE, *_VARIANTS):
            known = [RELEASE, *sorted(_VARIANTS)]
            raise LayoutError(f"span {item!r}: no variant {variant!r}{_nearest(variant, known)}")
        low, high = 0, len(self.versions)
        if len(words) == 2:
            first, dots, last = words[1].partition("..")
            low = self._at(first, item) if first or not dots else 0
            high = self._at(last, item) if last else len(self.versions) if dots else low
            if low > high:
                raise LayoutError(f"span {item!r} is empty: {first} comes after {last}")
        found = frozenset(
            row.name
            for row in self.rows
            if low <= self._index[row.version] <= high
            and arch in ("all", row.arch)
            and variant in ("", row.variant)
        )
        if not found:
            there = [
                row.version
                for row in self.rows
                if arch in ("all", row.arch) and variant in ("", row.variant)
            ]
            has = f"{words[0]} is known of {', '.join(dict.fromkeys(there))}"
            raise LayoutError(
                f"span {item!r} names no kernel: "
                + (has if there else f"there is no {variant} kernel of {arch}")
            )
        return found

    def _no_arch(self, item: str, arch: str, archs: List[str]) -> str:
        for row in self.rows:
            if arch == row.name:
                named = row.arch if row.variant == RELEASE else f"{row.arch}/{row.variant}"
                return f"span {item!r} is a kernel's name; its span is {f'{named} {row.version}'!r}"
        return f"span {item!r}: no architecture {arch!r}{_nearest(arch, archs)}"

    def _at(self, version: str, item: str) -> int:
        try:
            return self._index[version]
        except KeyError:
            near = _nearest_version(version, self.versions)
            raise LayoutError(
                f"span {item!r}: version {version!r} is not in the list{near}"
            ) from None

    def write(self, kernels: Iterable[str]) -> str:
        """The shortest span found that names exactly these kernels."""
        wanted = set(kernels)
        left = set(wanted)
        items: List[Tuple[set[str], str]] = []
        archs = sorted({row.arch for row in self.rows})
        variants = sorted({row.variant for row in self.rows}, key=lambda v: (v != RELEASE, v))
        selectors = [("all", "")] + [(arch, "") for arch in archs]
        selectors += [("all", variant) for variant in variants]
        selectors += [(arch, variant) for arch in archs for variant in variants]
        for arch, variant in selectors:
            series = [
                row
                for row in self.rows
                if arch in ("all", row.arch) and variant in ("", row.variant)
            ]
            for run, text in self._runs(series, wanted):
                if not run & left or (arch == "all" and len({self._arch(k) for k in run}) < 2):
                    continue
                left -= run
                name = f"{arch}/{variant}" if variant else arch
                items.append((run, f"{name} {text}" if text else name))
        # a wide span taken first may be covered by narrower ones needed anyway
        for item in list(items):
            others = [run for run, text in items if text != item[1]]
            if item[0] <= set().union(*others):
                items.remove(item)
        return ", ".join(text for _, text in items)

    def _arch(self, name: str) -> str:
        return split_name(name)[1]

    def _runs(self, series: List[KernelRow], wanted: set[str]) -> Iterable[Tuple[set[str], str]]:
        """Maximal runs of versions in which every kernel of the series is wanted."""
        of_version: Dict[str, List[str]] = {}
        for row in series:
            of_version.setdefault(row.version, []).append(row.name)
        present = [version for version in self.versions if version in of_version]
        run: List[str] = []
        for i, version in enumerate([*present, ""]):
            if version and all(name in wanted for name in of_version[version]):
                run.append(version)
                continue
            if run:
                from_start = run[0] == present[0]
                to_end = run[-1] == present[-1] and i == len(present)
                if from_start and to_end:
                    text = ""
                elif from_start:
                    text = f"..{run[-1]}"
                elif to_end:
                    text = f"{run[0]}.."
                else:
                    text = run[0] if len(run) == 1 else f"{run[0]}..{run[-1]}"
                yield {name for v in run for name in of_version[v]}, text
            run = []


def osreldate_of(release: str) -> int:
    """The __FreeBSD_version that a release name implies: "14.2-RELEASE" is 1402000."""
    match = re.match(r"(\d+)\.(\d+)", release)
    if match is None:
        return 0
    major, minor = int(match.group(1)), int(match.group(2))
    # -RELEASE is M.mm000 since 5.0; -CURRENT counts up from M00000.
    return major * 100000 + (minor * 1000)
