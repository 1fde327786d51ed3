"""Clocks: steps in blocks, the parts of a step, and how fast the machine multiplies matrices."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mgpt4_hpc.model.nn.language import trunk
from mgpt4_hpc.train.step import TrainStep

_PEAK_SIDE = {"cuda": 8192, "cpu": 1024}
"""Matrices this large reach a machine's best rate, and no larger ones do better."""

GIB = 2**30


def settle(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Timings:
    """Steps of one kind.

    Attributes:
        step_s: each step by itself.
        cpu_s: processor time of each step over all threads: where other processes take the cores
            away, it is steadier than a clock; with one thread, waiting is not in it.
        blocks: (seconds, samples) of each block, with everything in it, as reading the loss.
        peak_bytes: most memory allocated in any block; 0 on a CPU.
    """

    step_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    blocks: list[tuple[float, int]] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def samples_per_s(self) -> float:
        """Over all blocks."""
        return sum(n for _, n in self.blocks) / sum(s for s, _ in self.blocks)

    @property
    def step_s_median(self) -> float:
        return statistics.median(self.step_s)

    @property
    def step_s_p95(self) -> float:
        ordered = sorted(self.step_s)
        return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def run_block(
    timings: Timings, steps: Sequence[Callable[[], Any]], batch_size: int, device: torch.device
) -> None:
    """Time ``steps`` one after the other, without waiting for the device between them."""
    settle(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    marks = [_Mark(device)]
    started = time.perf_counter()
    for step in steps:
        step()
        marks.append(_Mark(device))
    settle(device)
    timings.blocks.append((time.perf_counter() - started, batch_size * len(steps)))
    timings.step_s += [b.since(a) for a, b in pairwise(marks)]
    timings.cpu_s += [b.cpu_s - a.cpu_s for a, b in pairwise(marks)]
    if device.type == "cuda":
        timings.peak_bytes = max(timings.peak_bytes, torch.cuda.max_memory_allocated(device))


class _Mark:
    """A point in the device's time."""

    def __init__(self, device: torch.device) -> None:
        self.event = None
        self.at = time.perf_counter()
        self.cpu_s = time.process_time()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, earlier: _Mark) -> float:
        if self.event is None or earlier.event is None:
            return self.at - earlier.at
        return float(earlier.event.elapsed_time(self.event)) / 1000.0


class PartClock:
    """Seconds of the parts of a step, by waiting for the device between them.

    The parts together take a little longer than an unwatched step. ``loss_and_backward`` holds
    the logits too: their gradient is made together with them.
    """

    PARTS = ("vision", "qformer", "llm_forward", "loss_and_backward", "optimizer")

    def __init__(self, step: TrainStep) -> None:
        self.step = step
        self.device = step.device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._last = 0.0

    def medians(self) -> dict[str, float]:
        return {part: statistics.median(self.seconds[part]) for part in self.seconds}

    @contextmanager
    def watching(self) -> Iterator[None]:
        model = self.step.model
        handles = []
        for part, module in (
            ("vision", model.vision),
            ("qformer", model.connector),
            ("llm_forward", trunk(model.language_model)),
        ):
            handles += self._watch(part, module)
        update = self.step._update

        def watched_update() -> torch.Tensor:
            self._note("loss_and_backward")
            grad_norm = update()
            self._note("optimizer")
            return grad_norm

        self.step._update = watched_update  # type: ignore[method-assign]
        try:
            yield
        finally:
            self.step._update = update  # type: ignore[method-assign]
            for handle in handles:
                handle.remove()

    def _watch(self, part: str, module: nn.Module) -> list[Any]:
        return [
            module.register_forward_pre_hook(lambda *_: self._note("assembly")),
            module.register_forward_hook(lambda *_: self._note(part)),
        ]

    def restart(self) -> None:
        settle(self.device)
        self._last = time.perf_counter()

    def _note(self, part: str) -> None:
        settle(self.device)
        now = time.perf_counter()
        self.seconds[part].append(now - self._last)
        self._last = now


def matrix_peak(device: torch.device, dtype: torch.dtype, repeats: int = 20) -> float:
    """Operations per second of one large matrix product on random data: the best of several."""
    side = _PEAK_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    best = float("inf")
    for _ in range(3):
        torch.mm(a, b, out=out)
    for _ in range(repeats):
        before = _Mark(device)
        torch.mm(a, b, out=out)
        after = _Mark(device)
        settle(device)
        best = min(best, after.since(before))
    return 2.0 * side**3 / best
