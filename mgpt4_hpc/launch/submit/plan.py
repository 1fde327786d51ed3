"""What a user asks for, and the runs that it means. Writes nothing; see ``execute.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.assignments import Layer, read_assignments
from mgpt4_hpc.config.load import (
    LISTED,
    InvalidSettings,
    Layers,
    Resolved,
    idle_clearings,
    keep_schedule,
    read_layers,
    unknown_paths,
)
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import ConfigError, PreflightError, SlurmUnreachable
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir
from mgpt4_hpc.launch.submit.batch_script import join_dependencies
from mgpt4_hpc.launch.submit.branch import Branching
from mgpt4_hpc.launch.submit.preflight import (
    after_faults,
    existing_faults,
    is_in_doubt,
    preflight_findings,
)
from mgpt4_hpc.launch.submit.preflight_slurm import SlurmReply
from mgpt4_hpc.launch.submit.site_profile import choose_site
from mgpt4_hpc.launch.submit.submit_run import choose_executor
from mgpt4_hpc.launch.submit.sweep import Axis, Point, parse_axes, points, run_names
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.run_reference import (
    RunReference,
    find_reference,
    newest_checkpoint,
    step_of,
)
from mgpt4_hpc.train.inputs.pins import version_drift

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
    origin: str | None = None
    continues: bool = False
    executor: str = "auto"
    runs_dir: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class PlannedRun:
    """One run to be made.

    Attributes:
        run, resolved: its folder and settings.
        follows: the run whose projector it starts from, and whose job it waits for.
        continues: the run whose state it takes over.
    """

    run: RunDir
    resolved: Resolved
    follows: RunDir | None = None
    continues: Branching | None = None


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
        faults: why the jobs would fail.
        sweep: set if the runs are a sweep.
        unreachable: that Slurm could not be asked; None unless it is a dry run.
        invalid: wrong settings. The runs are planned without these then, to find other faults.
    """

    runs: tuple[PlannedRun, ...]
    executor: str
    runs_dir: Path
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    sweep: PlannedSweep | None = None
    unreachable: SlurmUnreachable | None = None
    invalid: tuple[str, ...] = ()

    def assert_sound(self) -> None:
        """Check that the jobs can be submitted.

        Raises:
            ConfigError: settings are wrong; it lists the other faults, too.
            PreflightError: there are faults.
            SlurmUnreachable: Slurm did not answer.
        """
        if self.invalid:
            faults = [*self.invalid, *self.faults]
            raise ConfigError("the configuration has faults", faults=faults, fix=LISTED)
        if self.faults:
            raise PreflightError("this job would fail", faults=self.faults)
        if self.unreachable is not None:
            raise self.unreachable


def make_plan(request: SubmitRequest, environ: Mapping[str, str]) -> Plan:
    """Resolve and check everything; writes nothing. ``assert_sound`` of the plan raises faults.

    Raises:
        ConfigError: options that contradict each other, or a file that cannot be read.
        SlurmUnreachable: the scheduler cannot be asked.
    """
    executor = choose_executor(request.executor)
    notes = [_why_executor(executor)] if request.executor == "auto" else []
    site = choose_site(request.site, environ)
    if site is not None:
        notes.append(f"site profile {site.name}, chosen by {site.why}")
    resolver = _Resolver(request, str(site.path) if site is not None else None, environ)
    runs_dir = _runs_dir(request, resolver)
    resolver.runs_dir = runs_dir
    after = find_reference(request.after, runs_dir) if request.after else None
    if request.origin is not None:
        resolver.begin_from(find_reference(request.origin, runs_dir), runs_dir)
    sweep: PlannedSweep | None = None
    if request.sweep:
        sweep, planned = _plan_sweep(resolver, runs_dir, after)
    else:
        planned = _plan_stages(resolver, runs_dir, after)
    if request.continues:
        planned = [replace(item, continues=resolver.continues) for item in planned]
    if "data.sources" not in resolver.wrong:
        resolver.invalid += unknown_paths(resolver.flags, [item.resolved for item in planned])
    dry_run = request.dry_run or bool(resolver.invalid)
    reply = SlurmReply.of(executor, dry_run=dry_run, wrong=resolver.wrong)
    faults, more = _preflight(planned, sweep, reply, runs_dir)
    faults += resolver.drift
    if after is not None and after.run is not None and after.checkpoint is None:
        try:
            faults += after_faults(after.run, executor)
        except SlurmUnreachable:
            if not resolver.invalid:
                raise
    if executor == "slurm":
        faults += _dependency_faults(planned)
    return Plan(
        tuple(planned),
        executor,
        runs_dir,
        tuple(
            dict.fromkeys(
                (
                    *notes,
                    *(n for p in planned for n in p.resolved.notes),
                    *resolver.notes,
                    *(note for note in more if not is_in_doubt(note, resolver.wrong)),
                )
            )
        ),
        tuple(f for f in dict.fromkeys(faults) if not is_in_doubt(f, resolver.wrong)),
        sweep,
        reply.unreachable,
        tuple(dict.fromkeys(resolver.invalid)),
    )


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
    """The folder of the option, else the setting's, from any source."""
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
        self.start: dict[str, Any] = {}
        self.parent: Resolved | None = None
        self.runs_dir: Path | None = None
        self.notes: list[str] = []
        self.base: Layer | None = None
        self.continues: Branching | None = None
        self.drift: list[str] = []
        self.invalid: list[str] = []
        self.wrong: frozenset[str] = frozenset()
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
        follows: RunReference | None,
        changes: Mapping[str, Any],
    ) -> Resolved:
        """The configuration of one run, with ``changes`` above the order's own flags.

        Faults go to ``invalid``; the configuration then lacks the wrong settings.
        """
        overrides = {**self.start, **self.flags, **changes}
        if follows is not None:
            overrides = {**self._taken_over(follows, overrides), **overrides}
            overrides["model.projector"] = str(follows.path)
        # A flag's data source is looked for in all runs together: each stage has its own sources.
        if self.base is not None:
            layers = Layers((self.base, ("flag", overrides)))
        else:
            layers = read_layers(config_name, overrides, site=self.site, environ=self.environ)
        try:
            resolved = layers.resolve(self.faults, _steps_of_epochs, self.runs_dir or Path("runs"))
        except InvalidSettings as error:
            if error.rest is None:
                raise
            self.invalid += error.faults
            self.wrong |= error.wrong
            resolved = error.rest
        if self.continues is not None and self.parent is not None:
            resolved = keep_schedule(self.parent.config, resolved, "--from")
            if not {"train.max_steps", "train.early_stop"} & self.wrong:
                none_left = self.continues.nothing_left(resolved.config.train)
                self.invalid += [f"--continue: {none_left}"] if none_left else []
        if stage is not None and resolved.config.stage != stage and "stage" not in self.wrong:
            source = config_name or self.request.origin
            fix = f"choose a preset for stage {stage}"
            if config_name is None:
                fix = "leave --stage out"
                fix += f", or begin stage 2 with --stage 2 --after {source}" if stage == 2 else ""
            self.invalid.append(
                f"--stage {stage} was asked for, {source} is for stage "
                f"{resolved.config.stage}: {fix}"
            )
        return resolved

    def begin_from(self, origin: RunReference, runs_dir: Path) -> None:
        """Take another run's settings, and its weights or all of its state.

        Raises:
            ConfigError: the reference is no run, or the run has no checkpoint yet.
        """
        source = Branching.of(origin)
        checkpoint = origin.checkpoint or newest_checkpoint(source.run)
        if checkpoint is None:
            raise ConfigError(
                f"--from {source.run.name}: it has no checkpoint yet",
                fix="wait for its first, or start a run with its settings alone: "
                f"--config {source.run.config_file}",
            )
        step = step_of(checkpoint)
        self.invalid += idle_clearings(self.flags)
        self.parent = read_config(source.run.config_file)
        flat = keys.flatten(self.parent.config.model_dump(mode="json"))
        self.base = f"run {source.run.name}", {**flat, "name": _free_name(source.run, runs_dir)}
        if self.request.continues:
            self.continues = replace(source, step=step, with_code=False)
            self.drift = version_drift(source.run)
            self.notes.append(f"continues {source.run.name} from step {step}")
        else:
            self.start["model.projector"] = str(checkpoint)
            trained = "projector and LoRA weights" if flat["lora.rank"] else "projector"
            self.notes.append(f"starts from the {trained} of {source.run.name}, step {step}")
            if (length := flat["train.lr_steps"]) is not None:
                self.notes.append(
                    f"the cosine has {length} steps, as in {source.run.name}; "
                    "--set train.lr_steps=N gives it another length"
                )

    def _taken_over(self, follows: RunReference, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Bundle and conversation format of an earlier run, for its projector fits no other."""
        if follows.run is None or not follows.run.config_file.is_file():
            return {}  # it is made together with this one, or a checkpoint has no run around it
        flat = keys.flatten(read_config(follows.run.config_file).config.model_dump(mode="json"))
        wanted = [*_BUNDLE, "text.template", "text.system", "text.prompt"]
        if flat["text.prompt"] is not None:
            wanted.append("text.end_symbol")
        taken = {key: flat[key] for key in wanted if key not in flags}
        taken_text = ", ".join(f"{key} {taken[key]}" for key in wanted if taken.get(key))
        if taken_text:
            self.notes.append(f"as in {follows.run.name}: {taken_text}")
        return taken


def _steps_of_epochs(values: Mapping[str, Any]) -> tuple[int, str]:
    from mgpt4_hpc.data.sources.epochs import steps_of_epochs  # NumPy, which few submissions need

    return steps_of_epochs(values)


_BUNDLE = ("model.weights", "model.variant")


def _free_name(run: RunDir, runs_dir: Path) -> str:
    """The first of NAME-2, NAME-3, ... that no run has."""
    return next(n for i in count(2) if not (runs_dir / (n := f"{run.name}-{i}")).exists())


def _plan_stages(
    resolver: _Resolver, runs_dir: Path, after: RunReference | None
) -> list[PlannedRun]:
    request = resolver.request
    planned: list[PlannedRun] = []
    for stage, config_name in _stages(request):
        follows = RunReference(planned[-1].run) if planned else after
        changes: dict[str, Any] = {}
        if request.stage == "both" and stage == 2:
            # The second stage is 200 times smaller; the job's GPUs were asked for the first.
            for key in ("launch.gpus", "launch.nodes"):
                resolver.flags.pop(key, None)
        if request.name is not None:
            both = request.stage == "both"
            changes["name"] = f"{request.name}-stage{stage}" if both else request.name
        resolved = resolver.resolve(stage, config_name, follows, changes)
        run = RunDir(runs_dir / resolved.config.name)
        planned.append(PlannedRun(run, resolved, _job_to_wait_for(follows)))
    return planned


def _job_to_wait_for(follows: RunReference | None) -> RunDir | None:
    """The run that must finish first; a checkpoint that is named is there already."""
    return follows.run if follows is not None and follows.checkpoint is None else None


def _plan_sweep(
    resolver: _Resolver, runs_dir: Path, after: RunReference | None
) -> tuple[PlannedSweep, list[PlannedRun]]:
    request = resolver.request
    if request.stage == "both":
        raise ConfigError(
            "--sweep and --stage both exclude each other",
            fix="sweep stage 1, then submit stage 2 --after the run that you like best",
        )
    ((stage, config_name),) = _stages(request)
    all_points = points(_axes(resolver))
    plain = {"name": request.name} if request.name is not None else {}
    name = resolver.resolve(stage, config_name, after, plain).config.name
    names = run_names(name, all_points)
    planned = []
    of_all, resolver.invalid = resolver.invalid, []
    for point, run_name in zip(all_points, names, strict=True):
        known = len(resolver.invalid)
        changes = {**point.overrides, "name": run_name}
        resolved = resolver.resolve(stage, config_name, after, changes)
        own = [fault for fault in resolver.invalid[known:] if fault not in of_all]
        resolver.invalid[known:] = [f"{run_name}: {fault}" for fault in own]
        planned.append(PlannedRun(RunDir(runs_dir / run_name), resolved, _job_to_wait_for(after)))
    resolver.invalid = [*of_all, *resolver.invalid]
    folder = SweepDir.of(name, runs_dir)
    return PlannedSweep(folder, tuple(all_points), request.max_parallel), planned


def _axes(resolver: _Resolver) -> list[Axis]:
    """The settings that can be swept as asked; why the others cannot goes to ``invalid``."""
    axes: list[Axis] = []
    for option in resolver.request.sweep:
        try:
            axes += parse_axes([option], fixed=[*resolver.flags, *(axis.key for axis in axes)])
        except ConfigError as error:
            resolver.invalid += error.faults
            resolver.wrong |= keys.suggested(error.faults)
    return axes


def _stages(request: SubmitRequest) -> list[tuple[int | None, str | None]]:
    configs = list(request.configs)
    if request.max_parallel is not None and not request.sweep:
        raise ConfigError("--max-parallel is given without --sweep", fix="leave it out")
    if request.continues and request.origin is None:
        raise ConfigError("--continue is given without --from", fix="say --from RUN which run")
    if request.origin is not None:
        if configs or request.after or request.stage == "both":
            raise ConfigError(
                "--from excludes --config, --after and --stage both",
                fix="the settings are those of the run; change them with --set",
            )
        return [(int(request.stage) if request.stage else None, None)]
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


def _preflight(
    planned: Sequence[PlannedRun],
    sweep: PlannedSweep | None,
    reply: SlurmReply,
    runs_dir: Path,
) -> tuple[list[str], list[str]]:
    """Everything that would stop these runs, and what is worth knowing."""
    faults = existing_faults([item.run for item in planned])
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
        more, told = preflight_findings(
            item.resolved.config,
            runs_dir,
            executor=reply.executor,
            projector_follows=item.follows is not None or item.continues is not None,
            cluster=reply.cluster,
            array_tasks=len(planned) if sweep is not None else 0,
        )
        faults += more
        notes += told
    return faults, list(dict.fromkeys(notes))
