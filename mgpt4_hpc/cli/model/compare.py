"""``mgpt4 compare``: several checkpoints on the same images and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.evaluation_options import (
    EvalOptions,
    evaluate_models,
    evaluation_options,
    find_examples,
    shown,
    word_list,
)
from mgpt4_hpc.cli.shared.srun_options import go_to_node, slurm_options, split_slurm
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.run_reference import find_all

if TYPE_CHECKING:
    from mgpt4_hpc.evaluation.examples import Example
    from mgpt4_hpc.evaluation.results import Difference, Evaluation
    from mgpt4_hpc.model.generation.chat_model import ModelSource


@click.command("compare", short_help="Checkpoints on the same images, with intervals.")
@click.argument("names", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--suite",
    type=click.Choice(["failure", "caption"]),
    default="failure",
    show_default=True,
    help="What is measured.",
)
@evaluation_options
@slurm_options
@click.pass_context
def compare_command(
    context: click.Context, /, names: tuple[str, ...], suite: str, **options: Any
) -> None:
    """Ask two or more models (runs, sweeps, checkpoints or files) the same about the same images.

    A sweep's name stands for all of its runs. Each model is compared with A, the first: differences
    are its value minus A's, with 95 % bootstrap intervals over the images, which are paired.

    \b
    mgpt4 compare stage1-vicuna7b stage2-vicuna7b --images coco/val2014 --html stages.html
    mgpt4 compare my-sweep --images coco/val2014
    """
    node, options = split_slurm(options)
    eval_options = EvalOptions.of(options)
    if node.wanted:
        go_to_node(
            node,
            context,
            terminal=False,
            check=lambda: [eval_options.find(name) for name in _members(names, eval_options)],
        )
        return
    from mgpt4_hpc.evaluation.captions import require_libraries
    from mgpt4_hpc.evaluation.results import metric_differences
    from mgpt4_hpc.model.generation.chat_model import with_distinct_names

    located = find_all(_members(names, eval_options), eval_options.locate)
    # A run that is named beside its sweep is one model.
    sources = list({source.name: source for source in with_distinct_names(located)}.values())
    if len(sources) < 2:
        raise ConfigError(
            f"there is nothing to compare {sources[0].name} with",
            fix="give two models, or a sweep; a checkpoint that is given twice is one",
        )
    if suite == "caption":
        require_libraries()
    examples = find_examples(sources[0], eval_options)
    objects = word_list(eval_options.synonyms, sources[0])
    evaluated = evaluate_models(eval_options, sources, examples, suite, objects)
    found = [evaluation for _, evaluation in evaluated]
    rows = [(other, row) for other in found[1:] for row in metric_differences(found[0], other)]
    if eval_options.html is not None:
        _write_page(eval_options.html, suite, found, rows, examples)
    if eval_options.as_json:
        _echo(sources, suite, found, rows)
        return
    images = counted(len(found[0].tasks[0].told), "image")
    letters = {one.name: _letter(number) for number, one in enumerate(found)}
    for name, letter in letters.items():
        click.echo(f"{letter}: {name}")
    click.echo(images)
    table = [(letters[other.name], *_cells(row)) for other, row in rows]
    print_rows(
        ("model", "task", "metric", ">A", ">model", ">difference", ">95 % interval", ""), table
    )


def _members(names: Sequence[str], eval_options: EvalOptions) -> list[str]:
    """What is compared, each run of a sweep by itself."""
    from mgpt4_hpc.launch.runs.sweep_dir import find_runs, is_sweep

    runs_dir = eval_options.runs_dir
    members: list[str] = []
    for name in names:
        runs = find_runs([name], runs_dir) if is_sweep(name, runs_dir) else []
        members += [str(run.path) for run in runs] or [name]
    return members


def _letter(number: int) -> str:
    return ascii_uppercase[number] if number < len(ascii_uppercase) else str(number + 1)


Rows = list[tuple["Evaluation", "Difference"]]
"""A model, and one metric of it and of the first model."""


def _cells(row: Difference) -> tuple[str, ...]:
    return (
        row.task,
        row.metric,
        shown(row.metric, row.first),
        shown(row.metric, row.second),
        shown(row.metric, row.second - row.first),
        f"{shown(row.metric, row.low)} to {shown(row.metric, row.high)}",
        "*" if row.clear else "",
    )


def _echo(sources: list[ModelSource], suite: str, found: list[Evaluation], rows: Rows) -> None:
    echo_json(
        {
            "suite": suite,
            "models": [
                {
                    "model": evaluation.name,
                    "step": source.step,
                    "tasks": [task.to_dict() for task in evaluation.tasks],
                }
                for source, evaluation in zip(sources, found, strict=True)
            ],
            "differences": [
                {"model": other.name, **asdict(row), "clear": row.clear} for other, row in rows
            ],
            "left_out": list(found[0].left_out),
        }
    )


def _write_page(
    path: Path,
    suite: str,
    found: list[Evaluation],
    rows: Rows,
    examples: list[Example],
) -> None:
    from mgpt4_hpc.evaluation.results_page import write_page

    names = [evaluation.name for evaluation in found]
    columns = ("model", "task", "metric", names[0], "model", "difference", "95 % interval", "clear")
    table = [(other.name, *_cells(row)) for other, row in rows]
    write_page(path, ", ".join(names), [(f"{suite} suite", columns, table)], found, examples)
    click.echo(f"page: {path}", err=True)
