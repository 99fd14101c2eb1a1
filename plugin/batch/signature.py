"""What makes two hangs one problem: causes, functions and locks, without addresses and counts."""

from __future__ import annotations

import re
from typing import Any, Dict, FrozenSet, List

#: what differs between two cores of one problem: numbers, addresses, names with a number
_NUMBERS = re.compile(r"0x[0-9a-f]+|\b\d[\d.]*(?: (?:ms?|s|h|d|KB|MB|GB))*\b")
_UNIT = re.compile(r"(?<=[a-z])\d+\b")
_BLANKS = re.compile(r"\s+")
#: functions that only do the sleeping
_PLUMBING = ("sched_", "mi_switch", "sleepq_", "_sleep", "msleep", "_cv_", "turnstile_", "fork_")
_CAUSES = 3
_FUNCTIONS = 4


def signature(report: Dict[str, Any]) -> str:
    """A why-stuck report's: its panic, else its causes in order of rank, in one line."""
    data = report["data"]
    parts: List[str] = []
    panic = report["kernel"]["panic"]
    if panic:
        parts.append("panic " + normal(panic))
    for cause in data["causes"][:_CAUSES]:
        parts.append(f"{cause['kind']} {_what(cause)}".strip())
    if not data["causes"]:
        for group in data.get("residue_groups", ())[:_CAUSES]:
            functions = [f for f in group["frames"] if not f.startswith(_PLUMBING)][:_FUNCTIONS]
            parts.append(f"residue {group['wmesg']} {' <- '.join(functions)}".strip())
    return "; ".join(parts) or "nothing stuck"


def _what(cause: Dict[str, Any]) -> str:
    """A cause's thing without what is one machine's: kinds of nodes round a cycle, a label."""
    if cause.get("cycle"):
        kinds = [node.split(":", 1)[0] for node in cause["cycle"]]
        return " -> ".join(kinds)
    text = cause["summary"].split(" has not returned")[0]
    return normal(text)


def normal(text: str) -> str:
    """Text without numbers, addresses and unit numbers."""
    text = _NUMBERS.sub("", text)
    return _BLANKS.sub(" ", _UNIT.sub("", text)).strip(" :,;.")


def tokens(text: str) -> FrozenSet[str]:
    """The words of a signature, for how near two of them are."""
    return frozenset(re.findall(r"[A-Za-z_][\w.]*", text))


def nearness(one: str, other: str) -> float:
    """Shared words of two signatures, 0.0 to 1.0 (Jaccard)."""
    left, right = tokens(one), tokens(other)
    return len(left & right) / len(left | right) if left | right else 1.0
