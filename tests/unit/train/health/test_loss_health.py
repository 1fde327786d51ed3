"""Warnings and the end of hopeless runs, from numbers alone and in a real run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import FatalTrainingError
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.train.health.loss_health import STUCK_REPORTS, Health
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.run import run_training
from mgpt4_hpc.train.stopping.stop import NeverStop
from tests.support.runs import records
from tests.support.tiny_world import TinyWorld


class Listener(Recorder):
    def __init__(self) -> None:
        self.events: list[tuple[Kind, dict]] = []
        self.said: list[str] = []

    def event(self, kind: Kind, **fields: object) -> None:
        self.events.append((kind, fields))

    def say(self, text: str) -> None:
        self.said.append(text)


def health(limit: int = 3, uniform: float | None = math.log(32000)) -> tuple[Health, Listener]:
    listener = Listener()
    return Health(listener, max_nonfinite_steps=limit, uniform_loss=uniform), listener


def test_a_falling_loss_is_left_alone() -> None:
    judge, listener = health()
    for step in range(100):
        judge.look(step, 10.5 - step * 0.05, 0)
    assert not listener.said


def test_a_loss_stuck_at_uniform_output_is_told_once() -> None:
    judge, listener = health()
    for step in range(4 * STUCK_REPORTS):
        judge.look(step, 10.373, 0)
    assert len(listener.said) == 1 and "ln(vocabulary) = 10.373" in listener.said[0]
    kind, fields = listener.events[0]
    assert kind == Kind.FAULT and fields["what"] == "loss stuck at ln(vocabulary)"
    assert fields["step"] == STUCK_REPORTS - 1 and "weights check" in fields["reason"]


def test_only_reports_in_a_row_count() -> None:
    judge, listener = health()
    for step in range(100):
        judge.look(step, 10.373 if step % STUCK_REPORTS else 9.0, 0)
    judge, listener = health(uniform=None)
    for step in range(100):
        judge.look(step, 10.373, 0)
    assert not listener.said


def test_broken_steps_are_told_and_end_the_run_past_the_limit() -> None:
    judge, listener = health(limit=3)
    judge.look(1, 2.0, 0)
    judge.look(2, math.nan, 3)
    judge.look(3, 2.0, 3)
    assert len(listener.said) == 1 and "3 steps had a NaN or infinite loss" in listener.said[0]
    with pytest.raises(FatalTrainingError) as caught:
        judge.look(4, math.nan, 4)
    assert "train.max_nonfinite_steps allows 3" in str(caught.value)
    for cause in ("learning rate", "weights", "fp16"):
        assert cause in str(caught.value)


def make_run(
    world: TinyWorld, tmp_path: Path, change: dict[str, float], **settings: object
) -> RunDir:
    """A run on the tiny model with some of the language model's tensors filled with a number."""
    weights = tmp_path / "weights"
    shutil.copytree(world.weights, weights)
    file = weights / "llm" / "model.safetensors"
    tensors = load_file(file)
    for name, value in change.items():
        tensors[name] = tensors[name].fill_(value)
    save_file(tensors, file, metadata={"format": "pt"})
    config = world.write_config(tmp_path / "run.yaml", **settings)
    run = RunDir(tmp_path / "run")
    run.create({"name": "run", "stage": 1})
    write_config(run.config_file, load_config(config, overrides={"model.weights": str(weights)}))
    return run


def test_broken_weights_end_a_run_with_the_cause(tiny_world: TinyWorld, tmp_path: Path) -> None:
    settings = {"train__max_nonfinite_steps": 2, "data__num_workers": 0}
    run = make_run(tiny_world, tmp_path, {"model.norm.weight": math.nan}, **settings)
    with pytest.raises(FatalTrainingError, match="3 steps had a NaN"):
        run_training(run, Ranks(), NeverStop(), claim={})
    faults = [r for r in records(run.path) if r["kind"] == Kind.FAULT]
    assert [r["what"] for r in faults] == ["nonfinite steps"] * 3 + ["FatalTrainingError"]
    assert "the weights are broken" in faults[-1]["reason"]
    text = next((run.path / "ledger").glob("*.jsonl")).read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.slow
def test_uniform_output_is_told_by_the_run(tiny_world: TinyWorld, tmp_path: Path, capsys) -> None:
    run = make_run(tiny_world, tmp_path, {"lm_head.weight": 0.0}, data__num_workers=0)
    run_training(run, Ranks(), NeverStop(), claim={})
    faults = [r for r in records(run.path) if r["kind"] == Kind.FAULT]
    assert [r["what"] for r in faults] == ["loss stuck at ln(vocabulary)"]
    assert "WARNING: the loss" in capsys.readouterr().out
