"""`tools/devcluster`: what later tests rely on, tried on the real thing."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.slurm.harness import Cluster, devcluster

pytestmark = pytest.mark.slurm

# One task per GPU on two nodes; each says where it is and what it sees.
TWO_NODES = ("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=1", "--time=5")
REPORT_GPUS = "srun bash -c 'echo \"$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES\"'"

# TERM is noted, and then the job asks for its own requeue, as a trainer does in its grace time.
REQUEUES_ITSELF = """
srun --kill-on-bad-exit=1 bash -c '
    trap "echo task got TERM; scontrol requeue $SLURM_JOB_ID; exit 75" TERM
    echo "attempt ${SLURM_RESTART_COUNT:-0}"
    for second in $(seq 300); do
        [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && exit 0
        sleep 0.2
    done'
"""


# Its task, unlike its batch script, is started by a slurmstepd of its own.
STEP_PID = "srun bash -c 'echo $$; exec sleep 300'"


def pid_of_step(cluster: Cluster, job_id: str) -> int:
    """The id of the process that STEP_PID started."""
    cluster.wait_until(lambda: cluster.output(job_id), 30, f"the step of job {job_id} has begun")
    return int(cluster.output(job_id))


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_tasks_see_their_gpus_on_two_nodes(cluster: Cluster):
    job_id = cluster.sbatch(REPORT_GPUS, *TWO_NODES)
    cluster.wait_for_state(job_id, "COMPLETED")
    lines = sorted(cluster.output(job_id).splitlines())
    assert lines == ["node1 0,1,2,3", "node2 0,1,2,3"]


def test_a_task_per_gpu_sees_one_gpu_when_bound(cluster: Cluster):
    job_id = cluster.sbatch(
        "srun --gpus-per-task=1 printenv CUDA_VISIBLE_DEVICES", "--gpus-per-node=2", "--ntasks=2"
    )
    cluster.wait_for_state(job_id, "COMPLETED")
    assert len(cluster.output(job_id).split()) == 2


def test_a_preempted_job_sees_term_and_comes_back(cluster: Cluster):
    victim = cluster.sbatch(
        REQUEUES_ITSELF, "--partition=a100-preempt", "--exclusive", "--nodes=4", "--requeue"
    )
    cluster.wait_until(
        lambda: cluster.output(victim).count("attempt 0") == 4, 30, "each task has its trap"
    )
    urgent = cluster.sbatch("sleep 0.5", "--nodes=4", "--exclusive")
    cluster.wait_for_state(urgent, "COMPLETED", timeout_s=45)
    # Slurm 24.05 to 26.05.3 also starts a job again that finishes after an earlier preemption.
    states = ["REQUEUED", *["PREEMPTED"] * (cluster.release == "24.11"), "COMPLETED"]
    job = cluster.wait_for_state(victim, "COMPLETED", timeout_s=45)

    assert "task got TERM" in cluster.output(victim)
    assert "attempt 1" in cluster.output(victim)
    assert job["Restarts"] == str(len(states) - 1)
    cluster.wait_until(
        lambda: [row["State"] for row in cluster.sacct(victim) if row["JobID"] == victim] == states,
        20,
        "sacct has both attempts",
    )


def test_sacct_knows_a_job(cluster: Cluster):
    job_id = cluster.sbatch("exit 3", "--gpus-per-node=1", "--job-name=three")
    cluster.wait_for_state(job_id, "FAILED")
    cluster.wait_until(
        lambda: any(
            (row["State"], row["JobName"]) == ("FAILED", "three") for row in cluster.sacct(job_id)
        ),
        20,
        "sacct has the job's end and, seconds later, its name",
    )
    row = cluster.sacct(job_id)[0]
    assert (row["ExitCode"], row["Account"]) == ("3:0", "devaccount")
    assert "gres/gpu:a100=1" in row["AllocTRES"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--account=nobody"], "Invalid account"),
        (["--qos=nothing"], "Invalid qos"),
        (["--partition=nowhere"], "invalid partition"),
        (["--time=9-0"], "time limit"),
        (["--gpus-per-node=5"], "configuration is not available"),
    ],
)
def test_what_sites_refuse_is_refused(cluster: Cluster, arguments: list[str], message: str):
    result = cluster.run(["sbatch", *arguments, "--wrap=true"], check=False)
    assert result.returncode == 1
    assert message in result.stderr


@pytest.mark.every_slurm
def test_a_node_fails_and_comes_back(cluster: Cluster):
    job_id = cluster.sbatch(STEP_PID, "--nodes=1", "--nodelist=node3", "--requeue")
    task = pid_of_step(cluster, job_id)
    assert alive(task)
    cluster.devcluster("node-down", "node3")
    assert not alive(task)
    assert cluster.node_states()["node3"].startswith("down")
    job = cluster.wait_for_state(job_id, "PENDING")
    assert job["Restarts"] == "1"
    cluster.run(["scancel", job_id])  # or it may begin again before the node is looked at
    cluster.devcluster("node-up", "node3")
    assert cluster.node_states()["node3"] == "idle"


def test_jobs_survive_a_restart_of_the_controller(cluster: Cluster):
    job_id = cluster.sbatch("srun sleep 300", "--nodes=2")
    cluster.wait_for_state(job_id, "RUNNING")
    cluster.devcluster("restart-controller")
    assert cluster.job(job_id)["JobState"] == "RUNNING"


@pytest.mark.every_slurm
def test_two_clusters_at_once_and_down_ends_only_its_own(
    cluster: Cluster, second_cluster_folder: Path
):
    up = devcluster(
        *("up", "--dir", str(second_cluster_folder)),
        *("--nodes=1", "--gpus-per-node=1", "--no-accounting"),
    )
    assert f"Slurm {cluster.release}." in up.stderr
    second = Cluster(second_cluster_folder)
    shell = subprocess.run(
        ["bash", "-c", f"{up.stdout} echo $SLURM_CONF; command -v sbatch"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout.split() == [second.env["SLURM_CONF"], f"{second.folder}/bin/sbatch"]
    first_job = cluster.sbatch("sleep 300", "--job-name=first")
    second_job = second.sbatch(STEP_PID, "--job-name=second")
    cluster.wait_for_state(first_job, "RUNNING")
    task = pid_of_step(second, second_job)
    assert [cluster.job(job)["JobName"] for job in cluster.squeue()] == ["first"]
    assert [second.job(job)["JobName"] for job in second.squeue()] == ["second"]

    processes = [process["pid"] for process in second.status()["processes"]]
    processes.append(task)
    assert len(processes) >= 5
    assert all(alive(pid) for pid in processes)
    # A stranger that uses the cluster, as somebody's shell would.
    stranger = subprocess.Popen(["sleep", "300"], env=second.env)
    try:
        second.devcluster("down")
        assert not any(alive(pid) for pid in processes)
        assert second.status()["processes"] == []
        assert stranger.poll() is None
        assert cluster.job(first_job)["JobState"] == "RUNNING"
        assert cluster.status()["up"]
    finally:
        stranger.kill()
        stranger.wait()


def test_up_replaces_a_crashed_cluster(second_cluster_folder: Path):
    arguments = ("--dir", str(second_cluster_folder), "--nodes=1", "--no-accounting")
    devcluster("up", *arguments)
    second = Cluster(second_cluster_folder)
    for process in second.status()["processes"]:
        if process["name"] == "slurmctld":
            os.kill(process["pid"], signal.SIGKILL)
    assert not second.status()["up"]
    left = [process["pid"] for process in second.status()["processes"] if alive(process["pid"])]
    assert left

    devcluster("up", *arguments)
    assert not any(alive(pid) for pid in left)
    assert second.node_states() == {"node1": "idle"}


def test_a_half_made_damaged_or_moved_release_is_not_used(tmp_path: Path, monkeypatch):
    native = devcluster("install", "--slurm", "native").stdout.rpartition(".")[0]
    other = "22.05" if native == "24.11" else "24.11"
    check = ("install", "--check", "--slurm", other)
    cache = tmp_path / "cache"
    monkeypatch.setenv("MGPT4_DEVCLUSTER_CACHE", str(cache))
    half_made = cache / other / "usr" / "half-made"
    half_made.mkdir(parents=True)
    refused = devcluster(*check, check=False)
    assert refused.returncode == 1
    assert f"fix: tools/devcluster install --slurm {other}" in refused.stderr

    assert devcluster("install", "--slurm", other).stdout.startswith(f"{other}.")
    assert not half_made.exists()
    assert devcluster(*check).stdout.startswith(f"{other}.")
    for missing in ("usr/bin/sbatch", "usr/lib/*/slurm-wlm/select_cons_tres.so"):
        (file,) = (cache / other).glob(missing)
        aside = file.rename(tmp_path / file.name)
        assert devcluster(*check, check=False).returncode == 1, missing
        aside.rename(file)
    assert devcluster(*check).returncode == 0

    # Its programs name the folder that they were made in.
    monkeypatch.setenv("MGPT4_DEVCLUSTER_CACHE", str(cache.rename(tmp_path / "moved")))
    assert devcluster(*check, check=False).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--nodes=0", "--grace-s=-1"], "nodes is 0, and must be at least 1; grace_s is -1"),
        (["up", "--dir", "/etc"], "/etc holds other things"),
        (["down", "--dir", "/etc"], "/etc holds other things"),
        (["up", "--dir", "/tmp/" + "x" * 80], "sockets in it allow"),
        (["env", "--dir", "/tmp/no-such-cluster"], "tools/devcluster up --dir"),
    ],
)
def test_an_error_names_the_fault_and_the_fix(arguments: list[str], message: str):
    if os.geteuid() != 0:
        pytest.skip("devcluster needs root")
    result = devcluster(*arguments, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert "fix: " in result.stderr
    assert result.stdout == ""
