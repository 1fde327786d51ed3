"""The signals that can stop a run. Everything that blocks, traps or ignores them uses this list."""

from typing import Literal, get_args

StopSignal = Literal["TERM", "USR2", "USR1", "INT", "HUP"]
STOP_SIGNALS: tuple[str, ...] = get_args(StopSignal)
"""Names without SIG, as `kill`, `trap` and Slurm take them."""
