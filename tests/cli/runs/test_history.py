from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json, write_json
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger, append_supervisor_note
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


def test_a_run_that_finished_early_is_named_so(mgpt4: Mgpt4, tmp_path: Path) -> None:
    run, why = make_run(tmp_path / "runs"), "no new lowest held-out loss"
    attempt(run, 1, first=1, last=30, cause="finished", early=why)
    assert "finished early" in mgpt4("history", "one").out
    (told,) = mgpt4("history", "one", "--json").json["attempts"]
    assert (told["cause"], told["early"]) == ("finished", why)


def test_where_a_run_began_and_which_cluster_an_attempt_was_on(
    mgpt4: Mgpt4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run = make_run(tmp_path / "runs"), make_run(tmp_path / "runs", "two")
    attempt(one, 1, first=1, last=30, cause="finished")
    monkeypatch.chdir(one.path)
    assert mgpt4("history", one.path, "--json").json["origin"] == ""
    monkeypatch.chdir(tmp_path)
    settings = run.config_file.read_text()
    start = one.checkpoints / "step-00000030"
    run.config_file.write_text(settings.replace("projector: null", f"projector: {start}"))
    attempt(run, 1, first=1, last=30, cause="preempted")
    for number, cluster in ((2, "alpha"), (3, "beta")):
        append_supervisor_note(
            run.ledger, number, cause="crashed", job_id=f"9{number}", cluster=cluster
        )
    told = mgpt4("history", "two")
    assert told.out.splitlines()[0] == "two starts from the weights of one@30"
    assert "92 on alpha" in told.out and "93 on beta" in told.out
    identity = read_json(run.identity_file)
    write_json(run.identity_file, {**identity, "branched_from": [{"name": "one", "step": 20}]})
    assert mgpt4("history", "two", "--json").json["origin"] == "continues one@20"


def test_changes_of_settings_and_a_refused_start(mgpt4: Mgpt4, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    attempt(run, 1, first=1, last=30, cause="cancelled")
    append_supervisor_note(run.ledger, 2, cause="refused", job_id="18")
    ledger = Ledger(run.ledger, 3)
    ledger.event(Kind.CHANGED, what=["train.lr was 0.01, is 0.001"])
    ledger.event(Kind.RESTORE, step=30)
    ledger.close()
    assert mgpt4("history", "one", "--json").json["changes"] == [
        {"attempt": 3, "step": 30, "what": "train.lr was 0.01, is 0.001"}
    ]
    out = mgpt4("history", "one").out
    assert "attempt 3, step 30: train.lr was 0.01, is 0.001" in out and "0-0" not in out


def test_an_attempt_that_was_killed_is_not_said_to_run(mgpt4: Mgpt4, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    attempt(run, 1, first=1, last=30)
    assert " running " in mgpt4("history", "one").out
    beat = read_json(run.heartbeat)
    write_json(run.heartbeat, {**beat, "time": beat["time"] - 1200})
    out = mgpt4("history", "one").out
    assert " running " not in out and "silent for 20 min" in out
    (run.ledger / "attempt-0002.jsonl").touch()  # as a power loss leaves it
    out = mgpt4("history", "one").out
    assert " unknown " in out and "silent" not in out


def test_not_started(mgpt4: Mgpt4, tmp_path: Path) -> None:
    make_run(tmp_path / "runs")
    ended = mgpt4("history", "one")
    assert (ended.code, ended.out) == (0, "")
    assert "has not started yet" in ended.err
    assert mgpt4("history", "one", "--json").json["attempts"] == []


def test_no_such_run(mgpt4: Mgpt4) -> None:
    assert mgpt4("history", "other").code == 6
