"""img2dataset's own environment: it pins an older webdataset than training needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from mgpt4_hpc.errors import DataError
from mgpt4_hpc.output_files import lock

VERSION = "1.47.0"
"""The driver replaces parts of img2dataset, so this is the version that it was written for."""

ENV_VARIABLE = "MGPT4_IMG2DATASET_ENV"
_ASK = "import importlib.metadata as m; print(m.version('img2dataset'))"
_QUIET = {
    "WANDB_MODE": "disabled",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it asks PyPI for a newer one at each import
    "PYTHONSAFEPATH": "1",  # the driver's neighbours are modules of ours
    "PYTHONNOUSERSITE": "1",
}


def default_environment(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the environment is kept, on a file system that all nodes see in most clusters."""
    if environ.get(ENV_VARIABLE):
        return Path(environ[ENV_VARIABLE]).expanduser().absolute()
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "mgpt4" / f"img2dataset-{VERSION}"


def ensure_environment(folder: Path, *, say: Callable[[str], None] = lambda text: None) -> Path:
    """The Python of an environment with img2dataset, made where there is none.

    Args:
        folder: a virtual environment; one that has img2dataset is used as it is.
        say: called before the installation, which takes a minute.

    Raises:
        DataError: if it cannot be made, or is there with another version; with the commands to
            make it by hand.
    """
    python = folder / "bin" / "python"
    found = _installed(python)
    if found is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with folder.with_name(folder.name + ".lock").open("w") as file:
                lock(file, wait=True)  # tasks that start together wait for the one that installs
                found = _installed(python)
                if found is None:
                    say(f"installing img2dataset {VERSION} into {folder}")
                    _install(folder)
                    found = _installed(python)
        except OSError as error:
            raise _cannot_make(folder, error.strerror or str(error)) from error
    if found != VERSION:
        raise DataError(
            f"{folder} has img2dataset {found or '(none)'}, needed is {VERSION}",
            fix=f"{python} -m pip install img2dataset=={VERSION}, or give another --env",
        )
    return python


def driver_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Variables for programs of that environment: none of ours, and no telemetry."""
    kept = {key: value for key, value in environ.items() if not key.startswith("PYTHON")}
    return {**kept, **_QUIET}


def _installed(python: Path) -> str | None:
    """Version of img2dataset there; None if there is none."""
    try:
        asked = subprocess.run(
            [str(python), "-c", _ASK],
            capture_output=True,
            text=True,
            check=False,
            env=driver_environment(),
        )
    except OSError:
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def _install(folder: Path) -> None:
    existing = folder.exists() and any(folder.iterdir())
    if existing and not (folder / "pyvenv.cfg").is_file():
        raise DataError(f"{folder} is no virtual environment", fix="give another --env")
    if existing:  # its installation was killed
        shutil.rmtree(folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--disable-pip-version-check", f"img2dataset=={VERSION}"],
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=driver_environment()
        )
        if done.returncode != 0:
            told = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise _cannot_make(folder, "; ".join(told[-3:]))


def _cannot_make(folder: Path, why: str) -> DataError:
    return DataError(
        f"img2dataset's environment {folder} cannot be made: {why}",
        why="it needs the network, and Python's venv and pip",
        fix="make it where there is a network and give it as --env: "
        f"python3 -m venv DIR && DIR/bin/pip install img2dataset=={VERSION}",
    )
