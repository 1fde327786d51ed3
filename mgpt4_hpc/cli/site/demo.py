"""``mgpt4 demo``: both stages on the shipped toy world, with a preemption in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.bars import bars
from mgpt4_hpc.cli.shared.options import absolute, json_option
from mgpt4_hpc.cli.shared.tables import plain, print_table
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.resources import resolve_path

if TYPE_CHECKING:
    from mgpt4_hpc.launch.site_check.demo import DemoResult

_SHOWN_ROWS = 6
_SHOWN_CHARACTERS = 160


@click.command("demo")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo",
    show_default=True,
    help="Where the run directories go; an earlier demo is replaced.",
)
@json_option
def demo_command(folder: Path, as_json: bool) -> None:
    """Train both stages on the shipped toy world, preempt one, and caption held-out images.

    Takes under four minutes on two CPU cores; needs no GPU, no Slurm and no network. The toy's
    towers are small but pretrained, and its language model was taught to answer in two styles, so
    that the difference between the stages shows: what is engineered is listed in the toy world's
    README.

    \b
    mgpt4 demo --dir demo --json > demo.json
    """
    from mgpt4_hpc.launch.site_check.demo import run_demo

    with bars() as reporter:
        result = run_demo(absolute(folder), reporter)
    if as_json:
        _echo_as_json(result)
    else:
        _show(result, absolute(folder))
    if result.faults:
        raise MgptError("the demo did not keep its promise: " + "; ".join(result.faults))
    if not as_json:
        click.echo(_last_line(result))


def _show(result: DemoResult, folder: Path) -> None:
    from rich.table import Table

    table = Table(title="Held-out images (the toy's towers are pretrained for this: engineered)")
    for heading in ("image", "after stage 1", "after stage 2", "truth"):
        table.add_column(heading, overflow="fold")
    for row in result.rows[:_SHOWN_ROWS]:
        table.add_row(*(plain(_shortened(cell)) for cell in row))
    print_table(table)
    shares = Table(title=f"Shares of {len(result.rows)} held-out scenes")
    for heading in ("", "main object right", "incomplete", "repetitive", "loss", "seconds"):
        shares.add_column(heading)
    for number, (stage, share) in enumerate(zip(result.stages, result.shares, strict=True), 1):
        shares.add_row(
            f"after stage {number}",
            *(f"{share[key]:.0%}" for key in ("right", "incomplete", "repetitive")),
            f"{stage.first_loss:.3f} -> {stage.last_loss:.3f}",
            f"{stage.seconds:.0f}",
        )
    print_table(shares)
    click.echo(f"curves:  mgpt4 tensorboard --runs-dir {folder}")
    image = Path(resolve_path("toy:heldout")) / "image" / str(result.rows[0][0])
    click.echo("talk, about one image at a time, of this kind (a toy knows no more):")
    click.echo(f"         mgpt4 chat {image} --checkpoint {folder}/toy-stage2")
    click.echo(f"         mgpt4 serve {folder}/toy-stage2 {folder}/toy-stage1")


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + " ..."


def _last_line(result: DemoResult) -> str:
    first_stage, second_stage = result.stages
    first, second = result.shares
    return (
        f"demo ok: {second['right']:.0%} of main objects right after stage 2; failing answers "
        f"(incomplete / repetitive) {first['incomplete']:.0%} / {first['repetitive']:.0%} after "
        f"stage 1, {second['incomplete']:.0%} / {second['repetitive']:.0%} after stage 2; losses "
        f"{first_stage.last_loss:.3f}, {second_stage.last_loss:.3f}; 1 preemption, 0 steps lost; "
        f"{result.seconds:.0f} s"
    )


def _echo_as_json(result: DemoResult) -> None:
    echo_json(
        {
            "ok": not result.faults,
            "faults": result.faults,
            "seconds": round(result.seconds, 1),
            "stages": [
                {
                    "run_dir": stage.run.path,
                    "first_loss": stage.first_loss,
                    "last_loss": stage.last_loss,
                    "seconds": round(stage.seconds, 1),
                    "attempts": [attempt.cause for attempt in stage.attempts],
                    **share,
                }
                for stage, share in zip(result.stages, result.shares, strict=True)
            ],
        }
    )
