"""A run keeps the code that it began with, and no secret of the environment, over a preemption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import REPO, last_step, log, patience, records, wait_until
from tests.support.tiny_world import TinyWorld

EDITED = "raise SystemExit('the checkout was edited')\n"
SECRETS = {
    "HF_TOKEN": "hf_s3cretOfHuggingFace",
    "WANDB_API_KEY": "s3cretOfWandb",
    "AWS_SECRET_ACCESS_KEY": "s3cretOfAws",
    "MY_PASSWORD": "s3cretPassword",
}


@dataclass(frozen=True)
class Edited:
    """A finished run, and the checkout that was edited between its two attempts."""

    run: Path
    checkout: Path
    environ: dict[str, str]


@pytest.fixture(scope="module")
def edited(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Edited:
    folder = tmp_path_factory.mktemp("snapshot")
    checkout = folder / "checkout"
    ignore = shutil.ignore_patterns("__pycache__", "toy_world")
    shutil.copytree(REPO / "mgpt4_hpc", checkout / "mgpt4_hpc", ignore=ignore)
    shutil.copytree(REPO / "configs", checkout / "configs")
    environ = {
        **os.environ,
        **SECRETS,
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    config = tiny_world.write_config(folder / "x.yaml", train__max_steps=250)
    where = ["--executor", "local", "--runs-dir", str(folder / "runs"), "--name", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "submit", "--config", str(config), *where],
        env=environ,
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=120 * patience(),
    )
    assert done.returncode == 0, done.stderr
    run = folder / "runs" / "run"
    wait_until(lambda: last_step(run) >= 10, 120, f"ten steps\n{log(run)}")
    for name in ("train/loop.py", "train/run.py", "launch/task.py", "launch/supervise.py"):
        (checkout / "mgpt4_hpc" / name).write_text(EDITED)
    start = next(record for record in records(run) if record["kind"] == "start")
    os.kill(start["processes"][0]["pid"], signal.SIGTERM)

    def over() -> bool:
        attempts = read_ledgers(run / "ledger")
        return len(attempts) > 1 and attempts[-1].ended

    wait_until(over, 120, f"the second attempt's end\n{log(run)}")
    return Edited(run, checkout, environ)


def test_a_checkout_edited_between_two_attempts_changes_nothing(edited: Edited) -> None:
    attempts = read_ledgers(edited.run / "ledger")
    assert [attempt.cause for attempt in attempts] == ["preempted", "finished"]
    assert attempts[1].restored_step == attempts[0].last_step < attempts[1].last_step == 250
    assert "was edited" not in log(edited.run)


def test_the_edit_would_have_been_noticed(edited: Edited) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import mgpt4_hpc.launch.task"],
        env=edited.environ,
        cwd=edited.checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "the checkout was edited" in done.stderr


def test_no_secret_of_the_environment_is_written_down(edited: Edited) -> None:
    files = [path for path in edited.run.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        leaked = [name for name, value in SECRETS.items() if value.encode() in content]
        assert not leaked, f"{path} holds {leaked}"


def test_only_the_owner_gets_into_the_run(edited: Edited) -> None:
    assert edited.run.stat().st_mode & 0o077 == 0
    assert json.loads((edited.run / "run.json").read_text())["name"] == "run"
