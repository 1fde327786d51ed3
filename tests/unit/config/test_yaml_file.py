"""YAML 1.2's scalars, and what no input may do: hang, grow, or end in anything but our error."""

from __future__ import annotations

import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt4_hpc.config.assignments import parse_assignments
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import read_config, write_config
from mgpt4_hpc.config.yaml_file import parse_yaml, read_yaml
from mgpt4_hpc.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0), ("1e-4", 1e-4), ("1.", 1.0), (".5", 0.5), ("+3", 3), ("-5", -5),
        ("0100", 100), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("on", "on"), ("off", "off"), ("n", "n"), ("0x10", "0x10"),
        ("0o17", "0o17"), ("0b1", "0b1"), ("1_000", "1_000"), ("12:30:00", "12:30:00"),
        ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("nan", "nan"), ("=", "="),
        ("1.5.3", "1.5.3"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert found == value and type(found) is type(value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "assignment",
    [
        *(
            f"{key}={value}"
            for key in ("train.lr", "train.max_steps", "data.stage_gib", "text.max_words", "seed")
            for value in (
                "yes", "true", "on", "1e400", "-1e400", ".inf", "-.inf", ".nan", "nan", "inf",
                "0x10", "'0x10'", "'1e400'", "'nan'", "0o17", "0b11", "1_000", "12:30:00",
                "2026-01-01", "-1", "9" * 5000, "[1]", "\u0661\u0662",
            )
        ),
        "train.lr=16", "train.max_steps=0", "train.max_steps=1e30", "train.max_steps=3000000000",
        "train.max_steps=1.5", "seed=99999999999999999999", "train.weight_decay=2", "train.eps=0",
        "train.save_every_s=1e300", "launch.time_min=yes", "data.sources=[{name: a, weight: yes}]",
        "train.warmup_start_lr=1e400", "data.val_fraction=.nan", "train.lr=!!float yes",
        "train.lr=" + "[" * 5000, "data.sources=" + "[" * 5000, "model.compile=2",
    ],
)  # fmt: skip
def test_what_is_no_number_or_makes_no_sense_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("stage1-vicuna7b", overrides=parse_assignments([assignment]))
    key = assignment.partition("=")[0]
    assert any(fault.startswith(key) for fault in error.value.faults)
    assert len(str(error.value)) < 3000


def test_numbers_mean_the_same_from_a_flag_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "stage: 1\ndata: {sources: [{name: a}]}\n"
        "train: {lr: 1e-4, max_steps: 0100, global_batch_size: 8, micro_batch_size: 1e0}\n"
    )
    from_file = load_config(file).config.train
    assert (from_file.lr, from_file.max_steps, from_file.micro_batch_size) == (1e-4, 100, 1)
    environ = {"MGPT4_TRAIN__MAX_STEPS": "0200", "MGPT4_TRAIN__LR": "2e-4"}
    from_environ = load_config(file, environ=environ).config.train
    assert (from_environ.lr, from_environ.max_steps) == (2e-4, 200)
    flags = parse_assignments(["max_steps=0300", "read_once_per_node=yes", "deterministic=off"])
    config = load_config(file, overrides=flags).config
    assert config.train.max_steps == 300
    assert config.model.read_once_per_node == "yes" and not config.deterministic


@pytest.mark.parametrize(
    "text", ["yes", "1e3", "0o17", "0x10", "1_000", "12:30", "null", "~", "0100"]
)
def test_a_text_that_looks_like_something_else_comes_back_from_a_runs_file(
    tmp_path: Path, text: str
) -> None:
    resolved = load_config("stage1-vicuna7b", overrides={"launch.account": text})
    write_config(tmp_path / "config.yaml", resolved)
    assert read_config(tmp_path / "config.yaml").config == resolved.config
    old = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert old["launch"]["account"] == text, "also for the version that made an older run"


LETTERS = "abcdefghijklmnop"
BOMBS = {
    "aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + below] * 9)}]\n"
        for below, name in pairwise(LETTERS)
    ),
    "merges": "a: &a {x: 1, y: 2}\n" + "".join(
        f"{name}: &{name}\n  <<: [{', '.join(['*' + below] * 9)}]\n"
        for below, name in pairwise(LETTERS)
    ),
    "itself": "train: &a {lr: *a}\n",
    "depth": "train: " + "[" * 20_000,
    "mappings": "".join(f"{' ' * n}a:\n" for n in range(2000)),
    "size": "#" * (2 << 20),
    "binary": "\0\1\2",
    "tag": "train: !!python/object/apply:os.system [true]\n",
    "keys": "? [a]\n: 1\n",
    "text": "just text\n",
    "documents": "a: 1\n---\nb: 2\n",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_no_file_hangs_grows_or_ends_in_another_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError):
        load_config(file)
    assert time.process_time() - began < 5


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("[]{}&*!<>:-?|'\"%@`,.#~0123456789eEinfa \n\tx")))
def test_any_text_is_a_value_or_a_yaml_error(text: str) -> None:
    try:
        found: Any = parse_yaml(text)
    except yaml.YAMLError:
        return
    assert not isinstance(found, float) or text.strip() or math.isnan(found)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\xef\xbb\xbfstage: 1\n")
    assert read_yaml(file) == {"stage": 1}
