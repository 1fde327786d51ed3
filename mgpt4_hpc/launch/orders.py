"""What a user asks for, the runs that it means, and carrying it out."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.load import Resolved, load_config, parse_assignments
from mgpt4_hpc.errors import ConfigError, MgptError, PreflightError, SlurmRejected
from mgpt4_hpc.launch import slurm
from mgpt4_hpc.launch.overview import look_at
from mgpt4_hpc.launch.preflight import preflight
from mgpt4_hpc.launch.run_state import RunState
from mgpt4_hpc.launch.submit import Submitted, choose_executor, create_run, render, submit_run
from mgpt4_hpc.run_dir import RunDir, find_run, read_json

DEFAULT_PRESETS = {1: "stage1-vicuna7b", 2: "stage2-vicuna7b"}


@dataclass(frozen=True)
class Order:
    """The command line of ``mgpt4 submit`` as plain data."""

    stage: str | None = None
    configs: tuple[str, ...] = ()
    name: str | None = None
    launch: Mapping[str, Any] = field(default_factory=dict)
    assignments: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()
    site: str | None = None
    after: str | None = None
    executor: str = "auto"
    runs_dir: Path = Path("runs")
    dry_run: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """One run to be made, and the run whose projector it starts from."""

    run: RunDir
    resolved: Resolved
    follows: RunDir | None = None


@dataclass(frozen=True)
class Plan:
    """Runs in the order of their jobs; each may follow the one before."""

    runs: tuple[PlannedRun, ...]
    executor: str
    notes: tuple[str, ...] = ()


def make_plan(order: Order, environ: Mapping[str, str]) -> Plan:
    """Resolve and check everything; writes nothing.

    Raises:
        ConfigError: settings or options that contradict each other.
        PreflightError: something that the job needs is missing.
        SlurmUnreachable: the scheduler cannot be asked.
    """
    executor = choose_executor(order.executor)
    notes = (f"using {executor}",) if order.executor == "auto" and not order.dry_run else ()
    after = find_run(order.after, order.runs_dir) if order.after else None
    planned: list[PlannedRun] = []
    for stage, config_name in _stages(order):
        follows = planned[-1].run if planned else after
        resolved = _resolve(order, stage, config_name, follows, environ)
        run = RunDir(order.runs_dir / resolved.config.name)
        planned.append(PlannedRun(run, resolved, follows))
    faults = _faults(planned, order, executor)
    if after is not None and (fault := _after_fault(after, executor)):
        faults.append(fault)
    if faults and not order.dry_run:
        raise PreflightError("this job would fail", faults=faults)
    return Plan(tuple(planned), executor, notes + tuple(f"would be refused: {f}" for f in faults))


def _stages(order: Order) -> list[tuple[int | None, str | None]]:
    configs = list(order.configs)
    if order.stage == "both":
        if configs and len(configs) != 2:
            raise ConfigError(
                f"--stage both was given {len(configs)} --config",
                fix="give it twice, stage 1's first, or not at all",
            )
        names = configs or [DEFAULT_PRESETS[1], DEFAULT_PRESETS[2]]
        return [(1, names[0]), (2, names[1])]
    if len(configs) > 1:
        raise ConfigError(
            f"{len(configs)} --config for one stage", fix="give one, or use --stage both"
        )
    if order.stage is None and not configs:
        raise ConfigError("neither --stage nor --config is given", fix="say --stage 1, 2 or both")
    stage = int(order.stage) if order.stage else None
    return [(stage, configs[0] if configs else DEFAULT_PRESETS[stage or 1])]


def _resolve(
    order: Order,
    stage: int | None,
    config_name: str | None,
    follows: RunDir | None,
    environ: Mapping[str, str],
) -> Resolved:
    overrides: dict[str, Any] = parse_assignments(order.assignments)
    overrides |= {f"launch.{key}": value for key, value in order.launch.items()}
    overrides |= _sbatch_options(order.sbatch)
    if order.stage == "both" and stage == 2:
        # The second stage is 200 times smaller; the job's GPUs were asked for the first.
        for key in ("launch.gpus", "launch.nodes"):
            overrides.pop(key, None)
    if order.name is not None:
        overrides["name"] = order.name if order.stage != "both" else f"{order.name}-stage{stage}"
    if follows is not None:
        overrides["model.projector"] = str(follows.path)
    resolved = load_config(config_name, overrides=overrides, site=order.site, environ=environ)
    if stage is not None and resolved.config.stage != stage:
        raise ConfigError(
            f"--stage {stage} was asked for, {config_name} is for stage {resolved.config.stage}",
            fix=f"choose a preset for stage {stage}",
        )
    return resolved


def _sbatch_options(options: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ConfigError(f"--sbatch {option!r} is not key=value", fix="as --sbatch nice=100")
        pairs[f"launch.sbatch.{key.lstrip('-')}"] = value
    return pairs


def _faults(planned: list[PlannedRun], order: Order, executor: str) -> list[str]:
    """Everything that would stop these runs; a dry run shows it beside the script."""
    faults: list[str] = []
    for item in planned:
        if item.run.path.exists():
            faults.append(
                f"the run {item.run.path} exists already: `mgpt4 resume {item.run.name}` goes on "
                "with it, --name starts another"
            )
        try:
            preflight(
                item.resolved.config,
                order.runs_dir,
                # A dry run renders the batch script also where there is no Slurm to be asked.
                executor="none" if order.dry_run and not slurm.has_slurm() else executor,
                projector_follows=item.follows is not None,
            )
        except PreflightError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    return faults


def _after_fault(after: RunDir, executor: str) -> str:
    """Why a job behind that run would start without its projector, or never."""
    seen = look_at([after])
    row = seen.rows[0]
    trained = row.max_steps is not None and (row.checkpoint_step or 0) >= row.max_steps
    if row.state is RunState.FINISHED or trained:
        return ""
    if seen.unreachable is not None:
        raise seen.unreachable
    if row.state.is_live and row.executor == executor == "slurm":
        return ""
    mend = "wait for it" if row.state.is_live else f"finish it first: mgpt4 resume {after.name}"
    return f"--after {after.name}: that run is not finished ({row.text}): {mend}"


def render_plan(plan: Plan) -> dict[str, str]:
    """Batch script of each run, by its name."""
    scripts = {}
    for item in plan.runs:
        dependency = "afterok:<job of " + item.follows.name + ">" if item.follows else None
        scripts[item.run.name] = render(item.run, item.resolved, dependency)
    return scripts


def carry_out(plan: Plan, *, say: Callable[[str], None], wait: bool = False) -> list[Submitted]:
    """Make the runs and submit their jobs.

    Without Slurm nothing can hold a second job back, so a chain is waited for here.

    Raises:
        MgptError: as Slurm says; a run directory whose job was refused is removed again.
    """
    submitted: list[Submitted] = []
    for number, item in enumerate(plan.runs):
        dependency = None
        if item.follows is not None and plan.executor == "slurm":
            dependency = _dependency(item.follows)
        create_run(item.run, item.resolved)
        try:
            job = submit_run(item.run, item.resolved, plan.executor, dependency=dependency)
        except MgptError:
            _remove(item.run)
            for before in submitted:
                say(f"{before.run.name} was submitted already, as job {before.job_id}")
            raise
        submitted.append(job)
        is_last = number == len(plan.runs) - 1
        if job.process is not None and (wait or not is_last):
            say(f"{job.run.name}: running here as process {job.job_id}, log in {job.run.slurm}")
            _wait_local(job)
    if wait and plan.executor == "slurm":
        from mgpt4_hpc.launch.watch import wait_for_runs

        wait_for_runs([job.run for job in submitted], say=say)
    return submitted


def _dependency(follows: RunDir) -> str | None:
    job_file = follows.slurm / "job.json"
    try:
        job = read_json(job_file)
    except (OSError, ValueError):
        return None  # a finished run that was made by torchrun has none
    if job.get("executor") != "slurm":
        return None
    job_id = str(job["job_id"])
    # The controller forgets finished jobs after minutes; a dependency on one would be refused.
    try:
        slurm.job_facts(job_id)
    except SlurmRejected:
        return None
    return f"afterok:{job_id}"


def _wait_local(job: Submitted) -> None:
    assert job.process is not None
    code = job.process.wait()
    if code != 0:
        reason = job.run.failed.read_text().strip() if job.run.failed.exists() else ""
        raise MgptError(
            f"{job.run.name} ended with code {code}{': ' + reason if reason else ''}",
            fix=f"read its log: mgpt4 logs {job.run.path}",
        )


def _remove(run: RunDir) -> None:
    import shutil

    shutil.rmtree(run.path, ignore_errors=True)


def who() -> str:
    """User and program, for ledgers."""
    return f"{getpass.getuser()}@{os.uname().nodename} {Path(sys.argv[0]).name}"
