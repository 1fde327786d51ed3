"""``config``: every setting described, and what is shown can be used again."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import read_config, write_config
from mgpt4_hpc.resources import configs_dir, preset_names
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import make_run
from tests.support.tiny_world import TinyWorld


@pytest.fixture
def tiny(world: TinyWorld, tmp_path: Path) -> Path:
    return world.write_config(tmp_path / "tiny.yaml", 1)


def test_keys_describe_every_setting(mgpt4: Mgpt4) -> None:
    rows = {row["key"]: row for row in mgpt4("config", "keys", "--json").json}
    assert keys.fields().keys() <= rows.keys()
    for key, row in rows.items():
        assert row["doc"], key
        assert row["type"], key
    assert rows["train.lr"] == {
        "key": "train.lr",
        "type": "number > 0 and <= 1",
        "default": None,
        "required": True,
        "doc": "Peak learning rate.",
    }
    assert rows["model.precision"]["type"] == "auto | bf16 | fp16 | fp32"
    assert rows["data.sources[].weight"]["default"] == 1
    assert "train.lr" in mgpt4("config", "keys").out


def test_the_schema_takes_what_is_shipped_and_names_a_fault(mgpt4: Mgpt4) -> None:
    schema = mgpt4("config", "schema").json
    validator = jsonschema.Draft202012Validator(schema)
    files = [*configs_dir().glob("*.yaml"), *configs_dir().glob("sites/*.yaml")]
    for path in files:
        assert not [*validator.iter_errors(yaml.safe_load(path.read_text()))], path
        (pointer,) = re.findall(r"^# yaml-language-server: \$schema=(.*)$", path.read_text(), re.M)
        assert json.loads((path.parent / pointer).read_text()) == schema, "run `make docs`"
    for wrong in ({"train": {"lrr": 1}}, {"train": {"lr": "high"}}, {"stage": 4}):
        assert [*validator.iter_errors(wrong)], wrong
    assert schema["$defs"]["TrainConfig"]["properties"]["lr"]["description"]


def test_presets(mgpt4: Mgpt4) -> None:
    rows = mgpt4("config", "presets", "--json").json
    assert [row["name"] for row in rows] == preset_names()
    for row in rows:
        assert row["about"].startswith("Stage ") and row["about"].endswith("."), row
    assert mgpt4("config", "presets").code == 0


def test_show_can_be_used_as_a_config(mgpt4: Mgpt4, tiny: Path, tmp_path: Path) -> None:
    ended = mgpt4("config", "show", tiny, "--set", "lr=0.25")
    assert ended.code == 0
    again = tmp_path / "again.yaml"
    again.write_text(ended.out)
    assert load_config(again).config == load_config(tiny, overrides={"train.lr": 0.25}).config
    assert (
        yaml.safe_load(ended.out)
        == mgpt4("config", "show", tiny, "--set", "lr=0.25", "--json").json
    )


def test_explain_names_who_set_it(
    mgpt4: Mgpt4, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPT4_SEED", "7")
    rows = mgpt4("config", "explain", tiny, "--set", "lr=0.25", "--json").json
    told = {row["key"]: (row["value"], row["origin"]) for row in rows}
    assert told["train.lr"] == (0.25, "flag")
    assert told["seed"] == (7, "environment")
    assert told["train.max_steps"] == (12, "file tiny.yaml")
    assert told["train.beta1"] == (0.9, "default")
    shown = mgpt4("config", "explain", tiny).out
    assert "environment" in shown and '["TERM", "USR2", "USR1"]' in shown, (
        "a list as --set takes it"
    )


@pytest.mark.parametrize(
    ("wanted", "told"),
    [("trian", "did you mean the section train?"), ("launhc.partition", "launch.partition?")],
)
def test_explain_knows_what_was_meant(mgpt4: Mgpt4, tiny: Path, wanted: str, told: str) -> None:
    ended = mgpt4("config", "explain", tiny, wanted)
    assert ended.code == 2 and told in ended.err


def test_explain_a_run(mgpt4: Mgpt4, tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "one", launch__sbatch={"nice": "5"})
    rows = mgpt4("config", "explain", "one", "--json").json
    told = {row["key"]: row["origin"] for row in rows}
    assert told["train.lr"] == "file made.yaml"
    assert told["launch.gpus"] == "default"
    assert mgpt4("config", "show", "one", "--json").json["launch"]["sbatch"] == {"nice": "5"}
    assert mgpt4("config", "show", "one", "--set", "lr=1").code == 2


def test_neither_preset_nor_file_nor_run(mgpt4: Mgpt4) -> None:
    ended = mgpt4("config", "show", "nothing")
    assert ended.code == 2
    assert "no config file or preset 'nothing'" in ended.err


def test_stored_and_read_again(tmp_path: Path) -> None:
    """Whatever a user may write in a setting comes back, with who set it."""
    odd = 'it\'s # a: [folder] "x" {y}, ünï\tcode $(z)'
    run = make_run(
        tmp_path,
        "one",
        model__weights=f"/{odd}",
        text__instructions=(odd, "no: yes", "- x", ""),
        launch__setup=("module load cuda  # 12",),
        launch__sbatch={"comment": "a # b"},
    )
    stored = read_config(run.config_file)
    again = tmp_path / "again.yaml"
    write_config(again, stored)
    assert read_config(again) == stored
    assert stored.config.text.instructions == (odd, "no: yes", "- x", "")
    assert stored.origins["text.instructions"] == "file made.yaml"
    assert "train.beta1" not in stored.origins
