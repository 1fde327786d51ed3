"""From a resolved configuration to a run directory and a job that works on it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.load import Resolved
from mgpt4_hpc.config.run_config_file import new_run_facts, write_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import (
    MgptError,
    SlurmUnreachable,
    StorageTrouble,
)
from mgpt4_hpc.launch.job.staged_environment import PACK_VARIABLE, find_pack, pack_environment
from mgpt4_hpc.launch.runs.job_ref import note_job
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.sbatch import translate
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.launch.submit.batch_script import make_executor, python_command
from mgpt4_hpc.launch.submit.code_snapshot import take_snapshot
from mgpt4_hpc.launch.submit.container import write_launcher
from mgpt4_hpc.launch.submit.integrity import mend, seal
from mgpt4_hpc.run_dir import RunDir, read_json, write_json


@dataclass(frozen=True)
class SubmittedRun:
    """A job that was accepted.

    Attributes:
        run: its directory.
        executor: "slurm" or "local".
        job_id: Slurm's, or the local controller's process id.
        process: the local controller, None under Slurm.
    """

    run: RunDir
    executor: str
    job_id: str
    process: subprocess.Popen[bytes] | None = None


def choose_executor(wanted: str) -> str:
    """``auto`` is Slurm where sbatch is installed."""
    if wanted != "auto":
        return wanted
    return "slurm" if scheduler().is_here() else "local"


def complete_run(
    run: RunDir, config: RunConfig | None = None, *, code_of: RunDir | None = None
) -> None:
    """Add what a job needs and torchrun's runs lack: the code's snapshot and the launcher.

    Args:
        run: the run.
        config: its configuration, where a container may decide which Python is launched.
        code_of: a run made a moment ago, whose snapshot serves this one too.

    Raises:
        MgptError, OSError: if it cannot be written.
    """
    if not run.code.exists():
        # Under its name once it is whole: half a copy would pass for the code at the next resume.
        partial = run.path / ".code.partial"
        shutil.rmtree(partial, ignore_errors=True)
        digest = take_snapshot(partial) if code_of is None else _share_code(code_of, partial)
        known = {**read_json(run.identity_file), "id": run.run_id, "code_digest": digest}
        write_json(run.identity_file, known)
        partial.rename(run.code)
    else:
        mend(run)
        # An older run's own code will not, and the batch script looks for it.
        run.record_identity()
    # At each submission: the environment may have moved since the last.
    write_launcher(run, config)


def _share_code(source: RunDir, target: Path) -> str:
    """Link a snapshot to where another run's lies: a sweep's hundredth costs no hundredth copy."""

    def link(file: str, target: str) -> None:
        """Link a file; copy it where the file system has no hard links."""
        try:
            os.link(file, target)
        except OSError:
            shutil.copy2(file, target)

    shutil.copytree(source.code, target, copy_function=link)
    return str(source.identity()["code_digest"])


def prepare_environment(run: RunDir, config: RunConfig, say: Callable[[str], None]) -> None:
    """Pack the environment beside the run for ``launch.stage_env``; on a failure print why.

    A run without a pack uses the shared environment.
    """
    if config.launch.stage_env is None:
        return
    say("launch.stage_env: packing the environment unless it is packed already")
    try:
        pack_environment(run.path.parent)
    except MgptError as error:
        say(f"launch.stage_env: {error}: the run uses the shared environment")


def create_run(run: RunDir, resolved: Resolved, *, code_of: RunDir | None = None) -> None:
    """Make the run directory with everything that its job will read.

    Args:
        run: where.
        resolved: its configuration.
        code_of: as for :func:`complete_run`.

    Raises:
        RunLocked: if it exists.
        MgptError: if it cannot be made.
    """
    run.create(new_run_facts(resolved))
    try:
        write_config(run.config_file, resolved)
        complete_run(run, resolved.config, code_of=code_of)
    except BaseException as error:
        # Half a run would be in the way of the next try, and `mgpt4 resume` could not use it.
        shutil.rmtree(run.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise MgptError(
                f"the run directory {run.path} could not be filled: {error.strerror}",
                fix="check space and quota, or give another --runs-dir",
            ) from error
        raise


def render(run: RunDir, resolved: Resolved, dependency: str | None = None) -> str:
    """Text of the batch script; nothing is written and Slurm need not be there."""
    return make_executor(run, resolved.config, dependency).render()


def render_local(run: RunDir, resolved: Resolved) -> str:
    """What would be started on this machine, as a shell script; nothing is written."""
    from mgpt4_hpc.launch.job.local_controller import controller_command, controller_environment

    config = resolved.config
    task = f"{python_command(run, config)} -u -m mgpt4_hpc.launch.task {shlex.quote(str(run.path))}"
    environ = controller_environment(
        run, config.launch.gpus, _gpus_here(config), task, config.launch.env
    )
    environ["PYTHONPATH"] = str(run.code)
    return "\n".join(
        [
            "#!/bin/bash",
            "# What is started on this machine: a controller, which starts the ranks, passes",
            "# signals on, and starts them again as long as the run may go on.",
            f"cd {shlex.quote(str(run.path))}",
            *(f"export {name}={shlex.quote(value)}" for name, value in environ.items()),
            f"exec {shlex.join(controller_command(run))}",
        ]
    )


def submit_run(
    run: RunDir,
    resolved: Resolved,
    executor: str,
    *,
    dependency: str | None = None,
    succeeds: Sequence[str] = (),
) -> SubmittedRun:
    """Start a job on an existing run directory.

    Args:
        run: made by :func:`create_run`.
        resolved: its configuration.
        executor: "slurm" or "local".
        dependency: Slurm's, as ``afterok:17``.
        succeeds: jobs of the run with which this one shares the budgets, oldest first.

    Raises:
        SlurmRejected, SlurmUnreachable: as Slurm says; SlurmUnconfirmed if it may have the job.
        StorageTrouble: it has the job, and the run's folder takes no note of that.
    """
    run.clear_markers()
    with uninterrupted(executor):
        submitted = (
            _submit_slurm(run, resolved, dependency)
            if executor == "slurm"
            else _submit_local(run, resolved)
        )
        _note_job(run, submitted, resolved.config.name, succeeds)
    return submitted


def _note_job(run: RunDir, submitted: SubmittedRun, name: str, succeeds: Sequence[str]) -> None:
    try:
        note_job(run, submitted.executor, submitted.job_id, name, run.path, succeeds=succeeds)
    except OSError as error:
        # The job is there; without this error its id would be nowhere.
        end_it = "scancel" if submitted.executor == "slurm" else "kill"
        raise StorageTrouble(
            f"job {submitted.job_id} was submitted, but {run.path} takes no note of it: {error}",
            why="`mgpt4 status` and `mgpt4 cancel` find a run's job by that note",
            fix=f"`{end_it} {submitted.job_id}`, free some space, then `mgpt4 resume` the run",
        ) from error


@contextmanager
def uninterrupted(executor: str) -> Iterator[None]:
    """Keep Ctrl-C waiting while sbatch runs: a job without a recorded id would be lost.

    Not so a local job, which would inherit the mask, and is cancelled by this very signal.
    """
    if executor != "slurm":
        yield
        return
    came: list[int] = []
    # A handler as well as the mask: sbatch inherits the mask, but another thread of this process,
    # as libraries start them, may get what this one does not take.
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _submit_slurm(run: RunDir, resolved: Resolved, dependency: str | None) -> SubmittedRun:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from mgpt4_hpc.launch.task import StageTask

    executor = make_executor(run, resolved.config, dependency)
    script = executor.render()
    (run.slurm / "job.sbatch").write_text(script, encoding="utf-8")
    seal(run)
    try:
        with _environment(commands.clean_environment(os.environ)):
            job = executor.submit(StageTask(str(run.path)))
    except (FailedJobError, FailedSubmissionError) as error:
        raise translate(str(error), script) from error
    except FileNotFoundError as error:
        raise SlurmUnreachable(
            "sbatch is not installed here",
            fix="log in to a submit node of the cluster, or use --executor local",
        ) from error
    seal(run, job.paths.submitted_pickle)
    return SubmittedRun(run, "slurm", str(job.job_id))


def _submit_local(run: RunDir, resolved: Resolved) -> SubmittedRun:
    from mgpt4_hpc.launch.job.local_controller import LocalExecutor
    from mgpt4_hpc.launch.task import StageTask

    config = resolved.config
    executor = LocalExecutor(folder=run.slurm, python=python_command(run, config))
    executor.update_parameters(
        tasks_per_node=config.launch.gpus,
        gpus_per_node=_gpus_here(config),
        run_dir=str(run.path),
        env={**config.launch.env, **_packed(run, config)},
    )
    job = executor.submit(StageTask(str(run.path)))
    return SubmittedRun(run, "local", str(job.job_id), process=job._process)


def _packed(run: RunDir, config: RunConfig) -> dict[str, str]:
    """The variable that names the packed environment; empty without one."""
    if config.launch.stage_env is None:
        return {}
    try:
        return {PACK_VARIABLE: str(find_pack(run.path.parent))}
    except (MgptError, OSError):
        return {}  # printed when it could not be made


def _gpus_here(config: RunConfig) -> int:
    return 0 if config.train.device == "cpu" else config.launch.gpus


@contextmanager
def _environment(environ: Mapping[str, str]) -> Iterator[None]:
    """Exchange the process's environment for the time of a call: submitit's sbatch inherits it."""
    saved: dict[str, Any] = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
