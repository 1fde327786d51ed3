"""Steps go on as long as a save and a decision still fit before the end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.stopping import stop_schedule
from mgpt4_hpc.train.stopping.stop import StopRequest
from mgpt4_hpc.train.stopping.stop_schedule import Pacing, latest_stop


class Told(Recorder):
    def __init__(self) -> None:
        self.events: list[dict[str, object]] = []
        self.said: list[str] = []

    def event(self, kind: Kind, **fields: object) -> None:
        self.events.append({"kind": kind, **fields})

    def say(self, text: str) -> None:
        self.said.append(text)


def make() -> tuple[Pacing, Told, list[float]]:
    told, now = Told(), [1000.0]
    return Pacing(told, clock=lambda: now[0]), told, now


def test_without_a_deadline_it_is_at_once() -> None:
    pace, told, _ = make()
    assert pace.is_due(StopRequest("SIGTERM", 1000.0), save_s=1.0, step_s=1.0)
    assert told.events == [{"kind": Kind.SIGNAL, "name": "SIGTERM", "deadline": None}]
    assert told.said == ["SIGTERM: stopping at once, Slurm names no later end"]


def test_with_one_the_time_until_then_is_used() -> None:
    pace, told, now = make()
    request = StopRequest("SIGUSR2", 1000.0, deadline=1120.0)
    begun = 0
    while not pace.is_due(request, save_s=1.0, step_s=2.0):
        begun += 1
        now[0] += 2.0
    last_step_ended = now[0]
    assert begun > 40
    assert last_step_ended + 3.0 + stop_schedule.DECISION_S < 1120.0, "save and decision still fit"
    assert len(told.events) == len(told.said) == 1, "said once"


def test_a_deadline_that_comes_nearer_counts() -> None:
    pace, told, now = make()
    request = StopRequest("SIGUSR2", 1000.0, deadline=1120.0)
    assert not pace.is_due(request, save_s=1.0, step_s=1.0)
    now[0] += 10.0
    assert pace.is_due(replace(request, deadline=None), save_s=1.0, step_s=1.0)
    assert [event["deadline"] for event in told.events] == [1120.0, None]
    assert pace.is_due(replace(request, deadline=1015.0))
    assert told.said[-1].endswith("too near for another step") and "the end is at" in told.said[-1]


@pytest.mark.parametrize(
    ("slower", "faster"),
    [({"save_s": 4.0}, {"save_s": 0.5}), ({"step_s": 9.0}, {"step_s": 0.1})],
)
def test_slow_saves_and_long_steps_stop_earlier(
    slower: dict[str, float], faster: dict[str, float]
) -> None:
    usual = {"deadline": 1000.0, "save_s": 1.0, "step_s": 1.0}
    assert latest_stop(**{**usual, **slower}) < latest_stop(**{**usual, **faster}) < 1000.0


def test_a_run_that_never_saved_does_not_take_a_save_for_free() -> None:
    assert latest_stop(1000.0, 0.0, 1.0) < latest_stop(1000.0, 0.1, 1.0)
