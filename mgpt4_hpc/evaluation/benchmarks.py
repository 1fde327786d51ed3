"""Public benchmarks: lmms-eval asks a model through OpenAI's API, and keeps its own files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.downloads.tool_environment import Tool, tool_variables
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.evaluation.results import Evaluation, TaskResult, Told
from mgpt4_hpc.parent_death import die_with
from mgpt4_hpc.text_files import last_lines

LMMS_EVAL = Tool("lmms-eval", "0.7.3", also=("openai>=2,<4", "filelock<4"), sees_ours=True)
"""It imports a private module that filelock 4, which transformers may bring, does not have."""

_REQUEST_FAILED = "[LMMS_EVAL_"
"""Begins what lmms-eval scores as the answer to a request that failed."""
_RESULTS = "*_results.json"
_TIMEOUT_S = 600


@dataclass(frozen=True)
class ModelEndpoint:
    """A model behind OpenAI's API.

    Attributes:
        url: ends with ``/v1``.
        key: its token.
        model: the name to ask it by.
    """

    url: str
    key: str
    model: str


def run_benchmark(
    python: Path,
    task: str,
    endpoint: ModelEndpoint,
    out: Path,
    *,
    task_folder: Path | None,
    limit: int | None,
    num_concurrent: int,
) -> None:
    """Have lmms-eval ask one task's questions; ``out`` appears when it is complete.

    Args:
        python: of the environment with lmms-eval.
        task: a task, group or tag of lmms-eval's.
        endpoint: who answers.
        out: a folder for its results; its output is beside it, in ``NAME.log``.
        task_folder: with further tasks.
        limit: questions at most, the first ones.
        num_concurrent: requests at the same time.

    Raises:
        MgptError: if lmms-eval fails, or if it did not get an answer to every question.
    """
    log = out.with_name(f"{out.name}.log")
    arguments = {"model": endpoint.model, "base_url": endpoint.url, "timeout": _TIMEOUT_S,
                 "num_concurrent": num_concurrent, "httpx_trust_env": False}  # fmt: skip
    with scratch_beside(out) as holder:
        made = holder / out.name
        command = [
            *(str(python), "-m", "lmms_eval", "--model", "openai", "--batch_size", "1"),
            *("--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())),
            *("--tasks", task, "--output_path", str(made), "--log_samples"),
            *(("--include_path", str(task_folder)) if task_folder else ()),
            *(("--limit", str(limit)) if limit else ()),
        ]
        code = _run(command, endpoint.key, log)
        if code != 0 or not list(made.rglob(_RESULTS)):
            raise MgptError(
                f"lmms-eval could not do the task {task}: {last_lines(log)}",
                fix=f"read {log}; {python} -m lmms_eval tasks lists the tasks, "
                "and --task-folder adds your own",
            )
        if failed := _num_failed(made):
            raise MgptError(
                f"the model did not answer {failed} questions of {task}", fix=f"read {log}"
            )
        try:
            made.rename(out)
        except OSError:
            if not out.is_dir():  # else another process has done the same task
                raise


def _run(command: list[str], key: str, log: Path) -> int:
    """The exit code of lmms-eval."""
    # The GPU's memory is the model's: lmms-eval only asks.
    variables = {"OPENAI_API_KEY": key, "CUDA_VISIBLE_DEVICES": ""}
    with log.open("wb") as file:
        return subprocess.run(
            command,
            env={**tool_variables(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(die_with, os.getpid()),
            check=False,
        ).returncode


def _num_failed(out: Path) -> int:
    """Number of requests without an answer."""
    return sum(
        _REQUEST_FAILED in str(row["filtered_resps"])
        for path in out.rglob("*_samples_*.jsonl")
        for row in _rows(path)
    )


def read_results(name: str, folders: Iterable[Path]) -> Evaluation:
    """The scores and answers that lmms-eval left.

    Args:
        name: of the model.
        folders: as ``run_benchmark`` made them.

    Raises:
        MgptError: one has no results.
    """
    tasks = []
    for folder in folders:
        if (path := next(folder.rglob(_RESULTS), None)) is None:
            raise MgptError(
                f"{folder} has no results", fix="remove it, and give the same command again"
            )
        results = json.loads(path.read_text())["results"]
        tasks += [_task(task, found, path.parent) for task, found in results.items()]
    return Evaluation(name, tuple(tasks))


def _task(name: str, results: dict[str, Any], folder: Path) -> TaskResult:
    scores = {}
    for key, value in results.items():
        metric, _, chosen = key.partition(",")
        if isinstance(value, int | float) and "_stderr" not in metric:
            scores[metric if chosen in ("", "none") else f"{metric}_{chosen}"] = float(value)
    told = [
        Told(f"{row['doc_id']}: {row.get('input', '')}", _text(row["filtered_resps"]), True, {},
             (_text(row["target"]),))
        for path in folder.glob(f"*_samples_{name}.jsonl")
        for row in _rows(path)
    ]  # fmt: skip
    return TaskResult(name, f"lmms-eval's {name}", tuple(told), scores)


def _text(value: Any) -> str:
    """Answers and targets are a text, or a list of texts."""
    return " / ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
