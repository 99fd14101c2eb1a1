"""The vocabularies of the wait-for graph; their values are the words of the JSON contract."""

from __future__ import annotations

import enum


class Word(str, enum.Enum):
    """A member that prints, compares and goes into JSON as its value."""

    # Those of str itself: Enum's own go through three calls, for every node's id.
    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


class NodeKind(Word):
    """What a node of the graph is."""

    THREAD = "thread"
    LOCK = "lock"
    BUF = "buf"
    BIO = "bio"
    QUEUE = "queue"
    PROVIDER = "provider"
    POOL = "pool"
    PAGE = "page"
    OBJECT = "object"
    VNODE = "vnode"
    MEMORY = "memory"
    CHANNEL = "channel"
    CPU = "cpu"
    TASK = "task"
    REQUEST = "request"
    SERVER = "server"
    ZIO = "zio"
    TXG = "txg"
    DBUF = "dbuf"
    LWB = "lwb"
    ZPOOL = "zpool"
    TASKQUEUE = "taskqueue"
    EPOCH = "epoch"
    CALLOUT = "callout"


class EdgeKind(Word):
    """How the source of an edge depends on its target."""

    WAITS_FOR = "waits-for"
    OWNED_BY = "owned-by"
    SERVED_BY = "served-by"
    NEEDS = "needs"
    CONTAINED_IN = "contained-in"


class Certainty(Word):
    """What an edge rests on, the surest first: memory, the catalogue's word, a likeness."""

    PROVEN = "proven"
    CATALOGUED = "catalogued"
    GUESSED = "guessed"


class CauseKind(Word):
    """Where a chain ends, those that nothing but a repair can end first."""

    DEADLOCK = "deadlock"
    LOST_WAKEUP = "lost-wakeup"
    LEAK = "leak"
    PACING = "pacing"
    DEVICE = "device"
    MEMORY = "memory"
    RUNNING = "running"
    RUNNABLE = "runnable"
    EXTERNAL = "external"
    UNKNOWN = "unknown"


class Status(Word):
    """What a thread is taken for; STUCK ones are those that have to be explained."""

    STUCK = "stuck"
    #: waits, but not yet for long enough to look stuck
    WAITING = "waiting"
    IDLE = "idle"
    BENIGN = "benign"
    TIMED = "timed"
    RUNNING = "running"
    SPINNING = "spinning"
    RUNNABLE = "runnable"
    OTHER = "other"
