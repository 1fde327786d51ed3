"""What a removal deletes, and what it leaves in place."""

import time
from pathlib import Path

import pytest

from mgpt4_hpc.launch.manage import remove
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = make_run(tmp_path / "runs")
    submitted(made)
    attempt(made, 1, first=1, last=100, cause="finished")
    return made


def test_links_are_not_followed(mgpt4: Mgpt4, run: RunDir, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "00000.tar").write_text("precious")
    (run.path / "shards").symlink_to(data)
    (run.checkpoints / "step-00000007").symlink_to(data)
    assert mgpt4("rm", "one", "--yes").code == 0
    assert (data / "00000.tar").read_text() == "precious"


def test_an_interrupted_removal_is_repeated(
    mgpt4: Mgpt4, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with monkeypatch.context() as broken:
        broken.setattr(remove.shutil, "rmtree", refuse)
        ended = mgpt4("rm", "one", "--yes")
    assert ended.code == 1
    assert "could not be removed whole: Permission denied" in ended.err
    assert mgpt4("rm", "one", "--yes").code == 0
    assert not run.path.exists()


def test_a_sweep_goes_with_its_last_run(mgpt4: Mgpt4, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", name) for name in ("s-1", "s-2", "other")]
    sweep = SweepDir.of("s", tmp_path / "runs")
    create_sweep(sweep, runs[:2], [{"lr": "1"}, {"lr": "2"}], "slurm")
    assert mgpt4("rm", "s-1", "--yes").code == 0
    assert sweep.file.exists()
    assert mgpt4("rm", "s", "--yes").out == "s-2: removed\n"
    assert not sweep.path.exists()
    assert runs[2].identity_file.exists()


def test_who_has_just_finished_goes_when_its_job_has(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """The job still puts things in order in the folder; without it, it would end as FAILED."""
    run = make_run(tmp_path / "runs")
    submitted(run)
    attempt(run, 1, first=1, last=100, cause="finished", clock=Clock(time.time() - 5))
    slurm.squeue = squeue_row("17", "COMPLETING")
    ended = mgpt4("rm", "one", "--yes")
    assert ended.code == 7 and run.checkpoints.is_dir()
    slurm.squeue = slurm.sacct = None
    ended = mgpt4("rm", "one", "--yes")
    assert ended.code == 5 and run.checkpoints.is_dir()
    slurm.squeue = squeue_row("17", "COMPLETED")
    assert mgpt4("rm", "one", "--yes").code == 0
    assert not run.path.exists()
