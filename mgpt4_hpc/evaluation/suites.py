"""The suites: what is asked about the images, and how the answers are scored.

Shapes: B images of a batch, I image tokens, Q projector's input width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mgpt4_hpc.data.images.decode import Pixels
from mgpt4_hpc.data.images.image_file import picture_pixels
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.evaluation.captions import caption_scores, corpus_bleu
from mgpt4_hpc.evaluation.examples import Example
from mgpt4_hpc.evaluation.failures import echoes_prompt, is_empty, is_incomplete, is_repetitive
from mgpt4_hpc.evaluation.objects import Objects, score_objects
from mgpt4_hpc.evaluation.results import Evaluation, TaskResult, Told
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ChatModel
from mgpt4_hpc.model.generation.sampling import Sampling, row_seed
from mgpt4_hpc.prompts import Dialogue, Turn

FAILURE_TASKS = {
    "detail": "Describe the image in detail.",
    "poem": "Can you write a beautiful poem about this image?",
}
"""The two tasks of MiniGPT-4's paper (arXiv 2304.10592) on what stage 2 changes."""

CAPTION_INSTRUCTION = "Describe this image in detail."
"""The first of the instructions that stage 2 trains with."""

Progress = Callable[[int], None]


@dataclass
class EncodedExamples:
    """Examples that could be decoded, and the towers' features of each, computed once.

    Attributes:
        examples: those that can be used.
        left_out: names of the others, with the reason.
        features: of each example (1, I, Q), on the CPU.
    """

    examples: list[Example] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    features: list[torch.Tensor] = field(default_factory=list)


def encode_usable(
    chat_model: ChatModel,
    examples: Sequence[Example],
    *,
    batch_size: int = 16,
    progress: Progress = lambda count: None,
) -> EncodedExamples:
    """Decode and encode the examples; what cannot be used is left out and named, perhaps all."""
    seen = EncodedExamples()
    for start in range(0, len(examples), batch_size):
        usable: list[tuple[Example, Pixels]] = []
        for example in examples[start : start + batch_size]:
            try:
                pixels = picture_pixels(example.data(), chat_model.image_size, example.name)
                usable.append((example, pixels))
            except DataError as error:
                seen.left_out[example.name] = error.what
        if usable:
            batch = torch.from_numpy(np.stack([pixels for _, pixels in usable]))
            seen.features += list(chat_model.encode(batch).cpu().split(1))
            seen.examples += [example for example, _ in usable]
        progress(len(examples[start : start + batch_size]))
    return seen


def require_usable(seen: EncodedExamples) -> EncodedExamples:
    """The same pictures. Raises DataError if none can be used."""
    if not seen.examples:
        listed = "".join(f"\n  - {reason}" for reason in list(seen.left_out.values())[:5])
        raise DataError(f"none of the {len(seen.left_out)} images can be used:{listed}")
    return seen


def ask_all(
    chat_model: ChatModel,
    pictures: EncodedExamples,
    instruction: str,
    sampling: Sampling,
    *,
    batch_size: int = 16,
    progress: Progress = lambda count: None,
    between: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """One answer per picture; drawn ones depend on seed and image alone, not on the batches.

    ``between`` is called before each token, and may raise to break off.
    """
    prompt = chat_model.prompt(Dialogue((Turn((None, instruction), None),)))
    answers: list[Answer] = []
    for start in range(0, len(pictures.examples), batch_size):
        chosen = pictures.examples[start : start + batch_size]
        seeds = [row_seed(sampling.seed, f"{instruction}/{example.name}") for example in chosen]
        features = pictures.features[start : start + batch_size]
        answers += chat_model.answers(
            [prompt] * len(chosen), features, sampling, seeds=seeds, between=between
        )
        progress(len(chosen))
    return answers


def failure_result(
    task: str, instruction: str, examples: Sequence[Example], answers: Sequence[Answer]
) -> TaskResult:
    """Shares of answers that fail, and in which way; one that fails in several ways counts once."""
    told = [
        Told(
            example.name,
            answer.text,
            answer.stopped,
            failure_scores(answer.text, answer.stopped, instruction),
            example.references,
        )
        for example, answer in zip(examples, answers, strict=True)
    ]
    return TaskResult(task, instruction, tuple(told))


def failure_scores(text: str, stopped: bool, instruction: str) -> dict[str, float]:
    """1 for each way in which an answer fails, 0 for the others."""
    ways = {
        "incomplete": is_incomplete(text, stopped),
        "repetitive": is_repetitive(text),
        "empty": is_empty(text),
        "echo": echoes_prompt(text, instruction),
    }
    return {"failing": float(any(ways.values()))} | {name: float(v) for name, v in ways.items()}


def caption_result(
    instruction: str,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    objects: Objects,
) -> TaskResult:
    """Scores against references, of the examples that have any.

    Raises:
        DataError: if none has.
    """
    require_references(examples)
    pairs = [(e, a) for e, a in zip(examples, answers, strict=True) if e.references]
    texts = [answer.text for _, answer in pairs]
    references = [example.references for example, _ in pairs]
    scores = [
        near | score_objects(objects, text, real)
        for near, text, real in zip(
            caption_scores(texts, references), texts, references, strict=True
        )
    ]
    mentions = sum(entry.pop("mentions") for entry in scores)
    made_up = sum(entry.pop("made_up") for entry in scores)
    told = tuple(
        Told(example.name, answer.text, answer.stopped, entry, example.references)
        for (example, answer), entry in zip(pairs, scores, strict=True)
    )
    over_all = {"bleu4_corpus": corpus_bleu(texts, references)}
    if mentions:
        over_all["chair_i"] = made_up / mentions
    return TaskResult("caption", instruction, told, over_all)


def require_references(examples: Sequence[Example]) -> None:
    """Raises DataError unless an example has something to compare an answer with."""
    if not any(example.references for example in examples):
        raise DataError(
            "no image has a reference to compare with",
            fix="give --references FILE, or shards or an aligned folder as --images",
        )


def tasks_of(suite: str) -> dict[str, str]:
    """The tasks of a suite (``failure`` or ``caption``), and what is asked in each."""
    return FAILURE_TASKS if suite == "failure" else {"caption": CAPTION_INSTRUCTION}


def headline(suite: str, scores: Mapping[str, float]) -> float | None:
    """The number that ranks checkpoints, the higher the better; None if it is not there.

    Args:
        suite: ``failure`` or ``caption``.
        scores: by ``task_metric``.
    """
    if suite == "caption":
        return scores.get("caption_cider")
    failing = [scores[key] for t in FAILURE_TASKS if (key := f"{t}_failing") in scores]
    return -sum(failing) / len(failing) if failing else None


def score(
    task: str,
    instruction: str,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    objects: Objects,
) -> TaskResult:
    """One task's answers with their scores. Raises DataError as ``caption_result``."""
    if task in FAILURE_TASKS:
        return failure_result(task, instruction, examples, answers)
    return caption_result(instruction, examples, answers, objects)


def evaluate(
    chat_model: ChatModel,
    pictures: EncodedExamples,
    suite: str,
    sampling: Sampling,
    objects: Objects,
    *,
    batch_size: int = 16,
    progress: Progress = lambda count: None,
) -> Evaluation:
    """Ask one model what a suite (``failure`` or ``caption``) asks, and score its answers."""
    if suite == "caption":
        require_references(pictures.examples)
    answers = {
        task: ask_all(
            chat_model, pictures, instruction, sampling, batch_size=batch_size, progress=progress
        )
        for task, instruction in tasks_of(suite).items()
    }
    return score_all(chat_model.source.name, pictures, answers, suite, objects)


def score_all(
    name: str,
    pictures: EncodedExamples,
    answers: Mapping[str, Sequence[Answer]],
    suite: str,
    objects: Objects,
) -> Evaluation:
    """Score one model's answers, per task one to each picture. Raises DataError as ``score``."""
    tasks = tuple(
        score(task, instruction, pictures.examples, answers[task], objects)
        for task, instruction in tasks_of(suite).items()
    )
    left_out = list(pictures.left_out.values())
    if suite == "caption":
        without = [example.name for example in pictures.examples if not example.references]
        left_out += [f"{name} has no reference to compare with" for name in without]
    return Evaluation(name, tasks, tuple(left_out))
