"""A stand-in for lmms-eval, which takes minutes to install: it asks a server a task's questions.

As a module it is what ``python -m lmms_eval`` would be: the same arguments, the same files.
"""

from __future__ import annotations

import base64
import json
import sys
from itertools import pairwise
from pathlib import Path

from mgpt4_hpc.evaluation.benchmarks import LMMS_EVAL
from mgpt4_hpc.resources import toy_world_dir

TASK = "toy_questions"
_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.image
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 40, temperature: 0}}
process_results: !function utils.scores
metric_list:
  - {{metric: right, aggregation: mean, higher_is_better: true}}
  - {{metric: contained, aggregation: mean, higher_is_better: true}}
"""
_UTILS = """\
from PIL import Image

def image(doc):
    return [Image.open(doc["path"]).convert("RGB")]

def scores(doc, results):
    text, wanted = results[0].strip(), doc["answer"]
    contained = wanted.rstrip(".").lower() in text.lower()
    return {"right": float(text == wanted), "contained": float(contained)}
"""


def write_task(folder: Path, questions: list[dict]) -> Path:
    """A task folder in lmms-eval's format, of questions about the toy world's held-out images."""
    images = toy_world_dir() / "heldout" / "image"
    folder.mkdir()
    (folder / f"{TASK}.yaml").write_text(_YAML.format(task=TASK, folder=folder))
    (folder / "utils.py").write_text(_UTILS)
    rows = [{**each, "path": str(images / each["image"])} for each in questions]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stand_in(folder: Path) -> Path:
    """An environment that seems to have lmms-eval, and runs this module in its place."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    repo = Path(__file__).resolve().parents[2]
    python.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *importlib.metadata*) echo {LMMS_EVAL.version}; exit;; esac\n'
        f'shift 2; PYTHONPATH={repo} exec {sys.executable} -m tests.support.lmms_eval "$@"\n'
    )
    python.chmod(0o755)
    return folder


def few_questions() -> list[dict[str, str]]:
    """What the stand-in asks in every task. Right are the answers with a colour that some have."""
    images = sorted(path.name for path in (toy_world_dir() / "heldout" / "image").iterdir())
    asked = {"question": "Describe this image.", "answer": "Red.", "kind": "colour"}
    return [{"image": name, **asked} for name in images[:12]]


def main(words: list[str]) -> None:
    """Ask what is asked, and write what lmms-eval 0.7.3 writes."""
    import openai

    given = dict(pairwise(words))
    model = dict(pair.split("=", 1) for pair in given["--model_args"].split(","))
    http = openai.DefaultHttpxClient(trust_env=model["httpx_trust_env"] != "False")
    client = openai.OpenAI(base_url=model["base_url"], timeout=600, http_client=http)
    rows = []
    for number, doc in enumerate(few_questions()):
        image = (toy_world_dir() / "heldout" / "image" / doc["image"]).read_bytes()
        url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": doc["question"]},
        ]
        reply = client.chat.completions.create(
            model=model["model"],
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            max_tokens=40,
            temperature=0,
        )
        text = reply.choices[0].message.content or ""
        row = {"doc_id": number, "target": doc["answer"], "filtered_resps": text}
        rows.append({**row, "input": doc["question"], "contained": "red" in text.lower()})
    task, out = given["--tasks"], Path(given["--output_path"]) / model["model"]
    share = sum(row["contained"] for row in rows) / len(rows)
    results = {"alias": task, "contained,none": share, "contained_stderr,none": "N/A"}
    out.mkdir(parents=True)
    (out / "20260101_000000_results.json").write_text(json.dumps({"results": {task: results}}))
    samples = out / f"20260101_000000_samples_{task}.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
