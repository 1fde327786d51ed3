"""The last supervisor, on the run folders that rank 0 may leave behind.

``scontrol`` is a script here, for the ends that a real Slurm does not give on request; that the
real one is asked and obeyed as here is shown in tests/slurm.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc import retry
from mgpt4_hpc.launch.job import requeue, supervisor
from mgpt4_hpc.launch.job.supervisor import (
    decide_after_exit,
    decide_after_exit_local,
    decide_after_exit_with_retry,
)
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger, append_hang, read_ledgers
from tests.unit.launch.fakes import FakeScontrol
from tests.unit.launch.job.attempts import PREEMPTED, START, causes, end, left_behind


def attempt(
    run: RunDir,
    *,
    job: str = "17",
    restart: int = 0,
    saved: int | None = 5,
    cluster: str = "",
) -> Ledger:
    """An attempt that began at step 0, as its ledger has it."""
    number = run.claim_attempt({"job_id": job})
    ledger = Ledger(run.ledger, number)
    ledger.event(Kind.START, job_id=job, restart_count=restart, cluster=cluster)
    if saved is not None:
        ledger.event(Kind.SAVE, step=saved)
    return ledger


# -- somebody decided already ------------------------------------------------------------------


def test_a_finished_run_is_done_whatever_srun_says(run: RunDir, scontrol: FakeScontrol) -> None:
    end(attempt(run), "finished", code=0)
    assert decide_after_exit(run, START, 143).exit_code == 0
    assert scontrol.calls == []


def test_the_history_tells_of_a_start_that_gave_up_before_training(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    attempt(run, saved=None)
    run.failed.write_text("its projector is not final\n")
    assert decide_after_exit(run, START, 70).exit_code == 70
    assert causes(run) == ["fatal"]
    assert decide_after_exit(run, START, 70).exit_code == 70 and causes(run) == ["fatal"]


def test_a_failed_run_stays_so(run: RunDir, scontrol: FakeScontrol) -> None:
    attempt(run)
    run.failed.write_text("the settings are wrong\n")
    verdict = decide_after_exit(run, START, 1)
    assert (verdict.exit_code, verdict.again) == (70, False)
    assert verdict.reason == "the settings are wrong"
    assert scontrol.calls == []


def test_rank_0_decided_and_requeued(run: RunDir, scontrol: FakeScontrol) -> None:
    end(attempt(run), "preempted", accepted=True)
    verdict = decide_after_exit(run, START, 143)
    assert (verdict.exit_code, verdict.again) == (75, True)
    assert scontrol.calls == []


def test_rank_0_left_it_to_a_person(run: RunDir, scontrol: FakeScontrol) -> None:
    end(attempt(run), "unknown", accepted=False)
    run.resubmit_needed.write_text("mgpt4 resume x\n")
    verdict = decide_after_exit(run, START, 75)
    assert (verdict.exit_code, verdict.again) == (75, False)
    assert scontrol.calls == []


def test_a_newer_attempt_owns_the_run(run: RunDir, scontrol: FakeScontrol) -> None:
    # Requeued, the older job would take the run back, and the two would go on for ever.
    attempt(run)
    attempt(run, job="18")
    verdict = decide_after_exit(run, START, 70)
    assert (verdict.exit_code, verdict.again) == (70, False)
    assert "overtaken by attempt 2" in verdict.reason
    assert scontrol.calls == [] and left_behind(run) == set()


# -- nobody lived to decide --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        ({}, "crashed"),
        (PREEMPTED, "preempted"),
        ({"state": "COMPLETING", "preempt": "2026-03-01T10:00:20"}, "preempted"),
        ({"state": "COMPLETING", "reason": "TimeLimit"}, "time limit"),
    ],
)
def test_it_is_requeued_with_a_note(
    run: RunDir, scontrol: FakeScontrol, says: dict[str, Any], cause: str
) -> None:
    attempt(run)
    scontrol.says(**says)
    verdict = decide_after_exit(run, START, 137)
    assert (verdict.exit_code, verdict.again) == (75, True)
    assert scontrol.requeues == ["requeue 17"]
    assert causes(run) == [cause]
    assert left_behind(run) == set()


@pytest.mark.parametrize(
    ("says", "cause"),
    [({"state": "COMPLETING"}, "cancelled"), ({"restarts": 1}, "requeued")],
)
def test_it_is_left_alone(
    run: RunDir, scontrol: FakeScontrol, says: dict[str, Any], cause: str
) -> None:
    attempt(run)
    scontrol.says(**says)
    verdict = decide_after_exit(run, START, 143)
    assert (verdict.exit_code, verdict.again) == (75, False)
    assert scontrol.requeues == [] and causes(run) == [cause] and left_behind(run) == set()


def test_a_silent_slurm_leaves_the_command_for_a_person(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    attempt(run)
    verdict = decide_after_exit(run, START, 137)  # the fake has no answer
    assert (verdict.exit_code, verdict.again) == (75, False)
    assert len(scontrol.calls) == 3, "asked more than once"
    assert run.resubmit_needed.read_text().endswith(f"\n\nmgpt4 resume '{run.path}'\n")


@pytest.mark.slow
def test_an_end_that_nobody_can_ask_about_names_the_missing_scontrol(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(run)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert not decide_after_exit(run, START, 137).again
    assert "there is no scontrol in PATH" in run.resubmit_needed.read_text()


def test_a_person_who_asked_for_its_end_gets_it(run: RunDir, scontrol: FakeScontrol) -> None:
    attempt(run)
    scontrol.says(**PREEMPTED)
    request_cancel(run, "17")
    assert not decide_after_exit(run, START, 143).again
    assert scontrol.requeues == [] and causes(run) == ["cancelled"]


def test_a_mark_for_another_job_means_nothing(run: RunDir, scontrol: FakeScontrol) -> None:
    attempt(run)
    scontrol.says(**PREEMPTED)
    request_cancel(run, "16")
    assert decide_after_exit(run, START, 143).again


def hang(run: RunDir, rank: int) -> None:
    append_hang(run.ledger, 1, rank, phase="step", step=5, silent_s=600.0, host="node1")


def test_a_hang_counts_as_one_whatever_srun_says(run: RunDir, scontrol: FakeScontrol) -> None:
    attempt(run)
    hang(run, 1)
    scontrol.says()
    assert decide_after_exit(run, START, 137).again, (
        "rank 0 was stopped, and srun tells of its KILL"
    )
    assert causes(run) == ["hung"]


@pytest.mark.parametrize("code", [72, 142])
def test_a_hang_that_could_not_be_written_down(
    run: RunDir, scontrol: FakeScontrol, code: int
) -> None:
    attempt(run)
    scontrol.says()
    assert decide_after_exit(run, START, code).again
    assert causes(run) == ["hung"]


def test_hangs_have_a_budget_of_their_own(run: RunDir, scontrol: FakeScontrol) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("max_hangs: 5", "max_hangs: 1"))
    attempt(run)
    scontrol.says()
    assert decide_after_exit(run, START, 72).again
    attempt(run, restart=1)
    scontrol.says(restarts=1)
    verdict = decide_after_exit(run, JobStart("slurm", "17", 1), 72)
    assert (verdict.exit_code, verdict.again) == (70, False)
    assert "hung 2 times, launch.max_hangs allows 1" in verdict.reason


def test_a_hang_in_a_job_that_somebody_cancelled_is_cancelled(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    attempt(run)
    hang(run, 0)
    scontrol.says(state="COMPLETING")
    assert not decide_after_exit(run, START, 72).again
    assert causes(run) == ["cancelled"]


def test_the_controller_hears_of_a_hang_beside_other_codes(run: RunDir) -> None:
    attempt(run, job="99")
    assert decide_after_exit_local(run.path, "99", 0, [72, -9]).again
    assert causes(run) == ["hung"]


def test_after_a_fault_a_signal_was_sruns(run: RunDir, scontrol: FakeScontrol) -> None:
    ledger = attempt(run)
    ledger.event(Kind.SIGNAL, name="SIGTERM")
    ledger.event(Kind.FAULT, what="RuntimeError", reason="Connection closed by peer")
    scontrol.says()
    decide_after_exit(run, START, 137)
    assert causes(run) == ["crashed"]


def test_who_left_before_the_ranks_had_met_was_told_to(run: RunDir) -> None:
    assert decide_after_exit_local(run.path, "99", 0, [75, -15]).again
    assert causes(run) == ["preempted"]


def test_tasks_that_never_began_count_as_an_attempt(run: RunDir, scontrol: FakeScontrol) -> None:
    scontrol.says()
    assert decide_after_exit(run, START, 1).again
    (counted,) = read_ledgers(run.ledger)
    assert (counted.number, counted.cause, counted.exit_code) == (1, "crashed", 1)
    # max_crashes is 1, and the second start is no luckier.
    scontrol.says(restarts=1)
    verdict = decide_after_exit(run, JobStart("slurm", "17", 1), 1)
    assert (verdict.exit_code, verdict.again) == (70, False)
    assert "launch.max_crashes allows 1" in run.failed.read_text()


def test_a_person_who_submits_again_starts_with_full_budgets(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    end(attempt(run), "crashed")
    attempt(run, restart=1)
    scontrol.says(restarts=1)
    assert decide_after_exit(run, JobStart("slurm", "17", 1), 137).exit_code == 70
    run.clear_markers()
    attempt(run, job="18")
    scontrol.says()
    assert decide_after_exit(run, JobStart("slurm", "18", 0), 137).again


@pytest.mark.parametrize(("there", "code"), [("alpha", 70), ("", 70), ("beta", 75)])
def test_a_job_of_the_same_id_on_another_cluster_is_another_job(
    run: RunDir, scontrol: FakeScontrol, there: str, code: int
) -> None:
    end(attempt(run, cluster=there), "crashed")
    attempt(run, restart=1, cluster="alpha")
    scontrol.says(restarts=1)
    here = JobStart("slurm", "17", 1, cluster="alpha")
    assert decide_after_exit(run, here, 137).exit_code == code, "1 crash is allowed for each job"


# -- rank 0 decided and died before its requeue ------------------------------------------------


def test_what_rank_0_found_out_holds(run: RunDir, scontrol: FakeScontrol) -> None:
    # The notice of the preemption is gone by now; as a crash this would be the last one allowed.
    attempt(run, restart=0)
    end(attempt(run, restart=1), "preempted")
    scontrol.says(restarts=1)
    verdict = decide_after_exit(run, JobStart("slurm", "17", 1), 137)
    assert verdict.again and scontrol.requeues == ["requeue 17"]
    assert causes(run)[1] == "preempted"


def test_unless_somebody_cancelled_or_requeued_since(run: RunDir, scontrol: FakeScontrol) -> None:
    end(attempt(run), "signalled")
    scontrol.says(state="COMPLETING")
    assert not decide_after_exit(run, START, 143).again
    scontrol.says(state="COMPLETING", restarts=1)
    assert not decide_after_exit(run, START, 143).again
    assert scontrol.requeues == []


def test_a_person_cancelled_and_rank_0_died_before_it_could_say_so(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    end(attempt(run), "cancelled")
    scontrol.says()
    assert not decide_after_exit(run, START, 137).again
    assert scontrol.requeues == []


# -- trouble on the way ------------------------------------------------------------------------


def test_a_full_disk_does_not_prevent_the_requeue(
    run: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    attempt(run)
    scontrol.says()
    monkeypatch.setattr(supervisor, "append_supervisor_note", full)
    assert decide_after_exit(run, START, 137).again
    assert scontrol.requeues == ["requeue 17"]


def test_a_folder_that_takes_nothing_does_not_bring_the_job_back_for_ever(
    run: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> int:
        raise OSError(122, "Disk quota exceeded")

    end(attempt(run), "preempted", accepted=True)
    monkeypatch.setattr(RunDir, "claim_attempt", full)
    scontrol.says(restarts=1)
    assert decide_after_exit(run, JobStart("slurm", "17", 1), 1).again
    scontrol.says(restarts=2)
    verdict = decide_after_exit(run, JobStart("slurm", "17", 2), 1)
    assert (verdict.exit_code, verdict.again) == (70, False)
    assert "2 starts in a row could write nothing" in verdict.reason
    assert verdict.reason.endswith("the last: crashed")


@pytest.fixture
def stumble(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next so many readings of the ledgers fail."""
    monkeypatch.setattr(supervisor, "_PAUSES_S", (0.0, 0.0))
    left: list[OSError] = []

    def read(folder: Path) -> list[Attempt]:
        if left:
            raise left.pop()
        return read_ledgers(folder)

    monkeypatch.setattr(supervisor, "read_ledgers", read)
    monkeypatch.setattr(requeue, "read_ledgers", read)
    return lambda times: left.extend(times * [OSError(errno.ESTALE, "Stale file handle")])


def test_a_stale_handle_is_tried_again(
    run: RunDir, scontrol: FakeScontrol, stumble: Callable[[int], None]
) -> None:
    attempt(run)
    scontrol.says()
    stumble(2)
    assert decide_after_exit_with_retry(run, START, 137).again
    assert scontrol.requeues == ["requeue 17"] and causes(run) == ["crashed"]


@pytest.mark.parametrize(
    ("says", "code", "restart", "again", "left"),
    [
        ({}, 137, 0, True, set()),
        (PREEMPTED, 1, 99, True, set()),
        ({}, 1, 100, False, {"RESUBMIT_NEEDED"}),
        ({"state": "COMPLETING"}, 143, 0, False, set()),
        ({"restarts": 1}, 143, 0, False, set()),
        ({}, 70, 0, False, set()),
        ({}, 0, 0, False, set()),
    ],
)
def test_a_folder_that_stays_unreadable_leaves_it_to_slurm(
    run: RunDir,
    scontrol: FakeScontrol,
    stumble: Callable[[int], None],
    says: dict[str, Any],
    code: int,
    restart: int,
    again: bool,
    left: set[str],
) -> None:
    scontrol.says(**{"restarts": restart, **says})
    stumble(99)
    verdict = decide_after_exit_with_retry(run, JobStart("slurm", "17", restart), code)
    assert (verdict.exit_code, verdict.again) == (code if code in (0, 70) else 75, again)
    assert bool(scontrol.requeues) is again and left_behind(run) == left
    assert "Stale file handle" in verdict.reason


def test_the_job_of_a_run_that_was_removed_stays_away(
    run: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_PAUSES_S", (0.0,))
    scontrol.says()
    shutil.rmtree(run.path)
    verdict = decide_after_exit_with_retry(run, START, 137)
    assert (verdict.exit_code, verdict.again) == (75, False)
    assert "removed or moved" in verdict.reason and scontrol.requeues == []
    # Where the mount is away, nobody removed it.
    away = RunDir(run.path.parent / "not-mounted" / run.name)
    assert decide_after_exit_with_retry(away, START, 137).again


def test_settings_that_cannot_be_read_are_waited_for_no_longer_than_the_rest(
    run: RunDir, scontrol: FakeScontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute would be all that Slurm leaves the script at a time limit."""
    slept: list[float] = []
    usual = retry.retry_storage.__kwdefaults__
    monkeypatch.setattr(
        retry.retry_storage,
        "__kwdefaults__",
        {**usual, "sleep": slept.append, "say": lambda _: None},
    )
    scontrol.says()
    run.config_file.unlink()
    assert decide_after_exit_with_retry(run, START, 137).again
    assert sum(slept) == 7


def test_without_slurm_it_is_tried_again_as_well(
    run: RunDir, stumble: Callable[[int], None]
) -> None:
    stumble(99)
    assert decide_after_exit_local(run.path, "99", 0, [1]).again


def test_a_refused_requeue_leaves_the_command_for_a_person(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    attempt(run)
    scontrol.says()
    scontrol.refusal.write_text("Requested operation is presently disabled")
    verdict = decide_after_exit(run, START, 137)
    assert (verdict.exit_code, verdict.again) == (75, False)
    told = run.resubmit_needed.read_text()
    assert "presently disabled" in told and told.endswith(f"mgpt4 resume '{run.path}'\n")


def test_a_broken_configuration_ends_with_a_sentence(
    run: RunDir, scontrol: FakeScontrol, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    attempt(run)
    run.config_file.write_text("stage: 9\n")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert supervisor.main([str(run.path), "--exit-code", "1"]) == 75
    assert "no valid configuration" in capsys.readouterr().out


# -- without Slurm -----------------------------------------------------------------------------


def test_locally_a_crash_is_tried_again_until_the_budget_ends(run: RunDir) -> None:
    attempt(run, job="99")
    assert decide_after_exit_local(run.path, "99", 0, [-9, 143]).again
    attempt(run, job="99", restart=1)
    verdict = decide_after_exit_local(run.path, "99", 1, [1, 143])
    assert (verdict.again, verdict.exit_code) == (False, 70)
    assert causes(run) == ["crashed", "crashed"]


def test_locally_144_is_rank_0s_own_wish(run: RunDir) -> None:
    end(attempt(run, job="99"), "preempted")
    assert decide_after_exit_local(run.path, "99", 0, [144, 75]).again
    assert causes(run) == ["preempted"]


def test_locally_a_cancelled_run_stays_away(run: RunDir) -> None:
    request_cancel(run, "99")
    attempt(run, job="99")
    assert not decide_after_exit_local(run.path, "99", 0, [75, 75]).again
    assert causes(run) == ["cancelled"]


# -- ranks in a container, where Slurm's commands are not ---------------------------------------


def test_giving_up_tells_what_was_the_matter_and_not_only_how_often(
    run: RunDir, scontrol: FakeScontrol
) -> None:
    scontrol.says()
    for restart in (0, 1):
        ledger = attempt(run, restart=restart, saved=None)
        reason = "shared storage fails again and again: Stale file handle\n  fix: x"
        ledger.event(Kind.FAULT, what="StorageTrouble", reason=reason)
        ledger.close()
        scontrol.says(restarts=restart)
        decide_after_exit(run, JobStart("slurm", "17", restart), 1)
    told = run.failed.read_text()
    assert "the last fault: shared storage fails again and again: Stale file handle\n" in told
