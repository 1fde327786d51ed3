"""Tables on the terminal, without lines, to be read and cut by people and by awk."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


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


def print_rows(
    columns: Sequence[str], rows: Iterable[Iterable[object]], folding: Sequence[str] = ()
) -> None:
    """A table of plain cells on stdout; ``columns`` and ``folding`` as :func:`new_table`."""
    table = new_table(*columns, folding=folding)
    for row in rows:
        table.add_row(*map(plain, row))
    print_table(table)


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


def can_be_drawn_over() -> bool:
    """Whether stdout is a terminal on which lines can be replaced: no pipe, and not TERM=dumb."""
    from rich.console import Console

    return Console().is_interactive


def print_table(table: Table) -> None:
    """On stdout; in a pipe as wide as it needs to be, one row a line.

    On a terminal that is too narrow for the table, each row is a paragraph: no word is cut.
    """
    from rich.console import Console

    if terminal_width() is not None:
        console = Console()
        if _fit(table, console):
            console.print(table)
        else:
            _print_paragraphs(table, console)
        return
    with (wide := Console(width=1000)).capture() as captured:
        wide.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


_FOLDED_AT = 20
"""A longer word, as a path, may be cut where its column takes a second line."""
_GAP = 2
"""Columns between two of a table's."""


def _fit(table: Table, console: Console) -> bool:
    """Give columns that take a second line the room that is left; False if there is too little."""
    cells = [[_text(cell, console) for cell in column.cells] for column in table.columns]
    wholes, needs = [], []
    for column, texts in zip(table.columns, cells, strict=True):
        words = [word for text in texts for word in re.split(r"\s|(?<=,)", text.plain)]
        heading = str(column.header)
        wholes.append(max(len(heading), *(text.cell_len for text in texts), 0))
        longest = max(map(len, words), default=0)
        needs.append(max(min(longest, _FOLDED_AT), *map(len, heading.split()), 0))
    columns = list(zip(table.columns, wholes, needs, strict=True))
    room = console.width - _GAP * (len(columns) - 1)
    room -= sum(whole if column.no_wrap else need for column, whole, need in columns)
    for column, whole, need in columns:
        if not column.no_wrap and room >= 0:
            column.width = min(whole, need + room)
            room -= column.width - need
    return room >= 0


def _print_paragraphs(table: Table, console: Console) -> None:
    headings = [str(column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        texts = [_text(cell, console).plain for cell in cells]
        facts = [f"{name}: {text}" for name, text in list(zip(headings, texts, strict=True))[1:]]
        for line in textwrap.wrap(
            "; ".join([texts[0], *facts]),
            console.width,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        ):
            click.echo(line)


def _text(cell: Any, console: Console) -> Text:
    return console.render_str(cell) if isinstance(cell, str) else cell
