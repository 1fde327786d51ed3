# ruff: noqa: E501 - a table
"""What a ledger line can say.

Every line is one JSON object: `t` (unix time in seconds), `kind`, and the fields below. A field
may be missing where it is not known; unknown fields are kept and ignored.

| kind | written when | fields |
|---|---|---|
| `start` | the attempt begins | `attempt`, `job_id`, `restart_count`, `nodes` (list), |
| | | `world_size`, `device` ("cpu", "cuda"), `hostname`, `processes` (rank, host, pid of each), `started_at` (unix time of the process), `versions` (object), `submitted_at` (unix time) |
| `restore` | a checkpoint was loaded | `step`, `samples_seen`, `path` |
| `damaged` | a checkpoint failed verification | `path`, `reason` |
| `first_step` | the attempt's first optimizer step is done | `step`, `since_start_s`, `buckets` |
| `steps` | at intervals, at each save (without a loss), and after the last step | `step`, `samples_seen`, `loss`, |
| | | `buckets` (seconds in each since the attempt's start) |
| `save` | a checkpoint is durable | `step`, `durable_s`, `stall_s` |
| `save_failed` | it is not | `step`, `reason` |
| `validation` | the held-out loss is known | `step`, `loss` |
| `signal` | a signal came | `name`, `deadline` (unix time; null is at once) |
| `stop_requested` | the ranks agreed to stop | `step`, `reason`, `deadline` (unix time) |
| `substitution` | a bad sample was replaced | `position`, `key`, `reason`, `replaced_by` |
| `staging` | training ended; of rank 0's node | `folder`, `samples_read` (by rank 0 from copies), `copied` (stretches of samples), |
| | | `bytes_copied`, `removed`, `failed` |
| `drift` | the run continues though something changed | `what` (list), `accepted` (by the user) |
| `changed` | settings are not those of the start before | `what` (list: setting, old and new value), `step` (where it is known) |
| `hang` | a rank's watchdog found that nothing moves | `rank`, `host`, `phase`, `silent_s`, `step` |
| `fault` | anything else worth knowing | `what`, `reason` |
| `requeue` | this attempt asked for its successor | `accepted`, `command`, `reason` |
| `end` | the attempt is over | `cause`, `step`, `exit_code`, `buckets`; of a finished run `all_steps` (its steps) and |
| | | `num_worse` (validations since its lowest held-out loss), `early` (why before its last step, or empty) |
"""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The `kind` of a ledger line; the module's table has the fields."""

    START = "start"
    RESTORE = "restore"
    DAMAGED = "damaged"
    FIRST_STEP = "first_step"
    STEPS = "steps"
    SAVE = "save"
    SAVE_FAILED = "save_failed"
    VALIDATION = "validation"
    SIGNAL = "signal"
    STOP_REQUESTED = "stop_requested"
    SUBSTITUTION = "substitution"
    STAGING = "staging"
    DRIFT = "drift"
    CHANGED = "changed"
    HANG = "hang"
    FAULT = "fault"
    REQUEUE = "requeue"
    END = "end"


SYNCED = frozenset({Kind.START, Kind.RESTORE, Kind.SAVE, Kind.REQUEUE, Kind.END})
"""Kinds that survive a power cut once `Ledger.event` has returned."""

UNKNOWN_CAUSE = "unknown"
"""Cause of an attempt that left no `end` and about which no supervisor left a note."""
RUNNING_CAUSE = "running"
"""Cause of the newest attempt until an end is recorded."""
