"""GPU-hours of runs, split by what they went into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.event_kinds import RUNNING_CAUSE, UNKNOWN_CAUSE
from mgpt4_hpc.telemetry.goodput import UNACCOUNTED, Goodput, goodput
from mgpt4_hpc.telemetry.heartbeat import Beat, read_heartbeat
from mgpt4_hpc.telemetry.ledger import read_ledgers
from mgpt4_hpc.telemetry.time_buckets import (
    CHECKPOINT_STALL,
    DATA_WAIT,
    PRODUCTIVE,
    QUEUE_WAIT,
    REPLAYED,
    START_UP,
    SUSPENDED,
    VALIDATION,
    WEIGHTS_LOADING,
    WIND_DOWN,
)

USEFUL: Final = "useful"

PURPOSES: Final = {
    USEFUL: (PRODUCTIVE,),
    "replayed": (REPLAYED,),
    "start_up": (START_UP, WEIGHTS_LOADING),
    "saving": (CHECKPOINT_STALL,),
    "waiting": (DATA_WAIT,),
    "validation": (VALIDATION,),
    "wind_down": (WIND_DOWN,),
    UNACCOUNTED: (UNACCOUNTED,),
}
"""What GPU-hours are split into, and the buckets of the ledger that each is made of.
"""


@dataclass(frozen=True)
class Usage:
    """What one run, or several together, used.

    Attributes:
        name: of the run.
        path: its directory; empty for a total.
        num_attempts: starts of its job.
        num_killed: attempts that ended without a word of their own; their time is counted up to
            their last sign of life.
        running: whether an attempt has not ended: its time is counted up to its last sign too.
        gpu_hours: per purpose of `PURPOSES`; their sum is `total_gpu_hours`.
        queue_wait_h: hours in the queue, which hold no GPU.
        suspended_h: hours in which Slurm had suspended the job.
        since_start_h: hours from the submission (the first start, where that is not known) to
            the last sign of life; of several runs the sum.
        goodput: share of the time holding GPUs that went into new steps, 0 to 1.
        goodput_with_queue: the same of `since_start_h`.
        on_cpus: whether it had no GPU at all: then the hours are those of its processes.
    """

    name: str
    path: str = ""
    num_attempts: int = 0
    num_killed: int = 0
    running: bool = False
    gpu_hours: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PURPOSES, 0.0))
    queue_wait_h: float = 0.0
    suspended_h: float = 0.0
    since_start_h: float = 0.0
    goodput: float = 0.0
    goodput_with_queue: float = 0.0
    on_cpus: bool = False

    @property
    def total_gpu_hours(self) -> float:
        """All GPU-hours, whatever they went into."""
        return sum(self.gpu_hours.values())


def read_usage(runs: Sequence[RunDir]) -> tuple[list[Usage], Usage]:
    """The usage of each run, and of all together, from their ledgers and heartbeats."""
    usages: list[Usage] = []
    every: list[Attempt] = []
    for run in runs:
        attempts = seen_until(read_ledgers(run.ledger), read_heartbeat(run.heartbeat))
        usages.append(usage(run.name, attempts, path=str(run.path)))
        every += attempts
    return usages, usage("total", every)


def seen_until(attempts: list[Attempt], beat: Beat | None) -> list[Attempt]:
    """The attempts, the newest one going on until its last heartbeat if that is all it left."""
    if not attempts or beat is None:
        return attempts
    newest = attempts[-1]
    if newest.ended or newest.number != beat.attempt or beat.time <= newest.end:
        return attempts
    return [*attempts[:-1], replace(newest, end=beat.time)]


def usage(name: str, attempts: Iterable[Attempt], *, path: str = "") -> Usage:
    """Sum up attempts, of one run or of several."""
    attempts = list(attempts)
    total = goodput(attempts)
    return Usage(
        name=name,
        path=path,
        num_attempts=len(attempts),
        num_killed=sum(_was_killed(attempt) for attempt in attempts),
        running=any(attempt.cause == RUNNING_CAUSE for attempt in attempts),
        gpu_hours=_by_purpose(total),
        queue_wait_h=total.seconds[QUEUE_WAIT] / 3600,
        suspended_h=total.seconds[SUSPENDED] / 3600,
        since_start_h=total.wall_s / 3600,
        goodput=total.without_queue,
        goodput_with_queue=total.with_queue,
        on_cpus=total.on_cpus,
    )


def _was_killed(attempt: Attempt) -> bool:
    return attempt.cause == UNKNOWN_CAUSE or (attempt.ended and not attempt.ended_itself)


def _by_purpose(total: Goodput) -> dict[str, float]:
    hours = dict.fromkeys(PURPOSES, 0.0)
    purpose_of = {bucket: purpose for purpose, held in PURPOSES.items() for bucket in held}
    for bucket, value in total.gpu_hours.items():
        # A bucket of a newer version must not fall out of the sum.
        hours[purpose_of.get(bucket, UNACCOUNTED)] += value
    return hours
