"""Debian's packages of Slurm and what it needs."""

import os
import shutil
import subprocess
import sys

from devcluster_lib.errors import DevclusterError

PACKAGES = ("slurm-wlm", "slurmctld", "slurmd", "slurm-client", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "munged")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db", "mariadb-admin")
# Daemons live in /usr/sbin, which is not in every user's PATH.
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def missing_programs(accounting: bool = True) -> list[str]:
    """The programs a cluster needs and this machine lacks."""
    wanted = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    return [program for program in wanted if shutil.which(program, path=SEARCH_PATH) is None]


def require_root() -> None:
    """Raise unless we are root: the cluster makes device nodes and runs jobs as root."""
    if os.geteuid() != 0:
        raise DevclusterError(
            f"needs root, and this is user id {os.geteuid()}",
            "run it with sudo, or in a container of Debian bookworm",
        )


def require_programs(accounting: bool) -> None:
    """Raise if a program that the cluster needs is not installed."""
    missing = missing_programs(accounting)
    if missing:
        raise DevclusterError(
            f"not installed: {', '.join(missing)}",
            "tools/devcluster install   (needs Debian and root)",
        )


def install() -> None:
    """Install what is missing from Debian's archive; does nothing when all is there."""
    missing = missing_programs()
    if not missing:
        print("everything is installed already", file=sys.stderr)
        return
    require_root()
    if shutil.which("apt-get") is None:
        raise DevclusterError(
            f"not installed: {', '.join(missing)}; and there is no apt-get to install them with",
            "use Debian (tested: bookworm, Slurm 22.05), for example in a container",
        )
    # No daemon may be started by its package's script: we start our own, elsewhere.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install_command = ["apt-get", "install", "-y", "-q", "--no-install-recommends"]
    for command in (
        ["apt-get", "update", "-q"],
        [*install_command, *PACKAGES, *ACCOUNTING_PACKAGES],
    ):
        print("+", *command, file=sys.stderr)
        # stdout is for results: a caller may eval it.
        if subprocess.run(command, env=env, stdout=sys.stderr).returncode != 0:
            raise DevclusterError(
                f"{' '.join(command)} failed", "read apt's message above; is the network there?"
            )
    still_missing = missing_programs()
    if still_missing:
        raise DevclusterError(
            f"installed, and yet not found: {', '.join(still_missing)}",
            f"do Debian's packages here bring them? {' '.join(PACKAGES + ACCOUNTING_PACKAGES)}",
        )
