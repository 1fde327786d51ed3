"""Our step and the baseline's in turns, and everything that is reported about them."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.around import around_steps
from bench.baseline import ReferenceStep, Samples, as_the_original, to_samples
from bench.hardware import machine_name
from bench.measure import GIB, PartClock, Timings, matrix_peak, run_block
from bench.subject import Settings, Subject, build_subject, open_device
from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.distributed import Ranks, end_group, start_group
from mgpt4_hpc.model.estimates.flops import StepFlops, step_flops
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.performance.compile import compile_layers
from mgpt4_hpc.model.nn.performance.packing import pack
from mgpt4_hpc.model.nn.precision import compute_dtype
from mgpt4_hpc.model.nn.preprocess import normalise
from mgpt4_hpc.train.ddp import wrap_projector
from mgpt4_hpc.train.optimizer import build_optimizer
from mgpt4_hpc.train.schedule import WarmupCosine
from mgpt4_hpc.train.step import StepOptions, TrainStep

_DISTINCT_BATCHES = 8
"""Synthetic batches that are made; the steps go round them."""

_PART_STEPS = 3


@dataclass
class _Ours:
    """Our step as the loop calls it: token counts are summed over the ranks before each."""

    step: TrainStep
    ranks: Ranks
    number: int = 0

    def __call__(self, micro_batches: Sequence[Batch], *, read_loss: bool = False) -> None:
        tokens = sum(batch.num_answer_tokens for batch in micro_batches)
        (global_tokens,) = self.ranks.sum_on_cpu([tokens])
        result = self.step(micro_batches, self.number, int(global_tokens))
        self.number += 1
        if read_loss:
            result.loss_sum.item()


def race(settings: Settings) -> dict[str, Any]:
    """Measure, and say everything about it.

    Raises:
        click.ClickException: without the device asked for.
        MgptError: if the config's weights or shards cannot be used.
    """
    ranks = Ranks.from_environment(os.environ)
    device = open_device(settings, ranks)
    _set_up(settings, ranks)
    start_group(ranks, device)
    subject = build_subject(settings, ranks, device)
    started = time.perf_counter()
    try:
        if settings.compiled:
            compile_layers(subject.model)
        subject.model.replay_towers(settings.cuda_graphs)
        steps = list(islice(subject.batches, _DISTINCT_BATCHES))
        ours_steps = steps
        if settings.cached_features:
            ours_steps = _cache_features(subject.model, steps)
        ours = _Ours(_train_step(settings, subject, ranks, device), ranks)
        for index in range(settings.warmup):
            ours(ours_steps[index % len(steps)], read_loss=True)
        warmup_s = time.perf_counter() - started
        turns = _Race(steps, ours_steps, settings, device)
        timings, baseline = turns.run(subject, ours)
        report = _report(settings, subject, ranks, device, ours_steps, timings, baseline)
        report["warmup_s"] = warmup_s
        endless = subject.batches if _reads_shards(settings) else cycle(ours_steps)
        around = around_steps(subject.model, ours.step, endless, subject.train, ranks)
        report["parts_s"] = _parts(ours, ours_steps) | around
        if not settings.compiled:
            expected = mean_flops(settings, subject, steps[:1]).executed
            report["flops_counted_over_expected"] = _counted_flops(ours, ours_steps[0]) / expected
        return report | _surroundings(device)
    finally:
        subject.close()
        end_group()


def _set_up(settings: Settings, ranks: Ranks) -> None:
    """As a run would have it."""
    cores = len(os.sched_getaffinity(0)) // ranks.local_world_size
    torch.set_num_threads(settings.threads or max(1, cores))
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _train_step(
    settings: Settings, subject: Subject, ranks: Ranks, device: torch.device
) -> TrainStep:
    projector = wrap_projector(subject.model.llama_proj, device, ranks.world_size)
    return TrainStep(
        subject.model,
        projector,
        build_optimizer(subject.model.llama_proj, subject.train),
        WarmupCosine.from_config(subject.train),
        StepOptions(world_size=ranks.world_size, fp16=settings.precision == "fp16"),
        device=device,
    )


def _reads_shards(settings: Settings) -> bool:
    """Whether the batches come from data workers."""
    return settings.config_path is not None and not settings.synthetic


def _cache_features(model: MiniGPT4, steps: Sequence[Sequence[Batch]]) -> list[list[Batch]]:
    """Put features where the towers were; returns the batches without their pixels.

    They are handed out in turn, whatever is asked for: only the time they save matters here.
    """
    features = [
        model.encode_images(normalise(batch.images_NCHW, model.device))
        for batches in steps
        for batch in batches
    ]
    turns = cycle(features)
    model.encode_images = lambda pixels_NCHW: next(turns)  # type: ignore[method-assign]
    return [
        [replace(batch, images_NCHW=batch.images_NCHW[..., :1, :1]) for batch in batches]
        for batches in steps
    ]


@dataclass
class _Race:
    """Blocks of our steps and of the baseline's in turns, over the same batches."""

    steps: Sequence[Sequence[Batch]]
    ours_steps: Sequence[Sequence[Batch]]
    settings: Settings
    device: torch.device

    def run(self, subject: Subject, ours: _Ours) -> tuple[Timings, Timings | None]:
        """Timings of ours, and of the baseline if one was asked for."""
        timings = Timings()
        if self.settings.baseline is None:
            for turn in range(self.settings.rounds):
                self._block(timings, self._ours(ours, turn))
            return timings, None
        half = self.device.type == "cuda"
        samples = [[to_samples(batch, pin=half) for batch in batches] for batches in self.steps]
        reference = ReferenceStep(subject.model, subject.train, half=half)
        baseline = Timings()
        for turn in range(self.settings.rounds):
            ours(self.ours_steps[0])  # the towers' graph is recorded anew after the baseline
            self._block(timings, self._ours(ours, turn))
            with as_the_original(subject.model, half=half):
                theirs = [partial(_each, reference, samples[i]) for i in self._order(turn)]
                if turn == 0:
                    for step in theirs[: self.settings.warmup]:
                        step()
                self._block(baseline, theirs)
        return timings, baseline

    def _order(self, turn: int) -> list[int]:
        first = turn * self.settings.steps
        return [number % len(self.steps) for number in range(first, first + self.settings.steps)]

    def _ours(self, ours: _Ours, turn: int) -> list[Callable[[], None]]:
        order = self._order(turn)
        block = [partial(ours, self.ours_steps[i]) for i in order]
        block[-1] = partial(ours, self.ours_steps[order[-1]], read_loss=True)
        return list(block)

    def _block(self, timings: Timings, block: Sequence[Callable[[], None]]) -> None:
        run_block(timings, block, sum(len(batch) for batch in self.steps[0]), self.device)


def _each(reference: ReferenceStep, parts: Sequence[Samples]) -> None:
    for samples in parts:
        reference(samples)


def _report(
    settings: Settings,
    subject: Subject,
    ranks: Ranks,
    device: torch.device,
    steps: Sequence[Sequence[Batch]],
    timings: Timings,
    baseline: Timings | None,
) -> dict[str, Any]:
    flops = mean_flops(settings, subject, steps)
    peak = matrix_peak(device, compute_dtype(settings.precision))
    median = timings.step_s_median
    tokens = sum(b.num_answer_tokens for batches in steps for b in batches) / len(steps)
    report: dict[str, Any] = {
        "shape": settings.shape or str(settings.config_path),
        "stage": subject.stage,
        "batch_size": sum(len(batch) for batch in steps[0]),
        "precision": settings.precision,
        "attention": settings.attention,
        "compile": settings.compiled,
        "cuda_graphs": settings.cuda_graphs and device.type == "cuda",
        "activation_checkpointing": settings.activation_checkpointing,
        "cached_features": settings.cached_features,
        "deterministic": settings.deterministic,
        "world_size": ranks.world_size,
        "samples_per_s": timings.samples_per_s * ranks.world_size,
        "answer_tokens_per_s": tokens / median * ranks.world_size,
        "step_s_median": median,
        "step_s_p95": timings.step_s_p95,
        "flops_per_step": flops.executed,
        "flop_efficiency": flops.needed / flops.executed,
        "matrix_peak_flops": peak,
        "mfu": flops.needed / median / peak,
        "peak_memory_gib": timings.peak_bytes / GIB,
    }
    if baseline is not None:
        report |= {
            "baseline_samples_per_s": baseline.samples_per_s * ranks.world_size,
            "baseline_step_s_median": baseline.step_s_median,
            "baseline_peak_memory_gib": baseline.peak_bytes / GIB,
            "ratio_to_baseline": baseline.step_s_median / median,
        }
        if device.type == "cpu":
            ours_cpu_s, theirs_cpu_s = (
                statistics.median(timings.cpu_s),
                statistics.median(baseline.cpu_s),
            )
            report |= {
                "cpu_s_median": ours_cpu_s,
                "baseline_cpu_s_median": theirs_cpu_s,
                "cpu_ratio_to_baseline": theirs_cpu_s / ours_cpu_s,
            }
    return report


def _surroundings(device: torch.device) -> dict[str, Any]:
    return {
        "machine": machine_name(device.type),
        "load_1min": round(os.getloadavg()[0], 2),
        "date": date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "timm")},
        },
    }


def mean_flops(settings: Settings, subject: Subject, steps: Sequence[Sequence[Batch]]) -> StepFlops:
    """Of one step, averaged over the batches."""
    counts = []
    for batches in steps:
        lengths: list[int] = []
        predicted = 0
        for batch in batches:
            packed = pack(batch.input_ids_BT, batch.image_mask_BT, batch.labels_BT)
            lengths += packed.lengths()
            predicted += len(packed.predicts_A)
        counts.append(
            step_flops(
                subject.model.architecture,
                subject.llm,
                num_images=0 if settings.cached_features else sum(len(b) for b in batches),
                lengths=lengths,
                num_predicted=predicted,
                recomputed_part=settings.activation_checkpointing,
            )
        )
    mean = {
        name: sum(getattr(count, name) for count in counts) / len(counts)
        for name in StepFlops.__dataclass_fields__
    }
    return StepFlops(**mean)


def _counted_flops(ours: _Ours, batches: Sequence[Batch]) -> float:
    """What torch's own counter sees in one step; it does not know every attention kernel."""
    counter = FlopCounterMode(display=False)
    with counter:
        ours(batches)
    return float(counter.get_total_flops())


def _parts(ours: _Ours, steps: Sequence[Sequence[Batch]]) -> dict[str, float]:
    """Without CUDA graphs, inside which no clock can be read."""
    ours.step.model.replay_towers(False)
    clock = PartClock(ours.step)
    for batches in islice(steps, _PART_STEPS):
        with clock.watching():
            clock.restart()
            ours(batches)
    return clock.medians()
