"""Taking runs out of the queue: Slurm's jobs with scancel, local ones by their controller."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass

from mgpt4_hpc.errors import MgptError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.formatting import shell_word
from mgpt4_hpc.launch.runs import processes
from mgpt4_hpc.launch.runs.cancel_request import request_cancel, withdraw_cancel
from mgpt4_hpc.launch.runs.job_ref import JobRef
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview
from mgpt4_hpc.launch.slurm.scheduler import other_cluster, scheduler
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.run_dir import RunDir


@dataclass(frozen=True)
class Cancelled:
    """Result of cancelling one run.

    Attributes:
        run: the run.
        job_id: its newest job; None if it never had one.
        done: whether there was something to cancel.
        text: the sentence for people.
    """

    run: RunDir
    job_id: str | None
    done: bool
    text: str


def cancel_run(run: RunDir, seen: RunOverview, *, save: bool) -> Cancelled:
    """Cancel a run's job, if it has one.

    Args:
        run: the run.
        seen: what it is doing.
        save: let Slurm's job save first, however long that takes; otherwise it saves only if it
            can within the site's KillWait. A local one is always given the time.

    Raises:
        MgptError: if the job could not be cancelled.
    """
    assert_owned(run.path)  # another user's folder may name any job of ours
    job = read_facts(run).job
    if job is None or not (seen.state.is_live or seen.state is RunState.UNKNOWN):
        return Cancelled(run, job.job_id if job else None, False, f"nothing to cancel: {seen.text}")
    if job.executor == "torchrun":
        raise MgptError(
            f"{run.name} was started by torchrun, not by a job",
            fix=f"end torchrun on {job.hostname or 'its machine'}: it saves first",
        )
    if job.executor == "local":
        return Cancelled(run, job.job_id, True, _cancel_local(run, job))
    save = save and seen.state is RunState.RUNNING  # what only waits has nothing to save
    return Cancelled(run, job.job_id, True, _cancel_slurm(run, job, save))


def _cancel_slurm(run: RunDir, job: JobRef, save: bool) -> str:
    unmarked = _mark(run, job.job_id)
    try:
        return _scancel(job, save, must_hold=bool(unmarked)) + unmarked
    except MgptError as error:
        # After an error the user does not expect the job to stay away after its next preemption.
        if not unmarked:
            withdraw_cancel(run)
        if isinstance(error, SlurmUnreachable):
            raise _unconfirmed(run, job, error) from error
        raise


def _mark(run: RunDir, job_id: str) -> str:
    """Write the cancel marker; return an error suffix, or "" on success."""
    try:
        request_cancel(run, job_id)
    except OSError as error:  # a full quota, often the very reason to cancel
        return f" (no mark could be left in {run.path}: {error.strerror or error})"
    return ""


def _unconfirmed(run: RunDir, job: JobRef, error: SlurmUnreachable) -> SlurmUnreachable:
    """What was sent before Slurm fell silent cannot be called back."""
    name, cluster = shell_word(run.name), other_cluster(job.cluster)
    where = f", on a login node of {cluster}" if cluster else ""
    return SlurmUnreachable(
        f"job {job.job_id} of {run.name} may or may not be cancelled: {error.what}",
        why="Slurm may have received the request without confirming it, and may still carry it out",
        fix=f"once Slurm answers{where}, `mgpt4 status {name}` shows what became of it; if the job "
        f"is still there, give `mgpt4 cancel {name}` again, and if it is gone and should not be, "
        f"`mgpt4 resume {name}`",
    )


def _scancel(job: JobRef, save: bool, *, must_hold: bool) -> str:
    """Cancel by Slurm; ``must_hold``: no mark keeps the job from coming back after it saved."""
    job_id, cluster = job.job_id, other_cluster(job.cluster)
    if not save:
        scheduler().cancel(job_id, cluster=cluster)
        return f"job {job_id} is cancelled"
    # The mark may reach the node's view of the file system late; this reaches Slurm at once.
    try:
        scheduler().forbid_requeue(job_id, cluster=cluster)
    except SlurmRejected as error:
        # Some sites allow no such change: then the mark alone must do.
        if must_hold:
            raise SlurmRejected(
                f"job {job_id} would save and come back: no mark can be left in its run's folder, "
                f"and {error.what}",
                fix="free some space and cancel again, or leave out --save",
            ) from error
    scheduler().signal_ranks(job_id, "USR2", cluster=cluster)
    return f"job {job_id} was asked to save and end"


def _cancel_local(run: RunDir, job: JobRef) -> str:
    if not processes.is_here(job.hostname):
        raise MgptError(
            f"{run.name} runs on {job.hostname}, not on this machine",
            fix=f"ssh {job.hostname} mgpt4 cancel {shlex.quote(str(run.path))}",
        )
    unmarked = _mark(run, job.job_id)
    # The controller then asks the ranks to save and end, gives them the time, and starts no more.
    if not processes.signal_controller(run, job.job_id, signal.SIGINT):
        return f"process {job.job_id} had ended already"
    return f"process {job.job_id} was asked to save and end{unmarked}"
