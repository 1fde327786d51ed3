"""What share of the time, and of the GPUs, went into training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.time_buckets import BADPUT, PRODUCTIVE, QUEUE_WAIT, WITHOUT_GPU

UNACCOUNTED = "unaccounted"
"""Seconds of an attempt that no bucket holds: after a kill, what passed since the last line."""


@dataclass(frozen=True)
class Goodput:
    """Time of a run, over all attempts.

    Attributes:
        seconds: per bucket, `productive` and `unaccounted` included.
        gpu_hours: the same times the GPUs used: none in the queue, none while suspended. On CPUs,
            times the processes.
        wall_s: seconds from the submission (or the first start, where it is not known) to the
            last thing known.
        with_queue: productive time / `wall_s`, 0 to 1.
        without_queue: productive time / (`wall_s` without what used no GPU), 0 to 1.
        on_cpus: whether it had no GPU at all.
    """

    seconds: dict[str, float]
    gpu_hours: dict[str, float]
    wall_s: float
    with_queue: float
    without_queue: float
    on_cpus: bool = False


def goodput(attempts: Iterable[Attempt]) -> Goodput:
    """Sum up the attempts of one run; all zeros where there is none."""
    attempts = list(attempts)
    seconds = dict.fromkeys((PRODUCTIVE, *BADPUT, UNACCOUNTED), 0.0)
    gpu_hours = {name: 0.0 for name in seconds if name not in WITHOUT_GPU}
    wall_s = 0.0
    for attempt in attempts:
        known = {name: value for name, value in attempt.buckets.items() if name != QUEUE_WAIT}
        known[UNACCOUNTED] = max(0.0, attempt.seconds - sum(known.values()))
        # The buckets' clock cannot be set back, the ledger's can: then the buckets are right.
        held_s = sum(known.values())
        for name, value in known.items():
            seconds[name] = seconds.get(name, 0.0) + value
            if name not in WITHOUT_GPU:
                hours = value * attempt.world_size / 3600
                gpu_hours[name] = gpu_hours.get(name, 0.0) + hours
        seconds[QUEUE_WAIT] += attempt.buckets.get(QUEUE_WAIT, 0.0)
        wall_s += held_s + attempt.buckets.get(QUEUE_WAIT, 0.0)
    productive = seconds[PRODUCTIVE]
    running_s = wall_s - sum(seconds[name] for name in WITHOUT_GPU)
    return Goodput(
        seconds=seconds,
        gpu_hours=gpu_hours,
        wall_s=wall_s,
        with_queue=productive / wall_s if wall_s > 0 else 0.0,
        without_queue=productive / running_s if running_s > 0 else 0.0,
        on_cpus=bool(attempts) and all(attempt.device == "cpu" for attempt in attempts),
    )
