"""Two runs of a sweep."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import RunDir


def _two(tmp_path: Path) -> list[RunDir]:
    runs = [RunDir(tmp_path / f"s-seed{number}") for number in (1, 2)]
    for run in runs:
        run.create({"name": run.name})
    create_sweep(SweepDir.of("s", tmp_path), runs, [{"seed": "1"}, {"seed": "2"}], "slurm")
    return runs
