"""``mgpt4 submit``: dry runs, sweeps, what is said of runs that exist, and what Ctrl-C leaves."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.errors import SlurmUnreachable
from mgpt4_hpc.launch.submit import preflight_slurm
from mgpt4_hpc.launch.submit.preflight_slurm import Cluster
from mgpt4_hpc.run_dir import read_json
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import attempt, make_run, submitted


def test_a_dry_run_that_would_be_refused_shows_the_script_and_says_so(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path
) -> None:
    ended = mgpt4("submit", "--config", stage1, "--dry-run", "--gpus", "8", "--partition", "a10")
    assert ended.code == 3
    assert "#SBATCH --partition=a10" in ended.out
    assert "partition 'a10' does not exist" in ended.err
    assert "train.global_batch_size 4 is no multiple" in ended.err
    assert not sbatch.exists() and list(Path().iterdir()) == []


def test_a_dry_run_without_an_answer_of_slurm_shows_the_script_all_the_same(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down() -> Cluster:
        raise SlurmUnreachable("the controller is down")

    monkeypatch.setattr(preflight_slurm, "ask_cluster", down)
    ended = mgpt4("submit", "--config", stage1, "--dry-run")
    assert (ended.code, "#SBATCH" in ended.out) == (5, True)
    assert "the controller is down" in ended.err


def test_auto_says_which(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = mgpt4("submit", "--config", stage1, "--dry-run")
    assert "executor: slurm, for sbatch is installed here" in ended.err
    monkeypatch.setenv("PATH", "/nowhere")
    ended = mgpt4("submit", "--config", stage1, "--dry-run")
    assert "executor: local, for there is no sbatch here" in ended.err
    assert "mgpt4_hpc.launch.local" in ended.out and "#SBATCH" not in ended.out


def test_mail_reaches_the_script_and_a_wrong_type_is_told(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path
) -> None:
    mail = ["--mail-type", "END,FAIL", "--mail-user", "me@example.org"]
    script = mgpt4("submit", "--config", stage1, "--dry-run", *mail).out
    assert "#SBATCH --mail-type=END,FAIL\n#SBATCH --mail-user=me@example.org\n" in script
    ended = mgpt4("submit", "--config", stage1, "--dry-run", "--mail-type", "FALL")
    assert ended.code == 2 and "launch.mail_type has 'FALL': use NONE, BEGIN" in ended.err


@pytest.mark.slow
def test_a_sweep_is_one_array_and_a_run_for_each_task(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, slurm: FakeSlurm
) -> None:
    ended = mgpt4(
        "submit", "--config", stage1, "--name", "s", "--sweep", "lr=1e-2,3e-3", "--sweep",
        "seed=1,2", "--max-parallel", "3", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert [(one["run"], one["job_id"], one["values"]) for one in ended.json] == [
        ("s-lr1e-2-seed1", "42_0", {"train.lr": "1e-2", "seed": "1"}),
        ("s-lr1e-2-seed2", "42_1", {"train.lr": "1e-2", "seed": "2"}),
        ("s-lr3e-3-seed1", "42_2", {"train.lr": "3e-3", "seed": "1"}),
        ("s-lr3e-3-seed2", "42_3", {"train.lr": "3e-3", "seed": "2"}),
    ]
    sweep = Path("runs/.sweeps/s")
    assert sbatch.read_text().split() == ["--parsable", str(sweep.absolute() / "array.sbatch")]
    assert "#SBATCH --array=0-3%3" in (sweep / "array.sbatch").read_text()
    assert read_json(sweep / "sweep.json")["max_parallel"] == 3, "for its resumption"
    assert "lr: 0.003" in Path("runs/s-lr3e-3-seed1/config.yaml").read_text()
    assert (sweep / "tasks" / "2" / "job.sbatch").samefile("runs/s-lr3e-3-seed1/slurm/job.sbatch")

    slurm.squeue = "".join(squeue_row(f"42_{n}", "PENDING", "Priority") for n in range(4))
    rows = mgpt4("status", "s", "--json").json
    assert [(row["name"], row["state"]) for row in rows] == [
        (one["run"], "pending") for one in ended.json
    ]
    again = mgpt4("submit", "--config", stage1, "--name", "s", "--sweep", "lr=1e-2,3e-3")
    assert again.code == 3 and "the sweep s exists already" in again.err


def test_a_dry_sweep_shows_the_array_and_its_runs(mgpt4: Mgpt4, stage1: Path, sbatch: Path) -> None:
    ended = mgpt4("submit", "--config", stage1, "--sweep", "seed=1,2", "--dry-run")
    assert "#SBATCH --array=0-1\n" in ended.out
    assert "tiny-stage1-seed2  seed=2" in ended.err
    assert subprocess.run(["bash", "-n"], input=ended.out, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("cause", "squeue", "told"),
    [
        ("finished", "", "is finished (12 steps): nothing is left to do in it"),
        (None, squeue_row("42", "RUNNING"), "`mgpt4 logs -f tiny-stage1` follows it"),
        ("crashed", "", "`mgpt4 resume tiny-stage1` continues it"),
    ],
)
def test_a_run_that_exists_is_told_what_it_does_and_what_to_do(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, slurm: FakeSlurm, cause: Any, squeue: str, told: str
) -> None:
    run = make_run(Path("runs").absolute(), "tiny-stage1")
    submitted(run, "42")
    attempt(run, 1, first=1, last=12, job_id="42", cause=cause)
    slurm.squeue = squeue
    ended = mgpt4("submit", "--config", stage1)
    assert ended.code == 3
    assert told in ended.err, ended.err
    assert ("resume" in ended.err) is (cause == "crashed")
    assert not sbatch.exists()


def test_explain_shows_what_is_asked_for(mgpt4: Mgpt4, stage1: Path) -> None:
    def keys(*wanted: str) -> list[str]:
        return [row["key"] for row in mgpt4("config", "explain", stage1, *wanted, "--json").json]

    assert keys("lr", "seed") == ["train.lr", "seed"]
    assert keys("container") == [
        f"container.{leaf}" for leaf in ("runtime", "image", "mounts", "python", "options")
    ]
    assert keys("launch.env.NCCL_DEBUG") == ["launch.env"]
    assert mgpt4("config", "explain", stage1, "lrr").code == 2


@pytest.mark.slow
def test_the_sites_runs_are_where_every_command_looks(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Path("site.yaml").absolute()
    site.write_text(f"launch: {{runs_dir: {Path('elsewhere').absolute()}, partition: a100}}\n")
    monkeypatch.setenv("MGPT4_SITE", str(site))
    ended = mgpt4("submit", "--config", stage1)
    assert ended.code == 0, ended.err
    assert "site profile site, chosen by MGPT4_SITE" in ended.err
    assert Path("elsewhere/tiny-stage1/run.json").is_file()
    slurm.squeue = squeue_row("42", "PENDING")
    assert [row["name"] for row in mgpt4("status", "--json").json] == ["tiny-stage1"]
    (told,) = mgpt4("config", "explain", stage1, "launch.partition", "--json").json
    assert (told["value"], told["origin"]) == ("a100", "site site")
