"""Tests of ``evaluation/bootstrap.py``."""

from __future__ import annotations

import numpy as np
import pytest

from mgpt4_hpc.evaluation.bootstrap import interval


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = interval(values)
    # The normal approximation of the same interval.
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
    assert interval(values) == (low, high)
    assert interval([1.0, 1.0]) == (1.0, 1.0)
    with pytest.raises(ValueError):
        interval([])
