"""What rank 0 does about an unfit node: record, requeue, exclude, in this order and with a cap."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.launch.job import supervisor
from mgpt4_hpc.launch.job.bad_node import settle_bad_node
from mgpt4_hpc.launch.job.requeue_policy import Action
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger, read_ledgers
from mgpt4_hpc.train.health.node_consensus import bad_node
from tests.unit.launch.fakes import FakeScontrol

BUDGET = LaunchConfig(max_bad_nodes=2)


def leave(run: RunDir, restart: int, *nodes: str, executor: str = "slurm") -> Action:
    start = JobStart(executor, "17", restart)
    claim = {"executor": executor, "job_id": "17", "restart_count": restart, "nodes": list(nodes)}
    error = bad_node(dict.fromkeys(nodes, "no GPU"))
    return settle_bad_node(run, start, BUDGET, error, claim, time.time()).action


def test_the_job_comes_back_without_all_nodes_that_were_unfit_so_far(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    scontrol.says()
    assert leave(run, 0, "n1") is Action.REQUEUE
    scontrol.says(restarts=1)
    assert leave(run, 1, "n2") is Action.REQUEUE
    orders = [call for call in scontrol.calls if not call.startswith("show")]
    assert orders == [
        "requeue 17",
        "update JobId=17 ExcNodeList=n1",
        "requeue 17",
        "update JobId=17 ExcNodeList=n1,n2",
    ]
    first, second = read_ledgers(run.ledger)
    assert (first.cause, first.exit_code, second.cause) == ("bad node", 71, "bad node")
    assert first.requeue is not None and "excluded n1" in first.requeue["reason"]


def test_a_check_that_fails_everywhere_does_not_exclude_the_whole_cluster(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    scontrol.says()
    assert leave(run, 0, "n1", "n2", "n3") is Action.GIVE_UP
    assert scontrol.requeues == []
    assert "3 nodes failed the check, launch.max_bad_nodes allows 2" in run.failed.read_text()
    assert "n2: no GPU" in run.failed.read_text()


def test_without_slurm_it_is_a_plain_error(run: RunDir) -> None:
    assert leave(run, 0, "laptop", executor="local") is Action.GIVE_UP
    told = run.failed.read_text()
    assert "this machine is unfit" in told and "laptop: no GPU" in told


def test_a_folder_that_cannot_be_written_does_not_keep_the_job_on_its_node(
    run: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(RunDir, "claim_attempt", read_only)
    scontrol.says()
    assert leave(run, 0, "n1") is Action.REQUEUE
    assert "update JobId=17 ExcNodeList=n1" in scontrol.calls
    for restart in (1, BUDGET.max_stalled_attempts - 1):
        scontrol.says(restarts=restart)
        last = leave(run, restart, "n1")
    assert last is Action.GIVE_UP, "nothing that is recorded counts its nodes"


def test_the_supervisor_ends_what_rank_0_began(run: RunDir, scontrol: FakeScontrol) -> None:
    ledger = Ledger(run.ledger, run.claim_attempt({}))
    ledger.event(Kind.START, job_id="17", restart_count=0)
    ledger.event(Kind.FAULT, what="bad node", node="n4", reason="no GPU")
    ledger.event(Kind.END, cause="bad node", step=0, exit_code=71)
    ledger.close()
    scontrol.says()
    verdict = supervisor.decide_after_exit(run, JobStart("slurm", "17", 0), 71)
    assert (verdict.exit_code, verdict.again) == (71, True)
    assert scontrol.calls[-1] == "update JobId=17 ExcNodeList=n4"


def test_in_a_container_without_slurm_the_batch_script_does_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as inside:
        inside.setenv("PATH", str(tmp_path))
        assert leave(run, 0, "n1") is Action.DEFER
    scontrol = FakeScontrol(tmp_path / "bin", monkeypatch)
    scontrol.says()
    verdict = supervisor.decide_after_exit(run, JobStart("slurm", "17", 0), 71)
    assert (verdict.exit_code, verdict.again) == (71, True)
    assert scontrol.calls[-1] == "update JobId=17 ExcNodeList=n1"
