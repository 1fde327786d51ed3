"""Site profiles: what a cluster's users would otherwise write on every command line.

A profile is a YAML file of settings like any other, laid above the config file and below the
environment (docs/sites.md). Its name is its file's; the first folder that has it wins::

    $MGPT4_SITES_DIR           of a group, or for a try
    ~/.config/mgpt4/sites      of a user
    /etc/mgpt4/sites           of the cluster, put there by its support
    configs/sites              shipped: examples to copy
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.yaml_file import read_yaml
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.identity import user_name
from mgpt4_hpc.resources import configs_dir

SITES_VARIABLE = "MGPT4_SITES_DIR"
SYSTEM_FOLDER = Path("/etc/mgpt4/sites")

_PATHS = (
    "model.weights",
    "data.paths",
    "launch.runs_dir",
    "launch.on_event",
    "container.image",
    "container.mounts",
)
"""Settings in which a profile may write ``$USER``: each of its users has a folder of his own."""


def site_folders(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Where profiles are looked for, the first wins."""
    given = [Path(environ[SITES_VARIABLE])] if environ.get(SITES_VARIABLE) else []
    own = Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/"), ".config"))
    return [*given, own / "mgpt4" / "sites", SYSTEM_FOLDER, configs_dir() / "sites"]


def list_sites(environ: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """Every profile by name."""
    files: dict[str, Path] = {}
    for folder in site_folders(environ):
        for path in sorted(folder.glob("*.yaml")):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def find_site(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """File of a profile, given its name or a path.

    Raises:
        ConfigError: if there is neither; it lists the profiles.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = list_sites(environ)
    if name in known:
        return known[name]
    listed = f"one of: {', '.join(known)}" if known else "write one (docs/sites.md)"
    raise ConfigError(f"no site profile {name!r}", fix=f"give a YAML file, or {listed}")


def read_site(path: Path, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Flat settings of a profile, with ``$USER`` and the like in its paths replaced.

    Raises:
        ConfigError: if it is no YAML, or names a variable that is not set.
    """
    flat = keys.flatten(read_yaml(path))
    environ = {"USER": user_name(), **environ}
    faults: list[str] = []
    for key in _PATHS:
        if key in flat:
            flat[key] = _expand(key, flat[key], environ, faults)
    if faults:
        raise ConfigError(f"cannot use the site profile {path}", faults=faults)
    return flat


def _expand(key: str, value: Any, environ: Mapping[str, str], faults: list[str]) -> Any:
    from string import Template

    if isinstance(value, Mapping):
        return {k: _expand(f"{key}.{k}", v, environ, faults) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(key, item, environ, faults) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    try:
        return Template(value).substitute(environ)
    except (KeyError, ValueError) as error:
        unset = f"the variable {error} is not set" if isinstance(error, KeyError) else str(error)
        faults.append(f"{key} {value!r}: {unset} ($$ is a plain $)")
        return value
