"""The drill's judgement; the drill itself is in tests/slurm/test_site_check.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mgpt4_hpc.launch.site_check import drill
from mgpt4_hpc.launch.site_check.drill import _faults
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.launch.submit.submit_run import SubmittedRun
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from tests.unit.launch.site_check.test_bit_identity import WEIGHT, change, make
from tests.unit.launch.site_check.test_run_watcher import Silent

STRUCK = Attempt(1, nodes=["node1"], cause="preempted", last_step=80, ended=True)
AGAIN = Attempt(2, nodes=["node2"], cause="finished", restored_step=80, last_step=300)


def faults(root: Path, struck: Attempt = STRUCK, again: Attempt = AGAIN) -> list[str]:
    one, two = make(root, "one"), make(root, "two")
    return _faults(one, two, struck, again, [struck, again])


def test_a_green_drill_has_no_fault(tmp_path: Path) -> None:
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    ("struck", "again", "expected"),
    [
        (STRUCK, replace(AGAIN, restored_step=0), "the checkpoint of step 80 was lost"),
        (STRUCK, replace(AGAIN, restored_step=75), "5 steps were lost"),
        (replace(STRUCK, cause="crashed"), AGAIN, "ended as 'crashed'"),
    ],
)
def test_a_promise_that_did_not_hold(
    tmp_path: Path, struck: Attempt, again: Attempt, expected: str
) -> None:
    (told,) = faults(tmp_path, struck, again)
    assert expected in told


def test_other_bits_on_other_nodes(tmp_path: Path) -> None:
    one, two = make(tmp_path, "one"), make(tmp_path, "two")
    change(two, "projector.safetensors", bias=WEIGHT[0], weight=WEIGHT + 1)
    told = _faults(one, two, STRUCK, AGAIN, [STRUCK, AGAIN])
    assert "weight differs in 6 of 6" in told[0]
    assert "node1, node2" in told[1] and "constraint" in told[1]


@pytest.mark.parametrize(("restarts", "faults"), [(1, 0), (2, 1)])
def test_a_finished_run_that_starts_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, restarts: int, faults: int
) -> None:
    facts = JobFacts("RUNNING", "None", restarts, None, "", 0.0, None, True)
    monkeypatch.setattr(drill, "job_facts", lambda job_id: facts)
    order = drill.DrillOrder(tmp_path, executor="slurm")
    job = SubmittedRun(RunDir(tmp_path), "slurm", "17")
    last = replace(AGAIN, restart_count=1)
    told = drill._Drill(order, Silent())._started_again(job, last)
    assert len(told) == faults and all("started again after" in fault for fault in told)
