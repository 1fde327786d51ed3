"""Options of the commands that put a trained model to work, and how they find it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mgpt4_hpc.cli.main import say
from mgpt4_hpc.cli.shared.options import (
    SEED,
    Number,
    together,
)
from mgpt4_hpc.errors import CheckpointError, ConfigError, NoSuchRun
from mgpt4_hpc.formatting import printable
from mgpt4_hpc.model.bundle.bundle import require_bundle
from mgpt4_hpc.model.bundle.export import find_projector
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.run_dir import list_runs
from mgpt4_hpc.run_reference import find_reference

if TYPE_CHECKING:
    from mgpt4_hpc.model.generation.chat_model import ModelSource
    from mgpt4_hpc.model.generation.sampling import Sampling

F = TypeVar("F", bound=Callable[..., Any])

_RUNS_SHOWN = 10

model_options: Callable[[F], F] = together(
    click.option(
        "--weights",
        envvar="MGPT4_WEIGHTS",
        help="The bundle; default: the one that the run was trained on.",
    ),
    click.option(
        "--template",
        help="Conversation format, as text.template; default: the run's, or the bundle's.",
    ),
    click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:NUMBER."
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        show_default=True,
        help="auto is fp32 on a CPU, bf16 on a GPU that has it.",
    ),
)
"""Which model answers, and how it computes."""

sampling_options: Callable[[F], F] = together(
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=300,
        show_default=True,
        help="Limit of an answer.",
    ),
    click.option(
        "--temperature",
        type=Number(min=0),
        default=0.0,
        show_default=True,
        help="0 always takes the likeliest token; the original's demo draws with 1.",
    ),
    click.option(
        "--top-p",
        type=Number(0, 1, min_open=True),
        default=0.9,
        show_default=True,
        help="Draw among the likeliest tokens of this total probability.",
    ),
    click.option(
        "--beams",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Beams; at temperature 0 only.",
    ),
    click.option(
        "--repetition-penalty",
        type=Number(min=0, min_open=True),
        default=1.0,
        show_default=True,
        help="Above 1 makes tokens that were said less likely; the original's demo has 1.05.",
    ),
    click.option("--seed", type=SEED, default=42, show_default=True, help="Seed of the draws."),
)
"""How answers are generated; they arrive as ``make_sampling``'s arguments."""


def make_sampling(*, beams: int, **others: Any) -> Sampling:
    """The options' values put together. Raises ConfigError with everything that is wrong."""
    from mgpt4_hpc.model.generation.sampling import Sampling

    return Sampling(num_beams=beams, **others)


def locate(
    name: str | None,
    runs_dir: Path,
    *,
    weights: str | None,
    template: str | None,
    word: str = "a RUN",
) -> ModelSource:
    """What a run's name, a run's directory, a checkpoint or a weight file stands for.

    The file of a checkpoint is verified against its manifest before it is believed.

    Args:
        name: as it was given; None is the projector in the bundle.
        runs_dir: where runs are looked for.
        weights: the bundle; None is the run's.
        template: conversation format; None is the run's, or the bundle's.
        word: what to give in place of nothing, as "--checkpoint RUN".

    Raises:
        MgptError: as :func:`find_model`, or if it cannot be used.
    """
    path = find_model(name, runs_dir, weights=weights, word=word)
    # Importing torch and loading weights take a while.
    say(f"loading {Path(name or str(weights)).name} ...")
    from mgpt4_hpc.checkpoint.store import CheckpointStore
    from mgpt4_hpc.model.bundle.bundle import open_bundle
    from mgpt4_hpc.model.bundle.projector_origin import other_llm_note
    from mgpt4_hpc.model.generation.chat_model import find_source, other_bundle

    source = find_source(path, weights=weights, template=template)
    bundle = open_bundle(source.weights)  # names what is missing; nothing large is read yet
    note = other_llm_note(source.projector, source.weights) if source.projector else ""
    if not note and (other := other_bundle(source, bundle)):
        note = f"{other}: another model answers"
    if note:
        click.echo(printable(f"warning: {note}"), err=True)
    if source.projector and (source.projector.parent / "manifest.json").is_file():
        folder = source.projector.parent
        try:
            CheckpointStore(folder.parent).verify(folder)
        except CheckpointError as error:
            raise CheckpointError(
                f"the checkpoint {folder} is damaged: {error}", fix="use an older one of the run"
            ) from None
    return source


def find_model(
    name: str | None, runs_dir: Path, *, weights: str | None, word: str = "a RUN"
) -> Path | None:
    """The path of a model, looked up without torch; None is the projector in the bundle.

    Arguments are those of :func:`locate`.

    Raises:
        ConfigError: if neither a name nor a bundle is given.
        NoSuchRun: if nothing of that name exists.
        MgptError: the run has no checkpoint, is another user's, or the bundle is none.
    """
    if name is None and not weights:
        known = ", ".join(run.name for run in list_runs(runs_dir)[:_RUNS_SHOWN])
        there = f", one of the runs in {runs_dir}: {known}" if known else ""
        none = "" if known else f"; there is none in {runs_dir}"
        raise ConfigError("nothing says which model to talk with", fix=f"give {word}{there}{none}")
    path = _path(name, runs_dir)
    if path is not None and (path / "run.json").is_file():
        assert_owned(path)
    if path is not None:
        find_projector(path)
    if weights:
        require_bundle(Path(resolve_path(weights)))
    return path


def say_toy(source: ModelSource) -> None:
    """Print on stderr what the toy world's model cannot do."""
    from mgpt4_hpc.evaluation.examples import toy_scenes

    scenes = toy_scenes(source.weights)
    if scenes is not None:
        click.echo(
            "this is the toy model: it knows one image at a time, and only of the kind in "
            f"{scenes / 'image'}",
            err=True,
        )


def _path(name: str | None, runs_dir: Path) -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.exists():
        return path
    try:
        return find_reference(name, runs_dir).path
    except NoSuchRun as error:
        raise NoSuchRun(
            f"{name!r} is neither a run in {runs_dir}, a checkpoint nor a file", fix=error.fix
        ) from None
