"""What the model says about held-out images while it is being trained: scores, and a picture.

Everything is greedy and nothing is drawn at random, the towers are frozen and no gradient exists:
training continues with the same bits as without. Each rank answers about a part of the images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.encoding.plan import sample_order
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.reader import BadSampleError, SampleReader
from mgpt4_hpc.data.sampling.sample_source import ValDraws
from mgpt4_hpc.data.sources.contact_sheet import contact_sheet
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import StorageTrouble
from mgpt4_hpc.evaluation.captions import require_libraries
from mgpt4_hpc.evaluation.examples import Example, spread, toy_scenes
from mgpt4_hpc.evaluation.objects import named_objects
from mgpt4_hpc.evaluation.suites import (
    EncodedExamples,
    ask_all,
    encode_usable,
    headline,
    score,
    tasks_of,
)
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ChatModel, ModelSource
from mgpt4_hpc.model.generation.prompt_embedding import context_length
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.train.recorder import say_at_each_rank

_BATCH = 16
"""Answers at a time."""
_PAUSES_S = (0.1, 0.5, 2.0)
"""Between the tries to read an image: training waits meanwhile, and can do without it."""


class _BrokenOffError(Exception):
    """A stop came between two images or tokens."""


@dataclass(frozen=True)
class ValidationAnswers:
    """What came out of it; on ranks other than the first, nothing.

    Attributes:
        scores: by ``task_metric``.
        cards: per task a PNG of the images with the answers below.
        texts: per task all answers, as a table in Markdown.
        headlines: per suite the number that ranks checkpoints, the higher the better.
    """

    scores: Mapping[str, float]
    cards: Mapping[str, bytes]
    texts: Mapping[str, str]
    headlines: Mapping[str, float] = field(default_factory=dict)


NO_ANSWERS = ValidationAnswers({}, {}, {})


class HeldOutAnswers:
    """Asks the suites of ``train.eval_suites`` about images that are never trained on.

    Args:
        config: of the run.
        indexes: files of its sources' indexes, by name.
        bundle: its weights.
        model: as it is trained.
        ranks: this process among the others.
        give_up: asked before each image that is read and before each token.

    Raises:
        PreflightError: if a library that a suite needs is not installed.
    """

    def __init__(
        self,
        config: RunConfig,
        indexes: Mapping[str, str],
        bundle: Bundle,
        model: MiniGPT4,
        ranks: Ranks,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._suites = config.train.eval_suites
        if "caption" in self._suites:
            require_libraries()
        weights = Path(resolve_path(config.model.weights))
        source = ModelSource(config.name, weights, None, config.template, config)
        self._chat_model = ChatModel.from_training_model(model, bundle, source)
        self._objects = named_objects("toy" if toy_scenes(weights) else "coco")
        self._config = config
        self._indexes = indexes
        self._ranks = ranks
        self._give_up = give_up
        limit = context_length(model)
        longest = config.train.eval_answer_tokens
        # Half of a small context at most, so that the question fits beside it.
        self._sampling = Sampling(max_new_tokens=min(longest, limit // 2) if limit else longest)
        self._examples: list[Example] | None = None
        self._pictures = EncodedExamples()

    def __call__(self) -> ValidationAnswers | None:
        """Ask everything; None, on every rank, if any of them gave up."""
        asked = {t: text for suite in self._suites for t, text in tasks_of(suite).items()}
        said: dict[str, list[tuple[str, Answer]]] = {}
        broken_off = False
        try:
            if self._examples is None:
                self._examples = self._read()
                own = self._examples[self._ranks.rank :: self._ranks.world_size]
                if own:
                    self._pictures = encode_usable(self._chat_model, own, batch_size=_BATCH)
            for task, instruction in asked.items():
                said[task] = self._ask(instruction)
        except _BrokenOffError:
            broken_off = True
        if self._ranks.any_says(broken_off):
            return None
        everybodys = self._ranks.gather(said)
        if not self._ranks.is_first:
            return NO_ANSWERS
        answers = {
            task: dict(pair for of_rank in everybodys for pair in of_rank[task]) for task in asked
        }
        return self._scored(asked, answers)

    def _read(self) -> list[Example]:
        """The images, evenly spread over all held-out samples: the same on every rank."""
        opened = [ShardIndex.open(self._indexes[s.name]) for s in self._config.data.sources]
        draws = ValDraws(sample_order(self._config, opened))
        chosen = draws.at(spread(range(len(draws)), self._config.train.eval_images))
        examples = []
        with closing(SampleReader(opened, pauses_s=_PAUSES_S)) as reader:
            for source_id, sample_id in chosen:
                self._between()
                try:
                    sample = reader.read(source_id, sample_id)
                except BadSampleError:
                    continue  # the loss counts it; here another image would be no better
                except StorageTrouble as error:
                    say_at_each_rank(f"WARNING: nothing is asked about an image: {error.what}")
                    continue  # what is shown is not worth the run
                name = f"{self._config.data.sources[source_id].name}/{sample.key}"
                if sample.images:  # a conversation may have none
                    examples.append(Example(name, sample.images[0], (sample.caption,)))
        return examples

    def _ask(self, instruction: str) -> list[tuple[str, Answer]]:
        if not self._pictures.examples:
            return []
        answers = ask_all(
            self._chat_model,
            self._pictures,
            instruction,
            self._sampling,
            batch_size=_BATCH,
            between=self._between,
        )
        names = [example.name for example in self._pictures.examples]
        return list(zip(names, answers, strict=True))

    def _between(self) -> None:
        if self._give_up():
            raise _BrokenOffError

    def _scored(
        self, asked: Mapping[str, str], answers: Mapping[str, Mapping[str, Answer]]
    ) -> ValidationAnswers:
        scores: dict[str, float] = {}
        cards: dict[str, bytes] = {}
        texts: dict[str, str] = {}
        for task, instruction in asked.items():
            given = answers[task]
            examples = [e for e in self._examples or [] if e.name in given]
            if not examples:
                continue
            in_order = [given[example.name] for example in examples]
            result = score(task, instruction, examples, in_order, self._objects)
            scores |= {f"{task}_{metric}": value for metric, value in result.metrics.items()}
            cards[task] = _card(examples, in_order)
            texts[task] = result.markdown()
        headlines: dict[str, float] = {
            suite: value for suite in self._suites if (value := headline(suite, scores)) is not None
        }
        return ValidationAnswers(scores, cards, texts, headlines)


def _card(examples: list[Example], answers: list[Answer]) -> bytes:
    entries = [(e.data(), e.name, a.text) for e, a in zip(examples, answers, strict=True)]
    stream = io.BytesIO()
    contact_sheet(entries).save(stream, "PNG")
    return stream.getvalue()
