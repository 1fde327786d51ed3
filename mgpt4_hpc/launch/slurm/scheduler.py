"""What the launcher needs of a batch scheduler: submit, queue, requeue, limits, signals.

``submit``, ``job``, ``manage``, ``runs`` and ``side_jobs`` reach the scheduler through
:func:`scheduler` alone. Another scheduler is another implementation of :class:`Scheduler` in a
folder beside this one; the batch script's text (``submit/batch_script.py``, the templates in
``slurm/``) is written for it as well. ``site_check`` and the preflight checks examine a Slurm.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from mgpt4_hpc.launch.slurm import commands, queue, sbatch
from mgpt4_hpc.launch.slurm.commands import COMMAND_TIMEOUT_S, JobFacts
from mgpt4_hpc.launch.slurm.queue import QueuedJob


class Scheduler(Protocol):
    """A batch scheduler. The methods from ``submit`` on may raise
    ``SlurmUnreachable`` (no answer within its time) or ``SlurmRejected`` (it refused).
    """

    def is_here(self) -> bool:
        """Whether jobs can be submitted from this machine."""

    def cluster_name(self) -> str:
        """Name of this machine's cluster; "" if it has none or does not answer."""

    def submission(self, script: Path) -> list[str]:
        """The command that submits a script and prints ``job ID``; submitit runs it."""

    def submit(
        self,
        script: Path,
        options: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
        *,
        timeout_s: float = COMMAND_TIMEOUT_S,
    ) -> str:
        """Submit a script; the job's id. ``options`` override those of the script."""

    def queued(self, job_ids: Iterable[str], cluster: str = "") -> dict[str, QueuedJob]:
        """Those of the jobs that wait, run or ended moments ago."""

    def accounted(self, job_ids: Iterable[str], cluster: str = "") -> dict[str, QueuedJob]:
        """Those of the jobs that accounting has a record of."""

    def facts(self, job_id: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> JobFacts:
        """A job's state, its restarts and its time limit."""

    def requeue(self, job_id: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """End a running job and put it back into the queue under its id."""

    def forbid_requeue(
        self, job_id: str, *, timeout_s: float = COMMAND_TIMEOUT_S, cluster: str = ""
    ) -> None:
        """Do not start a job again, whatever ends it."""

    def cancel(self, job_id: str, *, cluster: str = "") -> None:
        """End a job, or take it out of the queue."""

    def signal_ranks(self, job_id: str, name: str, *, cluster: str = "") -> None:
        """Send a signal, as USR2, to a job's ranks and not to its batch script."""


class Slurm:
    """The ``Scheduler`` that runs Slurm's commands."""

    submit = staticmethod(sbatch.submit_script)
    queued = staticmethod(queue.ask_squeue)
    accounted = staticmethod(queue.ask_sacct)
    facts = staticmethod(commands.job_facts)
    requeue = staticmethod(commands.requeue)
    forbid_requeue = staticmethod(commands.forbid_requeue)
    cancel = staticmethod(commands.cancel)
    signal_ranks = staticmethod(commands.signal_ranks)

    def is_here(self) -> bool:
        """By ``sbatch`` in PATH."""
        return commands.has_slurm()

    def cluster_name(self) -> str:
        """``ClusterName`` of the configuration."""
        return commands.cluster_name()

    def submission(self, script: Path) -> list[str]:
        """``sbatch``."""
        return ["sbatch", str(script)]


IN_USE: Scheduler = Slurm()


def scheduler() -> Scheduler:
    """The scheduler of this installation."""
    return IN_USE


def other_cluster(name: str) -> str:
    """``name`` if that is another cluster than this machine's, else ""."""
    return name if name and scheduler().cluster_name() not in ("", name) else ""
