"""The guard against slower steps: counts, which no busy machine can change.

FLOPs per step are held against torch's counter in tests/unit/tools/test_bench_train.py; waiting for
a GPU in tests/gpu.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from bench.subject import Settings, build_subject
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.nn import attention, loss
from mgpt4_hpc.train.ddp import wrap_projector
from mgpt4_hpc.train.optimizer import build_optimizer
from mgpt4_hpc.train.schedule import WarmupCosine
from mgpt4_hpc.train.step import StepOptions, TrainStep

CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


def step_of(
    stage: int, batch_size: int, *, world_size: int = 1, **settings: Any
) -> tuple[TrainStep, list[Any]]:
    """A step of the tiny model and its micro-batches."""
    chosen = Settings(shape="tiny", stage=stage, batch_size=batch_size, **settings)
    subject = build_subject(chosen, Ranks(), CPU)
    projector = wrap_projector(subject.model.llama_proj, CPU, world_size)
    step = TrainStep(
        subject.model,
        projector,
        build_optimizer(subject.model.llama_proj, subject.train),
        WarmupCosine.from_config(subject.train),
        StepOptions(world_size=world_size),
        device=CPU,
    )
    batches = next(subject.batches)
    tokens = sum(batch.num_answer_tokens for batch in batches)
    step(batches, 0, tokens)  # AdamW makes its state at its first step
    return step, batches


def run(step: TrainStep, batches: list[Any]) -> None:
    step(batches, 1, sum(batch.num_answer_tokens for batch in batches))


@pytest.mark.parametrize("stage", [1, 2])
def test_no_operation_is_done_once_per_sample(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.CHUNK_TOKENS, "cpu", 100_000)  # its loop is over tokens
    # A CPU attends to one sequence after the other; a GPU's kernel takes all of them at once.
    monkeypatch.setattr(attention, "_each_sequence", lambda query, key, value, *rest: value)
    counts = []
    for batch_size in (4, 16):
        step, batches = step_of(stage, batch_size)
        with Operations() as operations:
            run(step, batches)
        counts.append(operations.counts)
    assert counts[0] == counts[1] and counts[0].total() > 100


@pytest.mark.parametrize("stage", [1, 2])
def test_values_are_read_from_the_batch_alone(stage: int) -> None:
    """Its longest row, while it is still on the CPU; every other reading would wait for a GPU."""
    step, batches = step_of(stage, 4)
    with Operations() as operations:
        run(step, batches)
    assert operations.counts["aten::_local_scalar_dense"] <= 2
    assert operations.counts["aten::item"] == 0


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one, with which DDP does everything that it does with others."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Sent(TorchDispatchMode):
    """Bytes handed to each collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name
        if name.startswith("c10d::"):
            self.bytes[name] += sum(t.numel() * t.element_size() for t in args[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("group")
def test_ranks_reduce_the_projectors_gradient_and_nothing_else() -> None:
    step, batches = step_of(1, 4, world_size=2)
    with Sent() as sent:
        run(step, batches)
    projector = step.model.llama_proj
    assert sent.bytes == {"c10d::allreduce_": 4 * sum(p.numel() for p in projector.parameters())}


def peak_bytes(step: TrainStep, batches: list[Any]) -> int:
    """Most memory that a step held beyond what it found, as torch's profiler sees it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(step, batches)
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(accumulate(changes))


@pytest.mark.slow
@pytest.mark.parametrize(("recomputed", "mb"), [(0.0, 28.2), (1.0, 18.0)])
def test_memory_at_the_peak(recomputed: float, mb: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured with torch 2.14; logits of all answers at once would add 12 MB."""
    monkeypatch.setattr(attention, "_PLAIN_TOKENS", 0)  # as on a GPU, which keeps no weights
    step, batches = step_of(2, 32, activation_checkpointing=recomputed)
    assert peak_bytes(step, batches) / 1e6 == pytest.approx(mb, rel=0.1)
