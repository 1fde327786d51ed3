"""Slurm's answers as data. Recorded texts here; the real commands are asked in tests/slurm."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.errors import SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.slurm import commands
from tests.unit.launch.fakes import FakeScontrol


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("30:15", 1815),
        ("01:30:15", 5415),
        ("2-3", (2 * 24 + 3) * 3600),
        ("2-3:04", (2 * 24 + 3) * 3600 + 240),
        ("2-03:04:05", (2 * 24 + 3) * 3600 + 245),
        ("0-00:00:00", 0),
        ("UNLIMITED", None),
        ("Partition_Limit", None),
        ("", None),
        ("N/A", None),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert commands.parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["1:2:3:4", "soon", "1h", "1-", "1:-2", "--5", "1.5"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"\d|soon|invalid|no duration"):
        commands.parse_duration_s(text)


def test_a_record_with_spaces_and_equal_signs_in_its_values() -> None:
    record = commands.parse_record(
        "JobId=7 JobName=a b TRES=cpu=1,gres/gpu:a100=4 Reason=None Comment=kill -9 Command=/x y/z"
    )
    assert record == {
        "JobId": "7",
        "JobName": "a b",
        "TRES": "cpu=1,gres/gpu:a100=4",
        "Reason": "None",
        "Comment": "kill -9",
        "Command": "/x y/z",
    }


def test_a_comment_cannot_pass_for_a_fact(scontrol: FakeScontrol) -> None:
    scontrol.says(comment="Restarts=9 JobState=COMPLETING PreemptTime=now")
    facts = commands.job_facts("17")
    assert (facts.restarts, facts.state, facts.preempt_time) == (0, "RUNNING", None)


def test_facts_of_a_job(scontrol: FakeScontrol) -> None:
    scontrol.says("COMPLETING", restarts=2, reason="TimeLimit", preempt="2026-03-01T10:00:20")
    assert commands.job_facts("17") == commands.JobFacts(
        state="COMPLETING",
        reason="TimeLimit",
        restarts=2,
        preempt_time="2026-03-01T10:00:20",
        end_time="2026-03-01T10:00:20",
        run_time_s=600.0,
        time_limit_s=3600.0,
        requeue_allowed=True,
    )
    assert scontrol.calls == ["show job -o 17"]


def test_times_are_in_utc_wherever_the_user_lives(
    scontrol: FakeScontrol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    scontrol.answer.with_name("scontrol").write_text(
        "#!/bin/sh\necho JobId=17 EndTime=$(date -d @1792888200 +%Y-%m-%dT%H:%M:%S)\n"
    )
    assert commands.job_facts("17").end_time == "2026-10-25T00:30:00"


@pytest.mark.parametrize("state", ["SIGNALING", "RESIZING"])
def test_a_job_runs_while_slurm_signals_or_resizes_it(scontrol: FakeScontrol, state: str) -> None:
    # A rank that has its TERM already asks while other nodes have not answered yet.
    scontrol.says(state)
    assert commands.job_facts("17").state == "RUNNING"


def test_an_answer_that_cannot_be_understood_is_none(scontrol: FakeScontrol) -> None:
    scontrol.answer.write_text("JobId=17 Restarts=many RunTime=long")
    with pytest.raises(SlurmUnreachable, match="cannot be understood"):
        commands.job_facts("17")


def test_an_answer_in_another_encoding_is_one(scontrol: FakeScontrol) -> None:
    scontrol.answer.write_bytes(b"JobId=17 JobState=RUNNING Comment=M\xfcller")
    assert commands.job_facts("17").state == "RUNNING"


@pytest.mark.parametrize(
    "message",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "scontrol: error: Connection refused",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "error: slurm_persist_conn_open_without_init: failed: Communication connection failure",
        "sacct: error: slurmdbd: Sending PersistInit msg: Connection refused",
        "fatal: Could not establish a configuration source",
        "Zero Bytes were transmitted or received",
        "slurm_load_node error: Slurm backup controller in standby mode",
        "slurm_load_node error: Protocol authentication error",
        'error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file',
        "slurm_requeue error: Transport endpoint is not connected",
        "slurm_load_jobs error: Message receive failure",
        'error: Unable to resolve "ctl": Host name lookup failure',
    ],
)
def test_a_daemon_that_does_not_answer(message: str) -> None:
    assert commands.is_unreachable(message)


@pytest.mark.parametrize(
    "message",
    [
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "slurm_load_jobs error: Invalid job id specified",
        "sbatch: error: Requested node configuration is not available",
        "sbatch: error: Invalid account or account/partition combination specified",
        "scontrol: error: Requested operation is presently disabled",
    ],
)
def test_a_daemon_that_says_no(message: str) -> None:
    assert not commands.is_unreachable(message)


def test_refusals_and_silence_are_told_apart() -> None:
    script = "import sys; sys.exit(sys.argv[1])"
    with pytest.raises(SlurmRejected, match="Invalid partition"):
        commands.run_slurm([sys.executable, "-c", script, "Invalid partition"])
    with pytest.raises(SlurmUnreachable, match="Connection refused"):
        commands.run_slurm([sys.executable, "-c", script, "Connection refused"])
    with pytest.raises(SlurmUnreachable, match="no answer within"):
        commands.run_slurm([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)
    with pytest.raises(SlurmUnreachable, match="is not installed here"):
        commands.run_slurm(["scontrol-that-is-not-there"])


def test_a_file_that_may_not_be_run_is_silence(tmp_path: Path) -> None:
    (tmp_path / "scontrol").write_text("")
    with pytest.raises(SlurmUnreachable, match="cannot be started"):
        commands.run_slurm([str(tmp_path / "scontrol")])


def test_the_commands_run_with_the_stop_signals_held_back() -> None:
    # The TERM of a preemption reaches every process of the step, also the one that asks about it.
    told = commands.run_slurm(
        [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), 15); print('alive')"]
    )
    assert told == "alive\n"
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_an_enclosing_job_leaves_no_trace_in_a_new_one() -> None:
    kept = {"SLURM_CONF": "/c", "SLURM_CONF_SERVER": "h", "SLURM_JWT": "t", "HOME": "/h"}
    kept |= {"MYSLURM_X": "1", "SLURMD_NODENAME": "n"}
    gone = ["SLURM_JOB_ID", "SLURM_CONF2", "SLURM_NTASKS", "SBATCH_PARTITION", "SRUN_DEBUG"]
    gone += ["SALLOC_ACCOUNT", "SUBMITIT_EXECUTOR", "SUBMITIT_LOCAL_NTASKS"]
    assert commands.clean_environment({**kept, **dict.fromkeys(gone, "x")}) == kept
    assert not set(commands.clean_environment(os.environ)) & set(gone)


def test_a_slurm_conf_that_is_not_there_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(SlurmUnreachable, match=r"SLURM_CONF is .*which is no file"):
        commands.run_slurm([sys.executable, "-c", "raise SystemExit('was run')"])


@pytest.mark.slow
def test_what_was_said_before_the_time_out_is_told() -> None:
    command = ["sh", "-c", "printf '\\nno host\\n' >&2; exec sleep 60"]
    with pytest.raises(SlurmUnreachable, match="no answer within 1 s: no host"):
        commands.run_slurm(command, timeout_s=1)
