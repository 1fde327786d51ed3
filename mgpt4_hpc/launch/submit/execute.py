"""Carry out a plan: make the run directories and submit their jobs; or only render the scripts."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from mgpt4_hpc.errors import MgptError, PreflightError, SlurmUnconfirmed, StorageTrouble
from mgpt4_hpc.launch.runs.job_ref import read_note, read_ref
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.runs.sweep_dir import create_sweep, note_jobs, remove_sweep
from mgpt4_hpc.launch.slurm.scheduler import other_cluster, scheduler
from mgpt4_hpc.launch.submit.branch import branch
from mgpt4_hpc.launch.submit.plan import Plan, PlannedRun
from mgpt4_hpc.launch.submit.submit_run import (
    SubmittedRun,
    complete_run,
    create_run,
    prepare_environment,
    render,
    render_local,
    submit_run,
    uninterrupted,
)
from mgpt4_hpc.launch.submit.sweep import render_array, write_scripts
from mgpt4_hpc.run_dir import RunDir

Say = Callable[[str], None]


def submit_plan(plan: Plan, *, say: Say, wait: bool = False) -> list[SubmittedRun]:
    """Make the runs and submit their jobs.

    Without Slurm nothing can hold a second job back, so a chain is waited for here.

    Args:
        plan: without faults.
        say: called with what happens.
        wait: stay until all runs are finished.

    Raises:
        MgptError: as Slurm says; a run directory whose job was refused is removed again, but not
            one whose job may have been accepted.
    """
    submitted: list[SubmittedRun] = []
    for item in {item.run.path.parent: item for item in plan.runs}.values():
        prepare_environment(item.run, item.resolved.config, say)
    try:
        if plan.sweep is not None and plan.executor == "slurm":
            _submit_array(plan, submitted)
        elif plan.sweep is not None:
            _run_sweep_here(plan, submitted, say)
        else:
            _submit_chain(plan, submitted, say, wait)
        if wait and plan.executor == "slurm":
            from mgpt4_hpc.launch.runs.wait import wait_for_runs

            wait_for_runs([job.run for job in submitted], say=say)
    except KeyboardInterrupt:
        _print_what_continues(submitted, say)
        raise
    return submitted


def _print_what_continues(submitted: list[SubmittedRun], say: Say) -> None:
    if not submitted:
        say("interrupted: nothing was submitted")
        return
    say("interrupted; this command ends, and the jobs go on:")
    for job in submitted[:10]:
        say(f"  {job.run.name}  {job.executor} job {job.job_id}")
    if len(submitted) > 10:
        say(f"  and {len(submitted) - 10} more")
    name, folder = submitted[-1].run.name, submitted[-1].run.path.parent
    say(f"follow it: mgpt4 logs -f {name} --runs-dir {folder}")
    say(f"end it:    mgpt4 cancel {name} --runs-dir {folder}")


def _submit_chain(plan: Plan, submitted: list[SubmittedRun], say: Say, wait: bool) -> None:
    for number, item in enumerate(plan.runs):
        try:
            with uninterrupted(plan.executor):
                submitted.append(_submit_one(item, plan.executor))
        except MgptError:
            for before in submitted:
                say(f"{before.run.name} was submitted already, as job {before.job_id}")
            raise
        job = submitted[-1]
        is_last = number == len(plan.runs) - 1
        if job.process is not None and (wait or not is_last):
            say(f"{job.run.name}: running here as process {job.job_id}, log in {job.run.slurm}")
            _wait_local(job)


def _submit_one(item: PlannedRun, executor: str) -> SubmittedRun:
    dependency = _dependency(item.follows) if item.follows and executor == "slurm" else None
    _make(item)
    try:
        return submit_run(item.run, item.resolved, executor, dependency=dependency)
    except (SlurmUnconfirmed, StorageTrouble):
        raise  # a job may be there, and needs the folder
    except MgptError:
        _remove(item.run)
        raise


def _make(item: PlannedRun, code_of: RunDir | None = None) -> None:
    """Make the run's folder, with another's state where it continues one."""
    if item.continues is None:
        create_run(item.run, item.resolved, code_of=code_of)
        return
    branch(item.continues, item.run.name, item.run.path.parent, item.resolved)
    try:
        complete_run(item.run, item.resolved.config, code_of=code_of)
    except BaseException:
        _remove(item.run)
        raise


def _submit_array(plan: Plan, submitted: list[SubmittedRun]) -> None:
    """All runs of a sweep, or none."""
    assert plan.sweep is not None
    folder, first = plan.sweep.folder, plan.runs[0]
    runs = [item.run for item in plan.runs]
    dependency = _dependency(first.follows) if first.follows else None
    made: list[RunDir] = []
    most = plan.sweep.max_parallel
    texts = [point.texts for point in plan.sweep.points]
    create_sweep(folder, runs, texts, "slurm", max_parallel=most)
    try:
        for item in plan.runs:
            _make(item, code_of=made[0] if made else None)
            made.append(item.run)
        script = render_array(
            folder,
            first.resolved.config,
            len(runs),
            max_parallel=most,
            dependency=dependency,
        )
        tasks = [(item.run, item.resolved.config) for item in plan.runs]
        with uninterrupted("slurm"):
            write_scripts(folder, script, tasks)
            job_id = scheduler().submit(folder.script)
            submitted += [SubmittedRun(run, "slurm", f"{job_id}_{n}") for n, run in enumerate(runs)]
            note_jobs(folder, runs, job_id)
    except BaseException as error:
        if not submitted and not isinstance(error, SlurmUnconfirmed):
            for run in made:
                _remove(run)
            remove_sweep(folder)
        raise


def _run_sweep_here(plan: Plan, submitted: list[SubmittedRun], say: Say) -> None:
    """One run after the other on this machine; one that fails does not keep the others from it."""
    assert plan.sweep is not None
    runs = [item.run for item in plan.runs]
    texts = [point.texts for point in plan.sweep.points]
    create_sweep(plan.sweep.folder, runs, texts, "local", max_parallel=plan.sweep.max_parallel)
    failed: list[MgptError] = []
    for number, item in enumerate(plan.runs, start=1):
        submitted.append(_submit_one(item, "local"))
        job = submitted[-1]
        say(f"{job.run.name}: run {number} of {len(runs)}, here as process {job.job_id}")
        try:
            _wait_local(job)
        except MgptError as error:
            say(f"error: {error}")
            failed.append(error)
    if failed:
        raise MgptError(
            f"{len(failed)} of the sweep's {len(runs)} runs did not finish", fix=failed[0].fix
        )


def _dependency(follows: RunDir) -> str | None:
    job = read_note(follows)  # a finished run that was made by torchrun has none
    if job.get("executor") != "slurm" or read_facts(follows).finished:
        # Of a run that was preempted once Slurm may remember the end as another preemption.
        return None
    ref = read_ref(job, 0.0, "")
    if cluster := other_cluster(ref.cluster):
        raise PreflightError(
            f"{follows.name} is a job of the cluster {cluster}",
            why="no job of this cluster can wait for it",
            fix=f"submit there, or once {follows.name} has finished",
        )
    # The controller forgets finished jobs after minutes; a dependency on one would be refused, and
    # one on a stranger's job of the same number would hold.
    queued = scheduler().queued([ref.job_id]).get(ref.job_id)
    return f"afterok:{ref.job_id}" if queued is not None and ref.is_job(queued) else None


def _wait_local(job: SubmittedRun) -> None:
    assert job.process is not None
    code = job.process.wait()
    if code != 0:
        reason = job.run.failed.read_text().strip() if job.run.failed.exists() else ""
        raise MgptError(
            f"{job.run.name} ended with code {code}{': ' + reason if reason else ''}",
            fix=f"read its log: mgpt4 logs {job.run.path}",
        )


def _remove(run: RunDir) -> None:
    shutil.rmtree(run.path, ignore_errors=True)


def render_plan(plan: Plan, *, with_dependencies: bool = True) -> dict[str, str]:
    """The script of each job, by its name: a sweep's array is one, and hands over to its runs'."""
    if plan.executor == "local":
        return {item.run.name: render_local(item.run, item.resolved) for item in plan.runs}

    def dependency(item: PlannedRun) -> str | None:
        """Value of sbatch's ``--dependency``, with the name of the job instead of its id."""
        wanted = with_dependencies and item.follows is not None
        return f"afterok:<job of {item.follows.name}>" if wanted and item.follows else None

    if plan.sweep is not None:
        first = plan.runs[0]
        script = render_array(
            plan.sweep.folder,
            first.resolved.config,
            len(plan.runs),
            max_parallel=plan.sweep.max_parallel,
            dependency=dependency(first),
        )
        return {plan.sweep.folder.name: script}
    return {item.run.name: render(item.run, item.resolved, dependency(item)) for item in plan.runs}
