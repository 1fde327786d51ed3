"""A run under a new identity: how a copied folder goes on, and how a variant is branched off."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc import __version__
from mgpt4_hpc.config import keys
from mgpt4_hpc.config.load import Resolved, merge
from mgpt4_hpc.config.run_config_file import read_config, rewrite_config, write_config
from mgpt4_hpc.config.schema import TrainConfig
from mgpt4_hpc.errors import ConfigError, MgptError, RunLocked
from mgpt4_hpc.formatting import counted, shell_word
from mgpt4_hpc.identity import new_identity
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.run_dir import RunDir, write_json
from mgpt4_hpc.run_reference import (
    RunReference,
    newest_checkpoint,
    step_of,
    validations_since_best,
)
from mgpt4_hpc.train.inputs.pins import accept_drift

_ORIGIN = "name of the branch"
_OF_ITS_JOBS = frozenset(
    {
        "slurm",
        "ledger",
        "attempts",
        "heartbeat.json",
        "FAILED",
        "RESUBMIT_NEEDED",
        "CANCEL",
        "ACCEPT_DRIFT",
    }
)
"""What belongs to a run's jobs and not to its state."""


@dataclass(frozen=True)
class Branching:
    """Where a run branches off.

    Attributes:
        run: the other run, or a copy of one; it may be at work.
        step: at this checkpoint alone; None takes all of its checkpoints along.
        with_code: the new run has the other's code, and not the one of today.
    """

    run: RunDir
    step: int | None = None
    with_code: bool = True

    @classmethod
    def of(cls, reference: RunReference) -> Branching:
        """What the reference names. Raises ConfigError for a checkpoint that lies in no run."""
        if reference.run is None:
            raise ConfigError(
                f"{reference.path} lies in no run, so nobody knows its settings",
                fix="start from its projector: --set model.projector=FOLDER",
            )
        return cls(reference.run, reference.step)

    def nothing_left(self, train: TrainConfig) -> str:
        """Why a run that continues here would train nothing; empty if there is a step to do."""
        step = self.step
        if step is None and (newest := newest_checkpoint(self.run)) is not None:
            step = step_of(newest)
        if step is None:
            return ""
        begins = f"it begins at step {step} of {self.run.name}, and"
        if step >= train.max_steps:
            return (
                f"{begins} train.max_steps is {train.max_steps}: no step is left: "
                f"--set train.max_steps=N with N above {step}, or RUN@STEP with an earlier step"
            )
        worse = validations_since_best(self.run, step)
        if not 0 < train.early_stop <= worse:
            return ""
        return (
            f"{begins} train.early_stop is {train.early_stop}: no step is left after "
            f"{counted(worse, 'validation')} without a new lowest held-out loss: "
            "--set train.early_stop=0, or a larger patience"
        )


def branch(source: Branching, name: str, runs_dir: Path, wanted: Resolved) -> RunDir:
    """Make a new run from another's state: settings, pins, data, curves, checkpoints.

    The new one begins at the other's checkpoint, with a history of its own. Where its folder is the
    other's, which must be a copy, that becomes the new run.

    Args:
        source: the other run, and where to leave it.
        name: of the new run.
        runs_dir: where its folder is made.
        wanted: its settings, which may differ from the other's.

    Raises:
        ConfigError: if a run cannot be called so.
        UnsafeRun: if others can write the other's folder.
        RunLocked: if there is one of that name.
        MgptError: if the folder cannot be copied.
    """
    run = source.run
    run.identity()
    assert_owned(run.path)
    target = RunDir(runs_dir / name)
    flat = keys.flatten(wanted.config.model_dump(mode="json"))
    named = merge([("run", flat), (_ORIGIN, {"name": name})])
    renamed = Resolved(named.config, {**wanted.origins, "name": _ORIGIN})
    if target.path.resolve() == run.path.resolve():
        if read_facts(run).copied_from is None:
            raise RunLocked(
                f"{run.name} is no copy of another run",
                fix=f"`mgpt4 resume {shell_word(run.name)}`, or give another name to --as",
            )
        _become(run, renamed)
        return run
    if target.path.exists():
        raise RunLocked(f"the run {target.path} exists already", fix="choose another name for --as")
    partial = RunDir(runs_dir / f".{name}.partial")
    shutil.rmtree(partial.path, ignore_errors=True)
    try:
        shutil.copytree(run.path, partial.path, symlinks=True, ignore=_left_out(source))
        partial.path.chmod(0o700)
        for folder in (partial.slurm, partial.ledger, partial.attempts):
            folder.mkdir()
        _become(partial, renamed, with_code=source.with_code)
        partial.path.rename(target.path)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(partial.path, ignore_errors=True)
        raise MgptError(
            f"{run.path} could not be copied to {target.path}: {error}",
            fix="check space and quota; a run at work may have changed meanwhile: try again",
        ) from error
    return target


def _become(run: RunDir, wanted: Resolved, *, with_code: bool = True) -> None:
    """Give a folder new settings and a new identity."""
    # The pins were taken with the settings that it had.
    if read_config(run.config_file).digest != wanted.digest:
        accept_drift(run)
    changed = {"name": wanted.config.name, "config_digest": wanted.digest}
    if with_code:
        rewrite_config(run.config_file, wanted)
    else:
        write_config(run.config_file, wanted)
        changed |= {"code_version": __version__}
    take_new_identity(run, **changed)


def take_new_identity(run: RunDir, **changed: str) -> None:
    """Make a folder a run of its own, which may go on from the checkpoints that it has."""
    known = run.identity()
    newest = newest_checkpoint(run)
    before = {
        "id": run.run_id,
        "name": known.get("name"),
        "step": step_of(newest) if newest is not None else None,
    }
    new = {
        "id": new_identity(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "branched_from": [*known.get("branched_from", []), before],
    }
    write_json(run.identity_file, {**known, **changed, **new})
    (run.slurm / "job.json").unlink(missing_ok=True)


def _left_out(source: Branching) -> Callable[[str, list[str]], set[str]]:
    top = source.run.path
    at_top = _OF_ITS_JOBS if source.with_code else _OF_ITS_JOBS | {"code", "executed.b2"}

    def ignore(folder: str, names: list[str]) -> set[str]:
        """The names in a folder that ``shutil.copytree`` leaves out."""
        if Path(folder) == top:
            return {name for name in names if name in at_top}
        if Path(folder) == source.run.checkpoints and source.step is not None:
            return {name for name in names if name != f"step-{source.step:08d}"}
        return {name for name in names if name.startswith((".tmp-", "bad-step-"))}

    return ignore
