"""``mgpt4 version``: what is installed here, for a bug report."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from mgpt4_hpc import __version__
from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import json_option
from mgpt4_hpc.errors import MgptError

_PACKAGES = ("torch", "torchvision", "transformers", "timm", "submitit", "tensorboard")


@click.command("version", short_help="Versions of all that matters here.")
@json_option
def version_command(as_json: bool) -> None:
    """Versions of this package, Python, the libraries, CUDA and Slurm.

    Read from the installed packages' own records, without importing them. CUDA is the one that
    torch was built for; the driver of a compute node may be older.

    \b
    mgpt4 version --json
    """
    from mgpt4_hpc.launch.site_check.doctor_machine import torch_build

    build = torch_build()
    versions: dict[str, str | None] = {
        "mgpt4-hpc": __version__,
        "path": str(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "executable": sys.executable,
        **{name: _version(name) for name in _PACKAGES},
        "cuda": build[1] if build else None,
        "slurm": slurm_version(),
    }
    if as_json:
        echo_json(versions)
        return
    width = max(map(len, versions))
    for name, value in versions.items():
        click.echo(f"{name:<{width}}  {value or '-'}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def slurm_version() -> str | None:
    """As ``sbatch --version`` says it; None where Slurm is not installed."""
    from mgpt4_hpc.launch.slurm import commands

    try:
        return commands.version() or None
    except MgptError:
        return None
