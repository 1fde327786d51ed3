"""Tables on the terminal, without lines, to be read and cut by people and by awk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.table import Table


def new_table(*columns: str, folding: Sequence[str] = ()) -> Table:
    """A table without lines, to be read and cut by people and by awk.

    Args:
        columns: headings; with a ``>`` in front the column is aligned to the right.
        folding: those that take a second line where the terminal is too narrow.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        name = column.removeprefix(">")
        justify: Literal["left", "right"] = "right" if column != name else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in folding)
    return table


def visible(value: object) -> str:
    """Text without a terminal's escapes."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def plain(value: object) -> str:
    """Text for a cell: neither rich's markup nor a terminal's escapes come through."""
    from rich.markup import escape

    return escape(visible(value))


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None for a pipe or file."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else None


def print_table(table: Table) -> None:
    """On stdout; in a pipe as wide as it needs to be, one row a line."""
    from rich.console import Console

    if terminal_width() is not None:
        Console().print(table)
        return
    with (wide := Console(width=1000)).capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
