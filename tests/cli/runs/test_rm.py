"""``rm``: it deletes runs that are over, asks first, and touches nothing else."""

import time
from pathlib import Path

import pytest

from mgpt4_hpc.launch.manage import remove
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted

pytestmark = pytest.mark.usefixtures("slurm")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = make_run(tmp_path / "runs")
    submitted(made)
    attempt(made, 1, first=1, last=100, cause="finished")
    return made


def test_it_says_what_goes_and_deletes_it(mgpt4: Mgpt4, run: RunDir) -> None:
    (run.checkpoints / "step-00000100" / "projector.safetensors").write_bytes(b"x" * 3 * 2**20)
    ended = mgpt4("rm", "one", "--yes")
    assert ended.code == 0
    assert ended.out == "one: removed\n"
    assert "finished; step 100/100, 1 checkpoint," in ended.err
    assert "3.0 MiB" in ended.err
    assert list(run.path.parent.iterdir()) == []


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_without_a_yes_nothing_goes(
    mgpt4: Mgpt4, run: RunDir, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: _typed(answer))
    ended = mgpt4("rm", "one")
    assert ended.code == 130
    assert ended.err.endswith("aborted\n")
    assert run.checkpoints.is_dir()


def _typed(answer: str) -> str:
    if not answer:
        raise EOFError
    return answer.strip()


def test_dry_run(mgpt4: Mgpt4, run: RunDir) -> None:
    ended = mgpt4("rm", "one", str(run.path), "--dry-run", "--json")
    (row,) = ended.json
    assert (row["run"], row["removed"], row["needed_by"]) == ("one", False, [])
    assert row["bytes"] > 0
    assert run.identity_file.exists()


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("RUNNING", "two: it is running (starting)"),
        ("PENDING", "two: it waits in the queue (pending"),
        ("COMPLETING", "two: it is running (ending"),
        ("SUSPENDED", "two: it waits in the queue (suspended"),
    ],
)
def test_never_a_live_one_and_then_no_other_either(
    mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir, state: str, told: str
) -> None:
    submitted(make_run(run.path.parent, "two"), "18")
    slurm.squeue = squeue_row("18", state)
    ended = mgpt4("rm", "one", "two", "--yes")
    assert ended.code == 7
    assert told in ended.err
    assert "stop it first: mgpt4 cancel two" in ended.err
    assert run.identity_file.exists()


def test_not_while_slurm_is_silent(mgpt4: Mgpt4, slurm: FakeSlurm, run: RunDir) -> None:
    two = make_run(run.path.parent, "two")
    submitted(two, "18")
    slurm.squeue = slurm.sacct = None
    assert mgpt4("rm", "two", "--yes").code == 5
    assert two.identity_file.exists()
    # Of a finished run Slurm need not be asked, whatever others do.
    assert mgpt4("rm", "one", "--yes").code == 0


def test_only_runs(mgpt4: Mgpt4, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    assert mgpt4("rm", str(tmp_path / "thesis"), "--yes").code == 6
    (tmp_path / "thesis" / "run.json").write_text("not json")
    assert mgpt4("rm", str(tmp_path / "thesis"), "--yes").code == 7
    assert (tmp_path / "thesis").is_dir()


def test_links_are_not_followed(mgpt4: Mgpt4, run: RunDir, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "00000.tar").write_text("precious")
    (run.path / "shards").symlink_to(data)
    (run.checkpoints / "step-00000007").symlink_to(data)
    assert mgpt4("rm", "one", "--yes").code == 0
    assert (data / "00000.tar").read_text() == "precious"


def test_a_run_that_is_a_link_is_refused(mgpt4: Mgpt4, run: RunDir, tmp_path: Path) -> None:
    (run.path.parent / "alias").symlink_to(run.path)
    ended = mgpt4("rm", "alias", "--yes")
    assert ended.code == 7
    assert f"it is a link to {run.path}" in ended.err
    assert run.identity_file.exists()


def test_not_the_folder_one_stands_in(
    mgpt4: Mgpt4, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.slurm)
    ended = mgpt4("rm", str(run.path), "--yes")
    assert ended.code == 7
    assert "lies in it" in ended.err


def test_it_warns_of_a_run_that_starts_from_it(mgpt4: Mgpt4, run: RunDir) -> None:
    make_run(run.path.parent, "second", model__projector=str(run.path))
    ended = mgpt4("rm", "one", "--dry-run")
    assert "warning: second starts from its checkpoint" in ended.err


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
