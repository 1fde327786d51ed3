"""A small feature cache and its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.feature_cache_file import (
    STORED,
    FeatureRow,
)

BINDING = {"bundle": "abc", "resize": "squash"}

SOURCES = {"a": "d1", "b": "d2"}


def rows(source: int, samples: range, dtype: str = "bf16") -> list[FeatureRow]:
    bits = STORED[dtype][1]
    return [
        FeatureRow(source, n, f"k{n}", f'caption "{n}" é', np.full((1, 2, 3), n + source, bits))
        for n in samples
    ]


def cache(folder: Path, dtype: str = "bf16") -> FeatureCache:
    return FeatureCache.create(folder, BINDING, SOURCES, dtype, (2, 3))
