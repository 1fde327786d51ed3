"""Where the files lie that travel with the package: presets, sbatch templates, the toy world.

In a checkout they stand at the top level, where people look for them; in a wheel they are
inside the package.
"""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent

TOY_PREFIX = "toy:"
"""A path that starts so means a place inside the shipped toy world: ``toy:weights``."""


def _travelling(name: str) -> Path:
    packaged = _PACKAGE / f"_{name}"
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def configs_dir() -> Path:
    """Folder of the presets."""
    return _travelling("configs")


def slurm_dir() -> Path:
    """Folder of the sbatch templates."""
    return _travelling("slurm")


def toy_world_dir() -> Path:
    """Folder of the toy world: weights, shards and held-out scenes."""
    return _PACKAGE / "toy_world"


def preset_names() -> list[str]:
    """Names of the presets that ``--config`` takes."""
    return sorted(path.stem for path in configs_dir().glob("*.yaml"))


def expand_toy(text: str) -> str:
    """``toy:shards`` as the place it stands for; anything else as it is.

    Raises:
        ConfigError: if a ``toy:`` path is not in the toy world.
    """
    if not text.startswith(TOY_PREFIX):
        return text
    root = toy_world_dir()
    path = root / text.removeprefix(TOY_PREFIX)
    if not path.exists():
        inside = ", ".join(sorted(f"{TOY_PREFIX}{p.name}" for p in root.glob("*")))
        raise ConfigError(f"{text!r} is not in the toy world", fix=f"use one of: {inside}")
    return str(path)


def resolve_path(text: str) -> str:
    """Absolute form of a path setting; ``toy:`` and ``~`` are expanded.

    Raises:
        ConfigError: if a ``toy:`` path is not in the toy world.
    """
    if text.startswith(TOY_PREFIX):
        return expand_toy(text)
    # Not resolve(): shared storage is often reached through a link that must stay as written.
    return str(Path(text).expanduser().absolute())
