"""Tests of ``launch/runs/logs.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.logs import last_error, split_starts
from mgpt4_hpc.run_dir import RunDir

START = "submitit INFO (2026-11-22 15:26:43,760) - Starting with JobEnvironment(job_id=17)\n"


@pytest.mark.parametrize(
    "text",
    ["", "no start\n", START, START + "a\n" + START + "b\n", "before\n" + START + "a", "\n\n"],
)
def test_cutting_loses_nothing(text: str) -> None:
    parts = split_starts(text.encode())
    assert b"".join(parts) == text.encode()
    assert len(parts) == max(text.count("Starting with") + text.startswith("before"), bool(text))


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            [
                "slurmstepd: error: execve(): apptainer: No such file or directory",
                "srun: error: node1: task 0: Exited with exit code 2",
            ],
            "execve(): apptainer: No such file or directory",
        ),
        (["FATAL:   could not open image /i.sif"], "FATAL:   could not open image /i.sif"),
        (
            ["Traceback (most recent call last):", "ModuleNotFoundError: No module named 'torch'"],
            "ModuleNotFoundError: No module named 'torch'",
        ),
        (["slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED DUE TO PREEMPTION ***"], ""),
        (["12:00:00 step 3/9  loss 1.2"], ""),
    ],
)
def test_the_line_that_says_why(tmp_path: Path, lines: list[str], told: str) -> None:
    run = RunDir(tmp_path / "run")
    run.create({"name": "run", "stage": 1})
    (run.slurm / "7_0_log.out").write_text("\n".join(["a beginning", *lines, "an end", ""]))
    (run.slurm / "6_0_log.out").write_text("error: of another job\n")
    assert last_error(run, "7") == told
    assert last_error(run, "8") == ""
