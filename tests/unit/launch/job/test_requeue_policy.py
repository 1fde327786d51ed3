"""Why an attempt ends and whether the run comes back, row by row of what Slurm 22.05 shows."""

from __future__ import annotations

from typing import Any

import pytest

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.launch.job.requeue_policy import Action, PastAttempt, classify, decide
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.telemetry.causes import Cause

NOW, LATER = "2026-03-01T10:00:00", "2026-03-01T10:00:20"


def facts(**changes: Any) -> JobFacts:
    usual: dict[str, Any] = {
        "state": "RUNNING",
        "reason": "None",
        "restarts": 0,
        "preempt_time": None,
        "end_time": LATER,
        "run_time_s": 600.0,
        "time_limit_s": 3600.0,
        "requeue_allowed": True,
    }
    return JobFacts(**{**usual, **changes})


ROWS = [
    ("nobody knows", None, "SIGTERM", Cause.UNKNOWN),
    ("scancel", facts(state="COMPLETING", end_time=NOW), "SIGTERM", Cause.CANCELLED),
    (
        "scancel during the grace time",
        facts(state="COMPLETING", preempt_time=NOW, end_time=LATER),
        "SIGTERM",
        Cause.CANCELLED,
    ),
    ("in its grace time", facts(preempt_time=NOW), "SIGTERM", Cause.PREEMPTED),
    ("in its grace time, the signal was missed", facts(preempt_time=NOW), None, Cause.PREEMPTED),
    (
        "the grace is over, PreemptMode=CANCEL",
        facts(state="COMPLETING", preempt_time=NOW, end_time=NOW),
        "SIGTERM",
        Cause.PREEMPTED,
    ),
    (
        "the same, and a second began between Slurm's two looks at the clock",
        facts(state="COMPLETING", preempt_time="2026-03-01T10:00:19", end_time=LATER),
        "SIGTERM",
        Cause.PREEMPTED,
    ),
    (
        "preempted, but by when is not known",
        facts(state="COMPLETING", preempt_time=NOW, end_time="Unknown"),
        "SIGTERM",
        Cause.CANCELLED,
    ),
    ("requeued by somebody", facts(state="COMPLETING", restarts=1), "SIGTERM", Cause.REQUEUED),
    ("requeued while it ran on", facts(restarts=1), None, Cause.REQUEUED),
    (
        "requeued by the preemption itself",
        facts(state="COMPLETING", restarts=1, preempt_time=NOW, end_time=NOW),
        "SIGTERM",
        Cause.REQUEUED,
    ),
    (
        "timed out",
        facts(state="COMPLETING", reason="TimeLimit", run_time_s=3601.0),
        "SIGTERM",
        Cause.TIME_LIMIT,
    ),
    ("warned", facts(run_time_s=3485.0), "SIGUSR2", Cause.TIME_LIMIT),
    ("warned as early as Slurm may", facts(run_time_s=3421.0), "SIGUSR2", Cause.TIME_LIMIT),
    ("USR2 long before the limit", facts(run_time_s=3400.0), "SIGUSR2", Cause.SIGNALLED),
    ("USR2 without a limit", facts(time_limit_s=None), "SIGUSR2", Cause.SIGNALLED),
    ("TERM shortly before the limit", facts(run_time_s=3500.0), "SIGTERM", Cause.SIGNALLED),
    ("beyond the limit, not yet killed", facts(run_time_s=3600.0), None, Cause.TIME_LIMIT),
    ("a rank crashed", facts(), None, Cause.CRASHED),
    ("somebody's TERM to the tasks", facts(), "SIGTERM", Cause.SIGNALLED),
    ("a node failed", facts(state="NODE_FAIL"), "SIGTERM", Cause.CRASHED),
]


@pytest.mark.parametrize(("told", "seen", "signal_name", "cause"), ROWS, ids=[r[0] for r in ROWS])
def test_why_it_ends(told: str, seen: JobFacts | None, signal_name: str, cause: Cause) -> None:
    assert classify(seen, 0, signal_name, 120.0) is cause


def test_earlier_requeues_are_no_news() -> None:
    assert classify(facts(restarts=4), 4, "SIGTERM", 120.0) is Cause.SIGNALLED


# -- what follows ------------------------------------------------------------------------------

BUDGET = LaunchConfig(max_timeouts=2, max_crashes=1, max_stalled_attempts=2)


def attempts(*causes: str, progressed: bool = True) -> list[PastAttempt]:
    return [PastAttempt(cause, progressed) for cause in causes]


def action(
    cause: Cause, earlier: list[PastAttempt], progressed: bool = True, **more: Any
) -> Action:
    return decide(cause, PastAttempt(cause, progressed), earlier, BUDGET, **more).action


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (Cause.PREEMPTED, Action.REQUEUE),
        (Cause.TIME_LIMIT, Action.REQUEUE),
        (Cause.SIGNALLED, Action.REQUEUE),
        (Cause.CRASHED, Action.REQUEUE),
        (Cause.REQUEUED, Action.LEAVE),
        (Cause.CANCELLED, Action.LEAVE),
        (Cause.UNKNOWN, Action.ASK),
    ],
)
def test_a_first_end(cause: Cause, expected: Action) -> None:
    assert action(cause, []) is expected


def test_preemptions_are_free() -> None:
    assert action(Cause.PREEMPTED, attempts(*["preempted"] * 500), progressed=False) is (
        Action.REQUEUE
    )


@pytest.mark.parametrize(
    ("cause", "setting", "allowed"),
    [(Cause.TIME_LIMIT, "max_timeouts", 2), (Cause.CRASHED, "max_crashes", 1)],
)
def test_time_outs_and_crashes_have_budgets(cause: Cause, setting: str, allowed: int) -> None:
    others = attempts(*["preempted", "signalled"] * 5)
    assert action(cause, attempts(*[str(cause)] * (allowed - 1)) + others) is Action.REQUEUE
    given_up = decide(
        cause, PastAttempt(cause, True), attempts(*[str(cause)] * allowed) + others, BUDGET
    )
    assert given_up.action is Action.GIVE_UP
    assert f"launch.{setting} allows {allowed}" in given_up.reason
    assert action(Cause.PREEMPTED, attempts(*[str(cause)] * 9)) is Action.REQUEUE


def test_attempts_without_progress_in_a_row_end_it() -> None:
    stalled = attempts("signalled", progressed=False)
    assert action(Cause.SIGNALLED, [], progressed=False) is Action.REQUEUE
    assert action(Cause.SIGNALLED, stalled, progressed=False) is Action.GIVE_UP
    assert action(Cause.SIGNALLED, stalled, progressed=True) is Action.REQUEUE
    assert action(Cause.SIGNALLED, stalled + attempts("crashed"), progressed=False) is (
        Action.REQUEUE
    )


def test_preempted_attempts_neither_count_as_stalled_nor_hide_that_others_are() -> None:
    between = attempts("preempted", "requeued", "preempted", progressed=False)
    stalled = attempts("signalled", progressed=False)
    assert action(Cause.SIGNALLED, between * 9, progressed=False) is Action.REQUEUE
    assert action(Cause.SIGNALLED, stalled + between, progressed=False) is Action.GIVE_UP


def test_a_job_that_may_not_be_requeued_gets_a_successor() -> None:
    assert action(Cause.PREEMPTED, [], requeue_allowed=False) is Action.RESUBMIT
    stalled = attempts("crashed", "crashed")
    assert action(Cause.CRASHED, stalled, requeue_allowed=False) is Action.GIVE_UP
    assert action(Cause.CANCELLED, [], requeue_allowed=False) is Action.LEAVE


# -- bad nodes ---------------------------------------------------------------------------------


def test_bad_nodes_have_a_budget_of_their_own_and_do_not_count_as_stalls() -> None:
    budget = LaunchConfig(max_bad_nodes=2, max_stalled_attempts=2, max_crashes=0)
    bad = PastAttempt(Cause.BAD_NODE, False)
    for nodes in (1, 2):
        found = decide(Cause.BAD_NODE, bad, [bad] * 5, budget, bad_nodes=nodes)
        assert found.action is Action.REQUEUE
    found = decide(Cause.BAD_NODE, bad, [bad], budget, bad_nodes=3)
    assert found.action is Action.GIVE_UP
    assert "3 nodes failed the check, launch.max_bad_nodes allows 2" in found.reason
