"""The mark by which a person takes a run out of the queue for good: ``RUN/CANCEL``.

A signal alone cannot say it: to the ranks USR2 looks like the warning before a time limit, after
which they save and come back. The mark names the job that it is meant for, so that one left over
does not cancel a later job.
"""

from __future__ import annotations

import getpass
import time
from pathlib import Path

from mgpt4_hpc.run_dir import RunDir, read_json, write_json


def cancel_mark(run: RunDir) -> Path:
    """Where the mark lies."""
    return run.path / "CANCEL"


def request_cancel(run: RunDir, job_id: str) -> None:
    """Ask that this job of the run does not come back, however it ends."""
    write_json(cancel_mark(run), {"job_id": job_id, "by": getpass.getuser(), "time": time.time()})


def cancel_requested(run: RunDir, job_id: str | None = None) -> bool:
    """Whether a person asked for it.

    Args:
        run: the run.
        job_id: asks about this job only; None asks about any.
    """
    path = cancel_mark(run)
    try:
        marked = read_json(path).get("job_id")
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True  # made by hand with `touch`: the wish is plain
    return job_id is None or marked is None or marked == job_id


def withdraw_cancel(run: RunDir) -> None:
    """Take the mark away, for the run is wanted again."""
    cancel_mark(run).unlink(missing_ok=True)
