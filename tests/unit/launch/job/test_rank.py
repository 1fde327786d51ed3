"""One rank's exit code, and what it leaves for the supervisor. No torch, no processes."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import replace

import pytest

from mgpt4_hpc import errors
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.launch.job import rank, requeue
from mgpt4_hpc.launch.job.rank import run_rank
from mgpt4_hpc.launch.job.requeue import find_decision
from mgpt4_hpc.launch.job.requeue_policy import Action, PastAttempt
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import read_ledgers
from mgpt4_hpc.train.recorder import FirstRankRecorder
from mgpt4_hpc.train.state import Ending, Outcome
from mgpt4_hpc.train.stopping.stop import STOP_SIGNALS, Interrupted, SignalStop
from tests.unit.launch.fakes import FakeScontrol


@pytest.fixture(autouse=True)
def as_a_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "99",
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_GLOBALID": "0",
        "SUBMITIT_LOCAL_LOCALID": "0",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("error", "code", "fails"),
    [
        (errors.DataError("a shard is missing"), 70, True),
        (errors.ConfigError("bad", faults=["lr"]), 70, True),
        (errors.RunLocked("its inputs changed"), 70, True),
        (errors.FatalTrainingError("hopeless"), 70, True),
        (errors.Overtaken("attempt 2 owns it"), 70, False),
        (errors.CheckpointError("disk full"), 1, False),
        (errors.RendezvousError("nobody there"), 1, False),
        (errors.SlurmUnreachable("no answer"), 5, False),
        (errors.BadNode("no GPU"), 71, False),
        (RuntimeError("Connection closed by peer"), 1, False),
    ],
)
def test_what_would_repeat_fails_the_run_and_nothing_else(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, fails: bool
) -> None:
    def fail(*args: object) -> int:
        raise error

    monkeypatch.setattr(rank, "_train", fail)
    assert run_rank(run, SignalStop(), time.time()) == code
    assert run.failed.exists() is fails
    if fails:
        assert str(error) in run.failed.read_text()


def test_a_controller_that_does_not_answer_at_the_start_is_no_reason_to_give_up(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise errors.SlurmUnreachable("scontrol show node: no answer")

    monkeypatch.setattr(rank, "read_job_environment", fail)
    assert run_rank(run, SignalStop(), time.time()) == 5
    assert not run.failed.exists()


def test_who_is_stopped_before_the_ranks_met_leaves_it_to_the_supervisor(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise Interrupted

    monkeypatch.setattr(rank, "_meet", interrupted)
    assert run_rank(run, SignalStop(), time.time()) == errors.EXIT_RESUMABLE
    assert "before the ranks had met" in capsys.readouterr().out
    assert not run.failed.exists() and run.attempt_numbers() == []


def test_the_runs_own_stop_signals_are_taken_and_slurms_always(run: RunDir) -> None:
    assert set(rank._stop_signals(run)) == {signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1}
    text = run.config_file.read_text()
    run.config_file.write_text(
        re.sub(r"stop_signals:(.*\n)(\s+- .*\n)*", "stop_signals: [HUP]\n", text)
    )
    assert set(rank._stop_signals(run)) == {signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP}
    run.config_file.write_text("nonsense: [")
    assert set(rank._stop_signals(run)) == set(STOP_SIGNALS)


# -- rank 0 decides ----------------------------------------------------------------------------

SLURM, LOCAL = JobStart("slurm", "17", 0), JobStart("local", "99", 0)


def settle(
    run: RunDir, start: JobStart, outcome: Outcome, budget: LaunchConfig | None = None
) -> int:
    number = run.claim_attempt({})
    recorder = FirstRankRecorder(run, number)
    recorder.event(Kind.START, job_id=start.job_id, restart_count=start.restart_count)
    stop = SignalStop()
    stop.request("SIGTERM")
    try:
        return rank._settle(run, start, budget or _budget(run), stop, outcome, recorder)
    finally:
        recorder.ledger.close()


def outcome(ending: Ending = Ending.STOPPED, *, progressed: bool = True) -> Outcome:
    return Outcome(ending, 9, 5, 9 if progressed else 5, "SIGTERM", 1)


def test_finished(run: RunDir) -> None:
    finished = replace(outcome(Ending.FINISHED), num_worse=2, reason="no new lowest loss")
    assert settle(run, SLURM, finished) == 0
    (attempt,) = read_ledgers(run.ledger)
    assert (attempt.cause, attempt.finished_at, attempt.num_worse) == ("finished", 9, 2)
    assert attempt.early == "no new lowest loss"


def test_preempted_under_slurm(run: RunDir, scontrol: FakeScontrol) -> None:
    scontrol.says(preempt="2026-03-01T10:00:00")
    assert settle(run, SLURM, outcome()) == 75
    assert scontrol.requeues == ["requeue 17"]
    (attempt,) = read_ledgers(run.ledger)
    assert attempt.cause == "preempted" and attempt.requeue is not None
    assert attempt.requeue["accepted"] is True


def test_no_settings_are_read_in_the_grace_time(
    run: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("storage may not answer now")

    budget = _budget(run)
    run.config_file.unlink()
    for module in (rank, requeue):
        monkeypatch.setattr(module, "read_own_config", fail)
    monkeypatch.setattr(rank, "read_config", fail)
    scontrol.says(preempt="2026-03-01T10:00:00")
    assert settle(run, SLURM, outcome(), budget) == 75
    assert scontrol.requeues == ["requeue 17"]
    # Those of the start count: they allow no time-out.
    scontrol.says(state="COMPLETING", reason="TimeLimit", restarts=1)
    strict = budget.model_copy(update={"max_timeouts": 0})
    last = replace(outcome(), attempt=2)
    assert settle(run, replace(SLURM, restart_count=1), last, strict) == 70
    assert "launch.max_timeouts allows 0" in run.failed.read_text()


def test_preempted_without_slurm(run: RunDir) -> None:
    assert settle(run, LOCAL, outcome()) == 144


def test_given_up(run: RunDir, scontrol: FakeScontrol) -> None:
    scontrol.says()
    settle(run, SLURM, outcome(progressed=False))
    run_2 = JobStart("slurm", "17", 1)
    scontrol.says(restarts=1)
    number = run.claim_attempt({})
    recorder = FirstRankRecorder(run, number)
    recorder.event(Kind.START, job_id="17", restart_count=1)
    stop = SignalStop()
    stop.request("SIGTERM")
    last = Outcome(Ending.STOPPED, 9, 9, 9, "SIGTERM", number)
    assert rank._settle(run, run_2, _budget(run), stop, last, recorder) == 70
    assert "2 attempts in a row made no checkpoint" in run.failed.read_text()
    assert len(scontrol.requeues) == 1


def test_cancelled_by_a_mark(run: RunDir, scontrol: FakeScontrol) -> None:
    request_cancel(run, "17")
    scontrol.says(preempt="2026-03-01T10:00:00")
    assert settle(run, SLURM, outcome()) == 75
    assert scontrol.requeues == []
    assert read_ledgers(run.ledger)[0].cause == "cancelled"
    assert not run.resubmit_needed.exists()


def test_overtaken_there_is_nothing_to_decide(run: RunDir, scontrol: FakeScontrol) -> None:
    scontrol.says()
    run.claim_attempt({"job_id": "18"})
    overtaken = Outcome(Ending.STOPPED, 9, 5, 9, "SIGTERM", 0)
    with pytest.raises(errors.Overtaken):
        settle(run, SLURM, overtaken)
    assert scontrol.calls == []


def test_a_mark_holds_for_its_job_also_locally(run: RunDir) -> None:
    budget = _budget(run)
    this = PastAttempt(Cause.UNKNOWN, True)
    request_cancel(run, "98")
    assert find_decision(run, LOCAL, budget, "SIGTERM", this).action is Action.REQUEUE
    request_cancel(run, "99")
    found = find_decision(run, LOCAL, budget, "SIGTERM", this)
    assert (found.cause, found.action) == (Cause.CANCELLED, Action.LEAVE)


def _budget(run: RunDir) -> LaunchConfig:
    return read_config(run.config_file).config.launch
