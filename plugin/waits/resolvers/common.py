"""What becomes of a sleep that no special resolver takes: the catalogue's row, or nothing."""

from __future__ import annotations

from plugin.waits.build import BENIGN, IDLE, OTHER, STUCK, TIMED, Case, Standing
from plugin.waits.graph import PROVEN, End
from plugin.words import seconds

#: a timeout further away than what DEADLKRES takes for a deadlock (1800 s) is none
LONG_TIMEOUT = 1800.0


def generic(case: Case, why: str) -> Standing:
    """The row alone: who wakes the sleeper, as far as that has a name."""
    row = case.row
    assert row is not None
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    woken = row.woken_by or "what its catalogue row does not say"
    if row.klass == "idle":
        node.end = node.end or End("external", f"a service thread without work ({woken})", why)
        return Standing(IDLE, f"idle: {row.function}", row)
    if row.klass == "benign":
        node.end = node.end or End("external", f"waits for {woken}", why)
        return Standing(BENIGN, f"waits for {woken}", row)
    if row.klass == "pacing":
        node.end = node.end or End("pacing", f'"{case.thread.wmesg}": tries again by itself', why)
        return Standing(STUCK, f"paces itself: {row.function}", row)
    servers = case.b.named(row.server) if row.server else []
    if servers:
        case.b.served_by(node, servers, f"by {why}: {woken}")
    else:
        node.end = node.end or End("unknown", f'"{case.thread.wmesg}" waits for {woken}', why)
    return Standing(STUCK, f"{row.function}", row)


def unknown(case: Case) -> Standing:
    """A sleep the catalogue does not know.  With a timeout it ends by itself."""
    node = case.channel_node()
    if case.thread.state == "swapped":
        node = case.waits_for(node, PROVEN, case.said())
        node.end = End("external", "swapped out while it slept")
        return Standing(OTHER, "swapped out")
    case.waits_for(node, PROVEN, case.said())
    sleep = case.b.sleeps.get(case.thread.address)
    evidence = "not in the catalogue of wait messages"
    if sleep is not None and sleep.timed:
        if sleep.expires is None or sleep.expires < LONG_TIMEOUT:
            node.end = node.end or End("external", "a sleep with a timeout, which ends by itself")
            return Standing(TIMED, "sleeps with a timeout: it wakes by itself")
        evidence += f"; its timeout ends it in {seconds(sleep.expires)}"
    if node.end is None or node.end.kind == "external":
        node.end = End("unknown", f"{node.label}: no known server", evidence)
    return Standing(STUCK, "not in the catalogue")


def idle(case: Case, why: str) -> Standing:
    """A service thread that rightly has nothing to do."""
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    node.end = node.end or End("external", "a service thread without work", why)
    return Standing(IDLE, why, case.row)


def lost_wakeup(case: Case, summary: str, evidence: str) -> Standing:
    """The condition waited for holds, and the sleeper sleeps."""
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    node.end = End("lost-wakeup", summary, evidence, case.thread.age)
    return Standing(STUCK, summary, case.row)


def no_lock(case: Case) -> Standing:
    """A row that says "lock" for a sleep at whose channel no lock was found."""
    node = case.waits_for(case.channel_node(), PROVEN, case.said())
    node.end = node.end or End(
        "unknown", f"{node.label}: the message is a lock's, but none can be read there"
    )
    return Standing(STUCK, "waits for a lock that cannot be read", case.row)
