"""The growth benchmark runs and reports every row; its figures are for people."""

from __future__ import annotations

import json

import bench_growth
import pytest
from click.testing import CliRunner


@pytest.mark.slow
def test_every_row_is_reported() -> None:
    small = ("--samples", "1000", "--few", "2", "--many", "4", "--lines", "3", "--attempts", "2")
    done = CliRunner().invoke(bench_growth.main, [*small, "--rounds", "2", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert list(rows) == ["position", "shards", "ledger", "attempts", "step"]
    assert all(row["early_s"] > 0 and row["late_s"] > 0 for row in rows.values())
