"""A run is itself: names used again, folders moved and copied, two clusters on one file system."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.conftest import own_cluster
from tests.slurm.harness import Cluster
from tests.slurm.jobs import (
    begin_mgpt4,
    mgpt4,
    stand_still,
    submit,
    wait_finished,
    wait_for_checkpoints,
    wake,
)
from tests.support.runs import final_projector, patience
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 150
LATER = ("--sbatch", "begin=now+1hour")


@pytest.fixture
def config(tiny_world: TinyWorld, tmp_path: Path) -> Path:
    return tiny_world.write_config(
        tmp_path / "one.yaml", train__max_steps=STEPS, train__save_every_s=1
    )


@pytest.fixture(scope="module")
def beta(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A second cluster that sees the same files."""
    flags = ("--cluster-name", "beta", "--no-accounting", "--nodes", "2")
    with own_cluster(request.session, *flags) as started:
        yield started


def owners(run: Path) -> set[str]:
    """Identities of the runs that a folder's checkpoints are of."""
    manifests = run.glob("checkpoints/*step-*/manifest.json")
    return {json.loads(path.read_text())["meta"]["run"] for path in manifests}


def test_the_job_of_a_deleted_run_does_not_touch_the_next_run_of_that_name(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    old = submit(cluster, runs_dir, config, "one", "--set", "train.max_steps=100000", ranks=1)
    wait_for_checkpoints(cluster, runs_dir / "one")
    shutil.rmtree(runs_dir / "one")
    other = ("--set", "seed=7")
    submit(cluster, runs_dir, config, "one", *other, ranks=1)
    ended = cluster.wait_for_state(old, "FAILED", timeout_s=60)
    assert ended["ExitCode"] == "70:0" and ended["Restarts"] == "0"
    wait_finished(cluster, runs_dir / "one")
    submit(cluster, runs_dir, config, "alone", *other, ranks=1)
    wait_finished(cluster, runs_dir / "alone")
    assert owners(runs_dir / "one") == {RunDir(runs_dir / "one").run_id}
    assert final_projector(runs_dir / "one") == final_projector(runs_dir / "alone")
    (attempt,) = read_ledgers(runs_dir / "one" / "ledger")
    assert attempt.restored_step == 0 and not attempt.damaged


def test_a_requeued_job_does_not_begin_in_another_run(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    old = submit(cluster, runs_dir, config, "one", *LATER, ranks=1)
    shutil.rmtree(runs_dir / "one")
    submit(cluster, runs_dir, config, "one", *LATER, ranks=1)
    before = sorted(path for path in (runs_dir / "one").rglob("*"))
    cluster.run(["scontrol", "update", f"JobId={old}", "StartTime=now"])
    ended = cluster.wait_for_state(old, "FAILED", timeout_s=60)
    assert ended["ExitCode"] == "70:0"
    log = runs_dir / "one" / "slurm" / f"{old}_0_log.out"  # Slurm's own doing
    assert "holds another run" in log.read_text()
    assert sorted(path for path in (runs_dir / "one").rglob("*") if path != log) == before


def test_a_run_that_is_moved_while_it_trains_goes_on_in_its_new_place(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    more = ("--set", "train.max_steps=400")
    job = submit(cluster, runs_dir, config, "one", *more, ranks=1)
    wait_for_checkpoints(cluster, runs_dir / "one")
    moved = runs_dir / "moved"
    (runs_dir / "one").rename(moved)
    at = max(moved.glob("checkpoints/step-*"))
    cluster.wait_until(
        lambda: max(moved.glob("checkpoints/step-*")) > at, 60, "a save in the new place"
    )
    assert not (runs_dir / "one").exists()
    ranks = stand_still(moved)
    (seen,) = json.loads(mgpt4(cluster, runs_dir, "status", "moved", "--json").stdout)
    assert (seen["state"], seen["job_id"]) == ("running", job)
    mgpt4(cluster, runs_dir, "cancel", "moved", "--save")
    wake(ranks)
    cluster.wait_until(lambda: job not in cluster.squeue(), 60, "the job ended")
    assert read_ledgers(moved / "ledger")[-1].cause == "cancelled"
    mgpt4(cluster, runs_dir, "resume", "moved")
    wait_finished(cluster, moved)
    first, second = read_ledgers(moved / "ledger")
    assert second.restored_step == first.last_step
    submit(cluster, runs_dir, config, "alone", *more, ranks=1)
    wait_finished(cluster, runs_dir / "alone")
    assert final_projector(moved) == final_projector(runs_dir / "alone")


def test_a_moved_run_that_is_preempted_is_brought_back_by_a_person(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    more = ("--set", "train.max_steps=100000", "--partition", "a100-preempt")
    job = submit(cluster, runs_dir, config, "one", *more, ranks=1)
    wait_for_checkpoints(cluster, runs_dir / "one")
    moved = runs_dir / "moved"
    (runs_dir / "one").rename(moved)
    at = max(moved.glob("checkpoints/step-*"))
    cluster.wait_until(lambda: max(moved.glob("checkpoints/step-*")) > at, 60, "a save")
    cluster.run(["scancel", "--signal=TERM", job])
    cluster.wait_until(lambda: (moved / "RESUBMIT_NEEDED").exists(), 60, "it asks for a person")
    assert f"mgpt4 resume {moved}" in (moved / "RESUBMIT_NEEDED").read_text()
    cluster.wait_until(lambda: job not in cluster.squeue(), 60, "the job ended")
    assert not (runs_dir / "one").exists()


def test_a_run_of_another_cluster_is_neither_removed_nor_cancelled_nor_resumed(
    cluster: Cluster, beta: Cluster, config: Path, runs_dir: Path
) -> None:
    job = submit(cluster, runs_dir, config, "one", *LATER, ranks=1)
    with (beta.folder / "slurm.conf").open("a") as conf:
        conf.write(f"FirstJobId={job}\n")
    beta.devcluster("restart-controller")
    stranger = beta.sbatch("sleep 300", "--time=10")
    assert stranger == job
    for words in (("rm", "one", "--yes"), ("cancel", "one"), ("resume", "one")):
        refused = mgpt4(beta, runs_dir, *words, check=False)
        assert refused.returncode == 5, (words, refused.stdout, refused.stderr)
        assert "on a login node of devcluster" in refused.stderr
    seen = mgpt4(beta, runs_dir, "status", "one", "--json", check=False)
    (row,) = json.loads(seen.stdout)
    assert (row["state"], row["cluster"]) == ("unknown", "devcluster")
    assert "on the cluster devcluster" in row["text"] and seen.returncode == 5
    assert "on a login node of devcluster" in mgpt4(beta, runs_dir, "status").stderr
    assert (runs_dir / "one" / "config.yaml").exists()
    assert beta.job(stranger)["JobState"] in ("PENDING", "RUNNING")

    # A controller that was set up anew under the old name, and counts from 1.
    noted = runs_dir / "one" / "slurm" / "job.json"
    write_json(noted, {**read_json(noted), "cluster": "beta", "submitted": 0})
    done = mgpt4(beta, runs_dir, "cancel", "one")
    assert "nothing to cancel" in done.stdout
    assert beta.job(stranger)["JobState"] in ("PENDING", "RUNNING")
    assert cluster.job(job)["JobState"] == "PENDING"
    beta.run(["scancel", stranger])


def _group_folder(folder: Path) -> None:
    """A folder for a group's files: setgid, and by default writable for a colleague (an ACL)."""
    folder.mkdir(parents=True)
    folder.chmod(0o2775)
    tag = {"user": 1, "other user": 2, "group": 4, "mask": 0x10, "others": 0x20}
    none, all_three, any_id, colleague = 0, 7, 0xFFFFFFFF, 54321
    entries = [
        (tag["user"], all_three, any_id),
        (tag["other user"], all_three, colleague),
        (tag["group"], all_three, any_id),
        (tag["mask"], all_three, any_id),
        (tag["others"], none, any_id),
    ]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(folder, "system.posix_acl_default", acl)


def test_the_copy_of_a_run_has_no_job_and_goes_on_under_a_name_of_its_own(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    before = os.umask(0o002)
    try:
        _group_folder(runs_dir)
        job = submit(cluster, runs_dir, config, "one", "--set", "train.max_steps=500", ranks=1)
    finally:
        os.umask(before)
    assert (runs_dir / "one").stat().st_mode & 0o777 == 0o700
    wait_for_checkpoints(cluster, runs_dir / "one")
    ranks = stand_still(runs_dir / "one")
    subprocess.run(["cp", "-a", runs_dir / "one", runs_dir / "backup"], check=False)
    done = mgpt4(cluster, runs_dir, "cancel", "backup")
    assert f"a copy of {runs_dir / 'one'}" in done.stdout
    assert job in cluster.squeue()
    refused = mgpt4(cluster, runs_dir, "resume", "backup", check=False)
    assert refused.returncode == 7 and "--as NAME" in refused.stderr
    # A colleague's copy may name any job.
    subprocess.run(["chown", "-R", "54321", runs_dir / "backup"], check=True)
    for command in ("cancel", "logs", "chat --checkpoint", "resume"):
        refused = mgpt4(cluster, runs_dir, *command.split(), "backup", check=False)
        assert refused.returncode == 7 and "belongs to user 54321" in refused.stderr, command
    assert job in cluster.squeue()
    wake(ranks)
    subprocess.run(["chown", "-R", str(os.getuid()), runs_dir / "backup"], check=True)
    wait_finished(cluster, runs_dir / "one")
    mgpt4(cluster, runs_dir, "resume", "backup", "--as", "variant", "--set", "train.max_steps=510")
    variant = RunDir(runs_dir / "variant")
    wait_finished(cluster, variant.path)
    assert variant.run_id not in {RunDir(runs_dir / n).run_id for n in ("one", "backup")}
    attempt = read_ledgers(variant.ledger)[0]
    assert attempt.number == 1 and attempt.restored_step > 0 and attempt.last_step == 510


def test_what_a_run_does_is_looked_at_again_after_the_answer(
    cluster: Cluster, config: Path, runs_dir: Path
) -> None:
    job = submit(cluster, runs_dir, config, "one", *LATER, ranks=1)
    mgpt4(cluster, runs_dir, "cancel", "one")
    cluster.wait_until(lambda: job not in cluster.squeue(), 60, "cancelled")
    with begin_mgpt4(cluster, runs_dir, "rm", "one") as asking:
        assert asking.stderr and asking.stdin is not None
        shown = ""
        while "[y/N]" not in shown:
            letter = asking.stderr.read(1)
            assert letter, shown
            shown += letter
        again = json.loads(mgpt4(cluster, runs_dir, "resume", "one", "--json").stdout)
        _, errors = asking.communicate("y\n", timeout=120 * patience())
        assert asking.returncode == 7 and "waits in the queue" in errors
    assert again["job_id"] in cluster.squeue() and (runs_dir / "one" / "config.yaml").exists()
