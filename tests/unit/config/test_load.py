"""Settings from files, environment and flags: who wins, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mgpt4_hpc.config.assignments import parse_assignments, read_assignments
from mgpt4_hpc.config.load import (
    config_digest,
    keep_schedule,
    load_config,
    settings_digest,
)
from mgpt4_hpc.config.yaml_file import read_yaml
from mgpt4_hpc.errors import ConfigError
from tests.unit.config.minimal import MINIMAL, faults_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


# -- precedence --------------------------------------------------------------------------------


def test_flag_above_environment_above_site_above_file_above_default(
    file: Path, tmp_path: Path
) -> None:
    site = tmp_path / "nersc.yaml"
    assert load_config(file).config.train.log_every_steps == 10
    file.write_text(yaml.safe_dump({**MINIMAL, "train": MINIMAL["train"] | {"log_every_steps": 1}}))
    site.write_text("train: {log_every_steps: 2}\n")
    environ = {"MGPT4_TRAIN__LOG_EVERY_STEPS": "3"}
    overrides = {"train.log_every_steps": 4}
    layers = [
        ("file mine.yaml", {}),
        ("site nersc", {"site": site}),
        ("environment", {"site": site, "environ": environ}),
        ("flag", {"site": site, "environ": environ, "overrides": overrides}),
    ]
    for expected, (origin, kwargs) in enumerate(layers, start=1):
        resolved = load_config(file, **kwargs)
        assert resolved.config.train.log_every_steps == expected
        assert resolved.origin("train.log_every_steps") == origin
        assert resolved.origin("train.lr") == "file mine.yaml"
        assert resolved.origin("train.beta1") == "default"


def test_mappings_are_laid_over_one_another_entry_by_entry(file: Path, tmp_path: Path) -> None:
    file.write_text(
        yaml.safe_dump({**MINIMAL, "launch": {"sbatch": {"comment": "a", "nice": "1"}}})
    )
    site = tmp_path / "s.yaml"
    site.write_text("launch: {sbatch: {nice: '2', reservation: r}}\n")
    overrides = {"launch.sbatch.reservation": "mine"}
    resolved = load_config(file, site=site, overrides=overrides)
    assert resolved.config.launch.sbatch == {"comment": "a", "nice": "2", "reservation": "mine"}
    assert resolved.origin("launch.sbatch") == "file mine.yaml, flag, site s"


def test_an_empty_mapping_clears_what_was_set_below_it(file: Path) -> None:
    below = {"sbatch": {"comment": "a", "begin": "now+1"}, "env": {"A": "1"}}
    file.write_text(yaml.safe_dump({**MINIMAL, "launch": below}))
    overrides = {"launch.sbatch": {}, "launch.sbatch.comment": "b", "launch.env": {}}
    resolved = load_config(file, overrides=overrides)
    launch = resolved.config.launch
    assert (launch.sbatch, launch.env) == ({"comment": "b"}, {})
    assert resolved.origin("launch.env") == resolved.origin("launch.sbatch") == "flag"
    with pytest.raises(ConfigError, match=r"launch\.sbatch: .* got 5 \(from flag\)"):
        load_config(file, overrides={"launch.sbatch": 5})


def test_an_empty_section_changes_nothing(file: Path) -> None:
    file.write_text(file.read_text() + "launch:\n#  gpus: 4\n")
    assert load_config(file).config.launch.gpus == 1


def test_paths_are_absolute_for_the_job_elsewhere(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(file, overrides={"model.projector": "p.pth"}).config
    assert config.model.projector == str(tmp_path / "p.pth")


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "'1e-4'"])
def test_a_float_is_one_however_yaml_1_1_reads_it(file: Path, text: str) -> None:
    file.write_text(file.read_text().replace("lr: 0.01", f"lr: {text}"))
    assert load_config(file).config.train.lr == 1e-4
    assert load_config(file, overrides=parse_assignments([f"lr={text}"])).config.train.lr == 1e-4


def test_a_variable_that_replaces_what_the_file_has_is_noted(file: Path) -> None:
    environ = {"MGPT4_LR": "0.5", "MGPT4_LAUNCH__GPUS": "1"}
    (note,) = load_config(file, environ=environ).notes
    assert re.match(r"train.lr is 0.5 as the environment has it .*, and not \S+ as in file", note)
    assert load_config(file, environ=environ, overrides={"train.lr": 0.1}).notes == ()


# -- faults ------------------------------------------------------------------------------------


def test_every_fault_is_told_at_once_with_its_author(file: Path) -> None:
    environ = {"MGPT4_TRAIN__EPS": "-1"}
    overrides = {"train.lr": "fast", "launch.nodes": 3, "launch.gpus": 4, "train.beta1": 2}
    faults = faults_of(file, environ=environ, overrides={**overrides, "train.lrr": 1})
    told = "\n".join(faults)
    assert "train.lrr: unknown setting; did you mean train.lr? (from flag)" in faults
    assert "train.lr: input should be a valid number" in told and "'fast' (from flag)" in told
    assert "train.eps: input should be greater than 0, got -1 (from environment)" in faults
    assert "train.beta1: input should be less than 1, got 2 (from flag)" in faults
    assert "launch.gpus 4 do not spread evenly over launch.nodes 3" in faults
    assert len(faults) == 5


def test_what_stands_on_a_wrong_value_is_not_told(file: Path) -> None:
    # With launch.gpus unreadable nobody knows whether it fits the nodes.
    faults = faults_of(file, overrides={"launch.gpus": "four", "launch.nodes": 2})
    assert len(faults) == 1 and faults[0].startswith("launch.gpus: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  lr: 1\n  lr: 2\n", "'lr' is given twice"),
        ("a: 1\na: 2\n", "'a' is given twice"),
        ("train: [1\n", "line 2"),
        ("? [a, b]\n: 1\n", "unhashable"),
        ("- 1\n", "holds no settings"),
        ("", "holds no settings"),
        ("a: !!python/object:os.system x\n", "could not determine a constructor"),
    ],
)
def test_what_is_no_settings_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_yaml(path)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content, place in ((b"name: \xff\xfe\n", 6), (b"\x7fELF\x01\0\0", 0), (b"PK\x03\x04", 2)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=f"no valid YAML: byte {place} is no text") as told:
            read_yaml(path)
        assert "codec" not in str(told.value)


def test_yaml_anchors_may_be_merged_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("base: &b {lr: 1, eps: 2}\ntrain:\n  <<: *b\n  lr: 3\n")
    assert read_yaml(path)["train"] == {"lr": 3, "eps": 2}


def test_an_unknown_preset_or_site_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="toy-stage1"):
        load_config("toy-stage9")
    with pytest.raises(ConfigError, match="no site profile 'mars'"):
        load_config("toy-stage1", site="mars")


def test_the_digest_covers_what_decides_the_result_and_nothing_else(file: Path) -> None:
    base = config_digest(load_config(file).config)
    for same in (
        {"name": "other"},
        {"launch.gpus": 4},
        {"launch.account": "x"},
        {"model.shard_llm": True, "launch.gpus": 2},
        {"model.read_once_per_node": "no"},
    ):
        assert config_digest(load_config(file, overrides=same).config) == base
    for other in (
        {"seed": 1},
        {"train.lr": 0.02},
        {"data.granularity": 2},
        {"stage": 2},
        {"text.max_tokens": 1024},
    ):
        assert config_digest(load_config(file, overrides=other).config) != base


@pytest.mark.parametrize(
    ("preset", "digest"),
    [
        ("stage1-vicuna7b", "e2a3ca7602475a42c52c6585df99fc05"),
        ("stage2-llama2-7b", "2b5ed2e7e943e4422041b9b29c7aca30"),
    ],
)
def test_a_setting_that_is_new_changes_no_digest_that_runs_are_pinned_to(
    preset: str, digest: str
) -> None:
    assert load_config(preset).digest == digest, "add the setting to _NEWER"


def test_a_run_is_held_to_what_its_steps_do_and_not_to_paths_or_their_number(file: Path) -> None:
    base = load_config(file)
    held = settings_digest(base.config)
    for same in (
        {"model.weights": "/elsewhere"},
        {"model.projector": "/elsewhere.pth"},
        {"data.paths.laion": "/elsewhere"},
        {"train.max_steps": 40, "train.lr_steps": base.config.train.max_steps},
        {"data.shares.laion": base.config.data.sources[0].weight},
    ):
        assert settings_digest(load_config(file, overrides=same).config) == held, same
    for other in (
        {"train.max_steps": 40},
        {"train.lr_steps": 9},
        {"train.lr": 0.02},
        {"seed": 1},
        {"data.shares.laion": 5},
    ):
        assert settings_digest(load_config(file, overrides=other).config) != held, other


def test_shares_stand_above_the_sources_own_weights(file: Path) -> None:
    overrides, faults = read_assignments(["data.shares.laion=5"])
    assert faults == []
    assert load_config(file, overrides=overrides).config.data.sources[0].weight == 5
    for wrong, told in (("nobody=1", "no data source 'nobody'"), ("laion=0", "greater than 0")):
        overrides, _ = read_assignments([f"data.shares.{wrong}"])
        with pytest.raises(ConfigError, match=told):
            load_config(file, overrides=overrides)


def test_a_longer_run_keeps_the_length_of_its_cosine(file: Path) -> None:
    old = load_config(file).config
    longer = keep_schedule(old, load_config(file, overrides={"train.max_steps": 99}), "resume")
    assert longer.config.train.lr_steps == old.train.max_steps
    assert longer.origin("train.lr_steps") == "resume"
    asked = load_config(file, overrides={"train.max_steps": 99, "train.lr_steps": 50})
    assert keep_schedule(old, asked, "resume").config.train.lr_steps == 50
