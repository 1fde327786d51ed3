"""What a failed or interrupted submission leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.launch.submit import execute
from mgpt4_hpc.launch.submit.submit_run import SubmittedRun
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4


@pytest.mark.slow
def test_a_sweep_that_sbatch_refuses_leaves_nothing(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path
) -> None:
    (sbatch.parent / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: Batch job submission failed: no' >&2; exit 1\n"
    )
    ended = mgpt4("submit", "--config", stage1, "--sweep", "seed=1,2")
    assert ended.code == 4 and "sbatch refused the job" in ended.err
    assert list(Path("runs").glob("*")) == [Path("runs/.sweeps")]
    assert list(Path("runs/.sweeps").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--sweep", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", True),
        ("Unable to contact slurm controller (connect failure)", False),
    ],
)
def test_a_job_that_may_have_been_accepted_keeps_its_folder(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, more: list[str], said: str, kept: bool
) -> None:
    (sbatch.parent / "sbatch").write_text(f"#!/bin/sh\necho 'sbatch: error: {said}' >&2; exit 1\n")
    ended = mgpt4("submit", "--config", stage1, *more)
    assert ended.code == 5
    assert bool(list(Path("runs").glob("*/run.json"))) is kept
    assert ("squeue --me --name tiny-stage1" in ended.err) is kept
    if kept and not more:
        assert mgpt4("status", "tiny-stage1", "--json").json[0]["state"] == "stopped"


@pytest.mark.slow
def test_a_local_sweep_goes_on_behind_a_run_that_failed(
    mgpt4: Mgpt4, stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    class Process:
        """Ends at once; the second badly."""

        def wait(self) -> int:
            return 70 if len(ran) == 2 else 0

    def start(run: RunDir, *_: Any, **__: Any) -> SubmittedRun:
        ran.append(run.name)
        return SubmittedRun(run, "local", str(len(ran)), process=Process())  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "submit_run", start)
    ended = mgpt4("submit", "--config", stage1, "--executor", "local", "--sweep", "seed=1,2,3")
    assert ended.code == 1
    assert ran == [f"tiny-stage1-seed{seed}" for seed in (1, 2, 3)]
    assert "tiny-stage1-seed2 ended with code 70" in ended.err
    assert "1 of the sweep's 3 runs did not finish" in ended.err


@pytest.mark.slow
def test_ctrl_c_while_waiting_says_what_goes_on(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mgpt4_hpc.launch.runs.wait.wait_for_runs", interrupted)
    ended = mgpt4("submit", "--config", stage1, "--wait")
    assert ended.code == 130
    runs = Path("runs").absolute()
    assert "tiny-stage1  slurm job 42" in ended.err
    assert f"mgpt4 logs -f tiny-stage1 --runs-dir {runs}" in ended.err
    assert f"mgpt4 cancel tiny-stage1 --runs-dir {runs}" in ended.err


def test_ctrl_c_before_sbatch_says_that_nothing_was_submitted(
    mgpt4: Mgpt4, stage1: Path, sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> SubmittedRun:
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "create_run", interrupted)
    ended = mgpt4("submit", "--config", stage1)
    assert ended.code == 130 and "nothing was submitted" in ended.err
    assert not sbatch.exists()
