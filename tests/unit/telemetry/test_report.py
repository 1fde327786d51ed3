"""Tests of ``telemetry/report.py``."""

from __future__ import annotations

from mgpt4_hpc.telemetry.report import _smoothed


def test_the_moving_mean_is_one() -> None:
    points = [(step, float(step % 2)) for step in range(100)]
    smooth = _smoothed(points)
    assert smooth[0] == (0, 0.0)
    assert all(abs(value - 0.5) < 0.15 for _, value in smooth[10:])
