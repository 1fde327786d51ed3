"""``mgpt4 config import``."""

from __future__ import annotations

from pathlib import Path

import yaml
from click.testing import CliRunner

from mgpt4_hpc.cli.site.config_import import import_command
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.original import is_original
from mgpt4_hpc.errors import ConfigError
from tests.unit.config.published import STAGE1


def write(path: Path, values: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def test_the_command_prints_a_file_of_ours(tmp_path: Path) -> None:
    path = write(tmp_path / "theirs.yaml", STAGE1)
    result = CliRunner().invoke(import_command, [str(path)])
    assert result.exit_code == 0, result.output
    assert "  lr: 0.0001  # run.init_lr\n" in result.stdout
    assert "#   run.wandb_log: curves go to TensorBoard" in result.stdout
    ours = tmp_path / "ours.yaml"
    ours.write_text(result.stdout)
    assert not is_original(yaml.safe_load(result.stdout))
    assert load_config(ours).config == load_config(path).config
    result = CliRunner().invoke(import_command, [str(path), "--json"])
    assert yaml.safe_load(result.stdout)["settings"]["train.lr"] == {
        "value": 1e-4,
        "from": "run.init_lr",
    }


def test_one_of_ours_is_not_imported(tmp_path: Path) -> None:
    path = write(tmp_path / "ours.yaml", {"stage": 1})
    result = CliRunner().invoke(import_command, [str(path)])
    assert isinstance(result.exception, ConfigError)
