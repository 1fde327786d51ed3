"""``mgpt4 doctor`` and ``mgpt4 drill`` on a real Slurm."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.launch.site_check.preemptor import JOB_NAME
from tests.slurm.harness import Cluster, devcluster
from tests.slurm.jobs import mgpt4
from tests.support.runs import patience
from tests.support.shown import assert_schema

pytestmark = pytest.mark.slurm


def start_drill(cluster: Cluster, runs: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command in a process of its own, on CPUs and few steps."""
    words = ("drill", "--device", "cpu", "--runs-dir", str(runs), *arguments)
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *words],
        env={**cluster.env, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_job(cluster: Cluster) -> str:
    cluster.wait_until(lambda: cluster.squeue(), 30, "the drill has submitted its run")
    return min(cluster.squeue(), key=int)


def test_the_doctor_reads_a_real_site(cluster: Cluster, tmp_path: Path) -> None:
    told = json.loads(mgpt4(cluster, tmp_path, "doctor", "-p", "a100-preempt", "--json").stdout)
    assert told["ok"], told["findings"]
    (partition,) = told["partitions"]
    assert "a job of partition a100 that needs its nodes" in partition["happens"]["preempted"]
    assert "TERM and 20 s of grace" in partition["happens"]["preempted"]
    sentences = [finding["what"] for finding in told["findings"]]
    release = cluster.run("scontrol --version").stdout.split()[1]
    assert any(what.startswith(f"Slurm {release} of cluster") for what in sentences), sentences
    keeps_mark = any("as another preemption" in what for what in sentences)
    assert keeps_mark == ((24, 5) <= tuple(map(int, release.split("."))) < (26, 5, 4))
    assert "Slurm would take a job of yours" in sentences
    assert "accounting is on; you may charge: devaccount, root" in sentences
    assert "4 usable nodes with 16 a100, up to 4 a node" in sentences
    assert cluster.squeue() == {}
    refused = mgpt4(cluster, tmp_path, "doctor", "-p", "a100", "--account", "nobodys", check=False)
    assert refused.returncode == 3
    assert "Slurm would refuse a job of yours" in refused.stdout


@pytest.mark.soak
def test_the_doctor_on_another_site(second_cluster_folder: Path, tmp_path: Path) -> None:
    devcluster(
        *("up", "--dir", str(second_cluster_folder), "--nodes", "1", "--no-accounting"),
        *("--grace-s", "0", "--preempt-mode", "CANCEL", "--send-user-signal"),
    )
    cluster = Cluster(second_cluster_folder)
    told = json.loads(mgpt4(cluster, tmp_path, "doctor", "-p", "a100-preempt", "--json").stdout)
    happens = told["partitions"][0]["happens"]["preempted"]
    assert "USR2 and no grace, only 30 s (KillWait)" in happens
    assert "PreemptMode=CANCEL" in happens
    assert "accounting is off" in json.dumps(told["findings"])
    # Nothing that runs is needed to say that nobody answers.
    devcluster("down", "--dir", str(second_cluster_folder))
    silent = mgpt4(cluster, tmp_path, "doctor", check=False)
    assert silent.returncode == 5, silent.stderr
    assert "runs folder" in silent.stdout


def test_a_drill_is_preempted_and_goes_green(cluster: Cluster, tmp_path: Path) -> None:
    drill = start_drill(cluster, tmp_path, "-p", "a100-preempt", "--steps", "40", "--json")
    out, err = drill.communicate(timeout=500 * patience())
    assert drill.returncode == 0, err
    told = json.loads(out)
    assert_schema("drill", told)
    assert told["ok"] and told["causes"] == ["preempted", "finished"]
    assert "submitted to partition a100, which preempted it" in told["how"]
    assert told["resumed_from"] == told["stopped_at"] >= 10
    assert 0 <= told["follow_s"] <= 30 * patience()
    assert list(tmp_path.iterdir()) == []
    cluster.wait_until(lambda: cluster.squeue() == {}, 20, "no job is left")


def test_an_interrupted_drill_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    drill = start_drill(cluster, tmp_path, "-p", "a100-preempt", "--sbatch", "begin=now+600")
    job = wait_for_job(cluster)
    drill.send_signal(signal.SIGINT)
    _, err = drill.communicate(timeout=120 * patience())
    assert drill.returncode == 130, err
    assert f"job {job} is cancelled" in err
    assert list(tmp_path.iterdir()) == []
    cluster.wait_until(lambda: cluster.squeue() == {}, 20, "no job is left")


def test_a_drill_that_never_starts_says_what_it_waits_for(cluster: Cluster, tmp_path: Path) -> None:
    drill = start_drill(
        cluster, tmp_path, "-p", "a100-preempt", "--sbatch", "begin=now+600", "--patience", "0.1",
        "--json",
    )  # fmt: skip
    out, err = drill.communicate(timeout=120 * patience())
    assert drill.returncode == 1, err
    assert "did not reach step" in err and "eligible in" in err
    assert json.loads(out)["ok"] is False
    first, second = tmp_path.iterdir()
    kept = "".join(err.split()).partition("kept:")[2]
    assert str(first) in kept and str(second) in kept


@pytest.mark.soak
def test_a_job_that_may_not_be_requeued_is_explained(cluster: Cluster, tmp_path: Path) -> None:
    drill = start_drill(cluster, tmp_path, "-p", "a100-preempt", "--steps", "60")
    cluster.run(["scontrol", "update", f"JobId={wait_for_job(cluster)}", "Requeue=0"])
    _, err = drill.communicate(timeout=500 * patience())
    assert drill.returncode == 1, err
    assert "did not come back" in err
    assert "Slurm does not allow this job to be requeued" in err
    assert JOB_NAME not in cluster.run("squeue -h -o %j").stdout


@pytest.mark.soak
def test_a_node_without_scontrol_is_named(cluster: Cluster, tmp_path: Path) -> None:
    commands, runs = tmp_path / "bin", tmp_path / "runs"
    commands.mkdir()
    for folder in reversed(cluster.env["PATH"].split(":")):
        for command in Path(folder).glob("*"):
            (commands / command.name).unlink(missing_ok=True)
            (commands / command.name).symlink_to(command)
    (commands / "scontrol").unlink()
    setup = f'launch.setup=["PATH={commands} submitted_path="]'
    drill = start_drill(cluster, runs, "-p", "a100-preempt", "--steps", "60", "--set", setup)
    _, err = drill.communicate(timeout=500 * patience())
    assert drill.returncode == 1 and "jobs found no scontrol on node" in err, err
    found = json.loads(mgpt4(cluster, runs, "doctor", "--json").stdout)["findings"]
    assert any("jobs found no scontrol on node" in finding["what"] for finding in found)


@pytest.mark.soak
def test_where_nobody_may_preempt_it_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    drill = start_drill(cluster, tmp_path, "-p", "a100", "--steps", "40", "--json")
    out, err = drill.communicate(timeout=500 * patience())
    assert drill.returncode == 0, err
    told = json.loads(out)
    assert told["how"] == "scontrol requeue (nobody may preempt your jobs of a100)"
    assert told["causes"] == ["requeued", "finished"]
    refused = start_drill(cluster, tmp_path, "-p", "a100", "--by", "preemption")
    _, err = refused.communicate(timeout=120 * patience())
    assert refused.returncode == 3 and "nobody may preempt" in err
