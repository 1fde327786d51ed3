"""The order in which the loop does things, with everything around it replaced by notes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.data.batching.batch import Batch, Substitution
from mgpt4_hpc.data.batching.workers import StillWaiting
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import CheckpointError, FatalTrainingError
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger, read_ledgers
from mgpt4_hpc.train.loop import Loop, train
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.saving import Saving
from mgpt4_hpc.train.state import Ending, TrainState
from mgpt4_hpc.train.step import StepResult
from mgpt4_hpc.train.stopping.stop import NeverStop, StopRequest
from mgpt4_hpc.train.stopping.stop_schedule import Pacing
from tests.unit.train.fakes import make_batches

Notes = list[Any]


class NotingStep:
    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.nonfinite_steps = torch.zeros(())
        self.overflow_steps = torch.zeros(())
        self.broken = False

    def schedule(self, step: int) -> float:
        return 0.1 * (step + 1)

    def __call__(self, batches: Sequence[Batch], step: int, global_tokens: int) -> StepResult:
        self.notes.append(("step", step, global_tokens))
        self.nonfinite_steps += self.broken
        return StepResult(torch.tensor(6.0), 3, torch.tensor(1.5))


class NotingSaving(Saving):
    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.error: Exception | None = None

    def start_clock(self) -> None:
        self.notes.append("clock")

    def save_if_due(self, state: TrainState) -> bool:
        self.notes.append(("due?", state.step))
        return False

    def save_now(self, state: TrainState) -> None:
        self.notes.append(("save", state.step, state.samples_seen))
        if self.error is not None:
            raise self.error


class NotingRecorder(Recorder):
    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    def beat(self, step: int) -> None:
        self.notes.append(("beat", step))

    def logged(self, step: int, values: Any, buckets: Any, line: str) -> None:
        self.notes.append(("log", step, dict(values)))

    def substituted(self, substitutions: Sequence[Substitution]) -> None:
        self.notes += [("bad sample", item.key) for item in substitutions]


class StopAt(NeverStop):
    """A signal that is there from the n-th question on, or another rank's."""

    def __init__(self, poll: int, deadline: float | None = None) -> None:
        self.polls, self.at = 0, poll
        self.deadline = deadline
        self.asked: str | None = None

    def poll(self) -> StopRequest | None:
        self.polls += 1
        if self.asked is not None:
            return StopRequest(self.asked, 0.0)
        return StopRequest("SIGTERM", 0.0, self.deadline) if self.polls >= self.at else None

    def request(self, reason: str) -> None:
        self.asked = reason


class AnotherRank(Ranks):
    """The first of two ranks, whose peer has as many tokens and is asked to stop at some point."""

    def sum_on_cpu(self, values: Sequence[float]) -> list[float]:
        if len(values) == 4:  # the agreement: asked to stop, stop now, tokens, bad samples
            object.__setattr__(self, "asked", getattr(self, "asked", 0) + 1)
            asked, stop, tokens, bad = values
            return [asked + (self.asked >= 3), stop, 2 * tokens, bad]  # type: ignore[attr-defined]
        return list(values)

    def barrier(self) -> None:
        """The peer is always here."""


def make_loop(notes: Notes, stop_at: int = 10**9, **changes: Any) -> Loop:
    config = load_config("stage1-vicuna7b").config.train.model_copy(
        update={
            "max_steps": 4,
            "log_every_steps": 2,
            "global_batch_size": 10,
            "eval_every_steps": 3,
            "max_nonfinite_steps": 1,
            **changes.pop("config", {}),
        }
    )
    (batch,) = make_batches([3])

    def batches() -> Iterator[list[Batch]]:
        number = 0
        while True:
            number += 1
            notes.append(("batch", number))
            yield [batch]

    usual: dict[str, Any] = {
        "state": TrainState(),
        "config": config,
        "batches": batches(),
        "step": NotingStep(notes),
        "ranks": Ranks(),
        "stop": StopAt(stop_at),
        "pacing": Pacing(Recorder()),
        "saving": NotingSaving(notes),
        "recorder": NotingRecorder(notes),
        "evaluate": lambda: notes.append("validate") or 2.5,
    }
    return Loop(**{**usual, **changes})


def names(notes: Notes) -> list[Any]:
    return [note[:2] if isinstance(note, tuple) else note for note in notes]


def test_a_whole_run_in_its_order() -> None:
    notes: Notes = []
    loop = make_loop(notes)
    assert train(loop) == (Ending.FINISHED, "")
    assert names(notes) == [
        "clock",
        ("batch", 1), ("step", 0), ("due?", 1), ("beat", 1),
        ("batch", 2), ("step", 1), ("log", 2), ("due?", 2), ("beat", 2),
        ("batch", 3), ("step", 2), "validate", ("log", 3), ("due?", 3), ("beat", 3),
        ("batch", 4), ("step", 3), ("log", 4), ("due?", 4), ("beat", 4),
        ("save", 4),
    ]  # fmt: skip
    assert (loop.state.step, loop.state.samples_seen, loop.state.best_step) == (4, 40, 3)
    logged = next(note[2] for note in notes if note[:2] == ("log", 4))
    assert logged[tags.TRAIN_LOSS] == 2.0
    assert logged[tags.TRAIN_LR] == pytest.approx(0.4), "of the update that made this step"
    assert logged[tags.TRAIN_GRAD_NORM] == 1.5


def test_a_last_step_off_the_rhythm_is_logged_too() -> None:
    notes: Notes = []
    train(make_loop(notes, config={"max_steps": 3}))
    assert ("log", 3) in names(notes)


def test_a_stop_saves_exactly_the_completed_steps() -> None:
    notes: Notes = []
    loop = make_loop(notes, stop_at=3)
    assert train(loop) == (Ending.STOPPED, "SIGTERM")
    # The third batch was fetched and is not used: it will be fetched again.
    assert names(notes)[-2:] == [("batch", 3), ("save", 2)]
    assert notes[-1] == ("save", 2, 20) and loop.state == TrainState(2, 20)


def test_a_stop_before_the_first_step() -> None:
    notes: Notes = []
    assert train(make_loop(notes, stop_at=1)) == (Ending.STOPPED, "SIGTERM")
    assert names(notes) == ["clock", ("batch", 1), ("save", 0)]


def test_a_stop_does_not_wait_for_data_that_do_not_come() -> None:
    notes: Notes = []

    def batches() -> Iterator[list[Batch]]:
        yield make_batches([3])
        raise StillWaiting

    far = StopAt(2, deadline=time.time() + 3600.0)
    assert train(make_loop(notes, stop=far, batches=batches())) == (Ending.STOPPED, "SIGTERM")
    assert notes[-1] == ("save", 1, 10), "though there would be time for more steps"


def test_another_ranks_wish_is_ours_and_the_tokens_are_those_of_all() -> None:
    notes: Notes = []
    loop = make_loop(notes, ranks=AnotherRank(0, 0, 2, 2))
    (tokens,) = {batch.num_answer_tokens for batch in make_batches([3])}
    assert train(loop) == (Ending.STOPPED, "another rank's signal")
    assert loop.state.step == 3, "we say when, before the step after that in which we learn of it"
    assert [note[2] for note in notes if note[0] == "step"] == [2 * tokens] * 3


def test_a_deadline_far_away_lets_training_go_on() -> None:
    notes: Notes = []
    far = StopAt(2, deadline=time.time() + 3600.0)
    assert train(make_loop(notes, stop=far, evaluate=None)) == (Ending.FINISHED, "")
    assert names(notes)[-1] == ("save", 4)


def test_close_to_the_end_no_validation_begins_and_the_next_attempt_makes_it() -> None:
    notes: Notes = []
    far = StopAt(2, deadline=time.time() + 3600.0)
    assert train(make_loop(notes, stop=far)) == (Ending.STOPPED, "SIGTERM")
    assert "validate" not in notes and notes[-1] == ("save", 3, 30)

    notes.clear()
    again = make_loop(notes, state=TrainState(3, 30), evaluate_first=True)
    assert train(again) == (Ending.FINISHED, "")
    assert names(notes)[1:4] == ["validate", ("log", 3), ("batch", 1)]


@pytest.mark.parametrize(
    ("losses", "ends_at"),
    [
        ([3.0, 2.0, 2.5, 2.0, 1.0], 4),  # as low as before is no new lowest
        ([3.0, float("nan"), 2.0, 4.0, 4.0], 5),
        ([float("nan")] * 5, 2),
        ([5.0, 4.0, 3.0, 3.5, 2.0], 6),
    ],
)
def test_a_held_out_loss_that_no_longer_falls_ends_the_run(
    losses: list[float], ends_at: int
) -> None:
    coming = iter(losses)
    notes: Notes = []
    settings = {"max_steps": 6, "eval_every_steps": 1, "early_stop": 2}
    loop = make_loop(notes, config=settings, evaluate=lambda: next(coming, 0.0))
    ending, reason = train(loop)
    assert (ending, loop.state.step) == (Ending.FINISHED, ends_at)
    assert ("in the last 2 validations" in reason) == (ends_at < 6)
    assert notes[-1] == ("save", ends_at, 10 * ends_at)

    # And a start of the finished run finds that it is.
    again = make_loop([], config=settings, state=loop.state, evaluate=None)
    assert train(again) == (Ending.FINISHED, reason) and again.state.step == ends_at


def test_a_stop_before_the_first_line_of_a_step_leaves_no_second_unexplained(
    tmp_path: Path,
) -> None:
    class Recording(NotingRecorder):
        def event(self, kind: Kind, **fields: object) -> None:
            ledger.event(kind, **fields)

    ledger = Ledger(tmp_path, 1)
    ledger.event(Kind.START)
    loop = make_loop([], stop_at=4, config={"log_every_steps": 100}, recorder=Recording([]))
    assert train(loop)[0] is Ending.STOPPED and loop.state.step == 3
    ledger.event(Kind.END, cause="preempted", step=3)
    ledger.close()
    (seen,) = read_ledgers(tmp_path)
    trained_s = loop.buckets.seconds["productive"]
    assert seen.last_step == 3 and seen.buckets["productive"] == pytest.approx(trained_s) != 0


def test_a_validation_that_was_broken_off_is_not_recorded() -> None:
    notes: Notes = []
    loop = make_loop(notes, evaluate=lambda: None)
    assert train(loop)[0] is Ending.STOPPED
    assert notes[-1] == ("save", 3, 30)
    assert ("log", 3) not in names(notes)


def test_a_run_that_is_complete_does_nothing() -> None:
    notes: Notes = []
    assert train(make_loop(notes, state=TrainState(4, 40))) == (Ending.FINISHED, "")
    assert names(notes) == ["clock", ("save", 4)]


def test_a_last_save_that_fails_is_not_passed_over() -> None:
    notes: Notes = []
    loop = make_loop(notes)
    loop.saving.error = CheckpointError("disk full")  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError):
        train(loop)


def test_a_hopeless_run_ends_without_a_save() -> None:
    notes: Notes = []
    loop = make_loop(notes, config={"log_every_steps": 1})
    loop.step.broken = True  # type: ignore[attr-defined]
    with pytest.raises(FatalTrainingError, match=r"2 steps .* allows 1"):
        train(loop)
    assert [name for name in names(notes) if name[0] == "save"] == []


def test_bad_samples_are_told_before_the_save_and_counted_since_the_run_began() -> None:
    notes: Notes = []
    (good,) = make_batches([3])
    bad = make_batches([3])[0]
    object.__setattr__(bad, "substitutions", (Substitution(5, "k5", "torn", "k9"),))
    stream = iter([[good], [bad], [bad], [bad]])
    loop = make_loop(
        notes, stop_at=4, batches=stream, evaluate=None, state=TrainState(0, 0, samples_replaced=7)
    )
    assert train(loop)[0] is Ending.STOPPED
    assert names(notes)[4:] == [
        ("step", 1), ("bad sample", "k5"), ("log", 2), ("due?", 2), ("beat", 2),
        ("step", 2), ("bad sample", "k5"), ("due?", 3), ("beat", 3),
        ("save", 3),
    ]  # fmt: skip
    (logged,) = [note[2] for note in notes if note[0] == "log"]
    assert logged[tags.SKIPPED] == 8.0
    assert loop.state == TrainState(3, 30, samples_replaced=9), "not what was never trained on"


@pytest.mark.parametrize(
    ("plan", "last"),
    [([4, 4, 7, 7, 7, 7], 7), ([4, 6, 6, 6], 6), ([3, 3], 3), ([1], 2)],
    ids=["more at the end", "more on the way", "fewer", "fewer than there are"],
)
def test_a_run_follows_a_plan_that_changes(plan: list[int], last: int) -> None:
    """Asked with each line of the log (every second step and the last), and before it ends."""
    notes: Notes = []
    answers = chain(plan, repeat(plan[-1]))
    loop = make_loop(notes, planned_steps=lambda: next(answers))
    assert train(loop) == (Ending.FINISHED, "")
    assert [note[1] for note in notes if note[0] == "step"] == list(range(last))
    assert notes[-1] == ("save", last, 10 * last)
    assert loop.max_steps == last, "no line of the log has a step beyond the last one"
