"""Progress on stderr: a bar on a terminal, now and then a line elsewhere (a Slurm job's log)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import click

_LINE_EVERY_S = 30.0

OnProgress = Callable[[int, int], None]
"""Takes (done, in all)."""


@contextmanager
def progress(
    label: str, unit: Literal["bytes", "samples", "shards", "parts"]
) -> Iterator[OnProgress]:
    """Show how far something is; ``label`` says what is done to what."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_interactive:  # a dumb terminal cannot be drawn over
        yield _lines(label)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    counts = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn(label), BarColumn(), counts, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(label: str) -> OnProgress:
    """Prints every half minute, so that short commands stay silent."""
    shown_at = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        """Print a line if the last one is old enough."""
        nonlocal shown_at
        now = time.monotonic()
        if now - shown_at >= _LINE_EVERY_S:
            shown_at = now
            click.echo(f"{label}: {done / max(1, total):.0%}", err=True)

    return on_progress
