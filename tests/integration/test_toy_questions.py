"""The toy world's third stage: it learns to answer questions about colour, shape, place, number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.questions import shares_right
from tests.support.runs import ENVIRONMENT, REPO, wait_until

MGPT4 = (sys.executable, "-m", "mgpt4_hpc.cli.main")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``questions``, as the tool makes them, and their ``shards``."""
    folder = tmp_path_factory.mktemp("toy")
    build = [sys.executable, str(REPO / "tools" / "build_toy_world.py"), "--out", str(folder)]
    subprocess.run([*build, "--only", "questions"], env=ENVIRONMENT, check=True)
    questions = folder / "questions"
    pack = [*MGPT4, "data", "pack", str(questions / "train.json"), "--out", str(folder / "shards")]
    pack += ["--images", str(questions / "image")]
    subprocess.run(pack, env=ENVIRONMENT, check=True)
    return folder


@pytest.mark.parametrize(
    ("max_steps", "right"), [(200, 0.25), pytest.param(None, 0.6, marks=pytest.mark.soak)]
)
def test_a_third_stage_answers_held_out_questions(
    world: Path, trained: Path, tmp_path: Path, max_steps: int | None, right: float
) -> None:
    """A guess is right in one of five; after the preset's steps two of three answers are right."""
    stage2 = trained / "toy-stage2"
    settings = [f"data.paths.questions={world / 'shards'}", f"model.projector={stage2}"]
    settings += [f"train.max_steps={max_steps}"] if max_steps else []
    run = tmp_path / "toy-stage3"
    subprocess.run(
        [*MGPT4, "submit", "--config", "toy-stage3", "--runs-dir", str(tmp_path),
         "--executor", "local", *(word for each in settings for word in ("--set", each))],
        env=ENVIRONMENT, check=True,
    )  # fmt: skip

    def finished() -> bool:
        attempts = read_ledgers(run / "ledger")
        return bool(attempts) and attempts[-1].cause == "finished"

    wait_until(finished, 400 if max_steps else 3600, "the third stage")
    before, after = (shares_right(each, world / "questions/heldout.json") for each in (stage2, run))
    print(f"right before {before}, after {after}", file=sys.stderr)
    assert after["all"] >= max(right, 2 * before["all"])
    assert after["number"] >= right
