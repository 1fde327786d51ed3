"""Ctrl-C at ``mgpt4 train``: the step is finished and saved, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from mgpt4_hpc.errors import EXIT_RESUMABLE
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import (
    ENVIRONMENT,
    assert_every_step_once,
    last_step,
    patience,
    wait_until,
)
from tests.support.tiny_world import TinyWorld

MAX_STEPS = 120


def test_ctrl_c_saves_and_the_same_command_goes_on(tiny_world: TinyWorld, tmp_path: Path) -> None:
    config = tiny_world.write_config(tmp_path / "x.yaml", train__max_steps=MAX_STEPS)
    run = tmp_path / "run"
    words = ["--cfg-path", str(config), "--run-dir", str(run)]
    command = [sys.executable, "-m", "mgpt4_hpc.train", *words]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    wait_until(lambda: last_step(run) >= 5, 120, "step 5")
    for _ in range(3):  # impatience does no harm
        os.kill(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=60 * patience())
    assert process.returncode == EXIT_RESUMABLE
    assert "stopped by SIGINT" in told and "the same command goes on from there" in told

    subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, check=True, timeout=120 * patience())
    first, second = read_ledgers(run / "ledger")
    assert (first.cause, second.cause) == ("signalled", "finished")
    assert (second.restored_step, second.steps_replayed) == (first.last_step, 0)
    assert_every_step_once(run, MAX_STEPS)
