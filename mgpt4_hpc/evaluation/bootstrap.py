"""How sure a mean, or the difference of two, is: percentile bootstrap over images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def interval(values: Sequence[float], *, seed: int = 42) -> tuple[float, float]:
    """95 % interval of the mean: from the means of samples drawn with replacement.

    For the difference of two models give the differences per image: they saw the same images, and
    what is hard about an image is then no noise.

    Raises:
        ValueError: if there are no values.
    """
    if not len(values):
        raise ValueError("no values")
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # In parts: all resamples of 5,000 images at once would be 80 MB.
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
