"""What ``eval`` and ``compare`` share: their options, images and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mgpt4_hpc.cli.shared.model_options import (
    find_model,
    locate,
    make_sampling,
    model_options,
    sampling_options,
)
from mgpt4_hpc.cli.shared.options import (
    absolute,
    json_option,
    runs_dir_option,
    together,
)
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.output_files import check_output, is_own_page

if TYPE_CHECKING:
    from mgpt4_hpc.evaluation.examples import Example
    from mgpt4_hpc.evaluation.objects import Objects
    from mgpt4_hpc.evaluation.results import Evaluation
    from mgpt4_hpc.model.generation.chat_model import ChatModel, ModelSource
    from mgpt4_hpc.model.generation.sampling import Sampling

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_LIMIT = 100
"""As many images as the paper looked at."""

evaluation_options: Callable[[F], F] = together(
    click.option(
        "--images",
        help="Folder of images, aligned folder, shards or their index; only a toy run has its own.",
    ),
    click.option(
        "--references",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Captions: COCO's JSON, or file names to lists of texts.",
    ),
    click.option(
        "--synonyms",
        help="Word list of objects: coco, toy or a file. [coco; toy for toy runs]",
    ),
    click.option(
        "--limit", type=click.IntRange(1), help=f"Images at most. [{DEFAULT_LIMIT}; loss: all]"
    ),
    click.option(
        "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="At a time."
    ),
    click.option(
        "--html",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Also write a page with the pictures into this file.",
    ),
    model_options,
    sampling_options,
    runs_dir_option,
    json_option,
)
"""Everything that ``eval`` and ``compare`` share; ``EvalOptions.of`` takes it."""


@dataclass(frozen=True)
class EvalOptions:
    """What the options of ``evaluation_options`` said.

    Attributes:
        images, references, synonyms, limit, batch_size, html: what is looked at, and shown.
        weights, template, device, precision, runs_dir: who answers; see ``model_options.py``.
        sampling: how.
        as_json: for scripts.
    """

    images: str | None
    references: Path | None
    synonyms: str | None
    limit: int | None
    batch_size: int
    html: Path | None
    weights: str | None
    template: str | None
    device: str
    precision: str
    runs_dir: Path
    sampling: Sampling
    as_json: bool

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> EvalOptions:
        """From a command's arguments. Raises ConfigError with everything that is wrong."""
        rest = dict(options)
        own = {field.name: rest.pop(field.name) for field in fields(cls) if field.name in rest}
        own["runs_dir"] = absolute(own["runs_dir"])
        sampling = make_sampling(**rest)
        if (page := own["html"]) is not None:  # before the work and not after it
            check_output(page, kind="a page", is_own=is_own_page)
        return cls(**own, sampling=sampling)

    def locate(self, name: str) -> ModelSource:
        """What a run's name, a checkpoint or a file stands for."""
        return locate(name, self.runs_dir, weights=self.weights, template=self.template)

    def find(self, name: str) -> Path | None:
        """Look for it without torch; see ``find_model``."""
        return find_model(name, self.runs_dir, weights=self.weights)

    def chat_model(self, source: ModelSource) -> ChatModel:
        """The model of a source."""
        from mgpt4_hpc.model.generation.chat_model import ChatModel

        return ChatModel(source, device=self.device, precision=self.precision)


def find_examples(source: ModelSource, eval_options: EvalOptions) -> list[Example]:
    """The images that were named, or a toy run's own held-out scenes."""
    from mgpt4_hpc.evaluation.examples import load_examples, toy_scenes

    images = eval_options.images
    if images is None:
        scenes = toy_scenes(source.weights)
        if scenes is None:
            raise ConfigError(
                "there is nothing to look at: no --images are given",
                fix="--images FOLDER|SHARDS, best images that the model was not trained on; the "
                "loss of a run's held-out samples (data.val_fraction): mgpt4 eval RUN --suite loss",
            )
        images = str(scenes)
    return load_examples(images, eval_options.references, eval_options.limit or DEFAULT_LIMIT)


def word_list(synonyms: str | None, source: ModelSource) -> Objects:
    """The objects to look for: as named, else those of the toy world or of COCO."""
    from mgpt4_hpc.evaluation.examples import toy_scenes
    from mgpt4_hpc.evaluation.objects import named_objects

    return named_objects(synonyms or ("toy" if toy_scenes(source.weights) else "coco"))


def shown(metric: str, value: float) -> str:
    """A metric for people: shares in percent, CIDEr as it is."""
    return f"{value:.3f}" if metric == "cider" else f"{value:.1%}"


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal; takes how many more are done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_interactive:
        yield lambda count: None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def evaluate_models(
    eval_options: EvalOptions,
    sources: Sequence[ModelSource],
    examples: Sequence[Example],
    suite: str,
    objects: Objects,
) -> Iterator[tuple[ModelSource, Evaluation]]:
    """Each source's scores; one model is loaded, and looks at the images, for equal towers."""
    from mgpt4_hpc.evaluation.suites import encode_usable, evaluate, require_usable, tasks_of
    from mgpt4_hpc.model.generation.chat_model import same_towers

    size, sampling = eval_options.batch_size, eval_options.sampling
    asked = (1 + len(sources) * len(tasks_of(suite))) * len(examples)
    chat_model = None
    with counting("images and answers", asked) as count:
        for source in sources:
            if chat_model is None or not same_towers(chat_model.source, source):
                looked = count if chat_model is None else lambda done: None
                chat_model = None  # let go of the first before the second is loaded
                chat_model = eval_options.chat_model(source)
                pictures = require_usable(
                    encode_usable(chat_model, examples, batch_size=size, progress=looked)
                )
            chat_model.use(source)
            yield (
                source,
                evaluate(
                    chat_model, pictures, suite, sampling, objects, batch_size=size, progress=count
                ),
            )
