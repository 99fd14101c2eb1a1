"""What happened between two moments, in sentences and as JSON."""

from __future__ import annotations

import os
from typing import Any, Dict, List

from plugin.render.report import Report
from plugin.waits.moments import Progress
from plugin.waits.verdict import listed
from plugin.words import count, seconds, verb

_NAMED = 3


def add(report: Report, found: Progress) -> None:
    """Put it into a report of why-stuck: its sentences behind the verdict."""
    at = report.behind_verdict or len(report.body)
    lines = sentences(found)
    blocks = len(report.body)
    for line in lines:
        report.text(line)
    added = report.body[blocks:]
    del report.body[blocks:]
    report.body[at:at] = added
    report.data["progress"] = data(found)
    report.data["verdict"] = " ".join([report.data["verdict"], *lines]).strip()


def sentences(found: Progress) -> List[str]:
    """Who moved and who did not, the worst first."""
    name = os.path.basename(found.since.source)
    when = f", {seconds(found.seconds)} before" if found.seconds is not None else ""
    stuck = len(found.still + found.ran + found.moved + found.new + found.unknown)
    parts = [
        f"{len(tids)} {verb(len(tids), plural)} {what}"
        for tids, plural, what in (
            (found.still, "have", "not run"),
            (found.moved, "have", f"moved on and {verb(len(found.moved), 'wait')} elsewhere"),
            (
                found.ran,
                "have",
                f"run and {verb(len(found.ran), 'wait')} in the same place again",
            ),
            (found.new, "are", "new"),
            (found.unknown, "are", "in the same place; whether they ran in between is not told"),
        )
        if tids
    ]
    of = f"of {count(stuck, 'stuck thread')} " if parts else ""
    lines = [f"Since {name}{when}: {of}{listed(parts) or 'no thread is stuck'}."]
    moving = [each for each in found.causes if each.verdict == "moves"]
    shown = {each.evidence: None for each in moving}
    for evidence in list(shown)[:_NAMED]:
        ranks = [f"#{each.cause.rank}" for each in moving if each.evidence == evidence]
        if "all its threads" in evidence:
            lines.append(
                f"Moved on since, and not stuck for that long: {listed(ranks[:_NAMED])}"
                + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")
                + "."
            )
        else:
            lines.append(f"{evidence} ({listed(ranks[:_NAMED])}).")
    silent = [d.name for d in found.devices if d.owed and not d.ended]
    told = {d.name for d in found.devices if any(d.name in e for e in shown)}
    busy = [d for d in found.devices if d.ended and d.owed and d.name not in told]
    if silent:
        names = listed(silent[:_NAMED]) + (" and others" if len(silent) > _NAMED else "")
        lines.append(f"Nothing has come back from {names} since.")
    if busy:
        ended = listed([f"{d.name} {d.ended}" for d in busy[:_NAMED]])
        lines.append(f"I/O ended since, with more under way: {ended}.")
    for pool in found.pools:
        lines.append(
            f"Pool {pool.name} has synced {pool.synced or 'no'} txg since, "
            f"{'up to' if pool.synced else 'the last is'} {pool.txg}."
        )
    for queue in found.queues:
        if queue.now or queue.then:
            same = "all" if queue.same == queue.now and queue.now else str(queue.same)
            lines.append(
                f"{queue.name} held {queue.then} bios then and holds {queue.now}, "
                f"{same} of them the same."
            )
    return lines


def data(found: Progress) -> Dict[str, Any]:
    """The object ``progress`` of the contract."""
    return {
        "since": {
            "source": found.since.source,
            "seconds": found.seconds,
            "same_boot": found.evidence,
        },
        "threads": {
            "still": found.still,
            "ran": found.ran,
            "moved": found.moved,
            "new": found.new,
            "unknown": found.unknown,
            "gone": found.gone,
        },
        "causes": [
            {
                "rank": each.cause.rank,
                "verdict": each.verdict,
                "still": each.still,
                "evidence": each.evidence,
            }
            for each in found.causes
        ],
        "devices": [each._asdict() for each in found.devices],
        "pools": [each._asdict() for each in found.pools],
        "queues": [each._asdict() for each in found.queues],
        "counters": found.counters,
    }
