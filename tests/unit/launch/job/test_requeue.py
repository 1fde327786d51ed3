"""Tests of ``launch/job/requeue.py``."""

from __future__ import annotations

import pytest

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.launch.job.requeue import apply_decision, exit_code, find_decision
from mgpt4_hpc.launch.job.requeue_policy import Action, Decision, PastAttempt
from mgpt4_hpc.launch.job.supervisor import (
    decide_after_exit,
)
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger
from tests.unit.launch.fakes import FakeScontrol
from tests.unit.launch.job.attempts import PREEMPTED, START, causes, end, left_behind


def attempt(run: RunDir, *, job: str = "17", restart: int = 0, saved: int | None = 5) -> Ledger:
    """An attempt that began at step 0, as its ledger has it."""
    number = run.claim_attempt({"job_id": job})
    ledger = Ledger(run.ledger, number)
    ledger.event(Kind.START, job_id=job, restart_count=restart)
    if saved is not None:
        ledger.event(Kind.SAVE, step=saved)
    return ledger


@pytest.mark.parametrize(
    ("refusal", "tries"),
    [
        ("Requested operation is presently disabled", 1),
        ("Access/permission denied", 1),
        ("Invalid job id specified", 1),
        ("Job can not be altered now, try again later", 3),
        ("Protocol authentication error", 3),
    ],
)
def test_a_refusal_that_may_pass_is_asked_again(
    run: RunDir, scontrol: FakeScontrol, refusal: str, tries: int
) -> None:
    scontrol.says()
    scontrol.refusal.write_text(refusal)
    apply_decision(run, START, Decision(Cause.PREEMPTED, Action.REQUEUE, "preempted"))
    assert len(scontrol.requeues) == tries


def test_a_refused_requeue_that_happened_all_the_same(run: RunDir, scontrol: FakeScontrol) -> None:
    scontrol.says(state="COMPLETING", restarts=1)
    scontrol.refusal.write_text("Job/step already completing or completed")
    done = apply_decision(run, START, Decision(Cause.PREEMPTED, Action.REQUEUE, "preempted"))
    assert done.action is Action.REQUEUE and left_behind(run) == set()


def test_an_unfinished_run_never_ends_with_0() -> None:
    for action in Action:
        assert exit_code(Decision(Cause.CRASHED, action, "")) in (70, 75)


def test_markers_that_cannot_be_written_are_printed(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    run.failed.mkdir()
    apply_decision(run, START, Decision(Cause.CRASHED, Action.GIVE_UP, "crashed 2 times"))
    assert "crashed 2 times" in capsys.readouterr().out


def test_a_rank_that_cannot_ask_slurm_leaves_it_to_the_batch_script(
    run: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol.says(**PREEMPTED)
    budget = read_config(run.config_file).config.launch
    this = PastAttempt(Cause.UNKNOWN, True)
    with monkeypatch.context() as inside:
        inside.setenv("PATH", "/nowhere")
        decision = find_decision(run, START, budget, "SIGTERM", this, in_rank=True)
    assert decision.action is Action.DEFER
    assert apply_decision(run, START, decision).action is Action.DEFER
    assert left_behind(run) == set() and scontrol.calls == []

    end(attempt(run), decision.cause)
    verdict = decide_after_exit(run, START, 75)
    assert verdict.again and scontrol.requeues == ["requeue 17"]
    assert causes(run) == ["preempted"]
