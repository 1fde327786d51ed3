"""What a user asks for, and the runs that it means. Writes nothing; ``dispatch`` carries it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.load import Resolved, load_config, read_assignments, unknown_paths
from mgpt4_hpc.errors import ConfigError, PreflightError, SlurmUnreachable
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.launch.submit.batch_script import join_dependencies
from mgpt4_hpc.launch.submit.preflight import preflight
from mgpt4_hpc.launch.submit.preflight_slurm import Cluster, ask_cluster
from mgpt4_hpc.launch.submit.site_profile import choose_site
from mgpt4_hpc.launch.submit.submit_run import choose_executor, render, render_local
from mgpt4_hpc.launch.submit.sweep import Point, parse_axes, points, render_array, run_names
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.run_dir import RunDir, find_run

DEFAULT_PRESETS = {1: "stage1-vicuna7b", 2: "stage2-vicuna7b"}


@dataclass(frozen=True)
class SubmitRequest:
    """The command line of ``mgpt4 submit`` as plain data."""

    stage: str | None = None
    configs: tuple[str, ...] = ()
    name: str | None = None
    launch: Mapping[str, Any] = field(default_factory=dict)
    assignments: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()
    sweep: tuple[str, ...] = ()
    max_parallel: int | None = None
    site: str | None = None
    after: str | None = None
    executor: str = "auto"
    runs_dir: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """One run to be made, and the run whose projector it starts from."""

    run: RunDir
    resolved: Resolved
    follows: RunDir | None = None


@dataclass(frozen=True)
class PlannedSweep:
    """That the runs of a plan are one sweep."""

    folder: SweepDir
    points: tuple[Point, ...]
    max_parallel: int | None = None


@dataclass(frozen=True)
class Plan:
    """Runs in the order of their jobs; each may follow the one before.

    Attributes:
        runs: at least one.
        executor: "slurm" or "local".
        runs_dir: folder of the runs.
        notes: sentences for the user.
        faults: why the jobs would fail; none unless it is a dry run.
        sweep: set if the runs are a sweep.
        unreachable: that Slurm could not be asked; none unless it is a dry run.
    """

    runs: tuple[PlannedRun, ...]
    executor: str
    runs_dir: Path
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    sweep: PlannedSweep | None = None
    unreachable: SlurmUnreachable | None = None

    def assert_sound(self) -> None:
        """Raise PreflightError if there are faults, SlurmUnreachable if nobody could say so."""
        if self.faults:
            raise PreflightError("this job would fail", faults=self.faults)
        if self.unreachable is not None:
            raise self.unreachable


def make_plan(request: SubmitRequest, environ: Mapping[str, str]) -> Plan:
    """Resolve and check everything; writes nothing.

    Raises:
        ConfigError: settings or options that contradict each other.
        PreflightError: something that the job needs is missing; a dry run keeps it in the plan.
        SlurmUnreachable: the scheduler cannot be asked.
    """
    executor = choose_executor(request.executor)
    notes = [_why_executor(executor)] if request.executor == "auto" else []
    site = choose_site(request.site, environ)
    if site is not None:
        notes.append(f"site profile {site.name}, chosen by {site.why}")
    resolver = _Resolver(request, str(site.path) if site is not None else None, environ)
    runs_dir = _runs_dir(request, resolver)
    after = find_run(request.after, runs_dir) if request.after else None
    sweep: PlannedSweep | None = None
    if request.sweep:
        sweep, planned = _plan_sweep(resolver, runs_dir, after)
    else:
        planned = _plan_stages(resolver, runs_dir, after)
    faults = unknown_paths(resolver.flags, [item.resolved for item in planned])
    if faults:
        raise ConfigError("cannot use these settings", faults=faults)
    reply = SlurmReply.of(executor, dry_run=request.dry_run)
    faults, more = _preflight(planned, sweep, reply, runs_dir)
    if after is not None and (fault := _after_fault(after, executor)):
        faults.append(fault)
    if executor == "slurm":
        faults += _dependency_faults(planned)
    plan = Plan(
        tuple(planned),
        executor,
        runs_dir,
        tuple(dict.fromkeys((*notes, *(n for p in planned for n in p.resolved.notes), *more))),
        tuple(dict.fromkeys(faults)),
        sweep,
        reply.unreachable,
    )
    if not request.dry_run:
        plan.assert_sound()
    return plan


def _dependency_faults(planned: Sequence[PlannedRun]) -> list[str]:
    faults = []
    for item in planned:
        if item.follows is not None:
            users = item.resolved.config.launch.sbatch.get("dependency")
            try:
                join_dependencies(f"afterok:<job of {item.follows.name}>", users)
            except ConfigError as error:
                faults.append(f"{error.what}: {error.why}; {error.fix}")
    return faults


def _runs_dir(request: SubmitRequest, resolver: _Resolver) -> Path:
    """The folder of the option, else the setting's, whoever made it."""
    if request.runs_dir is not None:
        return request.runs_dir
    stage, config_name = _stages(request)[0]
    named = {"name": request.name} if request.name is not None else {}
    wanted = resolver.resolve(stage, config_name, None, named).config.launch.runs_dir
    return Path(resolve_path(wanted or "runs"))


def _why_executor(executor: str) -> str:
    if executor == "slurm":
        return "executor: slurm, for sbatch is installed here"
    return "executor: local, for there is no sbatch here: the job runs on this machine"


class _Resolver:
    """Turns the order into configurations; what is common to all its runs is read once."""

    def __init__(
        self, request: SubmitRequest, site: str | None, environ: Mapping[str, str]
    ) -> None:
        self.request = request
        self.site = site
        self.environ = environ
        self.flags: dict[str, Any]
        self.flags, self.faults = read_assignments(request.assignments)
        self.flags |= {f"launch.{key}": value for key, value in request.launch.items()}
        options, faults = _sbatch_options(request.sbatch)
        self.flags |= options
        self.faults += faults

    def resolve(
        self,
        stage: int | None,
        config_name: str | None,
        follows: RunDir | None,
        changes: Mapping[str, Any],
    ) -> Resolved:
        """The configuration of one run, with ``changes`` above the order's own flags."""
        overrides = {**self.flags, **changes}
        if follows is not None:
            overrides["model.projector"] = str(follows.path)
        resolved = load_config(
            config_name,
            overrides=overrides,
            faults=self.faults,
            site=self.site,
            environ=self.environ,
            convert_epochs=_steps_of_epochs,
            strict_paths=False,  # looked at for all runs together: each stage has its own sources
        )
        if stage is not None and resolved.config.stage != stage:
            raise ConfigError(
                f"--stage {stage} was asked for, {config_name} is for stage "
                f"{resolved.config.stage}",
                fix=f"choose a preset for stage {stage}",
            )
        return resolved


def _steps_of_epochs(values: Mapping[str, Any]) -> tuple[int, str]:
    from mgpt4_hpc.data.sources.epochs import steps_of_epochs  # NumPy, which few submissions need

    return steps_of_epochs(values)


def _plan_stages(resolver: _Resolver, runs_dir: Path, after: RunDir | None) -> list[PlannedRun]:
    request = resolver.request
    planned: list[PlannedRun] = []
    for stage, config_name in _stages(request):
        follows = planned[-1].run if planned else after
        changes: dict[str, Any] = {}
        if request.stage == "both" and stage == 2:
            # The second stage is 200 times smaller; the job's GPUs were asked for the first.
            for key in ("launch.gpus", "launch.nodes"):
                resolver.flags.pop(key, None)
        if request.name is not None:
            both = request.stage == "both"
            changes["name"] = f"{request.name}-stage{stage}" if both else request.name
        resolved = resolver.resolve(stage, config_name, follows, changes)
        planned.append(PlannedRun(RunDir(runs_dir / resolved.config.name), resolved, follows))
    return planned


def _plan_sweep(
    resolver: _Resolver, runs_dir: Path, after: RunDir | None
) -> tuple[PlannedSweep, list[PlannedRun]]:
    request = resolver.request
    if request.stage == "both":
        raise ConfigError(
            "--sweep and --stage both exclude each other",
            fix="sweep stage 1, then submit stage 2 --after the run that you like best",
        )
    ((stage, config_name),) = _stages(request)
    all_points = points(parse_axes(request.sweep, fixed=resolver.flags))
    plain = {"name": request.name} if request.name is not None else {}
    name = resolver.resolve(stage, config_name, after, plain).config.name
    names = run_names(name, all_points)
    planned = []
    faults: list[str] = []
    for point, run_name in zip(all_points, names, strict=True):
        try:
            changes = {**point.overrides, "name": run_name}
            resolved = resolver.resolve(stage, config_name, after, changes)
        except ConfigError as error:
            told = error.faults or [error.what]
            faults += [f"{run_name}: {fault}" for fault in told]
        else:
            planned.append(PlannedRun(RunDir(runs_dir / run_name), resolved, after))
    if faults:
        raise ConfigError("some runs of the sweep cannot be", faults=faults)
    folder = SweepDir.of(name, runs_dir)
    return PlannedSweep(folder, tuple(all_points), request.max_parallel), planned


def _stages(request: SubmitRequest) -> list[tuple[int | None, str | None]]:
    configs = list(request.configs)
    if request.max_parallel is not None and not request.sweep:
        raise ConfigError("--max-parallel is given without --sweep", fix="leave it out")
    if request.stage == "both":
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
    if request.stage is None and not configs:
        raise ConfigError("neither --stage nor --config is given", fix="say --stage 1, 2 or both")
    stage = int(request.stage) if request.stage else None
    return [(stage, configs[0] if configs else DEFAULT_PRESETS[stage or 1])]


def _sbatch_options(options: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    pairs, faults = {}, []
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            faults.append(f"--sbatch {option!r}: write key=value, as --sbatch nice=100")
            continue
        pairs[f"launch.sbatch.{key.lstrip('-')}"] = value
    return pairs, faults


# -- what would stop them ---------------------------------------------------------------------


@dataclass(frozen=True)
class SlurmReply:
    """What Slurm said before anything is checked.

    Attributes:
        executor: "slurm", "local", or "none" if Slurm was not to be asked or did not answer.
        cluster: its answer.
        unreachable: why there is none.
    """

    executor: str
    cluster: Cluster | None = None
    unreachable: SlurmUnreachable | None = None

    @classmethod
    def of(cls, executor: str, *, dry_run: bool) -> SlurmReply:
        """Ask. A dry run renders its script also where there is no Slurm, or none that answers.

        Raises:
            SlurmUnreachable: unless it is a dry run.
        """
        if executor != "slurm":
            return cls(executor)
        if dry_run and not scheduler().is_here():
            return cls("none")
        try:
            return cls(executor, ask_cluster())
        except SlurmUnreachable as error:
            if not dry_run:
                raise
            return cls("none", unreachable=error)


def _preflight(
    planned: Sequence[PlannedRun],
    sweep: PlannedSweep | None,
    reply: SlurmReply,
    runs_dir: Path,
) -> tuple[list[str], list[str]]:
    """Everything that would stop these runs, and what is worth knowing."""
    faults = _existing_faults([item.run for item in planned])
    if sweep is not None and sweep.folder.path.exists():
        faults.append(
            f"the sweep {sweep.folder.name} exists already: `mgpt4 status {sweep.folder.name}` "
            "shows it, --name starts another"
        )
    notes: list[str] = []
    seen: set[str] = set()
    for item in planned:
        # Runs of a sweep mostly differ in what no check looks at.
        checked = item.resolved.config.model_dump_json(exclude={"name": True, "seed": True})
        if checked in seen:
            continue
        seen.add(checked)
        try:
            notes += preflight(
                item.resolved.config,
                runs_dir,
                executor=reply.executor,
                projector_follows=item.follows is not None,
                cluster=reply.cluster,
                array_tasks=len(planned) if sweep is not None else 0,
            )
        except PreflightError as error:
            faults += error.faults
    return faults, list(dict.fromkeys(notes))


def _existing_faults(runs: Sequence[RunDir]) -> list[str]:
    there = [run for run in runs if run.path.exists()]
    if not there:
        return []
    rows = {row.path: row for row in look_at([r for r in there if r.identity_file.is_file()]).rows}
    return [_existing_fault(run, rows.get(str(run.path))) for run in there]


def _existing_fault(run: RunDir, row: RunOverview | None) -> str:
    if row is None:
        return f"{run.path} exists already, and is no run: --name starts another"
    if row.state is RunState.FINISHED:
        told = f"and is finished ({row.step} steps): nothing is left to do in it"
    elif row.state.is_live:
        told = (
            f"and its job {row.job_id} is alive ({row.text}): `mgpt4 logs -f {run.name}` follows "
            f"it, `mgpt4 cancel {run.name}` ends it"
        )
    else:
        told = f"and is unfinished ({row.text}): `mgpt4 resume {run.name}` goes on with it"
    return f"the run {run.path} exists already, {told}; --name starts another"


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


# -- shown ------------------------------------------------------------------------------------


def render_plan(plan: Plan, *, with_dependencies: bool = True) -> dict[str, str]:
    """The script of each job, by its name: a sweep's array is one, and hands over to its runs'."""
    if plan.executor == "local":
        return {item.run.name: render_local(item.run, item.resolved) for item in plan.runs}

    def dependency(item: PlannedRun) -> str | None:
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
