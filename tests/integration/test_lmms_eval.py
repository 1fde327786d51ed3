"""lmms-eval, unmodified, against ``mgpt4 serve --api``: the model's own answers and score."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.resources import toy_world_dir
from tests.support.runs import ENVIRONMENT, REPO
from tests.support.serving import Serving

ENV_VARIABLE = "MGPT4_LMMS_EVAL_ENV"
"""A virtual environment with lmms-eval, as docs/evaluation.md makes it: gigabytes, with a torch."""
ASKED = 100

TASK = """\
task: toy_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.image
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 40, temperature: 0}}
process_results: !function utils.scores
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """\
from PIL import Image

def image(doc):
    return [Image.open(doc["path"]).convert("RGB")]

def scores(doc, results):
    return {"right": float(doc["answer"].rstrip(".").lower() in results[0].lower())}
"""


@pytest.mark.soak
@pytest.mark.skipif(ENV_VARIABLE not in os.environ, reason=f"{ENV_VARIABLE} names no environment")
def test_answers_and_scores_are_the_models_own(trained: Path, tmp_path: Path) -> None:
    build = [sys.executable, str(REPO / "tools" / "build_toy_world.py"), "--out", str(tmp_path)]
    subprocess.run([*build, "--only", "questions"], env=ENVIRONMENT, check=True)
    questions = json.loads((tmp_path / "questions" / "heldout.json").read_text())[:ASKED]
    images = toy_world_dir() / "heldout" / "image"
    task = tmp_path / "task"
    task.mkdir()
    (task / "toy_questions.yaml").write_text(TASK.format(folder=task))
    (task / "utils.py").write_text(UTILS)
    rows = [{**each, "path": str(images / each["image"])} for each in questions]
    (task / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    run = trained / "toy-stage2"
    serving = Serving(tmp_path / "server", run, "--api", "--no-page")
    try:
        told = evaluate(serving.url, task, tmp_path / "out")
    finally:
        serving.close()
    (results,) = (tmp_path / "out").rglob("*_results.json")
    (samples,) = (tmp_path / "out").rglob("*_samples_toy_questions.jsonl")
    said = {}
    for line in samples.read_text().splitlines():
        row = json.loads(line)
        said[row["doc_id"]] = row["filtered_resps"][0].strip()
    answers = own_answers(run, [(images / each["image"], each["question"]) for each in questions])
    assert [said[number] for number in range(ASKED)] == answers, told
    right = [
        each["answer"].rstrip(".").lower() in answer.lower()
        for each, answer in zip(questions, answers, strict=True)
    ]
    score = json.loads(results.read_text())["results"]["toy_questions"]["right,none"]
    assert score == pytest.approx(sum(right) / ASKED) and 0 < score < 1


def evaluate(url: str, task: Path, out: Path) -> str:
    """Run lmms-eval as its manual says; what it printed."""
    python = Path(os.environ[ENV_VARIABLE]) / "bin" / "python"
    offline = {"HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), "-m", "lmms_eval", "--model", "openai",
         "--model_args", f"model=toy-stage2,base_url={url},timeout=300",
         "--include_path", str(task), "--tasks", "toy_questions", "--batch_size", "1",
         "--output_path", str(out), "--log_samples"],
        env={**os.environ, **offline, "OPENAI_API_KEY": "none", "WANDB_MODE": "disabled"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def own_answers(run: Path, asked: list[tuple[Path, str]]) -> list[str]:
    """What ``mgpt4 chat`` answers at temperature 0, in one process."""
    import torch

    from mgpt4_hpc.data.images.decode import decode_image
    from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
    from mgpt4_hpc.model.generation.sampling import Sampling
    from mgpt4_hpc.prompts import Dialogue, Turn

    model = ChatModel(find_source(run), device="cpu")
    found = []
    for image, question in asked:
        pixels = torch.from_numpy(decode_image(image.read_bytes(), model.image_size))
        prompt = model.prompt(Dialogue((Turn((None, question), None),)))
        features = [model.encode(pixels[None])]
        (answer,) = model.answers([prompt], features, Sampling(max_new_tokens=40))
        found.append(answer.text.strip())
    return found
