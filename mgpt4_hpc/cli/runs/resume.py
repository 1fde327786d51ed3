"""``mgpt4 resume``: submit unfinished runs again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json, raise_all, say
from mgpt4_hpc.cli.shared.options import (
    SettingType,
    absolute,
    complete_runs,
    json_option,
    runs_dir_option,
    set_option,
    where_options,
)
from mgpt4_hpc.errors import ConfigError, MgptError

if TYPE_CHECKING:
    from mgpt4_hpc.launch.manage.changes import Overrides
    from mgpt4_hpc.launch.manage.concurrency_limit import ConcurrencyLimit
    from mgpt4_hpc.launch.manage.resume import Resumption
    from mgpt4_hpc.launch.runs.sweep_dir import SweepDir
    from mgpt4_hpc.run_dir import RunDir


_NO_STEP = (
    "a run continues from its newest checkpoint; a new run can from another one: "
    "mgpt4 submit --from RUN@STEP --continue --name NEW"
)


@click.command("resume", short_help="Submit an unfinished run again.")
@click.argument("names", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_runs)
@click.option("--gpus", type=SettingType(click.INT), help="GPUs of the whole job.")
@click.option("--nodes", type=SettingType(click.INT), help="Nodes to spread the GPUs over.")
@where_options
@set_option("A setting that may change, as launch.max_crashes=9 or train.max_steps=9000.")
@click.option(
    "--executor",
    type=click.Choice(["auto", "slurm", "local"]),
    help="Default: what the run used before.",
)
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Continue with changed settings, data, weights or versions; the ledger records it.",
)
@click.option(
    "--max-parallel",
    type=click.IntRange(min=1),
    help="Of a sweep: runs at work at once. Default: what it was submitted or resumed with.",
)
@click.option(
    "--as",
    "new_name",
    metavar="NAME",
    help="Continue as a new run of this name, which may have other settings; RUN stays as it is.",
)
@click.option("--dry-run", is_flag=True, help="Check and print the changes; submit nothing.")
@click.option("--wait", is_flag=True, help="Stay until the run has finished.")
@runs_dir_option
@json_option
def resume_command(
    names: tuple[str, ...],
    assignments: tuple[str, ...],
    executor: str | None,
    accept_drift: bool,
    max_parallel: int | None,
    new_name: str | None,
    dry_run: bool,
    wait: bool,
    runs_dir: Path,
    as_json: bool,
    **asked: Any,
) -> None:
    """Submit unfinished runs again; each continues from its last checkpoint.

    Any number of GPUs will do: the samples and their order stay the same. --set train.max_steps=N
    makes a run longer or shorter, whether it is finished, at work or neither. Learning rate, batch
    size, weight decay and data shares change with --accept-drift; what else decides the result
    cannot.

    A sweep's name stands for those of its runs that neither are finished nor at work; each becomes
    a job of its own, and waits for others to end where the sweep was submitted with --max-parallel.
    A larger train.max_steps extends its finished runs too, and alone also those at work.

    With --as a new run continues from RUN's checkpoint, with its own history and any settings. A
    folder that was copied needs that: the job belongs to the original.

    \b
    mgpt4 resume stage1-vicuna7b --gpus 2 --time 12:00:00
    mgpt4 resume my-sweep --set launch.max_crashes=9 --max-parallel 4
    """
    from mgpt4_hpc.launch.manage.resume import resume_branch
    from mgpt4_hpc.launch.manage.resume_many import resume_many
    from mgpt4_hpc.launch.runs.sweep_dir import find_runs

    folder = absolute(runs_dir)
    runs = find_runs(names, folder, no_step=_NO_STEP if new_name is None else "")
    overrides = _overrides(assignments, asked, accept_drift)
    _require_alone(dry_run, new_name, max_parallel, wait)
    sweeps = _sweeps(names, folder, max_parallel)
    is_one_run = new_name is not None or (len(names) == 1 and not sweeps)
    errors: list[MgptError] = []
    if new_name is not None:
        run = _branch(names, new_name, folder, overrides, executor)
        done = [resume_branch(run, runs[0], executor, say=say, accept=accept_drift)]
    elif is_one_run:
        done = [_resume_one(runs[0], overrides, executor, dry_run)]
    else:
        limits = _limits(runs)
        done, errors = resume_many(
            runs, overrides, executor, say=say, limits=limits, dry_run=dry_run
        )
        if overrides.faults and not errors:  # all are at work
            errors = [ConfigError("the options have faults", faults=overrides.faults)]
    _print(done, is_one_run, as_json)
    raise_all(errors)
    if wait:
        _wait_for(done)


def _require_alone(
    dry_run: bool, new_name: str | None, max_parallel: int | None, wait: bool
) -> None:
    """Raise a ConfigError where --dry-run stands beside an option that does something."""
    if dry_run and (new_name is not None or max_parallel is not None or wait):
        raise ConfigError(
            "--dry-run excludes --as, --max-parallel and --wait",
            fix="for --as: mgpt4 submit --from RUN --continue --name NEW --dry-run",
        )


def _overrides(assignments: Sequence[str], options: Mapping[str, Any], accept: bool) -> Overrides:
    """The settings to change, of --set and of options."""
    from mgpt4_hpc.config.assignments import read_assignments
    from mgpt4_hpc.launch.manage.changes import Overrides

    values, faults = read_assignments(assignments)
    values |= {f"launch.{key}": value for key, value in options.items() if value is not None}
    return Overrides(values, tuple(faults), accept)


def _branch(
    names: Sequence[str],
    name: str,
    folder: Path,
    overrides: Overrides,
    executor: str | None,
) -> RunDir:
    """The new run of --as, with its settings."""
    from mgpt4_hpc.launch.manage.resume import checked_change
    from mgpt4_hpc.launch.submit.branch import Branching, branch
    from mgpt4_hpc.run_reference import find_reference

    if len(names) != 1:
        raise ConfigError(f"--as {name} names one run, not {len(names)}", fix="give one RUN")
    source = Branching.of(find_reference(names[0], folder))
    changed = checked_change(source.run, overrides, executor, free=True)
    if none_left := source.nothing_left(changed.config.train):
        raise ConfigError(f"--as {name}: {none_left}")
    return branch(source, name, folder, changed)


def _resume_one(
    run: RunDir, overrides: Overrides, executor: str | None, dry_run: bool
) -> Resumption:
    """Resume one run; where its sweep limits the runs at work, behind another run's job."""
    from mgpt4_hpc.launch.manage.resume import resume_run

    turn = _limits([run]).get(run)
    behind = turn.next if turn is not None else ()
    return resume_run(run, overrides, executor, say=say, behind=behind, dry_run=dry_run)


def _wait_for(done: Sequence[Resumption]) -> None:
    from mgpt4_hpc.launch.runs.wait import wait_for_runs

    if submitted := [resumption.run for resumption in done if resumption.submitted is not None]:
        wait_for_runs(submitted, say=say)


def _sweeps(names: Sequence[str], folder: Path, max_parallel: int | None) -> list[SweepDir]:
    """Those of the names that are sweeps; a limit that is given is theirs from now on."""
    from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, is_sweep

    sweeps = [SweepDir.of(name, folder) for name in names if is_sweep(name, folder)]
    if max_parallel is None:
        return sweeps
    if not sweeps:
        raise ConfigError(
            f"--max-parallel {max_parallel} is for sweeps, and none is named here",
            fix="leave it out, or give the sweep's name instead of its runs'",
        )
    for sweep in sweeps:
        sweep.set_max_parallel(max_parallel)
    return sweeps


def _limits(runs: Sequence[RunDir]) -> dict[RunDir, ConcurrencyLimit]:
    """The concurrency limits of the sweeps that these runs belong to, named or not."""
    from mgpt4_hpc.launch.manage.concurrency_limit import limits_of
    from mgpt4_hpc.launch.runs.sweep_dir import limited_sweeps

    sweeps = limited_sweeps(runs)
    for sweep in sweeps:
        say(
            f"{sweep.name}: at most {sweep.max_parallel()} at once; "
            f"`mgpt4 resume {sweep.name} --max-parallel N` changes that"
        )
    return limits_of(sweeps)


def _print(done: Sequence[Resumption], is_one_run: bool, as_json: bool) -> None:
    if as_json:
        facts = [_as_json(resumption) for resumption in done]
        echo_json(facts[0] if is_one_run else facts)
        return
    for resumption in done:
        click.echo(_as_text(resumption))


def _as_text(resumption: Resumption) -> str:
    job = resumption.submitted
    if resumption.finished:
        return f"{resumption.run.name} is finished already: nothing to resume"
    if job is None:
        return f"{resumption.run.name} can be resumed; nothing was submitted (--dry-run)"
    if not resumption.is_new:
        what = "goes to the new last step"
        if resumption.is_passed:
            what = "ends at the step that it has reached"
        return f"{resumption.run.name}: its {job.executor} job {job.job_id} {what}"
    return f"{resumption.run.name}  {job.executor} job {job.job_id}  {resumption.run.path}"


def _as_json(resumption: Resumption) -> dict[str, Any]:
    job = resumption.submitted
    return {
        "run": resumption.run.name,
        "run_dir": str(resumption.run.path),
        "finished": resumption.finished,
        "job_id": job.job_id if job else None,
        "executor": job.executor if job else None,
        "changes": {key: {"old": a, "new": b} for key, (a, b) in resumption.changes.items()},
    }
