#!/usr/bin/env python3
"""Whether a step costs more the longer a run has lasted, or the larger its data.

    python tools/bench_growth.py            # a table
    python tools/bench_growth.py --json

Each row does the same work in a small and in a large world, in turns within one process, and gives
the median seconds of each and their ratio, which should be 1:

* `position`: a global batch's sample numbers, at the beginning and after --samples samples;
* `shards`: those samples' places, with the same samples in --few and in --many shards;
* `ledger`: a report of loss and curves, with an empty and with a long ledger (--lines);
* `attempts`: the same, in a first attempt and after --attempts others;
* `step`: an optimizer step of a small model, at step 0 and at step --steps.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from bench.hardware import machine_name  # noqa: E402
from bench.subject import Settings, build_subject  # noqa: E402

from mgpt4_hpc.data.index.index import ShardIndex  # noqa: E402
from mgpt4_hpc.data.index.index_file import IndexWriter  # noqa: E402
from mgpt4_hpc.data.index.scan import ShardScan  # noqa: E402
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize  # noqa: E402
from mgpt4_hpc.distributed import Ranks  # noqa: E402
from mgpt4_hpc.run_dir import RunDir  # noqa: E402
from mgpt4_hpc.telemetry import tags  # noqa: E402
from mgpt4_hpc.telemetry.event_kinds import Kind  # noqa: E402
from mgpt4_hpc.telemetry.ledger import Ledger  # noqa: E402
from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter  # noqa: E402
from mgpt4_hpc.train.optimizer import build_optimizer  # noqa: E402
from mgpt4_hpc.train.recorder import FirstRankRecorder  # noqa: E402
from mgpt4_hpc.train.schedule import WarmupCosine  # noqa: E402
from mgpt4_hpc.train.step import StepOptions, TrainStep  # noqa: E402

BATCH = 256
_INDEXED_SAMPLES = 100_000
_VALUES = {tags.TRAIN_LOSS: 1.0, tags.TRAIN_LR: 1e-4, tags.SAMPLES_PER_S: 1.0}

Work = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How large the large world is; the options' names."""

    samples: int
    few: int
    many: int
    lines: int
    attempts: int
    steps: int


def batches_from(order: SampleOrder, first: int) -> Work:
    """Each call finds out which samples the next global batch has."""
    starts = iter(range(first, first + 10**9, BATCH))

    def look_up() -> object:
        start = next(starts)
        return order.lookup(np.arange(start, start + BATCH))

    return look_up


def places_in(folder: Path, num_shards: int) -> Work:
    """Each call finds the next global batch's parts in an index of that many shards."""
    index = make_index(folder / f"{num_shards}.index", num_shards)
    order = SampleOrder([SourceSize("source", index.num_samples, 1)], 0)
    numbers = batches_from(order, 0)

    def locate() -> object:
        (_, ids) = numbers()  # type: ignore[misc]
        return [index.locate(int(number)) for number in ids]

    return locate


def make_index(path: Path, num_shards: int) -> ShardIndex:
    """Of shards that do not exist; nothing is read from them."""
    each = _INDEXED_SAMPLES // num_shards
    blocks = np.tile(np.arange(each, dtype=np.uint32)[:, None] * 40, 3)
    lengths = np.full((each, 3), 18_000, dtype=np.uint32)
    with IndexWriter(path, name="s", root=path.parent, verified=False, decoded=False) as writer:
        for shard in range(num_shards):
            keys = [f"{shard:05d}{number:04d}".encode() for number in range(each)]
            writer.add(ShardScan(f"{shard:05d}.tar", 1 << 28, 0, keys, blocks, lengths))
        writer.commit()
    return ShardIndex.open(path)


class QuietRecorder(FirstRankRecorder):
    """The recorder of rank 0, but for its lines on stdout."""

    def say(self, text: str) -> None:
        """Print nothing."""


def reports(folder: Path, stack: ExitStack, *, lines: int = 0, attempts: int = 0) -> Work:
    """Each call records one logged step, after so many lines or attempts."""
    run = RunDir(folder)
    for attempt in range(1, attempts + 1):
        ledger = Ledger(run.ledger, attempt)
        ledger.event(Kind.START, attempt=attempt)
        ledger.event(Kind.END, cause="preempted")
        ledger.close()
    recorder = QuietRecorder(run, attempts + 1)
    stack.callback(recorder.close)
    recorder.curves = TensorBoardWriter(run.tensorboard, purge_step=None)
    line = json.dumps({"t": time.time(), "kind": "steps", "step": 1}) + "\n"
    recorder.event(Kind.START, attempt=attempts + 1)
    with recorder.ledger.path.open("a") as file:
        file.write(line * lines)
    steps = iter(range(1, 10**9))
    return lambda: recorder.logged(next(steps), _VALUES, {"productive": 1.0}, "")


def training_steps(number: int) -> Work:
    """Each call is an optimizer step of the same number and batch."""
    settings = Settings(shape="tiny", stage=1)
    device, ranks = torch.device("cpu"), Ranks()
    subject = build_subject(settings, ranks, device)
    step = TrainStep(
        subject.model,
        subject.model.llama_proj,
        build_optimizer(subject.model.llama_proj, subject.train),
        WarmupCosine.from_config(subject.train),
        StepOptions(world_size=1),
        device=device,
    )
    batches = next(subject.batches)
    tokens = sum(batch.num_answer_tokens for batch in batches)
    return lambda: step(batches, number, tokens)


def compare(small: Work, large: Work, rounds: int) -> dict[str, float]:
    """Medians of both, done in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for work, taken in zip((small, large), seconds, strict=True):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    early_s, late_s = map(statistics.median, seconds)
    return {"early_s": early_s, "late_s": late_s, "ratio": late_s / early_s}


def measure(sizes: Sizes, rounds: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Every row of the report."""
    with tempfile.TemporaryDirectory(prefix="bench-growth-") as name, ExitStack() as stack:
        folder = Path(name)
        order = SampleOrder(
            [SourceSize("laion", 115_000_000, 115), SourceSize("cc", 14_000_000, 14)], 0
        )
        early, late = batches_from(order, 0), batches_from(order, sizes.samples)
        yield "position", compare(early, late, rounds)
        few, many = places_in(folder, sizes.few), places_in(folder, sizes.many)
        yield "shards", compare(few, many, rounds)
        fresh = reports(folder / "fresh", stack)
        yield "ledger", compare(fresh, reports(folder / "long", stack, lines=sizes.lines), rounds)
        old = reports(folder / "old", stack, attempts=sizes.attempts)
        yield "attempts", compare(fresh, old, rounds)
        yield "step", compare(training_steps(0), training_steps(sizes.steps), rounds)


@click.command(
    help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ", 1).replace("\n\n*", "\n\n\b\n*")
)
@click.option("--samples", type=click.IntRange(1), default=300_000_000, show_default=True)
@click.option("--few", type=click.IntRange(1), default=10, show_default=True)
@click.option("--many", type=click.IntRange(1), default=11_745, show_default=True)
@click.option("--lines", type=click.IntRange(0), default=500_000, show_default=True)
@click.option("--attempts", type=click.IntRange(0), default=500, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=99_999, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=200, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def main(rounds: int, as_json: bool, **sizes: int) -> None:
    """See the module."""
    torch.set_num_threads(1)
    rows = dict(measure(Sizes(**sizes), rounds))
    if as_json:
        surroundings = {"machine": machine_name("cpu"), "load_1min": round(os.getloadavg()[0], 2)}
        click.echo(json.dumps({"rows": rows, "sizes": sizes, **surroundings}, indent=1))
        return
    click.echo(f"{'':<10}{'early':>10}{'late':>10}{'ratio':>8}")
    for name, row in rows.items():
        early, late = (f"{1e6 * row[key]:,.0f} us" for key in ("early_s", "late_s"))
        click.echo(f"{name:<10}{early:>10}{late:>10}{row['ratio']:>8.2f}")


if __name__ == "__main__":
    main()
