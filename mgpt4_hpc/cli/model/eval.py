"""``mgpt4 eval``: what a trained model says about images, measured."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.model.eval_stored import (
    NO_PART,
    StoredEvaluation,
    answers_option,
    keep,
    measure_loss,
)
from mgpt4_hpc.cli.model.eval_tasks import StoredTasks, Tasks, choose_tasks
from mgpt4_hpc.cli.shared.evaluation_options import (
    EvalOptions,
    evaluate_models,
    evaluation_options,
    find_examples,
    shown,
    word_list,
)
from mgpt4_hpc.cli.shared.options import absolute
from mgpt4_hpc.cli.shared.slurm_array_options import Array, Part, array_options, split_array
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.errors import ConfigError, SlurmRejected
from mgpt4_hpc.formatting import counted

if TYPE_CHECKING:
    from mgpt4_hpc.evaluation.examples import Example
    from mgpt4_hpc.evaluation.objects import Objects
    from mgpt4_hpc.evaluation.results import Evaluation, TaskResult
    from mgpt4_hpc.model.generation.chat_model import ModelSource
    from mgpt4_hpc.train.validation.validation_loss import SourceLoss

_EXAMPLES_SHOWN = 3


@click.command("eval", short_help="Measure what a trained model says about images.")
@click.argument("model", metavar="RUN|CHECKPOINT|FILE")
@click.option(
    "--suite",
    type=click.Choice(["failure", "caption", "loss"]),
    default="failure",
    show_default=True,
    help="What is measured.",
)
@click.option(
    "--tasks",
    metavar="TASK,...",
    help="Instead of a suite: benchmarks of lmms-eval, as pope,mme,vqav2_val_lite.",
)
@click.option(
    "--task-folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --tasks: a folder with further tasks, in lmms-eval's format.",
)
@click.option("--every-checkpoint", is_flag=True, help="Each checkpoint that the run has kept.")
@evaluation_options
@answers_option
@array_options(parts=1, time_min=60, by_gpu=True)
@click.pass_context
def eval_command(
    context: click.Context,
    /,
    model: str,
    suite: str,
    tasks: str | None,
    task_folder: Path | None,
    every_checkpoint: bool,
    answers: Path | None,
    part: Part | None,
    **options: Any,
) -> None:
    """Measure a run's newest checkpoint, a checkpoint, or a projector's file.

    \b
    failure  share of answers that are incomplete, repetitive, empty or echo the prompt, to the
             paper's two tasks (a detailed caption, a poem)
    caption  BLEU-4, ROUGE-L, METEOR-like, CIDEr, coverage and hallucination of objects
    loss     held-out loss and perplexity per source

    failure and caption need --images; only a toy run has images of its own. loss takes the samples
    that the run held out (data.val_fraction), unless --images are given.

    Numbers also go to the run's TensorBoard folder: under eval/ the held-out loss and the scores of
    a toy run's own images, under eval/SET/ those of images that are named or limited. `mgpt4
    report` shows them.

    With --slurm a job asks, and is requeued when it is preempted or killed, or at its time limit.
    The same command given again asks only what is missing. With --tasks lmms-eval asks the
    questions of public benchmarks, in an environment that is made at the first use; --limit takes
    the first questions of each task.

    \b
    mgpt4 eval stage2-vicuna7b --images coco/val2014 --html failures.html --slurm
    mgpt4 eval stage2-vicuna7b --suite caption --images coco/val2014 \\
          --references captions_val2014.json --limit 500
    mgpt4 eval stage2-vicuna7b --every-checkpoint --images coco/val2014 --limit 20
    mgpt4 eval stage2-vicuna7b --tasks pope,mme,vqav2_val_lite
    """
    array, options = split_array(options, cpus=4, gpus=1)
    eval_options = EvalOptions.of(options)
    if part is not None and answers is None:
        raise click.UsageError("--part is of answers that are kept: give --answers FOLDER")
    chosen = choose_tasks(context, tasks, task_folder)
    _require_tools(suite := "tasks" if chosen is not None else suite, array)
    newest = eval_options.locate(model)
    sources = _checkpoints(newest, eval_options) if every_checkpoint else [newest]
    objects = None if suite == "loss" else word_list(eval_options.synonyms, sources[0])
    examples = [] if suite in ("loss", "tasks") else find_examples(sources[0], eval_options)
    keeps = array.wanted or answers is not None or chosen is not None
    asked = (model, suite, sources, eval_options, answers, every_checkpoint, chosen)
    kept = _keep(*asked) if keeps else None
    if kept is not None and _ask(kept, examples, array, part):
        return
    facts = _measure(suite, eval_options, sources, examples, objects, kept)
    if eval_options.as_json:
        echo_json({"checkpoints": facts} if every_checkpoint else facts[0])


def _require_tools(suite: str, array: Array) -> None:
    """Ask for Slurm and libraries before the model is looked for.

    Raises:
        SlurmUnreachable, SlurmRejected: a job is wanted, and Slurm does not answer.
        PreflightError: the suite's libraries are not installed.
    """
    if array.wanted:
        from mgpt4_hpc.launch.slurm.commands import show_config

        show_config()
    if suite == "caption":
        from mgpt4_hpc.evaluation.captions import require_libraries

        require_libraries()


def _ask(
    kept: StoredEvaluation, examples: Sequence[Example], array: Array, part: Part | None
) -> bool:
    """Ask what is missing, here or in a job; whether nothing else is left to this process."""
    if kept.suite == "caption":
        from mgpt4_hpc.evaluation.suites import require_references

        require_references(examples)
    if not array.wanted:
        kept.ask(examples, part or NO_PART)
        return part is not None
    try:
        job_id = kept.run_array(array, examples)
    except SlurmRejected:
        kept.forget()
        raise
    if job_id is None:
        return False
    if kept.options.as_json:
        echo_json({"job_id": job_id, "answers": str(kept.folder)})
    else:
        click.echo(f"job {job_id} writes the scores into the run's TensorBoard and into its log")
    return True


def _keep(
    model: str,
    suite: str,
    sources: list[ModelSource],
    eval_options: EvalOptions,
    answers: Path | None,
    every_checkpoint: bool,
    chosen: Tasks | None,
) -> StoredEvaluation:
    """Where the answers are kept."""
    also = chosen.facts if chosen is not None else {}
    kept = keep(
        model, suite, sources, eval_options, answers, every_checkpoint=every_checkpoint, also=also
    )
    return StoredTasks(**vars(kept), tasks=chosen) if chosen is not None else kept


def _measure(
    suite: str,
    eval_options: EvalOptions,
    sources: list[ModelSource],
    examples: list[Example],
    objects: Objects | None,
    kept: StoredEvaluation | None,
) -> list[dict[str, Any]]:
    """Measure or read each checkpoint's scores and show them; what ``--json`` prints of each."""
    if kept is not None:
        sources = kept.sources
    if objects is None:
        return [_loss(*found, eval_options) for found in _losses(eval_options, sources, kept)]
    evaluations = (
        kept.evaluations(examples, objects)
        if kept is not None
        else evaluate_models(eval_options, sources, examples, suite, objects)
    )
    return _report(evaluations, suite, examples, eval_options)


def _losses(
    eval_options: EvalOptions, sources: list[ModelSource], kept: StoredEvaluation | None
) -> Iterator[tuple[ModelSource, Sequence[SourceLoss]]]:
    """Each source's losses, measured now or kept before."""
    if kept is not None:
        yield from kept.losses()
        return
    chat_model = eval_options.chat_model(sources[0])
    for source in sources:
        chat_model.use(source)
        yield source, measure_loss(chat_model, eval_options)


def _report(
    evaluations: Iterable[tuple[ModelSource, Evaluation]],
    suite: str,
    examples: list[Example],
    eval_options: EvalOptions,
) -> list[dict[str, Any]]:
    """Draw and show the checkpoints' scores; returns what ``--json`` prints of each."""
    found, facts = [], []
    limit = eval_options.limit
    of_tasks = f"first-{limit}/" if limit else ""
    prefix = of_tasks if suite == "tasks" else _image_set(eval_options)
    for source, evaluation in evaluations:
        texts = {task.task: task.markdown() for task in evaluation.tasks}
        _draw(source, prefix, _scalars(evaluation), texts)
        found.append(evaluation)
        facts.append(_facts(source, suite, evaluation))
    if eval_options.html is not None:
        _write_page(eval_options.html, suite, found, examples)
    if not eval_options.as_json:
        for evaluation in found:
            _show(evaluation)
    return facts


def _checkpoints(newest: ModelSource, eval_options: EvalOptions) -> list[ModelSource]:
    """Every checkpoint of a run, the oldest first. Raises ConfigError for anything else."""
    from mgpt4_hpc.checkpoint.store import CheckpointStore

    if newest.run is None:
        raise ConfigError(f"{newest.name} is of no run", fix="leave --every-checkpoint out")
    store = CheckpointStore(newest.run.checkpoints)
    return [eval_options.locate(str(store.path_of(step))) for step in sorted(store.steps())]


def _show(found: Evaluation) -> None:
    for task in found.tasks:
        images = counted(len(task.told), "image")
        click.echo(f"{found.name}, {images}: {task.instruction}")
        print_rows(("metric", ">value", ">95 % interval"), _rows(task))
        worst = [told for told in task.told if told.scores.get("failing", 1.0)]
        for told in (worst or task.told)[:_EXAMPLES_SHOWN]:
            click.echo(f"  {told.image}: {told.text[:200]!r}")
        click.echo()
    for reason in found.left_out:
        click.echo(f"left out: {reason}", err=True)


def _rows(task: TaskResult) -> list[tuple[str, str, str]]:
    """Metric, value and the interval of each; what is only known over all has none."""
    from mgpt4_hpc.evaluation.bootstrap import interval

    rows = []
    values = task.values()
    for metric, value in task.metrics.items():
        spread = ""
        if metric in values:
            low, high = interval(values[metric])
            spread = f"{shown(metric, low)} to {shown(metric, high)}"
        rows.append((metric, shown(metric, value), spread))
    return rows


def _rows_side_by_side(tasks: Sequence[TaskResult]) -> list[tuple[str, ...]]:
    """Each metric that all have, with its values and their intervals."""
    columns = [
        {
            metric: f"{value} ({spread})" if spread else value
            for metric, value, spread in _rows(task)
        }
        for task in tasks
    ]
    return [
        (metric, *(column[metric] for column in columns))
        for metric in columns[0]
        if all(metric in column for column in columns)
    ]


def _facts(source: ModelSource, suite: str, found: Evaluation) -> dict[str, Any]:
    return {
        "model": found.name,
        "step": source.step,
        "suite": suite,
        "tasks": [task.to_dict() for task in found.tasks],
        "left_out": list(found.left_out),
    }


def _write_page(
    path: Path, suite: str, found: Sequence[Evaluation], examples: list[Example]
) -> None:
    from mgpt4_hpc.evaluation.results_page import write_page

    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
    if len(found) == 1:
        columns = ("metric", "value", "95 % interval")
        tables = [(task.task, columns, _rows(task)) for task in found[0].tasks]
    else:
        tables = [
            (
                tasks[0].task,
                ("metric", *(evaluation.name for evaluation in found)),
                _rows_side_by_side(tasks),
            )
            for tasks in zip(*(evaluation.tasks for evaluation in found), strict=True)
        ]
    write_page(path, f"{found[-1].name}: {suite} suite", tables, found, examples)
    click.echo(f"page: {path}", err=True)


def _scalars(found: Evaluation) -> dict[str, float]:
    return {
        f"{task.task}_{metric}": value
        for task in found.tasks
        for metric, value in task.metrics.items()
    }


def _draw(
    source: ModelSource,
    image_set: str,
    values: Mapping[str, float],
    texts: Mapping[str, str],
) -> None:
    """Points in a TensorBoard folder of their own: the trainer may be writing into the run's."""
    if source.run is None or source.step is None:
        return
    from mgpt4_hpc.telemetry import tags
    from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter

    prefix = f"{tags.EVAL}{image_set}"
    folder = source.run.tensorboard / "eval"
    writer = TensorBoardWriter(folder)
    writer.scalars(source.step, {f"{prefix}{name}": value for name, value in values.items()})
    for task, text in texts.items():
        writer.text(source.step, f"{prefix}{task}_answers", text)
    writer.close()
    click.echo(f"curves: {folder}, {prefix}* at step {source.step}", err=True)


def _image_set(eval_options: EvalOptions) -> str:
    """What distinguishes sets of images in a tag; empty for all that the run kept back.

    Two folders of one name are two sets, and so is another part of one: a digest keeps them apart.
    """
    if eval_options.images is None and eval_options.limit is None:
        return ""
    where = absolute(Path(eval_options.images)) if eval_options.images is not None else None
    references = absolute(eval_options.references) if eval_options.references is not None else None
    facts = f"{where}\n{references}\n{eval_options.limit}"
    digest = hashlib.blake2b(facts.encode(), digest_size=2).hexdigest()
    name = re.sub(r"[^\w.-]+", "_", where.name if where is not None else "heldout")
    return f"{name}-{digest}/"


def _loss(
    source: ModelSource, losses: Sequence[SourceLoss], eval_options: EvalOptions
) -> dict[str, Any]:
    """Draw and show one checkpoint's losses; returns what ``--json`` prints of it."""
    _draw(source, _image_set(eval_options), {f"loss_{f.source}": f.loss for f in losses}, {})
    for found in losses:
        for reason in found.left_out:
            click.echo(f"left out: {reason}", err=True)
    if not eval_options.as_json:
        click.echo(f"{source.name}: held-out loss (nats per answer token)")
        print_rows(
            ("source", ">loss", ">perplexity", ">samples", ">tokens"),
            [
                (f.source, f"{f.loss:.4f}", f"{f.perplexity:.2f}", f.num_samples, f.num_tokens)
                for f in losses
            ],
        )
    sources = {
        found.source: {
            "loss": found.loss,
            "perplexity": found.perplexity,
            "num_samples": found.num_samples,
            "num_tokens": found.num_tokens,
            "left_out": list(found.left_out),
        }
        for found in losses
    }
    return {"model": source.name, "suite": "loss", "sources": sources}
