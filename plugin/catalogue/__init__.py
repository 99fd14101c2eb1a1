"""The catalogue of wait messages: the YAML files beside this one, and the user's own rows over it.

Rows are data; ``match`` says which of them a sleep belongs to, by the wait
channel first and the message second.
"""

from __future__ import annotations

import enum
import functools
import os
import re
from typing import Any, Callable, Collection, Dict, Iterable, List, NamedTuple, Optional, Tuple

from plugin.errors import WchanError
from plugin.yamldata import load

#: the files of the catalogue by subsystem, read in this order; vm.yaml says what a row is
_FILES = ("vm", "buf", "geom", "vfs", "zfs", "kern", "net", "emul", "drivers", "any")
SHIPPED = tuple(os.path.join(os.path.dirname(__file__), f"{name}.yaml") for name in _FILES)
_KEYS = frozenset(
    (
        "wmesg",
        "function",
        "channel",
        "woken_by",
        "server",
        "look_at",
        "resolver",
        "class",
        "timed",
        "alarm",
        "versions",
    )
)
_VERSION = re.compile(r"^(?:(\d+)\.(\d+))?\s*-\s*(?:(\d+)\.(\d+))?$")


class SleepClass(str, enum.Enum):
    """What a sleep of a row means for its thread; vm.yaml describes them."""

    WORK = "work"
    DRAIN = "drain"
    RETRY = "retry"
    PACING = "pacing"
    BENIGN = "benign"
    IDLE = "idle"

    def __str__(self) -> str:
        return str(self.value)


CLASSES = tuple(SleepClass)


class Spec(NamedTuple):
    """What a row says of the channel: ``kind`` "symbol", "member", "object", "pause",
    "stack" or "any"; ``name`` the variable, the member or the type of object."""

    kind: str
    name: str = ""


class Row(NamedTuple):
    """One kind of sleep; fields as vm.yaml describes them.

    ``since`` and ``until`` bound __FreeBSD_version, inclusive.
    """

    wmesg: Tuple[str, ...]
    function: str
    channel: Tuple[Spec, ...]
    woken_by: str
    server: Tuple[str, ...]
    look_at: str
    resolver: str
    sleep_class: SleepClass
    timed: bool
    alarm: bool
    since: int
    until: int
    versions: str
    #: the file it comes from, and the row's number in it
    source: str
    number: int

    def covers(self, osreldate: int) -> bool:
        return self.since <= osreldate <= self.until


#: says whether a channel fits a Spec: True, False, or None where it cannot be told
Fits = Callable[[Spec], Optional[bool]]


class Catalogue:
    """Rows in order of preference, found by message and by variable."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._by_wmesg: Dict[str, List[Row]] = {}
        self._by_symbol: Dict[str, List[Row]] = {}
        for row in self.rows:
            for wmesg in row.wmesg:
                self._by_wmesg.setdefault(normalize(wmesg), []).append(row)
            for spec in row.channel:
                if spec.kind == "symbol":
                    self._by_symbol.setdefault(spec.name, []).append(row)

    def named(self, wmesg: str) -> List[Row]:
        """Rows with that message."""
        return self._by_wmesg.get(normalize(wmesg), [])

    def match(
        self, wmesg: str, symbol: Optional[str], fits: Fits, osreldate: int
    ) -> Tuple[Optional[Row], str]:
        """The row of a sleep, and what it was told by; (None, "") where none fits.

        ``symbol`` is the variable that the channel lies in.  A row whose channel
        contradicts the sleeper's is never taken, whatever its message; a row of
        other versions only if no better one fits.  A message in no row leaves the
        rows for any message, whose channel has to be verified.
        """
        if symbol is not None:
            here = self._by_symbol.get(symbol, [])
            both = [row for row in here if _has(row, wmesg)]
            if both:
                return _best(both, osreldate), f"channel &{symbol} and message"
            any_message = [row for row in here if "*" in row.wmesg] or here
            if not wmesg and len({(row.sleep_class, row.resolver) for row in any_message}) > 1:
                # A message that was not read may be any of theirs.
                return None, ""
            if any_message:
                return _best(any_message, osreldate), f"channel &{symbol}"
        best: Optional[Tuple[Tuple[int, int, int, int], Row, str]] = None
        for order, row in enumerate(self.named(wmesg)):
            score, why = _score(row, fits)
            if score:
                # What was verified decides, then the version, then how likely the channel is.
                verified = 0 if score == _VERIFIED else 1
                rank = (verified, 0 if row.covers(osreldate) else 1, -score, order)
                if best is None or rank < best[0]:
                    best = rank, row, why
        if best is not None:
            return best[1], best[2]
        for row in self._by_wmesg.get("*", ()):
            for spec in row.channel:
                if spec.kind == "any" or (spec.kind != "symbol" and fits(spec)):
                    return row, f"the channel is a {spec.name}" if spec.name else "any sleep"
        return None, ""


def _has(row: Row, wmesg: str) -> bool:
    wanted = normalize(wmesg)
    return any(normalize(each) == wanted for each in row.wmesg)


def _best(rows: List[Row], osreldate: int) -> Row:
    return next((row for row in rows if row.covers(osreldate)), rows[0])


#: the score of a channel that is what the row says
_VERIFIED = 4


def _score(row: Row, fits: Fits) -> Tuple[int, str]:
    """How well a row's channel agrees, 0 if it contradicts.

    4: verified; 3: an object that cannot be told from another; 2: the row takes
    any channel; 1: a variable that the symbol table does not know (a module's).
    """
    best = (0, "")
    for spec in row.channel:
        if spec.kind == "any":
            found = (2, "message")
        else:
            fit = fits(spec)
            what = spec.name or spec.kind
            if fit is None:
                score = 1 if spec.kind == "symbol" else 3
                found = (score, f"message, the channel taken for a {what}")
            else:
                found = (_VERIFIED, f"message, the channel is a {what}") if fit else (0, "")
        best = max(best, found, key=lambda item: item[0])
    return best


def normalize(wmesg: str) -> str:
    """A message as rows are looked up by: to 9.3 a ZFS condvar's name ends in ")"."""
    text = wmesg.lstrip("*") if len(wmesg) > 1 else wmesg
    return text.rstrip(")")


@functools.lru_cache(maxsize=1)
def shipped() -> Catalogue:
    """The catalogue that wchan comes with; read once."""
    return Catalogue(row for path in SHIPPED for row in read(path))


def with_file(path: Optional[str], resolvers: Collection[str] = ()) -> Catalogue:
    """The shipped catalogue, the rows of the user's file before it.

    ``resolvers``: the names a row may call its resolver by; not checked where empty.
    Raises WchanError naming file and row where the file makes no sense.
    """
    if not path:
        return shipped()
    rows = read(path)
    for row in rows:
        if resolvers and row.resolver and row.resolver not in resolvers:
            names = ", ".join(sorted(resolvers))
            raise WchanError(
                f"{path}, row {row.number}: resolver {row.resolver!r} is none of {names}"
            )
    return Catalogue([*rows, *shipped().rows])


def read(path: str) -> List[Row]:
    """The rows of a catalogue file; WchanError naming the row where it makes no sense."""
    loaded = load(path, "the catalogue")
    if loaded is None:
        return []
    if not isinstance(loaded, list):
        raise WchanError(f"the catalogue {path} must be a list of rows")
    return [_row(path, number, entry) for number, entry in enumerate(loaded, 1)]


def _row(path: str, number: int, entry: Any) -> Row:
    def bad(why: str) -> WchanError:
        return WchanError(f"{path}, row {number}: {why}")

    if not isinstance(entry, dict):
        raise bad("is no mapping")
    unknown = sorted(map(str, set(entry) - _KEYS))
    if unknown:
        raise bad(f"unknown key {unknown[0]!r}; there are: {', '.join(sorted(_KEYS))}")
    wmesg = _texts(entry.get("wmesg"))
    if not wmesg:
        raise bad("has no wmesg")
    named = entry.get("class", "work")
    try:
        sleep_class = SleepClass(named)
    except ValueError:
        raise bad(f"class {named!r} is none of {', '.join(CLASSES)}") from None
    channel = tuple(_spec(text) for text in _texts(entry.get("channel", "any")))
    versions = str(entry.get("versions", "")).strip()
    bounds = _bounds(versions)
    if bounds is None:
        raise bad(f"versions {versions!r} is not like 7.0-11.0, 12.1- or -9.3")
    return Row(
        wmesg,
        str(entry.get("function", "")),
        channel,
        str(entry.get("woken_by", "")),
        _texts(entry.get("server")),
        str(entry.get("look_at", "")),
        str(entry.get("resolver", "")),
        sleep_class,
        bool(entry.get("timed", False)),
        bool(entry.get("alarm", False)),
        *bounds,
        versions,
        path,
        number,
    )


def _texts(value: Any) -> Tuple[str, ...]:
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _spec(text: str) -> Spec:
    if text in ("any", "pause", "stack"):
        return Spec(text)
    if text.startswith("&"):
        return Spec("symbol", text[1:])
    return Spec("member" if "." in text else "object", text)


def _bounds(text: str) -> Optional[Tuple[int, int]]:
    if not text:
        return 0, 1 << 31
    match = _VERSION.match(text)
    if match is None:
        return None
    low = int(match[1]) * 100000 + int(match[2]) * 1000 if match[1] else 0
    high = int(match[3]) * 100000 + int(match[4]) * 1000 + 999 if match[3] else 1 << 31
    return low, high
