"""``mgpt4 eval --tasks``: a benchmark's scores are those of the model's own answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.evaluation.benchmarks import LMMS_EVAL
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.report import read_curves, read_texts
from tests.support.examples import Shell, executes, lines_of
from tests.support.lmms_eval import TASK, few_questions, stand_in, write_task
from tests.support.questions import shares_right
from tests.support.runs import ENVIRONMENT, REPO
from tests.support.shown import assert_schema

*_, TASKS = lines_of("eval")


def check_task(found: dict[str, Any], own: dict[str, float], asked: int) -> None:
    """A task's scores against the shares of the model's own answers to the same questions."""
    assert found["metrics"] == pytest.approx({name: own[name] for name in found["metrics"]})
    assert len(found["answers"]) == found["num_images"] == asked
    assert len({answer["text"] for answer in found["answers"]}) > 1


@executes(TASKS)
def test_scores_are_those_of_the_models_own_answers(trained: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "stage2-vicuna7b")
    shutil.copytree(trained / "toy-stage2", run.path)
    variables = {
        LMMS_EVAL.variable: str(stand_in(tmp_path / "environment")),
        "http_proxy": "http://127.0.0.1:9",  # clusters have one, and it is not for us
    }
    shell = Shell(tmp_path, variables)
    shell.run(TASKS, timeout_s=600)
    shutil.rmtree(tmp_path / "environment")  # the same command has nothing to ask
    told = json.loads(shell.say(f"{TASKS} --json"))
    assert_schema("eval", told)
    questions = few_questions()
    (tmp_path / "asked.json").write_text(json.dumps(questions))
    own = shares_right(run.path, tmp_path / "asked.json")
    assert [task["task"] for task in told["tasks"]] == ["pope", "mme", "vqav2_val_lite"]
    for task in told["tasks"]:
        check_task(task, own, len(questions))
    assert 0 < own["contained"] < 1
    points = dict(read_curves(run.tensorboard / "eval")["eval/pope_contained"])
    assert points == {told["step"]: pytest.approx(own["contained"])}
    texts = dict(read_texts(run.tensorboard / "eval")["eval/pope_answers"])
    assert questions[0]["question"] in texts[told["step"]]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_lmms_eval_itself(trained: Path, tmp_path: Path) -> None:
    asked, run = 100, trained / "toy-stage2"
    build = [sys.executable, str(REPO / "tools" / "build_toy_world.py"), "--out", str(tmp_path)]
    subprocess.run([*build, "--only", "questions"], env=ENVIRONMENT, check=True)
    questions = json.loads((tmp_path / "questions" / "heldout.json").read_text())
    task = write_task(tmp_path / "task", questions)
    # Made where there is none: minutes.
    environment = os.environ.get(LMMS_EVAL.variable) or str(Path(sys.prefix) / "lmms-eval")
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "eval", str(run), "--tasks", TASK,
         "--task-folder", str(task), "--limit", str(asked), "--answers", str(tmp_path / "answers"),
         "--device", "cpu", "--json"],
        env={**ENVIRONMENT, **offline, LMMS_EVAL.variable: environment,
             "http_proxy": "http://127.0.0.1:9"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["tasks"]
    (tmp_path / "asked.json").write_text(json.dumps(questions[:asked]))
    assert found["metrics"].keys() == {"right", "contained"}
    check_task(
        found, {**(own := shares_right(run, tmp_path / "asked.json")), "right": own["all"]}, asked
    )
    assert f"eval/first-{asked}/" in done.stderr
