"""What an evaluation found: answers with their scores, and the numbers over all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mgpt4_hpc.evaluation.bootstrap import interval


@dataclass(frozen=True)
class Told:
    """One answer about one image.

    Attributes:
        image: the example's name.
        text: the answer.
        stopped: whether it ended by itself.
        scores: per metric its value for this answer.
        references: what people wrote.
    """

    image: str
    text: str
    stopped: bool
    scores: dict[str, float]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """All answers to one instruction.

    Attributes:
        task: ``detail``, ``poem`` or ``caption``.
        instruction: what was asked.
        told: the answers.
        over_all: metrics that are no means of the answers' values.
    """

    task: str
    instruction: str
    told: tuple[Told, ...]
    over_all: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the answers that have the metric, and what is only known over all."""
        return {name: sum(v) / len(v) for name, v in self.values().items()} | self.over_all

    def values(self) -> dict[str, list[float]]:
        """Per metric its values, in the order of the images."""
        names = dict.fromkeys(name for told in self.told for name in told.scores)
        return {
            name: [told.scores[name] for told in self.told if name in told.scores] for name in names
        }

    def markdown(self) -> str:
        """The answers as a table; ``read_answers`` reads it."""
        rows = [
            f"| {_cell(told.image)} | {_cell(told.text)} | {_cell(' / '.join(told.references))} |"
            for told in self.told
        ]
        return "\n".join(
            [f"{self.instruction}\n", "| image | answer | reference |", "|---|---|---|", *rows]
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the intervals of the means."""
        intervals = {name: interval(values) for name, values in self.values().items()}
        return {
            "task": self.task,
            "instruction": self.instruction,
            "num_images": len(self.told),
            "metrics": self.metrics,
            "intervals_95": intervals,
            "answers": [
                {
                    "image": told.image,
                    "text": told.text,
                    "stopped": told.stopped,
                    "scores": told.scores,
                }
                for told in self.told
            ],
        }


def read_answers(markdown: str) -> dict[str, str]:
    """Image to answer, of a table that ``TaskResult.markdown`` wrote."""
    found = {}
    for line in markdown.splitlines()[4:]:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) > 3:
            image, answer = (_uncell(cell) for cell in cells[1:3])
            found[image] = answer
    return found


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _uncell(text: str) -> str:
    return text.replace("\\|", "|").replace("&lt;", "<")


@dataclass(frozen=True)
class Evaluation:
    """Everything one model was asked.

    Attributes:
        name: of the model.
        tasks: per instruction.
        left_out: images that could not be used, with the reason.
    """

    name: str
    tasks: tuple[TaskResult, ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same images.

    Attributes:
        task, metric: which.
        first, second: the models' means over the images that both have it for.
        low, high: 95 % interval of ``second - first``.
    """

    task: str
    metric: str
    first: float
    second: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def metric_differences(first: Evaluation, second: Evaluation) -> list[Difference]:
    """Every metric that both have, paired by image.

    Raises:
        ValueError: if they did not see the same images.
    """
    found = []
    for one, two in zip(first.tasks, second.tasks, strict=True):
        if [told.image for told in one.told] != [told.image for told in two.told]:
            raise ValueError("the two evaluations are of different images")
        for metric in one.values():
            pairs = [
                (a.scores[metric], b.scores[metric])
                for a, b in zip(one.told, two.told, strict=True)
                if metric in a.scores and metric in b.scores
            ]
            if pairs:
                found.append(_difference(one.task, metric, pairs))
    return found


def _difference(task: str, metric: str, pairs: Sequence[tuple[float, float]]) -> Difference:
    low, high = interval([b - a for a, b in pairs])
    count = len(pairs)
    return Difference(
        task, metric, sum(a for a, _ in pairs) / count, sum(b for _, b in pairs) / count, low, high
    )
