"""Sweeps as text: which runs they mean, what they are called, and what is refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir
from mgpt4_hpc.launch.submit.sweep import parse_axes, points, render_array, run_names
from mgpt4_hpc.run_dir import RunDir
from tests.unit.launch.sweeps import _two


def names_of(*options: str) -> list[str]:
    return run_names("s", points(parse_axes(options)))


def test_every_combination_is_a_run_and_is_called_so() -> None:
    assert names_of("lr=1e-4,3e-5", "seed=1,2") == [
        "s-lr1e-4-seed1",
        "s-lr1e-4-seed2",
        "s-lr3e-5-seed1",
        "s-lr3e-5-seed2",
    ]


def test_the_values_reach_the_configuration() -> None:
    all_points = points(parse_axes(["lr=1e-4,2e-4", "text.end_symbol=###,</s>"]))
    configs = [load_config("stage1-vicuna7b", overrides=p.overrides).config for p in all_points]
    assert [(c.train.lr, c.text.end_symbol) for c in configs] == [
        (1e-4, "###"),
        (1e-4, "</s>"),
        (2e-4, "###"),
        (2e-4, "</s>"),
    ]


def test_lists_are_values_too() -> None:
    (axis,) = parse_axes(["text.instructions=[[a, b], [c]]"])
    assert axis.values == (["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("model.projector=/a/one.pth,/b/two.pth", ["s-projectorone.pth", "s-projectortwo.pth"]),
        ("model.projector=/a/x.pth,/b/x.pth", ["s-projectorx.pth", "s-projectorx.pth-0001"]),
        ("seed=1,2", ["s-seed1", "s-seed2"]),
        ("text.end_symbol=###,$(id)", ["s-end_symbol", "s-end_symbol-id"]),
    ],
)
def test_names_are_names_whatever_the_values_and_all_differ(option: str, names: list[str]) -> None:
    assert names_of(option) == names
    for name in names:
        assert load_config("stage1-vicuna7b", overrides={"name": name}).config.name == name


def test_long_names_are_cut_and_still_differ() -> None:
    names = run_names("n" * 90, points(parse_axes(["global_batch_size=256,512,1024"])))
    assert len(set(names)) == 3
    for name in names:
        assert len(name) <= 100
        load_config("stage1-vicuna7b", overrides={"name": name})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["lr"], "write key=value,value"),
        (["lr="], "write key=value,value"),
        (["lr=1,,2"], "write key=value,value"),
        (["lr=[1"], "write key=value,value"),
        (["lrr=1,2"], "did you mean train.lr?"),
        (["lr=1,1"], "a value is given twice"),
        (["lr=1,2", "train.lr=3,4"], "train.lr is given twice"),
        (["launch.gpus=1,2"], "launch.gpus cannot be swept"),
        (["partition=a,b"], "launch.partition cannot be swept"),
        (["container.image=a,b"], "cannot be swept"),
        (["name=a,b"], "name cannot be swept"),
        (["stage=1,2"], "stage cannot be swept"),
    ],
)
def test_what_cannot_be_swept_is_refused(options: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axes(options)
    assert told in str(caught.value)


def test_every_fault_at_once_and_what_set_gave_already() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_axes(["lr=1,2", "seeed=1"], fixed=["train.lr"])
    assert len(caught.value.faults) == 2


# -- the folder --------------------------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o002], ids=["umask 022", "umask 002"])
def two(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[RunDir]]:
    before = os.umask(request.param)
    yield _two(tmp_path)
    os.umask(before)


def test_a_task_becomes_its_runs_own_script(two: list[RunDir], tmp_path: Path) -> None:
    for run in two:
        (run.slurm / "job.sbatch").write_text(f"#!/bin/bash\necho {run.name} $$\nexit 75\n")
    config = load_config("stage1-vicuna7b").config
    script = render_array(SweepDir.of("s", tmp_path), config, 2, max_parallel=1)
    assert "#SBATCH --array=0-1%1" in script
    for number, run in enumerate(two):
        process = subprocess.Popen(
            ["bash", "-c", script],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(number)},
            stdout=subprocess.PIPE,
            text=True,
        )
        out, _ = process.communicate(timeout=30)
        # The same process, so that Slurm's signals and the exit code are those of the script.
        assert out.split() == [run.name, str(process.pid)]
        assert process.returncode == 75


def test_a_task_whose_run_others_can_write_is_refused(two: list[RunDir], tmp_path: Path) -> None:
    two[1].path.chmod(0o777)
    for run in two:
        (run.slurm / "job.sbatch").write_text("exit 75\n")
    script = render_array(SweepDir.of("s", tmp_path), load_config("stage1-vicuna7b").config, 2)
    codes = [
        subprocess.run(
            ["bash", "-c", script],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(number)},
            stdout=subprocess.DEVNULL,
        ).returncode
        for number in range(2)
    ]
    assert codes == [75, 70]
