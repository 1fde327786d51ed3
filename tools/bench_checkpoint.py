#!/usr/bin/env python3
"""What a checkpoint costs: how long the loop stands still, how long until the disk has it.

    python tools/bench_checkpoint.py                       # a table
    python tools/bench_checkpoint.py --json
    python tools/bench_checkpoint.py --folder /scratch/me  # the filesystem that matters

For each projector it saves the weights and AdamW's two moments in float32, `--repeats` times, with
nothing else running. Per size the medians of:

* `copy_s`: copying the same bytes into memory that is already there (from a GPU: into pinned
  memory), measured between the saves of the same run;
* `stall_s`: what `AsyncSaver.save` holds the loop up; on a GPU until the copy is done, though the
  loop needs not wait for that;
* `durable_s`: from the call until the checkpoint survives a power cut;
* `stall_over_copy`: `stall_s / copy_s`;
* `overhead_fraction`: `stall_s / --save-every-s`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mgpt4_hpc.checkpoint.saver import AsyncSaver  # noqa: E402
from mgpt4_hpc.checkpoint.store import CheckpointStore  # noqa: E402

SIZES = {"7B": (768, 4096), "13B": (768, 5120), "Llama-2": (5632, 4096)}
"""Projector inputs and outputs, by language model."""

Files = dict[str, dict[str, torch.Tensor]]


def training_state(inputs: int, outputs: int, device: str) -> Files:
    """What a checkpoint holds: the projector and both moments of each of its parameters."""
    shapes = {"weight": (outputs, inputs), "bias": (outputs,)}
    moments = ("exp_avg", "exp_avg_sq")
    return {
        "projector": {name: torch.randn(shape, device=device) for name, shape in shapes.items()},
        "optimizer": {
            f"{moment}.{name}": torch.randn(shape, device=device)
            for moment in moments
            for name, shape in shapes.items()
        },
    }


class PlainCopy:
    """The yardstick: one copy of the same tensors into memory that has been touched before."""

    def __init__(self, files: Files) -> None:
        self.sources = [tensor for tensors in files.values() for tensor in tensors.values()]
        self.targets = [
            torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda).zero_()
            for source in self.sources
        ]

    def seconds(self) -> float:
        started = time.perf_counter()
        for target, source in zip(self.targets, self.sources, strict=True):
            target.copy_(source, non_blocking=source.is_cuda)
        settle(self.sources[0].device)
        return time.perf_counter() - started


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(size: str, device: str, folder: Path, repeats: int) -> dict[str, Any]:
    files = training_state(*SIZES[size], device)
    copy = PlainCopy(files)
    saver = AsyncSaver(CheckpointStore(folder / size, keep_last=1))
    copies, stalls, durables = [], [], []
    for step in range(1, repeats + 2):
        # In turns before and after the save: whichever comes second finds the caches warmer.
        copied_s = copy.seconds() if step % 2 else 0.0
        started = time.perf_counter()
        saver.save(step, files, {"samples_seen": step})
        settle(copy.sources[0].device)
        stalled_s = time.perf_counter() - started
        saver.wait()
        if saver.failures:
            raise click.ClickException(str(saver.failures[-1].error))
        copied_s = copied_s or copy.seconds()
        if step > 1:  # the first round warms up the folder and the thread
            copies.append(copied_s)
            stalls.append(stalled_s)
            durables.append(saver.last_save_s or 0.0)
    saver.close()
    return {
        "bytes": sum(source.numel() * source.element_size() for source in copy.sources),
        "copy_s": statistics.median(copies),
        "stall_s": statistics.median(stalls),
        "durable_s": statistics.median(durables),
    }


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--size", "sizes", multiple=True, type=click.Choice(list(SIZES)), help="Only these.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to save; default: TMPDIR.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--repeats", default=12, show_default=True, type=click.IntRange(1))
@click.option("--save-every-s", default=30.0, show_default=True, help="Interval for the overhead.")
def main(
    as_json: bool,
    sizes: tuple[str, ...],
    folder: Path | None,
    device: str,
    repeats: int,
    save_every_s: float,
) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="bench-checkpoint-", dir=folder))
    results = {}
    try:
        for size in sizes or SIZES:
            result = measure(size, device, scratch, repeats)
            result["stall_over_copy"] = result["stall_s"] / result["copy_s"]
            result["overhead_fraction"] = result["stall_s"] / save_every_s
            results[size] = {
                key: value if key == "bytes" else round(value, 6) for key, value in result.items()
            }
    finally:
        shutil.rmtree(scratch)
    if as_json:
        about = {
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
            "threads": torch.get_num_threads(),
            "save_every_s": save_every_s,
            "repeats": repeats,
        }
        click.echo(json.dumps({**about, "sizes": results}, indent=1))
        return
    click.echo(f"{'size':8} {'MB':>6} {'copy s':>8} {'stall s':>8} {'ratio':>6} {'durable s':>9} ")
    for size, row in results.items():
        click.echo(
            f"{size:8} {row['bytes'] / 1e6:6.0f} {row['copy_s']:8.4f} {row['stall_s']:8.4f} "
            f"{row['stall_over_copy']:6.2f} {row['durable_s']:9.3f} "
            f"{row['overhead_fraction']:.3%} of {save_every_s:g} s"
        )


if __name__ == "__main__":
    main()
