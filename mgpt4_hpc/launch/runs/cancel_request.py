"""The mark of a cancelled run, which never returns to the queue: ``RUN/CANCEL``.

A signal alone cannot say it: to the ranks USR2 looks like the warning before a time limit, after
which they save and come back. The mark names the job that it is meant for, so that one left over
does not cancel a later job.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from mgpt4_hpc.errors import StorageTrouble
from mgpt4_hpc.identity import user_name
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.run_dir import RunDir, read_json, write_json

PAUSES_S = (0.5, 1.0, 2.0)
"""Short: the caller may be killed in half a minute, and must requeue the job before."""


def cancel_mark(run: RunDir) -> Path:
    """Where the mark lies."""
    return run.root / "CANCEL"


def request_cancel(run: RunDir, job_id: str) -> None:
    """Ask that this job of the run does not come back, however it ends."""
    write_json(cancel_mark(run), {"job_id": job_id, "by": user_name(), "time": time.time()})


def cancel_requested(
    run: RunDir, job_id: str | None = None, *, pauses_s: Sequence[float] = PAUSES_S
) -> bool:
    """Whether the user cancelled the run; False if storage does not answer.

    Args:
        run: the run.
        job_id: asks about this job only; None asks about any.
        pauses_s: seconds between the tries while storage stumbles.
    """
    return _is_marked(run, () if job_id is None else (job_id,), pauses_s)


def _is_marked(run: RunDir, job_ids: Sequence[str], pauses_s: Sequence[float]) -> bool:
    """Whether one of these jobs was cancelled, or any job if none is named."""
    try:
        marked = retry_storage(lambda: read_json(cancel_mark(run)), pauses_s=pauses_s).get("job_id")
    except ValueError:
        return True  # made by hand with `touch`, without content
    except (OSError, StorageTrouble):
        return False  # Slurm knows of a cancel, too; an error of storage is no cancel
    return not job_ids or marked is None or marked in job_ids


def is_cancelled(run: RunDir, start: JobStart, *, pauses_s: Sequence[float] = PAUSES_S) -> bool:
    """Whether the user cancelled this job, or one that it succeeds."""
    return _is_marked(run, (start.job_id, *start.succeeds), pauses_s)


def withdraw_cancel(run: RunDir) -> None:
    """Take the mark away, for the run is wanted again."""
    cancel_mark(run).unlink(missing_ok=True)
