"""A sweep without a scheduler: its runs follow each other on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import ENVIRONMENT, curve, patience
from tests.support.shown import assert_schema
from tests.support.tiny_world import TinyWorld


def test_each_run_begins_when_the_one_before_has_ended(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "c.yaml", train__max_steps=4)
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "submit", "--config", str(config), "--gpus",
         "1", "--executor", "local", "--sweep", "lr=1e-2,3e-3", "--name", "s", "--json"],
        env={**ENVIRONMENT, "MGPT4_RUNS_DIR": str(tmp_path / "runs")},
        capture_output=True, text=True, timeout=180 * patience(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert_schema("submit", told)
    assert [(one["run"], one["values"]) for one in told] == [
        ("s-lr1e-2", {"train.lr": "1e-2"}),
        ("s-lr3e-3", {"train.lr": "3e-3"}),
    ]
    ((one,), (two,)) = (read_ledgers(Path(entry["run_dir"]) / "ledger") for entry in told)
    assert (one.cause, two.cause) == ("finished", "finished")
    assert one.end <= two.start
    assert curve(Path(told[0]["run_dir"])) != curve(Path(told[1]["run_dir"]))
