"""Parsers on what Slurm 22.05 printed, and the shape of the two calls."""

import os
from collections.abc import Callable

import pytest

from mgpt4_hpc.errors import SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.slurm.queue import (
    NEVER_SATISFIED,
    QueuedJob,
    ask_sacct,
    ask_squeue,
    parse_sacct,
    parse_squeue,
)
from tests.cli.fakes import FakeSlurm, squeue_row

# Recorded from `squeue --noheader --all --array --states=all --Format ...`, spaces squeezed.
SQUEUE = """\
5 |FAILED |NonZeroExitCode |node3 |1795360165 |1795360165 |N/A |0 |768 |(null) |0 |one |/runs/one |
2_0 |PENDING |BeginTime | |1795360221 |1795360221 |N/A |0 |0 |(null) |0 |one |/runs/one |
3 |PENDING |Dependency | |N/A |N/A |N/A |0 |0 |afterok:1(unfulfilled) |0 |one |/runs/one |
4 |CANCELLED |None |node[2-3] |1795360165 |1795360206 |N/A |0 |15 |(null) |0 |one |/runs/one |
1 |COMPLETING |None |node1 |1795360161 |N/A |1795360204 |1 |0 |(null) |0 |one |/runs/one |
1 |RUNNING |None |node[1-4] |1795360161 |1795360162 |1795360165 |0 |0 |(null) |0 |one |/runs/one |
"""
SACCT = """\
1|PREEMPTED|0:0|1795360162|1795360204|node[1-4]|None|0|one|/runs/one
3|CANCELLED by 1000|0:0|None|1795360206|None assigned|Dependency|0|one|/runs/one
2_[0-2%1]|PENDING|0:0|Unknown|Unknown|None assigned|BeginTime|0|one|/runs/one
5|FAILED|3:0|1795360165|1795360165|node3|None|0|one|/runs/one
"""


def test_squeue_rows() -> None:
    failed, pending, waiting, cancelled, completing, running = parse_squeue(SQUEUE)
    assert (failed.state, failed.exit_code, failed.nodes) == ("FAILED", "3:0", "node3")
    assert (pending.job_id, pending.reason, pending.nodes) == ("2_0", "BeginTime", "")
    assert pending.eligible_at == 1795360221
    assert waiting.start_at is None
    assert cancelled.exit_code == "0:15"
    assert not cancelled.is_active
    assert completing.restarts == 1
    assert completing.is_active
    assert running.reason == ""
    assert running.preempt_at == 1795360165


@pytest.mark.parametrize("reason", ["DependencyNeverSatisfied", "None"])
def test_who_cancelled_a_job_that_waited(reason: str) -> None:
    """As Slurm 22.05 and 24.11 give the reason of a job that they removed themselves."""
    tail = "| |N/A |1795360206 |N/A |0 |0"
    rows = f"6 |CANCELLED |{reason} {tail} |afterok:5(failed) |0 |one |/runs/one |\n"
    rows += (
        f"7 |CANCELLED |{reason.removesuffix('NeverSatisfied')} {tail} |afterok:1(unfulfilled) "
        "|0 |one |/runs/one |\n"
    )
    assert [job.reason for job in parse_squeue(rows)] == [NEVER_SATISFIED, "Dependency"]


@pytest.mark.parametrize(
    ("row", "by_slurm"),
    [
        (
            "6|CANCELLED|0:0|1795360206|1795360206|None assigned|Dependency|0|one|/runs/one",
            True,
        ),  # 22.05
        (
            "6|CANCELLED|0:0|None|1795360206|None assigned|None|0|one|/runs/one",
            True,
        ),  # 24.11, 26.05
        ("6|CANCELLED by 1000|0:0|None|1795360206|None assigned|None|0|one|/runs/one", False),
        ("6|CANCELLED|0:15|1795360200|1795360206|node1|None|0|one|/runs/one", False),
    ],
)
def test_who_cancelled_a_job_as_accounting_has_it(row: str, by_slurm: bool) -> None:
    (job,) = parse_sacct(row)
    assert (job.reason == NEVER_SATISFIED) == by_slurm


def test_sacct_rows() -> None:
    preempted, cancelled, array, failed = parse_sacct(SACCT)
    assert preempted.end_at == 1795360204
    assert (cancelled.state, cancelled.cancelled_by) == ("CANCELLED", "1000")
    assert (cancelled.start_at, cancelled.nodes) == (None, "")
    assert array.job_id == "2_[0-2%1]"
    assert failed.exit_code == "3:0"


@pytest.mark.parametrize("text", ["", "\n\n", "garbage", "a|b|c", "slurm_load_jobs error: x"])
def test_foreign_text_is_no_job(text: str) -> None:
    assert parse_squeue(text) == []
    assert parse_sacct(text) == []


def test_local_times_are_understood_too() -> None:
    row = squeue_row("1", "PENDING", eligible="2026-11-22T10:00:00")
    (job,) = parse_squeue(row)
    assert job.eligible_at is not None


def test_one_call_for_many_jobs(slurm: FakeSlurm) -> None:
    slurm.squeue = squeue_row("7", "RUNNING") + squeue_row("8", "PENDING")
    assert ask_squeue(["7", "9"]).keys() == {"7"}
    (command,) = slurm.calls
    assert "--jobs=7,9" in command


def test_no_call_for_no_job(slurm: FakeSlurm) -> None:
    assert ask_squeue([]) == ask_sacct([]) == {}
    assert ask_squeue(["$(reboot)", "7;8", "-u root"]) == {}
    assert slurm.calls == []


def test_more_ids_than_an_argument_holds(slurm: FakeSlurm) -> None:
    ask_squeue(str(number) for number in range(10_000_000, 10_020_000))
    (command,) = slurm.calls
    assert not any(word.startswith("--jobs") for word in command)


def test_users_own_filters_are_hidden(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    seen = {}

    def look(command: list[str]) -> str:
        seen.update(os.environ)
        return ""

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.queue.run_slurm", look)
    ask_squeue(["1"])
    assert "SQUEUE_USERS" not in seen
    assert seen["SLURM_TIME_FORMAT"] == "%s"
    assert os.environ["SLURM_TIME_FORMAT"] == "relative"
    assert os.environ["SQUEUE_USERS"] == "nobody"


def test_a_forgotten_job_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str]) -> str:
        raise SlurmRejected("slurm_load_jobs error: Invalid job id specified")

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.queue.run_slurm", refuse)
    assert ask_squeue(["1"]) == {}


def test_the_error_names_the_tool_and_not_its_format(slurm: FakeSlurm) -> None:
    slurm.squeue = None
    with pytest.raises(SlurmUnreachable, match="`squeue` cannot reach Slurm"):
        ask_squeue(["1"])


@pytest.mark.parametrize("ask", [ask_squeue, ask_sacct])
def test_an_answer_in_other_words_is_no_answer(
    slurm: FakeSlurm, ask: Callable[[list[str]], dict[str, QueuedJob]]
) -> None:
    slurm.squeue = slurm.sacct = "welcome to our cluster\n"
    with pytest.raises(SlurmUnreachable, match="cannot be understood: welcome to our cluster"):
        ask(["1"])
