"""``rm``: it deletes runs that are over, asks first, and touches nothing else."""

from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import attempt, make_run, submitted

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
    request_cancel(two, "18")
    assert mgpt4("rm", "two", "--yes").code == 5, "its job may still wait in the queue"
    assert two.identity_file.exists()
    # Of a finished run Slurm need not be asked, whatever others do.
    assert mgpt4("rm", "one", "--yes").code == 0


def test_only_runs(mgpt4: Mgpt4, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    assert mgpt4("rm", str(tmp_path / "thesis"), "--yes").code == 6
    (tmp_path / "thesis" / "run.json").write_text("not json")
    assert mgpt4("rm", str(tmp_path / "thesis"), "--yes").code == 7
    assert (tmp_path / "thesis").is_dir()


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
