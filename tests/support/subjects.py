"""A benchmark's subject in miniature, with batches."""

from __future__ import annotations

from typing import Any

import torch
from bench.subject import Settings, build_subject

from mgpt4_hpc.distributed import Ranks


def tiny(shape: str, stage: int, **options: Any) -> tuple[Any, list[Any]]:
    """A subject on the CPU and two of its batches."""
    settings = Settings(shape=shape, stage=stage, **options)
    subject = build_subject(settings, Ranks(), torch.device("cpu"))
    return subject, [next(subject.batches)[0] for _ in range(2)]
