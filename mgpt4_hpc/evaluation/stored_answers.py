"""Answers in a folder, so that an evaluation that is killed costs at most one batch.

Each process appends to a file of its own, one line an answer, and syncs it after each batch. Every
process reads all files. A line that a kill has cut short is ignored. An answer belongs to the
content of an image and not to its name alone: names recur in other shards, and files are replaced.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import ConfigError, DataError, MgptError
from mgpt4_hpc.evaluation.examples import Example
from mgpt4_hpc.evaluation.objects import Objects
from mgpt4_hpc.evaluation.results import Evaluation
from mgpt4_hpc.evaluation.suites import (
    EncodedExamples,
    ask_all,
    encode_usable,
    require_usable,
    score_all,
    tasks_of,
)
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ChatModel, ModelSource
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.model.nn.lora import LORA_FILE
from mgpt4_hpc.model.weight_files.fingerprint import combined, full_hash
from mgpt4_hpc.run_dir import read_json, write_json

_SETTINGS = "evaluation.json"


def digest_of(source: ModelSource) -> str:
    """Changes with all of a model that decides its answers: weights, and the run's settings."""
    trained = [source.projector, source.projector.with_name(LORA_FILE)] if source.projector else []
    config = source.config
    model = config.model if config else None
    settings = (
        source.template,
        config.text.system if config else None,
        (model.vision_precision, model.ln_vision, model.llm_8bit) if model else None,
    )
    return combined(
        [
            ("bundle", open_bundle(source.weights).digest),
            ("settings", repr(settings)),
            *((path.name, full_hash(path)) for path in trained if path.is_file()),
        ]
    )


def begin_answers(
    folder: Path, asked: Mapping[str, Any], checkpoints: Mapping[str, str]
) -> dict[str, str]:
    """Note in a folder what is asked; where that was begun before, its checkpoints.

    Args:
        folder: made if it does not exist.
        asked: what the answers depend on, beside checkpoints and images.
        checkpoints: place of each to its digest.

    Raises:
        ConfigError: the folder holds answers of another evaluation.
        MgptError: the folder cannot be read or written.
    """
    path = folder / _SETTINGS
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"asked": dict(asked), "checkpoints": dict(checkpoints)})
        found = read_json(path)
        begun, checkpoints = found["asked"], dict(found["checkpoints"])
    except (OSError, ValueError, KeyError, TypeError) as error:
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
    return checkpoints


def require_unchanged(folder: Path, begun: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises ConfigError if a checkpoint, its bundle or its settings differ from those asked."""
    for place, digest in now.items():
        if begun[place] != digest:
            raise ConfigError(
                f"{folder} holds answers of {place} with other weights or settings than it has now",
                fix="give another folder with --answers",
            )


class StoredAnswers:
    """What is in a folder of answers.

    Args:
        folder: as ``begin_answers`` made it.
        suite: whose questions are asked; ``loss`` has none.
        part: number of the part that this process does.

    Attributes:
        losses: checkpoint to its rows of the loss suite.
        precisions: in which the answers were computed.
    """

    def __init__(self, folder: Path, suite: str, part: int = 1) -> None:
        self.suite = suite
        # A file per process: two that append to one on NFS overwrite each other's lines.
        self._file = folder / f"{part}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._answers: dict[tuple[str, str, str], Answer] = {}
        self._left_out: dict[str, str] = {}
        self.precisions: set[str] = set()
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
            self._left_out[row["digest"]] = row["left_out"]
        else:
            answer = Answer(row["text"], row["stopped"], ())
            key = f"{row['image']} {row['digest']}"
            self._answers[row["checkpoint"], row["task"], key] = answer
            self.precisions.add(row["precision"])

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

    def answer(self, checkpoint: str, task: str, example: Example) -> Answer | None:
        """One answer, if it is there. Raises DataError if the image cannot be read."""
        return self._answers.get((checkpoint, task, f"{example.name} {example.digest}"))

    def why_left_out(self, example: Example) -> str | None:
        """Why an image cannot be used; None for others. One that cannot be read is tried again."""
        try:
            return self._left_out.get(example.digest)
        except DataError as error:
            return error.what

    def missing(self, checkpoints: Sequence[str], examples: Sequence[Example]) -> list[Example]:
        """The images that lack an answer to any task of any checkpoint."""
        return [
            example
            for example in examples
            if self.why_left_out(example) is None
            and any(
                self.answer(name, task, example) is None
                for name in checkpoints
                for task in tasks_of(self.suite)
            )
        ]


def ask_missing(
    stored: StoredAnswers,
    chat_model: ChatModel,
    sources: Sequence[ModelSource],
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
        stored.append(_undecodable(missing, pictures))
    for source in sources:
        chat_model.use(source)
        for task, instruction in tasks_of(stored.suite).items():
            for start in range(0, len(pictures.examples), batch_size):
                chosen = pictures.examples[start : start + batch_size]
                if any(stored.answer(source.name, task, example) is None for example in chosen):
                    batch = EncodedExamples(
                        chosen, {}, pictures.features[start : start + batch_size]
                    )
                    answers = ask_all(
                        chat_model, batch, instruction, sampling, batch_size=batch_size
                    )
                    stored.append(
                        {
                            "checkpoint": source.name,
                            "task": task,
                            "image": example.name,
                            "digest": example.digest,
                            "precision": chat_model.precision,
                            "text": answer.text,
                            "stopped": answer.stopped,
                        }
                        for example, answer in zip(chosen, answers, strict=True)
                    )
                progress(len(chosen))


def _undecodable(missing: Sequence[Example], pictures: EncodedExamples) -> Iterator[dict[str, str]]:
    """A row for each image that no start can decode; one that could not be read may come back."""
    usable = {example.digest for example in pictures.examples}
    for example in missing:
        if example.name in pictures.left_out and example.digest not in usable:
            with suppress(DataError):
                example.data()
                yield {"digest": example.digest, "left_out": pictures.left_out[example.name]}


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
    reasons = {example.name: why for example in examples if (why := stored.why_left_out(example))}
    usable = [example for example in examples if stored.why_left_out(example) is None]
    answers = {
        task: [answer for e in usable if (answer := stored.answer(name, task, e)) is not None]
        for task in tasks_of(stored.suite)
    }
    pictures = require_usable(EncodedExamples(usable, reasons))
    return score_all(name, pictures, answers, stored.suite, objects)
