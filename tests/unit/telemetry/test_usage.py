"""What GPU-hours went into. The parts always add up, however the attempts ended."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.attempts import Attempt, summarise
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.heartbeat import Beat
from mgpt4_hpc.telemetry.ledger import append_supervisor_note, read_ledgers
from mgpt4_hpc.telemetry.usage import PURPOSES, seen_until, usage
from tests.unit.telemetry.test_ledger import write


def start(at: float, world_size: int = 4, **more: object) -> dict[str, object]:
    return {"t": at, "kind": Kind.START, "world_size": world_size, "started_at": at, **more}


def steps(at: float, step: int, **buckets: float) -> dict[str, object]:
    return {"t": at, "kind": Kind.STEPS, "step": step, "buckets": buckets}


def end(at: float, step: int, cause: str = "finished") -> dict[str, object]:
    return {"t": at, "kind": Kind.END, "step": step, "cause": cause}


def attempts(*ledgers: list[dict[str, object]]) -> list[Attempt]:
    return summarise([(number, records, []) for number, records in enumerate(ledgers, 1)])


def hours(**seconds: float) -> dict[str, float]:
    """GPU-hours of four GPUs."""
    wanted = {purpose: seconds.get(purpose, 0.0) * 4 / 3600 for purpose in PURPOSES}
    return {purpose: pytest.approx(value) for purpose, value in wanted.items()}


def test_every_purpose_has_its_place() -> None:
    buckets = {"start_up": 5.0, "weights_loading": 15.0, "productive": 60.0, "data_wait": 4.0}
    buckets |= {"checkpoint_stall": 3.0, "validation": 7.0}
    first = [start(1000, submitted_at=900.0), steps(1094, 60, **buckets), end(1100, 60)]
    used = usage("one", attempts(first))
    assert used.gpu_hours == hours(
        start_up=20, useful=60, waiting=4, saving=3, validation=7, wind_down=6
    )
    assert used.total_gpu_hours == pytest.approx(100 * 4 / 3600)
    assert used.queue_wait_h == pytest.approx(100 / 3600)
    assert used.goodput == pytest.approx(0.6)
    assert used.goodput_with_queue == pytest.approx(0.3)
    assert used.num_killed == 0


def test_what_a_kill_cost_is_replayed_in_the_next_attempt() -> None:
    killed = [start(0), steps(50, 40, start_up=10, productive=40)]
    killed.append({"t": 60.0, "kind": Kind.SAVE_FAILED, "step": 49})
    again = [start(100), {"t": 101, "kind": Kind.RESTORE, "step": 20}]
    again += [steps(150, 60, start_up=10, productive=40), end(150, 60)]
    used = usage("one", attempts(killed, again))
    assert used.gpu_hours == hours(start_up=20, useful=60, replayed=20, unaccounted=10)
    assert used.num_killed == 1
    assert used.queue_wait_h == pytest.approx(40 / 3600)


def test_killed_before_its_first_step() -> None:
    """No line tells its seconds, and it is plain what they were."""
    used = usage("one", attempts([start(0), {"t": 70.0, "kind": Kind.SIGNAL}]))
    assert used.gpu_hours == hours(start_up=70)
    between = [start(0), {"t": 20.0, "kind": Kind.FIRST_STEP, "step": 1}]
    between.append({"t": 30.0, "kind": Kind.SAVE, "step": 4})
    assert usage("one", attempts(between)).gpu_hours == hours(start_up=20, unaccounted=10)


def test_a_crash_tells_its_seconds() -> None:
    fault = {"t": 40.0, "kind": Kind.FAULT, "buckets": {"start_up": 10.0, "data_wait": 30.0}}
    assert usage("one", attempts([start(0), fault])).gpu_hours == hours(start_up=10, waiting=30)


def test_the_last_sign_of_life_may_be_a_heartbeat_or_a_supervisor(tmp_path: Path) -> None:
    live = attempts([start(0), steps(50, 40, start_up=10, productive=40)])
    for number, expected in ((1, 90.0), (2, 50.0)):
        seen = seen_until(live, Beat(step=70, time=90.0, attempt=number))
        used = usage("one", seen)
        assert used.running
        assert used.total_gpu_hours == pytest.approx(expected * 4 / 3600)

    write(tmp_path, 1, (Kind.START, {"world_size": 4}), (Kind.STEPS, {"step": 1}), start=1000)
    append_supervisor_note(tmp_path, 1, cause="crashed", exit_code=137)
    (found,) = read_ledgers(tmp_path)
    used = usage("one", [found])
    assert (used.num_killed, used.running) == (1, False)
    assert used.total_gpu_hours == pytest.approx(found.seconds * 4 / 3600)
    assert found.seconds > 1000  # the note was written now, the ledger's clock stood at 1000


@pytest.mark.parametrize("seed", range(40))
def test_the_parts_add_up(seed: int) -> None:
    """Of any history: killed or not, replaying or not, with a foreign bucket, on any GPUs."""
    rng = random.Random(seed)
    at, reached, saved, held, waited = 1000.0, 0, 0, 0.0, 0.0
    ledgers = []
    for _ in range(rng.randint(1, 6)):
        began, world_size = at, rng.choice((1, 2, 8))
        lines = [start(at, world_size), {"t": at, "kind": Kind.RESTORE, "step": saved}]
        step, buckets = saved, {"start_up": rng.uniform(0, 30)}
        at += buckets["start_up"]
        for _ in range(rng.randint(0, 5)):
            step += rng.randint(1, 20)
            for name in ("productive", "data_wait", "checkpoint_stall", "of_the_future"):
                seconds = rng.uniform(0, 20)
                buckets[name] = buckets.get(name, 0.0) + seconds
                at += seconds
            at += rng.uniform(0, 0.1)  # between the buckets
            lines.append(steps(at, step, **buckets))
        if rng.random() < 0.6:
            at += rng.uniform(0, 10)
            lines.append(end(at, step, rng.choice(("preempted", "time limit"))))
            saved = step
        else:
            saved += rng.randint(0, step - saved)
        # Of a killed attempt nothing is known beyond its last line.
        last = max(float(line["t"]) for line in lines)
        held += (last - began) * world_size
        at = last + rng.uniform(0, 500)
        waited += at - last
        reached = max(reached, step)
        ledgers.append(lines)
    waited -= at - last
    found = attempts(*ledgers)
    used = usage("one", found)
    assert sum(used.gpu_hours.values()) == pytest.approx(held / 3600)
    assert all(value >= 0 for value in used.gpu_hours.values())
    assert used.queue_wait_h == pytest.approx(waited / 3600)
    assert sum(a.steps_done - a.steps_replayed for a in found) == reached
    assert 0 <= used.goodput_with_queue <= used.goodput <= 1

    # Parts of several runs are those of their attempts.
    twice = usage("total", found + found)
    for purpose in PURPOSES:
        assert twice.gpu_hours[purpose] == pytest.approx(2 * used.gpu_hours[purpose])
    assert twice.goodput == pytest.approx(used.goodput)


def test_a_clock_that_was_set_back_does_no_harm() -> None:
    used = usage("one", attempts([start(100), steps(60, 10, productive=50)]))
    assert used.total_gpu_hours == pytest.approx(50 * 4 / 3600)
    assert used.goodput == 1
