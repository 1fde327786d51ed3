"""Settings as text: what it means, and what is refused."""

from __future__ import annotations

import re

import pytest

from mgpt4_hpc.config.assignments import env_layer, parse_assignments, read_assignments
from mgpt4_hpc.errors import ConfigError


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("end_symbol=###", "text.end_symbol", "###"),
        ("constraint=[a100|h100]", "launch.constraint", "[a100|h100]"),
        ("account=0042", "launch.account", "0042"),
        ("launch.sbatch.begin=16:00", "launch.sbatch.begin", "16:00"),
        ("launch.sbatch.comment=a: b # c", "launch.sbatch.comment", "a: b # c"),
        ("partition=null", "launch.partition", None),
        ("model.projector=", "model.projector", None),
        ("prompt={} said", "text.prompt", "{} said"),
        ("setup=[module load cuda]", "launch.setup", ["module load cuda"]),
        ("deterministic=false", "deterministic", False),
        ("stage=2", "stage", 2),
    ],
)
def test_a_text_is_taken_as_it_stands_and_anything_else_as_yaml(
    assignment: str, key: str, value: object
) -> None:
    assert parse_assignments([assignment]) == {key: value}


def test_the_environment_says_which_of_its_variables_are_settings() -> None:
    environ = {"MGPT4_LR": "1e-3", "MGPT4_LAUNCH__GPUS": "4", "MGPT4_RUNS_DIR": "/r", "HOME": "/h"}
    expected = {"train.lr": 1e-3, "launch.gpus": 4, "launch.runs_dir": "/r"}
    assert env_layer(environ) == (("environment", expected), [])
    (fault,) = env_layer({"MGPT4_TRAIN__LRR": "1"})[1]
    assert re.match(r"MGPT4_TRAIN__LRR: unknown .* did you mean train.lr\?", fault)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("train.max_step", "did you mean train.max_steps?"),
        ("launch.lr", "did you mean train.lr?"),
        ("data.path.laion", "did you mean data.paths.laion?"),
        ("launch.sbach.reservation", "did you mean launch.sbatch.reservation?"),
        ("train.wandb", "docs/curves.md"),
    ],
)
def test_what_a_wrong_key_probably_meant(key: str, told: str) -> None:
    assert told in read_assignments([f"{key}=1"])[1][0]


@pytest.mark.parametrize("key", ["train.betamax", "train.model", "launch.xyz", "wanderer"])
def test_nothing_is_suggested_that_is_not_near(key: str) -> None:
    assert "did you mean" not in read_assignments([f"{key}=1"])[1][0]


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("lr", "write key=value"),
        ("lrr=1", r"unknown setting 'lrr'; did you mean train.lr\?"),
        ("train.learning_rate=1", "unknown setting"),
        ("=1", "unknown setting"),
    ],
)
def test_assignments_that_mean_nothing(assignment: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_assignments([assignment, "seed=1"])
