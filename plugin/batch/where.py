"""``--where 'cause=device and release>=14'``: rows of a summary chosen by their fields.

Terms ``FIELD OP VALUE`` joined by ``and`` and ``or`` (``and`` binds closer); OP is one of
= != < <= > >= ~ (``~``: holds the text).  Numbers and releases compare by their figures.
Nothing is evaluated: the words are compared.
"""

from __future__ import annotations

import operator
import re
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

from plugin.errors import UsageError

Row = Dict[str, Any]

_TERM = re.compile(r"""\s*(\w+)\s*(!=|<=|>=|=|<|>|~)\s*("[^"]*"|'[^']*'|\S+)\s*""")
_JOIN = re.compile(r"\s*\b(and|or)\b\s*", re.IGNORECASE)
_COMPARE: Dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Term(NamedTuple):
    field: str
    op: str
    value: str

    def fits(self, row: Row) -> bool:
        value = row.get(self.field)
        if isinstance(value, list):
            text = " ".join(map(str, value))
            same = self.value in [str(each) for each in value]
        else:
            text = "" if value is None else str(value)
            same = text.lower() == self.value.lower()
        if self.op in ("=", "!="):
            return same == (self.op == "=")
        if self.op == "~":
            return self.value.lower() in text.lower()
        mine, wanted = _figures(text), _figures(self.value)
        return bool(mine) and bool(wanted) and _COMPARE[self.op](mine, wanted)


def parse(text: str) -> Callable[[Row], bool]:
    """The test that the words ask for; UsageError where they make none."""
    alternatives: List[List[Term]] = [[]]
    at = 0
    while True:
        match = _TERM.match(text, at)
        if match is None:
            raise UsageError(f"--where: a FIELD=VALUE is missing at {text[at:]!r}")
        alternatives[-1].append(Term(match[1], match[2], match[3].strip("\"'")))
        at = match.end()
        if at >= len(text):
            break
        join = _JOIN.match(text, at)
        if join is None:
            raise UsageError(f"--where: 'and' or 'or' is missing at {text[at:]!r}")
        if join[1].lower() == "or":
            alternatives.append([])
        at = join.end()
    return lambda row: any(all(term.fits(row) for term in terms) for terms in alternatives)


def _figures(text: str) -> Tuple[int, ...]:
    """ "14.2-RELEASE" as (14, 2)."""
    match = re.match(r"\s*(\d+(?:\.\d+)*)", text)
    return tuple(int(part) for part in match[1].split(".")) if match else ()
