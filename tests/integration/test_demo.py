"""The demo as a user runs it, and the toy world under torchrun."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.integration.conftest import DEMO, Demo
from tests.support.examples import executes
from tests.support.runs import ENVIRONMENT, REPO, assert_every_step_once, curve, patience


@executes(DEMO)
def test_the_demo_keeps_its_promises(demo: Demo) -> None:
    result, folder = demo.result, demo.folder
    assert result["ok"] and not result["faults"]
    one, two = result["stages"]
    assert one["attempts"] == ["preempted", "finished"]
    assert two["right"] >= 0.90
    # What stage 2 is for: answers that end, and do not go round in circles.
    assert max(one["incomplete"], one["repetitive"]) >= 0.5
    assert max(two["incomplete"], two["repetitive"]) <= 0.1
    # Every tenth step and so on is drawn, and none of them twice.
    steps = [step for step, _ in curve(Path(one["run_dir"]))]
    assert len(steps) == len(set(steps)) and steps == sorted(steps)
    assert_the_stages_differ_as_in_the_paper(folder)


def assert_the_stages_differ_as_in_the_paper(folder: Path) -> None:
    """The paper's two tasks on held-out scenes, as ``mgpt4 compare`` asks them."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mgpt4_hpc.cli.main", "compare", "toy-stage1", "toy-stage2"),
            *("--runs-dir", str(folder), "--limit", "40", "--batch-size", "40"),
            *("--max-new-tokens", "80", "--json", "--html", str(folder / "stages.html")),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200 * patience(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    failing = [row for row in json.loads(done.stdout)["differences"] if row["metric"] == "failing"]
    assert [row["task"] for row in failing] == ["detail", "poem"]
    for row in failing:
        assert row["first"] >= 0.5 and row["clear"]
    assert failing[0]["second"] <= 0.1
    assert (folder / "stages.html").stat().st_size > 40_000


def test_torchrun_trains_without_slurm(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("-m", "mgpt4_hpc.train", "--cfg-path", str(REPO / "configs" / "toy-stage1.yaml")),
            *("--run-dir", str(run), "--set", "max_steps=4", "--set", "warmup_steps=1"),
            *("--set", "log_every_steps=1"),
        ],
        env=ENVIRONMENT,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200 * patience(),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert_every_step_once(run, 4)
    (attempt,) = read_ledgers(run / "ledger")
    assert (attempt.cause, attempt.world_size, attempt.last_step) == ("finished", 2, 4)
    assert attempt.device == "cpu"
