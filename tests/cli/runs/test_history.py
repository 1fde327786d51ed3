from pathlib import Path

import pytest

from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import Clock, attempt, make_run


def test_three_attempts(mgpt4: Mgpt4, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    clock = Clock()
    attempt(run, 1, first=1, last=30, cause="preempted", clock=clock)
    clock.now += 50
    attempt(run, 2, first=26, last=60, restart_count=1, clock=clock)
    clock.now += 5
    attempt(run, 3, first=61, last=100, restart_count=2, cause="finished", clock=clock)

    told = mgpt4("history", "one", "--json").json
    assert [one["cause"] for one in told["attempts"]] == ["preempted", "unknown", "finished"]
    assert [one["steps_replayed"] for one in told["attempts"]] == [0, 5, 0]
    assert [(one["from_step"], one["to_step"]) for one in told["attempts"]] == [
        (0, 30),
        (25, 60),
        (60, 100),
    ]
    assert told["attempts"][1]["buckets"]["replayed"] == pytest.approx(5)
    assert told["attempts"][1]["buckets"]["queue_wait"] == pytest.approx(50)
    # 105 steps of a second, 5 of them twice; three start-ups of 10 s; 55 s in the queue.
    assert told["goodput"]["without_queue"] == pytest.approx(100 / 135)
    assert told["goodput"]["with_queue"] == pytest.approx(100 / 190)

    out = mgpt4("history", "one").out
    assert "17 restart 2" in out
    assert "goodput 74.1%" in out
    assert "queue wait 55 s" in out


def test_not_started(mgpt4: Mgpt4, tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    ended = mgpt4("history", "one")
    assert (ended.code, ended.out) == (0, "")
    assert "has not started yet" in ended.err
    assert mgpt4("history", "one", "--json").json["attempts"] == []


def test_no_such_run(mgpt4: Mgpt4) -> None:
    assert mgpt4("history", "other").code == 6
