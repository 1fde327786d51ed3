"""``mgpt4 train``: ``python -m mgpt4_hpc.train`` under another name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("train", short_help="Train without a scheduler, in this process.")
@click.option("--cfg-path", "config", required=True, help="Preset or YAML file.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Default: runs/NAME.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting.")
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Continue with changed settings, data, weights or versions; the ledger records it.",
)
def train_command(**options: Any) -> None:
    """Train one run in this process, or continue it if its directory exists.

    For several GPUs start it by torchrun:

    \b
    mgpt4 train --cfg-path stage2-vicuna7b --set model.weights=/data/vicuna7b-bundle
    torchrun --nproc-per-node 4 -m mgpt4_hpc.train --cfg-path stage1-vicuna7b
    """
    # Imported here: it needs torch, which `mgpt4 --help` must not wait for.
    from mgpt4_hpc.train.__main__ import command

    assert command.callback is not None
    command.callback(**options)
