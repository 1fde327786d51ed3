"""One start of a job, as what happened in it refers to it."""

from __future__ import annotations

from dataclasses import dataclass

from mgpt4_hpc.telemetry.attempts import Attempt


@dataclass(frozen=True)
class JobStart:
    """One start of one job.

    Attributes:
        executor: "slurm" or "local".
        job_id: as the executor names it.
        restart_count: requeues before this start.
        succeeds: jobs that this one was submitted to go on for, oldest first.
    """

    executor: str
    job_id: str
    restart_count: int
    succeeds: tuple[str, ...] = ()

    def is_of(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this start."""
        same_job = _job_of(attempt) == self.job_id
        return same_job and attempt.restart_count == self.restart_count

    def is_of_job(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this job, in whichever start, or in one that it succeeds."""
        return _job_of(attempt) in (self.job_id, *self.succeeds)


def _job_of(attempt: Attempt) -> str:
    return attempt.job_id or str(attempt.supervisor.get("job_id", ""))
