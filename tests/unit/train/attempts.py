"""One attempt of a run in this process, and the settings of runs for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train import run as run_module
from mgpt4_hpc.train.state import Outcome
from mgpt4_hpc.train.stopping.stop import NeverStop, StopRequest


class Stop(NeverStop):
    """Asked for at the n-th question; may do something at each."""

    def __init__(self, at: int = 10**9, then: Callable[[int], object] = lambda poll: None) -> None:
        self.polls, self.at, self.then = 0, at, then

    def poll(self) -> StopRequest | None:
        self.polls += 1
        self.then(self.polls)
        return StopRequest("SIGTERM", 0.0) if self.polls >= self.at else None


def attempt(run: RunDir, stop: Any, ends: list[Outcome] | None = None) -> Outcome:
    return run_module.run_training(
        run,
        Ranks(),
        stop,
        claim={"job_id": "1", "restart_count": 0},
        end=lambda outcome, recorder: (ends if ends is not None else []).append(outcome),
    )


def on_cuda(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"device": "cuda"})})
