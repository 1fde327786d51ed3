"""Tests of ``train/inputs/resolve.py``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import rewrite_config
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from mgpt4_hpc.train import run as run_module
from mgpt4_hpc.train.inputs.resolve import pinned_values
from mgpt4_hpc.train.state import Ending, Outcome
from mgpt4_hpc.train.stopping.stop import Interrupted
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run
from tests.unit.train.attempts import Stop, attempt


@pytest.mark.parametrize("where", ["find_inputs", "build_run_model"])
def test_indexing_and_loading_are_broken_off(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    stop = Stop()

    def interrupted(*args: object, **kwargs: object) -> None:
        stop.at = 0
        raise Interrupted  # as the signal's handler does there

    ends: list[Outcome] = []
    with monkeypatch.context() as patched:
        patched.setattr(run_module, where, interrupted)
        early = attempt(run, stop, ends)
    assert early == Outcome(Ending.STOPPED, 0, 0, None, "SIGTERM", 1)
    assert ends == [early]
    (told,) = read_ledgers(run.ledger)
    assert told.faults == []


def _after_a_step(run: RunDir) -> Stop:
    """Stops the run as soon as its ledger has a first step."""

    def look(_: int) -> None:
        if any('"first_step"' in path.read_text() for path in run.ledger.iterdir()):
            stop.at = 0

    stop = Stop(then=look)
    return stop


@pytest.mark.slow
def test_the_checkpoint_of_another_run_is_not_restored(run: RunDir, tmp_path: Path) -> None:
    assert attempt(run, _after_a_step(run)).step > 0
    newest = max(run.checkpoints.glob("step-*"))
    other = RunDir(tmp_path / "other")
    other.create({"name": "other", "stage": 1})
    shutil.copy(run.config_file, other.config_file)
    shutil.copytree(newest, other.checkpoints / newest.name)
    attempt(other, _after_a_step(other))
    (told,) = read_ledgers(other.ledger)
    assert told.restored_step == 0
    (refused,) = told.damaged
    assert f"of another run, {run.run_id}" in str(refused)


@pytest.mark.slow
def test_a_checkpoint_made_with_other_settings_is_not_restored(run: RunDir, tmp_path: Path) -> None:
    assert attempt(run, _after_a_step(run)).step > 0
    newest = max(run.checkpoints.glob("step-*"))
    # The same run by its identity, as a backup of its files over others leaves it.
    mixed = RunDir(tmp_path / "mixed")
    mixed.create(run.identity())
    text = run.config_file.read_text()
    mixed.config_file.write_text(re.sub(r"(?m)^seed: \d+", "seed: 99", text))
    assert mixed.config_file.read_text() != text
    shutil.copytree(newest, mixed.checkpoints / newest.name)
    attempt(mixed, _after_a_step(mixed))
    (ledger,) = read_ledgers(mixed.ledger)
    assert ledger.restored_step == 0
    (refused,) = ledger.damaged
    assert "made with other settings" in str(refused)


@pytest.mark.slow
def test_a_run_with_a_checkpoint_never_needs_its_first_projector_again(
    run: RunDir, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    first = make_trained_run(tiny_world, tmp_path / "first", 1)
    resolved = load_config(tmp_path / "x.yaml", overrides={"model.projector": str(first.path)})
    rewrite_config(run.config_file, resolved)
    begun = attempt(run, _after_a_step(run))
    assert begun.step > 0
    shutil.rmtree(first.path)
    resumed = attempt(run, Stop(at=6))
    assert resumed.restored_step == begun.step < resumed.step
    shutil.rmtree(run.checkpoints)
    with pytest.raises(MgptError, match=re.escape(str(first.path))):
        attempt(run, Stop(at=6))


def test_what_is_compared_names_each_source() -> None:
    two = [{"name": "a", "path": "/a", "weight": 3}, {"name": "b", "path": "/b"}]
    config = load_config("toy-stage1", overrides={"data.sources": two}).config
    values = pinned_values(config)
    assert (values["data.sources.a.weight"], values["data.sources.b.weight"]) == (3, 1)
    assert not any(value in ("/a", "/b") for value in values.values()), "paths may change"
