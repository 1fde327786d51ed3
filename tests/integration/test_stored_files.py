"""Today's code reads what the code before its modules moved has written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import (
    ENVIRONMENT,
    assert_every_step_once,
    curve,
    last_step,
    patience,
    records,
    wait_until,
)
from tests.support.stored_code import StoredCode
from tests.support.tiny_world import TinyWorld

STEPS = 120


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> StoredCode:
    return StoredCode.unpack(tmp_path_factory.mktemp("older"))


def mgpt4(*arguments: object, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *map(str, arguments)],
        env={**ENVIRONMENT, **environ}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def stop_once_it_trains(process: subprocess.Popen[str], run: Path) -> None:
    with process:
        wait_until(lambda: last_step(run) >= 4 or process.poll() is not None, 300, "it trains")
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60 * patience())
    assert process.returncode == 75, output + errors


def test_a_training_goes_on_from_its_bundle_index_features_and_checkpoint(
    older: StoredCode, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    weights = tiny_world.weights
    bundle, index, features = (tmp_path / name for name in ("bundle", "x.index", "features"))
    older.run(
        "weights", "import", "--vit", weights / "eva_vit_g.pth", "--qformer",
        weights / "blip2_pretrained_flant5xxl.pth", "--llm", weights / "llm", "--out", bundle,
    )  # fmt: skip
    shards = tiny_world.shards("laion")
    older.run("data", "index", shards, "--name", "laion", "--out", index)
    source = {"name": "laion", "path": str(shards), "index": str(index)}
    config = tiny_world.write_config(
        tmp_path / "c.yaml", train__max_steps=STEPS, model__weights=str(bundle),
        data__sources=[source], data__feature_cache=str(features),
    )  # fmt: skip
    older.run("data", "encode", config, "--out", features, "--yes")
    whole, run = tmp_path / "whole", tmp_path / "run"
    older.run("train", "--cfg-path", config, "--run-dir", whole)
    stop_once_it_trains(older.begin("train", "--cfg-path", config, "--run-dir", run), run)

    mgpt4("train", "--cfg-path", config, "--run-dir", run)
    assert [attempt.cause for attempt in read_ledgers(run / "ledger")][-1] == "finished"
    assert_every_step_once(run, STEPS)
    assert curve(run) == curve(whole)
    told = json.loads(mgpt4("data", "encode", config, "--out", features, "--dry-run", "--json"))
    assert told["num_missing"] == 0 and told["num_encoded"] > 0


def test_a_run_on_this_machine_is_resumed(
    older: StoredCode, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    config = tiny_world.write_config(tmp_path / "c.yaml", train__max_steps=STEPS)
    runs, run = tmp_path / "runs", tmp_path / "runs" / "one"
    older.run(
        "submit", "--config", config, "--gpus", "1", "--executor", "local", "--name", "one",
        env={**ENVIRONMENT, "MGPT4_RUNS_DIR": str(runs)},
    )  # fmt: skip
    wait_until(lambda: last_step(run) >= 4, 300, "it trains")
    start = next(record for record in records(run) if record["kind"] == "start")
    rank = start["processes"][0]["pid"]
    os.kill(rank, signal.SIGSTOP)  # or it finishes while the command starts
    mgpt4("cancel", "--save", "one", MGPT4_RUNS_DIR=str(runs))
    os.kill(rank, signal.SIGCONT)
    wait_until(lambda: read_ledgers(run / "ledger")[0].ended, 300, "the older job has ended")
    mgpt4("resume", "--wait", "one", MGPT4_RUNS_DIR=str(runs))
    assert [attempt.cause for attempt in read_ledgers(run / "ledger")] == ["cancelled", "finished"]
    assert_every_step_once(run, STEPS)
