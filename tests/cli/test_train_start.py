"""What ``mgpt4 train`` refuses before it makes a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.tiny_world import TinyWorld


def test_stage_2_without_a_projector_is_refused_and_leaves_nothing(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "two.yaml", stage=2)
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.train", "--cfg-path", str(config), "--run-dir", "run"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "stage 2 starts from stage 1's projector" in done.stderr
    assert not (tmp_path / "run").exists()
