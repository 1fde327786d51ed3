"""The job that goes on where Slurm allows no requeue; sbatch, squeue and scontrol are scripts here.

That a real Slurm does what is asked here is shown in tests/slurm/test_successor.py.
"""

from __future__ import annotations

import pytest

from mgpt4_hpc.launch.job.requeue import apply_decision, find_decision
from mgpt4_hpc.launch.job.requeue_policy import Action, Decision, PastAttempt
from mgpt4_hpc.launch.job.start_check import why_leave
from mgpt4_hpc.launch.job.successor import of_its_line, submit_successor
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger
from tests.unit.launch.fakes import FakeScontrol

START = JobStart("slurm", "17", 2)
REFUSED = Decision(Cause.PREEMPTED, Action.REQUEUE, "preempted")
SCRIPT = """#!/bin/bash
#SBATCH --output={run}/slurm/%A_%a_0_log.out
srun --output {run}/slurm/%A_%a_%t_log.out /bin/sh x -u -m submitit.core._submit '{run}/slurm'
"""


@pytest.fixture
def stored(run: RunDir, scontrol: FakeScontrol) -> RunDir:
    """A run with the script that it was submitted with, whose job may not be requeued."""
    (run.slurm / "job.sbatch").write_text(SCRIPT.format(run=run.path))
    scontrol.says()
    scontrol.refusal.write_text("Requested operation is presently disabled for job 17\n")
    return run


def crash(run: RunDir, job: str) -> None:
    ledger = Ledger(run.ledger, run.claim_attempt({"job_id": job}))
    ledger.event(Kind.START, job_id=job, restart_count=0)
    ledger.event(Kind.SAVE, step=5)
    ledger.event(Kind.END, cause="crashed", step=5, exit_code=1)
    ledger.close()


def test_the_same_script_waits_for_this_jobs_end(
    stored: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("TMPDIR", "/scratch/job_17_x")
    monkeypatch.setenv("PYTHONPATH", f"{stored.code}:/mine")
    scontrol.waiting.write_text("18|afterok:17(unfulfilled)\n19|afterok:3(unfulfilled)\n")
    done = apply_decision(stored, START, REFUSED)
    assert done.action is Action.RESUBMIT and "job 50 goes on" in done.reason
    assert scontrol.calls[-3:] == [
        f"sbatch --parsable --dependency=afterany:17 {stored.slurm}/successor.sbatch",
        "update JobId=18 Dependency=afterok:50(unfulfilled)",
        "update JobId=17 Requeue=0",
    ]
    text = scontrol.submitted.read_text()
    assert f"-u -m mgpt4_hpc.launch.task '{stored.path}'\n" in text and "submitit" not in text
    assert "%A" not in text and f"{stored.path}/slurm/%j_%t_log.out" in text
    lines = text.splitlines()
    assert "PYTHONPATH=/mine" in lines
    assert not [
        line for line in lines if line.startswith(("SLURM_JOB", "SLURM_RES", "CUDA", "TMPD"))
    ]
    job = read_json(stored.slurm / "job.json")
    assert (job["job_id"], job["succeeds"]) == ("50", ["17"])
    assert not stored.resubmit_needed.exists()


def test_there_is_one_successor_however_often_it_is_asked_for(
    stored: RunDir, scontrol: FakeScontrol
) -> None:
    assert submit_successor(stored, START) == submit_successor(stored, START) == "50"
    (stored.slurm / "job.json").unlink()  # killed before it could be noted
    scontrol.answer.write_text(f"JobId=50 WorkDir={stored.path} Comment=x")
    scontrol.waiting.write_text("50|afterany:17(unfulfilled)\n")
    assert submit_successor(stored, START) == "50"
    assert read_json(stored.slurm / "job.json")["job_id"] == "50"
    scontrol.answer.write_text("JobId=50 WorkDir=/another/run Comment=x")
    (stored.slurm / "job.json").unlink()
    assert submit_successor(stored, START) == "51"


def test_a_rank_leaves_it_to_the_batch_script(stored: RunDir, scontrol: FakeScontrol) -> None:
    assert apply_decision(stored, START, REFUSED, in_rank=True).action is Action.DEFER
    assert not [call for call in scontrol.calls if call.startswith("sbatch")]


@pytest.mark.parametrize("trouble", ["refused", "no script", "locked"])
def test_the_last_resort_is_a_person(stored: RunDir, scontrol: FakeScontrol, trouble: str) -> None:
    if trouble == "refused":
        scontrol.no_jobs.write_text("sbatch: error: Access denied from this host\n")
    elif trouble == "no script":
        (stored.slurm / "job.sbatch").unlink()
    else:
        (stored.slurm / ".submitting").write_text("process 7 on login1")
    done = apply_decision(stored, START, REFUSED)
    assert done.action is Action.ASK and "no other job could be submitted" in done.reason
    assert "mgpt4 resume" in stored.resubmit_needed.read_text()


def test_bad_nodes_are_left_out(stored: RunDir, scontrol: FakeScontrol) -> None:
    decision = Decision(Cause.BAD_NODE, Action.REQUEUE, "a bad node")
    apply_decision(stored, START, decision, ["n7"])
    assert f"--dependency=afterany:17 --exclude=n7 {stored.slurm}" in scontrol.calls[-2]


def test_the_budgets_are_those_of_both_jobs(stored: RunDir, scontrol: FakeScontrol) -> None:
    from mgpt4_hpc.config.run_config_file import read_config

    budget = read_config(stored.config_file).config.launch  # one crash
    crash(stored, "17")
    write_json(stored.slurm / "job.json", {"job_id": "50", "succeeds": ["17"]})
    successor = of_its_line(stored, JobStart("slurm", "50", 0))
    assert successor.succeeds == ("17",)
    this = PastAttempt(Cause.CRASHED, True)
    assert find_decision(stored, successor, budget, None, this).action is Action.GIVE_UP
    # What a person submits has budgets of its own.
    write_json(stored.slurm / "job.json", {"job_id": "50"})
    resumed = of_its_line(stored, JobStart("slurm", "50", 0))
    assert find_decision(stored, resumed, budget, None, this).action is Action.REQUEUE


def test_a_cancel_of_the_first_holds_for_the_second(stored: RunDir) -> None:
    request_cancel(stored, "17")
    assert why_leave(stored, JobStart("slurm", "50", 0)) is None
    assert why_leave(stored, JobStart("slurm", "50", 0, ("17",))) is not None


@pytest.mark.parametrize(
    ("recorded", "action"), [("FAILED", "resubmit"), ("CANCELLED by 7", "leave")]
)
def test_a_job_that_slurm_forgot(
    stored: RunDir, scontrol: FakeScontrol, recorded: str, action: str
) -> None:
    """It cannot be waited for, so that the successor starts a while later."""
    from mgpt4_hpc.config.run_config_file import read_config

    script = scontrol.answer.with_name("scontrol")
    script.write_text(
        "#!/bin/sh\necho slurm_load_jobs error: Invalid job id specified >&2; exit 1\n"
    )
    sacct = scontrol.answer.with_name("sacct")
    sacct.write_text(f"#!/bin/sh\necho '17|{recorded}|0:0|1|2|n1|None|||'\n")
    sacct.chmod(0o755)
    budget = read_config(stored.config_file).config.launch
    this = PastAttempt(Cause.UNKNOWN, True)
    decision = find_decision(stored, START, budget, "SIGTERM", this)
    assert decision.action == action
    if action == "resubmit":
        assert "goes on" in apply_decision(stored, START, decision).reason
        assert "--begin=now+60" in scontrol.calls[-1]
