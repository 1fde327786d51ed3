"""What ``mgpt4 train`` refuses before it makes a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import UnsafeRun
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.__main__ import _create
from tests.support.tiny_world import TinyWorld


def start(config: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.train", "--cfg-path", str(config), "--run-dir", "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        cwd=config.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_stage_2_without_a_projector_is_refused_and_leaves_nothing(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    done = start(tiny_world.write_config(tmp_path / "two.yaml", stage=2))
    assert done.returncode == 2
    assert "stage 2 starts from stage 1's projector" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_unfit_machine_is_a_plain_error(tiny_world: TinyWorld, tmp_path: Path) -> None:
    done = start(tiny_world.write_config(tmp_path / "one.yaml"), TMPDIR="/proc")
    assert done.returncode == 71
    assert "bad node" in done.stderr and "TMPDIR /proc cannot be written" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_that_others_can_write_is_refused(tiny_world: TinyWorld, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create({"name": "run"})
    run.path.chmod(0o777)
    resolved = load_config(str(tiny_world.write_config(tmp_path / "one.yaml")))
    with pytest.raises(UnsafeRun, match="chmod -R go-w"):
        _create(run, resolved, accept=True)
    assert not run.drift_accepted.exists()
