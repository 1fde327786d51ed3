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
        cluster: whose job it is, "" if not known: two clusters may count the same ids.
    """

    executor: str
    job_id: str
    restart_count: int
    succeeds: tuple[str, ...] = ()
    cluster: str = ""

    def is_of(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this start."""
        return self._is_here(attempt) and (
            (_job_of(attempt), attempt.restart_count) == (self.job_id, self.restart_count)
        )

    def is_of_job(self, attempt: Attempt) -> bool:
        """Whether ``attempt`` ran in this job, in whichever start, or in one that it succeeds."""
        return self._is_here(attempt) and _job_of(attempt) in (self.job_id, *self.succeeds)

    def _is_here(self, attempt: Attempt) -> bool:
        return not attempt.cluster or attempt.cluster == (self.cluster or attempt.cluster)


def _job_of(attempt: Attempt) -> str:
    return attempt.job_id or str(attempt.supervisor.get("job_id", ""))
