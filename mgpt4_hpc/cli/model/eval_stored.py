"""``mgpt4 eval --answers`` and ``--slurm``: answers in a folder, and who asks for them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc import __version__
from mgpt4_hpc.cli.shared.evaluation_options import EvalOptions, counting
from mgpt4_hpc.cli.shared.options import absolute
from mgpt4_hpc.cli.shared.slurm_array_options import Array, Part, run_array
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.side_jobs.array import SUBMITTED_FILE, slice_of

if TYPE_CHECKING:
    from mgpt4_hpc.evaluation.examples import Example
    from mgpt4_hpc.evaluation.objects import Objects
    from mgpt4_hpc.evaluation.results import Evaluation
    from mgpt4_hpc.evaluation.stored_answers import StoredAnswers
    from mgpt4_hpc.model.generation.chat_model import ChatModel, ModelSource
    from mgpt4_hpc.train.validation.validation_loss import SourceLoss

NO_PART: Part = (1, 1)
_AGAIN = "give the same command again: it measures what is missing"


@dataclass(frozen=True)
class StoredEvaluation:
    """An evaluation whose answers are kept.

    Attributes:
        folder: of the answers.
        suite: what is asked.
        sources: who is asked.
        options: the command's.
        is_new: whether this command made the folder.
    """

    folder: Path
    suite: str
    sources: list[ModelSource]
    options: EvalOptions
    is_new: bool = field(default=False, kw_only=True)

    def stored(self, part: Part = NO_PART) -> StoredAnswers:
        """What is there now."""
        from mgpt4_hpc.evaluation.stored_answers import StoredAnswers

        return StoredAnswers(self.folder, self.suite, part[0])

    def ask(self, examples: Sequence[Example], part: Part = NO_PART) -> None:
        """Ask what is missing of one part: of the images, or with ``loss`` of the checkpoints."""
        if self.suite == "loss":
            self._measure(part)
            return
        from mgpt4_hpc.evaluation.stored_answers import ask_missing
        from mgpt4_hpc.evaluation.suites import tasks_of

        stored, mine = self.stored(part), slice_of(examples, *part)
        missing = stored.missing([source.name for source in self.sources], mine)
        if not missing:
            return
        asked = (1 + len(self.sources) * len(tasks_of(self.suite))) * len(missing)
        with counting("images and answers", asked) as count:
            ask_missing(
                stored,
                self.options.chat_model(self.sources[0]),
                self.sources,
                mine,
                self.options.sampling,
                batch_size=self.options.batch_size,
                progress=count,
            )

    def _measure(self, part: Part) -> None:
        stored = self.stored(part)
        chat_model = None
        for source in slice_of(self.sources, *part):
            if source.name in stored.losses:
                continue
            chat_model = chat_model or self.options.chat_model(source)
            chat_model.use(source)
            rows = [asdict(loss) for loss in measure_loss(chat_model, self.options)]
            stored.append([{"checkpoint": source.name, "losses": rows}])

    def losses(self) -> Iterator[tuple[ModelSource, list[SourceLoss]]]:
        """Each source with its losses."""
        from mgpt4_hpc.train.validation.validation_loss import SourceLoss

        stored = self.stored()
        for source in self.sources:
            if source.name not in stored.losses:
                raise MgptError(f"the losses of {source.name} are missing", fix=_AGAIN)
            yield source, [SourceLoss(**row) for row in stored.losses[source.name]]

    def evaluations(
        self, examples: Sequence[Example], objects: Objects
    ) -> Iterator[tuple[ModelSource, Evaluation]]:
        """Each source with its scores. Raises MgptError if answers are missing."""
        from mgpt4_hpc.evaluation.stored_answers import stored_evaluation

        stored = self.stored()
        if len(stored.precisions) > 1:
            used = ", ".join(sorted(stored.precisions))
            click.echo(f"the answers were computed in {used}: set --precision", err=True)
        for source in self.sources:
            yield source, stored_evaluation(stored, source.name, examples, objects)

    def num_missing(self, examples: Sequence[Example]) -> int:
        """How many tasks could share what is missing: batches, or with ``loss`` checkpoints."""
        stored = self.stored()
        if self.suite == "loss":
            return len([source for source in self.sources if source.name not in stored.losses])
        missing = stored.missing([source.name for source in self.sources], examples)
        return -(-len(missing) // self.options.batch_size)

    def run_array(self, array: Array, examples: Sequence[Example]) -> str | None:
        """Ask what is missing in a Slurm array; as ``slurm_array_options.run_array``."""
        parts = self.num_missing(examples)
        if not parts:
            return None
        options = ("--answers", str(self.folder))
        return run_array(array, "mgpt4-eval", self.folder, parts=parts, merge=True, options=options)

    def forget(self) -> None:
        """Remove a folder that this command made, unless Slurm has a job that writes there."""
        if self.is_new and not (self.folder / SUBMITTED_FILE).exists():
            shutil.rmtree(self.folder, ignore_errors=True)


def keep(
    model: str,
    suite: str,
    sources: list[ModelSource],
    options: EvalOptions,
    folder: Path | None,
    *,
    every_checkpoint: bool,
    also: Mapping[str, Any],
) -> StoredEvaluation:
    """Begin an evaluation whose answers are kept, or continue it with the checkpoints it has.

    Args:
        model: as it was given.
        suite: what is asked.
        sources: who is asked.
        options: the command's.
        folder: of the answers; None is one of their own in the run's folder, or in the folder of
            the runs.
        every_checkpoint: whether the sources are all that the run has.
        also: what the answers depend on besides.

    Raises:
        ConfigError: the folder holds answers of another evaluation.
        MgptError: it cannot be used.
    """
    from mgpt4_hpc.evaluation.stored_answers import begin_answers, digest_of, require_unchanged

    run = sources[0].run
    now = {str(place(source)): digest_of(source) for source in sources}
    asked: dict[str, Any] = {
        "model": model,
        "run": None if run is None else str(absolute(run.path)),
        "every_checkpoint": every_checkpoint,
        "suite": suite,
        "images": None if options.images is None else str(absolute(Path(options.images))),
        "references": None if options.references is None else str(absolute(options.references)),
        "limit": options.limit,
        "weights": options.weights,
        "template": options.template,
        "precision": options.precision,
        "sampling": asdict(options.sampling),
        "version": __version__,
        **also,
    }
    if suite == "loss" and options.images is not None:
        asked["files"] = files_digest(options.images)
    if folder is None:
        facts = json.dumps([asked, now]).encode()
        name = hashlib.blake2b(facts, digest_size=8).hexdigest()
        above = run.path / "evaluations" if run else options.runs_dir / ".evaluations"
        folder = above / name
    is_new = not folder.exists()
    begun = begin_answers(absolute(folder), asked, now)
    if begun.keys() != now.keys():
        click.echo(f"{folder} was begun with {', '.join(begun)}: no other is asked", err=True)
        sources = [options.locate(place) for place in begun]
        now = {place: digest_of(source) for place, source in zip(begun, sources, strict=True)}
    require_unchanged(absolute(folder), begun, now)
    return StoredEvaluation(absolute(folder), suite, sources, options, is_new=is_new)


def files_digest(images: str) -> str:
    """Changes with name, size or time of change of a file that ``--images`` names."""
    from mgpt4_hpc.data.index.shard_list import expand_shards
    from mgpt4_hpc.resources import expand_toy

    path = Path(expand_toy(images))
    files = [path] if path.is_file() else sorted(path.rglob("*")) or expand_shards(images)
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.blake2b(json.dumps(stats).encode(), digest_size=8).hexdigest()


def place(source: ModelSource) -> Path:
    """Under which ``EvalOptions.locate`` finds the same source again."""
    assert source.projector is not None  # eval's MODEL names a run, a checkpoint or a file
    return absolute(source.projector if source.run is None else source.projector.parent)


def measure_loss(chat_model: ChatModel, options: EvalOptions) -> list[SourceLoss]:
    """The loss suite of the checkpoint that the model uses now."""
    from mgpt4_hpc.train.validation.validation_loss import held_out_losses

    return held_out_losses(
        chat_model, images=options.images, limit=options.limit, batch_size=options.batch_size
    )


answers_option = click.option(
    "--answers",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep each answer in this folder, and ask only what is not there. [with --slurm: a "
    "folder in the run's]",
)
