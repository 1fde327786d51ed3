"""Where this process runs: under Slurm, under the local executor, or under torchrun."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import MgptError, RendezvousError
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.job_start import JobStart

MASTER_ADDR_VARIABLE = "MGPT4_MASTER_ADDR"
"""Set by the batch script, so that a thousand ranks need not ask the controller."""

_NO_GPU = ("", "NoDevFiles", "-1")
"""CUDA_VISIBLE_DEVICES of a job that asked for none, as Slurm and CUDA write it."""


@dataclass(frozen=True)
class JobEnvironment:
    """One process's surroundings.

    Attributes:
        executor: "slurm" or "local".
        job_id: of Slurm, or the local controller's process.
        restart_count: requeues of this job so far, whatever their cause.
        ranks: this process among the others.
        nodes: node list as Slurm writes it, or this host.
        master_host: where rank 0 listens.
        node: this process's node, as the scheduler names it.
        gpu_allotted: whether the scheduler gave this process a GPU.
        cluster: Slurm's, "" elsewhere.
    """

    executor: str
    job_id: str
    restart_count: int
    ranks: Ranks
    nodes: str
    master_host: str
    node: str
    gpu_allotted: bool = False
    cluster: str = ""

    def token(self, run_id: str) -> str:
        """Names this start of this run; ranks of another start or run must not meet ours.

        The job's number alone does not: two clusters may have one name, and a controller that is
        set up again counts from 1.
        """
        whose = f"{self.executor}-{self.cluster}" if self.cluster else self.executor
        return f"{whose}-{self.job_id}-{self.restart_count}-{run_id}"

    @property
    def claim(self) -> dict[str, object]:
        """Who claims an attempt, for people to read."""
        return {
            "executor": self.executor,
            "job_id": self.job_id,
            "cluster": self.cluster,
            "restart_count": self.restart_count,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }


def read_job_environment(environ: Mapping[str, str] = os.environ) -> JobEnvironment:
    """Read the surroundings from the environment.

    Raises:
        RendezvousError: Slurm does not report where rank 0 is.
        MgptError: if neither Slurm nor the local executor started this process.
    """
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return _local(environ)
    if "SLURM_PROCID" in environ:
        return _slurm(environ)
    raise MgptError(
        "this process was started by neither srun nor the local executor",
        fix="use `mgpt4 submit`, or torchrun with `-m mgpt4_hpc.train --cfg-path FILE`",
    )


def _local(environ: Mapping[str, str]) -> JobEnvironment:
    world = int(environ["SUBMITIT_LOCAL_NTASKS"])
    rank = int(environ["SUBMITIT_LOCAL_GLOBALID"])
    return JobEnvironment(
        executor="local",
        job_id=environ["SUBMITIT_LOCAL_JOB_ID"],
        restart_count=int(environ.get("MGPT4_LOCAL_RESTARTS", "0")),
        ranks=Ranks(rank, int(environ["SUBMITIT_LOCAL_LOCALID"]), world, world),
        nodes=socket.gethostname(),
        master_host="127.0.0.1",
        node=socket.gethostname(),
    )


def _slurm(environ: Mapping[str, str]) -> JobEnvironment:
    world = int(environ["SLURM_NTASKS"])
    nodes = int(environ.get("SLURM_JOB_NUM_NODES", environ.get("SLURM_NNODES", "1")))
    ranks = Ranks(
        rank=int(environ["SLURM_PROCID"]),
        local_rank=int(environ["SLURM_LOCALID"]),
        world_size=world,
        local_world_size=max(1, world // nodes),
    )
    host = environ.get(MASTER_ADDR_VARIABLE, "")
    if not host and world > 1:
        host = _first_address(environ)
    return JobEnvironment(
        executor="slurm",
        job_id=job_id_of(environ),
        restart_count=_restarts(environ),
        ranks=ranks,
        nodes=environ.get("SLURM_JOB_NODELIST", socket.gethostname()),
        master_host=host or "127.0.0.1",
        node=environ.get("SLURMD_NODENAME", socket.gethostname()),
        gpu_allotted=environ.get("CUDA_VISIBLE_DEVICES", "") not in _NO_GPU,
        cluster=_cluster(environ),
    )


def _first_address(environ: Mapping[str, str]) -> str:
    try:
        return commands.node_address(commands.first_node(environ))
    except MgptError as error:  # whatever Slurm says: the run is not at fault
        raise RendezvousError(
            f"rank 0's address is not known: {error.what}", fix=error.fix
        ) from error


def start_of(environ: Mapping[str, str]) -> JobStart:
    """The start of the Slurm job in which this process runs."""
    return JobStart("slurm", job_id_of(environ), _restarts(environ), cluster=_cluster(environ))


def _cluster(environ: Mapping[str, str]) -> str:
    return environ.get("SLURM_CLUSTER_NAME", "")


def _restarts(environ: Mapping[str, str]) -> int:
    return int(environ.get("SLURM_RESTART_COUNT", "0"))


def job_id_of(environ: Mapping[str, str]) -> str:
    """Id under which ``scontrol`` knows this job; one task of an array has its own."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]
