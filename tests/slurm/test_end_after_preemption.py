"""A job that was preempted once ends for what it is: finished, or given up, and only once.

From 24.05 on Slurm counts the end of such a job as another preemption. Each test runs on a cluster
that requeues preempted jobs, and on one that cancels them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.conftest import own_cluster
from tests.slurm.harness import Cluster
from tests.slurm.jobs import hold_parts, mgpt4, preempt, stand_still, wait_for_step
from tests.support.runs import REPO, assert_every_step_once, patience
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 60
AT_ONCE_S = 30
"""What waits for a run starts so soon after it where nothing else keeps the machine busy."""


@pytest.fixture(scope="module", params=["REQUEUE", "CANCEL"])
def site(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster whose preempted jobs get a grace time and are then requeued, or cancelled."""
    shown = cluster.run("scontrol show partition a100-preempt").stdout
    if f"PreemptMode={request.param}" in shown:
        yield cluster
        return
    with own_cluster(request.session, "--preempt-mode", request.param) as other:
        yield other


@pytest.fixture(autouse=True)
def _idle_site(site: Cluster) -> Iterator[None]:
    yield
    site.cancel_all()


def waiting_job(site: Cluster, dependency: str) -> str:
    """A user's own job that waits for a run; Slurm cancels it if that fails."""
    limits = ["--partition=cpu", "--kill-on-invalid-dep=yes", f"--dependency={dependency}"]
    return site.sbatch("date +started%s", *limits)


def assert_ran_after(site: Cluster, job: str, ended_at: float) -> None:
    """It started once, at once after that time."""
    site.wait_until(lambda: job not in site.squeue(), 60, f"job {job} is over")
    lines = [line for line in site.output(job).splitlines() if line.startswith("started")]
    assert len(lines) == 1, (lines, site.report())
    assert -1 <= int(lines[0].removeprefix("started")) - ended_at <= AT_ONCE_S * patience()


def assert_one_end(site: Cluster, job: str, attempts: list[Attempt]) -> None:
    """Preempted once, then finished; no start followed."""
    assert [attempt.cause for attempt in attempts] == ["preempted", "finished"]
    shown = site.job(job)
    assert (shown["Restarts"], shown["ExitCode"]) == ("1", "0:0"), shown
    assert job not in site.squeue()


def preempt_once(site: Cluster, run: Path, job: str) -> None:
    wait_for_step(site, run, 5)
    preempt(site, run)
    site.wait_until(lambda: site.job(job)["Restarts"] == "1", 60, "it was requeued")


@pytest.mark.every_slurm
def test_a_chain_and_a_users_own_jobs_follow_a_run_that_was_preempted(
    site: Cluster,
    tiny_world: TinyWorld,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    first = tiny_world.write_config(
        tmp_path / "one.yaml", train__max_steps=STEPS, train__global_batch_size=8
    )
    second = tiny_world.write_config(tmp_path / "two.yaml", stage=2, train__max_steps=4)
    runs = tmp_path / "runs"
    done = mgpt4(
        site, runs, "submit", "--stage", "both", "--config", str(first), "--config", str(second),
        "--gpus", "1", "--partition", "a100-preempt", "--name", "x", "--json",
    )  # fmt: skip
    one_job, two_job = (entry["job_id"] for entry in json.loads(done.stdout))
    other = waiting_job(site, f"afterok:{one_job}")
    either = waiting_job(site, f"afternotok:{one_job}?afterok:{one_job}")
    on_failure = waiting_job(site, f"afternotok:{one_job}")
    one, two = runs / "x-stage1", runs / "x-stage2"
    preempt_once(site, one, one_job)
    assert site.job(two_job)["JobState"] == "PENDING"
    site.wait_until(lambda: not site.squeue(), 400, "both stages are over")

    attempts, (follower,) = read_ledgers(one / "ledger"), read_ledgers(two / "ledger")
    assert_one_end(site, one_job, attempts)
    assert follower.cause == "finished"
    record_property("attempts", len(attempts))
    record_property("next_s", follower.start - attempts[-1].end)
    assert 0 <= follower.start - attempts[-1].end <= AT_ONCE_S * patience()
    assert_ran_after(site, other, attempts[-1].end)
    assert_ran_after(site, either, attempts[-1].end)
    assert site.output(on_failure) == "" and site.job(on_failure)["JobState"] == "CANCELLED"
    assert_every_step_once(one, STEPS)
    rows = json.loads(mgpt4(site, runs, "status", "--json").stdout)
    assert {row["name"]: row["state"] for row in rows} == {
        "x-stage1": "finished",
        "x-stage2": "finished",
    }
    history = mgpt4(site, runs, "history", "x-stage1").stdout
    assert "preempted" in history and "finished" in history
    # Slurm remembers the first as preempted, and what is submitted behind it must start.
    mgpt4(site, runs, "submit", "--config", str(second), "--gpus", "1", "--name", "y",
          "--after", "x-stage1")  # fmt: skip
    again = site.run(["sbatch", "--parsable", str(one / "slurm" / "job.sbatch")]).stdout.strip()
    site.wait_until(lambda: not site.squeue(), 240, "a later one is over")
    assert read_ledgers(runs / "y" / "ledger")[-1].cause == "finished"
    assert_leaves_at_once(site, again, one)


def assert_leaves_at_once(site: Cluster, job: str, finished: Path) -> None:
    """A start of a finished run ended in the batch script: no step, no attempt, a clean end."""
    shown = site.job(job)
    assert (shown["JobState"], shown["ExitCode"]) == ("COMPLETED", "0:0"), site.report()
    log = Path(shown["StdOut"]).read_text()
    assert f"this start ends at once: {finished.name} is finished" in log
    assert len(read_ledgers(finished / "ledger")) == 2
    site.wait_until(lambda: len(site.sacct(job)) > 1, 20, "sacct has the batch step")
    assert [row["JobID"] for row in site.sacct(job)] == [job, f"{job}.batch"]


def test_what_waits_for_an_arrays_task_or_for_all_of_it(
    site: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(
        tmp_path / "c.yaml", train__max_steps=STEPS, train__global_batch_size=8
    )
    runs = tmp_path / "runs"
    done = mgpt4(
        site, runs, "submit", "--config", str(config), "--gpus", "1", "--name", "pair",
        "--sweep", "seed=1,2", "--partition", "a100-preempt", "--json",
    )  # fmt: skip
    jobs = [entry["job_id"] for entry in json.loads(done.stdout)]
    array = jobs[0].partition("_")[0]
    of_one, of_all = (waiting_job(site, f"afterok:{name}") for name in (jobs[0], array))
    corresponding = waiting_job_array(site, f"aftercorr:{array}")
    one, two = runs / "pair-seed1", runs / "pair-seed2"
    wait_for_step(site, two, 5)
    stand_still(two)  # the other may start much later
    preempt_once(site, one, jobs[0])
    site.wait_until(lambda: not site.squeue(), 400, "both tasks are over")

    ends = []
    for job, run in zip(jobs, (one, two), strict=True):
        attempts = read_ledgers(run / "ledger")
        assert_one_end(site, job, attempts)
        ends.append(attempts[-1].end)
    assert_ran_after(site, of_one, ends[0])
    assert_ran_after(site, of_all, max(ends))
    for task in (0, 1):
        assert site.job(f"{corresponding}_{task}")["JobState"] == "COMPLETED"


def waiting_job_array(site: Cluster, dependency: str) -> str:
    limits = ["--partition=cpu", "--kill-on-invalid-dep=yes", f"--dependency={dependency}"]
    return site.sbatch("true", "--array=0-1", "--output=/dev/null", *limits)


def test_a_run_that_gives_up_after_a_preemption_stays_away(
    site: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml", train__max_steps=400)
    folder = tmp_path / "site-packages"
    folder.mkdir()
    user = Cluster(site.folder)
    user.env["PYTHONPATH"] = f"{REPO}:{folder}"
    runs = tmp_path / "runs"
    run = runs / "x"
    done = mgpt4(user, runs, "submit", "--config", str(config), "--gpus", "1", "--name", "x",
                 "--partition", "a100-preempt", "--json")  # fmt: skip
    job = json.loads(done.stdout)[0]["job_id"]
    behind = waiting_job(site, f"afterok:{job}")
    wait_for_step(site, run, 5)
    stand_still(run)
    info = folder / "timm-99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 99.0\n")
    preempt(site)
    site.wait_until((run / "FAILED").exists, 120, "the next start gave up")
    site.wait_until(lambda: not site.squeue(), 60, "nothing waits or runs")
    assert site.job(job)["Restarts"] == "1"
    assert site.output(behind) == "" and site.job(behind)["JobState"] == "CANCELLED"
    (row,) = json.loads(mgpt4(site, runs, "status", "--json").stdout)
    assert row["state"] == "failed" and "timm" in row["text"]


@pytest.mark.every_slurm
def test_an_index_made_in_parts_that_were_preempted(
    site: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """Both parts end once, and the job that puts them together starts."""
    user, gate, begun = hold_parts(site, tmp_path)
    out = tmp_path / "laion.index"
    done = mgpt4(
        user, tmp_path, "data", "index", tiny_world.shards("laion"), "--out", str(out), "--json",
        "--slurm", "--no-wait", "--parts", "2", "--time", "10", "--partition", "a100-preempt",
        "--sbatch", "gpus-per-node=1",
    )  # fmt: skip
    following = json.loads(done.stdout)["job_id"]
    array = site.job(following)["Dependency"].removeprefix("afterok:").partition("_")[0]
    parts = [f"{array}_{part}" for part in (1, 2)]
    on_failure = waiting_job(site, f"afternotok:{parts[0]}")
    folder = tmp_path / "laion.index.parts"
    site.wait_until(lambda: len(list(begun.iterdir())) == 2, 60, "both have begun")
    preempt(site)
    site.wait_until(
        lambda: all(site.job(part)["PreemptTime"] != "None" for part in parts), 60, "a grace time"
    )
    # As PreemptParameters=send_user_signal does; the grace time's TERM is for srun's tasks.
    site.run(["scancel", "--batch", "--signal=USR2", array])
    site.wait_until(
        lambda: all(site.job(part)["Restarts"] == "1" for part in parts), 60, "both are requeued"
    )
    for part in (1, 2):
        assert json.loads((folder / f"{part}.ends").read_text())[0] == "preempted"
    assert site.job(following)["JobState"] == "PENDING"
    gate.touch()
    site.wait_until(lambda: not site.squeue(), 120, "all is over")
    for part in parts:
        shown = site.job(part)
        assert (shown["Restarts"], shown["ExitCode"]) == ("1", "0:0"), site.report()
    assert site.job(following)["JobState"] == "COMPLETED", site.report()
    assert out.exists() and not folder.exists()
    assert site.output(on_failure) == "" and site.job(on_failure)["JobState"] == "CANCELLED"
