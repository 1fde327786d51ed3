"""TensorBoard as a Slurm job: ``slurm/tensorboard.sbatch``, and where it then listens."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import MgptError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.formatting import first_line
from mgpt4_hpc.launch.slurm.commands import clean_environment, log_pattern
from mgpt4_hpc.launch.slurm.sbatch import submit
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.resources import slurm_dir
from mgpt4_hpc.text_files import text_of

_POLL_S = 1.0
_LAG_S = 30.0
"""A file system may show the log so late."""


@dataclass(frozen=True)
class TensorBoardJob:
    """What is asked of Slurm.

    Attributes:
        arguments: of ``mgpt4 tensorboard`` in the job.
        log: its output, on shared storage.
        partition, account: None is the site's default.
        time_min: limit in minutes.
        sbatch: further options, without dashes.
    """

    arguments: Sequence[str]
    log: Path
    partition: str | None = None
    account: str | None = None
    time_min: int = 480
    sbatch: Mapping[str, str] = field(default_factory=dict)


def sbatch_words(job: TensorBoardJob) -> list[str]:
    """What sbatch is given to submit it."""
    wanted: dict[str, object] = {
        "partition": job.partition,
        "account": job.account,
        "time": job.time_min,
        "output": log_pattern(job.log),
        "chdir": "/",
        **job.sbatch,
    }
    options = [f"--{key}={value}" for key, value in wanted.items() if value is not None]
    script = str(slurm_dir() / "tensorboard.sbatch")
    return [*options, script, *job.arguments]


def submit_tensorboard(job: TensorBoardJob) -> str:
    """Submit it; the job's id.

    Raises:
        SlurmRejected, SlurmUnreachable: if it cannot be submitted.
        MgptError: if the log cannot be written.
    """
    try:
        job.log.parent.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise MgptError(
            f"{job.log.parent} cannot be made: {error.strerror}",
            fix="give --runs-dir a folder that you may write to",
        ) from error
    # The job's environment is this one's, so that it finds this very installation.
    environ = {**clean_environment(os.environ), "MGPT4_PYTHON": sys.executable}
    try:
        return submit(sbatch_words(job), environ)
    except MgptError:
        with suppress(OSError):  # it holds the logs of others
            job.log.parent.rmdir()
        raise


def wait_until_up(
    job: TensorBoardJob, job_id: str, *, say: Callable[[str], None], poll_s: float = _POLL_S
) -> dict[str, Any]:
    """Wait until the job's server answers; returns what the job printed.

    Raises:
        MgptError: if the job ends instead, with its last words.
    """
    said = ""
    over_since: float | None = None
    while True:
        facts = _facts_in(job.log)
        if facts is not None:
            return facts
        try:  # an unreadable queue says nothing about the job, which has been submitted
            queued = scheduler().queued([job_id]).get(job_id)
            text = f"{queued.state.lower()} {queued.reason}".strip() if queued else "gone"
            answered = True
        except (SlurmRejected, SlurmUnreachable) as error:
            queued, text, answered = None, first_line(error.what), False
        if text != said:
            say(f"job {job_id}: {text}")
            said = text
        if not answered or (queued is not None and queued.is_active):
            over_since = None
        else:
            over_since = time.monotonic() if over_since is None else over_since
            if time.monotonic() - over_since > (_LAG_S if queued is None else poll_s):
                words = (text_of(job.log) or "").strip().splitlines()[-3:] or ["it wrote nothing"]
                raise MgptError(
                    f"job {job_id} ended before TensorBoard was up: {' / '.join(words)}",
                    fix=f"read {job.log}",
                )
        time.sleep(poll_s)


def _facts_in(log: Path) -> dict[str, Any] | None:
    """The JSON object that the job wrote when its server answered."""
    text = text_of(log) or ""
    start = text.find("{\n")
    if start < 0:
        return None
    try:
        facts, _ = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None  # half written
    return facts if isinstance(facts, dict) else None
