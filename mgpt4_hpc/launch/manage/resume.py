"""Resume an unfinished run: check that it is free and what may change, and submit a new job."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.load import InvalidSettings, Resolved, settings_digest
from mgpt4_hpc.config.run_config_file import read_config, rewrite_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import (
    ConfigError,
    MgptError,
    PreflightError,
    RunAlive,
    RunLocked,
    SlurmUnconfirmed,
    StorageTrouble,
)
from mgpt4_hpc.formatting import counted, shell_word
from mgpt4_hpc.launch.manage.changes import (
    Overrides,
    change,
    changed_settings,
    describe_changes,
    input_drift,
    moved_projector,
)
from mgpt4_hpc.launch.manage.dependents import repoint
from mgpt4_hpc.launch.runs.cancel_request import cancel_mark, withdraw_cancel
from mgpt4_hpc.launch.runs.run_facts import RunFacts, read_facts
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.launch.runs.submission_lock import submitting
from mgpt4_hpc.launch.submit.branch import take_new_identity
from mgpt4_hpc.launch.submit.preflight import is_in_doubt, preflight_findings
from mgpt4_hpc.launch.submit.preflight_feature_cache import feature_faults
from mgpt4_hpc.launch.submit.preflight_slurm import SlurmReply
from mgpt4_hpc.launch.submit.submit_run import (
    SubmittedRun,
    choose_executor,
    complete_run,
    prepare_environment,
    submit_run,
)
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.inputs.pins import accept_drift, drifted, input_places, version_drift


@dataclass(frozen=True)
class Resumption:
    """Result of resuming one run.

    Attributes:
        run: the run.
        finished: nothing was left to do.
        submitted: its job; None if finished.
        changes: setting to (old, new) value.
        is_new: whether the job is new; else it is the live one.
        is_passed: whether the live one is beyond the new last step.
    """

    run: RunDir
    finished: bool
    submitted: SubmittedRun | None = None
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    is_new: bool = True
    is_passed: bool = False


def resume_run(
    run: RunDir,
    overrides: Overrides,
    executor: str | None,
    *,
    say: Callable[[str], None],
    behind: Sequence[str] = (),
    keeps_budgets: bool = False,
    dry_run: bool = False,
) -> Resumption:
    """Submit an unfinished run again.

    Args:
        run: the run.
        overrides: settings to change.
        executor: "slurm", "local" or "auto"; None takes what it ran with before.
        say: called with each change.
        behind: Slurm jobs that must have ended, in whatever way, before this one begins.
        keeps_budgets: the new job succeeds the last one; a resume by the user has full budgets.
        dry_run: only check; the result has the changes and no job.

    Raises:
        UnsafeRun: if others can write its folder.
        RunAlive: if a job of it waits or runs.
        RunLocked: if another command submits it right now.
        RunLocked: if this environment's library versions are not the run's, unless accepted.
        ConfigError: if a setting may not change, or not so.
        PreflightError, SlurmRejected, SlurmUnreachable: nothing was changed then.
    """
    run.identity()
    assert_owned(run.path)
    with submitting(run):
        succeeds = _line(run) if keeps_budgets else ()
        if set(overrides.values) == {"train.max_steps"} and not overrides.faults:
            seen = look_at([run]).rows[0]
            if seen.state.is_live:
                return _lengthen_live(seen, overrides, say, dry_run)
        seen = _assert_free(run)
        overrides = replace(overrides, values={**moved_projector(run), **overrides.values})
        if not dry_run:
            _own_the_copy(run)
        changed = checked_change(run, overrides, executor)
        executor = choose_executor(executor or seen.executor or "auto")
        checked = _check(seen, changed, executor, overrides.accept, say)
        if checked is None:
            if seen.executor == "slurm" and not dry_run:
                _resume_dependents(run, None, say)
            return Resumption(run, finished=True)
        if dry_run:
            return Resumption(run, False, None, checked.changes)
        if executor == "slurm":
            checked = replace(checked, dependency=_all_of(checked.dependency, behind))
        return _submit(checked, overrides.accept, succeeds, say)


def checked_change(
    run: RunDir,
    overrides: Overrides,
    executor: str | None,
    *,
    free: bool = False,
) -> Resolved:
    """As :func:`change`; where settings are wrong, the error lists the faults of files as well.

    Raises:
        ConfigError: settings are wrong or may not change.
    """
    try:
        return change(run, overrides, free=free)
    except InvalidSettings as error:
        found: list[str] = []
        if error.rest is not None:
            seen = look_at([run]).rows[0]
            executor = choose_executor(executor or seen.executor or "auto")
            reply = SlurmReply.of(executor, dry_run=True, wrong=error.wrong)
            found, _ = preflight_findings(
                error.rest.config,
                run.path.parent,
                executor=reply.executor,
                cluster=reply.cluster,
                projector_follows=seen.checkpoint_step is not None or _follows_run(error.rest),
                new=False,
            )
        more = [fault for fault in found if not is_in_doubt(fault, error.wrong)]
        summary, *_ = error.what.splitlines()
        raise ConfigError(summary, faults=[*error.faults, *more], fix=error.fix) from None


def resume_branch(
    made: RunDir,
    source: RunDir,
    executor: str | None,
    *,
    say: Callable[[str], None],
    accept: bool,
) -> Resumption:
    """Submit a run that was just made from another's state.

    Args:
        made: the new run; its folder is removed if no job can be had.
        source: the other, which stays; the same where it was a copy.
        executor: as of :func:`resume_run`.
        say: called with each change.
        accept: as of :class:`Overrides`.

    Raises:
        MgptError: as :func:`resume_run`.
    """
    try:
        return resume_run(made, Overrides(accept=accept), executor, say=say)
    except MgptError as error:
        # If its job may have been accepted, it needs its folder.
        if made != source and not isinstance(error, (SlurmUnconfirmed, StorageTrouble)):
            shutil.rmtree(made.path, ignore_errors=True)
        raise


def _line(run: RunDir) -> tuple[str, ...]:
    """The run's last job and those that it succeeds."""
    job = read_facts(run).job
    return (*job.succeeds, job.job_id) if job is not None else ()


@dataclass(frozen=True)
class _Checked:
    """What may be submitted: a run, its changed settings, and the job that it must wait for."""

    run: RunDir
    changed: Resolved
    executor: str
    changes: Mapping[str, tuple[Any, Any]]
    dependency: str | None


def _check(
    seen: RunOverview,
    changed: Resolved,
    executor: str,
    accept: bool,
    say: Callable[[str], None],
) -> _Checked | None:
    """Look for all that would stop the job; None if the run has no step left."""
    run = RunDir(Path(seen.path))
    resolved = read_config(run.config_file)
    changes = changed_settings(resolved, changed)
    train = changed.config.train
    facts = replace(read_facts(run), max_steps=train.max_steps, early_stop=train.early_stop)
    if seen.state is RunState.FINISHED and facts.finished:
        _check_no_effect(facts, changes, say)
        return None
    _check_drift(run, changed.config, changes, accept)
    # Beyond its first checkpoint no start reads it; before, it may be that of a live job.
    dependency = _wait_for_start(changed, executor) if seen.checkpoint_step is None else None
    faults, notes = preflight_findings(
        changed.config,
        run.path.parent,
        executor=executor,
        projector_follows=dependency is not None or seen.checkpoint_step is not None,
        new=False,
    )
    for note in notes:
        say(note)
    if faults:
        raise PreflightError("this job would fail", faults=faults)
    _say_changes(run, changes, say)
    if "train.max_steps" in changes and train.max_steps <= seen.step:
        say(f"{run.name} is at step {seen.step} already: its job finishes it there")
    return _Checked(run, changed, executor, changes, dependency)


def _submit(
    checked: _Checked, accept: bool, succeeds: Sequence[str], say: Callable[[str], None]
) -> Resumption:
    """Write the changed settings and submit; both are undone if no job can be had."""
    run, changed, executor = checked.run, checked.changed, checked.executor
    resolved = read_config(run.config_file)
    prepare_environment(run, changed.config, say)
    markers = (run.failed, run.resubmit_needed, cancel_mark(run), run.drift_accepted)
    with _put_back(run.config_file, run.slurm / "python", *markers):
        complete_run(run, changed.config)
        if accept:
            accept_drift(run)
        elif settings_digest(changed.config) != settings_digest(resolved.config):
            accept_drift(run, settings_digest(changed.config))
        if checked.changes:
            rewrite_config(run.config_file, changed)
        withdraw_cancel(run)
        submitted = submit_run(
            run, changed, executor, dependency=checked.dependency, succeeds=succeeds
        )
    if executor == "slurm":
        _resume_dependents(run, submitted.job_id, say)
    return Resumption(run, False, submitted, checked.changes)


def _check_drift(
    run: RunDir, config: RunConfig, changes: Mapping[str, tuple[Any, Any]], accept: bool
) -> None:
    if accept:
        return
    # A container has versions of its own, which only the job sees.
    drift = version_drift(run) if config.container.runtime == "none" else []
    if not run.drift_accepted.exists():  # a branch's settings may name other inputs
        drift += input_drift(run, config, changes)
    if drift:
        raise drifted(run, drift, input_places(config))


def _check_no_effect(
    facts: RunFacts, changes: Mapping[str, tuple[Any, Any]], say: Callable[[str], None]
) -> None:
    """Refuse a number of steps or a patience with which a finished run stays finished.

    Other settings of a finished run stay as they are, which is printed.

    Raises:
        ConfigError: with the setting that would let it continue.
    """
    assert facts.last is not None
    wanted = [key for key in ("train.max_steps", "train.early_stop") if key in changes]
    if not wanted:
        for line in describe_changes(changes):
            say(f"{facts.run.name} is finished, so this has no effect: {line}")
        return
    given = ", ".join(f"{key}={changes[key][1]}" for key in wanted)
    what = f"{facts.run.name} is finished at step {facts.step}; with {given} no step is left"
    if facts.stops_early:
        count = counted(facts.last.num_worse, "validation")
        raise ConfigError(
            what,
            why=f"train.early_stop is {facts.early_stop}, and the last {count} made no new lowest "
            "held-out loss",
            fix="--set train.early_stop=0, or a patience above "
            f"{facts.last.num_worse}, lets it continue up to train.max_steps",
        )
    if facts.last.finished_at is None:
        raise ConfigError(
            f"{facts.run.name} is finished at step {facts.step}, and stays so with {given}",
            why="an earlier version finished it, and did not record whether it stopped early",
            fix=f"continue it under another name: mgpt4 resume {facts.run.name} --as NAME "
            + " ".join(f"--set {key}={changes[key][1]}" for key in wanted),
        )
    raise ConfigError(
        what,
        fix=f"train.max_steps counts from the run's first step: give one above {facts.step}",
    )


def _say_changes(
    run: RunDir, changes: Mapping[str, tuple[Any, Any]], say: Callable[[str], None]
) -> None:
    for line in describe_changes(changes):
        say(f"{run.name}: {line}")
    if changes.get("train.lr_steps", ("set", 0))[0] is None:
        length = changes["train.lr_steps"][1]
        say(f"the cosine has {length} steps; --set train.lr_steps=N gives it another length")


def _lengthen_live(
    seen: RunOverview, overrides: Overrides, say: Callable[[str], None], dry_run: bool
) -> Resumption:
    """Let a job that waits or runs go to another last step: it looks at each line of its log."""
    run = RunDir(Path(seen.path))
    resolved = read_config(run.config_file)
    changed = change(run, overrides)
    if faults := feature_faults(changed.config):
        raise PreflightError("this job would fail", faults=faults)
    changes = changed_settings(resolved, changed)
    _say_changes(run, changes, say)
    if dry_run:
        return Resumption(run, False, None, changes)
    rewrite_config(run.config_file, changed)
    job = SubmittedRun(run, seen.executor or "slurm", seen.job_id or "")
    is_passed = changed.config.train.max_steps <= seen.step
    return Resumption(run, False, job, changes, is_new=False, is_passed=is_passed)


def _resume_dependents(run: RunDir, job_id: str | None, say: Callable[[str], None]) -> None:
    """Bring back the runs that waited for this one and that Slurm removed."""
    for other in repoint(run, job_id, say):
        try:
            done = resume_run(other, Overrides(), "slurm", say=say)
        except MgptError as error:
            # This run is submitted, whatever becomes of that one.
            say(f"{other.name} waited for {run.name} and could not be submitted again: {error}")
        else:
            if done.submitted is not None:
                say(
                    f"{other.name}, which waited for {run.name}, is job {done.submitted.job_id} now"
                )


def _assert_free(run: RunDir) -> RunOverview:
    seen = look_at([run])
    row, note = seen.rows[0], run.slurm / "job.json"
    if seen.unreachable is not None:
        raise seen.unreachable
    if row.state.is_live:
        raise RunAlive(
            f"{run.name} is alive: {row.text} (job {row.job_id})",
            why="two jobs on one run would fence each other off",
            fix=f"wait for it, or end it: mgpt4 cancel {run.name} --save{row.there}",
        )
    if row.state is not RunState.FINISHED and read_facts(run).job_is_lost:
        raise run.damaged(
            note,
            f"if `squeue --me --name {shell_word(run.name)}` shows no job of it: "
            f"rm {shlex.quote(str(note))}, then resume it again",
        )
    return row


def _own_the_copy(run: RunDir) -> None:
    """Let a copied folder be a run of its own, unless it would be the second of its identity."""
    original = read_facts(run).copied_from
    if original is None:
        return
    if RunDir(Path(original)).run_id == run.run_id:
        raise RunLocked(
            f"{run.path} is a copy of the run {original}",
            why="one run in two folders would be two runs under one identity",
            fix=f"make it a run of its own: mgpt4 resume {shlex.quote(str(run.path))} --as NAME",
        )
    take_new_identity(run)


def _follows_run(resolved: Resolved) -> bool:
    """Whether its projector is to be another run's."""
    projector = resolved.config.model.projector
    return projector is not None and (Path(projector) / "run.json").is_file()


def _wait_for_start(resolved: Resolved, executor: str) -> str | None:
    """Dependency on the job of the run that this one starts from, if that is still under way.

    Raises:
        PreflightError: if that run is unfinished and has no job.
    """
    if not _follows_run(resolved):
        return None
    seen = look_at([RunDir(Path(str(resolved.config.model.projector)))]).rows[0]
    if seen.state is RunState.FINISHED:
        return None
    here = seen.executor == "slurm" and seen.cluster is None
    if seen.state.is_live and here and executor == "slurm":
        return f"afterok:{seen.job_id}"
    raise PreflightError(
        f"this run starts from {seen.name}, which is not finished",
        faults=[seen.text],
        fix=f"finish that first: mgpt4 resume {seen.path}",
    )


def _all_of(dependency: str | None, behind: Sequence[str]) -> str | None:
    """Slurm's dependency on both: it holds when each of its parts does."""
    wanted = [dependency] if dependency is not None else []
    if behind:
        wanted.append(":".join(["afterany", *behind]))
    return ",".join(wanted) or None


@contextmanager
def _put_back(*paths: Path) -> Iterator[None]:
    """Undo what was done to these files if a job cannot be had: the run then is as it was."""
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    try:
        yield
    except MgptError:
        for path in paths:
            if path not in before:
                path.unlink(missing_ok=True)
            elif not path.is_file() or path.read_bytes() != before[path]:
                temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
                temporary.write_bytes(before[path])
                temporary.replace(path)
        raise
