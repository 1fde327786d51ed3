"""Tests of ``telemetry/attempts.py``."""

import pytest

from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.goodput import goodput


def test_two_attempts():
    first = Attempt(1, start=100, end=200, world_size=4)
    first.buckets = {"productive": 60.0, "start_up": 30.0, "queue_wait": 100.0}
    second = Attempt(2, start=300, end=400, world_size=2)
    second.buckets = {"productive": 70.0, "replayed": 10.0, "data_wait": 20.0, "queue_wait": 100.0}
    total = goodput([first, second])
    assert total.wall_s == 400
    assert total.with_queue == pytest.approx(130 / 400)
    assert total.without_queue == pytest.approx(130 / 200)
    assert total.seconds["unaccounted"] == pytest.approx(10)
    assert total.seconds["queue_wait"] == 200
    assert total.gpu_hours["productive"] == pytest.approx((60 * 4 + 70 * 2) / 3600)
    assert "queue_wait" not in total.gpu_hours
    assert sum(total.gpu_hours.values()) == pytest.approx((100 * 4 + 100 * 2) / 3600)
