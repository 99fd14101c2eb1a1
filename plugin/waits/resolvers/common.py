"""What becomes of a sleep that no special resolver takes: the catalogue's row, or nothing."""

from __future__ import annotations

from typing import Tuple

from plugin.catalogue import Row, SleepClass
from plugin.kernel.sleepqueue import Sleep
from plugin.waits.builder import Case, Verdict
from plugin.waits.graph import End
from plugin.waits.kinds import CauseKind, Certainty, Status
from plugin.waits.registry import resolver
from plugin.waits.settle import FRESH
from plugin.words import seconds

#: a timeout further away than what DEADLKRES takes for a deadlock (1800 s) is none
LONG_TIMEOUT = 1800.0


#: classes of which somebody else brings the end about
_SERVED = (SleepClass.WORK, SleepClass.DRAIN, SleepClass.RETRY)


def told_by(row: Row, wmesg: str, why: str, *, fresh: bool) -> Tuple[End, Verdict]:
    """What a row alone tells of a sleep: where it ends if nothing more is known, and its thread.

    ``fresh``: a retry's start is not known, or so near that it may be the first look.
    """
    woken = row.woken_by or "what its catalogue row does not say"
    if row.sleep_class is SleepClass.IDLE:
        end = End(CauseKind.EXTERNAL, f"a service thread that waits for {woken}", why)
        return end, Verdict(Status.IDLE, f"idle: {row.function}", row)
    if row.sleep_class is SleepClass.BENIGN:
        end = End(CauseKind.EXTERNAL, f"waits for {woken}", why)
        return end, Verdict(Status.BENIGN, f"waits for {woken}", row)
    if row.sleep_class is SleepClass.PACING:
        end = End(CauseKind.PACING, f'"{wmesg}": tries again by itself', why)
        return end, Verdict(Status.STUCK, f"paces itself: {row.function}", row)
    stuck = Verdict(Status.STUCK, row.function, row)
    if row.sleep_class is not SleepClass.RETRY:
        return End(CauseKind.UNKNOWN, f'"{wmesg}" waits for {woken}', why), stuck
    # A retry is no progress: what it looks for has to be brought about by somebody.
    end = End(CauseKind.UNKNOWN, f'"{wmesg}" looks again and again for {woken}', why)
    said = f'retries in "{wmesg}", since when is not known'
    return end, Verdict(Status.TIMED, said, row, understood=False) if fresh else stuck


def served(row: Row) -> bool:
    """A sleep that threads the row names may end."""
    return bool(row.server) and row.sleep_class in _SERVED


def generic(case: Case, why: str) -> Verdict:
    """The row alone: who wakes the sleeper, as far as that has a name."""
    row = case.row
    assert row is not None
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    named = case.builder.named(row.server) if served(row) else []
    # Who rests has nothing in hand for this sleeper.
    servers = [thread for thread in named if not case.builder.waits_for_work(thread)]
    if servers:
        case.builder.served_by(node, servers, f"by {why}: {row.woken_by}")
        return Verdict(Status.STUCK, row.function, row)
    # The kernel keeps no start of a retry: this may be the first look or the thousandth.
    age = case.thread.age
    fresh = age is not None and age < FRESH
    end, verdict = told_by(row, case.thread.wmesg or "", why, fresh=fresh)
    node.end = node.end or end
    return verdict


def unknown(case: Case) -> Verdict:
    """A sleep the catalogue does not know.  With a timeout it ends by itself."""
    node = case.channel_node()
    case.waits_for(node, Certainty.PROVEN, case.said())
    sleep = case.builder.sleeps.get(case.thread.address)
    evidence = "not in the catalogue of wait messages"
    if sleep is not None and sleep.timed:
        if sleep.expires is None or sleep.expires < LONG_TIMEOUT:
            said = f"a timeout wakes it{_when(sleep)}; what it waits for is not known"
            node.end = node.end or End(CauseKind.EXTERNAL, said, evidence)
            return Verdict(Status.TIMED, f"{evidence}; {said}", understood=False)
        evidence += f"; its timeout ends it in {seconds(sleep.expires)}"
    if node.end is None or node.end.kind is CauseKind.EXTERNAL:
        node.end = End(CauseKind.UNKNOWN, f"{node.label}: no known server", evidence)
    return Verdict(Status.STUCK, "not in the catalogue")


def _when(sleep: Sleep) -> str:
    if sleep.expires is None:
        return ""
    return f" in {seconds(sleep.expires)}" if sleep.expires >= 0 else " (it is overdue)"


def idle(case: Case, why: str) -> Verdict:
    """A service thread that rightly has nothing to do."""
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    node.end = node.end or End(CauseKind.EXTERNAL, "a service thread without work", why)
    return Verdict(Status.IDLE, why, case.row)


def lost_wakeup(case: Case, summary: str, evidence: str) -> Verdict:
    """The condition waited for holds, and the sleeper sleeps."""
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    node.end = End(CauseKind.LOST_WAKEUP, summary, evidence, case.thread.age)
    return Verdict(Status.STUCK, summary, case.row)


@resolver("lock")
def no_lock(case: Case) -> Verdict:
    """A row that says "lock" for a sleep at whose channel no lock was found."""
    node = case.waits_for(case.channel_node(), Certainty.PROVEN, case.said())
    node.end = node.end or End(
        CauseKind.UNKNOWN, f"{node.label}: the message is a lock's, but none can be read there"
    )
    return Verdict(Status.STUCK, "waits for a lock that cannot be read", case.row)
