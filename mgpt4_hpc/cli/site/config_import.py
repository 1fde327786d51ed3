"""``mgpt4 config import``: the original's train_configs as our settings."""

from __future__ import annotations

from pathlib import Path

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import json_option


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--gpus", type=click.IntRange(min=1), help="Default: as published, 4 and 1.")
@json_option
def import_command(file: Path, gpus: int | None, as_json: bool) -> None:
    """Turn a configuration of the original MiniGPT-4 into ours, key by key.

    What has no counterpart is named in comments at the end. The original's file can also be
    given as it is: --config FILE.

    \b
    mgpt4 config import train_configs/minigpt4_stage1_pretrain.yaml > mine.yaml
    """
    from mgpt4_hpc.config.load import merge
    from mgpt4_hpc.config.original import as_yaml, import_original, is_original
    from mgpt4_hpc.config.yaml_file import read_yaml
    from mgpt4_hpc.errors import ConfigError

    nested = read_yaml(file)
    if not is_original(nested):
        raise ConfigError(
            f"{file} is none of the original MiniGPT-4, which have `run` and `model.arch`",
            fix=f"if it is one of ours, use it as it is: --config {file}",
        )
    imported = import_original(nested, file, gpus=gpus)
    merge([(f"file {file.name}", imported.settings)])  # what is printed must be valid here
    if as_json:
        settings = {
            key: {"value": value, "from": imported.origins[key]}
            for key, value in imported.settings.items()
        }
        echo_json({"settings": settings, "left_out": imported.left_out})
        return
    click.echo(as_yaml(imported, file.name), nl=False)
