"""A run under a new identity: how a copied folder goes on, and how a variant is branched off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.load import Resolved, merge
from mgpt4_hpc.config.run_config_file import read_config, rewrite_config
from mgpt4_hpc.errors import MgptError, RunLocked
from mgpt4_hpc.formatting import shell_word
from mgpt4_hpc.identity import new_identity
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.run_dir import RunDir, write_json
from mgpt4_hpc.train.inputs.pins import accept_drift

_ORIGIN = "resume --as"
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


def branch(run: RunDir, name: str, runs_dir: Path, wanted: Resolved) -> RunDir:
    """Make a new run from another's state: settings, pins, code, data, curves, checkpoints.

    The new one begins at the other's newest checkpoint, with a history of its own. Where its folder
    is the other's, which must be a copy, that becomes the new run.

    Args:
        run: the run, or a copy of one; it may be at work.
        name: of the new run.
        runs_dir: where its folder is made.
        wanted: its settings, which may differ from the other's.

    Raises:
        ConfigError: if a run cannot be called so.
        UnsafeRun: if others can write the other's folder.
        RunLocked: if there is one of that name.
        MgptError: if the folder cannot be copied.
    """
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
        shutil.copytree(run.path, partial.path, symlinks=True, ignore=_left_out(run.path))
        partial.path.chmod(0o700)
        for folder in (partial.slurm, partial.ledger, partial.attempts):
            folder.mkdir()
        _become(partial, renamed)
        partial.path.rename(target.path)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(partial.path, ignore_errors=True)
        raise MgptError(
            f"{run.path} could not be copied to {target.path}: {error}",
            fix="check space and quota; a run at work may have changed meanwhile: try again",
        ) from error
    return target


def _become(run: RunDir, wanted: Resolved) -> None:
    """Give a folder new settings and a new identity."""
    # The pins were taken with the settings that it had.
    if read_config(run.config_file).digest != wanted.digest:
        accept_drift(run)
    rewrite_config(run.config_file, wanted)
    take_new_identity(run, name=wanted.config.name, config_digest=wanted.digest)


def take_new_identity(run: RunDir, **changed: str) -> None:
    """Make a folder a run of its own, which may go on from the checkpoints that it has."""
    known = run.identity()
    before = {"id": run.run_id, "name": known.get("name")}
    lineage = [*known.get("branched_from", []), before]
    write_json(
        run.identity_file, {**known, **changed, "id": new_identity(), "branched_from": lineage}
    )
    (run.slurm / "job.json").unlink(missing_ok=True)


def _left_out(top: Path) -> Callable[[str, list[str]], set[str]]:
    def ignore(folder: str, names: list[str]) -> set[str]:
        if Path(folder) == top:
            return {name for name in names if name in _OF_ITS_JOBS}
        return {name for name in names if name.startswith((".tmp-", "bad-step-"))}

    return ignore
