"""A command on a GPU node, with this terminal attached."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from mgpt4_hpc.errors import SlurmUnreachable

_CPUS = 4


def srun_command(
    arguments: Sequence[str],
    *,
    partition: str | None = None,
    gpus: int = 1,
    time_min: int = 60,
    extra: Sequence[str] = (),
    terminal: bool = True,
) -> list[str]:
    """The ``srun`` that runs ``mgpt4 ARGUMENTS`` as one task.

    Args:
        arguments: of ``mgpt4``.
        partition: Slurm's; None is the site's default.
        gpus: GPUs of the task; 0 asks for none.
        time_min: time limit in minutes.
        extra: further options of srun, as they are.
        terminal: attach a pseudo terminal; without one stdin and stdout stay pipes.
    """
    command = ["srun", "--ntasks=1", f"--cpus-per-task={_CPUS}", f"--time={time_min}"]
    if terminal:
        command.append("--pty")
    if gpus:
        command.append(f"--gres=gpu:{gpus}")
    if partition:
        command.append(f"--partition={partition}")
    # The interpreter and not `mgpt4`: a node's PATH need not know this environment. -P: the folder
    # that this is called from must not shadow the installed package.
    return [*command, *extra, sys.executable, "-P", "-m", "mgpt4_hpc.cli.main", *arguments]


def require_srun() -> str:
    """The path of srun. Raises SlurmUnreachable if it is not installed."""
    path = shutil.which("srun")
    if path is None:
        raise SlurmUnreachable(
            "srun is not installed here",
            fix="start this on a machine of the cluster, or leave --slurm out",
        )
    return path


def become(command: Sequence[str]) -> None:
    """Replace this process by an srun, so that signals and exit code are its own."""
    os.execv(require_srun(), list(command))
