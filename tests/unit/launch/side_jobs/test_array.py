"""Work in parts: the script, and what is said of parts that end in every way."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from mgpt4_hpc.errors import ConfigError, MgptError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.side_jobs import array
from mgpt4_hpc.launch.side_jobs.array import (
    ArrayJob,
    SubmittedArray,
    Wants,
    array_script,
    check_parts_folder,
    following_script,
    slice_of,
    submit_array,
    submit_once,
    wait_for_array,
)
from mgpt4_hpc.launch.slurm import scheduler
from mgpt4_hpc.launch.slurm.queue import QueuedJob


@pytest.fixture
def job(tmp_path: Path) -> ArrayJob:
    folder = tmp_path / "it's here"
    folder.mkdir()
    wants = Wants(partition="cpu", cpus=2, gpus=1, at_once=8, sbatch={"nice": "100"})
    return ArrayJob("index-laion", ["data", "index", "a b", "--out", "x"], 3, folder, wants)


def test_the_script(job: ArrayJob) -> None:
    script = array_script(job)
    for line in (
        "#SBATCH --array=1-3%8",
        "#SBATCH --partition=cpu",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --time=240",
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --nice=100",
    ):
        assert line in script.splitlines()
    assert "account" not in script
    assert """-m mgpt4_hpc.cli.main data index 'a b' --out x --part "$SLURM_ARRAY""" in script
    checked = subprocess.run(["bash", "-n"], input=script, text=True, check=False)
    assert checked.returncode == 0


PYTHON = """#!/bin/bash
echo "$@" >> CALLS
case "$*" in
  *part_end*) ;;
  *"--part 2/"*) kill -USR2 $PPID; exec sleep 60;;
  *"--part 3/"*) [ -z "$BASH_ENV" ] || exec sleep 60; exit 1;;
esac
"""
EARLY = "trap 'case $BASH_COMMAND in trap*SIGHUP*) kill -USR2 $$;; esac' DEBUG"
"""Signals a part's script when it has set its traps, but for the last, and has no task yet."""


def test_the_end_of_each_part_is_settled_and_what_is_done_starts_nothing(
    job: ArrayJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = job.folder.with_name("python")
    python.write_text(PYTHON.replace("CALLS", shlex.quote(str(calls := python.with_name("calls")))))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    script, following = array_script(job), following_script(job, ["data", "index"], "17")

    def run(script: str, part: int, restarts: str = "1", **more: str) -> tuple[int, list[str]]:
        calls.write_text("")
        slurm = {"SLURM_ARRAY_TASK_ID": str(part), "SLURM_RESTART_COUNT": restarts}
        env = {**os.environ, **slurm, **more}
        done = subprocess.run(["bash"], input=script, text=True, env=env, timeout=30, check=False)
        return done.returncode, calls.read_text().splitlines()

    code, (work, end) = run(script, 1)
    assert code == 0 and "--part 1/3" in work and job.mark(1).exists()
    settle = f"-P -m mgpt4_hpc.launch.job.part_end {job.folder}"
    assert end == f"{settle}/1 --exit-code 0"
    assert run(script, 1) == (0, [f"{settle}/1 --exit-code 0"])
    code, (_, end) = run(script, 2)
    assert code == 128 + signal.SIGUSR2
    assert end == f"{settle}/2 --exit-code {code} --signal SIGUSR2"
    assert run(script, 3)[1][1:] == [f"{settle}/3 --exit-code 1"] and not job.mark(3).exists()

    (early := python.with_name("early")).write_text(EARLY)
    code, (*_, end) = run(script, 3, BASH_ENV=str(early))
    assert code == 128 + signal.SIGTERM
    assert end == f"{settle}/3 --exit-code {code} --signal SIGUSR2"

    code, (work, end) = run(following, 0)
    assert code == 0 and job.mark("end").exists() and end == f"{settle}/end --exit-code 0"
    shutil.rmtree(job.folder)  # as that job does; a first start says why it finds nothing
    assert run(following, 0) == (0, [f"{settle}/end --exit-code 0"])
    assert len(run(following, 0, restarts="0")[1]) == 2


def test_what_follows_waits_for_all_parts(job: ArrayJob) -> None:
    script = following_script(job, ["data", "index", "x"], "17")
    assert "#SBATCH --dependency=afterok:17" in script
    assert "#SBATCH --kill-on-invalid-dep=yes" in script
    assert "--array" not in script
    assert "--part" not in script.split("SBATCH --partition=cpu")[1]


@pytest.mark.parametrize(("count", "parts"), [(0, 3), (2, 3), (10, 3), (11745, 64)])
def test_slices_share_everything(count: int, parts: int) -> None:
    slices = [slice_of(range(count), part, parts) for part in range(1, parts + 1)]
    assert [item for piece in slices for item in piece] == list(range(count))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_a_folder_in_which_slurm_could_write_no_log_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a\\b"
    with pytest.raises(ConfigError, match="backslash"):
        submit_array(ArrayJob("x", ["data"], 2, folder))
    assert not folder.exists()
    script = array_script(ArrayJob("x", ["data"], 2, tmp_path / "100%"))
    assert "/100%%/%a.log" in script


def test_the_same_command_finds_its_array(job: ArrayJob, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = map(str, count(1))
    monkeypatch.setattr(array, "_sbatch", lambda path, script: next(ids))
    queue = {"1_2": QueuedJob("1_2", "PENDING", name=job.name)}
    monkeypatch.setattr(Slurm, "queued", lambda self, ids: queue, raising=False)
    monkeypatch.setattr(scheduler, "IN_USE", Slurm(job, {}))
    first = submit_once(job, ["data", "index"])
    check_parts_folder(job.folder, "*.index")
    assert first == SubmittedArray(job, "1", "2")
    fewer = replace(job, parts=2)
    assert submit_once(fewer) == submit_once(fewer, ["data"]) == replace(first, joined=True)
    assert submit_once(replace(job, arguments=["data", "index", "other"])).job_id == "3"
    queue["1_2"] = QueuedJob("1_2", "PENDING", name="somebody's")
    assert submit_once(job).job_id == "4"
    queue["1_2"] = QueuedJob("1_2", "COMPLETED", name=job.name)
    assert submit_once(job).job_id == "5"


def test_an_array_without_its_following_job_gets_it_from_the_same_command(
    job: ArrayJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = iter(["1", SlurmRejected("MaxSubmitJobs"), "2"])

    def sbatch(path: Path, script: str) -> str:
        reply = next(replies)
        if isinstance(reply, SlurmRejected):
            raise reply
        return reply

    monkeypatch.setattr(array, "_sbatch", sbatch)
    queue = {"1_2": QueuedJob("1_2", "PENDING", name=job.name)}
    monkeypatch.setattr(Slurm, "queued", lambda self, ids: queue, raising=False)
    monkeypatch.setattr(scheduler, "IN_USE", Slurm(job, {}))
    with pytest.raises(SlurmRejected):
        submit_once(job, ["data", "index"])
    both = SubmittedArray(job, "1", "2", joined=True)
    assert submit_once(job, ["data", "index"]) == submit_once(job, ["data", "index"]) == both


class Slurm:
    """Answers one mapping of states after another; the last for ever."""

    def __init__(self, job: ArrayJob, *answers: Mapping[int, str] | str | None) -> None:
        self.job = job
        self.answers = list(answers)

    def __call__(self, job_ids: Sequence[str]) -> dict[str, QueuedJob]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise SlurmUnreachable("it is down")
        if isinstance(answer, str):
            raise SlurmRejected(answer)
        for part, state in answer.items():
            if state == "marked":
                self.job.mark(part).touch()
        jobs = {
            f"7_{part}": QueuedJob(f"7_{part}", state)
            for part, state in answer.items()
            if state != "marked"
        }
        return {job_id: jobs[job_id] for job_id in job_ids if job_id in jobs}


def test_waiting_until_all_are_done(job: ArrayJob) -> None:
    slurm = Slurm(
        job,
        {1: "PENDING", 2: "RUNNING", 3: "PENDING"},
        None,
        "it ended with code -11",
        {1: "marked", 2: "RUNNING", 3: "REQUEUED"},
        {2: "COMPLETED", 3: "RUNNING"},
        {3: "FAILED"},  # Slurm shows its last end while it is requeued
        {3: "COMPLETED"},
    )
    told: list[tuple[int, int]] = []
    wait_for_array(
        job, "7", on_progress=lambda *now: told.append(now), poll_s=0.0, lag_s=3600, ask=slurm
    )
    assert told[0] == (0, 3)
    assert told[-1] == (3, 3)


def test_failed_parts_are_named_with_their_logs(job: ArrayJob) -> None:
    job.log(2).write_text("began\nerror: no such thing\n\n")
    slurm = Slurm(job, {1: "marked", 2: "RUNNING"}, {2: "FAILED", 3: "TIMEOUT"})
    with pytest.raises(MgptError) as raised:
        wait_for_array(job, "7", poll_s=0.0, lag_s=3600, lost_s=0.0, ask=slurm)
    text = str(raised.value)
    assert "2 of 3 parts" in text
    assert f"part 2: FAILED, {job.log(2)}: error: no such thing" in text
    assert f"part 3: TIMEOUT, {job.log(3)}: no output" in text
    assert "part 1" not in text


def test_parts_that_slurm_forgot_are_given_up_after_the_lag(job: ArrayJob) -> None:
    slurm = Slurm(job, {1: "marked", 2: "marked"}, {})
    with pytest.raises(MgptError, match="part 3: gone"):
        wait_for_array(job, "7", poll_s=0.0, lag_s=0.0, ask=slurm)


def test_a_part_is_followed_to_its_successor(job: ArrayJob) -> None:
    job.successor(3).write_text("31")
    asked: list[str] = []

    def slurm(ids: Sequence[str]) -> dict[str, QueuedJob]:
        asked.extend(ids)
        return {task: QueuedJob(task, "COMPLETED") for task in ids}

    wait_for_array(job, "7", ask=slurm)
    assert asked == ["7_1", "7_2", "31_3"]
