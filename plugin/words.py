"""Small words that every layer uses: addresses, durations, counts with their nouns."""

from __future__ import annotations

import re
from typing import Iterable, Optional

#: what tells one thing from another of its kind: an address, a thread with its name, a file
_ONE_OF_MANY = re.compile(r"0x[0-9a-f]+|\b\d{5,} \S+|\binode \d+")


def address(value: Optional[int]) -> Optional[str]:
    """An address as the contract wants it: "0x..." or None."""
    return None if value is None else f"{value:#x}"


def seconds(value: Optional[float]) -> str:
    """A duration for people: "3 m 58 s"; "" for None."""
    if value is None:
        return ""
    if value < 10:
        return f"{value:.1f} s"
    whole = int(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def count(number: int, noun: str, plural: str = "") -> str:
    """ "1 thread", "3 threads"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def verb(number: int, plural: str) -> str:
    """ "sleeps" for one, "sleep" for more: the verb that goes with a count."""
    one = {"are": "is", "have": "has", "retry": "retries"}.get(plural, plural + "s")
    return one if number == 1 else plural


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean vtbd1?" where something known is near, else ""."""
    import difflib  # only where a name was wrong

    near = difflib.get_close_matches(word, list(known), 3, 0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def alike(text: str) -> str:
    """``text`` without addresses and threads: the same for things that differ in those alone."""
    return _ONE_OF_MANY.sub("#", text)
