"""One HTML file with tables, pictures and answers, which opens anywhere: nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from mgpt4_hpc.data.images.decode import ImageError
from mgpt4_hpc.data.images.image_file import thumbnail
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.evaluation.examples import Example
from mgpt4_hpc.evaluation.results import Evaluation, Told
from mgpt4_hpc.output_files import GENERATOR

_THUMBNAIL_PIXELS = 224
_FLAGS = ("incomplete", "repetitive", "empty", "echo", "chair_s")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { border: 1px solid #ccc; padding: .25rem .6rem; text-align: right }
td:first-child, th:first-child, td.text, th.text { text-align: left }
article { display: flex; gap: 1rem; border-top: 1px solid #ccc; padding: 1rem 0 }
article img { width: 14rem; height: auto; align-self: flex-start }
h3 { margin: 0 0 .3rem; font-size: 1rem } p { margin: .2rem 0; white-space: pre-wrap }
.by { color: #555; font-size: .85rem; margin-top: .6rem }
.flag { background: #b3261e; color: #fff; border-radius: .5rem; padding: 0 .4rem;
  font-size: .8rem; margin-left: .3rem }
.reference { color: #2e6b34 }
"""


def write_page(
    path: Path,
    title: str,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    evaluations: Sequence[Evaluation],
    examples: Sequence[Example],
) -> None:
    """Write the page.

    Args:
        path: the file.
        title: its heading.
        tables: caption, column headings, and rows of texts.
        evaluations: of one model, or of several that were asked the same.
        examples: the images, for the pictures beside the answers.

    Raises:
        DataError: if the file cannot be written.
    """
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{GENERATOR}',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]
    parts += [_table(*table) for table in tables]
    pictures = {example.name: _thumbnail(example) for example in examples}
    for tasks in zip(*(evaluation.tasks for evaluation in evaluations), strict=True):
        parts.append(f"<h2>{escape(tasks[0].task)}: {escape(tasks[0].instruction)}</h2>")
        for tolds in zip(*(task.told for task in tasks), strict=True):
            names = [evaluation.name for evaluation in evaluations]
            parts.append(_card(pictures.get(tolds[0].image, ""), names, tolds))
    parts += _left_out(evaluations[0])
    parts.append("</body></html>\n")
    try:
        path.write_text("\n".join(parts), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def _left_out(evaluation: Evaluation) -> list[str]:
    """The images that no model was asked about, each with its reason."""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in evaluation.left_out)
    return [f"<h2>Left out</h2><ul>{reasons}</ul>"] if reasons else []


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<h2>{escape(caption)}</h2><table><tr>{head}</tr>{body}</table>"


def _card(picture: str, names: Sequence[str], tolds: Sequence[Told]) -> str:
    lines = [f"<h3>{escape(tolds[0].image)}</h3>"]
    for name, told in zip(names, tolds, strict=True):
        flags = "".join(
            f'<span class="flag">{"made up" if flag == "chair_s" else flag}</span>'
            for flag in _FLAGS
            if told.scores.get(flag)
        )
        lines.append(f'<p class="by">{escape(name)}{flags}</p><p>{escape(told.text)}</p>')
    for reference in tolds[0].references:
        lines.append(f'<p class="by">reference</p><p class="reference">{escape(reference)}</p>')
    return f'<article><img alt="" src="{picture}"><div>{"".join(lines)}</div></article>'


def _thumbnail(example: Example) -> str:
    """The picture as a data URI; empty if it cannot be decoded."""
    try:
        return thumbnail(example.data(), _THUMBNAIL_PIXELS)
    except (ImageError, DataError):
        return ""
