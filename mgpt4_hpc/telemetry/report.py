"""A run in one picture: loss, learning rate, throughput, goodput, and its attempts."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.output_files import GENERATOR, PNG_INFO
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.goodput import UNACCOUNTED
from mgpt4_hpc.telemetry.ledger import Change
from mgpt4_hpc.telemetry.time_buckets import BADPUT, PRODUCTIVE, QUEUE_WAIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curve = Sequence[tuple[int, float]]
"""Points (step, value)."""

_DOTS_PER_INCH = 110
_SMOOTHED_FROM = 100
"""Points from which a moving mean is drawn over the loss."""

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{border:1px solid #ccc;"
    "padding:.25rem .6rem;text-align:right}td:last-child,th:last-child{text-align:left}"
)


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a TensorBoard folder, as TensorBoard itself would show it.

    What a killed attempt drew and a later one drew again is there once.
    """
    events = _load(folder, "scalars")
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def read_texts(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Every Markdown text of a TensorBoard folder, by tag and step."""
    events = _load(folder, "tensors")
    return {
        tag: [
            (event.step, event.tensor_proto.string_val[0].decode(errors="replace"))
            for event in events.Tensors(tag)
            if event.tensor_proto.string_val
        ]
        for tag in events.Tags()["tensors"]
    }


def _load(folder: Path, kind: str) -> EventAccumulator:
    """All events of one kind: "scalars" or "tensors"."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # It warns of each point that a later start drew again, as a requeue and a branch do.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), size_guidance={kind: 0})
    return events.Reload()


def draw_report(
    name: str,
    curves: Mapping[str, Curve],
    attempts: Sequence[Attempt],
    changes: Sequence[Change] = (),
    note: str = "",
) -> bytes:
    """The picture as PNG.

    Args:
        name: the run's, for the title.
        curves: by tag, as ``read_curves`` gives them; missing ones leave their panel empty.
        attempts: as ``read_ledgers`` gives them.
        changes: as ``read_changes`` gives them; the settings' names are drawn where they changed.
        note: a line below the title.

    Raises:
        PreflightError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PreflightError(
            "pictures need matplotlib, which is not installed",
            fix="pip install 'mgpt4-hpc[report]'",
        )
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), layout="constrained")
    panels: dict[str, Axes] = figure.subplot_mosaic(
        [["loss", "loss"], ["lr", "rate"], ["goodput", "attempts"]]
    )
    figure.suptitle(f"{name}\n{note}" if note else name)
    _draw_loss(panels["loss"], curves)
    _draw(panels["lr"], curves.get(tags.TRAIN_LR, ()), "learning rate")
    _draw(panels["rate"], curves.get(tags.SAMPLES_PER_S, ()), "samples per second", from_zero=True)
    _draw(
        panels["goodput"],
        curves.get(tags.GOODPUT, ()),
        "goodput of all time since the start",
        from_zero=True,
    )
    panels["goodput"].set_ylim(0, 1)
    for key in ("loss", "lr", "rate", "goodput"):
        panels[key].set_xlabel("optimizer step")
        _mark_restarts(panels[key], attempts)
        _mark_changes(panels[key], changes)
    _draw_attempts(panels["attempts"], attempts)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DOTS_PER_INCH, metadata=PNG_INFO)
    return stream.getvalue()


@dataclass(frozen=True)
class Table:
    """A table of the page: its heading, column headings and rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def report_page(name: str, png: bytes, facts: Sequence[str], tables: Sequence[Table]) -> str:
    """An HTML page with the picture inside, sentences, and tables."""
    picture = base64.b64encode(png).decode()
    sentences = "".join(f"<p>{escape(fact)}</p>" for fact in facts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{GENERATOR}'
        f"<title>{escape(name)}</title><style>{_STYLE}</style></head><body><h1>{escape(name)}</h1>{sentences}"
        f'<img alt="curves of {escape(name)}" src="data:image/png;base64,{picture}">'
        f"{''.join(map(_html, tables))}</body></html>\n"
    )


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return f"<h2>{escape(table.caption)}</h2><table><tr>{head}</tr>{body}</table>"


def _draw_loss(panel: Axes, curves: Mapping[str, Curve]) -> None:
    points = curves.get(tags.TRAIN_LOSS, ())
    long = len(points) >= _SMOOTHED_FROM
    _draw(
        panel, points, "loss (nats per answer token)", alpha=0.35 if long else 1, label="training"
    )
    if long:
        _draw(panel, _smoothed(points), "", label="training, moving mean", color="C3")
    if held_out := curves.get(tags.VAL_LOSS):
        _draw(panel, held_out, "", label="held-out", marker="o", color="C2")
    if points:
        panel.legend()


def _draw(panel: Axes, points: Curve, title: str, *, from_zero: bool = False, **style: Any) -> None:
    if title:
        panel.set_title(title, loc="left", fontsize="medium")
    panel.grid(alpha=0.3)
    if not points:
        panel.text(0.5, 0.5, "nothing recorded", ha="center", transform=panel.transAxes)
        return
    steps, values = zip(*points, strict=True)
    panel.plot(steps, values, **{"linewidth": 1.4, "color": "C0", **style})
    if from_zero:
        panel.set_ylim(bottom=0)


def _smoothed(points: Curve) -> list[tuple[int, float]]:
    """Mean over the last twentieth of the points, at each point."""
    width = max(2, len(points) // 20)
    smoothed, total = [], 0.0
    for index, (step, value) in enumerate(points):
        total += value - (points[index - width][1] if index >= width else 0.0)
        smoothed.append((step, total / min(index + 1, width)))
    return smoothed


def _mark_restarts(panel: Axes, attempts: Sequence[Attempt]) -> None:
    for before, attempt in pairwise(attempts):
        panel.axvline(attempt.restored_step, color="grey", linestyle=":", linewidth=1)
        panel.annotate(
            before.cause,
            (attempt.restored_step, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -10),
            textcoords="offset points",
            fontsize="x-small",
            color="grey",
        )


def _mark_changes(panel: Axes, changes: Sequence[Change]) -> None:
    for step, changed in groupby(changes, key=lambda change: change.step):
        panel.axvline(step, color="C1", linestyle="--", linewidth=1)
        panel.annotate(
            "\n".join(change.what.partition(" was ")[0] for change in changed),
            (step, 0),
            xycoords=("data", "axes fraction"),
            xytext=(2, 4),
            textcoords="offset points",
            fontsize="x-small",
            color="C1",
        )


def _draw_attempts(panel: Axes, attempts: Sequence[Attempt]) -> None:
    """A bar per attempt: where its seconds went, the wait in the queue before it included."""
    panel.set_title("attempts: minutes by purpose", loc="left", fontsize="medium")
    names = [attempt.number for attempt in attempts]
    bar_starts = [0.0] * len(attempts)
    for colour, bucket in enumerate((PRODUCTIVE, *BADPUT, UNACCOUNTED)):
        minutes = [_seconds(attempt, bucket) / 60 for attempt in attempts]
        if max(minutes, default=0.0) < 1 / 600:
            continue
        label = bucket.replace("_", " ")
        # Ten colours, and grey for what is not known.
        tint = "0.8" if bucket == UNACCOUNTED else f"C{(colour + 2) % 10}"
        panel.barh(names, minutes, left=bar_starts, label=label, color=tint)
        bar_starts = [a + b for a, b in zip(bar_starts, minutes, strict=True)]
    panel.set_yticks(names, [f"{a.number}: {a.cause}" for a in attempts])
    panel.invert_yaxis()
    if attempts:
        panel.legend(fontsize="x-small")


def _seconds(attempt: Attempt, bucket: str) -> float:
    if bucket != UNACCOUNTED:
        return attempt.buckets.get(bucket, 0.0)
    known = sum(value for name, value in attempt.buckets.items() if name != QUEUE_WAIT)
    return max(0.0, attempt.seconds - known)
