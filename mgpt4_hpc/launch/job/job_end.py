"""How a job ends so that Slurm takes the end for what it is.

From 24.05 on Slurm marks a job when a preemption's grace time begins, and keeps the mark when the
job requeues itself. The next end of that job, in whichever start, then counts as a preemption: a
finished run's dependents are cancelled (PreemptMode=CANCEL), or the finished job starts once more
(PreemptMode=REQUEUE). Nothing shows the mark. So each job that may bear it lets its dependents go
before it ends, and takes back its wish to be requeued; where there is no mark this changes nothing.
The same holds for a run's job and for an array's task that does a part of other work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.slurm.dependencies import (
    JobName,
    after_success,
    other_tasks,
    update_dependency,
    waiting_jobs,
)
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.output_files import remove_older

_ASK_S = 10.0
"""Patience with each command: the job may be inside a grace time, and was preempted once."""
_LOCK_STALE_S = 30.0


def end_finished(start: JobStart, folder: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Let go of the jobs that wait for finished work, then stay away.

    A job killed in between starts again, finds its work finished and comes here: to let go
    twice does no harm, and a dependent that started found finished work.

    Args:
        start: the job's start.
        folder: the same for all tasks of an array, and not removed by a job that waits for them.
        environ: of the batch script.
    """
    if not _may_be_marked(start):
        return
    name = JobName.of(start.job_id, environ)
    with _one_at_a_time(folder / f".ending-{name.array}" if name.array else None):
        for line in release_dependents(name):
            print(line, flush=True)
    _stay_away(start)


def end_unfinished(start: JobStart) -> None:
    """Stay away though the work is unfinished: it was given up or cancelled."""
    if _may_be_marked(start):
        _stay_away(start)


def _stay_away(start: JobStart) -> None:
    """Let Slurm not start this job again, however it counts its end."""
    try:
        scheduler().forbid_requeue(start.job_id, timeout_s=_ASK_S)
    except MgptError as error:
        print(f"Slurm may start this job once more: {error.what}", flush=True)


def release_dependents(name: JobName) -> list[str]:
    """Let the jobs of this user that wait for the success of ``name`` wait for it no longer.

    Returns:
        a sentence for each, and for what went wrong.
    """
    try:
        waiting = waiting_jobs(timeout_s=_ASK_S)
    except MgptError as error:
        return [f"which jobs wait for this one is not known: {error.what}"]
    others: list[str] | None = None
    lines = []
    for job_id, dependency in waiting.items():
        target, corresponds = job_id, False
        if any(term.kind == "aftercorr" and name.is_among(term) for term in dependency.terms):
            target, corresponds = f"{job_id.partition('_')[0]}_{name.task}", True
            if "[" not in job_id and job_id != target:
                continue
        try:
            if others is None and any(map(name.is_among, dependency.terms)):
                others = other_tasks(name, timeout_s=_ASK_S)
            remaining = after_success(dependency, name, others or (), corresponds=corresponds)
            if remaining == dependency:
                continue
            update_dependency(target, remaining, timeout_s=_ASK_S)
            now = str(remaining) or "nothing more"
            lines.append(f"job {target} waited for this one; it now waits for {now}")
        except MgptError as error:
            lines.append(f"job {target} still waits for this one: {error.what}")
    return lines


def _may_be_marked(start: JobStart) -> bool:
    if start.executor != "slurm":
        return False
    if start.restart_count:
        return True
    try:
        return scheduler().facts(start.job_id, timeout_s=_ASK_S).preempt_time is not None
    except MgptError:
        return False


@contextmanager
def _one_at_a_time(lock: Path | None) -> Iterator[None]:
    """Hold a file against the other tasks of an array, which rewrite the same dependencies.

    A dead task's file counts for half a minute; where no file can be made, nothing is held.
    """
    is_own = False
    deadline = time.monotonic() + 2 * _LOCK_STALE_S
    while lock is not None and not is_own and time.monotonic() < deadline:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            is_own = True
        except FileExistsError:
            time.sleep(0.1)
            remove_older(lock, _LOCK_STALE_S)
        except OSError:
            break
    try:
        yield
    finally:
        if is_own and lock is not None:
            lock.unlink(missing_ok=True)
