"""Jobs that Slurm holds, and jobs that it has forgotten: `status` names the reason and the fix."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import read_json
from tests.slurm.conftest import own_cluster
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4
from tests.support.tiny_world import TinyWorld

pytestmark = [pytest.mark.slurm, pytest.mark.soak]

MOST_REQUEUES = 5
"""MaxBatchRequeue; Slurm 22.05 has no setting for it."""
SETTINGS = "MinJobAge=2\nBatchStartTimeout=1\nMessageTimeout=4\n"
"""A job is forgotten ten seconds after its end, and missed on its node six after its start."""
MISSED_S = 6


@pytest.fixture(scope="module")
def site(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with own_cluster(request.session) as other:
        with (other.folder / "slurm.conf").open("a") as file:
            file.write(SETTINGS)
        other.run("scontrol reconfigure")
        yield other


@pytest.fixture(autouse=True)
def _idle_site(site: Cluster) -> Iterator[None]:
    yield
    site.cancel_all()


def status(site: Cluster, runs: Path, name: str) -> dict[str, str]:
    (row,) = json.loads(mgpt4(site, runs, "status", name, "--json").stdout)
    return row


def submit(site: Cluster, runs: Path, *arguments: str, setup: str) -> list[str]:
    """Submit for one GPU, with a line that the batch script runs before all else; the jobs."""
    line = ["--set", f"launch.setup=[{json.dumps(setup)}]"]
    done = mgpt4(site, runs, "submit", "--gpus", "1", "--json", *line, *arguments)
    return [entry["job_id"] for entry in json.loads(done.stdout)]


def test_each_hold_is_named_with_the_command_that_ends_it(
    site: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "one.yaml", train__max_steps=4)
    starts = tmp_path / "starts"
    starts.touch()
    where = ("--config", str(config), "--name", "x")
    (job,) = submit(site, tmp_path, *where, setup=f"echo >> {starts}; exec sleep 600")
    release = f"`scontrol release {job}`"

    def assert_held(text: str) -> None:
        """Until the command that is named there has been typed."""
        site.wait_until(lambda: site.job(job)["JobState"] != "COMPLETING", 60, "it has ended")
        row = status(site, tmp_path, "x")
        assert (row["state"], row["text"]) == ("pending", text)
        # It would begin while the next hold is still being typed.
        site.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3600"])
        command = re.search("`(.*)`", text)
        site.run(command[1] if command else ["scontrol", "release", job])
        assert "held" not in status(site, tmp_path, "x")["text"]

    def wait_for_start(number: int) -> str:
        """Wait until the job has begun that often; its node."""
        site.wait_until(lambda: len(starts.read_text()) == number, 60, f"start {number}")
        return site.job(job)["NodeList"]

    wait_for_start(1)
    site.run(["scontrol", "requeuehold", job])
    assert_held(f"held: {release}")
    site.run(["scontrol", "hold", job])
    assert_held("held by an administrator, who alone can release it: ask the cluster's support")
    site.run(["scontrol", "uhold", job])
    assert_held(f"held: {release}")
    site.run(["scontrol", "update", f"JobId={job}", "StartTime=now"])
    for number in range(MOST_REQUEUES):
        lose(site, job, wait_for_start(number + 2), number + 2)
    assert_held(f"held after too many requeues by Slurm (MaxBatchRequeue): {release}")


def lose(site: Cluster, job: str, node: str, restarts: int) -> None:
    """Let the job vanish from its node, which Slurm answers with a requeue of its own."""
    began = time.monotonic()
    site.devcluster("node-down", "--unannounced", node)

    def is_missed() -> bool:
        if time.monotonic() - began > MISSED_S:
            # Only as its slurmd starts does a node report which jobs it has.
            site.devcluster("node-up", node)
            if site.job(job)["Restarts"] == str(restarts):
                return True
            site.devcluster("node-down", "--unannounced", node)
        return False

    site.wait_until(is_missed, 60, f"requeue {restarts}")


def test_what_a_failed_run_left_behind_is_known_when_slurm_has_forgotten_it(
    site: Cluster, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    first = tiny_world.write_config(tmp_path / "one.yaml", train__max_steps=4)
    second = tiny_world.write_config(tmp_path / "two.yaml", stage=2, train__max_steps=4)
    runs, fails = tmp_path / "runs", tmp_path / "fails"
    setup = f"while [ ! -e {fails} ]; do sleep 0.2; done; exit 1"
    both = ("--stage", "both", "--config", str(first), "--config", str(second), "--name", "x")
    one, two = submit(site, runs, *both, setup=setup)
    behind = ("--config", str(second), "--name", "z", "--after", "x-stage1")
    (by_hand,) = submit(site, runs, *behind, setup=setup)
    site.run(["scancel", by_hand])
    fails.touch()

    def is_forgotten(job: str) -> bool:
        shown = site.run(["scontrol", "show", "job", job], check=False)
        return "Invalid job id" in shown.stderr

    site.wait_until(lambda: all(map(is_forgotten, (one, two, by_hand))), 120, "all are forgotten")
    fails.unlink()
    assert status(site, runs, "x-stage1")["state"] == "failed"
    left = "stopped: x-stage1, which it waited for, did not finish; run `mgpt4 resume x-stage1`"
    assert status(site, runs, "x-stage2")["text"] == left
    assert status(site, runs, "z")["text"] == "cancelled by user 0"

    resumed = mgpt4(site, runs, "resume", "x-stage1").stderr

    def job_of(name: str) -> str:
        return read_json(runs / name / "slurm" / "job.json")["job_id"]

    third, fourth = job_of("x-stage1"), job_of("x-stage2")
    assert set(site.squeue()) == {third, fourth} and not {third, fourth} & {one, two, by_hand}
    assert f"x-stage2, which waited for x-stage1, is job {fourth} now" in resumed
    assert site.job(fourth)["Dependency"].startswith(f"afterok:{third}")
    assert job_of("z") == by_hand
    assert status(site, runs, "z")["text"] == "cancelled by user 0"
