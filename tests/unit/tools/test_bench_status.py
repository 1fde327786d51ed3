"""``tools/bench_status.py`` measures what it says, with one question to Slurm."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "bench_status.py"


@pytest.mark.slow
def test_it_measures_and_slurm_is_asked_once() -> None:
    command = [sys.executable, str(TOOL), "--runs", "8", "--repeats", "1", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert told["runs"] == 8
    assert told["calls_per_status"] == {"squeue": 1.0, "sacct": 0.0}
    for name in ("status", "help", "submit_dry_run"):
        assert 0 < told[name]["cpu_s"] < 60
