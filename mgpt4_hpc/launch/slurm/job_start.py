"""Which start of which job something happened in."""

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
    """

    executor: str
    job_id: str
    restart_count: int

    def is_of(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this start."""
        return self.is_of_job(attempt) and attempt.restart_count == self.restart_count

    def is_of_job(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this job, in whichever start."""
        return (attempt.job_id or str(attempt.supervisor.get("job_id", ""))) == self.job_id
