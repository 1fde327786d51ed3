"""Answers in a folder, so that an evaluation that is killed costs at most one batch.

Each process appends to a file of its own, one line an answer, and syncs it after each batch. Every
process reads all files. A line that a kill has cut short is ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import ConfigError, MgptError
from mgpt4_hpc.evaluation.examples import Example
from mgpt4_hpc.evaluation.objects import Objects
from mgpt4_hpc.evaluation.results import Evaluation
from mgpt4_hpc.evaluation.suites import (
    Pictures,
    ask_all,
    encode_usable,
    require_usable,
    score_all,
    tasks_of,
)
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ChatModel, Source
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.run_dir import read_json, write_json

_SETTINGS = "evaluation.json"


def begin(folder: Path, asked: Mapping[str, Any], checkpoints: Sequence[str]) -> list[str]:
    """Note in a folder what is asked; where that was begun before, its checkpoints.

    Args:
        folder: made if it does not exist.
        asked: what the answers depend on.
        checkpoints: who is asked.

    Raises:
        ConfigError: the folder holds answers of another evaluation.
        MgptError: the folder cannot be read or written.
    """
    path = folder / _SETTINGS
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"asked": dict(asked), "checkpoints": list(checkpoints)})
        found = read_json(path)
        begun, checkpoints = found["asked"], found["checkpoints"]
    except (OSError, ValueError, KeyError) as error:
        raise MgptError(
            f"{path} cannot be used: {error}", fix="give another folder with --answers"
        ) from error
    other = [key for key in {*begun, *asked} if begun.get(key) != asked.get(key)]
    if other:
        listed = "".join(
            f"\n  - {key}: {begun.get(key)!r} there, {asked.get(key)!r} now"
            for key in sorted(other)
        )
        raise ConfigError(
            f"{folder} holds answers of another evaluation:{listed}",
            fix="give another folder with --answers",
        )
    return list(checkpoints)


class StoredAnswers:
    """What is in a folder of answers.

    Args:
        folder: as ``begin`` made it.
        suite: whose questions are asked; ``loss`` has none.
        file: stem of the file that this process appends to.

    Attributes:
        left_out: image to the reason why it cannot be used.
        losses: checkpoint to its rows of the loss suite.
    """

    def __init__(self, folder: Path, suite: str, file: str = "answers") -> None:
        self.suite = suite
        self._file = folder / f"{file}.jsonl"
        self._answers: dict[tuple[str, str, str], Answer] = {}
        self.left_out: dict[str, str] = {}
        self.losses: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    continue  # a kill has cut it short

    def _take(self, row: Mapping[str, Any]) -> None:
        if "losses" in row:
            self.losses[row["checkpoint"]] = row["losses"]
        elif "left_out" in row:
            self.left_out[row["image"]] = row["left_out"]
        else:
            answer = Answer(row["text"], row["stopped"], ())
            self._answers[row["checkpoint"], row["task"], row["image"]] = answer

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store rows durably. Raises OSError."""
        rows = list(rows)
        # The first line break ends what a kill may have cut short; the reader skips empty lines.
        lines = "".join("\n" + json.dumps(row) for row in rows)
        with self._file.open("ab") as file:
            file.write(f"{lines}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        for row in rows:
            self._take(row)

    def answer(self, checkpoint: str, task: str, image: str) -> Answer | None:
        """One answer, if it is there."""
        return self._answers.get((checkpoint, task, image))

    def missing(self, checkpoints: Sequence[str], examples: Sequence[Example]) -> list[Example]:
        """The images that lack an answer to any task of any checkpoint."""
        return [
            example
            for example in examples
            if example.name not in self.left_out
            and any(
                self.answer(name, task, example.name) is None
                for name in checkpoints
                for task in tasks_of(self.suite)
            )
        ]


def ask_missing(
    stored: StoredAnswers,
    chat_model: ChatModel,
    sources: Sequence[Source],
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Ask what the suite asks, store the answers batch by batch, and skip those that are stored."""
    missing = stored.missing([source.name for source in sources], examples)
    pictures = encode_usable(chat_model, missing, batch_size=batch_size, progress=progress)
    if pictures.left_out:
        stored.append({"image": name, "left_out": why} for name, why in pictures.left_out.items())
    for source in sources:
        chat_model.use(source)
        for task, instruction in tasks_of(stored.suite).items():
            for start in range(0, len(pictures.examples), batch_size):
                chosen = pictures.examples[start : start + batch_size]
                names = [example.name for example in chosen]
                if any(stored.answer(source.name, task, name) is None for name in names):
                    batch = Pictures(chosen, {}, pictures.features[start : start + batch_size])
                    answers = ask_all(
                        chat_model, batch, instruction, sampling, batch_size=batch_size
                    )
                    stored.append(
                        {
                            "checkpoint": source.name,
                            "task": task,
                            "image": name,
                            "text": answer.text,
                            "stopped": answer.stopped,
                        }
                        for name, answer in zip(names, answers, strict=True)
                    )
                progress(len(chosen))


def stored_evaluation(
    stored: StoredAnswers, name: str, examples: Sequence[Example], objects: Objects
) -> Evaluation:
    """Score the answers of one checkpoint.

    Raises:
        MgptError: if answers are missing.
        DataError: if no image could be used.
    """
    missing = stored.missing([name], examples)
    if missing:
        raise MgptError(
            f"answers of {name} to {len(missing)} of {len(examples)} images are missing",
            fix="give the same command again: it asks what is missing",
        )
    usable = [example for example in examples if example.name not in stored.left_out]
    left_out = {e.name: stored.left_out[e.name] for e in examples if e.name in stored.left_out}
    answers = {
        task: [stored._answers[name, task, example.name] for example in usable]
        for task in tasks_of(stored.suite)
    }
    pictures = require_usable(Pictures(usable, left_out))
    return score_all(name, pictures, answers, stored.suite, objects)
