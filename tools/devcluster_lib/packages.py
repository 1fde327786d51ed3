"""Debian's packages of Slurm and what it needs."""

import os
import shutil
import subprocess
import sys

from devcluster_lib.errors import DevclusterError

PACKAGES = ("slurm-wlm", "slurmctld", "slurmd", "slurm-client", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "mariadb-server")
CLIENTS = (
    *("sacct", "sacctmgr", "salloc", "sattach", "sbatch", "sbcast", "scancel", "scontrol"),
    *("scrontab", "sdiag", "sinfo", "sprio", "squeue", "sreport", "srun", "sshare", "sstat"),
    "strigger",
)
DAEMONS = ("slurmctld", "slurmd", "slurmstepd", "slurmdbd")
PROGRAMS = ("slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "scontrol", "sinfo", "munged")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db", "mariadb")
# Daemons live in /usr/sbin, which is not in every user's PATH.
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def _missing(programs: tuple[str, ...]) -> list[str]:
    return [program for program in programs if shutil.which(program, path=SEARCH_PATH) is None]


def require_root() -> None:
    """Raise unless we are root: the cluster makes device nodes and runs jobs as root."""
    if os.geteuid() != 0:
        raise DevclusterError(
            f"needs root, and this is user id {os.geteuid()}",
            "run it with sudo, or in a container of Debian 12 or 13",
        )


def require_programs(accounting: bool) -> None:
    """Raise if a program that the cluster needs is not installed."""
    missing = _missing(PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ()))
    if missing:
        raise DevclusterError(
            f"not installed: {', '.join(missing)}",
            "tools/devcluster install   (needs Debian and root)",
        )


def install() -> None:
    """Install what a cluster needs and this machine lacks, from Debian's archive."""
    if not install_for(PROGRAMS + ACCOUNTING_PROGRAMS, PACKAGES + ACCOUNTING_PACKAGES):
        print("everything is installed already", file=sys.stderr)


def install_for(programs: tuple[str, ...], packages: tuple[str, ...]) -> bool:
    """Install ``packages`` if one of ``programs`` is missing; False if none was."""
    missing = _missing(programs)
    if not missing:
        return False
    require_root()
    if shutil.which("apt-get") is None:
        raise DevclusterError(
            f"not installed: {', '.join(missing)}; and there is no apt-get to install them with",
            "use Debian 12 or 13, for example in a container",
        )
    # No daemon may be started by its package's script: we start our own, elsewhere.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install_command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-q"], install_command):
        print("+", *command, file=sys.stderr)
        # stdout is for results: a caller may eval it.
        if subprocess.run(command, env=env, stdout=sys.stderr).returncode != 0:
            raise DevclusterError(
                f"{' '.join(command)} failed", "read apt's message above; is the network there?"
            )
    still_missing = _missing(programs)
    if still_missing:
        raise DevclusterError(
            f"installed, and yet not found: {', '.join(still_missing)}",
            f"do Debian's packages here bring them? {' '.join(packages)}",
        )
    return True
