import pytest

from mgpt4_hpc.telemetry.awake_clock import AwakeClock
from mgpt4_hpc.telemetry.time_buckets import Buckets, Stopwatch, Throughput
from tests.unit.telemetry.clock import Clock


@pytest.fixture
def clock():
    return Clock()


def test_buckets_are_exclusive_and_add_up(clock):
    buckets = Buckets(AwakeClock(clock, clock.worked))
    clock.now += 1
    with buckets.time("productive"):
        clock.now += 2
        with buckets.time("data_wait"):
            clock.now += 3
        clock.now += 4
        assert buckets.seconds == {"productive": 6, "data_wait": 3}
    with buckets.time("data_wait"):
        clock.now += 5
    assert buckets.seconds == {"productive": 6, "data_wait": 8}
    assert buckets.elapsed_s == 15


def test_an_exception_closes_the_bucket(clock):
    buckets = Buckets(AwakeClock(clock, clock.worked))
    with pytest.raises(ZeroDivisionError), buckets.time("validation"):
        clock.now += 1
        raise ZeroDivisionError
    clock.now += 1
    assert buckets.seconds == {"validation": 1}


def test_time_before_the_start_can_be_added(clock):
    buckets = Buckets(AwakeClock(clock, clock.worked))
    buckets.add("start_up", 7)
    assert (buckets.seconds, buckets.elapsed_s) == ({"start_up": 7}, 7)


def test_laps(clock):
    watch = Stopwatch(clock)
    clock.now += 2
    assert watch.lap() == 2
    assert watch.lap() == 0


def test_throughput_is_a_ratio_of_sums_over_the_window():
    meter = Throughput(window=3)
    assert meter.samples_per_s == meter.median_step_s == 0
    for samples, seconds in [(999, 1), (10, 1), (10, 1), (10, 8)]:
        meter.add(samples, seconds)
    assert meter.samples_per_s == 3
    assert meter.median_step_s == 1
