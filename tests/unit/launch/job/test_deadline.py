"""By when a job must be through, from what Slurm says of it; asked once per signal."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from mgpt4_hpc.errors import SlurmUnreachable
from mgpt4_hpc.launch.job import requeue
from mgpt4_hpc.launch.job.deadline import DeadlineStop, find_deadline, patience_until
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.train.stopping.stop import SignalStop, StopRequest

END = "2026-03-01T10:00:20"
FACTS = JobFacts(
    state="RUNNING",
    reason="None",
    restarts=0,
    preempt_time=None,
    end_time=END,
    run_time_s=3500.0,
    time_limit_s=3600.0,
    requeue_allowed=True,
)


def deadline(signal_name: str = "SIGTERM", **changes: object) -> str | None:
    found = find_deadline(replace(FACTS, **changes), 0, signal_name, 120.0)
    return None if found is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(found))


def test_a_warned_job_lives_to_its_limit_and_a_preempted_one_through_its_grace() -> None:
    assert deadline("SIGUSR2") == END
    assert deadline("SIGTERM", preempt_time="2026-03-01T10:00:00", run_time_s=10.0) == END
    # PreemptParameters=send_user_signal: the warning is the notice of a preemption.
    assert deadline("SIGUSR2", preempt_time="2026-03-01T10:00:00", run_time_s=10.0) == END


@pytest.mark.parametrize(
    "changes",
    [
        {"run_time_s": 10.0},  # somebody's kill, or srun's after a rank died
        {"restarts": 1},  # preempted without grace: Slurm has requeued it
        {"state": "COMPLETING"},  # cancelled
        {"state": "COMPLETING", "preempt_time": END},  # PreemptMode=CANCEL
        {"preempt_time": "2026-03-01T10:00:00", "end_time": "Unknown"},
    ],
)
def test_everything_else_stops_at_once(changes: dict[str, object]) -> None:
    assert deadline("SIGTERM", **changes) is None


def test_the_hour_that_comes_twice_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        ends = [deadline("SIGUSR2", end_time=f"2026-10-25T0{hour}:30:00") for hour in (0, 1)]
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert ends == ["2026-10-25T00:30:00", "2026-10-25T01:30:00"], "both are 02:30 in Berlin"


def test_an_early_warning_by_a_person_is_none() -> None:
    assert deadline("SIGUSR2", run_time_s=10.0) is None
    assert find_deadline(None, 0, "SIGTERM", 120.0) is None


class Answers:
    """Slurm, with one answer after the other."""

    def __init__(self, *answers: JobFacts | Exception) -> None:
        self.answers = list(answers)

    def __call__(self, job_id: str) -> JobFacts:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_slurm_is_asked_once_per_signal() -> None:
    signals = SignalStop()
    cancelled = replace(FACTS, state="COMPLETING")
    ask = Answers(FACTS, cancelled)
    stop = DeadlineStop(signals, JobStart("slurm", "17", 0), 120.0, ask)
    assert stop.poll() is None

    signals._note(12, None)  # USR2
    first = stop.poll()
    assert first is not None and first.reason == "SIGUSR2" and first.deadline is not None
    assert stop.poll() == first
    signals._note(15, None)  # and then scancel
    assert stop.poll() == replace(first, deadline=None)
    assert ask.answers == []


def test_a_silent_slurm_is_a_stop_at_once() -> None:
    signals = SignalStop()
    stop = DeadlineStop(
        signals, JobStart("slurm", "17", 0), 120.0, Answers(SlurmUnreachable("no answer"))
    )
    signals._note(15, None)
    request = stop.poll()
    assert request is not None and request.deadline is None


def test_scontrol_is_given_up_before_the_kill() -> None:
    request = StopRequest("SIGTERM", since=1000.0, deadline=1090.0)
    assert patience_until(request, now=1010.0) == 1090.0
    assert patience_until(replace(request, deadline=None), now=1010.0) == 1030.0
    assert patience_until(replace(request, deadline=None), now=1100.0) == 1110.0
    assert patience_until(None, now=1000.0) is None


def test_the_tries_of_a_dying_job_fit_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(requeue.time, "time", lambda: now[0])
    waits = []
    for pause_s, wait_s in requeue._tries(1030.0):
        waits.append(wait_s)
        now[0] += pause_s + wait_s  # every command hangs
    assert len(waits) == 3 and now[0] < 1030.0
    assert [wait_s for _, wait_s in requeue._tries(None)] == [30.0] * 3
    now[0] = 2000.0
    assert [wait_s for _, wait_s in requeue._tries(1030.0)] == [2.0], "one, however late"
