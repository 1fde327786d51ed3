"""Which site profile holds here: the one named, or the one that is named like the cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt4_hpc.config.sites import find_site, list_sites, read_site
from mgpt4_hpc.errors import ConfigError, MgptError
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.resources import configs_dir
from mgpt4_hpc.text_files import text_of

if TYPE_CHECKING:
    from mgpt4_hpc.config.load import Resolved

SITE_VARIABLE = "MGPT4_SITE"

_CONF_FILES = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")
"""Where distributions and configless Slurm put it, unless SLURM_CONF says where."""
_CLUSTER_NAME = re.compile(r"^\s*ClusterName\s*=\s*(\S+)", re.IGNORECASE | re.MULTILINE)
_ASK_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Site:
    """A profile, and why it was chosen.

    Attributes:
        path: its file.
        why: "flag", "MGPT4_SITE" or "the cluster's name".
    """

    path: Path
    why: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def runs_dir(self) -> Path | None:
        """Folder of run directories that it names. Raises ConfigError if it cannot be read."""
        wanted = read_site(self.path).get("launch.runs_dir")
        if wanted is not None and not isinstance(wanted, str):
            raise ConfigError(f"{self.path}: launch.runs_dir is {wanted!r}, no path")
        return Path(wanted) if wanted else None


def choose_site(given: str | None, environ: Mapping[str, str] = os.environ) -> Site | None:
    """The profile of a flag, of MGPT4_SITE, or of the cluster's name; None if there is none.

    Raises:
        ConfigError: if the one that was named does not exist.
    """
    for name, why in ((given, "flag"), (environ.get(SITE_VARIABLE), SITE_VARIABLE)):
        if name:
            return Site(find_site(name, environ), why)
    # Those that are shipped are examples to copy; no cluster is called so.
    own = {
        name: path
        for name, path in list_sites(environ).items()
        if path.parent != configs_dir() / "sites"
    }
    if not own:
        return None
    path = own.get(cluster_name(environ))
    return Site(path, "the cluster's name") if path is not None else None


def cluster_name(environ: Mapping[str, str] = os.environ) -> str:
    """Slurm's name of this cluster; empty where there is none or it does not answer."""
    if environ.get("SLURM_CLUSTER_NAME"):
        return environ["SLURM_CLUSTER_NAME"]
    given = environ.get("SLURM_CONF")
    for file in [given] if given else _CONF_FILES:
        if match := _CLUSTER_NAME.search(text_of(Path(file)) or ""):
            return match[1].lower()
    if not commands.has_scontrol(environ):
        return ""
    try:
        config = commands.show_config(timeout_s=_ASK_TIMEOUT_S)
    except MgptError:
        return ""
    match = _CLUSTER_NAME.search(config)
    return match[1].lower() if match else ""


def load_here(
    what: str, overrides: Mapping[str, Any], faults: Sequence[str], site: Site | None
) -> Resolved:
    """As ``load_config``, with this process's environment and a site profile."""
    from mgpt4_hpc.config.load import load_config
    from mgpt4_hpc.data.sources.epochs import steps_of_epochs

    path = site.path if site is not None else None
    return load_config(
        what,
        overrides=overrides,
        faults=faults,
        site=path,
        environ=os.environ,
        convert_epochs=steps_of_epochs,
    )
