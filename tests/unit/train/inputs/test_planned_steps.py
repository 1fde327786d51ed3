"""How far a run is to go, read again while it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import read_config, rewrite_config, write_config
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from mgpt4_hpc.train.inputs.pins import changed_values
from mgpt4_hpc.train.inputs.planned_steps import PlannedSteps
from mgpt4_hpc.train.inputs.resolve import pinned_values
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.state import TrainState


class Noting(Recorder):
    def __init__(self) -> None:
        self.noted: list[tuple[int, list[str]]] = []

    def changed(self, step: int, what: object) -> None:
        self.noted.append((step, list(what)))  # type: ignore[call-overload]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create({"name": "run", "stage": 1})
    write_config(made.config_file, load_config("toy-stage1"))
    write_json(made.pins_file, {"bundle": "b", "about": {"laion": "/path"}})
    return made


def ask_for(run: RunDir, steps: int) -> None:
    length = {"train.max_steps": steps, "train.lr_steps": 350}
    rewrite_config(run.config_file, load_config("toy-stage1", overrides=length))


def test_a_change_is_followed_and_noted_once(run: RunDir) -> None:
    recorder = Noting()
    config = read_config(run.config_file).config
    planned = PlannedSteps(run, config, recorder, TrainState(step=7))
    assert planned() == planned() == config.train.max_steps
    ask_for(run, 900)
    assert planned() == planned() == 900
    longer = f"train.max_steps was {config.train.max_steps}, is 900"
    assert recorder.noted == [(7, [longer, "train.lr_steps was None, is 350"])]
    about = read_json(run.pins_file)["about"]
    assert about["laion"] == "/path" and about["values"]["train.max_steps"] == 900
    begun_again = pinned_values(read_config(run.config_file).config)
    assert changed_values(read_json(run.pins_file), begun_again) == []


def test_another_patience_is_a_change_of_the_next_start() -> None:
    config = load_config("toy-stage1").config
    before, after = (
        pinned_values(
            config.model_copy(
                update={"train": config.train.model_copy(update={"early_stop": patience})}
            )
        )
        for patience in (2, 0)
    )
    changes = changed_values({"about": {"values": before}}, after)
    assert changes == ["train.early_stop was 2, is 0"]
    del before["train.early_stop"]  # as an earlier version pinned it
    assert changed_values({"about": {"values": before}}, after) == []


def test_a_file_that_cannot_be_read_changes_nothing(run: RunDir) -> None:
    config = read_config(run.config_file).config
    planned = PlannedSteps(run, config, Noting(), TrainState())
    run.config_file.write_text("stage: [")
    assert planned() == config.train.max_steps
    run.config_file.unlink()
    assert planned() == config.train.max_steps
    write_config(run.config_file, load_config("toy-stage1", overrides={"train.max_steps": 900}))
    assert planned() == 900
