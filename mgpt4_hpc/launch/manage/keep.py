"""Bringing back runs that should be at work and are not: for cron, scrontab, or by hand.

A run requeues itself, or submits its successor. What is left is what no process lived to do: a node
that died with a job that Slurm may not requeue, a controller that lost its jobs, a submission that
was refused for a while. A run that the user or a budget has ended stays away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.job.successor import of_its_line
from mgpt4_hpc.launch.manage.changes import Overrides
from mgpt4_hpc.launch.manage.concurrency_limit import limits_of
from mgpt4_hpc.launch.manage.resume import Resumption
from mgpt4_hpc.launch.manage.resume_many import resume_many
from mgpt4_hpc.launch.runs.run_facts import run_it_follows
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.launch.runs.sweep_dir import limited_sweeps
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers

_GONE = frozenset({RunState.STOPPED, RunState.LOST, RunState.FAILED})


@dataclass(frozen=True)
class KeepResult:
    """What was done.

    Attributes:
        brought_back: runs that have a new job.
        was: what each of them was doing before, by name.
        errors: why others could not be brought back.
    """

    brought_back: list[Resumption]
    was: dict[str, str]
    errors: list[MgptError]


def keep_runs(
    runs: Sequence[RunDir], say: Callable[[str], None], *, named: bool = True
) -> KeepResult:
    """Submit those runs again that should be at work.

    Args:
        runs: to look at; only those that were submitted to Slurm are touched.
        say: called with notes.
        named: the user named them: one of another cluster, which cannot be asked, is an error.

    Raises:
        SlurmUnreachable: the runs at work are unknown.
    """
    seen = look_at(runs)
    if seen.unreachable is not None and not seen.only_elsewhere:
        raise seen.unreachable
    unknown = [seen.unreachable] if seen.unreachable is not None and named else []
    states = {run.path: row for run, row in zip(runs, seen.rows, strict=True)}
    gone = [run for run in runs if _is_gone(run, states[run.path], say)]
    # What waits for another run comes back with that one.
    gone = [run for run in gone if _may_start(run, states[run.path])]
    limits = limits_of(limited_sweeps(gone))
    done, errors = resume_many(
        gone, Overrides(), "slurm", say=say, limits=limits, keeps_budgets=True
    )
    brought_back = [resumption for resumption in done if resumption.submitted is not None]
    was = {resumption.run.name: states[resumption.run.path].text for resumption in brought_back}
    return KeepResult(brought_back, was, [*unknown, *errors])


def _is_gone(run: RunDir, row: RunOverview, say: Callable[[str], None]) -> bool:
    """Whether a run has no job, though neither the user nor a budget has ended it."""
    if row.executor != "slurm" or row.state not in _GONE or run.failed.exists():
        return False
    line = of_its_line(run, JobStart("slurm", row.job_id or "", 0))
    jobs = (*line.succeeds, line.job_id)
    began = {attempt.job_id for attempt in read_ledgers(run.ledger)}
    idle = next((n for n, job in enumerate(reversed(jobs)) if job in began), len(jobs))
    try:
        limit = read_config(run.config_file).config.launch.max_stalled_attempts
    except MgptError as error:
        say(f"{run.name} is left alone: {error.what}")
        return False
    # A first job that never began may have waited for another run.
    if idle > limit:
        say(f"{run.name} is left alone: its last {idle} jobs ended before a rank started")
        return False
    return True


def _may_start(run: RunDir, row: RunOverview) -> bool:
    first = run_it_follows(run)
    if first is None or row.checkpoint_step is not None:
        return True
    (followed,) = look_at([first]).rows
    return followed.state is RunState.FINISHED or followed.state.is_live
