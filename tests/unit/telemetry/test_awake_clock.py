"""Tests of ``telemetry/awake_clock.py``."""

import pytest

from mgpt4_hpc.telemetry.awake_clock import AwakeClock
from mgpt4_hpc.telemetry.time_buckets import Buckets
from tests.unit.telemetry.clock import Clock


@pytest.fixture
def clock():
    return Clock()


def test_time_suspended_is_in_no_other_bucket(clock):
    buckets = Buckets(AwakeClock(clock, clock.worked))
    with buckets.time("productive"):
        clock.now += 2
        buckets.seconds  # noqa: B018 - as the clock's own thread, which reads it all the time
        clock.now += 100
        clock.idle += 100
        assert buckets.seconds == {"productive": 2, "suspended": 100}
        clock.now += 50  # a library that keeps the lock, and works
        clock.now += 3  # shorter than what counts
        clock.idle += 3
    assert buckets.seconds == {"productive": 55, "suspended": 100}
    assert buckets.elapsed_s == 55
