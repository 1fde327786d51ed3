"""Concurrency limit for a sweep's separate jobs.

Slurm holds an array to its ``%N``. What is resumed is no array, so that there each job waits for
others of the sweep to end (``afterany``), in N rows that advance independently.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from mgpt4_hpc.launch.runs.status import look_at
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir
from mgpt4_hpc.run_dir import RunDir


class ConcurrencyLimit:
    """The jobs that the next job of a sweep must wait for.

    Args:
        most: jobs that may run at once.
        live: the sweep's jobs that wait or run already.
    """

    def __init__(self, most: int, live: Sequence[str]) -> None:
        # The live ones begin in an order of their own. When row I begins, all of them but
        # most - 1 - I must have ended: together with the rows before it that makes `most`.
        excess = len(live) - most
        self._rows = deque(tuple(live[: max(0, excess + 1 + row)]) for row in range(most))

    @property
    def next(self) -> Sequence[str]:
        """Jobs that must have ended before the next one begins; empty if it may begin at once."""
        return self._rows[0]

    def take(self, job_id: str) -> None:
        """The next one is this job."""
        self._rows.popleft()
        self._rows.append((job_id,))


def limits_of(sweeps: Iterable[SweepDir]) -> dict[RunDir, ConcurrencyLimit]:
    """The limit of each run in a sweep that has one; runs of one sweep share it.

    Raises:
        SlurmUnreachable: the number of jobs that run here is unknown.
        NoSuchRun: if a sweep is broken.
    """
    limits: dict[RunDir, ConcurrencyLimit] = {}
    for sweep in sweeps:
        most, runs = sweep.max_parallel(), sweep.runs()
        if most is None:
            continue
        seen = look_at(runs)
        if seen.unreachable is not None and not seen.only_elsewhere:
            raise seen.unreachable
        here = [row for row in seen.rows if row.executor == "slurm" and row.cluster is None]
        live = [row.job_id for row in here if row.state.is_live]
        limit = ConcurrencyLimit(most, [job_id for job_id in live if job_id is not None])
        limits |= dict.fromkeys(runs, limit)
    return limits
