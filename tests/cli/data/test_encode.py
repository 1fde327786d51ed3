"""Tests of ``cli/data/encode.py``."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@pytest.mark.slow
def test_encode_takes_a_run_by_its_name_and_a_sites_paths(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_trained_run(world, tmp_path / "runs" / "two")
    told = mgpt4("data", "encode", "two", "--out", "features", "--dry-run", "--json")
    assert told.code == 0, told.err
    assert told.json["num_missing"] == told.json["num_needed"] > 0
    ended = mgpt4("data", "encode", "two", "--out", "f", "--set", "seed=3")
    assert ended.code == 2 and "settings are fixed" in ended.err
    site = tmp_path / "here.yaml"
    site.write_text(f"model: {{weights: {world.weights}}}\n"
                    f"data: {{paths: {{cc_sbu_align: {world.align}}}}}\n")  # fmt: skip
    monkeypatch.setenv("MGPT4_SITE", str(site))
    preset = mgpt4("data", "encode", "stage2-vicuna7b", "--out", "g", "--dry-run", "--json")
    assert preset.code == 0, preset.err


def test_encode_says_how_much_before_it_writes(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = world.write_config(tmp_path / "run.yaml", 1, data__num_workers=0)
    planned = mgpt4("data", "encode", config, "--out", "features", "--dry-run", "--json")
    assert "bf16 = 27 KiB in" in planned.err
    assert planned.json["num_encoded"] == 0 < planned.json["num_missing"]
    made = mgpt4("data", "encode", config, "--out", "features", "--json")
    assert made.json["num_missing"] == 0
    assert made.json["num_encoded"] == planned.json["num_needed"]
    again = mgpt4("data", "encode", config, "--out", "features")
    assert "0 are to be encoded" in again.err and ", 0 missing" in again.out
    from mgpt4_hpc.train.inputs import feature_encoding

    monkeypatch.setattr(feature_encoding.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    full = mgpt4("data", "encode", config, "--out", "elsewhere")
    assert full.code == 1 and "0 B are free" in full.err
    monkeypatch.undo()


def test_encode_asks_before_it_writes_much(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgpt4_hpc.cli.data.encode._ASK_FROM_BYTES", 1)
    config = world.write_config(tmp_path / "run.yaml", 1, data__num_workers=0)
    ended = mgpt4("data", "encode", config, "--out", "features")
    assert ended.code == 2 and "--yes" in ended.err
    assert not list(Path("features").glob("*.safetensors"))
