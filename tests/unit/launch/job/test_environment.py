"""Where a process finds itself, read from the variables that srun and submitit set."""

from __future__ import annotations

import pytest

from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import MgptError, RendezvousError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.job import environment
from mgpt4_hpc.launch.slurm import commands

SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
    "SLURM_RESTART_COUNT": "3",
    "SUBMITIT_EXECUTOR": "slurm",
    "MGPT4_MASTER_ADDR": "10.0.0.1",
}
LOCAL = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "MGPT4_LOCAL_RESTARTS": "2",
}


def test_under_srun() -> None:
    found = environment.read_job_environment(SRUN)
    assert found.ranks == Ranks(5, 1, 8, 4)
    assert (found.executor, found.job_id, found.restart_count) == ("slurm", "17", 3)
    assert (found.nodes, found.master_host) == ("node[1-2]", "10.0.0.1")
    assert found.token("run") == "slurm-17-3-run"
    assert found.claim["job_id"] == "17" and found.claim["restart_count"] == 3


def test_every_start_has_a_token_of_its_own() -> None:
    again = environment.read_job_environment({**SRUN, "SLURM_RESTART_COUNT": "4"})
    first = environment.read_job_environment(SRUN)
    assert len({again.token("run"), first.token("run"), first.token("another run")}) == 3


def test_a_first_start_has_no_restart_count() -> None:
    first = {key: value for key, value in SRUN.items() if key != "SLURM_RESTART_COUNT"}
    assert environment.read_job_environment(first).restart_count == 0


def test_a_task_of_an_array_goes_by_its_own_name() -> None:
    array = {**SRUN, "SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "2"}
    assert environment.read_job_environment(array).job_id == "16_2"


def test_without_the_scripts_help_the_controller_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        ("scontrol", "show", "hostnames", "node[1-2]"): "node1\nnode2\n",
        ("scontrol", "show", "node", "-o", "node1"): "NodeName=node1 NodeAddr=10.0.0.9 X=1\n",
    }
    monkeypatch.setattr(commands, "run_slurm", lambda command: answers[tuple(command)])
    assert (
        environment.read_job_environment({**SRUN, "MGPT4_MASTER_ADDR": ""}).master_host
        == "10.0.0.9"
    )


@pytest.mark.parametrize("error", [SlurmRejected, SlurmUnreachable])
def test_a_controller_that_does_not_tell_is_no_fault_of_the_run(
    monkeypatch: pytest.MonkeyPatch, error: type[MgptError]
) -> None:
    def refuse(command: list[str]) -> str:
        raise error("`scontrol show hostnames` was refused: Unspecified error")

    monkeypatch.setattr(commands, "run_slurm", refuse)
    with pytest.raises(RendezvousError, match=r"rank 0's address is not known: .*Unspecified"):
        environment.read_job_environment({**SRUN, "MGPT4_MASTER_ADDR": ""})


def test_a_single_rank_asks_nobody() -> None:
    alone = {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "MGPT4_MASTER_ADDR": ""}
    assert environment.read_job_environment(alone).master_host == "127.0.0.1"


def test_under_the_local_executor_also_inside_a_job() -> None:
    found = environment.read_job_environment({**SRUN, **LOCAL})
    assert found.ranks == Ranks(1, 1, 2, 2)
    assert (found.token("run"), found.master_host) == ("local-4711-2-run", "127.0.0.1")


def test_started_by_nobody() -> None:
    with pytest.raises(MgptError, match="torchrun"):
        environment.read_job_environment({"HOME": "/h"})


@pytest.mark.parametrize(
    ("visible", "allotted"), [("0", True), ("GPU-1a2b", True), ("", False), ("NoDevFiles", False)]
)
def test_it_knows_its_node_and_whether_it_was_given_a_gpu(visible: str, allotted: bool) -> None:
    task = {**SRUN, "SLURMD_NODENAME": "node2", "CUDA_VISIBLE_DEVICES": visible}
    found = environment.read_job_environment(task)
    assert (found.node, found.gpu_allotted) == ("node2", allotted)
    assert not environment.read_job_environment(SRUN).gpu_allotted
    assert not environment.read_job_environment({**LOCAL, "CUDA_VISIBLE_DEVICES": "0"}).gpu_allotted
