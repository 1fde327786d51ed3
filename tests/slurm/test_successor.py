"""Where nobody may requeue a job, the run goes on in a job that it submits itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.conftest import own_cluster
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, preempt, stand_still, wait_for_checkpoints, wait_for_step
from tests.support.runs import assert_every_step_once
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 60


def submit_chain(
    user: Cluster, world: TinyWorld, folder: Path, *, gpus: int = 1, **settings: object
) -> tuple[Path, Path, list[str]]:
    """A first run that is long enough to be preempted, and a short second; their jobs."""
    first = world.write_config(
        folder / "one.yaml", train__max_steps=STEPS, train__global_batch_size=8
    )
    second = world.write_config(folder / "two.yaml", stage=2, train__max_steps=4)
    runs = folder / "runs"
    done = mgpt4(
        user, runs, "submit", "--stage", "both", "--config", str(first), "--config", str(second),
        "--gpus", str(gpus), "--partition", "a100-preempt", "--name", "x", "--json",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    )  # fmt: skip
    jobs = [entry["job_id"] for entry in json.loads(done.stdout)]
    return runs / "x-stage1", runs / "x-stage2", jobs


def wait_through(site: Cluster, runs: Path) -> int:
    """Wait until all is over; the most jobs of the first run that were at work at once."""
    most = 0

    def over() -> bool:
        nonlocal most
        lines = site.run(["squeue", "-h", "-o", "%T %j"]).stdout.splitlines()
        most = max(most, lines.count("RUNNING x-stage1"))
        return not lines

    site.wait_until(over, 400, "all jobs are over")
    return most


def assert_went_on(
    site: Cluster,
    one: Path,
    two: Path,
    jobs: list[str],
    *,
    cause: str = "preempted",
    gpus: int = 1,
) -> None:
    """In a second job, without losing or repeating a step, and the second run after it."""
    attempts = read_ledgers(one / "ledger")
    assert [attempt.cause for attempt in attempts] == [cause, "finished"], site.report()
    noted = read_json(one / "slurm" / "job.json")
    assert [attempt.job_id for attempt in attempts] == [jobs[0], noted["job_id"]]
    assert noted["succeeds"] == [jobs[0]] and noted["job_id"] != jobs[0]
    assert_every_step_once(one, STEPS)
    assert not (one / "RESUBMIT_NEEDED").exists()
    (follower,) = read_ledgers(two / "ledger")
    assert follower.cause == "finished" and follower.job_id == jobs[1]
    assert follower.start >= attempts[-1].end - 1
    rows = json.loads(mgpt4(site, one.parent, "status", "--json").stdout)
    assert {row["name"]: (row["state"], row["job_id"]) for row in rows} == {
        "x-stage1": ("finished", noted["job_id"]),
        "x-stage2": ("finished", jobs[1]),
    }
    assert cause in mgpt4(site, one.parent, "history", "x-stage1").stdout
    (used,) = json.loads(mgpt4(site, one.parent, "usage", "--json", "x-stage1").stdout)["runs"]
    assert used["num_attempts"] == 2
    hours = sum(attempt.seconds for attempt in attempts) / 3600 * gpus
    assert used["total_gpu_hours"] == pytest.approx(hours, rel=0.01)
    for number in ("1", "2"):
        for rank in range(gpus):
            asked = ("logs", "x-stage1", "--attempt", number, "--rank", str(rank))
            text = mgpt4(site, one.parent, *asked).stdout
            assert re.findall(r": attempt (\d+), rank (\d+) of", text) == [(number, str(rank))]


def answering(site: Cluster, folder: Path, commands: str, answer: str) -> Cluster:
    """The cluster for a user whose jobs get another answer to some of scontrol's commands.

    Args:
        site: the cluster.
        folder: where the scontrol is written that does this.
        commands: a shell pattern of their words.
        answer: shell commands.
    """
    real = shutil.which("scontrol", path=site.env["PATH"])
    shim = folder / "bin" / "scontrol"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/sh\n[ -z "$SLURM_JOB_ID" ] || case "$*" in {commands}) {answer};; esac\n'
        f'exec {real} "$@"\n'
    )
    shim.chmod(0o755)
    user = Cluster(site.folder)
    user.env["PATH"] = f"{shim.parent}:{user.env['PATH']}"
    return user


def test_a_job_that_asks_for_no_requeue(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """As on a site with JobRequeue=0 whose plugin takes the request out of each job."""
    one, two, jobs = submit_chain(cluster, tiny_world, tmp_path, gpus=2)
    cluster.run(["scontrol", "update", f"JobId={jobs[0]}", "Requeue=0"])
    wait_for_step(cluster, one, 5)
    preempt(cluster, one)
    assert wait_through(cluster, one.parent) == 1
    assert_went_on(cluster, one, two, jobs, gpus=2)


def test_a_user_who_may_not_requeue(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    user = answering(cluster, tmp_path, '"requeue "*', "echo Access/permission denied >&2; exit 1")
    one, two, jobs = submit_chain(user, tiny_world, tmp_path)
    wait_for_step(cluster, one, 5)
    preempt(cluster, one)
    assert wait_through(cluster, one.parent) == 1
    assert_went_on(cluster, one, two, jobs)


@pytest.mark.soak
def test_a_controller_that_has_forgotten_the_job(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """As after it lost its state: no other job can wait for this one, and yet two never run."""
    about_itself = '"show job "*"$SLURM_JOB_ID"|"requeue $SLURM_JOB_ID"'
    user = answering(cluster, tmp_path, about_itself, "echo Invalid job id specified >&2; exit 1")
    one, two, jobs = submit_chain(user, tiny_world, tmp_path)
    wait_for_step(cluster, one, 5)
    cluster.run(["scancel", "--signal=USR2", jobs[0]])
    assert wait_through(cluster, one.parent) == 1
    assert_went_on(cluster, one, two, jobs, cause="signalled")
    first, second = read_ledgers(one / "ledger")
    assert first.end <= second.start


def test_a_successor_is_cancelled_as_any_job(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """And with it what waits for it; the run stays away until somebody wants it again."""
    one, _, jobs = submit_chain(cluster, tiny_world, tmp_path)
    cluster.run(["scontrol", "update", f"JobId={jobs[0]}", "Requeue=0"])
    wait_for_step(cluster, one, 5)
    job_file = one / "slurm" / "job.json"
    cluster.run(["scancel", "--signal=USR2", jobs[0]])
    cluster.wait_until(lambda: read_json(job_file)["job_id"] != jobs[0], 60, "a successor")
    successor = read_json(job_file)["job_id"]
    # Noted first, for whoever looks for the run's job meanwhile.
    cluster.wait_until(
        lambda: cluster.job(jobs[1])["Dependency"].startswith(f"afterok:{successor}"),
        60,
        "stage 2 waits for the successor",
    )
    mgpt4(cluster, one.parent, "cancel", "x-stage1")
    cluster.wait_until(lambda: not cluster.squeue(), 120, "nothing waits or runs")
    rows = json.loads(mgpt4(cluster, one.parent, "status", "--json").stdout)
    told = {row["name"]: (row["state"], row["text"]) for row in rows}
    assert told["x-stage1"][0] == "cancelled"
    assert told["x-stage2"] == (
        "stopped",
        "stopped: x-stage1, which it waited for, did not finish; run `mgpt4 resume x-stage1`",
    )


def test_cancelled_by_a_preemption_without_grace(
    request: pytest.FixtureRequest, cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """The job requeues itself while Slurm cancels it."""
    flags = ("--preempt-mode", "CANCEL", "--grace-s", "0")
    with own_cluster(request.session, *flags) as site:
        one, two, jobs = submit_chain(site, tiny_world, tmp_path)
        wait_for_step(site, one, 5)
        preempt(site, one)
        assert wait_through(site, one.parent) == 1
        attempts = read_ledgers(one / "ledger")
        assert [attempt.cause for attempt in attempts] == ["preempted", "finished"]
        assert [attempt.job_id for attempt in attempts] == [jobs[0]] * 2
        assert not read_json(one / "slurm" / "job.json")["succeeds"]
        assert_every_step_once(one, STEPS)
        (follower,) = read_ledgers(two / "ledger")
        assert follower.cause == "finished" and follower.job_id == jobs[1]


@pytest.mark.soak
def test_keep_brings_back_what_a_preemption_killed(
    request: pytest.FixtureRequest, cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """KillWait was over before any process could requeue the job or submit a successor."""
    flags = ("--preempt-mode", "CANCEL", "--grace-s", "0", "--kill-wait-s", "2")
    with own_cluster(request.session, *flags) as site:
        user = answering(site, tmp_path, '"requeue "*', "exec sleep 600")
        one, two, jobs = submit_chain(user, tiny_world, tmp_path, save_every_s=1)
        wait_for_step(site, one, 5)
        wait_for_checkpoints(site, one)
        preempt(site, one)
        site.wait_until(lambda: not site.squeue(), 120, "the chain is gone")
        site.wait_until(lambda: site.sacct(jobs[0])[0]["State"] == "PREEMPTED", 20, "it is noted")
        assert_kept(site, one, two, jobs)


def test_keep_brings_back_what_died_with_its_node(
    cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """No process lived to submit a successor, and Slurm may not requeue the job."""
    one, two, jobs = submit_chain(cluster, tiny_world, tmp_path, save_every_s=1)
    cluster.run(["scontrol", "update", f"JobId={jobs[0]}", "Requeue=0"])
    wait_for_step(cluster, one, 5)
    wait_for_checkpoints(cluster, one)
    stand_still(one)  # or it finishes while the command starts
    node = cluster.job(jobs[0])["NodeList"]
    cluster.devcluster("node-down", node)
    cluster.wait_until(lambda: not cluster.squeue(), 120, "the chain is gone")
    cluster.devcluster("node-up", node)
    assert_kept(cluster, one, two, jobs)


def assert_kept(site: Cluster, one: Path, two: Path, jobs: list[str]) -> None:
    """`keep` brings both runs back, and then has nothing more to do."""
    kept = mgpt4(site, one.parent, "keep", "--json")
    assert [row["run"] for row in json.loads(kept.stdout)] == ["x-stage1"]
    assert "x-stage2, which waited for x-stage1, is job" in kept.stderr
    assert mgpt4(site, one.parent, "keep").stdout == ""
    assert wait_through(site, one.parent) == 1
    assert read_json(one / "slurm" / "job.json")["succeeds"] == [jobs[0]]
    for run in (one, two):
        assert read_ledgers(run / "ledger")[-1].cause == "finished"
    assert_every_step_once(one, STEPS)
    assert mgpt4(site, one.parent, "keep").stdout == ""
