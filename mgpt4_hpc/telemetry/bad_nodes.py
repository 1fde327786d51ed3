"""The nodes that attempts found unfit, as the ledger records them."""

from __future__ import annotations

from collections.abc import Sequence

from mgpt4_hpc.telemetry.attempts import Attempt

BAD_NODE = "bad node"
"""What the ledger's fault lines about an unfit node say; their `node` names it."""


def nodes_found_bad(attempts: Sequence[Attempt]) -> list[str]:
    """Names of the nodes that these attempts found unfit, in order, each once."""
    named = [
        str(fault["node"])
        for attempt in attempts
        for fault in attempt.faults
        if fault.get("what") == BAD_NODE and fault.get("node")
    ]
    return list(dict.fromkeys(named))
