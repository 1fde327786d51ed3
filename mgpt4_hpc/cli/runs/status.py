"""``mgpt4 status`` and ``mgpt4 ls``: what each run is doing, and which runs there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import (
    Number,
    absolute,
    complete_runs,
    json_option,
    runs_dir_option,
)
from mgpt4_hpc.cli.shared.tables import (
    can_be_drawn_over,
    new_table,
    print_rows,
    print_table,
    terminal_width,
    visible,
)
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.formatting import printable
from mgpt4_hpc.run_dir import FIX_NO_RUNS, list_runs, list_sweeps, told_no_runs

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from mgpt4_hpc.launch.runs.status import Overviews, RunOverview

_COLOURS = {
    "running": "green",
    "finished": "bold green",
    "failed": "bold red",
    "lost": "red",
    "stopped": "yellow",
    "unknown": "yellow",
}
_OLD = "dim yellow"
"""A state that may have changed since."""


@click.command("status", short_help="What each run is doing.")
@click.argument("names", metavar="[RUN]...", nargs=-1, shell_complete=complete_runs)
@click.option("--watch", is_flag=True, help="Keep the table up to date until Ctrl-C.")
@click.option(
    "--every",
    "every_s",
    type=Number(min=1.0),
    default=5.0,
    show_default=True,
    help="Seconds between two looks with --watch.",
)
@runs_dir_option
@json_option
def status_command(
    names: tuple[str, ...], watch: bool, every_s: float, runs_dir: Path, as_json: bool
) -> None:
    """What each run is doing: all runs of the folder, or those named.

    A sweep's name stands for all of its runs. "best" is the lowest held-out loss, or the best score
    of checkpoint.keep_best, and its step; the checkpoint is RUN@best if that setting keeps it.

    While Slurm's controller does not answer, a state that only the accounting knows is marked with
    the time up to which it is certain ("pending (Priority), as of 14:32"), with a warning; the
    exit code is 0 as long as every run's state is known in that way. A run of
    another cluster, which cannot be asked from here, changes the exit code only if it is named.

    \b
    mgpt4 status
    mgpt4 status stage1-vicuna7b --watch
    mgpt4 status my-sweep
    """
    from mgpt4_hpc.launch.runs.status import look_at
    from mgpt4_hpc.launch.runs.sweep_dir import chosen_runs

    if watch and as_json:
        raise ConfigError("--watch and --json exclude each other", fix="poll with --json")
    runs_dir = absolute(runs_dir)
    runs = chosen_runs(names, runs_dir)
    if watch:
        _watch(names, runs_dir, every_s)
        return
    seen = look_at(runs)
    if as_json:
        echo_json([asdict(row) for row in seen.rows])
    elif runs:
        print_table(status_table(seen.rows, terminal_width()))
    else:
        click.echo(f"{told_no_runs(runs_dir)}\n  fix: {FIX_NO_RUNS}", err=True)
    for line in _details(seen):
        click.echo(line, err=True)
    for warning in seen.warnings:
        if seen.unreachable is None or warning != seen.unreachable.what:
            click.echo(printable(f"warning: {warning}"), err=True)
    if seen.unreachable is not None:
        if names or not seen.only_elsewhere:
            raise seen.unreachable
        click.echo(printable(f"warning: {seen.unreachable}"), err=True)


@click.command("ls", short_help="List the runs.")
@runs_dir_option
@json_option
def ls_command(runs_dir: Path, as_json: bool) -> None:
    """List the runs, newest first, from their folders alone; Slurm is not asked.

    \b
    mgpt4 ls --runs-dir runs
    """
    from mgpt4_hpc.launch.runs.run_facts import read_facts

    runs_dir = absolute(runs_dir)
    facts = [read_facts(run) for run in list_runs(runs_dir)]
    rows = [
        {
            "name": run_facts.run.name,
            "stage": run_facts.stage,
            "created": run_facts.created,
            "step": run_facts.step,
            "max_steps": run_facts.max_steps,
            "attempts": len(run_facts.attempts),
            "finished": run_facts.finished,
            "path": str(run_facts.run.path),
        }
        for run_facts in facts
    ]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo(f"{told_no_runs(runs_dir)}\n  fix: {FIX_NO_RUNS}", err=True)
        return
    columns = ("run", "stage", "created", ">step", ">attempts", "path")
    cells = []
    for row in rows:
        step = f"{row['step']}/{row['max_steps']}"
        created = _local_time(str(row["created"]))
        cells.append((row["name"], row["stage"], created, step, row["attempts"], row["path"]))
    print_rows(columns, cells, folding=("path",))
    if sweeps := list_sweeps(runs_dir):
        click.echo(
            printable(f"sweeps (`mgpt4 status SWEEP` shows one): {', '.join(sweeps)}"), err=True
        )


def _local_time(created: str) -> str:
    """A time of run.json as the other tables have it; what cannot be read stays as it is."""
    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return created


def _watch(names: Sequence[str], runs_dir: Path, every_s: float) -> None:
    from mgpt4_hpc.launch.runs.status import look_at
    from mgpt4_hpc.launch.runs.sweep_dir import chosen_runs

    def look() -> Overviews:
        """The state now; a run that was submitted meanwhile is included."""
        return look_at(chosen_runs(names, runs_dir))

    try:
        if can_be_drawn_over():
            _watch_live(look, runs_dir, every_s)
        else:
            _watch_in_lines(look, runs_dir, every_s)
    except KeyboardInterrupt:
        pass


def _watch_live(look: Callable[[], Overviews], runs_dir: Path, every_s: float) -> NoReturn:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            seen = look()
            table = status_table(seen.rows, live.console.width)
            warnings = [Text(warning, style="yellow") for warning in _warnings(seen, runs_dir)]
            live.update(Group(Text(_clock()), table, *warnings), refresh=True)
            time.sleep(every_s)


def _watch_in_lines(look: Callable[[], Overviews], runs_dir: Path, every_s: float) -> NoReturn:
    """One table below the other, for a pipe, a file or a dumb terminal."""
    while True:
        seen = look()
        click.echo(_clock())
        print_table(status_table(seen.rows, terminal_width()))
        for warning in _warnings(seen, runs_dir):
            click.echo(printable(warning), err=True)
        time.sleep(every_s)


def _warnings(seen: Overviews, runs_dir: Path) -> list[str]:
    told = [*_details(seen), *(f"warning: {warning}" for warning in seen.warnings)]
    return told if seen.rows else [*told, told_no_runs(runs_dir)]


def _details(seen: Overviews) -> list[str]:
    return [printable(f"{row.name}: {line}") for row in seen.rows for line in row.details]


def _clock() -> str:
    return time.strftime("%H:%M:%S")


_COLUMNS = ("run", "state", ">step", ">%", ">loss", ">left", ">samples/s", ">attempt", ">goodput",
            "nodes", ">checkpoint", ">best", "source")  # fmt: skip
_ALWAYS = _COLUMNS[:6]
_IF_THERE_IS_ROOM = (
    ">attempt",
    ">checkpoint",
    ">best",
    ">samples/s",
    ">goodput",
    "nodes",
    "source",
)
"""The most wanted first."""
_FOLDED = {"state": 32, "nodes": 16}
"""Columns that take a second line, and what they need to be read all the same."""


def status_table(rows: Iterable[RunOverview], width: int | None = None) -> Table:
    """The overviews as a table; ``width`` is the terminal's in columns, None without one."""
    rows = list(rows)
    lines = [_cells(row) for row in rows]
    known = [c for c in _COLUMNS if c != ">best" or any(row.best_step is not None for row in rows)]
    shown = _fitting(lines, known, width)
    table = new_table(*shown, folding=tuple(_FOLDED))
    for line in lines:
        table.add_row(*(line[column] for column in shown))
    left_out = [column.removeprefix(">") for column in known if column not in shown]
    if left_out:
        table.caption = f"left out in {width} columns: {', '.join(left_out)}"
        table.caption_justify = "left"
    return table


def _cells(row: RunOverview) -> dict[str, Text]:
    from rich.text import Text

    from mgpt4_hpc.formatting import duration

    checkpoint = "-" if row.checkpoint_step is None else str(row.checkpoint_step)
    if row.checkpoint_age_s is not None:
        checkpoint += f", {duration(row.checkpoint_age_s)} ago"
    texts = (
        row.name,
        row.text,
        f"{row.step}/{row.max_steps if row.max_steps is not None else '?'}",
        _number(row.percent, ".0f"),
        _number(row.loss, ".4f"),
        "-" if row.eta_s is None else duration(row.eta_s),
        _number(row.samples_per_s, ".1f"),
        str(row.attempt or "-"),
        _number(row.goodput, ".1%"),
        row.nodes or "-",
        checkpoint,
        "-" if row.best_value is None else f"{row.best_value:.4f} @{row.best_step}",
        str(row.source),
    )
    cells = {column: Text(visible(text)) for column, text in zip(_COLUMNS, texts, strict=True)}
    cells["state"].stylize(_OLD if row.as_of is not None else _COLOURS.get(row.state, ""))
    return cells


def _fitting(lines: Sequence[Mapping[str, Text]], known: list[str], width: int | None) -> list[str]:
    """The columns that a terminal has room for, in their order."""
    if width is None:
        return known

    def needed(column: str) -> int:
        """Characters that the column takes, with the gap to the next."""
        longest = max((line[column].cell_len for line in lines), default=0)
        return max(len(column), min(longest, _FOLDED.get(column, longest))) + 2

    left = width + 2 - sum(map(needed, _ALWAYS))
    shown = set(_ALWAYS)
    for column in _IF_THERE_IS_ROOM:
        if column in known and needed(column) <= left:
            left -= needed(column)
            shown.add(column)
    return [column for column in known if column in shown]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
