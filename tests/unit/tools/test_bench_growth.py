"""The growth benchmark runs and reports every row; its figures are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[3] / "tools" / "bench_growth.py"


def test_every_row_is_reported() -> None:
    small = ("--samples", "1000", "--few", "2", "--many", "4", "--lines", "3", "--attempts", "2")
    done = subprocess.run(
        [sys.executable, TOOL, *small, "--rounds", "2", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert list(rows) == ["position", "shards", "ledger", "attempts", "step"]
    assert all(row["early_s"] > 0 and row["late_s"] > 0 for row in rows.values())
