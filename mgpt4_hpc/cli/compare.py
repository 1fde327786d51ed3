"""``mgpt4 compare``: two checkpoints on the same images and prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc.cli.evaluating import (
    check_page,
    counting,
    evaluation_options,
    find_examples,
    print_rows,
    shown,
    word_list,
)
from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.on_node import go_to_node, slurm_options, split_slurm
from mgpt4_hpc.cli.options import absolute, json_option, runs_dir_option
from mgpt4_hpc.cli.talking import locate, make_sampling, model_options, sampling_options

if TYPE_CHECKING:
    from mgpt4_hpc.evaluation.examples import Example
    from mgpt4_hpc.evaluation.results import Difference, Evaluation
    from mgpt4_hpc.model.talker import Source


@click.command("compare", short_help="Two checkpoints on the same images, with intervals.")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--suite",
    type=click.Choice(["failure", "caption"]),
    default="failure",
    show_default=True,
    help="What is measured.",
)
@evaluation_options
@model_options
@sampling_options
@slurm_options
@runs_dir_option
@json_option
@click.pass_context
def compare_command(
    context: click.Context,
    first: str,
    second: str,
    suite: str,
    images: str | None,
    references: Path | None,
    synonyms: str | None,
    limit: int | None,
    batch_size: int,
    html: Path | None,
    weights: str | None,
    template: str | None,
    device: str,
    precision: str,
    runs_dir: Path,
    as_json: bool,
    **others: Any,
) -> None:
    """Ask A and B (runs, checkpoints or files) the same about the same images.

    Differences are B minus A, with 95 % bootstrap intervals over the images, which are paired.

    \b
    mgpt4 compare stage1-vicuna7b stage2-vicuna7b --images coco/val2014 --html stages.html
    """
    node, sampling = split_slurm(others)
    settings = make_sampling(**sampling)
    check_page(html)
    if node.wanted:
        go_to_node(node, context, terminal=False)
        return
    from mgpt4_hpc.evaluation.captions import require_libraries
    from mgpt4_hpc.evaluation.results import differences
    from mgpt4_hpc.evaluation.suites import evaluate, look_at
    from mgpt4_hpc.model.talker import Talker, same_towers

    sources = [
        locate(name, absolute(runs_dir), weights=weights, template=template)
        for name in (first, second)
    ]
    if suite == "caption":
        require_libraries()
    objects = word_list(synonyms, sources[0])
    examples = find_examples(sources[0], images, references, limit)
    found: list[Evaluation] = []
    with counting("answers", (4 if suite == "failure" else 2) * len(examples)) as count:
        talker = None
        for source in sources:
            if talker is None or not same_towers(talker.source, source):
                talker = None  # let go of the first before the second is loaded
                talker = Talker(source, device=device, precision=precision)
                pictures = look_at(talker, examples, batch_size=batch_size)
            else:
                talker.use(source)
            found.append(
                evaluate(
                    talker,
                    pictures,
                    suite,
                    settings,
                    objects,
                    batch_size=batch_size,
                    progress=count,
                )
            )
    rows = differences(*found)
    if html is not None:
        _write_page(html, suite, found, rows, examples)
    if as_json:
        _echo(sources, suite, found, rows)
        return
    click.echo(f"A: {found[0].name}\nB: {found[1].name}\n{len(found[0].tasks[0].told)} images")
    print_rows(("task", "metric", ">A", ">B", ">B - A", ">95 % interval", ""), _table(rows))


def _table(rows: list[Difference]) -> list[tuple[str, ...]]:
    return [
        (
            row.task,
            row.metric,
            shown(row.metric, row.first),
            shown(row.metric, row.second),
            shown(row.metric, row.second - row.first),
            f"{shown(row.metric, row.low)} to {shown(row.metric, row.high)}",
            "*" if row.clear else "",
        )
        for row in rows
    ]


def _echo(
    sources: list[Source], suite: str, found: list[Evaluation], rows: list[Difference]
) -> None:
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
            "differences": [{**asdict(row), "clear": row.clear} for row in rows],
            "left_out": list(found[0].left_out),
        }
    )


def _write_page(
    path: Path,
    suite: str,
    found: list[Evaluation],
    rows: list[Difference],
    examples: list[Example],
) -> None:
    from mgpt4_hpc.evaluation.page import write_page

    names = [evaluation.name for evaluation in found]
    columns = ("task", "metric", *names, "difference", "95 % interval", "clear")
    title = " and ".join(names)
    write_page(path, title, [(f"{suite} suite", columns, _table(rows))], found, examples)
    click.echo(f"page: {path}", err=True)
