"""What a run is said to be doing, whatever squeue, sacct and its folder hold."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.formatting import clock_time
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.runs.run_state import AnswerSource, JobAnswer, describe_run, failure
from mgpt4_hpc.launch.slurm.queue import QueuedJob
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from tests.cli.synthetic import Clock, attempt, make_run, submitted

NOW = time.time()

RESUME = "run `mgpt4 resume one`"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return submitted(make_run(tmp_path))


def said(run: RunDir, answer: JobAnswer) -> tuple[str, str]:
    status = describe_run(read_facts(run), answer, NOW)
    return str(status.state), status.text


def squeue(state: str, **fields: Any) -> JobAnswer:
    return JobAnswer(QueuedJob("17", state, **fields), AnswerSource.SQUEUE)


def recently() -> Clock:
    return Clock(NOW - 60)


UNKNOWN_JOB = JobAnswer()

SILENT = JobAnswer(asked=False)

TOO_OFTEN = "held after too many requeues by Slurm (MaxBatchRequeue): `scontrol release 17`"


def test_a_job_that_waits_names_the_run_it_waits_for(run: RunDir) -> None:
    waits = JobAnswer(
        QueuedJob("17", "PENDING", reason="Dependency"),
        AnswerSource.SQUEUE,
        waited_for=RunDir(Path("/r/a")),
    )
    assert said(run, waits) == ("pending", "pending (waits for a)")


def test_the_reasons_of_slurm_to_let_a_job_wait_are_in_the_table() -> None:
    page = (Path(__file__).parents[4] / "docs" / "troubleshooting.md").read_text()
    reasons = (
        "None Priority Resources Dependency BeginTime JobArrayTaskLimit Licenses Reservation "
        "ReqNodeNotAvail PartitionTimeLimit PartitionNodeLimit PartitionDown PartitionInactive "
        "BadConstraints InvalidQOS InvalidAccount QOSMaxWallDurationPerJobLimit AssocMax AssocGrp"
    )
    assert [reason for reason in reasons.split() if f"({reason}" not in page] == []


def test_a_copy_whose_original_was_renamed_does_not_name_its_old_place_as_a_run(
    tmp_path: Path,
) -> None:
    one = submitted(make_run(tmp_path))
    job = read_json(one.slurm / "job.json")
    write_json(one.slurm / "job.json", {**job, "folder": str(one.path), "inode": 0})
    copy = RunDir(shutil.copytree(one.path, tmp_path / "copy"))
    assert f"stopped: a copy of {one.path}, without a job" in said(copy, UNKNOWN_JOB)[1]
    one.path.rename(tmp_path / "renamed")
    text = said(copy, UNKNOWN_JOB)[1]
    assert f"stopped: a copy of a run that was in {one.path}, without a job" in text


def test_a_cancelled_job_that_ends_is_not_said_to_be_killed(run: RunDir) -> None:
    attempt(run, 1, first=1, last=9)
    request_cancel(run, "17")
    assert said(run, squeue("COMPLETING", restarts=1)) == ("running", "cancelled: ending")


def test_never_submitted(tmp_path: Path) -> None:
    assert said(make_run(tmp_path), UNKNOWN_JOB) == (
        "stopped",
        f"stopped: never submitted; {RESUME}",
    )


@pytest.mark.parametrize(
    ("answer", "state", "text"),
    [
        (squeue("PENDING", reason="Priority"), "pending", "pending (Priority)"),
        (
            squeue("PENDING", reason="Resources", start_at=NOW + 7200),
            "pending",
            "pending (Resources), expected to start in 2.0 h",
        ),
        (squeue("PENDING", reason="Dependency"), "pending", "pending (Dependency)"),
        (squeue("PENDING", reason="JobHeldUser"), "pending", "held: `scontrol release 17`"),
        (
            squeue("PENDING", reason="job requeued in held state"),
            "pending",
            "held: `scontrol release 17`",
        ),
        (
            squeue("PENDING", reason="JobHeldAdmin"),
            "pending",
            "held by an administrator, who alone can release it: ask the cluster's support",
        ),
        (squeue("REQUEUE_HOLD", reason="JobHoldMaxRequeue"), "pending", TOO_OFTEN),  # 22.05
        (squeue("REQUEUE_HOLD", reason="BeginTime"), "pending", "pending (BeginTime)"),  # released
        (squeue("REQUEUE_HOLD", reason=""), "pending", "pending (no reason given)"),  # just now
        (  # 24.11, 26.05
            squeue("REQUEUE_HOLD", reason="launch failure limit exceeded requeued held"),
            "pending",
            TOO_OFTEN,
        ),
        (
            squeue("PENDING", reason="launch failed requeued held"),
            "pending",
            "held because a node could not start it: `scontrol release 17`",
        ),
        (
            squeue("PENDING", reason="DependencyNeverSatisfied"),
            "stopped",
            f"stopped: the job it waited for did not succeed; {RESUME}",
        ),
        (squeue("CONFIGURING"), "pending", "starting: its nodes are being prepared"),
        (squeue("RUNNING"), "running", "starting"),
        (squeue("CANCELLED"), "cancelled", "cancelled"),
        (squeue("CANCELLED", reason="Dependency"), "cancelled", "cancelled"),
        (
            squeue("CANCELLED", reason="DependencyNeverSatisfied", cancelled_by="1000"),
            "cancelled",
            "cancelled by user 1000",
        ),
        (
            squeue("CANCELLED", reason="DependencyNeverSatisfied"),
            "stopped",
            f"stopped: the job it waited for did not succeed; {RESUME}",
        ),
        (
            squeue("FAILED", exit_code="1:0"),
            "failed",
            "failed: Slurm says FAILED, exit code 1; read `mgpt4 logs one`",
        ),
        (squeue("NODE_FAIL"), "stopped", f"stopped (Slurm says NODE_FAIL): {RESUME}"),
        (
            JobAnswer(QueuedJob("17", "CANCELLED", cancelled_by="1000"), AnswerSource.SACCT),
            "cancelled",
            "cancelled by user 1000",
        ),
        (UNKNOWN_JOB, "lost", f"lost: Slurm does not know job 17; {RESUME}"),
        (SILENT, "unknown", "unknown: Slurm does not answer"),
    ],
)
def test_before_the_first_attempt(run: RunDir, answer: JobAnswer, state: str, text: str) -> None:
    assert said(run, answer) == (state, text)


def test_a_job_of_this_minute_is_not_lost(run: RunDir) -> None:
    submitted(run, age_s=1)
    assert said(run, UNKNOWN_JOB) == ("pending", "submitted a moment ago")


def test_a_successor_that_waits(run: RunDir) -> None:
    attempt(run, 1, first=1, last=20, cause="preempted", clock=recently())
    write_json(run.slurm / "job.json", {"job_id": "50", "submitted": NOW, "succeeds": ["17"]})
    waits = JobAnswer(QueuedJob("50", "PENDING", reason="Dependency"), AnswerSource.SQUEUE)
    assert said(run, waits) == (
        "pending",
        "preempted, submitted again, pending (Dependency)",
    )


def test_running(run: RunDir) -> None:
    attempt(run, 1, first=1, last=20, clock=recently())
    assert said(run, squeue("RUNNING")) == ("running", "running")
    assert said(run, squeue("RUNNING", preempt_at=NOW)) == ("running", "being preempted: saving")
    # Only its next start is running, which has not said anything yet.
    assert said(run, squeue("RUNNING", restarts=1)) == ("running", "starting")
    # Accounting says 0 restarts of everything.
    assert said(run, JobAnswer(QueuedJob("17", "RUNNING"), AnswerSource.SACCT))[1] == "running"
    # Nobody can be asked, but the run is writing.
    assert said(run, SILENT) == ("running", "running")


def test_the_last_word_of_accounting_tells_how_old_it_may_be(run: RunDir) -> None:
    """It is believed about what is not over only while squeue does not answer."""
    later = time.time() + 3600

    def in_accounting(state: str, **fields: Any) -> tuple[str, float | None]:
        job = QueuedJob("17", state, **fields)
        status = describe_run(read_facts(run), JobAnswer(job, AnswerSource.SACCT), later)
        return status.text, status.as_of

    facts = read_facts(run)
    assert facts.job is not None
    since = facts.job.since
    told = f"pending (Priority), as of {clock_time(since, later)}"
    assert in_accounting("PENDING", reason="Priority") == (told, since)
    started = since + 60
    told = f"starting, as of {clock_time(started, later)}"
    assert in_accounting("RUNNING", start_at=started) == (told, started)
    attempt(run, 1, first=1, last=20)
    text, as_of = in_accounting("RUNNING", start_at=started)
    assert as_of == read_facts(run).last_sign_at
    assert text.startswith("running, but silent") and " as of " in text


def test_running_but_silent(run: RunDir) -> None:
    attempt(run, 1, first=1, last=20)
    facts = read_facts(run)
    # From the heartbeat on, not from this file's import: a long session lies between them.
    later = describe_run(facts, squeue("RUNNING"), time.time() + 900)
    assert (later.state, later.text) == ("running", "running, but silent for 15 min")


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        ("preempted", "preempted"),
        ("time limit", "time limit reached"),
        ("crashed", "crashed"),
        ("requeued", "put back by Slurm"),
        (None, "killed"),
    ],
)
def test_between_two_attempts(run: RunDir, cause: str | None, word: str) -> None:
    attempt(run, 1, first=1, last=20, cause=cause)
    waits = squeue("PENDING", reason="BeginTime", eligible_at=NOW + 40, restarts=1)
    assert said(run, waits) == ("pending", f"{word}, requeued, eligible in 40 s")
    queued = squeue("PENDING", reason="Priority", eligible_at=NOW - 5, restarts=1)
    assert said(run, queued) == ("pending", f"{word}, requeued, pending (Priority)")
    assert said(run, squeue("COMPLETING", restarts=1)) == ("running", f"ending ({word}, requeued)")


def test_finished_wins_over_everybody(run: RunDir) -> None:
    attempt(run, 1, first=1, last=100, cause="finished")
    for answer in (squeue("COMPLETING"), squeue("FAILED"), UNKNOWN_JOB, SILENT):
        status = describe_run(read_facts(run), answer, NOW)
        assert (status.state, status.text, status.source) == ("finished", "finished", "run folder")


def test_what_was_left_behind(run: RunDir) -> None:
    attempt(run, 1, first=1, last=20, cause="time limit")
    over = squeue("FAILED", exit_code="75:0")
    run.resubmit_needed.write_text("Slurm did not say why\n\nmgpt4 resume x\n")
    assert said(run, over) == ("stopped", f"stopped: {RESUME}")
    assert said(run, SILENT) == ("stopped", f"stopped: {RESUME}")
    run.failed.write_text("crashed 6 times, launch.max_crashes allows 5\n")
    assert said(run, over) == ("failed", "failed: crashed 6 times, launch.max_crashes allows 5")
    run.failed.write_text("crashed 6 times; the last fault: CUDA error: out of memory\n")
    assert said(run, over) == ("failed", "failed: CUDA error: out of memory")
    assert failure(read_facts(run))[1] == ("crashed 6 times",)


def test_the_first_of_two_goals_is_not_the_end(run: RunDir) -> None:
    """Finished, and given more steps afterwards: what Slurm knows of its job counts again."""
    attempt(run, 1, first=1, last=100, cause="finished")
    file = run.ledger / "attempt-0001.jsonl"
    *lines, end = file.read_text().splitlines()
    for steps, state in ((99, "stopped"), (100, "finished"), (101, "finished")):
        file.write_text(
            "\n".join([*lines, json.dumps({**json.loads(end), "all_steps": steps}), ""])
        )
        assert said(run, squeue("COMPLETED"))[0] == state


def test_a_reason_with_terminal_escapes_is_harmless(run: RunDir) -> None:
    run.failed.write_text("\x1b[2J\x07bad\x1b]0;title\x07\n")
    assert said(run, squeue("FAILED"))[1] == "failed: [2J bad ]0;title"


def test_cancelled_by_mark(run: RunDir) -> None:
    attempt(run, 1, first=1, last=20, clock=recently())
    request_cancel(run, "17")
    assert said(run, squeue("RUNNING"))[1] == "cancelled: saving, then it ends"
    run.resubmit_needed.write_text("Slurm does not allow this job to be requeued\n")
    assert said(run, squeue("FAILED")) == ("cancelled", "cancelled")


def test_a_mark_for_an_older_job_says_nothing(run: RunDir) -> None:
    request_cancel(run, "16")
    assert said(run, squeue("RUNNING"))[1] == "starting"


def test_cancelled_before_slurm_knew_it_apart(tmp_path: Path) -> None:
    """So it is with a task that waits in an array: its id is gone as soon as it is cancelled."""
    run = make_run(tmp_path)
    submitted(run, "17_2", age_s=5)
    assert said(run, UNKNOWN_JOB) == ("pending", "submitted a moment ago")
    request_cancel(run, "17_2")
    assert said(run, UNKNOWN_JOB) == ("cancelled", "cancelled")


def test_lost_says_when_it_was_last_seen(run: RunDir) -> None:
    attempt(run, 1, first=1, last=20)
    facts = read_facts(run)
    status = describe_run(facts, UNKNOWN_JOB, time.time() + 3 * 3600)
    assert status.state == "lost"
    assert "Slurm does not know job 17, last sign of life 3.0 h ago" in status.text


def test_preempted_on_a_silent_slurm(run: RunDir) -> None:
    attempt(run, 1, first=1, last=20, cause="preempted", requeue=True)
    told = "unknown: preempted, requeued; Slurm does not answer"
    assert describe_run(read_facts(run), SILENT, NOW + 900).text == told
    request_cancel(run, "17")
    assert describe_run(read_facts(run), SILENT, NOW + 900).text == told


def test_a_cancel_that_was_asked_for_is_no_end_on_a_silent_slurm(run: RunDir) -> None:
    request_cancel(run, "17")
    assert said(run, SILENT)[0] == "unknown", "the job may wait in the queue"
    attempt(run, 1, first=1, last=20, cause="cancelled")
    assert describe_run(read_facts(run), SILENT, NOW + 900).state == "cancelled"
    submitted(run, job_id="18")
    request_cancel(run, "18")
    assert said(run, SILENT)[0] == "unknown", "the attempt was an earlier job's"


def test_local_processes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    submitted(run, executor="local", job_id="4711")
    assert said(run, JobAnswer(alive=True)) == ("running", "starting")
    assert said(run, JobAnswer(alive=False))[0] == "lost"
    attempt(
        run, 1, first=1, last=5, job_id="4711", executor="local", cause="preempted", requeue=True
    )
    assert said(run, JobAnswer(alive=True)) == ("running", "preempted, starting again")
    assert said(run, JobAnswer(alive=False))[0] == "lost"


def test_a_run_by_hand_is_seen_too(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    attempt(run, 1, first=1, last=5, job_id="99", executor="slurm", clock=recently())
    facts = read_facts(run)
    assert facts.job is not None
    assert (facts.job.executor, facts.job.job_id) == ("slurm", "99")
