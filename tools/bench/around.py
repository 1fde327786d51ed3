"""What a run does around its steps: waiting for data, reducing, logging, saving.

Measured with the package's own loop, recorder and saver, in a run directory that is thrown away.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.schema import TrainConfig
from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter
from mgpt4_hpc.telemetry.time_buckets import CHECKPOINT_STALL, DATA_WAIT, Buckets
from mgpt4_hpc.train.checkpoint_state import snapshot
from mgpt4_hpc.train.loop import Loop, train
from mgpt4_hpc.train.recorder import FirstRankRecorder, Recorder
from mgpt4_hpc.train.saving import FirstRankSaving, SavePolicy, Saving
from mgpt4_hpc.train.state import TrainState
from mgpt4_hpc.train.step import TrainStep
from mgpt4_hpc.train.stopping.stop import NeverStop
from mgpt4_hpc.train.stopping.stop_schedule import Pacing

STEPS = 20
_REDUCTIONS = 10


def around_steps(
    model: MiniGPT4,
    step: TrainStep,
    batches: Iterator[Sequence[Batch]],
    config: TrainConfig,
    ranks: Ranks,
) -> dict[str, float]:
    """Seconds per step, on average over ``STEPS`` steps of the loop, seen from this rank.

    ``data_wait`` is next to nothing where the batches come ready. ``logging`` is shared by the
    ``log_every_steps`` that it is done for, ``checkpoint_stall`` by the steps of
    ``save_every_s``: the stall itself is measured twice in the loop.
    """
    with tempfile.TemporaryDirectory(prefix="bench-around-") as folder:
        run = RunDir(Path(folder))
        recorder = _TimedRecorder(run) if ranks.is_first else Recorder()
        buckets = Buckets()
        saver = AsyncSaver(CheckpointStore(run.checkpoints, keep_last=1))
        saving = Saving()
        if ranks.is_first:
            saving = FirstRankSaving(
                saver,
                lambda: snapshot(model, step),
                lambda state: {"samples_seen": state.samples_seen},
                recorder,
                policy=SavePolicy(config.save_every_s),
                restored_step=None,
            )
        loop = Loop(
            state=TrainState(),
            config=config.model_copy(update={"max_steps": STEPS, "log_every_steps": STEPS // 2}),
            batches=batches,
            step=step,
            ranks=ranks,
            stop=NeverStop(),
            pacing=Pacing(recorder),
            saving=saving,
            recorder=recorder,
            buckets=buckets,
        )
        started = time.perf_counter()
        train(loop)
        waited_s = buckets.seconds.get(CHECKPOINT_STALL, 0.0)  # for the last save to be durable
        step_s = (time.perf_counter() - started - waited_s) / STEPS
        saver.close()
        recorder.close()
    seconds = {
        "data_wait": buckets.seconds.get(DATA_WAIT, 0.0) / STEPS,
        "all_reduce": _reduction_s(step, ranks),
        "checkpoint_stall": (saver.last_stall_s or 0.0) * step_s / config.save_every_s,
    }
    if isinstance(recorder, _TimedRecorder):
        seconds["logging"] = statistics.median(recorder.seconds) / config.log_every_steps
    return seconds


class _TimedRecorder(FirstRankRecorder):
    """The recorder of rank 0, quiet on stdout, with a clock around each report."""

    def __init__(self, run: RunDir) -> None:
        super().__init__(run, 1)
        self.curves = TensorBoardWriter(run.tensorboard, purge_step=None)
        self.seconds: list[float] = []

    def say(self, text: str) -> None:
        """Print nothing: stdout belongs to the figures."""

    def logged(
        self, step: int, values: Mapping[str, float], buckets: Mapping[str, float], line: str
    ) -> None:
        """As the recorder does it, timed."""
        started = time.perf_counter()
        super().logged(step, values, buckets, line)
        self.seconds.append(time.perf_counter() - started)


def _reduction_s(step: TrainStep, ranks: Ranks) -> float:
    """The agreement before a step and the reduction of its gradient, by themselves."""
    if ranks.world_size == 1:
        return 0.0
    size = sum(p.numel() for p in step.projector.parameters())
    gradient = torch.zeros(size, device=step.device)
    seconds = []
    for _ in range(_REDUCTIONS):
        ranks.barrier()
        started = time.perf_counter()
        ranks.sum_on_cpu([0.0, 1.0])
        dist.all_reduce(gradient)
        if gradient.is_cuda:
            torch.cuda.synchronize(step.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
