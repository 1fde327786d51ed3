"""Why an attempt ended: the words of the ledger and the tables."""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why an attempt ended, as the ledger and the tables say it."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    REQUEUED = "requeued"
    TIME_LIMIT = "time limit"
    SIGNALLED = "signalled"
    CANCELLED = "cancelled"
    CRASHED = "crashed"
    HUNG = "hung"
    BAD_NODE = "bad node"
    NODE_LOST = "node lost"
    FATAL = "fatal"
    UNKNOWN = "unknown"
