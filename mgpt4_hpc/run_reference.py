"""What RUN means on a command line and in a setting, whichever command reads it.

A run's name, its path, ``RUN@STEP``, ``RUN@best``, ``RUN/checkpoints/step-N``, and the folder of a
checkpoint that lies elsewhere. A command that needs a whole run takes the run that the reference
names; one that needs weights takes the checkpoint, by default the run's newest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mgpt4_hpc.errors import NoSuchRun, NoSuchStep, did_you_mean
from mgpt4_hpc.run_dir import FIX_NO_RUNS, RunDir, list_runs, list_sweeps, read_json

N = TypeVar("N")
T = TypeVar("T")

_STEP = re.compile(r"(?:step-)?(\d+)")
_KEEP_BEST = re.compile(r"^  keep_best: (\w+)", re.MULTILINE)
_SHOWN = 10


@dataclass(frozen=True)
class RunReference:
    """A run, one of its checkpoints, or the folder of a checkpoint without a run.

    Attributes:
        run: None for a checkpoint's folder that lies outside of any run.
        checkpoint: the folder of the step that is named; None means the run's newest.
    """

    run: RunDir | None
    checkpoint: Path | None = None

    @property
    def path(self) -> Path:
        """Folder of the checkpoint, or of the run."""
        if self.checkpoint is not None:
            return self.checkpoint
        assert self.run is not None
        return self.run.path

    @property
    def step(self) -> int | None:
        """The step that is named; None means the newest."""
        return step_of(self.checkpoint) if self.checkpoint is not None else None


def find_reference(text: str, runs_dir: Path) -> RunReference:
    """What ``text`` names: a run under ``runs_dir``, a path, or a checkpoint of either.

    Raises:
        NoSuchRun: with the runs or the steps that exist.
    """
    if reference := _look_up(text, runs_dir):
        return reference
    name, at, step = text.rpartition("@")
    if at and (reference := _look_up(name, runs_dir)) and reference.run is not None:
        return _at_step(reference.run, step)
    folder, _, step = text.rpartition("/checkpoints/")
    if folder and (reference := _look_up(folder, runs_dir)) and reference.run is not None:
        return _at_step(reference.run, step)
    raise _no_such_run(name if at else text, runs_dir)


def find_run(text: str, runs_dir: Path) -> RunDir:
    """The run that ``text`` names, itself or by one of its checkpoints.

    Raises:
        NoSuchRun: with the names that exist, or for a checkpoint outside of any run.
    """
    reference = find_reference(text, runs_dir)
    if reference.run is None:
        raise NoSuchRun(
            f"{text} is a checkpoint that lies in no run", fix="give a run's name or its path"
        )
    return reference.run


def find_all(names: Iterable[N], find: Callable[[N], T]) -> list[T]:
    """What each name stands for.

    Raises:
        NoSuchRun: with every name that is missing.
    """
    found, errors = [], []
    for name in names:
        try:
            found.append(find(name))
        except NoSuchRun as error:
            errors.append(error)
    if errors:
        fixes = dict.fromkeys(error.fix for error in errors)
        raise NoSuchRun("; ".join(error.what for error in errors), fix="; ".join(fixes))
    return found


def find_whole_run(text: str, runs_dir: Path, instead: str) -> RunDir:
    """The run, for a command that would change all of it where one step is named.

    Raises:
        NoSuchRun: if a step is named; ``instead`` says what to do then.
    """
    reference = find_reference(text, runs_dir)
    if reference.run is None or reference.checkpoint is not None:
        raise NoSuchRun(f"{text} is one checkpoint, and this wants a run", fix=instead)
    return reference.run


def newest_checkpoint(run: RunDir) -> Path | None:
    """Folder of a run's newest checkpoint; None as long as there is none."""
    checkpoints = [file.parent for file in run.checkpoints.glob("step-*/manifest.json")]
    return max(checkpoints, key=lambda folder: step_of(folder) or 0, default=None)


def best_validation(run: RunDir, step: int | None) -> tuple[int | None, float | None]:
    """Step and value of the best validation, as the checkpoint of ``step`` records them.

    It is that of the lowest held-out loss, or of the score that ``checkpoint.keep_best`` names:
    CIDEr of ``caption``, share of failing answers (0 to 1) of ``failure``.
    """
    try:
        meta = read_json(run.checkpoints / f"step-{step:08d}" / "manifest.json")["meta"]
        best = meta["best_step"], meta["best_loss"]
        if scores := meta.get("best_scores"):
            kept = _KEEP_BEST.search(run.config_file.read_text(encoding="utf-8"))
            suite = kept[1] if kept else ""
            best = scores.get(suite, best)
            if suite == "failure" and suite in scores:
                best = best[0], -best[1]  # recorded such that the highest is the best
        return int(best[0]), float(best[1])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None  # no checkpoint, one without a held-out loss, or a damaged one


def validations_since_best(run: RunDir, step: int) -> int:
    """Validations since the lowest held-out loss at a checkpoint; 0 where it is not recorded."""
    try:
        meta = read_json(run.checkpoints / f"step-{step:08d}" / "manifest.json")["meta"]
        return int(meta["num_worse"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def step_of(checkpoint: Path) -> int | None:
    """The step of a checkpoint's folder; None if it has another name."""
    match = _STEP.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def located_path(text: str, runs_dir: Path) -> str:
    """The path that a reference stands for; ``text`` itself where it is a file or names nothing.

    Raises:
        NoSuchStep: it names a run and a step that the run does not have.
    """
    if Path(text).expanduser().is_file():
        return text
    try:
        return str(find_reference(text, runs_dir).path)
    except NoSuchStep:
        raise
    except NoSuchRun:
        return text


def _look_up(text: str, runs_dir: Path) -> RunReference | None:
    for path in (Path(text).expanduser(), runs_dir / text):
        path = path.absolute()
        try:
            if (path / "run.json").is_file():
                return RunReference(RunDir(path))
            if (path / "manifest.json").is_file():
                run = path.parent.parent
                inside = path.parent.name == "checkpoints" and (run / "run.json").is_file()
                return RunReference(RunDir(run) if inside else None, path)
        except OSError:
            continue  # longer than a file name may be, say
    return None


def _at_step(run: RunDir, text: str) -> RunReference:
    manifests = sorted(run.checkpoints.glob("step-*/manifest.json"))
    advice = ""
    if text == "best":
        # The newest manifest may be damaged.
        found = (best_validation(run, step_of(file.parent))[0] for file in reversed(manifests))
        best = next((step for step in found if step is not None), None)
        advice = "; checkpoint.keep_best=val/loss keeps the best one"
        if best is None:
            raise NoSuchStep(
                f"{run.name} has no best checkpoint, for it has no held-out loss",
                fix="train.eval_every_steps measures one, checkpoint.keep_best=val/loss keeps the "
                f"best checkpoint; without @best it is the newest: {run.name}",
            )
        text = str(best)
    number = _STEP.fullmatch(text.rstrip("/"))
    folder = run.checkpoints / f"step-{int(number[1]):08d}" if number else None
    if folder is not None and (folder / "manifest.json").is_file():
        return RunReference(run, folder)
    steps = (
        ", ".join(str(int(file.parent.name.removeprefix("step-"))) for file in manifests) or "none"
    )
    raise NoSuchStep(
        f"{run.name} has no checkpoint of step {text}{did_you_mean(text, ['best'])}",
        fix=f"its checkpoints are of these steps: {steps}; @best is the one of the best "
        f"validation, without @STEP it is the newest{advice}",
    )


def _no_such_run(name: str, runs_dir: Path) -> NoSuchRun:
    if not runs_dir.is_dir():
        return NoSuchRun(f"no run {name!r}: the folder {runs_dir} does not exist", fix=FIX_NO_RUNS)
    runs, sweeps = [run.name for run in list_runs(runs_dir)], list_sweeps(runs_dir)
    if name in sweeps:
        return NoSuchRun(
            f"{name!r} is a sweep, and this wants one run",
            fix=f"give one of its runs: `mgpt4 status {name}` shows them",
        )
    fix = f"give a path or one of the runs there: {_first_names(runs)}"
    fix += f"; sweeps: {_first_names(sweeps)}" if sweeps else ""
    near = did_you_mean(name, [*runs, *sweeps])
    return NoSuchRun(f"no run {name!r} in {runs_dir}{near}", fix=fix)


def _first_names(names: Sequence[str]) -> str:
    """The first names; of the others how many there are."""
    more = f" ... and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"
