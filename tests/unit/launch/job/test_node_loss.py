"""A start tells what accounting knows of the one before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.errors import SlurmUnreachable
from mgpt4_hpc.launch.job import node_loss
from mgpt4_hpc.launch.job.node_loss import explain_last_end
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import summarise
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger, append_supervisor_note, read_ledgers
from tests.unit.launch.job.attempts import causes

SECOND = JobStart("slurm", "7", 1)

LOST = "1893492000|NODE_FAIL\nUnknown|RUNNING\n"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run whose first attempt was silenced."""
    ledger = Ledger(tmp_path / "ledger", 1)
    ledger.event(Kind.START, job_id="7", restart_count=0, nodes=["node[1-2]"])
    ledger.close()
    return RunDir(tmp_path)


def test_a_lost_node_is_told(run: RunDir) -> None:
    explain_last_end(run, SECOND, lambda command: LOST)
    assert causes(run) == ["node lost"]
    (attempt,) = read_ledgers(run.ledger)
    assert attempt.supervisor["reason"] == "Slurm: NODE_FAIL on node[1-2]"


def test_the_wait_for_the_next_start_is_none_of_the_lost_ones_time(run: RunDir) -> None:
    """Else eleven hours in the queue are eleven hours of GPUs."""
    start, end = 1_893_488_400.0, 1_893_492_000.0
    records = [{"t": start, "kind": "start", "job_id": "7"}]
    note = {"t": end + 11 * 3600, "cause": "node lost", "ended_at": end}
    (attempt,) = summarise([(1, records, [note])])
    assert attempt.seconds == 3600
    before = read_ledgers(run.ledger)[0].end
    explain_last_end(run, SECOND, lambda command: "1700000000|NODE_FAIL\nUnknown|RUNNING\n")
    (attempt,) = read_ledgers(run.ledger)
    # A clock that is behind takes nothing from what the attempt's own lines tell.
    assert (attempt.supervisor["ended_at"], attempt.end) == (1_700_000_000, before)


def test_an_older_lost_node_is_told_as_well(run: RunDir) -> None:
    """Accounting was away at the second start."""
    for number, cause in ((2, "preempted"), (3, None)):
        ledger = Ledger(run.ledger, number)
        ledger.event(Kind.START, job_id="7", restart_count=number - 1, nodes=["node3"])
        if cause:
            ledger.event(Kind.END, cause=cause, step=5, exit_code=75)
        ledger.close()
    ends = "1893492000|NODE_FAIL\n1893495600|PREEMPTED\n1893499200|BOOT_FAIL\nUnknown|RUNNING\n"
    explain_last_end(run, JobStart("slurm", "7", 3), lambda command: ends)
    assert causes(run) == ["node lost", "preempted", "node lost"]


def test_it_corrects_what_looked_like_a_requeue_from_another_node(run: RunDir) -> None:
    append_supervisor_note(run.ledger, 1, cause="requeued", job_id="7", restart_count=0)
    explain_last_end(run, SECOND, lambda command: LOST)
    assert causes(run) == ["node lost"]


@pytest.mark.parametrize(
    "answer",
    [
        "1893492000|REQUEUED\nUnknown|RUNNING\n",
        "1893492000|NODE_FAIL\n1893495600|PREEMPTED\nUnknown|RUNNING\n",
        "",
        "nonsense",
        "1893492000|\n",
    ],
)
def test_another_end_stays_what_it_was(run: RunDir, answer: str) -> None:
    before = causes(run)
    explain_last_end(run, SECOND, lambda command: answer)
    assert causes(run) == before


@pytest.mark.parametrize(
    "start", [JobStart("slurm", "7", 0), JobStart("slurm", "8", 1), JobStart("local", "7", 1)]
)
def test_nobody_is_asked_where_there_is_nothing_to_explain(run: RunDir, start: JobStart) -> None:
    asked: list[object] = []
    explain_last_end(run, start, lambda command: str(asked.append(command)))
    assert asked == []


def test_an_attempt_that_knows_why_it_ended_is_believed(run: RunDir) -> None:
    ledger = Ledger(run.ledger, 1)
    ledger.event(Kind.END, cause="preempted", step=5, exit_code=75)
    ledger.close()
    asked: list[object] = []
    explain_last_end(run, SECOND, lambda command: str(asked.append(command)))
    assert asked == []


def test_no_accounting_stops_nothing(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(command: object) -> str:
        raise SlurmUnreachable("sacct is not installed here")

    explain_last_end(run, SECOND, ask)
    assert "not known: sacct is not installed here" in capsys.readouterr().out


def test_a_ledger_that_cannot_be_read_explains_nothing_and_stops_nothing(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stale(folder: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(node_loss, "read_ledgers", stale)
    explain_last_end(run, SECOND, lambda command: LOST)
    assert "Stale file handle" in capsys.readouterr().out
