"""Two runs' ends compared: what differs is named with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mgpt4_hpc.launch.site_check.bit_identity import bit_differences
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def make(root: Path, name: str, *, step: int = 3, losses: dict[int, float] | None = None) -> RunDir:
    run = RunDir(root / name)
    run.create({"name": name})
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir()
    save_file({"bias": WEIGHT[0], "weight": WEIGHT}, folder / "projector.safetensors")
    save_file({"exp_avg": WEIGHT, "step": np.array([step])}, folder / "optimizer.safetensors")
    ledger = Ledger(run.ledger, 1)
    for at, loss in (losses or {1: 0.5, 2: 0.25, 3: 0.125}).items():
        ledger.event(Kind.STEPS, step=at, loss=loss)
    ledger.close()
    return run


def change(run: RunDir, file: str, **tensors: np.ndarray) -> None:
    (folder,) = run.checkpoints.iterdir()
    save_file(tensors, folder / file)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[RunDir, RunDir]:
    return make(tmp_path, "one"), make(tmp_path, "two")


def test_equal_to_the_last_bit(pair: tuple[RunDir, RunDir]) -> None:
    assert bit_differences(*pair) == []


def test_one_bit_of_one_weight(pair: tuple[RunDir, RunDir]) -> None:
    other = WEIGHT.copy()
    other[1, 2] = np.nextafter(np.float32(5), np.float32(6))
    change(pair[1], "projector.safetensors", bias=WEIGHT[0], weight=other)
    (told,) = bit_differences(*pair)
    assert told.startswith("projector.safetensors: weight differs in 1 of 6 numbers, by ")


def test_a_negative_zero_is_another_number(pair: tuple[RunDir, RunDir]) -> None:
    for sign, run in zip((0.0, -0.0), pair, strict=True):
        change(run, "optimizer.safetensors", exp_avg=np.array([sign, 1.0]))
    (told,) = bit_differences(*pair)
    assert told == "optimizer.safetensors: exp_avg differs in 1 of 2 numbers, by 0 at most"


def test_losses_part(tmp_path: Path) -> None:
    one = make(tmp_path, "one")
    two = make(tmp_path, "two", losses={1: 0.5, 2: 0.25000001, 3: 0.1})
    assert bit_differences(one, two) == [
        "the losses part at step 2: 0.25 in one, 0.25000001 in two"
    ]
    three = make(tmp_path, "three", losses={1: 0.5, 3: 0.125})
    assert "the first is step 2" in bit_differences(one, three)[0]


def test_other_ends(tmp_path: Path, pair: tuple[RunDir, RunDir]) -> None:
    three = make(tmp_path, "three", step=4)
    assert "ended with step-00000003" in bit_differences(pair[0], three)[-1]
    (folder,) = pair[1].checkpoints.iterdir()
    folder.rename(pair[1].path / "away")
    assert "two has no checkpoint" in bit_differences(*pair)[-1]


def test_many_tensors_are_counted(pair: tuple[RunDir, RunDir]) -> None:
    for number, run in enumerate(pair):
        tensors = {f"t{index}": WEIGHT + number for index in range(9)}
        change(run, "projector.safetensors", **tensors)
    told = bit_differences(*pair)
    assert len(told) == 4 and told[-1].endswith("6 more tensors differ")
    change(pair[0], "projector.safetensors", other=WEIGHT)
    assert "holds other tensors" in bit_differences(*pair)[0]
